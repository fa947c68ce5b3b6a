"""The store of one process: a bounded table in memory.

Rules
-----
* One `MemoryStore` may be shared by threads, by event loops (asyncio, trio) and by sync and async
  code at once: a decision never waits for anything but the lock, and that only to swap two
  references.
* A step is pure, so it is computed outside the lock and put in place only if the state is still
  the one that it started from; otherwise it is computed again. Nothing is *called* under the lock
  on this path: CPython hands over its own lock at calls, and a thread that is suspended while it
  holds ours would stop all others.
* Reading and marking as recently used go without the lock; both are single operations in C.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from math import inf
from typing import Any

from cachetools import Cache

from throttled.algorithms.plan import LOOK, NOW, Joint, Plan
from throttled.exceptions import DataError, SetUpError
from throttled.result import RateLimitResult
from throttled.store.base import (
    Answer,
    Call,
    Outcome,
    Reply,
    Store,
    Ticket,
    Waiting,
    answer_of,
    follow,
    joint_result,
    joint_ticket,
    new_lock,
    sleeper_of,
    together,
)

logger = logging.getLogger("throttled")

DEFAULT_MAX_SIZE = 65_536
#: How many of the least recently used keys are compared when one has to go …
_FEW = 8
#: … and how many are looked at, now and then, for one that is no longer worth anything.
_MANY = 64
#: Evictions between two such looks, at most.
_SELDOM = 512
#: A double between 2**52 and 2**53 is a whole number: adding this rounds seconds x 10**6 to µs.
_ROUND = 2.0**52
#: The state of a cell that is no longer in the table.
_GONE: Any = object()

_new = object.__new__


class _Cell:
    __slots__ = ("plan", "state")

    plan: Plan
    state: Any


class _Table(Cache[str, _Cell]):
    """A `cachetools` cache with an eviction rule of its own.

    Keys whose state equals a fresh key's go first, else among a few least recently used the one
    that owes least, which for a bucket is the one nearest to its reset; the others are spared and
    count as used. Plain LRU would let a flood of fresh keys free a blocked one.
    """

    def __init__(self, maxsize: int) -> None:
        super().__init__(maxsize)
        self.cells: OrderedDict[str, _Cell] = OrderedDict()  # least recently used first
        self.now = 0.0
        self.last_debt = 0.0  # what the last key that was evicted alive had owed, see plan.owed
        self.looked_at = 0  # how many had been evicted alive then
        self.evicted = 0

    def __setitem__(self, name: str, cell: _Cell) -> None:
        Cache.__setitem__(self, name, cell)
        self.cells[name] = cell

    def __delitem__(self, name: str) -> None:
        Cache.__delitem__(self, name)
        self.cells.pop(name).state = _GONE

    def popitem(self) -> tuple[str, _Cell]:
        name, cell = self.cells.popitem(False)
        debt = cell.plan.owed(cell.state, self.now)
        evicted = self.evicted
        # One that owes no more than the last to go is let go at once: looking at cold keys costs.
        if debt > 0.0 and (debt > 2.0 * self.last_debt or evicted - self.looked_at >= _SELDOM):
            name, cell, debt = self._look(name, cell, debt)
        if debt > 0.0:
            self.last_debt = debt
            self.evicted = evicted + 1
            if not evicted:
                self._warn()
        Cache.__delitem__(self, name)
        cell.state = _GONE
        return name, cell

    def _look(self, name: str, cell: _Cell, debt: float) -> tuple[str, _Cell, float]:
        """The one to go in place of the least recently used: one that owes nothing, however many
        have to be looked at (all of those found go), else the one of a few that owes least."""
        self.looked_at = self.evicted
        cells, now = self.cells, self.now
        worthless: tuple[str, _Cell] | None = None
        for place in range(min(_MANY, len(cells))):
            other_name, other = cells.popitem(False)
            other_debt = other.plan.owed(other.state, now)
            if other_debt <= 0.0:
                if worthless is not None:
                    Cache.__delitem__(self, worthless[0])
                    worthless[1].state = _GONE
                worthless = other_name, other
            elif other_debt < debt and place < _FEW:
                cells[name] = cell
                name, cell, debt = other_name, other, other_debt
            else:
                cells[other_name] = other
        if worthless is None:
            return name, cell, debt
        cells[name] = cell
        return *worthless, 0.0

    def _warn(self) -> None:
        logger.warning(
            "MemoryStore is full (MAX_SIZE=%d): keys that still count are being evicted "
            "and start afresh. Raise MAX_SIZE if so many keys are in use at once.",
            self.maxsize,
        )


class MemoryStore(Store):
    """Keeps the limits of one process in memory. Pass one to every `Throttled` that shares keys.

    `options={"MAX_SIZE": n}` bounds the number of keys (default 65,536). When it is full, keys
    that no longer count go first; evicting one that does is counted (`evicted`) and logged once.

    `clock` is a callable that returns seconds, for tests: see `throttled.testing.FakeClock`. The
    default is monotonic time anchored once to the wall clock, so it never steps back.

    Raises `DataError` for a bad MAX_SIZE and `SetUpError` for an unknown option.
    """

    #: Decisions neither block nor await.
    local = True

    def __init__(
        self,
        server: str | None = None,
        options: Mapping[str, Any] | None = None,
        *,
        clock: Callable[[], float] | None = None,
    ) -> None:
        if server is not None:
            raise SetUpError(f"Invalid server: {server!r}, a MemoryStore has none; leave it out.")
        options = dict(options or {})
        size = options.pop("MAX_SIZE", DEFAULT_MAX_SIZE)
        if options:
            raise SetUpError(
                f"Unknown MemoryStore option: {next(iter(options))!r}, the only one is 'MAX_SIZE'."
            )
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise DataError(f"Invalid MAX_SIZE: {size!r}, must be an integer of at least 1.")
        self._lock = new_lock()
        self._table = _Table(size)
        self._cells = self._table.cells
        self._waiting = Waiting()
        #: The clock, when it can sleep as well.
        self.sleeper = sleeper_of(clock)
        self._steady = clock is None  # never steps back, so a refusal never writes
        self._clock = clock
        self._tick = time.monotonic if clock is None else clock
        anchor = 0.0
        if clock is None:
            anchor = (time.time_ns() - time.monotonic_ns()) // 1000
        self._back = _ROUND - anchor

    def __repr__(self) -> str:
        return f"MemoryStore(keys={len(self._cells)}, MAX_SIZE={self._table.maxsize:.0f})"

    def __len__(self) -> int:
        """The number of keys held, those that no longer count included."""
        return len(self._cells)

    def __bool__(self) -> bool:
        return True  # also while it is empty

    @property
    def evicted(self) -> int:
        """How many keys were evicted although they still counted."""
        return self._table.evicted

    def now(self) -> float:
        """The instant by this store's clock, in whole µs since the Unix epoch."""
        return self._tick() * 1e6 + _ROUND - self._back

    def run(self, plan: Plan, key: str, cost: int, patience: float) -> Reply:
        """Decide one call: see `throttled.algorithms.steps.Queue`."""
        answer = self.bind(plan)(key, cost, patience)
        return answer.reply() if isinstance(answer, RateLimitResult) else answer

    def bind(self, plan: Plan | Joint) -> Callable[[str, int, float], Answer]:
        """`(key, cost, patience)` -> the answer by one plan or a joint, as fast as can be."""
        if isinstance(plan, Joint):
            return self._bind_joint(plan)
        # A closure: what does not change from call to call is at hand, with nothing to look up.
        get, touch, tick, lock = self._cells.get, self._cells.move_to_end, self._tick, self._lock
        prefix, take, queue, appends = plan.prefix, plan.take, plan.queue, plan.appends
        cells, commit, back, steady = self._cells, self._commit, self._back, self._steady
        new_result, result_class, gone, to_whole = _new, RateLimitResult, _GONE, _ROUND

        def decide(key: str, cost: int, patience: float) -> Answer:
            name = prefix + key
            now = tick() * 1e6 + to_whole - back
            while True:
                cell = get(name)
                if cell is None:
                    state = None
                else:
                    state = cell.state
                    if state is gone:
                        continue
                    try:  # noqa: SIM105 - a try costs nothing, suppress() a call
                        touch(name)
                    except KeyError:
                        pass  # evicted a moment ago: the swap below notices
                seen = take(state, now, cost) if cost and patience >= 0.0 else None
                if seen is not None:
                    if cell is None or appends:
                        seen = commit(name, plan, cell, state, seen, now)
                        if seen is None:
                            continue
                    else:
                        with lock:
                            if cell.state is not state:
                                continue
                            cell.state = seen
                    limited = False
                    asked = 0
                elif cell is None and name in cells:
                    continue  # it came, or was only being looked at for eviction
                elif patience == 0.0 and cost and steady:
                    limited = True
                    seen = state
                    asked = cost
                else:
                    reply = queue(state, now, cost, patience)
                    new, wait, remaining, reset_after = reply[:4]
                    if new is not None:
                        ticket = None
                        if wait <= patience:
                            ticket = Ticket(plan, key, cost, wait, now + wait, state, new, self)
                        if appends:
                            new = new, reply[4]
                        if commit(name, plan, cell, state, new, now, ticket) is None:
                            continue
                        new = ticket
                    reply = new, wait, remaining, reset_after
                    return answer_of(reply, plan, cost, patience, "memory")
                result = new_result(result_class)
                result.limited = limited
                result._plan = plan
                result._seen = seen
                result._asked = asked
                result._now = now
                return result

        return decide

    def _commit(
        self,
        name: str,
        plan: Plan,
        cell: _Cell | None,
        state: Any,
        new: Any,
        now: float,
        ticket: Ticket | None = None,
    ) -> Any:
        """Put a new state in the place of the one it came from: the state, or None if that is
        no longer there. A ticket gets in line with it."""
        added = None
        if plan.appends:
            new, added = new
        with self._lock:
            if cell is None:
                if name in self._cells:
                    return None
            elif cell.state is not state:
                return None
            if added is not None:
                slots, befores, index, slot, before = added
                slots[index] = slot
                befores[index] = before
            if cell is None:
                self._table.now = now
                self._insert(name, plan, new)
            else:
                cell.state = new
            if ticket is not None:
                self._waiting.add(ticket)
        return new

    def _bind_joint(self, joint: Joint) -> Callable[[str, int, float], Answer]:
        """`(key, cost, patience)` -> the answer of a joint."""
        decide = together(self, joint)
        if len(joint.members) != 2 or joint.holds or any(plan.appends for plan in joint.plans):
            return decide

        # Two rules, known keys, and it fits: the common case, with nothing to look up, and nothing
        # called under the lock.
        get, touch, tick, lock = self._cells.get, self._cells.move_to_end, self._tick, self._lock
        one, other = joint.plans
        first, second = one.prefix, other.prefix
        take_one, take_other = one.take, other.take
        fixed_one, fixed_other = (rule.cost for rule in joint.rules)
        gone, back, to_whole, new_result, result_class = (
            _GONE,
            self._back,
            _ROUND,
            _new,
            RateLimitResult,
        )

        def decide_two(key: str, cost: int, patience: float) -> Answer:
            if cost and patience >= 0.0:
                name, other_name = first + key, second + key
                now = tick() * 1e6 + to_whole - back
                cell, other_cell = get(name), get(other_name)
                if cell is not None and other_cell is not None:
                    state, other_state = cell.state, other_cell.state
                    if state is not gone and other_state is not gone:
                        new = take_one(state, now, fixed_one or cost)
                        if new is not None:
                            other_new = take_other(other_state, now, fixed_other or cost)
                            if other_new is not None:
                                try:
                                    touch(name)
                                    touch(other_name)
                                except KeyError:
                                    pass  # evicted a moment ago: the swap below notices
                                with lock:
                                    if cell.state is state and other_cell.state is other_state:
                                        cell.state, other_cell.state = new, other_new
                                        state = gone
                                if state is gone:
                                    result = new_result(result_class)
                                    result.limited = False
                                    result._plan = joint
                                    result._seen = new, other_new
                                    result._asked = cost
                                    result._now = now
                                    return result
            return decide(key, cost, patience)

        return decide_two

    def admit_all(
        self, joint: Joint, keys: Sequence[str], cost: int, patience: float
    ) -> tuple[Answer, Ticket | None]:
        """Decide a call that has to keep several plans at once: see `Store.admit_all`."""
        costs = (*joint.costs(cost), *(cost for _ in joint.holds))
        members = [*zip(joint.members, keys, costs, strict=True)]
        while True:
            now = self.now()
            found = [self._found(plan.prefix + key) for plan, key, _ in members]
            states = [state for _, state in found]
            looks = [
                plan.queue(state, now, each, LOOK)
                for (plan, _, each), state in zip(members, states, strict=True)
            ]
            wait = max([look[1] for look in looks])
            if not cost or wait > patience:
                # Nothing is written but what a clock changes that has stepped back.
                fresh = [look[0] for look in looks]
                if any(new is not None for new in fresh):
                    steps = [
                        (new, None) if new is not None and plan.appends else new
                        for new, (plan, _, _) in zip(fresh, members, strict=True)
                    ]
                    if not self._commit_all(members, found, steps, now):
                        continue
                limited = wait > 0.0 and cost > 0
                return joint_result(limited, joint, states, cost, now, "memory"), None
            slot = now + wait
            news: list[Any] = [None] * len(members)
            parts: list[Ticket] = []
            for place, plan in enumerate(joint.plans):
                before, (_, key, each) = states[place], members[place]
                if wait:
                    looks[place] = reply = plan.queue(before, now, each, inf, slot)
                    news[place] = (reply[0], reply[4]) if plan.appends else reply[0]
                else:
                    news[place] = plan.take(before, now, each)
                written = news[place][0] if plan.appends else news[place]
                # Without a wait it is booked at the instant written.
                at = slot if wait else written[0]
                parts.append(Ticket(plan, key, each, wait, at, before, written, self))
            if not self._commit_all(members, found, news, now, parts if wait else ()):
                continue
            ticket = joint_ticket(joint, cost, wait, slot, parts, self)
            if wait:
                return (ticket, wait, [look[1:4] for look in looks]), ticket
            seen = [part.written for part in parts] + states[len(parts) :]
            return joint_result(False, joint, seen, cost, now, "memory"), ticket

    def _found(self, name: str) -> tuple[_Cell | None, Any]:
        """The cell of a key, marked as used, and its state."""
        while True:
            cell = self._cells.get(name)
            if cell is None:
                # It may only be out of the table for a moment, to be looked at for eviction.
                with self._lock:
                    cell = self._cells.get(name)
                if cell is None:
                    return None, None
            state = cell.state
            if state is not _GONE:
                with suppress(KeyError):
                    self._cells.move_to_end(name)
                return cell, state

    def _commit_all(
        self,
        members: Sequence[tuple[Plan, str, int]],
        found: Sequence[tuple[_Cell | None, Any]],
        news: Sequence[Any],
        now: float,
        tickets: Sequence[Ticket] = (),
    ) -> bool:
        """Put several new states (None: it stays) in the places of those that they came from: all,
        or none if one is no longer there. Tickets get in line with them."""
        fresh: list[tuple[str, Plan, Any]] = []
        with self._lock:
            for (plan, key, _), (cell, state) in zip(members, found, strict=True):
                if plan.prefix + key in self._cells if cell is None else cell.state is not state:
                    return False
            for (plan, key, _), (cell, _), new in zip(members, found, news, strict=True):
                if new is None:
                    continue
                if plan.appends:
                    new, added = new
                    if added is not None:
                        slots, befores, index, slot, before = added
                        slots[index] = slot
                        befores[index] = before
                if cell is None:
                    fresh.append((plan.prefix + key, plan, new))
                else:
                    cell.state = new
            # New keys last, for they may push out others, and these then go as they are now.
            self._table.now = now
            for name, plan, new in fresh:
                self._insert(name, plan, new)
            for ticket in tickets:
                self._waiting.add(ticket)
        return True

    def _insert(self, name: str, plan: Plan, state: Any) -> None:
        """A new cell, with the lock held."""
        cell = _new(_Cell)
        cell.plan = plan
        cell.state = state
        self._table[name] = cell

    def run_many(self, calls: Sequence[Call]) -> list[Reply]:
        """Decide several independent calls, in order."""
        return [self.run(*call) for call in calls]

    def decide_many(self, plan: Plan, calls: Sequence[tuple[str, int]]) -> list[Outcome]:
        """Answers to several calls that do not wait."""
        decide = self.bind(plan)
        return [decide(key, cost, NOW if cost else LOOK) for key, cost in calls]

    def adjust(self, plan: Plan, key: str, delta: int, slot: float | None = None) -> bool:
        """Charge (`delta > 0`) or give back; says whether anything was changed."""
        name = plan.prefix + key
        while True:
            cell = self._cells.get(name)
            state = None if cell is None else cell.state
            if state is _GONE:
                continue
            now = self.now()
            new, added = plan.adjust(state, now, delta, slot)
            if new is None:
                return False
            if added is None and plan.reset_at(new) <= now:
                with self._lock:
                    if cell is None:
                        return True
                    if cell.state is state:
                        del self._table[name]
                        return True
            elif self._commit(name, plan, cell, state, (new, added) if plan.appends else new, now):
                return True

    def undo(self, ticket: Ticket) -> bool:
        """Put back the state before a promise, if nobody came after; says whether it did."""
        name = ticket.plan.prefix + ticket.key
        now = self.now()
        with self._lock:
            cell = self._cells.get(name)
            if cell is None or not ticket.plan.same(cell.state, ticket.written):
                return False
            before = ticket.before
            if before is None or ticket.plan.reset_after(before, now) <= 0.0:
                del self._table[name]
            else:
                cell.state = before
        return True

    def withdraw(self, ticket: Ticket) -> None:
        """Give back a promised slot, as if it had never been asked for where that is possible."""
        for part in ticket.parts or (ticket,):
            follow(self, self._waiting.leave(part))

    def arrived(self, ticket: Ticket) -> None:
        """A promised slot was used: return what those gave up who stood before it."""
        for part in ticket.parts or (ticket,):
            follow(self, self._waiting.arrive(part))

    def hold(self, plan: Plan, key: str) -> None:
        """A penalty was set: see `Waiting.hold`."""
        self._waiting.hold(plan, key)

    def reset(self, plan: Plan, key: str) -> None:
        """Forget a key."""
        with self._lock:
            if plan.prefix + key in self._cells:
                del self._table[plan.prefix + key]

    def dump(self, plan: Plan, key: str) -> tuple[str, ...] | None:
        """A key's state as the text that Redis would hold, for inspection; None when absent."""
        cell = self._cells.get(plan.prefix + key)
        return None if cell is None or cell.state is _GONE else plan.dump(cell.state)

    def close(self) -> None:
        """Nothing to release; what was counted stays."""
