"""A plan: an algorithm bound to its rules. It never knows which store runs it."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from functools import lru_cache
from math import inf
from typing import Any

from throttled.algorithms import bucket, fixed_window, sliding_window, sliding_window_log
from throttled.algorithms.steps import Adjust, Owed, Queue, ResetAt, Steps, Take
from throttled.exceptions import DataError
from throttled.quota import Quota

#: The patience that never takes: how `peek` asks. (The public `timeout=-1` is patience `NOW`.)
LOOK = -inf
#: The patience of a caller who does not wait.
NOW = 0.0

DEFAULT_PREFIX = "throttled"


class RateLimiterType(Enum):
    """The algorithms. Their `.value`, the member itself or the plain string serve as `using=`."""

    FIXED_WINDOW = "fixed_window"
    SLIDING_WINDOW = "sliding_window"
    SLIDING_WINDOW_LOG = "sliding_window_log"
    TOKEN_BUCKET = "token_bucket"
    LEAKING_BUCKET = "leaking_bucket"
    GCRA = "gcra"

    @classmethod
    def choice(cls) -> list[str]:
        """The names that `using=` takes."""
        return [member.value for member in cls]


#: Name -> rule. A rule is a module with `bind`, and a `.lua` twin of the same name.
ALGORITHMS: dict[str, Any] = {
    "fixed_window": fixed_window,
    "sliding_window": sliding_window,
    "sliding_window_log": sliding_window_log,
    "token_bucket": bucket,
    "leaking_bucket": bucket,
    "gcra": bucket,
}

#: The rules' own names, which are those of their `.lua` files.
RULES = tuple(dict.fromkeys(rule.__name__.rpartition(".")[2] for rule in ALGORITHMS.values()))


class Plan:
    """An algorithm bound to one quota: the pure steps, and the numbers their Lua twin takes.

    Immutable. Plans of equal algorithm, period, name and prefix share their keys, whatever their
    limits, so a limit may change without losing what was counted.
    """

    __slots__ = (
        "adjust",
        "algorithm",
        "appends",
        "burst",
        "capacity",
        "dump",
        "kind",
        "limit",
        "owed",
        "period",
        "prefix",
        "queue",
        "quota",
        "reset_at",
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

    def __init__(self, algorithm: str, quota: Quota, prefix: str, name: str | None) -> None:
        module = ALGORITHMS[algorithm]
        limit, period = quota.limit, quota.period_us
        burst = quota.burst if module is bucket else limit
        self.algorithm = algorithm
        self.kind: str = module.__name__.rpartition(".")[2]
        self.quota = quota
        self.limit = limit
        self.period = period
        self.burst = burst
        self.capacity = burst
        self.prefix = f"{prefix}:v1:{algorithm}:{period}:{name + ':' if name else ''}"
        steps: Steps[Any] = module.bind(limit, period, burst)
        self.take, self.queue, self.adjust = steps[:3]
        self.reset_at, self.owed, self.same, self.dump, self.appends = steps[3:]

    def reset_after(self, state: Any, now: float) -> float:
        """µs until a state equals that of a key never seen; 0 or less when it does."""
        return self.reset_at(state) - now

    def __repr__(self) -> str:
        return f"Plan({self.algorithm!r}, {str(self.quota)!r}, prefix={self.prefix!r})"


def algorithm_name(using: object) -> str:
    """The name of the algorithm meant by `using=`: a string or a `RateLimiterType`."""
    name = using.value if isinstance(using, RateLimiterType) else using
    if not isinstance(name, str) or name not in ALGORITHMS:
        raise DataError(f"Invalid algorithm: {using!r}, must be one of {', '.join(ALGORITHMS)}.")
    return name


def make_plan(
    using: object, quota: Quota, prefix: str = DEFAULT_PREFIX, name: str | None = None
) -> Plan:
    """The plan for an algorithm and a quota; equal arguments may share one plan.

    Raises `DataError` for an unknown algorithm, for a prefix or name that would make keys
    ambiguous, and for a log that is too long.
    """
    for what, text in (("key_prefix", prefix), ("rule name", name)):
        if text is None and what == "rule name":
            continue
        if not isinstance(text, str) or not text or any(brace in text for brace in "{}"):
            raise DataError(
                f"Invalid {what}: {text!r}, must be a non-empty string without braces "
                f"(they mark the part of a key that Redis Cluster hashes)."
            )
    return _plan(algorithm_name(using), quota, prefix, name)


@lru_cache(maxsize=1024)
def _plan(algorithm: str, quota: Quota, prefix: str, name: str | None) -> Plan:
    return Plan(algorithm, quota, prefix, name)
