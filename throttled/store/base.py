"""What a store offers, and what is the same in all of them."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, Literal, Protocol, cast
from weakref import WeakSet

from throttled.algorithms.plan import LOOK, NOW, Joint, Plan
from throttled.exceptions import BaseThrottledError, DataError, SetUpError
from throttled.result import RateLimitResult, Source

#: `(ticket or whatever the store keeps there, wait, remaining, reset_after)`, durations in µs.
#: The call was admitted if and only if `wait <= patience`; the first item is a `Ticket` if it was
#: admitted with a wait.
Reply = tuple[Any, ...]
#: `(plan or joint, key, cost, patience)`
Call = tuple[Any, str, int, float]
#: A plan, a key, and what to charge there (more than 0) or to give back (less), and for which slot.
Change = tuple[Plan, str, int, float | None]
#: What a call comes to: its result, or the reply that holds the ticket to wait with.
Answer = RateLimitResult | Reply
#: The answer, or the error that stands in its place.
Outcome = Answer | BaseThrottledError


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


def sleeper_of(clock: Any) -> Sleeper | None:
    """A `clock=` of a user's, if it can sleep as well; `SetUpError` if it is no clock."""
    if clock is not None and not callable(clock):
        raise SetUpError(
            f"Invalid clock: {clock!r}, must be a callable that returns seconds, "
            f"such as throttled.testing.FakeClock()."
        )
    return cast("Sleeper", clock) if hasattr(clock, "sleep_until") else None


class Ticket:
    """What was taken at a slot: all it takes to give it back."""

    __slots__ = (
        "before",
        "cost",
        "gone",
        "held",
        "key",
        "parts",
        "plan",
        "slot",
        "source",
        "store",
        "void",
        "wait",
        "written",
    )

    def __init__(
        self,
        plan: Any,
        key: str,
        cost: int,
        wait: float,
        slot: float,
        before: Any,
        written: Any,
        store: Any,
    ) -> None:
        self.store = store  # which promised it
        self.source: Source = store.source
        self.plan = plan
        self.key = key
        self.cost = cost
        self.wait = wait  # µs from the decision to the slot
        self.slot = slot  # the instant promised, µs by the store's clock
        self.before = before  # the state before this call …
        self.written = written  # … and the one that it left
        self.gone = False  # given up, but others stand behind: see Waiting
        self.void = False  # its key was reset since: there is nothing to give back
        self.held = False  # a penalty was set since: see Waiting.hold
        self.parts: tuple[Ticket, ...] = ()  # of a joint: a ticket a plan

    def __repr__(self) -> str:
        return f"Ticket(cost={self.cost}, wait={self.wait / 1e6:g})"  # keys may be secret


def joint_ticket(
    joint: Joint, cost: int, wait: float, slot: float, parts: Sequence[Ticket], store: Any
) -> Ticket:
    """The ticket of a call that was admitted by several plans at once."""
    ticket = Ticket(joint, parts[0].key, cost, wait, slot, None, None, store)
    ticket.parts = tuple(parts)
    return ticket


def joint_result(
    limited: bool, joint: Joint, seen: Sequence[Any], cost: int, now: float | None, source: Source
) -> RateLimitResult:
    """What a joint decides: by the states `seen` at `now`, or by the replies of its plans."""
    result = RateLimitResult.of(limited, cast("Any", seen), joint, source)
    result._now = now
    result._asked = cost
    return result


def changes_of(ticket: Ticket, actual: int | None) -> list[Change]:
    """What settles a ticket, of which `actual` was used: rules with a fixed cost keep it. None: all
    goes back, by every rule.

    The rest goes back to the slot it was taken for, where the algorithm knows slots; an excess is
    charged as of now, however long ago that was.
    """
    changes: list[Change] = []
    for part, rule in zip(ticket.parts, ticket.plan.rules, strict=True):
        if actual is not None and rule.cost is not None:
            continue
        delta = (actual or 0) - part.cost
        slot = part.slot if delta < 0 and part.plan.dated else None
        if delta:
            changes.append((part.plan, part.key, delta, slot))
    return changes


def answer_of(reply: Reply, plan: Plan, cost: int, patience: float, source: Source) -> Answer:
    """What a store's reply to a call comes to."""
    wait = reply[1]
    if 0.0 < wait <= patience:
        return reply
    return RateLimitResult.of(wait > 0.0 and cost > 0, reply, plan, source)


@dataclass(frozen=True, slots=True)
class Health:
    """How a store gets on with its server: `store.health()`."""

    #: `"closed"`: calls go to the server, as they should. `"open"`: after several failures in a
    #: row it is not asked for a while. `"half-open"`: one call is trying whether it is back.
    state: Literal["closed", "half-open", "open"] = "closed"
    #: How many times in a row it has failed.
    failures: int = 0
    #: What went wrong last, and when in seconds since the epoch; kept when it works again.
    last_error: str | None = None
    last_error_at: float | None = None
    #: Seconds until the server is asked again; 0 unless `"open"`.
    retry_after: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether the store is in order, as far as it knows."""
        return self.state == "closed" and not self.failures


class _AnyStore:
    """What both flavours of stores have."""

    #: Whether decisions neither block nor wait, so that async code may call them.
    local: bool = False
    #: The clock of a test, which sleeps by moving itself; None: real time.
    sleeper: Sleeper | None = None
    #: What a `Throttled` does when the store fails, unless it has an `on_store_error` of its own.
    on_store_error: Any = "raise"
    #: Whether keys are kept as digests, and are to be shown nowhere.
    hides_keys: bool = False
    #: Why `limit_all` cannot decide limits on it at once; None: it can.
    apart: str | None = None
    #: How many processes share the quota: what `"local"` divides it by.
    local_share: int = 1
    # For the policy alone, which keeps with a store what all limits on it share.
    _clock: Any = None
    _local_store: Any = None
    _warned: frozenset[str] = frozenset()

    @property
    def source(self) -> Source:
        """The `source` of results that this store decided."""
        return "memory" if self.local else "server"

    def health(self) -> Health:
        """How the store gets on with its server, without asking it."""
        return Health()

    def hold(self, hold: Plan, key: str) -> None:
        """A penalty was set: callers who wait for that key here are to look again."""

    def adjust_all(self, changes: Sequence[Change]) -> Any:
        """Charge or give back several at once; says of each whether anything was changed."""
        raise NotImplementedError

    def change(self, joint: Joint, key: str, delta: int) -> Any:
        """Charge or give back by all rules that have no cost of their own, as `adjust_all` does.

        Raises `DataError` if there are none.
        """
        changes: list[Change] = [
            (plan, key, delta, None)
            for plan, rule in zip(joint.plans, joint.rules, strict=True)
            if rule.cost is None
        ]
        if not changes:
            raise DataError(
                f"Invalid use of {'debit' if delta > 0 else 'refund'}: every rule has a cost of "
                f"its own, so there is none that n would apply to."
            )
        return self.adjust_all(changes)

    def settle(self, ticket: Ticket, actual: int | None) -> Any:
        """Charge or give back what settles a ticket: see `changes_of`."""
        changes = changes_of(ticket, actual)
        return self.adjust_all(changes) if changes else []


class Store(_AnyStore, ABC):
    """What a store offers to sync code; a `local` one to async code as well.

    Most callers only pass one to `Throttled`. To write a store, offer these: nothing in them
    knows of algorithms beyond the interface of `Plan`. The store owns the clock. It raises
    `StoreUnavailableError` or `StateError` when it cannot decide: `on_store_error` is for those.
    """

    @abstractmethod
    def run(self, plan: Plan, key: str, cost: int, patience: float) -> Reply:
        """Decide one call; `patience` in µs, `LOOK` to change nothing."""

    @abstractmethod
    def run_many(self, calls: Sequence[Call]) -> list[Reply]:
        """Decide several independent calls, in order; an error may stand in the place of one."""

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

    def admit_all(
        self, joint: Joint, keys: Sequence[str], cost: int, patience: float
    ) -> tuple[Answer, Ticket | None]:
        """Decide a call that has to keep several plans at once, each with a key of its own.

        All or nothing, in one step. Returns the answer, and a ticket if the call was admitted, with
        or without a wait.
        """
        raise unable(self)

    def adjust_all(self, changes: Sequence[Change]) -> list[bool]:
        """Charge or give back several at once; says of each whether anything was changed."""
        return [self.adjust(*change) for change in changes]

    def adjust_once(
        self, plan: Plan, key: str, mark: str, seconds: float, changes: Sequence[Change]
    ) -> list[bool] | None:
        """The same as `adjust_all`, in one step with a mark that lasts so long; None, and nothing
        done, if the mark was there. It lies beside what the plan keeps of the key, which all
        changes are of."""
        raise unable(self)

    def reset_all(self, names: Sequence[tuple[Plan, str]]) -> None:
        """Forget several at once, each a plan and a key."""
        for plan, key in names:
            self.reset(plan, key)

    def bind(self, plan: Plan | Joint) -> Callable[[str, int, float], Answer]:
        """`(key, cost, patience)` -> the answer by one plan, or by a joint."""
        if isinstance(plan, Joint):
            if type(self).admit_all is Store.admit_all:
                raise unable(self)
            return together(self, plan)

        def decide(key: str, cost: int, patience: float) -> Answer:
            return answer_of(self.run(plan, key, cost, patience), plan, cost, patience, self.source)

        return decide

    def decide_many(self, plan: Plan, calls: Sequence[tuple[str, int]]) -> list[Outcome]:
        """Answers to several calls that do not wait; an error stands in the place of its call."""
        return outcomes_of(self.run_many(calls_of(plan, calls)), plan, calls, self.source)


class AsyncStore(_AnyStore, ABC):
    """What a network store offers to async code: the same as `Store`, awaited."""

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

    async def admit_all(
        self, joint: Joint, keys: Sequence[str], cost: int, patience: float
    ) -> tuple[Answer, Ticket | None]:
        raise unable(self)

    async def adjust_all(self, changes: Sequence[Change]) -> list[bool]:
        return [await self.adjust(*change) for change in changes]

    async def adjust_once(
        self, plan: Plan, key: str, mark: str, seconds: float, changes: Sequence[Change]
    ) -> list[bool] | None:
        raise unable(self)

    async def reset_all(self, names: Sequence[tuple[Plan, str]]) -> None:
        for plan, key in names:
            await self.reset(plan, key)

    def bind(self, plan: Plan | Joint) -> Callable[[str, int, float], Awaitable[Answer]]:
        """`(key, cost, patience)` -> the answer by one plan or a joint, to be awaited."""
        if isinstance(plan, Joint):
            joint = plan
            if type(self).admit_all is AsyncStore.admit_all:
                raise unable(self)

            async def decide_all(key: str, cost: int, patience: float) -> Answer:
                return (await self.admit_all(joint, joint.keys(key), cost, patience))[0]

            return decide_all

        async def decide(key: str, cost: int, patience: float) -> Answer:
            reply = await self.run(plan, key, cost, patience)
            return answer_of(reply, plan, cost, patience, self.source)

        return decide

    async def decide_many(self, plan: Plan, calls: Sequence[tuple[str, int]]) -> list[Outcome]:
        return outcomes_of(await self.run_many(calls_of(plan, calls)), plan, calls, self.source)


def unable(store: object) -> SetUpError:
    """The error of a store that decides by one plan at a time."""
    return SetUpError(
        f"A {type(store).__name__} decides by one rule at a time. Several rules, a cost of their "
        f"own, hold=True, reserve() and limit_all() take a MemoryStore, a RedisStore, or a store "
        f"of yours with admit_all(), and with adjust_once() if a service is to use it."
    )


def together(store: Store, joint: Joint) -> Callable[[str, int, float], Answer]:
    """`(key, cost, patience)` -> the answer of a joint."""

    def decide(key: str, cost: int, patience: float) -> Answer:
        return store.admit_all(joint, joint.keys(key), cost, patience)[0]

    return decide


def misplaced(store: Store | AsyncStore, asynchronous: bool) -> str | None:
    """Why code of that flavour cannot use a store, as the end of a sentence; None if it can."""
    if not asynchronous and isinstance(store, AsyncStore):
        return "is for throttled.asyncio; use its namesake in throttled.store here."
    if asynchronous and isinstance(store, Store) and not store.local:
        return "would block the event loop; use its namesake in throttled.asyncio.store."
    return None


def calls_of(plan: Plan | Joint, calls: Sequence[tuple[str, int]]) -> list[Call]:
    """Calls by one plan that do not wait, for `run_many`; a cost of 0 only looks."""
    return [(plan, key, cost, NOW if cost else LOOK) for key, cost in calls]


def outcomes_of(
    replies: Sequence[Any], plan: Plan, calls: Sequence[tuple[str, int]], source: Source
) -> list[Outcome]:
    """What the replies of `run_many` to calls that do not wait come to."""
    return [
        reply
        if isinstance(reply, BaseThrottledError)
        else answer_of(reply, plan, cost, NOW, source)
        for reply, (_, cost) in zip(replies, calls, strict=True)
    ]
