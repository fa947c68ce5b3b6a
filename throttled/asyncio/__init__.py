"""The names of `throttled`, awaited.

from throttled.asyncio import Throttled

throttle = Throttled(quota="100/s burst 200")

async def handle():
    if (await throttle.limit("user:1")).limited:
        ...
"""

from typing import TYPE_CHECKING

from throttled import exceptions, rate_limiter
from throttled._lazy import lazy
from throttled.arguments import Key
from throttled.asyncio import store
from throttled.asyncio.hooks import Event, Hook, HookContext
from throttled.asyncio.reservation import Reservation
from throttled.asyncio.store import MemoryStore
from throttled.asyncio.throttled import Throttled
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
from throttled.result import Forecast, RateLimitResult, RateLimitState

if TYPE_CHECKING:
    from throttled import utils
    from throttled.asyncio.policies import load
    from throttled.asyncio.store import RedisStore
else:
    __getattr__, __dir__ = lazy(
        __name__,
        {
            "RedisStore": "throttled.store.aioredis",
            "load": "throttled.asyncio.policies",
            "policies": "throttled.asyncio.policies",
            "utils": "throttled.utils",
        },
    )

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
