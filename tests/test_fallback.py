"""`on_store_error`: what stands in for a store that fails, in this process or elsewhere."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from math import inf
from typing import Any

import anyio
import pytest

from tests import failing as stores
from tests.failing import DOWN, AsyncFailingStore, FailingStore, Flavour, LocalFailingStore, Make
from throttled import MemoryStore, Throttled
from throttled.algorithms.plan import ALGORITHMS
from throttled.asyncio import Throttled as AsyncThrottled
from throttled.exceptions import LimitedError, StateError
from throttled.testing import FakeClock

pytestmark = pytest.mark.realtime

flavour, clock, failing = stores.flavour, stores.clock, stores.failing


# -- local ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_local_limits_in_this_process(
    flavour: Flavour, failing: Make, clock: FakeClock, algorithm: str
) -> None:
    _, throttle = failing("local", using=algorithm)
    first, second, third = (flavour.wait(throttle.limit()) for _ in range(3))
    assert [first.allowed, second.allowed, third.limited] == [True, True, True]
    assert {first.source, second.source, third.source} == {"fallback"}
    assert (first.state.limit, first.state.remaining) == (2, 1)
    assert flavour.wait(throttle.peek()) == third.state
    for call in (flavour.enter, flavour.decorated):
        with pytest.raises(LimitedError, match=r"^Rate limit exceeded"):
            call(throttle)
    clock.advance(third.state.retry_after)
    assert flavour.decorated(throttle) == "ran"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_local_waits_in_line(
    flavour: Flavour, failing: Make, clock: FakeClock, algorithm: str
) -> None:
    store, throttle = failing("local", using=algorithm)
    began = clock.now
    for _ in range(2):
        flavour.wait(throttle.limit())
    slot = flavour.wait(throttle.peek()).retry_after
    assert flavour.wait(throttle.limit(timeout=slot - 0.001)).limited
    result = flavour.wait(throttle.limit(timeout=slot))
    assert (result.allowed, result.source) == (True, "fallback")
    assert result.state.retry_after == 0
    assert clock.now == pytest.approx(began + slot)
    assert {*store.asked} == {"run"}, "a promise is its own store's business"


def test_local_divides_the_quota_by_the_share(flavour: Flavour, failing: Make) -> None:
    store, _ = failing("local")
    store.local_share = 4
    throttle = flavour.limiter(store, "40/m burst 8", on_store_error="local")
    result = flavour.wait(throttle.limit("key"))
    assert (result.state.limit, result.state.remaining) == (2, 1)
    assert result.state.reset_after == pytest.approx(6)  # 10 a minute
    store.recover()
    assert flavour.wait(throttle.limit("key")).state.limit == 8


def test_a_store_has_one_local_memory_for_all_its_limits(flavour: Flavour) -> None:
    store, other = flavour.store(), flavour.store()
    store.fail()
    other.fail()
    limits = [flavour.limiter(each, on_store_error="local") for each in (store, store, other)]
    found = [flavour.wait(throttle.limit("key")).state.remaining for throttle in limits]
    assert found == [1, 0, 1]
    another = flavour.limiter(store, key_prefix="another", on_store_error="local")
    assert flavour.wait(another.limit("key")).state.remaining == 1


def test_shares_of_two_prefixes_do_not_meet(flavour: Flavour) -> None:
    store = flavour.store()
    store.fail()
    store.local_share = 2
    for prefix in ("one", "two"):
        throttle = flavour.limiter(store, key_prefix=prefix, on_store_error="local")
        assert flavour.wait(throttle.limit("key")).allowed
        assert flavour.wait(throttle.limit("key")).limited


def test_local_goes_by_the_clock_of_its_store(flavour: Flavour, clock: FakeClock) -> None:
    store = flavour.store()
    store._clock = lambda: clock.now  # one that cannot sleep
    store.fail()
    throttle = flavour.limiter(store, "1/m", key="key", on_store_error="local")
    assert flavour.wait(throttle.limit()).allowed
    assert flavour.wait(throttle.peek()).retry_after == 60
    clock.advance(60)
    assert flavour.wait(throttle.limit()).allowed


def test_threads_that_fail_first_share_one_memory() -> None:
    store = FailingStore()
    store.fail()
    ready = threading.Barrier(8)
    allowed: list[bool] = []

    def run() -> None:
        ready.wait()
        throttle = Throttled(quota="5/h", store=store, on_store_error="local")
        allowed.extend(throttle.limit("key").allowed for _ in range(4))

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(allowed) == 5


# -- a store to fall back to ----------------------------------------------------------------------


def test_a_store_stands_in_with_the_full_quota(flavour: Flavour, failing: Make) -> None:
    fallback = flavour.store()
    store, throttle = failing(fallback)
    store.local_share = 2
    assert throttle.on_store_error is fallback
    results = [flavour.wait(throttle.limit()) for _ in range(3)]
    assert [result.limited for result in results] == [False, False, True]
    assert {result.source for result in results} == {"fallback"}
    assert flavour.wait(throttle.peek()).remaining == 0
    assert len(fallback.memory) == 1
    assert len(store.memory) == 0


def test_a_wait_in_a_store_that_stands_in_is_its_own(flavour: Flavour, clock: FakeClock) -> None:
    store, fallback = flavour.store(clock), flavour.store(clock)
    store.fail()
    throttle = flavour.limiter(store, "1/m", key="key", timeout=60, on_store_error=fallback)
    for _ in range(2):
        result = flavour.wait(throttle.limit())
        assert (result.allowed, result.source) == (True, "fallback")
    assert fallback.asked == ["run", "run", "arrived"]
    assert store.asked == ["run", "run"]


def test_async_code_may_fall_back_to_a_local_store() -> None:
    store, fallback = AsyncFailingStore(), MemoryStore()
    store.fail()
    throttle = AsyncThrottled(quota="1/m", store=store, on_store_error=fallback)

    async def main() -> None:
        assert (await throttle.limit("key")).source == "fallback"
        assert (await throttle.limit("key")).limited
        assert (await throttle.peek("key")).remaining == 0

    asyncio.run(main())
    assert Throttled(quota="1/m", store=fallback).limit("key").limited


def test_a_local_store_may_fall_back_to_one_that_is_awaited() -> None:
    store, fallback = LocalFailingStore(), AsyncFailingStore()
    throttle = AsyncThrottled(quota="2/m", store=store, on_store_error=fallback)

    async def main() -> list[str]:
        sources = [(await throttle.limit("key")).source]
        store.fail()
        sources.append((await throttle.limit("key")).source)
        return sources

    assert asyncio.run(main()) == ["memory", "fallback"]


@pytest.mark.parametrize(
    ("policy", "source"),
    [
        ("allow", "allowed-by-policy"),
        ("deny", "denied-by-policy"),
        ("local", "fallback"),
    ],
)
def test_a_store_that_stands_in_and_fails_follows_its_own_policy(
    flavour: Flavour, failing: Make, policy: str, source: str
) -> None:
    fallback = flavour.store()
    fallback.on_store_error = policy
    fallback.fail()
    _, throttle = failing(fallback)
    assert flavour.wait(throttle.limit()).source == source
    [result] = flavour.wait(throttle.limit_many(["key"]))
    assert result.source == source
    fallback.recover()
    assert flavour.wait(throttle.limit()).source == "fallback"


def test_the_last_error_is_raised_and_the_first_is_its_cause(
    flavour: Flavour, failing: Make
) -> None:
    fallback = flavour.store()
    fallback.fail(StateError("The key of the fallback is damaged"))
    store, throttle = failing(fallback)
    with pytest.raises(StateError, match="of the fallback") as raised:
        flavour.wait(throttle.limit())
    assert raised.value.__cause__ is store.error


# -- giving up ------------------------------------------------------------------------------------


class Interrupting(FakeClock):
    """A clock on which every wait is interrupted."""

    def sleep_until(self, instant: float) -> None:
        raise KeyboardInterrupt

    async def asleep_until(self, instant: float) -> None:
        raise asyncio.CancelledError


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("policy", ["local", "a store"])
def test_who_gives_up_gives_back_where_it_was_promised(
    flavour: Flavour, policy: str, algorithm: str
) -> None:
    clock = Interrupting()
    store, fallback = flavour.store(clock), flavour.store(clock)
    throttle = flavour.limiter(
        store,
        "1/366d",
        key="key",
        using=algorithm,
        on_store_error=fallback if policy == "a store" else policy,
    )
    store.fail()
    flavour.wait(throttle.limit())
    before = flavour.wait(throttle.peek())
    for _ in range(3):
        with pytest.raises((KeyboardInterrupt, asyncio.CancelledError)):
            flavour.wait(throttle.limit(timeout=inf))
        assert flavour.wait(throttle.peek()) == before
    assert "withdraw" not in store.asked
    assert ("withdraw" in fallback.asked) == (policy == "a store")


def test_a_promise_of_a_store_that_failed_since_is_still_its_own(
    flavour: Flavour, caplog: pytest.LogCaptureFixture
) -> None:
    store = flavour.store(Interrupting())
    throttle = flavour.limiter(store, "1/m", key="key", timeout=60, on_store_error="local")
    flavour.wait(throttle.limit())
    sleep = store.sleeper.sleep_until

    def fail_then_sleep(instant: float) -> None:
        store.fail()
        sleep(instant)

    async def afail_then_sleep(instant: float) -> None:
        store.fail()
        raise asyncio.CancelledError

    store.sleeper.sleep_until = fail_then_sleep
    store.sleeper.asleep_until = afail_then_sleep
    with pytest.raises((KeyboardInterrupt, asyncio.CancelledError)):
        flavour.wait(throttle.limit())
    assert caplog.messages == [f"A cancelled call could not give back its slot: {DOWN}"]


@pytest.mark.parametrize("fallback", [MemoryStore, AsyncFailingStore])
async def test_a_task_cancelled_while_it_waits_gives_back(fallback: Callable[[], Any]) -> None:
    store = AsyncFailingStore()
    store.fail()
    throttle = AsyncThrottled(quota="1/366d", store=store, key="key", on_store_error=fallback())
    assert (await throttle.limit()).allowed
    before = (await throttle.peek()).retry_after
    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(throttle.limit, "key", 1, inf)
        await anyio.sleep(0.02)
        group.cancel_scope.cancel()
    assert (await throttle.peek()).retry_after <= before
