"""Hold: an instant before which nothing is admitted. It takes nothing and counts nothing.

What a penalty leaves behind: another service said "not before then". It stands beside the rules of
a key and only ever adds to what they say.

State: `(at, until)`, the instant written and the instant it lasts to, both in µs.
"""

from __future__ import annotations

from throttled.algorithms.steps import Steps
from throttled.quota import MAX_LIMIT

State = tuple[float, float]

#: What remains of something that has no limit.
_FREE = float(MAX_LIMIT)


def bind(limit: int, period: int, burst: int) -> Steps[State]:
    """The steps of a hold; none of the numbers has a meaning here."""

    def advance(state: State | None, now: float) -> tuple[float, float, bool]:
        """The instant that counts, the end of the hold, and whether the clock has stepped back: by
        more than the hold is long."""
        if state is None:
            return now, 0.0, False
        at, until = state
        if now < at - (until - at):
            return now, until - (at - now), True
        return max(at, now), until, False

    def take(state: State | None, now: float, cost: int) -> State | None:
        return None  # there is never anything to write

    def queue(
        state: State | None, now: float, cost: int, patience: float, soonest: float = 0.0
    ) -> tuple[State | None, float, float, float]:
        at, until, stepped = advance(state, now)
        left = until - now if until > now else 0.0
        wait = left if cost else 0.0
        return (at, until) if stepped else None, wait, 0.0 if left else _FREE, left

    def adjust(
        state: State | None, now: float, delta: int, slot: float | None
    ) -> tuple[State | None, None]:
        """`delta`: µs from now that nothing is admitted; what holds for longer already does."""
        _, until, _ = advance(state, now)
        if delta <= 0 or now + delta <= until:
            return None, None
        return (now, now + delta), None

    def reset_at(state: State) -> float:
        return state[1]

    def owed(state: State, now: float) -> float:
        return state[1] - now

    return Steps(take, queue, adjust, reset_at, owed)
