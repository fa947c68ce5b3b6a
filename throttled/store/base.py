"""What a store offers, and what is the same in all of them."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import suppress
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

    __slots__ = ("before", "cost", "gone", "key", "plan", "slot", "wait", "written")

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
        self.gone = False  # given up, but others stand behind: see Waiting

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


#: `(True, ticket)`: undo it; `(False, ticket)`: give back its cost by an adjustment. The answer
#: sent in is whether anything was changed.
Steps = Generator[tuple[bool, Ticket], bool, None]


class Waiting:
    """The promises of this process that were not used yet, key by key in the order of asking.

    Who gives up a promise with nobody behind it is undone, and leaves the key as if it had never
    asked. With others behind it nothing can be put back yet without changing what they were
    promised. So it is remembered: when the one behind it is undone too, so is this one (a hundred
    waiters cancelled in any order leave no trace), and when the last one behind it is served, its
    cost is given back as far as the algorithm allows.

    What to do comes out as steps, so that sync and async stores can share it. Bounded; promises of
    other processes are not known here, and simply stand.
    """

    __slots__ = ("_lines", "_lock")

    def __init__(self) -> None:
        self._lock = new_lock()
        self._lines: dict[tuple[str, str], deque[Ticket]] = {}

    def add(self, ticket: Ticket) -> None:
        """Somebody waits for a slot."""
        name = (ticket.plan.prefix, ticket.key)
        with self._lock:
            line = self._lines.get(name)
            if line is None:
                if len(self._lines) >= 4096:
                    del self._lines[next(iter(self._lines))]
                line = self._lines[name] = deque()
            # Who never said that they were served: their slots had passed when this one asked.
            while line and not line[0].gone and line[0].slot <= ticket.slot - ticket.wait:
                line.popleft()
            line.append(ticket)

    def leave(self, ticket: Ticket) -> Steps:
        """Somebody gives up a slot."""
        undone: Ticket | None = None
        if (yield True, ticket):
            undone = ticket
        elif self._stay(ticket):
            return
        self._remove(ticket)
        if undone is None:
            yield False, ticket
        while undone is not None:
            undone = self._behind(undone)
            if undone is not None:
                if (yield True, undone):
                    self._remove(undone)
                else:
                    undone = None
        yield from self._settle(ticket)

    def arrive(self, ticket: Ticket) -> Steps:
        """Somebody's slot has come."""
        self._remove(ticket)
        yield from self._settle(ticket)

    def _stay(self, ticket: Ticket) -> bool:
        """Remember a ticket that was given up, if anybody waits behind it."""
        with self._lock:
            for other in reversed(self._lines.get((ticket.plan.prefix, ticket.key), ())):
                if other is ticket:
                    return False
                if not other.gone:
                    ticket.gone = True
                    return True
        return False

    def _behind(self, undone: Ticket) -> Ticket | None:
        """The promise given up before, which the one that is now undone had stood behind."""
        with self._lock:
            for other in reversed(self._lines.get((undone.plan.prefix, undone.key), ())):
                if other.gone and other.written == undone.before:
                    return other
        return None

    def _settle(self, ticket: Ticket) -> Steps:
        """Give back what was given up, now that nobody waits behind it; the newest first."""
        while True:
            with self._lock:
                line = self._lines.get((ticket.plan.prefix, ticket.key))
                if not line or not line[-1].gone:
                    return
                last = line.pop()
                if not line:
                    del self._lines[(ticket.plan.prefix, ticket.key)]
            yield False, last

    def _remove(self, ticket: Ticket) -> None:
        name = (ticket.plan.prefix, ticket.key)
        with self._lock:
            line = self._lines.get(name)
            if line is None:
                return
            with suppress(ValueError):
                line.remove(ticket)
            if not line:
                del self._lines[name]
