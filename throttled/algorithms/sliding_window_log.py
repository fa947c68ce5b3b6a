"""Sliding-window log: at most `limit` in any trailing period, exactly.

Rules
-----
Every slot taken is remembered for one period. A call fits when the costs taken in the trailing
period, with its own, are at most `limit`; otherwise at the instant at which enough of the oldest
have fallen off the edge. No worst case: the one to hold another service's limit with.

Theory of operation
-------------------
Each entry holds its slot and the running total *before* it, so the sum from any entry to the end
is one subtraction, and the entry that must expire first is found by halves: O(log n). Slots only
grow (later calls stand behind earlier promises), so both columns are sorted.

State: `(at, slots, befores, head, tail, total)`: the instant written, two growing arrays of which
`head:tail` is alive, and the running total at the end. The state is a value although the arrays
are shared: an older state keeps meaning what it meant, for nothing below its tail is changed.
That is why a step does not append: it says what to write at `tail`, and the store does so when it
commits. Full arrays grow in place by as much as lives in them, or are copied without
what has expired if that is most: amortised O(1).
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from math import inf
from typing import TypeAlias

from throttled.algorithms.steps import Steps
from throttled.exceptions import DataError

Column: TypeAlias = "array[float]"
State: TypeAlias = "tuple[float, Column, Column, int, int, float]"
Append: TypeAlias = "tuple[Column, Column, int, float, float]"

#: Above this a log is the wrong tool; `sliding_window` holds such limits in constant space.
MOST = 1_000_000
#: Running totals start afresh beyond this, far below where doubles stop to be exact.
RENUMBER = 2.0**52

_ROOM = array("d", bytes(8 * 4))


def bind(limit: int, period: int, burst: int) -> Steps[State]:
    """The steps of a log of `limit` per `period` µs; `burst` has no meaning here.

    Raises `DataError` for a limit above `MOST`.
    """
    if limit > MOST:
        raise DataError(
            f"Invalid limit for sliding_window_log: {limit}, must be at most {MOST} because it "
            f"remembers every call; use sliding_window, which takes the same space for any limit."
        )
    most = float(limit)
    span = float(period)

    def advance(state: State, now: float) -> tuple[State, bool]:
        """The state with what has expired dropped, and whether the clock has stepped back."""
        at, slots, befores, head, tail, total = state
        stepped = False
        if now >= at:
            at = now
        elif now < at - span:
            back = at - now
            slots = array("d", [slot - back for slot in slots[head:tail]])
            befores = befores[head:tail]
            head, tail, at = 0, len(slots), now
            stepped = True
        if slots[head] <= at - span:
            head = bisect_right(slots, at - span, head, tail)
        return (at, slots, befores, head, tail, total), stepped

    def append(
        state: State, slot: float, cost: float, promise: bool = False
    ) -> tuple[State, Append]:
        """The state with one more entry, and what the store has to write for it."""
        at, slots, befores, head, tail, total = state
        if head == tail:
            slots, befores, head, tail, total = _ROOM[:], _ROOM[:], 0, 0, 0.0
        elif total > RENUMBER and not promise:
            base = befores[head]
            slots, total = slots[head:tail], total - base
            befores = array("d", [before - base for before in befores[head:tail]])
            head, tail = 0, len(slots)
        elif tail == len(slots) and head > tail // 2 and not promise:
            slots, befores = slots[head:tail], befores[head:tail]
            head, tail = 0, len(slots)
        if tail == len(slots):
            # In place: older states do not look beyond their own tail. `befores` first, for
            # another thread that comes by takes the length of `slots` for both.
            room = bytes(8 * max(tail - head, 4))
            befores.frombytes(room)
            slots.frombytes(room)
        return (
            (at, slots, befores, head, tail + 1, total + cost),
            (slots, befores, tail, slot, total),
        )

    def take(state: State | None, now: float, cost: int) -> tuple[State, Append] | None:
        if state is None or state[3] == state[4]:
            state = (now, _ROOM, _ROOM, 0, 0, 0.0)
        else:
            at, slots, befores, head, tail, total = state
            if at <= now < slots[head] + span and tail < len(slots) and total <= RENUMBER:
                # The common case: nothing has expired, and there is room for one more.
                if total - befores[head] + cost > most or slots[tail - 1] > now:
                    return None
                return (
                    (now, slots, befores, head, tail + 1, total + cost),
                    (slots, befores, tail, now, total),
                )
            state, _ = advance(state, now)
        at, slots, befores, head, tail, total = state
        if head < tail:
            if total - befores[head] + cost > most or slots[tail - 1] > at:
                return None
        elif cost > most:
            return None
        return append(state, at, cost)

    def queue(
        state: State | None, now: float, cost: int, patience: float, soonest: float = 0.0
    ) -> tuple[State | None, float, float, float, Append | None]:
        stepped = False
        if state is None:
            state = (now, _ROOM, _ROOM, 0, 0, 0.0)
        oldest = state[3]
        if oldest < state[4]:
            state, stepped = advance(state, now)
        at, slots, befores, head, tail, total = state
        if head == tail:
            used, last = 0.0, at
        else:
            used = total - befores[head]
            last = slots[tail - 1]
        written = state if stepped else None
        fits = used + cost <= most and last <= at
        if not cost or (fits and soonest <= now):
            wait = 0.0
        elif cost > most:
            wait = inf
        else:
            slot = now if fits else last if last > at else at
            first = bisect_left(befores, total + cost - most, head, tail)
            if first > head and slots[first - 1] + span > slot:
                slot = slots[first - 1] + span
            if soonest > slot:
                slot = soonest
            wait = slot - now
            if wait <= patience:
                if not stepped and head < tail:
                    # A promise keeps what it found, expired or not, so that it can be undone.
                    state = (at, slots, befores, oldest, tail, total)
                if at > slot:
                    slot = at
                written, added = append(state, slot, cost, promise=True)
                return written, wait, 0.0, slot + span - now, added
        if last > at:
            room = 0.0
        else:
            room = most - used
            if room < 0.0:
                room = 0.0
        return written, wait, room, last + span - now if head < tail else 0.0, None

    def adjust(
        state: State | None, now: float, delta: int, slot: float | None
    ) -> tuple[State | None, Append | None]:
        if state is None:
            state = (now, _ROOM, _ROOM, 0, 0, 0.0)
        if state[3] < state[4]:
            state, _ = advance(state, now)
        at, slots, befores, head, tail, total = state
        if delta >= 0:
            if not delta:
                return None, None
            last = slots[tail - 1] if head < tail else at
            return append(state, last if last > at else at, delta)

        # Newest first: what was taken for the slot, or for any that has come when none is named.
        give = float(-delta)
        index = bisect_right(slots, at if slot is None else slot, head, tail)
        kept: list[tuple[float, float]] = []  # (slot, cost) of what stays of the entries touched
        end = index
        while index > head and give > 0.0 and (slot is None or slots[index - 1] == slot):
            index -= 1
            cost = (befores[index + 1] if index + 1 < tail else total) - befores[index]
            back = give if give < cost else cost
            give -= back
            if cost > back:
                kept.append((slots[index], cost - back))
        if index == end:
            return None, None
        if end == tail and not kept:
            return (at, slots, befores, head, index, befores[index]), None
        # Deep inside, or in part: what stands behind is written again.
        kept.reverse()
        for later in range(end, tail):
            after = befores[later + 1] if later + 1 < tail else total
            kept.append((slots[later], after - befores[later]))
        running = befores[index]
        slots, befores = slots[head:index], befores[head:index]
        for instant, cost in kept:
            slots.append(instant)
            befores.append(running)
            running += cost
        return (at, slots, befores, 0, len(slots), running), None

    def reset_at(state: State) -> float:
        _, slots, _, head, tail, _ = state
        return slots[tail - 1] + span if head < tail else 0.0

    def owed(state: State, now: float) -> float:
        _, slots, befores, head, tail, total = state
        if head == tail or now >= slots[tail - 1] + span:
            return 0.0
        return (total - befores[head]) * span / most

    def same(one: State, other: State) -> bool:
        # Whatever happens to a log changes its end.
        return end(one) == end(other)

    return Steps(take, queue, adjust, reset_at, owed, same, dump, appends=True)


def end(state: State) -> tuple[float, ...]:
    """The end of a log: its last entry, its total and the instant written."""
    at, slots, befores, head, tail, total = state
    if head == tail:
        return (total, at)
    return (slots[tail - 1], befores[tail - 1], total, at)


def dump(state: State) -> tuple[str, ...]:
    """The state as the list that Redis holds: before, slot, before, slot, …, total, and then -at
    where that is not the last slot."""
    at, slots, befores, head, tail, total = state
    if head == tail:
        return ()
    numbers = [number for i in range(head, tail) for number in (befores[i], slots[i])]
    numbers.append(total)
    if at != slots[tail - 1]:
        numbers.append(-at)
    return tuple([f"{number:.17g}" for number in numbers])
