"""A plan: an algorithm bound to its numbers; a joint: several plans that a call keeps at once.

Neither ever knows which store runs it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from math import inf
from typing import Any

from throttled.algorithms import bucket, fixed_window, hold, sliding_window, sliding_window_log
from throttled.algorithms.steps import Adjust, Owed, Queue, ResetAt, Steps, Take
from throttled.exceptions import DataError
from throttled.quota import MAX_LIMIT, Quota, Rule, algorithm_name, check_name, per_sec

#: The patience that never takes: how `peek` asks. (The public `timeout=-1` is patience `NOW`.)
LOOK = -inf
#: The patience of a caller who does not wait.
NOW = 0.0

DEFAULT_PREFIX = "throttled"

#: Name -> rule. A rule is a module with `bind`, and a `.lua` twin of the same name.
ALGORITHMS: dict[str, Any] = {
    "fixed_window": fixed_window,
    "sliding_window": sliding_window,
    "sliding_window_log": sliding_window_log,
    "token_bucket": bucket,
    "leaking_bucket": bucket,
    "gcra": bucket,
}

#: The rule that a penalty sets: not an algorithm that anybody can choose.
HOLD = "hold"

#: The rules' own names, which are those of their `.lua` files.
RULES = tuple(
    dict.fromkeys(rule.__name__.rpartition(".")[2] for rule in (*ALGORITHMS.values(), hold))
)


class Plan:
    """An algorithm bound to one quota: the pure steps, and the numbers their Lua twin takes.

    Immutable. Plans of equal algorithm, period, name and prefix share their keys, whatever their
    limits, so a limit may change without losing what was counted.
    """

    __slots__ = (
        "_joint",
        "adjust",
        "algorithm",
        "appends",
        "burst",
        "capacity",
        "dated",
        "dump",
        "kind",
        "limit",
        "owed",
        "period",
        "prefix",
        "queue",
        "quota",
        "reset_at",
        "rules",
        "same",
        "take",
    )

    take: Take[Any]
    queue: Queue[Any]
    adjust: Adjust[Any]
    reset_at: ResetAt[Any]
    owed: Owed[Any]
    same: Callable[[Any, Any], bool]
    dump: Callable[[Any], tuple[str, ...]]
    appends: bool
    _joint: Joint

    def __init__(self, algorithm: str, quota: Quota, prefix: str, name: str | None) -> None:
        module = ALGORITHMS.get(algorithm, hold)
        limit, period = quota.limit, quota.period_us
        burst = quota.burst if module is bucket else limit
        self.algorithm = algorithm
        self.kind: str = module.__name__.rpartition(".")[2]
        self.quota = quota
        self.limit = limit
        self.period = period
        self.burst = burst
        self.capacity = burst
        #: Whether what is given back is booked where it was taken. A bucket takes it as of now.
        self.dated = module is not bucket
        parts = [prefix, "v1", algorithm, *([str(period)] if module is not hold else ())]
        self.prefix = ":".join([*parts, *([name] if name else ()), ""])
        self.rules = (Rule(quota, algorithm, name=name),) if module is not hold else ()
        steps: Steps[Any] = module.bind(limit, period, burst)
        self.take, self.queue, self.adjust = steps[:3]
        self.reset_at, self.owed, self.same, self.dump, self.appends = steps[3:]

    @property
    def joint(self) -> Joint:
        """The same as a joint, made when it is first asked for."""
        try:
            return self._joint
        except AttributeError:
            self._joint = joint = Joint((self,), self.rules)
            return joint

    def reset_after(self, state: Any, now: float) -> float:
        """µs until a state equals that of a key never seen; 0 or less when it does."""
        return self.reset_at(state) - now

    def __repr__(self) -> str:
        return f"Plan({self.algorithm!r}, {str(self.quota)!r}, prefix={self.prefix!r})"


class Joint:
    """Several plans that a call has to keep all at once, or it keeps none.

    A call fits when it fits by all of them; its slot is the latest of theirs, and by every plan it
    is booked there. With holds, nothing is admitted before the end of the last penalty.
    """

    __slots__ = ("_costs", "capacity", "holds", "kind", "members", "plans", "prefix", "rules")

    def __init__(
        self,
        plans: Sequence[Plan],
        rules: Sequence[Rule],
        holds: Sequence[Plan] = (),
        costs: Sequence[int] | None = None,
    ) -> None:
        """`costs`: what every call costs by each plan; by default as the rules say."""
        self.plans = tuple(plans)
        #: One a plan, with everything said that a user may leave open.
        self.rules = tuple(rules)
        self.holds = tuple(holds)
        #: All that is looked at: the plans, then the holds.
        self.members = self.plans + self.holds
        self.kind = "joint"
        #: Tells a joint from others; its keys are those of its members.
        self.prefix = "+".join([plan.prefix for plan in self.members])
        self._costs = [rule.cost for rule in rules] if costs is None else costs
        #: A call that costs more can never fit.
        self.capacity = MAX_LIMIT
        for plan, fixed in zip(self.plans, self._costs, strict=True):
            most = plan.capacity if fixed is None else MAX_LIMIT if fixed <= plan.capacity else 0
            self.capacity = min(self.capacity, most)

    @property
    def joint(self) -> Joint:
        """Itself: what a `Plan` has as well."""
        return self

    def costs(self, cost: int) -> tuple[int, ...]:
        """What a call of that cost costs by each plan; nothing by any if it only looks."""
        if not cost:
            return (0,) * len(self.plans)
        return tuple([cost if fixed is None else fixed for fixed in self._costs])

    def keys(self, key: str) -> tuple[str, ...]:
        """The keys of its members where all are the same."""
        return (key,) * len(self.members)

    def __repr__(self) -> str:
        return f"Joint({list(self.members)!r})"


def make_joint(plans: Sequence[Plan], rules: Sequence[Rule], holds: Sequence[Plan] = ()) -> Joint:
    """The joint of plans by rules, for calls with one key.

    Raises `DataError` for two that would count into one another, and for a fixed cost that can
    never fit.
    """
    seen: dict[str, Plan] = {}
    for plan, rule in zip(plans, rules, strict=True):
        if rule.cost is not None and rule.cost > plan.capacity:
            raise DataError(
                f"Invalid cost: {rule.cost} of {rule!r} can never fit, must be at most "
                f"{plan.capacity}."
            )
        other = seen.setdefault(plan.prefix, plan)
        if other is not plan or list(plans).count(plan) > 1:
            raise DataError(
                f"Invalid quota: {str(other.quota)!r} and {str(plan.quota)!r} would count under "
                f"the same keys, for algorithm and period are the same; name the rules: "
                f"Rule({str(plan.quota)!r}, name=...)."
            )
    return Joint(plans, rules, holds)


def hold_plan(prefix: str) -> Plan:
    """The plan of what penalties leave behind, one for all limits of a prefix."""
    return _plan(HOLD, per_sec(1), prefix, None)


def make_plan(
    using: object, quota: Quota, prefix: str = DEFAULT_PREFIX, name: str | None = None
) -> Plan:
    """The plan for an algorithm and a quota; equal arguments may share one plan.

    Raises `DataError` for an unknown algorithm, for a prefix or name that would make keys
    ambiguous, and for a log that is too long.
    """
    check_name("key_prefix", prefix)
    if name is not None:
        check_name("rule name", name)
    return _plan(algorithm_name(using), quota, prefix, name)


@lru_cache(maxsize=1024)
def _plan(algorithm: str, quota: Quota, prefix: str, name: str | None) -> Plan:
    return Plan(algorithm, quota, prefix, name)
