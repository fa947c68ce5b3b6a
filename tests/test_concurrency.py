"""Many threads, tasks and processes on one key admit exactly the quota."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import anyio
import anyio.to_thread
import pytest

from tests.contract import PATIENT, Kind, MakeRig, Rig
from tests.servers import Server
from throttled import MemoryStore, Throttled
from throttled.algorithms.plan import ALGORITHMS
from throttled.asyncio import Throttled as AsyncThrottled
from throttled.asyncio.store import RedisStore as AsyncRedisStore
from throttled.store import RedisStore
from throttled.testing import FakeClock

THREADS = 32
TASKS = 1000
PROCESSES = 4
#: Nothing comes back while a test runs.
YEAR = "366d"

each_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS)


@pytest.fixture
def prefix() -> str:
    return f"concurrency-{time.monotonic_ns()}"


@pytest.fixture
def impatient() -> Iterator[None]:
    """Threads that take turns a thousand times as often."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(before)


def admitted_by_threads(call: Callable[[], bool], times: int) -> int:
    """How many of `times` calls in each thread are admitted."""
    barrier = threading.Barrier(THREADS)

    def run(_: int) -> int:
        barrier.wait()
        return sum(call() for _ in range(times))

    with ThreadPoolExecutor(THREADS) as pool:
        return sum(pool.map(run, range(THREADS)))


# -- threads --------------------------------------------------------------------------------------


@each_algorithm
@pytest.mark.usefixtures("impatient")
def test_threads_in_memory(algorithm: str) -> None:
    store = MemoryStore(clock=FakeClock())
    throttle = Throttled(using=algorithm, quota=f"1000/{YEAR}", store=store)
    assert admitted_by_threads(lambda: throttle.limit("key").allowed, 100) == 1000
    assert throttle.peek("key").remaining == 0


@each_algorithm
@pytest.mark.usefixtures("impatient")
def test_threads_that_promise_and_give_back(algorithm: str) -> None:
    """A thousand promises from many threads, all given back, in whatever order."""
    rig = Rig(Kind("memory"), algorithm)
    plan = rig.plan("5/s")
    rig.drain(plan, "key")
    dumped = rig.dump(plan, "key")
    slots: list[float] = []

    def call() -> bool:
        tickets = [rig.promise(plan, "key") for _ in range(3)]
        slots.extend(ticket.slot for ticket in tickets)
        for ticket in tickets:
            rig.withdraw(ticket)
        return True

    assert admitted_by_threads(call, 10) == THREADS * 10
    assert rig.dump(plan, "key") == dumped


@pytest.mark.usefixtures("impatient")
def test_threads_on_new_keys() -> None:
    """Every key is new to all of them at once."""
    throttle = Throttled(quota=f"5/{YEAR}", store=MemoryStore(clock=FakeClock()))
    numbers = [iter(range(400)) for _ in range(THREADS)]
    names = threading.local()

    def call() -> bool:
        mine = getattr(names, "mine", None)
        if mine is None:
            mine = names.mine = numbers.pop()
        return throttle.limit(f"key{next(mine)}").allowed

    assert admitted_by_threads(call, 400) == 5 * 400


@pytest.mark.usefixtures("impatient")
def test_threads_while_keys_are_evicted() -> None:
    """Nothing breaks, the bound holds, and a key that is in use all the time is not evicted."""
    store = MemoryStore(options={"MAX_SIZE": 20}, clock=FakeClock())
    throttle = Throttled(quota=f"1000/{YEAR}", store=store)
    number = iter(range(10**9))

    def call() -> bool:
        throttle.limit(f"key{next(number)}")
        throttle.limit(f"key{next(number) % 30}", timeout=1)
        return throttle.limit("hot").allowed

    assert admitted_by_threads(call, 100) == 1000
    assert len(store) == 20


@pytest.mark.server
@each_algorithm
def test_threads_on_a_server(server: Server, prefix: str, algorithm: str) -> None:
    with RedisStore(server.url) as store:
        throttle = Throttled(using=algorithm, quota=f"200/{YEAR}", store=store, key_prefix=prefix)
        assert admitted_by_threads(lambda: throttle.limit("key").allowed, 10) == 200


# -- tasks ----------------------------------------------------------------------------------------


@each_algorithm
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_tasks_in_memory(algorithm: str, backend: str) -> None:
    store = MemoryStore(clock=FakeClock())
    throttle = AsyncThrottled(using=algorithm, quota=f"500/{YEAR}", store=store)
    admitted = 0

    async def call() -> None:
        nonlocal admitted
        await anyio.lowlevel.checkpoint()
        result = await throttle.limit("key")
        admitted += result.allowed

    async def main() -> None:
        async with anyio.create_task_group() as group:
            for _ in range(TASKS):
                group.start_soon(call)

    anyio.run(main, backend=backend)
    assert admitted == 500


@pytest.mark.server
@each_algorithm
async def test_tasks_on_a_server(server: Server, prefix: str, algorithm: str) -> None:
    options = {**PATIENT, "CONNECTION_POOL_KWARGS": {"max_connections": 2000}}
    async with AsyncRedisStore(server.url, options) as store:
        throttle = AsyncThrottled(
            using=algorithm, quota=f"500/{YEAR}", store=store, key_prefix=prefix
        )
        results = await asyncio.gather(*[throttle.limit("key") for _ in range(TASKS)])
    assert sum(result.allowed for result in results) == 500


@each_algorithm
def test_tasks_on_fakeredis(make_rig: MakeRig, algorithm: str) -> None:
    rig = make_rig(Kind("fakeredis", True), algorithm)
    limiter = rig.limiter(f"20/{YEAR}")

    async def main() -> int:
        results = await asyncio.gather(*[limiter.throttled.limit("key") for _ in range(50)])
        return sum(result.allowed for result in results)

    assert rig.wait(main()) == 20


# -- everything at once ---------------------------------------------------------------------------


@pytest.mark.usefixtures("impatient")
def test_threads_asyncio_and_trio_share_a_store() -> None:
    store = MemoryStore(clock=FakeClock())
    throttle = Throttled(quota=f"1000/{YEAR}", store=store)
    async_throttle = AsyncThrottled(quota=f"1000/{YEAR}", store=store)

    async def call() -> int:
        admitted = 0
        for n in range(50):
            result = await async_throttle.limit("key")
            admitted += result.allowed
            if n % 10 == 0:
                await anyio.lowlevel.checkpoint()
        return admitted

    async def main() -> int:
        admitted = 0

        async def one() -> None:
            nonlocal admitted
            mine = await call()
            admitted += mine

        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(one)
        return admitted

    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(anyio.run, main, backend=name) for name in ("asyncio", "trio")]
        futures += [
            pool.submit(lambda: sum(throttle.limit("key").allowed for _ in range(500)))
            for _ in range(2)
        ]
        assert sum(future.result() for future in futures) == 1000


# -- processes ------------------------------------------------------------------------------------


def in_a_process(url: str, algorithm: str, prefix: str, times: int) -> int:
    with RedisStore(url) as store:
        throttle = Throttled(using=algorithm, quota=f"300/{YEAR}", store=store, key_prefix=prefix)
        return sum(throttle.limit("key").allowed for _ in range(times))


@pytest.mark.server
def test_processes_on_a_server(server: Server, prefix: str) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Pool(PROCESSES) as pool:
        pool.map(abs, range(PROCESSES))  # all are up
        for algorithm in ALGORITHMS:
            jobs = [(server.url, algorithm, prefix, 150)] * PROCESSES
            admitted = pool.starmap(in_a_process, jobs, chunksize=1)
            assert sum(admitted) == 300, algorithm


# -- fork -----------------------------------------------------------------------------------------

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def in_a_child(run: Callable[[], bool], patience: float = 10) -> bool:
    """What a forked child answers; a child that hangs is False."""
    child = os.fork()
    if child == 0:
        fine = False
        try:
            fine = run()
        finally:
            os._exit(0 if fine else 1)
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status == 0
        time.sleep(0.005)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return False


@needs_fork
@pytest.mark.usefixtures("impatient")
def test_a_fork_finds_its_locks_free() -> None:
    """Forked again and again while other threads are inside the store."""
    store = MemoryStore(options={"MAX_SIZE": 10})
    throttle = Throttled(quota="1000000/s", store=store, timeout=0)
    over = threading.Event()
    number = iter(range(10**9))

    def busy() -> None:
        while not over.is_set():
            throttle.limit("key")
            throttle.limit(f"key{next(number) % 20}")

    threads = [threading.Thread(target=busy) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            assert in_a_child(lambda: throttle.limit("key").allowed)
    finally:
        over.set()
        for thread in threads:
            thread.join()


@needs_fork
def test_a_child_counts_on_its_own_in_memory() -> None:
    store = MemoryStore()
    throttle = Throttled(quota=f"2/{YEAR}", store=store)
    assert throttle.limit("key").allowed
    assert in_a_child(lambda: throttle.limit("key").allowed and throttle.limit("key").limited)
    assert throttle.limit("key").allowed
    assert throttle.limit("key").limited


@needs_fork
@pytest.mark.server
def test_children_share_a_server(valkey: Server, prefix: str) -> None:
    """Parent and children used one store; none reads another's replies."""
    with RedisStore(valkey.url) as store:
        throttle = Throttled(quota=f"10/{YEAR}", store=store, key_prefix=prefix)
        for n in range(5):
            assert throttle.limit("key").state.remaining == 9 - 2 * n
            assert in_a_child(
                lambda n=n: throttle.limit("key").state.remaining == 8 - 2 * n  # type: ignore[misc]
            )
        assert throttle.limit("key").limited


def test_one_limiter_in_many_loops() -> None:
    throttle = AsyncThrottled(quota=f"3/{YEAR}", store=MemoryStore())
    admitted = [asyncio.run(throttle.limit("key")).allowed for _ in range(4)]
    assert admitted == [True, True, True, False]
