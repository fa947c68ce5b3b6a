"""Limits of several keys, decided at once: `Throttled.limit_all`.

All or nothing, and now or not at all: a slot in the future is booked nowhere, or one exhausted user
would block a whole organisation. Who may wait sleeps until the slowest of the limits lets it try
again, and stands in no line meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import inf
from typing import TYPE_CHECKING, Any, cast

from throttled import switch
from throttled._text import shown
from throttled.algorithms.plan import LOOK, NOW, Joint, Plan
from throttled.arguments import Key, check_cost, check_key
from throttled.exceptions import DataError, OperationNotSupportedError
from throttled.hooks import Stopwatch
from throttled.result import RateLimitResult

if TYPE_CHECKING:
    from throttled.base import BaseThrottled
    from throttled.quota import Rule
    from throttled.settings import Terms
    from throttled.store.policy import Flow

    #: A limit, a key and a cost.
    Pair = tuple[BaseThrottled[Any], str, int]


def all_pairs(pairs: Any, cost: object, slot: object, kind: type[Any]) -> list[Pair]:
    """The arguments of `limit_all`: (throttle, key, cost) each; `DataError` names the bad one."""
    checked: list[Pair] = []
    cost = check_cost(cost)
    if isinstance(pairs, str | bytes) or not isinstance(pairs, Iterable):
        raise DataError(f"Invalid pairs: {shown(pairs)}, must be a list of (throttle, key) pairs.")
    for place, pair in enumerate(pairs):
        if (
            not isinstance(pair, tuple | list)
            or not 2 <= len(pair) <= 3
            or not isinstance(pair[0], kind)
        ):
            raise DataError(
                f"Invalid pairs[{place}]: {shown(pair)}, must be (throttle, key) or "
                f"(throttle, key, cost), with a Throttled of this flavour."
            )
        key = check_key(pair[1])
        if slot is not None and type(key) is not Key:
            key = Key(key, cast("str", slot))
        checked.append((pair[0], key, check_cost(pair[2]) if len(pair) == 3 else cost))
    if not checked:
        raise DataError("Invalid pairs: [], must be at least one (throttle, key) pair.")
    for throttle, _, _ in checked:
        if throttle.store.apart is not None:
            raise OperationNotSupportedError(throttle.store.apart)
    first = checked[0][0]
    if any(
        throttle.store is not first.store or throttle.on_store_error != first.on_store_error
        for throttle, _, _ in checked
    ):
        raise DataError(
            "Invalid pairs: limits that are decided at once must have the same store and the same "
            "on_store_error."
        )
    return checked


def limit_all(pairs: Sequence[Pair], patience: float) -> Flow[RateLimitResult]:
    """Decide limits of several keys at once, all or nothing: now, or again when they say so."""
    first = pairs[0][0]
    if not switch.enabled():
        return first._free("disabled")
    counted: list[Pair] = []
    shadows: list[Pair] = []
    for pair in pairs:
        throttle, key, cost = pair
        exempt = throttle.exempt
        if exempt is not None and (yield exempt(key)):
            continue
        (counted if throttle.enforce else shadows).append(pair)
    waited = 0.0
    deciding = Stopwatch()
    while True:
        if counted:
            with deciding:
                result = yield from _decide_all(counted)
        else:
            result = first._free("exempt")
        retry_after = result.state.retry_after if result.limited else 0.0
        wait = retry_after if retry_after == inf else float(round(retry_after * 1e6))
        if not wait or wait > patience or wait == inf:
            break
        for throttle, key, cost in counted:
            if throttle._events is not None:
                yield throttle._events.waits(throttle, key, cost, wait / 1e6)
        patience -= wait
        yield first._sleep(first.store, wait)
        waited += wait / 1e6
    for throttle, key, cost in counted:
        if throttle._events is not None:
            yield throttle._events.decided(throttle, key, cost, result, waited, deciding.seconds)
    if not result.limited:
        for throttle, key, cost in shadows:
            shadow = yield throttle._watched(key, cost, NOW if cost else LOOK)
            if not counted:
                result = shadow
    return result


def _decide_all(pairs: Sequence[Pair]) -> Flow[RateLimitResult]:
    """One decision about several keys."""
    terms: list[Terms] = []
    for throttle, key, _ in pairs:
        terms.append((yield from throttle._terms_of(key)))
    policy = terms[0].policy
    keys = [key for _, key, _ in pairs]
    wanted = [cost for _, _, cost in pairs]
    # What costs nothing is not asked, unless nothing else is.
    only = [place for place, cost in enumerate(wanted) if cost or not any(wanted)]

    def joined_at(depth: int) -> tuple[Joint, list[str]]:
        return joined(
            [
                (terms[place].policy.levels[depth].plan.joint, keys[place], wanted[place])
                for place in only
            ]
        )

    def ask(level: Any) -> Any:
        joint, names = joined_at(policy.levels.index(level))
        patience = NOW if any(wanted) else LOOK
        return level.store.admit_all(joint, names, int(any(wanted)), patience)

    def otherwise() -> Any:
        return policy.by_word(int(any(wanted)), joined_at(0)[0]), None

    answer, _ = yield from policy.tried(ask, otherwise, keys[0], max(wanted))
    result: RateLimitResult = answer
    return result


def joined(parts: Sequence[tuple[Joint, str, int]]) -> tuple[Joint, list[str]]:
    """One joint of several, each with a key and a cost of its own, and the keys of its members."""
    plans: list[Plan] = []
    holds: list[Plan] = []
    rules: list[Rule] = []
    costs: list[int] = []
    keys: list[str] = []
    hold_keys: list[str] = []
    for joint, key, cost in parts:
        plans += joint.plans
        rules += joint.rules
        costs += joint.costs(cost)
        keys += [key] * len(joint.plans)
        for hold in joint.holds:
            if (hold, key) not in zip(holds, hold_keys, strict=True):
                holds.append(hold)
                hold_keys.append(key)
    names = [plan.prefix + key for plan, key in zip(plans, keys, strict=True)]
    for place, name in enumerate(names):
        if name in names[:place]:
            raise DataError(
                f"Invalid pairs: two limits would count {shown(keys[place])} under one key, for "
                f"prefix, algorithm and period are the same; give one of them a key_prefix=."
            )
    return Joint(plans, rules, holds, costs), keys + hold_keys
