"""Rate limiting: exact, fast, in one process or across a fleet that shares Redis or Valkey.

    from throttled import Throttled

    throttle = Throttled(quota="100/s burst 200")
    if throttle.limit("user:1").limited:
        ...

`throttled.asyncio` has the same names, awaited.
"""

from typing import TYPE_CHECKING

from throttled import exceptions, rate_limiter, store
from throttled._lazy import lazy
from throttled.arguments import Key
from throttled.hooks import Event, Hook, HookContext
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
from throttled.store import MemoryStore
from throttled.throttled import Throttled

if TYPE_CHECKING:
    from throttled import utils
    from throttled.policies import load
    from throttled.store import RedisStore
else:
    __getattr__, __dir__ = lazy(
        __name__,
        {
            "RedisStore": "throttled.store.redis",
            "load": "throttled.policies",
            "policies": "throttled.policies",
            "utils": "throttled.utils",
        },
    )

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
