"""Penalties: `penalize`, and limits with `hold=True`, which look for them."""

from __future__ import annotations

import asyncio
import threading
import time
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.contract import PATIENT, STORES, Kind, MakeRig, Rig
from tests.joints import ALGORITHMS
from tests.servers import Server
from throttled import MemoryStore, Throttled
from throttled.algorithms.plan import LOOK, hold_plan
from throttled.asyncio import Throttled as AsyncThrottled
from throttled.asyncio.store import RedisStore as AsyncRedisStore
from throttled.exceptions import DataError, SetUpError
from throttled.store import RedisStore
from throttled.testing import FakeClock

pytestmark = pytest.mark.realtime

stores = pytest.mark.parametrize("kind", STORES)


class Held:
    """A limit with `hold=True`."""

    def __init__(self, rig: Rig, quota: Any = "5/s", **arguments: Any) -> None:
        self.rig = rig
        self.limiter = rig.limiter(quota, hold=True, **arguments)
        self.throttle = self.limiter.throttled
        self.limit, self.peek = self.limiter.limit, self.limiter.peek
        self.plans = self.throttle._terms.plan.joint.plans
        self.hold = hold_plan(rig.prefix)

    def penalize(self, seconds: float, key: str = "key") -> None:
        self.rig.wait(self.throttle.penalize(key, seconds))

    def reset(self, key: str = "key") -> None:
        self.rig.wait(self.throttle.reset(key))

    def dumps(self) -> list[Any]:
        return [self.rig.dump(plan, "key") for plan in (*self.plans, self.hold)]


@stores
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_nobody_passes_before_its_end_and_exactly_then_they_do(
    make_rig: MakeRig, kind: Kind, algorithm: str
) -> None:
    held = Held(make_rig(kind), using=algorithm)
    assert held.limit("key", 2).allowed
    taken = held.dumps()
    held.penalize(30)
    assert held.dumps()[:-1] == taken[:-1], "it takes nothing"
    result = held.limit("key")
    assert (result.limited, result.held) == (True, True)
    assert result.state.retry_after == 30
    assert result.state.remaining == 0
    assert held.limit("other").allowed, "another key"
    held.rig.after(30e6 - 1)
    assert held.limit("key").state.retry_after == 1e-6
    held.rig.after(1)
    result = held.limit("key")
    assert (result.limited, result.held) == (False, False)
    assert result.state.remaining == 4


@stores
def test_a_shorter_one_does_not_end_a_longer_one(make_rig: MakeRig, kind: Kind) -> None:
    held = Held(make_rig(kind))
    held.penalize(30)
    for seconds in (5, 0, 29.999999, 30):
        held.penalize(seconds)
        assert held.limit("key").state.retry_after == 30
    held.rig.after(10e6)
    held.penalize(20)
    assert held.limit("key").state.retry_after == 20
    held.penalize(20.000001)
    assert held.limit("key").state.retry_after == 20.000001


@stores
def test_reset_ends_it(make_rig: MakeRig, kind: Kind) -> None:
    held = Held(make_rig(kind))
    held.penalize(30)
    assert held.limit("key").held
    held.reset()
    assert held.dumps() == [None, None]
    assert held.limit("key").state.remaining == 4


@stores
def test_hammering_while_it_stands_moves_nothing(make_rig: MakeRig, kind: Kind) -> None:
    held = Held(make_rig(kind), "5/s; 9/m")
    held.limit("key", 3)
    held.penalize(30)
    found = held.dumps()
    for step in (0, 1, 7e6, 20e6):
        held.rig.after(step)
        for _ in range(5):
            assert held.limit("key").limited
            assert held.limit("key", 3, timeout=1).limited
            held.peek("key", 4)
            held.limit("key", 0)
        assert held.dumps() == found
    assert held.limit("key").state.retry_after == 2.999999


@stores
def test_a_look_sees_it_and_a_cost_of_zero_passes(make_rig: MakeRig, kind: Kind) -> None:
    held = Held(make_rig(kind), "5/s burst 5; 9/m")
    held.penalize(30)
    state = held.peek("key")
    assert (state.remaining, state.retry_after, state.reset_after) == (0, 30, 30)
    result = held.limit("key", 0)
    assert (result.limited, result.held, result.state.remaining) == (False, True, 0)
    forecast = held.rig.wait(held.throttle.forecast("key"))
    assert forecast.spendable_now == 0
    assert forecast.next_replenish_at == pytest.approx(held.rig.clock.now + 30, abs=1e-6)
    assert forecast.full_at == pytest.approx(held.rig.clock.now + 30, abs=1e-6)
    assert held.limit("key", 10).state.retry_after == float("inf"), "and never stays never"


@stores
def test_only_limits_with_hold_heed_it(make_rig: MakeRig, kind: Kind) -> None:
    rig = make_rig(kind)
    held, blind = Held(rig), rig.limiter("5/s")
    held.penalize(30)
    assert held.limit("key").limited
    assert blind.limit("key").state.remaining == 4
    assert Held(rig, "7/m", using="fixed_window").limit("key").held, "any of its prefix does"
    with pytest.raises(SetUpError, match="hold=True"):
        rig.wait(blind.throttled.penalize("key", 5))
    for wrong in (-1, float("nan"), float("inf"), "5", True, 366 * 86_400 + 1):
        with pytest.raises(DataError, match="Invalid seconds"):
            held.penalize(wrong)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="Invalid key"):
        held.penalize(5, "")


@stores
def test_a_penalty_of_a_year_and_of_a_microsecond(make_rig: MakeRig, kind: Kind) -> None:
    held = Held(make_rig(kind))
    held.penalize(366 * 86_400, "year")
    assert held.limit("year").state.retry_after == 366 * 86_400
    held.penalize(1e-9, "moment")
    assert held.limit("moment").state.retry_after == 1e-6
    held.rig.after(1)
    assert held.limit("moment").allowed
    held.penalize(0)
    assert held.limit("key").allowed


@pytest.mark.server
@pytest.mark.parametrize("kind", [param for param in STORES if param.values[0].real])
def test_its_key_lasts_as_long_as_it_does(make_rig: MakeRig, kind: Kind) -> None:
    rig = make_rig(kind)
    store = rig.wall_store()
    try:
        made: Any = AsyncThrottled if kind.asynchronous else Throttled
        throttle = made(quota="5/s", store=store, key_prefix=rig.prefix, hold=True)
        rig.wait(throttle.penalize("key", 60))
        assert 55_000 < rig.ttl(hold_plan(rig.prefix), "key") <= 60_000
        rig.wait(throttle.limit("key"))
        assert 55_000 < rig.ttl(hold_plan(rig.prefix), "key") <= 60_000
    finally:
        rig.wait(store.close())


@stores
def test_a_clock_that_steps_back_does_not_make_it_longer(make_rig: MakeRig, kind: Kind) -> None:
    held = Held(make_rig(kind))
    held.penalize(30)
    began = held.rig.now
    held.rig.clock.set((began - 20e6) / 1e6)
    assert held.peek("key").retry_after == 50, "by less than it is long, it stands"
    held.rig.clock.set((began - 3600e6) / 1e6)
    assert held.peek("key").retry_after == 30, "by more, it is as long as it was"
    held.rig.after(30e6)
    assert held.limit("key").allowed


# -- who waits ------------------------------------------------------------------------------------


@stores
def test_who_asks_while_it_stands_waits_for_its_end(make_rig: MakeRig, kind: Kind) -> None:
    held = Held(make_rig(kind), "5/s burst 1", timeout=60)
    held.penalize(30)
    began = held.rig.now
    assert held.limit("key", timeout=29.999999).limited
    assert held.rig.now == began
    served = []
    for _ in range(3):
        assert held.limit("key").allowed
        served.append((held.rig.now - began) / 1e6)
    assert served == [30, 30.2, 30.4]


async def in_line(
    throttle: Any, count: int, served: list[tuple[int, bool, float]], clock: Any, **kwargs: Any
) -> list[asyncio.Task[None]]:
    """Callers who wait, each asking after the one before."""

    async def call(number: int) -> None:
        result = await throttle.limit("key", **kwargs)
        served.append((number, result.allowed, clock()))

    tasks = []
    for number in range(count):
        tasks.append(asyncio.create_task(call(number)))
        await asyncio.sleep(0.02)
    return tasks


@pytest.mark.parametrize("quota", ["4/s burst 1", "4/s burst 1; 1000/h"])
async def test_sleepers_of_this_process_look_again_when_they_wake(quota: str) -> None:
    """In real time: slots 250 ms apart, and a penalty of 800 ms while they sleep."""
    throttle = AsyncThrottled(quota=quota, store=MemoryStore(), hold=True, timeout=5)
    assert (await throttle.limit("key")).allowed
    served: list[tuple[int, bool, float]] = []
    tasks = await in_line(throttle, 2, served, time.monotonic)
    began = time.monotonic()
    await throttle.penalize("key", 0.8)
    await asyncio.gather(*tasks)
    assert [(number, allowed) for number, allowed, _ in served] == [(0, True), (1, True)]
    assert served[0][2] - began >= 0.799
    assert served[1][2] - began < 4


async def test_who_sleeps_by_another_limit_of_the_prefix_looks_again() -> None:
    store = MemoryStore()
    one, other = (
        AsyncThrottled(quota=quota, store=store, hold=True, timeout=5)
        for quota in ("4/s burst 1", "1000/h")
    )
    assert (await one.limit("key")).allowed
    served: list[tuple[int, bool, float]] = []
    tasks = await in_line(one, 1, served, time.monotonic)
    began = time.monotonic()
    await other.penalize("key", 0.8)
    await other.penalize("another", 30)
    await asyncio.gather(*tasks)
    assert served[0][1]
    assert 0.799 <= served[0][2] - began < 4


async def test_who_would_wait_too_long_for_its_end_is_refused() -> None:
    throttle = AsyncThrottled(quota="4/s burst 1", store=MemoryStore(), hold=True, timeout=0.3)
    assert (await throttle.limit("key")).allowed
    served: list[tuple[int, bool, float]] = []
    tasks = await in_line(throttle, 1, served, time.monotonic)
    await throttle.penalize("key", 30)
    await asyncio.gather(*tasks)
    assert [allowed for _, allowed, _ in served] == [False]
    assert (await throttle.peek("key")).reset_after == pytest.approx(30, abs=1)


def test_threads_that_sleep_look_again_when_they_wake() -> None:
    throttle = Throttled(quota="4/s burst 1", store=MemoryStore(), hold=True, timeout=5)
    assert throttle.limit("key").allowed
    woke: list[float] = []
    sleeper = threading.Thread(
        target=lambda: woke.append(time.monotonic() if throttle.limit("key").allowed else 0.0)
    )
    sleeper.start()
    time.sleep(0.03)
    began = time.monotonic()
    throttle.penalize("key", 0.8)
    sleeper.join(10)
    assert 0.799 <= woke[0] - began < 5


@pytest.mark.server
async def test_sleepers_on_a_server_look_again_when_they_wake(server: Server) -> None:
    prefix = f"hold-{time.monotonic_ns()}"
    async with AsyncRedisStore(server.url, PATIENT) as store:
        throttle = AsyncThrottled(
            quota="4/s burst 1", store=store, key_prefix=prefix, hold=True, timeout=5
        )
        assert (await throttle.limit("key")).allowed
        served: list[tuple[int, bool, float]] = []
        tasks = await in_line(throttle, 1, served, time.monotonic)
        began = time.monotonic()
        await throttle.penalize("key", 0.8)
        await asyncio.gather(*tasks)
        assert served[0][1]
        assert served[0][2] - began >= 0.79


@pytest.mark.server
async def test_promises_to_other_processes_stand(server: Server) -> None:
    prefix = f"hold-{time.monotonic_ns()}"
    async with AsyncRedisStore(server.url, PATIENT) as store:
        throttle = AsyncThrottled(
            quota="5/s burst 1", store=store, key_prefix=prefix, hold=True, timeout=5
        )
        assert (await throttle.limit("key")).allowed
        served: list[tuple[int, bool, float]] = []
        tasks = await in_line(throttle, 1, served, time.monotonic)
        began = time.monotonic()
        # Another store, as another process has.
        with RedisStore(server.url, PATIENT) as other:
            Throttled(quota="5/s burst 1", store=other, key_prefix=prefix, hold=True).penalize(
                "key", 30
            )
        await asyncio.gather(*tasks)
        assert served[0][1]
        assert served[0][2] - began < 5
        assert (await throttle.limit("key", timeout=0)).held


class Sleepy(FakeClock):
    """A clock whose sleepers sleep until the test has moved it to their instants."""

    def __init__(self) -> None:
        super().__init__()
        self._wakes: list[tuple[float, asyncio.Future[None]]] = []

    async def asleep_until(self, instant: float) -> None:
        future = asyncio.get_running_loop().create_future()
        self._wakes.append((instant, future))
        await future

    async def go(self, microseconds: float) -> None:
        """Let time pass; sleepers wake one by one, each at its instant."""
        end = self.now_us() + microseconds
        await settle()
        while due := [wake for wake in self._wakes if wake[0] <= end]:
            wake = min(due, key=lambda wake: wake[0])
            self._wakes.remove(wake)
            self.sleep_until(wake[0])
            if not wake[1].done():
                wake[1].set_result(None)
            await settle()
        self.sleep_until(end)


async def settle() -> None:
    """Let all others go on until each sleeps."""
    for _ in range(20):
        await asyncio.sleep(0)


class Sleepers:
    """Callers of one key who sleep while others set a penalty."""

    def __init__(self, quota: Any = "1/s burst 1", **arguments: Any) -> None:
        self.clock = Sleepy()
        self.store = MemoryStore(clock=self.clock)
        arguments.setdefault("hold", True)
        self.throttle = AsyncThrottled(quota=quota, store=self.store, timeout=60, **arguments)
        self.began = self.clock.now_us()
        #: Who went on, and in which second; None: refused.
        self.served: dict[str, float | None] = {}
        self.tasks: list[asyncio.Task[None]] = []

    async def ask(self, name: str, throttle: Any = None, **kwargs: Any) -> None:
        async def call() -> None:
            result = await (throttle or self.throttle).limit("key", **kwargs)
            at = (self.clock.now_us() - self.began) / 1e6
            self.served[name] = at if result.allowed else None

        self.tasks.append(asyncio.create_task(call()))
        await settle()


async def test_those_who_look_again_stay_in_their_order() -> None:
    sleepers = Sleepers()
    for name in "abcd":
        await sleepers.ask(name)
    await sleepers.clock.go(500_000)
    await sleepers.throttle.penalize("key", 10)
    await sleepers.clock.go(60e6)
    await asyncio.gather(*sleepers.tasks)
    assert list(sleepers.served) == ["a", "b", "c", "d"]
    times = [at for at in sleepers.served.values() if at is not None]
    assert times[0] == 0
    assert times[1] >= 10.5
    assert all(later - earlier >= 1 for earlier, later in pairwise(times))


async def test_whose_slot_lies_behind_its_end_keeps_it() -> None:
    sleepers = Sleepers()
    for name in "abcd":
        await sleepers.ask(name)
    await sleepers.ask("patient", timeout=4)
    await sleepers.clock.go(500_000)
    await sleepers.throttle.penalize("key", 2)
    await sleepers.clock.go(60e6)
    await asyncio.gather(*sleepers.tasks)
    assert sleepers.served["d"] == 3
    assert sleepers.served["patient"] == 4


@pytest.mark.parametrize("quota", ["1/s burst 1", "1/s burst 1; 1000/h"])
async def test_sleepers_of_a_limit_without_hold_keep_their_slots(quota: str) -> None:
    sleepers = Sleepers(quota)
    blind = AsyncThrottled(quota=quota, store=sleepers.store, timeout=60)
    await sleepers.ask("first", blind)
    await sleepers.ask("second", blind)
    await sleepers.throttle.penalize("key", 10)
    await sleepers.clock.go(60e6)
    await asyncio.gather(*sleepers.tasks)
    assert sleepers.served == {"first": 0, "second": 1}


async def test_who_is_cancelled_while_it_waits_for_the_end_leaves_no_trace() -> None:
    sleepers = Sleepers()
    await sleepers.ask("first")
    for name in ("second", "third"):
        await sleepers.ask(name)
    await sleepers.throttle.penalize("key", 10)
    await sleepers.clock.go(1_500_000)
    for task in reversed(sleepers.tasks[1:]):
        task.cancel()
        await settle()
    assert sleepers.served == {"first": 0}
    plan = sleepers.throttle._terms.plan.joint.plans[0]
    assert sleepers.store.run(plan, "key", 1, LOOK)[1:] == (0, 1, 0)


# -- any history ----------------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    st.sampled_from(ALGORITHMS),
    st.lists(
        st.tuples(
            st.sampled_from([0, 0, 1, 100_000, 1_000_000, 7_000_000]),
            st.sampled_from(["ask", "ask", "wait", "penalize", "reset", "look"]),
            st.integers(1, 9),
        ),
        max_size=20,
    ),
)
def test_nobody_ever_passes_while_it_stands(
    algorithm: str, history: list[tuple[int, str, int]]
) -> None:
    """And without it, all is as if there were none."""
    rig, free = Rig(Kind("memory")), Rig(Kind("memory"))
    held = Held(rig, "5/s", using=algorithm)
    plain = free.limiter("5/s", using=algorithm)
    until = 0.0
    for pause, what, number in history:
        rig.after(pause)
        match what:
            case "penalize":
                held.penalize(number / 2)
                until = max(until, rig.now + number * 500_000)
            case "reset":
                held.reset()
                free.wait(plain.throttled.reset("key"))
                until = 0.0
            case "look":
                assert held.peek("key").retry_after >= max(until - rig.now, 0) / 1e6
            case _:
                began = rig.now
                result = held.limit("key", min(number, 5), timeout=5 if what == "wait" else -1)
                assert result.held == (until > began and result.limited)
                if result.allowed:
                    assert rig.now >= until
                    # The rules themselves let it pass then.
                    free.clock.set(rig.now / 1e6)
                    assert plain.limit("key", min(number, 5)).allowed
                elif what == "ask":
                    assert result.state.retry_after >= max(until - began, 0) / 1e6
