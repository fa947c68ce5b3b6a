"""Sliding window: two epoch-aligned counters that estimate the trailing period.

Rules
-----
The estimate at an instant is `previous x share + current`, where `share` is the part of the
previous window that the trailing period still covers. A call fits when the estimate with its
cost is at most `limit`; the instant at which it will fit solves the same inequality, also across
the next boundary.

In words: the previous window's calls are taken as spread evenly, and slide out of sight one by
one while the current window fills. Worst case: calls bunched at the end of one window and at the
end of the next are under-counted; up to nearly 2 x limit can fall within one trailing period,
but never more than the estimate allows and never more than limit + previous share.

State: `(at, previous, current, last)`: the instant written, the two counts, and the last slot
taken; `previous` and `current` belong to the windows around `last`. A promise in the next window
turns the counters over: every later call stands behind it, so the older counter has no more say.
"""

from __future__ import annotations

from math import inf

from throttled.algorithms.steps import EXACT, Steps

State = tuple[float, float, float, float]


def bind(limit: int, period: int, burst: int) -> Steps[State]:
    """The steps of a sliding window of `limit` per `period` µs; `burst` has no meaning here."""
    most = float(limit)
    span = float(period)

    def advance(state: State | None, now: float) -> tuple[float, float, float, float, float, bool]:
        """at, previous, current, last, the start of last's window, has the clock stepped back.

        The counters are those of the window that holds the later of `at` and `last`.
        """
        if state is None:
            return now, 0.0, 0.0, now, now - now % span, False
        at, previous, current, last = state
        stepped = False
        if now >= at:
            at = now
        elif now < at - span:
            last -= at - now
            at = now
            stepped = True
        start = last - last % span
        if at > last:
            last = at
            if at >= start + span:
                previous = current if at < start + span + span else 0.0
                current = 0.0
                start = at - at % span
        return at, previous, current, last, start, stepped

    def take(state: State | None, now: float, cost: int) -> State | None:
        if state is None:
            return (now, 0.0, 0.0 + cost, now) if cost <= most else None
        at, previous, current, last = state
        start = last - last % span
        if at <= now and last <= now < start + span:
            last = now  # the common case: nobody waits, still the same window
        else:
            now, previous, current, last, start, _ = advance(state, now)
            if last > now:
                return None  # others stand in line
        room = most - current - cost
        need = previous * (start + span - last)
        have = room * span
        # Beyond 2**53 two unequal products may round to the same double: err towards refusal.
        if room >= 0.0 and (need < have or need == have < EXACT):
            return now, previous, current + cost, last
        return None

    def queue(
        state: State | None, now: float, cost: int, patience: float, soonest: float = 0.0
    ) -> tuple[State | None, float, float, float]:
        at, previous, current, last, start, stepped = advance(state, now)
        queued = last > at
        end = start + span
        room = most - current - cost
        need = previous * (end - last)
        have = room * span
        fits = room >= 0.0 and (need < have or need == have < EXACT)
        written: State | None = (at, previous, current, last) if stepped else None
        if not cost or (fits and not queued and soonest <= now):
            wait = 0.0
        elif cost > most:
            wait = inf
        else:
            if fits:
                slot = last if queued else now
            elif room >= 0.0:
                slot = end - have / previous // 1.0
                if slot <= last:
                    slot = last + 1.0  # only where have is no longer exact
            else:
                slot = end + span - (most - cost) * span / current // 1.0
            if soonest > slot:
                slot = soonest
            wait = slot - now
            if wait <= patience:
                if slot >= end:
                    previous = current if slot < end + span else 0.0
                    current = 0.0
                    start = slot - slot % span
                current += cost
                if slot > last:
                    last = slot
                queued = True
                written = (at, previous, current, last)
        if queued:
            free = 0.0
        else:
            free = most - current + -need / span // 1.0
            if free < 0.0:
                free = 0.0
        return written, wait, free, reset_at((at, previous, current, last)) - now

    def adjust(
        state: State | None, now: float, delta: int, slot: float | None
    ) -> tuple[State | None, None]:
        at, previous, current, last, start, _ = advance(state, now)
        if slot is None and delta < 0:
            if start <= at < last:
                return None, None  # which of this window's have come, and which wait, is not known
            # The newest first: those of the window before come last.
            newest = min(-delta, current) if start <= at else 0.0
            older = min(-delta - newest, previous)
            if not newest and not older:
                return None, None
            return (at, previous - older, current - newest, last), None
        if slot is None:
            slot = at
        if delta < 0 and at < slot < last:
            return None, None  # others wait behind: it returns once they are served or gone
        if slot >= start:
            if not current and delta <= 0:
                return None, None
            current = current + delta if current + delta > 0.0 else 0.0
        elif slot >= start - span:
            if not previous and delta <= 0:
                return None, None
            previous = previous + delta if previous + delta > 0.0 else 0.0
        elif delta > 0:
            current += delta  # promises have turned the window of now out of sight: behind them
        else:
            return None, None  # slid out of sight
        return (at, previous, current, last), None

    def reset_at(state: State) -> float:
        _, previous, current, last = state
        if current:
            return last - last % span + span + span
        return last - last % span + span if previous else last

    def owed(state: State, now: float) -> float:
        if now >= reset_at(state):
            return 0.0
        return (state[1] + state[2]) * span / most

    return Steps(take, queue, adjust, reset_at, owed)
