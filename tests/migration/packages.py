"""The libraries that pages of docs/migration are about, and what their calls are called upon."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Package:
    """What a page is about."""

    name: str  #: as on PyPI, and as the page's file
    version: str  #: the one that the page was written against
    extras: str = ""
    others: tuple[str, ...] = ()  #: what its examples need besides
    #: What the tables may call, besides what the examples import.
    imports: tuple[str, ...] = ()
    #: What the other names in the tables are instances of.
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def requirements(self) -> list[str]:
        return [f"{self.name}{self.extras}=={self.version}", *self.others]


PACKAGES = {
    package.name: package
    for package in (
        Package(
            "aiolimiter",
            "1.3.0",
            variables={"limiter": "aiolimiter.AsyncLimiter"},
        ),
        Package(
            "async-ratelimit",
            "0.1.1",
            others=("fastapi", "httpx"),
            variables={
                "limiter": "rate_limiter.RateLimiterOrchestrator",
                "response": "rate_limiter.Response",
                "rules": "rate_limiter.Rules",
                "app": "fastapi.FastAPI",
            },
        ),
        Package(
            "distributed-rate-limiter",
            "0.2.2",
            others=("fastapi", "flask", "httpx"),
            variables={
                "limiter": "distributed_rate_limiter.RateLimiter",
                "info": "distributed_rate_limiter.RateLimitInfo",
                "app": "fastapi.FastAPI",
            },
        ),
        Package(
            "limits",
            "5.8.0",
            others=("redis<8", "coredis<6"),
            imports=(
                "import limits, limits.aio.strategies",
                "from limits.strategies import *",
                "from limits.strategies import SlidingWindowCounterRateLimiter",
            ),
            variables={
                "limiter": "limits.strategies.MovingWindowRateLimiter",
                "item": "limits.RateLimitItem",
                "storage": "limits.storage.MemoryStorage",
                "stats": "limits.WindowStats",
            },
        ),
        Package(
            "pyrate-limiter",
            "4.5.1",
            others=("redis>=6.2", "httpx", "requests", "aiohttp"),
            imports=(
                "from pyrate_limiter import *",
                "from pyrate_limiter.extras.httpx_limiter import RateLimiterTransport",
                "from pyrate_limiter.extras.requests_limiter import RateLimitedRequestsSession",
            ),
            variables={
                "limiter": "pyrate_limiter.Limiter",
                "bucket": "pyrate_limiter.InMemoryBucket",
            },
        ),
        Package(
            "slowapi",
            "0.1.10",
            others=("fastapi", "httpx", "redis<8"),
            variables={
                "limiter": "slowapi.Limiter",
                "app": "fastapi.FastAPI",
                "error": "slowapi.errors.RateLimitExceeded",
            },
        ),
        Package(
            "throttlecore",
            "0.1.0",
            others=("httpx",),
            imports=("from fastapi import Depends", "from throttlecore import *"),
            variables={
                "limiter": "throttlecore.DistributedRateLimiter",
                "error": "throttlecore.RateLimitExceeded",
            },
        ),
        Package(
            "throttled-py",
            "3.5.0",
            extras="[redis,flask,fastapi,otel]",
            others=("httpx",),
            imports=(
                "import throttled.asyncio.contrib.fastapi, throttled.contrib.flask",
                "import throttled.contrib.otel",
                "from datetime import timedelta",
                "from throttled import rate_limiter",
            ),
            variables={
                "throttle": "throttled.Throttled",
                "limiter": "throttled.contrib.flask.Limiter",
                "quota": "throttled.Quota",
                "result": "throttled.RateLimitResult",
                "app": "fastapi.FastAPI",
            },
        ),
        Package(
            "throttlekit-py",
            "0.5.1",
            extras="[redis,fastapi,flask,django]",
            others=("httpx",),
            imports=(
                "import throttlekit.contrib.fastapi, throttlekit.contrib.flask",
                "from throttlekit import *",
            ),
            variables={
                "service": "throttlekit.ServiceBackend",
                "api": "throttlekit.RedisBackend",
                "decision": "throttlekit.Decision",
                "forecast": "throttlekit.Forecast",
                "refused": "throttlekit.RateLimited",
                "limiter": "throttlekit.contrib.flask.ThrottleKit",
                "app": "fastapi.FastAPI",
            },
        ),
    )
}

#: What the other column of every table may call.
OUR_IMPORTS = (
    "import math, throttled.asyncio.service, throttled.service",
    "import throttled.contrib.flask, throttled.contrib.headers, throttled.contrib.httpx",
    "import throttled.contrib.otel, throttled.contrib.requests",
    "from datetime import timedelta",
    "from fastapi import Depends, FastAPI",
    "from throttled import *",
    "from throttled.contrib.fastapi import RateLimit, RateLimitedError, install",
    "from throttled.contrib.identity import client_ip",
    "from throttled.contrib.keys import by_header",
    "from throttled.testing import FakeClock, disabled",
)

#: What the names in the other column of every table are instances of.
OURS = {
    "api": "throttled.Throttled",
    "app": "fastapi.FastAPI",
    "client": "throttled.service.Client",
    "error": "throttled.exceptions.LimitedError",
    "forecast": "throttled.Forecast",
    "limit": "throttled.contrib.fastapi.RateLimit",
    "limiter": "throttled.contrib.flask.RateLimiter",
    "quota": "throttled.Quota",
    "reservation": "throttled.Reservation",
    "result": "throttled.RateLimitResult",
    "state": "throttled.RateLimitState",
    "throttle": "throttled.Throttled",
}
