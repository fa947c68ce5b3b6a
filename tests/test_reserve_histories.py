"""Reservations among all else that befalls a key: histories that nobody thought of, and crowds."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.contract import KINDS, STORES, Kind, MakeRig, Rig
from tests.reserving import RULES, Face, Held, face
from throttled import MemoryStore, Throttled
from throttled.asyncio import Throttled as AsyncThrottled
from throttled.exceptions import LimitedError

START = 1_700_000_000.123457

costs = st.integers(1, 9)
#: What is done, and two numbers for whatever needs them.
acts = st.tuples(
    st.sampled_from(
        ["reserve", "reserve", "settle", "settle", "cancel", "limit", "debit", "refund"]
    ),
    st.integers(0, 12),
    st.integers(0, 30),
)
histories = st.lists(acts, max_size=25)
#: The same with time that passes, in seconds, before each.
timed = st.lists(
    st.tuples(st.sampled_from([0.0, 0.0, 0.001, 1 / 3, 7.0, 31.0, 60.0, 130.0]), acts), max_size=25
)


class Life:
    """What befalls a key, and what it should come to while the clock stands."""

    def __init__(self, limiter: Face, key: str) -> None:
        self.limiter = limiter
        self.key = key
        self.open: list[tuple[Held, int]] = []
        self.used = 0

    def act(self, what: str, one: int, two: int, timeout: float = -1) -> None:
        limiter, key, used = self.limiter, self.key, self.used
        match what:
            case "reserve":
                try:
                    held = limiter.reserve(key, one, timeout)
                except LimitedError:
                    return
                self.open.append((held, one))
                used += one
            case "settle" if self.open:
                held, cost = self.open.pop(one % len(self.open))
                held.settle(two)
                used += two - cost
            case "cancel" if self.open:
                held, cost = self.open.pop(one % len(self.open))
                held.cancel()
                used -= cost
            case "limit":
                used += one if limiter.limit(key, one, timeout).allowed else 0
            case "debit":
                limiter.debit(key, one)
                used += one
            case "refund":
                assert limiter.refund(key, one) == (one > 0 and used > 0)
                used -= one
        self.used = max(used, 0)


@pytest.fixture
def keys() -> Iterator[str]:
    return (f"key{number}" for number in count())


#: What part of the examples each kind of store gets.
PARTS = {Kind("memory"): 1, Kind("memory", True): 3, Kind("fakeredis"): 5}


@pytest.mark.parametrize("algorithm", RULES)
@pytest.mark.parametrize("kind", PARTS, ids=str)
def test_what_is_left_is_the_limit_without_what_was_used(
    make_rig: MakeRig, keys: Iterator[str], kind: Kind, algorithm: str
) -> None:
    rig = make_rig(kind, algorithm)
    limiter = face(rig, "20/m")

    @settings(max_examples=settings().max_examples // PARTS[kind])
    @given(histories)
    def check(history: list[tuple[str, int, int]]) -> None:
        life = Life(limiter, next(keys))
        for act in history:
            life.act(*act)
            assert limiter.free(life.key) == max(20 - life.used, 0)
        while life.open:
            life.act("settle", 0, 5)
        assert limiter.free(life.key) == max(20 - life.used, 0)

    check()


@pytest.mark.parametrize("algorithm", RULES)
def test_all_stores_settle_alike_and_nothing_runs_over(
    make_rig: MakeRig, keys: Iterator[str], algorithm: str
) -> None:
    """Time passes, calls wait, reservations are settled late and in any order."""
    rigs = [make_rig(kind, algorithm) for kind in KINDS if not kind.asynchronous]
    limiters = [face(rig, "12/m burst 9") for rig in rigs]
    capacity = limiters[0].peek("capacity").limit

    @settings(max_examples=settings().max_examples // 3)
    @given(timed)
    def check(history: list[tuple[float, tuple[str, int, int]]]) -> None:
        key = next(keys)
        lives = [Life(limiter, key) for limiter in limiters]
        for rig in rigs:
            rig.clock.set(START)
        for seconds, (what, one, two) in history:
            states = []
            for rig, life in zip(rigs, lives, strict=True):
                rig.clock.advance(seconds)
                timeout = (-1, 20, 1000)[two % 3]
                if what == "refund":
                    life.limiter.refund(key, one)
                else:
                    life.act(what, one, two, timeout)
                states.append((rig.now, life.limiter.peek(key), life.limiter.peek(key, capacity)))
            assert states.count(states[0]) == len(states)
            assert 0 <= states[0][1].remaining <= capacity
        for rig, life in zip(rigs, lives, strict=True):
            for held, _ in life.open:
                held.cancel()
            assert life.limiter.free(key) <= capacity
            rig.clock.advance(life.limiter.peek(key).reset_after)
            assert life.limiter.free(key) == capacity
            assert life.limiter.limit(key, capacity).allowed

    check()


# -- many at once ---------------------------------------------------------------------------------

#: So slow that nothing flows in during a test.
SLOW = "100_000/366d"
WORKERS, ROUNDS = 12, 15


def errand(rng: random.Random) -> tuple[int, str, int]:
    """An estimate, what becomes of it, and what was really used."""
    cost = rng.randrange(0, 40)
    what = rng.choice(["settle", "settle", "settle", "cancel", "fail", "leave"])
    used = {"settle": rng.randrange(0, 60), "leave": cost}.get(what, 0)
    return cost, what, used


def run_errands(throttle: Any, seed: int) -> int:
    """Reserve and settle; the sum of what was used."""
    rng, total = random.Random(seed), 0
    for _ in range(ROUNDS):
        cost, what, used = errand(rng)
        total += used
        try:
            with throttle.reserve("key", cost) as reservation:
                if what == "settle":
                    reservation.settle(used)
                elif what == "cancel":
                    reservation.cancel()
                elif what == "fail":
                    raise ZeroDivisionError
        except ZeroDivisionError:
            pass
    return total


async def arun_errands(throttle: Any, seed: int) -> int:
    rng, total = random.Random(seed), 0
    for _ in range(ROUNDS):
        cost, what, used = errand(rng)
        total += used
        try:
            async with throttle.reserve("key", cost) as reservation:
                await checkpoint()
                if what == "settle":
                    await reservation.settle(used)
                elif what == "cancel":
                    await reservation.cancel()
                elif what == "fail":
                    raise ZeroDivisionError
        except ZeroDivisionError:
            pass
    return total


def left_after(rig: Rig, run: Callable[[Any], int]) -> None:
    limiter = face(rig, SLOW)
    used = run(limiter.throttled)
    assert limiter.free() == 100_000 - used


@pytest.mark.parametrize("algorithm", RULES)
@pytest.mark.parametrize("kind", STORES)
def test_threads_and_tasks_that_reserve_and_settle_leave_exactly_the_rest(
    make_rig: MakeRig, kind: Kind, algorithm: str
) -> None:
    def in_threads(throttle: Any) -> int:
        with ThreadPoolExecutor(WORKERS) as pool:
            return sum(pool.map(lambda seed: run_errands(throttle, seed), range(WORKERS)))

    async def in_tasks(throttle: Any) -> int:
        totals: list[int] = []

        async def one(seed: int) -> None:
            totals.append(await arun_errands(throttle, seed))

        async with anyio.create_task_group() as group:
            for seed in range(WORKERS):
                group.start_soon(one, seed)
        return sum(totals)

    rig = make_rig(kind, algorithm)
    left_after(
        rig,
        lambda throttle: (
            rig.wait(in_tasks(throttle)) if kind.asynchronous else in_threads(throttle)
        ),
    )


def test_threads_that_settle_one_reservation_settle_it_once() -> None:
    throttle = Throttled(quota=SLOW, store=MemoryStore())
    with ThreadPoolExecutor(8) as pool:
        for round_ in range(100):
            throttle.reset("key")
            reservation = throttle.reserve("key", 50)
            gate = threading.Barrier(8)

            def settle(actual: int, gate: Any = gate, reservation: Any = reservation) -> None:
                gate.wait()
                if actual:
                    reservation.settle(actual)
                else:
                    reservation.cancel()

            list(pool.map(settle, range(0, 80, 10)))
            assert 100_000 - throttle.peek("key").remaining in range(0, 80, 10), round_


@pytest.mark.parametrize("kind", [each for each in STORES if each.values[0].asynchronous])
def test_tasks_that_settle_one_reservation_settle_it_once(make_rig: MakeRig, kind: Kind) -> None:
    rig = make_rig(kind)
    limiter = face(rig, SLOW)

    async def together() -> None:
        reservation = await limiter.throttled.reserve("key", 50)
        async with anyio.create_task_group() as group:
            for actual in range(10, 90, 10):
                group.start_soon(reservation.settle, actual)
            group.start_soon(reservation.cancel)

    for _ in range(10):
        limiter.reset("key")
        rig.wait(together())
        assert limiter.free() == 100_000 - 10


def test_sync_and_async_code_settle_on_one_store() -> None:
    store = MemoryStore()
    throttle = Throttled(quota=SLOW, store=store)
    athrottle = AsyncThrottled(quota=SLOW, store=store)

    with ThreadPoolExecutor(4) as pool:
        sync = [pool.submit(run_errands, throttle, seed) for seed in range(4)]
        backends = ["asyncio", "trio"]
        tasks = [
            pool.submit(anyio.run, arun_errands, athrottle, 4 + place, backend=backend)
            for place, backend in enumerate(backends)
        ]
        used = sum(each.result(30) for each in [*sync, *tasks])
    assert throttle.peek("key").remaining == 100_000 - used
