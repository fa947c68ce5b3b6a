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

A promise takes the credit below zero; the last promised slot is the instant at which it returns
to zero, so no further field is needed and the next caller queues behind it by itself.

State: `(at, credit)`, the instant written (µs) and the credit then.
Exact to the µs while burst x period_µs < 2**53; beyond, a double rounds the credit.
"""

from __future__ import annotations

from math import inf

from throttled.algorithms.steps import Steps

State = tuple[float, float]


def bind(limit: int, period: int, burst: int) -> Steps[State]:
    """The steps of a bucket of `burst` tokens refilled with `limit` tokens per `period` µs."""
    rate = float(limit)  # units refilled per µs
    token = float(period)  # units a token costs
    full = float(burst) * token

    def advance(state: State | None, now: float) -> tuple[float, float, bool]:
        """The instant that counts, the credit at it, and whether the clock has stepped back."""
        if state is None:
            return now, full, False
        at, credit = state
        elapsed = now - at
        stepped = False
        if elapsed >= 0.0:
            at = now
            credit += elapsed * rate
        elif elapsed < -token:
            at = now
            stepped = True
        return at, credit if credit < full else full, stepped

    def take(state: State | None, now: float, cost: int) -> State | None:
        if state is None:
            credit = full
        else:
            at, credit = state
            elapsed = now - at
            if elapsed >= 0.0:
                credit += elapsed * rate
                if credit > full:
                    credit = full
            else:
                now, credit, _ = advance(state, now)
        credit -= token if cost == 1 else cost * token
        return (now, credit) if credit >= 0.0 else None

    def queue(
        state: State | None, now: float, cost: int, patience: float
    ) -> tuple[State | None, float, float, float]:
        at, credit, stepped = advance(state, now)
        written: State | None = (at, credit) if stepped else None
        left = credit - cost * token
        if left >= 0.0 or not cost:
            wait = 0.0
        elif cost * token > full:
            wait = inf
        else:
            wait = at - now - left / rate // 1.0
            if wait <= patience:
                credit = left
                written = (at, credit)
        return (
            written,
            wait,
            credit / token // 1.0 if credit > 0.0 else 0.0,
            at - now - (credit - full) / rate // 1.0,
        )

    def adjust(
        state: State | None, now: float, delta: int, slot: float | None
    ) -> tuple[State | None, None]:
        at, credit, _ = advance(state, now)
        if delta >= 0:
            credit -= delta * token
        else:
            give = -delta * token
            if slot is not None and state is not None:
                # Those admitted after the slot keep their instants and the burst its bound: only
                # what they leave unused returns. Giving back everything would put a newcomer on
                # an instant that is promised already.
                last, spent = state
                if spent < 0.0:
                    last -= spent / rate // 1.0
                if last > slot:
                    give -= (last - slot) * rate
            if give <= 0.0 or credit == full:
                return None, None
            credit += give
            if credit > full:
                credit = full
        return (at, credit), None

    def reset_at(state: State) -> float:
        at, credit = state
        return at - (credit - full) / rate // 1.0

    def owed(state: State, now: float) -> float:
        at, credit = state
        return at - (credit - full) / rate - now

    return Steps(take, queue, adjust, reset_at, owed)
