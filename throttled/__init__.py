"""Rate limiting: exact, fast, in one process or across a fleet that shares Redis or Valkey.

    from throttled import Throttled

    throttle = Throttled(quota="100/s burst 200")
    if throttle.limit("user:1").limited:
        ...

`throttled.asyncio` has the same names, awaited.
"""

from throttled import exceptions, rate_limiter, store, utils
from throttled.arguments import Key
from throttled.hooks import Event, Hook, HookContext
from throttled.policies import load
from throttled.quota import (
    Quota,
    Rate,
    RateLimiterType,
    Rule,
    per_day,
    per_duration,
    per_hour,
    per_min,
    per_sec,
    per_week,
)
from throttled.reservation import Reservation
from throttled.result import Forecast, RateLimitResult, RateLimitState
from throttled.store import MemoryStore, RedisStore
from throttled.throttled import Throttled

__version__ = "0.1.0"

__all__ = [
    "Event",
    "Forecast",
    "Hook",
    "HookContext",
    "Key",
    "MemoryStore",
    "Quota",
    "Rate",
    "RateLimitResult",
    "RateLimitState",
    "RateLimiterType",
    "RedisStore",
    "Reservation",
    "Rule",
    "Throttled",
    "exceptions",
    "load",
    "per_day",
    "per_duration",
    "per_hour",
    "per_min",
    "per_sec",
    "per_week",
    "rate_limiter",
    "store",
    "utils",
]
