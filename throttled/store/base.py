"""What a store offers, and what is the same in all of them."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any, Protocol
from weakref import WeakSet

from throttled.algorithms.plan import Plan

#: `(ticket or whatever the store keeps there, wait, remaining, reset_after)`, durations in µs.
#: The call was admitted if and only if `wait <= patience`; the first item is a `Ticket` if it was
#: admitted with a wait.
Reply = tuple[Any, ...]
#: `(plan, key, cost, patience)`
Call = tuple[Plan, str, int, float]


_locks: WeakSet[Any] = WeakSet()


def new_lock() -> Lock:
    """A lock that a child process finds free, whoever held it when the process forked."""
    lock = Lock()
    _locks.add(lock)
    return lock


def _renew_locks() -> None:
    for lock in list(_locks):
        lock._at_fork_reinit()  # what the standard library does with its own


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)


class Sleeper(Protocol):
    """A clock that also sleeps: see `throttled.testing.FakeClock`."""

    def __call__(self) -> float: ...

    def sleep_until(self, instant: float) -> None: ...

    async def asleep_until(self, instant: float) -> None: ...


class Ticket:
    """A promised slot: what it takes to give it back."""

    __slots__ = ("before", "cost", "key", "plan", "slot", "wait", "written")

    def __init__(
        self,
        plan: Plan,
        key: str,
        cost: int,
        wait: float,
        slot: float,
        before: Any,
        written: Any,
    ) -> None:
        self.plan = plan
        self.key = key
        self.cost = cost
        self.wait = wait  # µs from the decision to the slot
        self.slot = slot  # the instant promised, µs by the store's clock
        self.before = before  # the state before this call …
        self.written = written  # … and the one that it left

    def __repr__(self) -> str:
        return f"Ticket(key={self.key!r}, cost={self.cost}, wait={self.wait / 1e6:g})"


class Store(ABC):
    """What a store offers to sync code; a `local` one to async code as well.

    Most callers only pass one to `Throttled`. To write a store, offer these: nothing in them
    knows of algorithms beyond the interface of `Plan`. The store owns the clock.
    """

    #: Whether decisions neither block nor wait, so that async code may call them.
    local: bool = False
    #: The clock of a test, which sleeps by moving itself; None: real time.
    sleeper: Sleeper | None = None

    @abstractmethod
    def run(self, plan: Plan, key: str, cost: int, patience: float) -> Reply:
        """Decide one call; `patience` in µs, `LOOK` to change nothing."""

    @abstractmethod
    def run_many(self, calls: Sequence[Call]) -> list[Reply]:
        """Decide several independent calls, in order."""

    @abstractmethod
    def adjust(self, plan: Plan, key: str, delta: int, slot: float | None = None) -> bool:
        """Charge (`delta > 0`) or give back; says whether anything was changed."""

    @abstractmethod
    def undo(self, ticket: Ticket) -> bool:
        """Put back the state before a promise, if nobody came after; says whether it did."""

    @abstractmethod
    def withdraw(self, ticket: Ticket) -> None:
        """Give back a promised slot, as if it had never been asked for where that is possible."""

    @abstractmethod
    def arrived(self, ticket: Ticket) -> None:
        """A promised slot was used: return what those gave up who stood before it."""

    @abstractmethod
    def reset(self, plan: Plan, key: str) -> None:
        """Forget a key."""

    @abstractmethod
    def close(self) -> None:
        """Release what the store holds; counts stay where they are."""


class AsyncStore(ABC):
    """What a network store offers to async code: the same as `Store`, awaited."""

    local: bool = False
    sleeper: Sleeper | None = None

    @abstractmethod
    async def run(self, plan: Plan, key: str, cost: int, patience: float) -> Reply: ...

    @abstractmethod
    async def run_many(self, calls: Sequence[Call]) -> list[Reply]: ...

    @abstractmethod
    async def adjust(self, plan: Plan, key: str, delta: int, slot: float | None = None) -> bool: ...

    @abstractmethod
    async def undo(self, ticket: Ticket) -> bool: ...

    @abstractmethod
    async def withdraw(self, ticket: Ticket) -> None: ...

    @abstractmethod
    async def arrived(self, ticket: Ticket) -> None: ...

    @abstractmethod
    async def reset(self, plan: Plan, key: str) -> None: ...

    @abstractmethod
    async def close(self) -> None: ...


class Withdrawn:
    """The promises given up while others stood behind them, so that nothing can be returned yet.

    A promise that is undone brings back the state before it. If that is the state which a promise
    given up earlier had left, nobody stands behind that one any more, and it is undone too: a
    hundred waiters cancelled in any order leave the key as if none had asked. If those behind are
    served instead, what was given up is returned as far as the algorithm allows.

    Bounded, and local to the process: promises of others simply stand.
    """

    __slots__ = ("_lock", "_tickets")

    def __init__(self) -> None:
        self._lock = new_lock()
        self._tickets: dict[tuple[str, str], list[Ticket]] = {}

    def __bool__(self) -> bool:
        return bool(self._tickets)

    def add(self, ticket: Ticket) -> None:
        """Remember a promise that could not be returned."""
        name = (ticket.plan.prefix, ticket.key)
        with self._lock:
            if name not in self._tickets and len(self._tickets) >= 1024:
                self._tickets.pop(next(iter(self._tickets)))
            # Those whose slot had passed when this one asked are no longer at the end of the line.
            asked = ticket.slot - ticket.wait
            waiting = [other for other in self._tickets.get(name, ()) if other.slot > asked]
            self._tickets[name] = [*waiting, ticket]

    def behind(self, ticket: Ticket) -> Ticket | None:
        """Take out the promise that `ticket`, now undone, had stood directly behind."""
        taken = self._take(ticket, lambda other: bool(other.written == ticket.before))
        return taken[0] if taken else None

    def served(self, ticket: Ticket) -> list[Ticket]:
        """Take out those of the key whose slots are not after the one that was just served."""
        return self._take(ticket, lambda other: other.slot <= ticket.slot)

    def _take(self, ticket: Ticket, wanted: Callable[[Ticket], bool]) -> list[Ticket]:
        name = (ticket.plan.prefix, ticket.key)
        with self._lock:
            tickets = self._tickets.get(name, [])
            taken = [other for other in tickets if wanted(other)]
            left = [other for other in tickets if other not in taken]
            if left:
                self._tickets[name] = left
            elif tickets:
                del self._tickets[name]
        return taken
