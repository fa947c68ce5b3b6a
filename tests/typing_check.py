"""What type checkers must see. Checked by mypy, never run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from datetime import timedelta
from typing import Any, assert_type

import throttled.asyncio
import throttled.asyncio.service as async_service
import throttled.hooks
from throttled import (
    Event,
    Forecast,
    Hook,
    HookContext,
    Key,
    MemoryStore,
    Quota,
    RateLimiterType,
    RateLimitResult,
    RateLimitState,
    Rule,
    Throttled,
    exceptions,
    per_duration,
    rate_limiter,
    service,
    store,
    utils,
)
from throttled.asyncio.reservation import Reservation as AsyncReservation
from throttled.contrib import asgi, fastapi, flask
from throttled.contrib.keys import by_header
from throttled.pacing import AsyncPaced, Paced
from throttled.reservation import Reservation
from throttled.result import Source
from throttled.testing import disabled

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

# -- what may be limited, and by what -------------------------------------------------------------


def tier(key: str) -> str | list[Rule]:
    return "10/s; 1000/h" if key else [Rule("10/s", using="gcra", cost=1, name="calls")]


async def later(key: str) -> Quota:
    return Quota.parse("10/s")


class Timing(Hook):
    def on_limit(
        self, call_next: Callable[[], RateLimitResult], context: HookContext
    ) -> RateLimitResult:
        assert_type(context.key, str)
        assert_type(context.cost, int)
        return call_next()


class AsyncTiming(throttled.asyncio.Hook):
    async def on_limit(
        self, call_next: Callable[[], Awaitable[RateLimitResult]], context: HookContext
    ) -> RateLimitResult:
        return await call_next()


def told(event: Event) -> None:
    assert_type(event.key, str)
    assert_type(event.result, RateLimitResult | None)
    assert_type(event.error, Exception | None)
    assert_type(event.wait, float)


async def told_later(event: Event) -> None: ...


Throttled(quota="10/s; 1000/h")
Throttled(quota=Rule("10/s"))
Throttled(quota=["10/s", Rule("1000/h", using=RateLimiterType.GCRA), per_duration(timedelta(1), 5)])
Throttled(quota=tier, quota_ttl=0)
Throttled(quota=5)  # type: ignore[arg-type]
Throttled(hold=True, enforce=False, exempt=lambda key: key == "staff", per="item")
Throttled(per="row")  # type: ignore[arg-type]
Throttled(hooks=[Timing()], on_allow=told, on_deny=told, on_error=told, on_wait=told)
Throttled(on_allow=lambda event: print(event.throttle))
throttled.asyncio.Throttled(quota=later, exempt=later, on_allow=told_later)
throttled.asyncio.Throttled(hooks=[AsyncTiming()])
Throttled(key="{a}", cost=lambda a, **_: len(a))
Throttled(key=lambda a, **_: str(a))
Rule("10/s", cost="1")  # type: ignore[arg-type]
assert_type(Rule("10/s").quota, Quota)
assert_type(Rule("10/s").name, str | None)
assert_type(Key("u42", slot="acme").slot, str)
throttle.limit(Key("u42", slot="acme"))

# -- calls ----------------------------------------------------------------------------------------

assert_type(throttle.limit("key", 1, timeout=2), RateLimitResult)
assert_type(throttle.limit("key", deadline=5.0), RateLimitResult)
assert_type(Throttled.limit_all([(throttle, "a"), (throttle, "b", 2)], cost=1), RateLimitResult)
assert_type(Throttled.limit_all([(throttle, "a")], timeout=1, slot="acme"), RateLimitResult)
Throttled.limit_all([throttle])  # type: ignore[list-item]
assert_type(throttle.forecast("key"), Forecast)
assert_type(throttle.forecast().spendable_now, int)
assert_type(throttle.forecast().next_replenish_at, float | None)
assert_type(throttle.forecast().full_at, float)
assert_type(throttle.refund("key", 5), bool)
throttle.debit("key", 5)
throttle.reset("key")
throttle.penalize("key", 1.5)
throttle.penalize("key", "1")  # type: ignore[arg-type]
throttle.quota = Quota.parse("5/s")
assert_type(throttle.rules, tuple[Rule, ...])
assert_type(throttle.wrap(["a"]), Paced[str])
assert_type(list(throttle.wrap(["a"], key="key", cost=len, timeout=1)), list[str])
assert_type(throttle.reserve("key", cost=5, on_error="keep"), Reservation)
throttle.reserve("key", on_error="ignore")  # type: ignore[arg-type]
assert_type(throttle.limit(), RateLimitResult)
assert_type(throttle.limit_many(["key", ("key", 2)]), list[RateLimitResult])
assert_type(throttle.limit_many(key for key in ("a", "b")), list[RateLimitResult])
throttle.limit_many([("key", 2, 3)])  # type: ignore[list-item]
assert_type(throttle.peek("key"), RateLimitState)
assert_type(throttle.limit("key").limited, bool)
assert_type(throttle.limit("key").allowed, bool)
assert_type(throttle.limit("key").source, Source)
assert_type(throttle.limit("key").state, RateLimitState)
assert_type(throttle.limit("key").states, tuple[RateLimitState, ...])
assert_type(throttle.limit("key").rule, Rule | None)
assert_type(throttle.limit("key").rules, tuple[Rule, ...])
assert_type(throttle.limit("key").held, bool)
assert_type(throttle.limit("key").would_limit, bool)
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

with throttle.reserve("key", cost=5) as reservation:
    assert_type(reservation, Reservation)
    assert_type(reservation.result, RateLimitResult)
    assert_type(reservation.cost, int)
    assert_type(reservation.settled, bool)
    reservation.settle(3)
    reservation.cancel()

with disabled():
    throttle.limit()


@disabled()
def unlimited(a: int) -> str:
    return str(a)


assert_type(unlimited(1), str)


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
    pairs = [(async_throttle, "a"), (async_throttle, "b")]
    assert_type(await throttled.asyncio.Throttled.limit_all(pairs, slot="acme"), RateLimitResult)
    assert_type(await async_throttle.forecast("key"), Forecast)
    assert_type(await async_throttle.refund("key", 5), bool)
    await async_throttle.debit("key", 5)
    await async_throttle.reset("key")
    await async_throttle.penalize("key", 1.5)
    async with async_throttle.reserve("key", cost=5) as reservation:
        assert_type(reservation, AsyncReservation)
        await reservation.settle(3)
    assert_type(await async_throttle.reserve("key"), AsyncReservation)
    assert_type(async_throttle.wrap(async_generator(1)), AsyncPaced[int])
    assert_type([item async for item in async_throttle.wrap(["a"], cost=len)], list[str])
    async for number in async_generator(1):
        assert_type(number, int)
    benchmark = utils.Benchmark()
    assert_type(benchmark.serial(lambda: 1, 10), list[int])
    assert_type(await benchmark.async_serial(coroutine, 10, 1), list[bytes])


def takes(call: Callable[[int], list[int]]) -> None: ...


takes(lambda n: function(n))

# -- in front of applications and services ---------------------------------------------------------


async def asgi_app(scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
    """An application."""


class Named(throttled.hooks.Observer):
    def decided(self, event: Event) -> None:
        assert_type(event.took, float)


limit = asgi.RateLimit("10/m", key=by_header("X-API-Key"), cost=lambda request: 2, using="gcra")
limit.observe(Named())
asgi.RateLimitMiddleware(asgi.RateLimitMiddleware(asgi_app, limit), rules={"/": limit})
throttle.observe(Named())


@fastapi.RateLimit("10/m", count_when=lambda response: response.status_code == 401)
def page(number: int) -> str:
    return str(number)


assert_type(page(1), str)


@flask.RateLimiter().limit("10/m")
def view(number: int) -> str:
    return str(number)


assert_type(view(1), str)

# -- in a file, and as a service -------------------------------------------------------------------

policies = throttled.load("policies.toml", watch=1.0)
assert_type(policies["api"], throttled.Throttled)
assert_type(policies.policy("api", key="user:{name}", timeout=1), throttled.Throttled)
assert_type(throttled.asyncio.load("policies.toml")["api"], throttled.asyncio.Throttled)

with service.Client("localhost:50051", token="t", on_store_error="local") as client:
    remote = client.policy("api", quota="10/s")
    assert_type(remote, service.Policy)
    assert_type(remote.limit("k"), throttled.RateLimitResult)
    assert_type(remote.forecast("k"), throttled.Forecast)


@client.policy("api", key="page:{number}")
def served(number: int) -> str:
    return str(number)


assert_type(served(1), str)


async def from_a_service() -> None:
    async with async_service.Client("localhost:50051") as client:
        assert_type(await client.policy("api").limit("k"), throttled.RateLimitResult)
