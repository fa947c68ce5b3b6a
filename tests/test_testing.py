"""The fake clock that users get for their tests."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from math import inf, nan
from typing import Any

import anyio
import pytest

from tests.contract import STORES, MakeRig
from throttled import MemoryStore, Throttled
from throttled.asyncio import Throttled as AsyncThrottled
from throttled.exceptions import DataError
from throttled.testing import FakeClock


def test_it_moves_only_when_told_to() -> None:
    clock = FakeClock()
    began = clock.now
    assert clock() == clock.now == began
    clock.advance(0.25)
    clock.advance(1)
    clock.advance(0)
    assert clock.now == began + 1.25
    assert clock.now_us() == (began + 1.25) * 1e6
    clock.set(12.5)
    assert (clock.now, repr(clock)) == (12.5, "FakeClock(now=12.5)")


def test_it_keeps_whole_microseconds() -> None:
    clock = FakeClock(0)
    for _ in range(1_000_000):
        clock.advance(0.0000014)
    assert clock.now == 1.0


@pytest.mark.parametrize("seconds", [-1, -0.001, nan, inf, -inf, "1", None, True, 4e9], ids=repr)
def test_bad_seconds(seconds: Any) -> None:
    clock = FakeClock()
    calls: list[Callable[[Any], object]] = [clock.advance, clock.set, FakeClock]
    for call in calls:
        with pytest.raises(DataError) as error:
            call(seconds)
        assert repr(seconds) in str(error.value)


def test_the_documented_example() -> None:
    clock = FakeClock()
    throttle = Throttled(quota="1/m", store=MemoryStore(clock=clock))
    assert throttle.limit("key").allowed
    assert throttle.limit("key").limited
    clock.advance(60)
    assert throttle.limit("key").allowed


@pytest.mark.parametrize("kind", STORES)
def test_waiting_moves_it_on_every_store(make_rig: MakeRig, kind: Any) -> None:
    rig = make_rig(kind)
    limiter = rig.limiter("1/m", timeout=3600)
    began = rig.clock.now
    for n in range(10):
        assert limiter.limit("key").allowed
        assert rig.clock.now == pytest.approx(began + 60 * n, abs=1e-6)


def test_sleepers_at_once_do_not_add_up() -> None:
    clock = FakeClock()
    throttle = Throttled(quota="10/s burst 1", timeout=60, store=MemoryStore(clock=clock))
    began = clock.now
    barrier = threading.Barrier(20)

    def call(_: int) -> bool:
        barrier.wait()
        return throttle.limit("key").allowed

    with ThreadPoolExecutor(20) as pool:
        assert all(pool.map(call, range(20)))
    assert clock.now == pytest.approx(began + 1.9, abs=1e-6)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_sleeping_tasks_do_not_add_up(backend: str) -> None:
    clock = FakeClock()
    throttle = AsyncThrottled(quota="10/s burst 1", timeout=60, store=MemoryStore(clock=clock))
    began = clock.now

    async def main() -> None:
        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(throttle.limit, "key")

    anyio.run(main, backend=backend)
    assert clock.now == pytest.approx(began + 1.9, abs=1e-6)


def test_sleeping_until_the_past_does_not_move_it() -> None:
    clock = FakeClock()
    began = clock.now
    clock.sleep_until((began - 5) * 1e6)
    assert clock.now == began
    clock.sleep_until((began + 5) * 1e6)
    assert clock.now == began + 5
