"""What broke in other rate limiters, each by name, so that it cannot happen here."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Callable
from math import inf
from typing import Any

import pytest

from tests.contract import FOREVER, PATIENT, STORES, MakeRig, Rig
from tests.servers import Server, cluster, free_port
from throttled import MemoryStore, Throttled
from throttled.algorithms.plan import ALGORITHMS, make_plan
from throttled.asyncio import Throttled as AsyncThrottled
from throttled.exceptions import DataError, LimitedError, StateError, StoreUnavailableError
from throttled.store import RedisStore
from throttled.testing import FakeClock

pytestmark = pytest.mark.realtime

BUCKETS = ("token_bucket", "leaking_bucket", "gcra")
#: The notes hold for every algorithm; memory and a fake server are enough to show it.
LOCAL = [param for param in STORES if str(param.id) in ("memory", "memory-async", "fakeredis")]


@pytest.fixture(params=ALGORITHMS)
def algorithm(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=LOCAL)
def rig(request: pytest.FixtureRequest, make_rig: MakeRig, algorithm: str) -> Rig:
    return make_rig(request.param, algorithm)


@pytest.fixture
def prefix() -> str:
    return f"notes-{time.monotonic_ns()}"


# -- counting -------------------------------------------------------------------------------------


def test_a_denied_call_consumes_nothing(rig: Rig) -> None:
    limiter = rig.limiter("10/h")
    assert limiter.limit("key", 8).allowed
    assert limiter.limit("key", 5).limited
    assert limiter.limit("key", 1).allowed
    assert limiter.limit("key", 1).allowed
    assert limiter.limit("key", 1).limited


def test_a_cost_above_the_limit_is_refused_at_once_and_poisons_nothing(rig: Rig) -> None:
    limiter = rig.limiter("10/h", timeout=3600)
    before = rig.now
    for cost in (11, 10**6, 10**12):
        assert limiter.limit("key", cost).limited
    assert rig.now == before
    assert limiter.limit("key", 10).allowed


def test_a_negative_cost_mints_nothing(rig: Rig) -> None:
    limiter = rig.limiter("2/h")
    assert limiter.limit("key", 2).allowed
    with pytest.raises(DataError):
        limiter.limit("key", -5)
    assert limiter.limit("key").limited


def test_nothing_fits_between_checking_and_counting() -> None:
    """Two threads, one place, a thousand times."""
    clock = FakeClock()
    throttle = Throttled(quota="1/s", store=MemoryStore(clock=clock))
    barrier = threading.Barrier(2)
    admitted: list[bool] = []

    def run() -> None:
        for n in range(1000):
            barrier.wait()
            admitted.append(throttle.limit(f"key{n}").allowed)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(admitted) == 1000


def test_hammering_while_refused_does_not_push_the_next_instant_away(rig: Rig) -> None:
    limiter = rig.limiter("1/s")
    limiter.limit("key")
    instant = rig.now + limiter.peek("key").retry_after * 1e6
    for _ in range(200):
        assert limiter.limit("key").limited
        rig.after(1000)
    assert rig.now + limiter.peek("key").retry_after * 1e6 == pytest.approx(instant, abs=0.5)


def test_a_refund_is_what_was_taken_and_does_not_overflow(rig: Rig) -> None:
    plan = rig.plan("10/h")
    rig.run(plan, "key", 6)
    rig.adjust(plan, "key", -6)
    rig.adjust(plan, "key", -6)
    assert rig.look(plan, "key", 10)[:2] == (0, 10)
    assert rig.run(plan, "key", 11)[1] == inf


def test_cancelling_a_reservation_restores_all_of_it(rig: Rig) -> None:
    plan = rig.plan("10/h")
    rig.run(plan, "key", 7)
    dumped = rig.dump(plan, "key")
    for cost in (4, 10, 1):
        ticket, wait, *_ = rig.run(plan, "key", cost, FOREVER)
        if wait:
            rig.withdraw(ticket)
            assert rig.dump(plan, "key") == dumped


def test_a_failed_reservation_does_not_delay_the_next(rig: Rig) -> None:
    plan = rig.plan("10/h")
    rig.run(plan, "key", 10)
    wait = rig.look(plan, "key")[0]
    for cost in (1, 5, 10):
        assert rig.run(plan, "key", cost, 1.0)[1] > 1
    assert rig.look(plan, "key")[0] == wait


# -- time -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("using", BUCKETS)
def test_a_bucket_drops_no_fraction_of_a_second(using: str) -> None:
    clock = FakeClock()
    throttle = Throttled(using=using, quota="30/m burst 5", store=MemoryStore(clock=clock))
    admitted = 0
    for _ in range(9):
        admitted += throttle.limit("key").allowed
        clock.advance(1)
    assert admitted == 9  # 5, and one more every 2 s


@pytest.mark.parametrize("using", BUCKETS)
def test_a_bucket_that_is_waited_on_gives_its_rate(using: str) -> None:
    clock = FakeClock()
    throttle = Throttled(
        using=using, quota="100/s burst 1", timeout=1, store=MemoryStore(clock=clock)
    )
    began = clock.now
    admitted = 0
    while clock.now < began + 3:
        admitted += throttle.limit("key").allowed
    assert admitted == 301


@pytest.mark.parametrize("using", BUCKETS)
def test_a_bucket_that_is_polled_often_still_refills(using: str) -> None:
    clock = FakeClock()
    throttle = Throttled(using=using, quota="2/s burst 1", store=MemoryStore(clock=clock))
    admitted = 0
    for _ in range(121):
        admitted += throttle.limit("key").allowed
        clock.advance(0.05)
    assert admitted == 13


def test_retry_after_is_a_true_fraction(rig: Rig) -> None:
    limiter = rig.limiter("3/s burst 1")
    while limiter.limit("key").allowed:
        pass
    retry_after = limiter.peek("key").retry_after
    assert 0 < retry_after <= (2 if rig.algorithm == "sliding_window" else 1)
    rig.after(retry_after * 1e6 // 1 - 1)
    assert limiter.limit("key").limited
    rig.after(1)
    assert limiter.limit("key").allowed


def test_retry_after_is_never_negative_however_long_idle(rig: Rig) -> None:
    limiter = rig.limiter("5/s")
    limiter.limit("key", 5)
    rig.clock.advance(10 * 366 * 86_400)
    state = limiter.limit("key").state
    assert (state.remaining, state.retry_after) == (4, 0)
    assert state.reset_after > 0
    rig.clock.advance(10 * 366 * 86_400)
    assert limiter.peek("key").reset_after == 0


@pytest.mark.parametrize("quota", ["1/ms", "7/3ms", "50000/s", "1000000/s"])
def test_short_periods_and_high_rates_work(rig: Rig, quota: str) -> None:
    plan = rig.plan(quota)
    rig.drain(plan, "key")
    wait = rig.look(plan, "key")[0]
    assert 0 < wait <= 2 * plan.period
    rig.after(wait)
    assert rig.run(plan, "key")[1] == 0


def test_a_clock_set_back_two_days_blocks_nobody(rig: Rig) -> None:
    limiter = rig.limiter("5/m")
    limiter.limit("key", 5)
    rig.clock.set(rig.clock.now - 2 * 86_400)
    assert limiter.peek("key").retry_after <= 120
    rig.clock.advance(limiter.peek("key").retry_after)
    assert limiter.limit("key").allowed


def test_a_timestamp_from_before_mints_nothing(rig: Rig) -> None:
    """A clock that goes to and fro within the period admits no more than a steady one."""
    plan = rig.plan("10/h")
    rig.after(3_600_000_000 - rig.now % 3_600_000_000 + 1_800_000_000)
    admitted = 0
    for n in range(100):
        rig.clock.set(rig.clock.now + (30 if n % 2 else -30))
        admitted += rig.run(plan, "key")[1] == 0
    assert admitted == 10


@pytest.mark.server
def test_the_clients_clock_does_not_matter(server: Server, prefix: str, monkeypatch: Any) -> None:
    with RedisStore(server.url) as store:
        throttle = Throttled(quota="5/h", store=store, key_prefix=prefix)
        assert throttle.limit("key", 5).allowed
        for skew in (-200_000, -1000, 1000, 200_000):
            monkeypatch.setattr(time, "time", lambda skew=skew: 1.7e9 + skew)
            assert throttle.limit("key").limited


def test_a_sliding_window_reads_the_right_previous_window(make_rig: MakeRig) -> None:
    rig = make_rig(LOCAL[0].values[0], "sliding_window")
    plan = rig.plan("10/s")
    rig.after(1_000_000 - rig.now % 1_000_000)
    rig.run(plan, "key", 10)
    rig.after(1_000_000)
    assert rig.free(plan, "key") == 0  # all of the previous window is in sight
    rig.after(500_000)
    assert rig.free(plan, "key") == 5
    rig.after(500_000)
    assert rig.look(plan, "key", 10) == (0, 10, 0)  # two windows on, none is


@pytest.mark.server
def test_the_previous_windows_key_lives_as_long_as_it_counts(server: Server, prefix: str) -> None:
    with RedisStore(server.url) as store, server.client() as client:
        Throttled(using="sliding_window", quota="10/h", store=store, key_prefix=prefix).limit("key")
        [name] = client.keys(f"{prefix}*")
        assert 3_600_000 < client.pttl(name) <= 7_200_000


# -- Redis ----------------------------------------------------------------------------------------


@pytest.mark.server
def test_no_key_vanishes_before_its_limit_does(server: Server, prefix: str, algorithm: str) -> None:
    """100/s burst 20 as fast as it goes: a TTL rounded down let everything pass."""
    with RedisStore(server.url) as store:
        throttle = Throttled(
            using=algorithm, quota="100/s burst 20", store=store, key_prefix=prefix
        )
        began = time.monotonic()
        admitted = sum(throttle.limit("key").allowed for _ in range(400))
        took = time.monotonic() - began
    most = 20 + 100 * took + 1 if algorithm in BUCKETS else 100 * (2 + took // 1)
    assert admitted <= most


@pytest.mark.server
def test_every_key_has_a_ttl_that_ends_with_its_state(
    server: Server, prefix: str, algorithm: str
) -> None:
    with RedisStore(server.url) as store, server.client() as client:
        for quota in ("1/ms", "1000/s", "5/m burst 7", "1/w", "1/366d"):
            throttle = Throttled(using=algorithm, quota=quota, store=store, key_prefix=prefix)
            reset_after = throttle.limit("key").state.reset_after
            for name in client.keys(f"{prefix}*"):
                ttl = client.pttl(name)
                if f":{throttle.quota.period_us}:".encode() in name:
                    assert ttl == -2 or 0 <= ttl <= reset_after * 1000 + 1
                    assert ttl == -2 or ttl >= reset_after * 1000 - 1000
                assert ttl != -1


@pytest.mark.server
def test_hits_do_not_move_the_end_of_a_window(server: Server, prefix: str) -> None:
    with RedisStore(server.url) as store, server.client() as client:
        throttle = Throttled(using="fixed_window", quota="1000/h", store=store, key_prefix=prefix)
        throttle.limit("key")
        [name] = client.keys(f"{prefix}*")
        before = client.pttl(name)
        for _ in range(50):
            throttle.limit("key")
        assert client.pttl(name) <= before


@pytest.mark.server
def test_a_flushed_script_is_no_incident(server: Server, prefix: str) -> None:
    with RedisStore(server.url) as store, server.client() as client:
        throttle = Throttled(quota="10/h", store=store, key_prefix=prefix)
        for n in range(5):
            client.script_flush()
            assert throttle.limit("key").state.remaining == 9 - n


@pytest.mark.server
@pytest.mark.slow
def test_many_keys_of_one_call_on_a_cluster(prefix: str) -> None:
    """Keys of different slots in one `run_many`: no CROSSSLOT, and none passes unchecked."""
    with cluster(3) as servers, RedisStore(f"redis+cluster://127.0.0.1:{servers[0].port}") as store:
        plan = Rig(LOCAL[0].values[0]).plan("1/h")
        calls = [(plan, f"{prefix}{n}", 1, 0.0) for n in range(50)]
        assert [reply[1] for reply in store.run_many(calls)] == [0.0] * 50
        assert all(reply[1] > 0 for reply in store.run_many(calls))


def test_one_key_under_every_algorithm(make_rig: MakeRig) -> None:
    for param in LOCAL:
        rig = make_rig(param.values[0])
        for using in ALGORITHMS:
            limiter = rig.limiter("1/h", using=using)
            assert limiter.limit("key").allowed
            assert limiter.limit("key").limited


def test_a_half_evicted_state_is_an_error_and_not_a_pass(make_rig: MakeRig) -> None:
    rig = make_rig(LOCAL[-1].values[0], "sliding_window_log")
    plan = rig.plan("5/h")
    for _ in range(5):
        rig.run(plan, "key")
    rig.raw.lpop(rig.name(plan, "key"))
    with pytest.raises(StateError, match=plan.prefix):
        rig.run(plan, "key")


@pytest.mark.server
def test_a_log_of_70000_does_not_stall_the_server(server: Server, prefix: str) -> None:
    """By the server's own clock a decision takes what it takes among 70 entries."""
    times = []
    # All 300 refusals are the server's, not repeated here.
    options = {**PATIENT, "LOCAL_DENY_SECONDS": 0}
    with RedisStore(server.url, options=options) as store, server.client() as client:
        for entries in (70, 70_000):
            throttle = Throttled(
                using="sliding_window_log", quota=f"{entries}/d", store=store, key_prefix=prefix
            )
            plan = make_plan("sliding_window_log", throttle.quota, prefix)
            call = (plan, f"key{entries}", 1, 0.0)
            for _ in range(0, entries, 7000):
                store.run_many([call] * min(entries, 7000))
            batches = []
            for _ in range(6):
                client.config_resetstat()
                for _ in range(50):
                    assert throttle.limit(f"key{entries}").limited
                stats = client.info("commandstats")["cmdstat_evalsha"]
                assert stats["calls"] == 50
                batches.append(stats["usec_per_call"])
            times.append(min(batches))
    assert times[1] <= 3 * times[0]


def test_a_server_that_is_down_is_an_error_soon_and_no_429() -> None:
    url = f"redis://127.0.0.1:{free_port()}"
    with RedisStore(url) as store:  # making it is no error
        throttle = Throttled(key="key", quota="5/h", store=store, timeout=60)
        began = time.monotonic()
        with pytest.raises(StoreUnavailableError) as error:
            throttle.limit()
        with pytest.raises(StoreUnavailableError), throttle:
            pass
        assert time.monotonic() - began < throttle.timeout / 10
        assert not isinstance(error.value, LimitedError)
        assert error.value.__cause__ is not None


# -- waiting, threads, loops ----------------------------------------------------------------------


def test_a_large_request_does_not_starve_behind_small_ones(rig: Rig) -> None:
    plan = rig.plan("10/s burst 10")
    rig.run(plan, "key", 10)
    large = rig.promise(plan, "key", 10)
    while rig.now < large.slot:
        assert rig.run(plan, "key")[1] > 0
        rig.after(min(50_000, large.slot - rig.now))
    assert large.slot <= 1_700_000_000_123_457 + 2 * plan.period


def test_a_cancelled_waiter_loses_no_token_and_none_is_stolen(rig: Rig) -> None:
    plan = rig.plan("10/s burst 1")
    rig.drain(plan, "key")
    first, second = rig.promise(plan, "key"), rig.promise(plan, "key")
    rig.withdraw(second)
    assert rig.promise(plan, "key").slot == second.slot
    rig.after(first.slot - rig.now)
    if rig.algorithm in BUCKETS:
        assert rig.run(plan, "key")[1] > 0, "it was promised to the first"


def test_a_limiter_made_outside_a_loop_serves_one_after_another() -> None:
    throttle = AsyncThrottled(quota="20/s burst 1", timeout=1, store=MemoryStore())
    for _ in range(3):
        assert asyncio.run(throttle.limit("key")).allowed


def test_no_thread_is_started_for_keys_or_stores() -> None:
    before = threading.active_count()
    stores = [MemoryStore() for _ in range(50)]
    for store in stores:
        throttle = Throttled(quota="5/s", store=store)
        for n in range(20):
            throttle.limit(f"key{n}")
    assert threading.active_count() == before


@pytest.mark.parametrize("using", BUCKETS)
def test_touching_1100_other_keys_frees_nobody(using: str) -> None:
    throttle = Throttled(using=using, quota="10/h", store=MemoryStore(clock=FakeClock()))
    throttle.limit("blocked", 10)
    for n in range(1100):
        throttle.limit(f"stranger{n}")
    assert throttle.limit("blocked").limited


# -- decorators and tests -------------------------------------------------------------------------


def test_a_generator_is_charged_again_each_time() -> None:
    @Throttled(key="key", quota="2/h", store=MemoryStore())
    def numbers() -> Any:
        yield 1

    assert list(numbers()) == list(numbers()) == [1]
    with pytest.raises(LimitedError):
        list(numbers())


def test_limits_by_self_are_possible() -> None:
    store = MemoryStore()

    class Client:
        def __init__(self, name: str) -> None:
            self.ping: Callable[[], str] = Throttled(key=name, quota="1/h", store=store)(self._ping)
            self.name = name

        def _ping(self) -> str:
            return self.name

    a, b = Client("a"), Client("b")
    assert (a.ping(), b.ping()) == ("a", "b")
    with pytest.raises(LimitedError):
        a.ping()


def test_callers_are_never_thrown_into_one_bucket_by_default() -> None:
    throttle = Throttled(quota="1/h", store=MemoryStore())
    with pytest.raises(DataError, match="Invalid key: None"):
        throttle.limit()
    with pytest.raises(DataError, match="Invalid key: None"):
        throttle(print)


def test_users_can_move_its_clock() -> None:
    clock = FakeClock()
    throttle = Throttled(quota="1/w", store=MemoryStore(clock=clock))
    assert throttle.limit("key").allowed
    clock.advance(7 * 86_400)
    assert throttle.limit("key").allowed


def test_many_short_loops_leave_nothing_behind() -> None:
    throttle = AsyncThrottled(quota="1000/s", store=MemoryStore())
    asyncio.run(throttle.limit("key"))
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(30):
        asyncio.run(throttle.limit("key"))
    gc.collect()
    assert len(gc.get_objects()) - before < 300
