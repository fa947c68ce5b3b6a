"""What type checkers must see. Checked by mypy, never run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from datetime import timedelta
from typing import Any, assert_type

import throttled.asyncio
from throttled import (
    MemoryStore,
    Quota,
    RateLimiterType,
    RateLimitResult,
    RateLimitState,
    Throttled,
    exceptions,
    per_duration,
    rate_limiter,
    store,
    utils,
)
from throttled.result import Source

throttle = Throttled(
    key="key",
    timeout=1.5,
    using=RateLimiterType.GCRA,
    quota=rate_limiter.per_min(60, burst=120),
    store=MemoryStore(options={"MAX_SIZE": 10}),
    cost=2,
)
Throttled(using="gcra", quota="100/s burst 200", store=store.RedisStore("redis://localhost"))
Throttled(on_store_error="local")
Throttled(on_store_error=MemoryStore())
Throttled(on_store_error="ignore")  # type: ignore[arg-type]
Throttled(on_store_error=throttled.asyncio.store.RedisStore())  # type: ignore[arg-type]
throttled.asyncio.Throttled(on_store_error=throttled.asyncio.store.RedisStore())
throttled.asyncio.Throttled(on_store_error=MemoryStore())

assert_type(throttle.limit("key", 1, timeout=2), RateLimitResult)
assert_type(throttle.limit(), RateLimitResult)
assert_type(throttle.limit_many(["key", ("key", 2)]), list[RateLimitResult])
assert_type(throttle.limit_many(key for key in ("a", "b")), list[RateLimitResult])
throttle.limit_many([("key", 2, 3)])  # type: ignore[list-item]
assert_type(throttle.peek("key"), RateLimitState)
assert_type(throttle.limit("key").limited, bool)
assert_type(throttle.limit("key").allowed, bool)
assert_type(throttle.limit("key").source, Source)
assert_type(throttle.limit("key").state, RateLimitState)
assert_type(throttle.peek("key").limit, int)
assert_type(throttle.peek("key").remaining, int)
assert_type(throttle.peek("key").reset_after, float)
assert_type(throttle.peek("key").retry_after, float)
assert_type(throttle.quota, Quota)
assert_type(per_duration(timedelta(seconds=5), 10), Quota)
assert_type(Quota.parse("5/s"), Quota)
assert_type(
    exceptions.StateError().outcomes, tuple[RateLimitResult | exceptions.BaseThrottledError, ...]
)
assert_type(exceptions.LimitedError().rate_limit_result, RateLimitResult | None)

with throttle as result:
    assert_type(result, RateLimitResult)


@throttle
def function(a: int, *, b: str = "") -> list[int]:
    return [a]


assert_type(function(1, b="x"), list[int])
function("1")  # type: ignore[arg-type]
function(1, c=2)  # type: ignore[call-arg]


@throttle
def generator(n: int) -> Iterator[int]:
    yield n


assert_type(generator(1), Iterator[int])


class Service:
    @throttle
    def method(self, n: int) -> str:
        return str(n)

    @staticmethod
    @throttle
    def alone(n: int) -> str:
        return str(n)

    @classmethod
    @throttle
    def whole(cls, n: int) -> str:
        return str(n)


assert_type(Service().method(1), str)
assert_type(Service.alone(1), str)
assert_type(Service.whole(1), str)
Service().method("1")  # type: ignore[arg-type]

async_throttle = throttled.asyncio.Throttled(
    key="key", quota="5/s", store=throttled.asyncio.store.MemoryStore()
)


@async_throttle
async def coroutine(a: int) -> bytes:
    return b"" * a


unawaited: Coroutine[Any, Any, bytes] = coroutine(1)


@async_throttle
async def async_generator(n: int) -> AsyncIterator[int]:
    yield n


async def main() -> None:
    assert_type(await async_throttle.limit("key", 1, 2), RateLimitResult)
    assert_type(await async_throttle.limit_many(["key"]), list[RateLimitResult])
    assert_type(await async_throttle.peek(), RateLimitState)
    assert_type(await coroutine(1), bytes)
    await coroutine("1")  # type: ignore[arg-type]
    async with async_throttle as result:
        assert_type(result, RateLimitResult)
    async for number in async_generator(1):
        assert_type(number, int)
    benchmark = utils.Benchmark()
    assert_type(benchmark.serial(lambda: 1, 10), list[int])
    assert_type(await benchmark.async_serial(coroutine, 10, 1), list[bytes])


def takes(call: Callable[[int], list[int]]) -> None: ...


takes(lambda n: function(n))
