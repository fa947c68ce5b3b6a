"""The memory store's own affairs: its bound, what goes when it is full, its clock."""

from __future__ import annotations

import logging
import time

import pytest

from throttled import MemoryStore, Throttled
from throttled.algorithms.plan import ALGORITHMS, LOOK, NOW, Plan, make_plan
from throttled.asyncio import Throttled as AsyncThrottled
from throttled.quota import Quota
from throttled.testing import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(1_700_000_000.0)


def plan_of(quota: str, algorithm: str = "token_bucket") -> Plan:
    return make_plan(algorithm, Quota.parse(quota))


def remaining(store: MemoryStore, plan: Plan, key: str) -> int:
    return int(store.run(plan, key, 1, LOOK)[2])


def test_it_is_bounded(clock: FakeClock) -> None:
    store = MemoryStore(options={"MAX_SIZE": 10}, clock=clock)
    plan = plan_of("5/m")
    for n in range(1000):
        store.run(plan, f"key{n}", 1, NOW)
        assert len(store) == min(n + 1, 10)
    assert repr(store) == "MemoryStore(keys=10, MAX_SIZE=10)"


def test_one_key_is_enough_to_limit(clock: FakeClock) -> None:
    store = MemoryStore(options={"MAX_SIZE": 1}, clock=clock)
    throttle = Throttled(quota="1/m", store=store)
    assert throttle.limit("a").allowed
    assert throttle.limit("a").limited
    assert throttle.limit("b").allowed
    assert len(store) == 1


def test_default_size() -> None:
    assert "MAX_SIZE=65536" in repr(MemoryStore())
    assert "MAX_SIZE=65536" in repr(MemoryStore(options={}))


def test_options_are_not_edited() -> None:
    options = {"MAX_SIZE": 3}
    MemoryStore(options=options)
    assert options == {"MAX_SIZE": 3}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_no_longer_counts_goes_first(clock: FakeClock, algorithm: str) -> None:
    store = MemoryStore(options={"MAX_SIZE": 3}, clock=clock)
    short, long = plan_of("2/s", algorithm), plan_of("2/h", algorithm)
    store.run(long, "old", 2, NOW)
    store.run(short, "expired", 2, NOW)
    store.run(long, "newer", 2, NOW)
    clock.advance(3)
    store.run(long, "fresh", 1, NOW)
    assert store.dump(short, "expired") is None
    assert [remaining(store, long, key) for key in ("old", "newer", "fresh")] == [0, 0, 1]
    assert store.evicted == 0


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_least_recently_used_of_equals_goes(clock: FakeClock, algorithm: str) -> None:
    store = MemoryStore(options={"MAX_SIZE": 3}, clock=clock)
    plan = plan_of("2/h", algorithm)
    for key in ("a", "b", "c"):
        store.run(plan, key, 2, NOW)
    store.run(plan, "a", 1, NOW)  # refused, and yet a use
    store.run(plan, "b", 1, LOOK)
    store.run(plan, "d", 2, NOW)
    assert store.dump(plan, "c") is None
    assert [remaining(store, plan, key) for key in ("a", "b", "d")] == [0, 0, 0]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("apart", [0, 0.01], ids=["at once", "over time"])
def test_a_flood_of_fresh_keys_does_not_free_a_blocked_one(
    clock: FakeClock, algorithm: str, apart: float
) -> None:
    store = MemoryStore(options={"MAX_SIZE": 100}, clock=clock)
    plan = plan_of("10/d", algorithm)
    store.run(plan, "blocked", 10, NOW)
    for n in range(2000):
        store.run(plan, f"stranger{n}", 1, NOW)
        clock.advance(apart)
    assert store.run(plan, "blocked", 1, NOW)[1] > 0
    assert len(store) == 100


def test_a_flood_of_expired_keys_does_not_touch_the_others(clock: FakeClock) -> None:
    store = MemoryStore(options={"MAX_SIZE": 50}, clock=clock)
    long, short = plan_of("1/d"), plan_of("1/ms")
    for n in range(25):
        store.run(long, f"blocked{n}", 1, NOW)
    for n in range(1000):
        store.run(short, f"stranger{n}", 1, NOW)
        clock.advance(0.001)
    assert all(store.run(long, f"blocked{n}", 1, NOW)[1] > 0 for n in range(25))
    assert store.evicted == 0


def test_eviction_of_live_state_is_counted_and_logged_once(
    clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    store = MemoryStore(options={"MAX_SIZE": 10}, clock=clock)
    plan = plan_of("5/m")
    with caplog.at_level(logging.WARNING, "throttled"):
        for n in range(10):
            store.run(plan, f"key{n}", 1, NOW)
        assert (store.evicted, caplog.records) == (0, [])
        for n in range(7):
            store.run(plan, f"more{n}", 1, NOW)
    assert store.evicted == 7
    [record] = caplog.records
    assert record.name == "throttled"
    assert "MAX_SIZE=10" in record.getMessage()


def test_looking_stores_nothing(clock: FakeClock) -> None:
    store = MemoryStore(clock=clock)
    plan = plan_of("5/m")
    for n in range(100):
        store.run(plan, f"key{n}", 1, LOOK)
        store.run(plan, f"key{n}", 6, NOW)
        store.run(plan, f"key{n}", 0, NOW)
    assert len(store) == 0


def test_a_ticket_of_an_evicted_key(clock: FakeClock) -> None:
    store = MemoryStore(options={"MAX_SIZE": 1}, clock=clock)
    plan = plan_of("1/m")
    store.run(plan, "key", 1, NOW)
    ticket, *_ = store.run(plan, "key", 1, 1e12)
    store.run(plan, "other", 1, NOW)
    assert not store.undo(ticket)
    store.withdraw(ticket)
    store.arrived(ticket)
    assert remaining(store, plan, "key") == 1


def test_close_keeps_what_was_counted(clock: FakeClock) -> None:
    store = MemoryStore(clock=clock)
    plan = plan_of("5/m")
    store.run(plan, "key", 3, NOW)
    store.close()
    assert remaining(store, plan, "key") == 2


def test_stores_are_apart_and_the_default_is_shared() -> None:
    first, second = MemoryStore(), MemoryStore()
    assert Throttled(quota="1/m", store=first).limit("key").allowed
    assert Throttled(quota="1/m", store=second).limit("key").allowed
    assert Throttled().store is Throttled().store is AsyncThrottled().store
    key = f"test_stores_are_apart {time.monotonic_ns()}"
    assert Throttled(quota="1/m").limit(key).allowed
    assert Throttled(quota="1/m").limit(key).limited


def test_its_clock_is_the_wall_clock_and_never_steps_back() -> None:
    store = MemoryStore()
    assert abs(store.now() / 1e6 - time.time()) < 1
    instants = [store.now() for _ in range(1000)]
    assert instants == sorted(instants)
    assert all(instant == instant // 1 for instant in instants)


def test_any_callable_of_seconds_is_a_clock() -> None:
    seconds = 12.5
    store = MemoryStore(clock=lambda: seconds)
    assert store.now() == 12_500_000
    throttle = Throttled(quota="1/m", store=store)
    assert throttle.limit("key").allowed
    seconds += 59.999999
    assert throttle.limit("key").state.retry_after == 0.000001
    seconds += 0.000001
    assert throttle.limit("key").allowed
