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

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cachetools import TLRUCache

from throttled.algorithms.plan import LOOK, NOW, Joint, Plan
from throttled.exceptions import DataError, SetUpError
from throttled.result import RateLimitResult
from throttled.store.base import (
    Answer,
    Call,
    Change,
    Outcome,
    Reply,
    Ticket,
    answer_of,
    new_lock,
    sleeper_of,
)
from throttled.store.joints import ROUND, JointMemory
from throttled.store.table import GONE, Cell, Table
from throttled.store.waiting import Waiting, follow

DEFAULT_MAX_SIZE = 65_536
_new = object.__new__


class MemoryStore(JointMemory):
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
        self._table = Table(size)
        self._cells = self._table.cells
        self._waiting = Waiting()
        self._marks: TLRUCache[tuple[str, str], float] | None = None
        #: The clock, when it can sleep as well.
        self.sleeper = sleeper_of(clock)
        self._steady = clock is None  # never steps back, so a refusal never writes
        self._clock = clock
        self._tick = time.monotonic if clock is None else clock
        anchor = 0.0
        if clock is None:
            anchor = (time.time_ns() - time.monotonic_ns()) // 1000
        self._back = ROUND - anchor

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
        new_result, result_class, gone, to_whole = _new, RateLimitResult, GONE, ROUND

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
        cell: Cell | None,
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
                # In place of `_insert`: a store full of live keys makes one at each call.
                cell = _new(Cell)
                cell.plan = plan
                cell.state = new
                table = self._table
                table.now = now
                table[name] = cell
            else:
                cell.state = new
            if ticket is not None:
                self._waiting.add(ticket)
        return new

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
            cell, state = self._found(name)
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

    def adjust_once(
        self, plan: Plan, key: str, mark: str, seconds: float, changes: Sequence[Change]
    ) -> list[bool] | None:
        """The same for several, unless it was done before: see `Store.adjust_once`.

        Of as many marks as the store may hold keys, the oldest is the first to go.
        """
        with self._lock:
            if self._marks is None:
                # Apart from the keys, which a flood of marks would push out.
                size = self._table.maxsize
                self._marks = TLRUCache(size, lambda _, until, now: until, lambda: self.now() / 1e6)
            name = plan.prefix + getattr(key, "slot", key), mark
            if name in self._marks:
                return None
            self._marks[name] = self.now() / 1e6 + seconds
        return self.adjust_all(changes)

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
        follow(self, self._waiting.leave(ticket))

    def arrived(self, ticket: Ticket) -> None:
        """A promised slot was used: return what those gave up who stood before it."""
        follow(self, self._waiting.arrive(ticket))

    def hold(self, hold: Plan, key: str) -> None:
        """A penalty was set: see `Waiting.hold`."""
        self._waiting.hold(hold, key)

    def reset(self, plan: Plan, key: str) -> None:
        """Forget a key."""
        self._waiting.forget(plan, key)
        with self._lock:
            if plan.prefix + key in self._cells:
                del self._table[plan.prefix + key]

    def dump(self, plan: Plan, key: str) -> tuple[str, ...] | None:
        """A key's state as the text that Redis would hold, for inspection; None when absent."""
        cell = self._cells.get(plan.prefix + key)
        return None if cell is None or cell.state is GONE else plan.dump(cell.state)

    def close(self) -> None:
        """Nothing to release; what was counted stays."""
