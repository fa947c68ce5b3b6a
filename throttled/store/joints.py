"""Several plans at once, in memory: all or none."""

from __future__ import annotations

from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING, Any

from throttled.algorithms.plan import LOOK, Joint, Plan
from throttled.result import RateLimitResult
from throttled.store.base import Answer, Store, Ticket, joint_result, joint_ticket, together
from throttled.store.table import GONE, Cell, Table
from throttled.store.waiting import Waiting

if TYPE_CHECKING:
    from collections import OrderedDict
    from collections.abc import Callable, Sequence
    from threading import Lock

#: A double between 2**52 and 2**53 is a whole number: adding this rounds seconds x 10**6 to µs.
ROUND = 2.0**52

_new = object.__new__


class JointMemory(Store):
    """What a `MemoryStore` does about joints."""

    _lock: Lock
    _table: Table
    _cells: OrderedDict[str, Cell]
    _waiting: Waiting
    _steady: bool
    _tick: Callable[[], float]
    _back: float

    def now(self) -> float:
        """The instant by this store's clock, in whole µs since the Unix epoch."""
        return self._tick() * 1e6 + ROUND - self._back

    def _bind_joint(self, joint: Joint) -> Callable[[str, int, float], Answer]:
        """`(key, cost, patience)` -> the answer of a joint."""
        get, touch, tick, lock = self._cells.get, self._cells.move_to_end, self._tick, self._lock
        gone, back, to_whole, steady = GONE, self._back, ROUND, self._steady
        slowly, new_result, result_class = together(self, joint), _new, RateLimitResult
        plans, holds = joint.plans, joint.holds
        asked = [
            (plan.prefix, plan.take, rule.cost, plan.appends)
            for plan, rule in zip(plans, joint.rules, strict=True)
        ]
        penalties = [hold.prefix for hold in holds]

        def decide(key: str, cost: int, patience: float) -> Answer:
            """What fits now by all, and what does not and will not wait; the rest goes slowly."""
            if not cost or patience < 0.0:
                return slowly(key, cost, patience)
            now = tick() * 1e6 + to_whole - back
            cells: list[Cell] = []
            seen: list[Any] = []
            news: list[Any] = []
            added: list[Any] = []
            limited = False
            for prefix, take, fixed, appends in asked:
                name = prefix + key
                cell = get(name)
                if cell is None:
                    return slowly(key, cost, patience)
                state = cell.state
                if state is gone:
                    return slowly(key, cost, patience)
                try:  # noqa: SIM105 - as in `MemoryStore.bind`
                    touch(name)
                except KeyError:
                    pass
                cells.append(cell)
                seen.append(state)
                if not limited:
                    new = take(state, now, fixed or cost)
                    if new is None:
                        limited = True
                    elif appends:
                        news.append(new[0])
                        added.append(new[1])
                    else:
                        news.append(new)
            for prefix in penalties:
                if get(prefix + key) is not None:
                    return slowly(key, cost, patience)
            if not limited:
                with lock:
                    for cell, state in zip(cells, seen, strict=False):
                        if cell.state is not state:
                            break
                    else:
                        for slots, befores, index, slot, before in added:
                            slots[index] = slot
                            befores[index] = before
                        for cell, new in zip(cells, news, strict=False):
                            cell.state = new
                        seen = news
                if seen is not news:
                    return slowly(key, cost, patience)
            elif patience or not steady:
                return slowly(key, cost, patience)
            if penalties:
                seen = [*seen, *(None for _ in penalties)]
            result = new_result(result_class)
            result.limited = limited
            result._plan = joint
            result._seen = seen
            result._asked = cost
            result._now = now
            return result

        if len(plans) != 2 or holds:
            return decide

        # Two rules, known keys, and it fits: the common case, with nothing to look up, and nothing
        # called under the lock.
        (first, take_one, fixed_one, appends_one), other = asked
        second, take_other, fixed_other, appends_other = other

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
                                added = other_added = None
                                if appends_one:
                                    new, added = new
                                if appends_other:
                                    other_new, other_added = other_new
                                with lock:
                                    if cell.state is state and other_cell.state is other_state:
                                        if added is not None:
                                            slots, befores, index, slot, before = added
                                            slots[index] = slot
                                            befores[index] = before
                                        if other_added is not None:
                                            slots, befores, index, slot, before = other_added
                                            slots[index] = slot
                                            befores[index] = before
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
            # Of a hold, too, nothing is written but what a clock changes.
            news = [look[0] for look in looks]
            parts: list[Ticket] = []
            for place, plan in enumerate(joint.plans):
                before, (_, key, each) = states[place], members[place]
                if wait:
                    looks[place] = reply = plan.queue(before, now, each, inf, slot)
                    news[place] = (reply[0], reply[4]) if plan.appends else reply[0]
                else:
                    news[place] = plan.take(before, now, each)
                written = news[place][0] if plan.appends else news[place]
                # Without a wait it is booked at the instant written, and never before that.
                at = max(slot, written[0]) if wait else written[0]
                parts.append(Ticket(plan, key, each, wait, at, before, written, self))
            if not self._commit_all(members, found, news, now, parts if wait else ()):
                continue
            ticket = joint_ticket(joint, cost, wait, slot, parts, self)
            if wait:
                return (ticket, wait, [look[1:4] for look in looks]), ticket
            seen = [part.written for part in parts] + states[len(parts) :]
            return joint_result(False, joint, seen, cost, now, "memory"), ticket

    def _found(self, name: str) -> tuple[Cell | None, Any]:
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
            if state is not GONE:
                with suppress(KeyError):
                    self._cells.move_to_end(name)
                return cell, state

    def _commit_all(
        self,
        members: Sequence[tuple[Plan, str, int]],
        found: Sequence[tuple[Cell | None, Any]],
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
        cell = _new(Cell)
        cell.plan = plan
        cell.state = state
        self._table[name] = cell
