"""What is done to a key beside deciding: charging, giving back, forgetting, penalties, forecasts.

Written as flows of a `Throttled` of either flavour; see `throttled.base`.
"""

from __future__ import annotations

import time
from math import inf
from typing import TYPE_CHECKING, Any

from throttled import switch
from throttled.algorithms.plan import LOOK
from throttled.arguments import check_amount, check_key, check_seconds
from throttled.exceptions import SetUpError
from throttled.quota import MAX_LIMIT
from throttled.result import Forecast, RateLimitResult

if TYPE_CHECKING:
    from throttled.base import BaseThrottled
    from throttled.store.policy import Flow

#: How often a forecast looks again because others came in between.
_LOOKS = 3


def change(
    throttle: BaseThrottled[Any], key: object, what: str, amount: object, sign: int
) -> Flow[bool]:
    """Charge, or give back; says whether anything was changed."""
    key, delta = check_key(key), sign * check_amount(what, amount)
    if not switch.enabled() or not delta:
        return False
    terms = yield from throttle._terms_of(key)

    def ask(level: Any) -> Any:
        return level.store.change(level.plan.joint, key, delta)

    return any((yield from terms.policy.tried(ask, list, key, abs(delta))))


def reset(throttle: BaseThrottled[Any], key: object) -> Flow[None]:
    """Forget a key, by every rule, and its penalty."""
    key = check_key(key)
    if not switch.enabled():
        return
    terms = yield from throttle._terms_of(key)

    def ask(level: Any) -> Any:
        return level.store.reset_all([(plan, key) for plan in level.plan.joint.members])

    yield from terms.policy.tried(ask, lambda: None, key, 0)


def penalize(throttle: BaseThrottled[Any], key: object, seconds: object) -> Flow[None]:
    """Let nobody pass before so many seconds are over."""
    key, length = check_key(key), check_seconds("seconds", seconds)
    if not throttle.hold:
        raise SetUpError(
            "penalize() needs a limit that looks for penalties: Throttled(..., hold=True)."
        )
    if not switch.enabled() or not length:
        return
    terms = yield from throttle._terms_of(key)

    def ask(level: Any) -> Any:
        return level.store.adjust_all([(level.plan.joint.holds[0], key, int(length), None)])

    yield from terms.policy.tried(ask, lambda: None, key, 0)
    for level in terms.policy.levels:
        level.store.hold(level.plan.joint.holds[0], key)


def forecast(throttle: BaseThrottled[Any], key: object) -> Flow[Forecast]:
    """What a key can spend, when it can spend more, and when it is full."""
    key = throttle._key() if key is None else check_key(key)
    ask = throttle._ask if switch.enabled() else throttle._off
    result: RateLimitResult = yield ask(key, 1, LOOK)
    spendable = 0
    # Up to the first cost that has to wait. Others may give back between two looks.
    for _ in range(_LOOKS):
        if result.limited:
            break
        spendable = spendable_of(result)
        result = yield ask(key, spendable + 1, LOOK)
    now, wait = _wall(throttle), result.state.retry_after
    return Forecast(
        spendable,
        now + wait if 0.0 < wait < inf else None,
        now + max([state.reset_after for state in result.states]),
    )


def _wall(throttle: BaseThrottled[Any]) -> float:
    """Seconds since the epoch, by the store's clock if it has one of its own."""
    clock = getattr(throttle.store, "_clock", None)
    return float(time.time() if clock is None else clock())


def spendable_of(result: RateLimitResult) -> int:
    """The largest cost that fits, if any does; rules with a fixed cost do not care."""
    states = zip(result.rules, result.states, strict=False)
    return min([state.remaining for rule, state in states if rule.cost is None], default=MAX_LIMIT)
