"""Token bucket, leaky bucket and GCRA: one rule under three classical names.

Rules
-----
A key owns a credit of at most `burst` tokens. It refills at `limit / period`, a call spends
`cost` tokens, and a call fits when the credit covers its cost.

Theory of operation
-------------------
The three names are three pictures of the same arithmetic:

* *token bucket*: tokens drip in at the rate, up to `burst`; a call takes its tokens out.
* *leaky bucket as a meter*: a call pours water in, the water drains at the rate, and a call
  fits while the bucket does not overflow. Water = burst - tokens: the mirror image.
* *GCRA* (virtual scheduling): the theoretical arrival time TAT moves one emission interval
  `period / limit` per token, and a call fits while TAT is at most the burst tolerance ahead of
  now. TAT - now = water / rate: the same number in units of time.

ITU-T Recommendation I.371 (annex A) proves the last two equal; `tests/test_algorithms.py` shows
all three. So they are written once, and each name keeps its own keys.

Credit is counted in token x period_µs, which makes every step integral: one µs refills `limit`
units and a token costs `period` units. No fraction is ever lost, and neither a new limit nor a
new burst invalidates what is stored.

A promise takes the credit below zero, and the next caller queues behind it by itself. Its slot is
kept beside the credit all the same: other rules may have put it off beyond the instant at which the
credit suffices, and a debt that was charged afterwards looks like a promise but is none.

Giving back raises the credit at every later instant. It may not rise above `burst` at any of them,
for a bucket that runs over loses what flows in, and a promise counts on it. The highest that it
will be stands just before a promise is used: that is the peak, kept beside the slot.

State: `(at, credit)`, the instant written (µs) and the credit then; after a promise
`(at, credit, ahead, peak)`, with the last promised slot, in µs from `at`, and the highest credit
before any of them.
Exact to the µs while burst x period_µs < 2**53; beyond, a double rounds the credit.
"""

from __future__ import annotations

from math import inf

from throttled.algorithms.steps import Steps

State = tuple[float, ...]


def bind(limit: int, period: int, burst: int) -> Steps[State]:
    """The steps of a bucket of `burst` tokens refilled with `limit` tokens per `period` µs."""
    rate = float(limit)  # units refilled per µs
    token = float(period)  # units a token costs
    full = float(burst) * token

    def advance(state: State | None, now: float) -> tuple[float, float, float, float, bool]:
        """The instant that counts, the credit at it, the last slot if it is still to come (else 0)
        with its peak, and whether the clock has stepped back."""
        if state is None:
            return now, full, 0.0, 0.0, False
        at, credit = state[:2]
        last = peak = 0.0
        if len(state) == 4:
            last, peak = at + state[2], state[3]
        elapsed = now - at
        stepped = False
        if elapsed >= 0.0:
            at = now
            credit += elapsed * rate
        elif elapsed < -token:
            last += elapsed
            at = now
            stepped = True
        if last <= at:
            last = peak = 0.0
        return at, credit if credit < full else full, last, peak, stepped

    def take(state: State | None, now: float, cost: int) -> State | None:
        if state is None:
            credit = full
        else:
            try:
                at, credit = state
            except ValueError:
                now, credit, last, _, _ = advance(state, now)
                if last:
                    return None  # others stand in line
                at = now
            elapsed = now - at
            if elapsed >= 0.0:
                credit += elapsed * rate
                if credit > full:
                    credit = full
            else:
                now, credit, last, _, _ = advance(state, now)
                if last:
                    return None
        credit -= token if cost == 1 else cost * token
        return (now, credit) if credit >= 0.0 else None

    def queue(
        state: State | None, now: float, cost: int, patience: float, soonest: float = 0.0
    ) -> tuple[State | None, float, float, float]:
        at, credit, last, peak, stepped = advance(state, now)
        written = stepped
        left = credit - cost * token
        if not cost or (left >= 0.0 and not last and soonest <= now):
            wait = 0.0
        elif cost * token > full:
            wait = inf
        else:
            own = slot = now if left >= 0.0 else at - left / rate // 1.0
            if last > slot:
                slot = last
            if soonest > slot:
                slot = soonest
            wait = slot - now
            if wait <= patience:
                if slot > own:
                    # Until then the bucket runs over, and what flows in is lost.
                    most = full - (slot - at) * rate
                    if credit > most:
                        credit = most
                high = credit + (slot - at) * rate
                if high > full:
                    high = full
                if high > peak:
                    peak = high
                credit -= cost * token
                last = slot
                written = True
        new: State | None = None
        if written:
            new = (at, credit, last - at, peak) if last else (at, credit)
        return (
            new,
            wait,
            credit / token // 1.0 if credit > 0.0 and not last else 0.0,
            reset_at((at, credit, last - at, peak)) - now,
        )

    def adjust(
        state: State | None, now: float, delta: int, slot: float | None
    ) -> tuple[State | None, None]:
        at, credit, last, peak, _ = advance(state, now)
        if delta >= 0:
            credit -= delta * token
        else:
            give = -delta * token
            if slot is not None and slot <= at and state is not None:
                # A promise that nobody used: since then the bucket may have run over. As much as
                # has flowed in up to the last slot, whoever that was, is taken as lost.
                since = state[0] + max(0.0, 0.0, *state[2:3])
                if since > slot:
                    give -= (since - slot) * rate
            if last and give > full - peak:
                give = full - peak
            if give <= 0.0 or credit == full:
                return None, None
            credit += give
            peak += give
            if credit > full:
                credit = full
        return ((at, credit, last - at, peak) if last else (at, credit)), None

    def reset_at(state: State) -> float:
        at, credit = state[:2]
        instant = at - (credit - full) / rate // 1.0
        return at + state[2] if len(state) == 4 and at + state[2] > instant else instant

    def owed(state: State, now: float) -> float:
        at, credit = state[:2]
        return at - (credit - full) / rate - now

    return Steps(take, queue, adjust, reset_at, owed)
