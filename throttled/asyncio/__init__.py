"""The names of `throttled`, awaited.

from throttled.asyncio import Throttled

throttle = Throttled(quota="100/s burst 200")

async def handle():
    if (await throttle.limit("user:1")).limited:
        ...
"""

from throttled import exceptions, rate_limiter, utils
from throttled.arguments import Key
from throttled.asyncio import store
from throttled.asyncio.hooks import Event, Hook, HookContext
from throttled.asyncio.policies import load
from throttled.asyncio.reservation import Reservation
from throttled.asyncio.store import MemoryStore, RedisStore
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
