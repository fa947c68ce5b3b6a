"""The names to describe a quota with: `rate_limiter.per_min(60, burst=120)`."""

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

__all__ = [
    "Quota",
    "Rate",
    "RateLimiterType",
    "Rule",
    "per_day",
    "per_duration",
    "per_hour",
    "per_min",
    "per_sec",
    "per_week",
]
