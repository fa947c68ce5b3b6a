"""Fixed window: at most `limit` per window of `period`, windows aligned to the Unix epoch.

Rules
-----
A call fits when the count of the window it falls into, with its cost, is at most `limit`;
otherwise it fits at the start of the next window that has room. Worst case: two full windows
meet at a boundary, so up to 2 x limit within one period.

State: `(start, count, last, booked)`: the current window and its count, then the last slot that
is promised in a later one and what promises book there (both 0 while nobody waits for one). Windows
between the two are taken as full: calls are served in the order they asked, so nobody could use
their room. The window's start serves as the instant written, and promises that other rules put off
within it count as taken, for nothing inside a window depends on the time.
"""

from __future__ import annotations

from math import inf

from throttled.algorithms.steps import Steps

State = tuple[float, float, float, float]


def bind(limit: int, period: int, burst: int) -> Steps[State]:
    """The steps of a fixed window of `limit` per `period` µs; `burst` has no meaning here."""
    most = float(limit)
    span = float(period)

    def advance(state: State | None, now: float) -> tuple[State, bool]:
        """The state as of now, and whether the clock has stepped back."""
        if state is None:
            return (now - now % span, 0.0, 0.0, 0.0), False
        start, count, last, booked = state
        if now >= start + span:
            start = now - now % span
            if last >= start + span:
                count = most  # between two windows of promises: closed
            else:
                count = booked if last >= start else 0.0
                last = booked = 0.0
        elif now < start - span:
            back = start - (now - now % span)
            return (start - back, count, last - back if last else 0.0, booked), True
        return (start, count, last, booked), False

    def take(state: State | None, now: float, cost: int) -> State | None:
        if state is None:
            return (now - now % span, 0.0 + cost, 0.0, 0.0) if cost <= most else None
        start, count, last, _ = state
        if not start <= now < start + span:
            (start, count, last, _), _ = advance(state, now)
        count += cost
        return (start, count, 0.0, 0.0) if count <= most and not last else None

    def queue(
        state: State | None, now: float, cost: int, patience: float, soonest: float = 0.0
    ) -> tuple[State | None, float, float, float]:
        state, stepped = advance(state, now)
        start, count, last, booked = state
        taken = count + cost
        fits = taken <= most and not last
        written: State | None = state if stepped else None
        if not cost or (fits and soonest <= now):
            wait = 0.0
        elif cost > most:
            wait = inf
        else:
            if fits:
                window, slot = start, now
            elif not last:
                window = slot = start + span
                taken = float(cost)
            else:
                window, slot = last - last % span, last
                taken = booked + cost
                if taken > most:
                    window = slot = window + span
                    taken = float(cost)
            if soonest > slot:
                slot = soonest
                if slot >= window + span:
                    window, taken = slot - slot % span, float(cost)
            wait = slot - now
            if wait <= patience:
                if window == start:
                    count = taken
                else:
                    last, booked = slot, taken
                written = (start, count, last, booked)
        if last:
            return written, wait, 0.0, reset_at((start, count, last, booked)) - now
        room = most - count
        return (
            written,
            wait,
            room if room > 0.0 else 0.0,
            start + span - now if count else 0.0,
        )

    def adjust(
        state: State | None, now: float, delta: int, slot: float | None
    ) -> tuple[State | None, None]:
        (start, count, last, booked), _ = advance(state, now)
        window = start if slot is None else slot - slot % span
        if last and window == last - last % span:
            taken = booked + delta
            booked = taken if taken > 0.0 else 0.0
            if not booked and window == start + span:
                last = 0.0
        elif window == start and (count or delta > 0):
            taken = count + delta
            count = taken if taken > 0.0 else 0.0
        else:
            # A past window has forgiven; a closed one has nothing that anybody could use.
            return None, None
        return (start, count, last, booked), None

    def reset_at(state: State) -> float:
        start, count, last, booked = state
        if last:
            window = last - last % span
            return window + span if booked else window
        return start + span if count else start

    def owed(state: State, now: float) -> float:
        start, count, last, booked = state
        if last:
            count, start = booked + most, last - last % span  # the windows before it are used up
        return count * span / most if now < start + span else 0.0

    return Steps(take, queue, adjust, reset_at, owed)
