"""Real waiting: these are the few tests that take real time."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import pytest

from tests.servers import Server
from throttled import MemoryStore, Throttled
from throttled.algorithms.plan import ALGORITHMS, LOOK, make_plan
from throttled.asyncio import Throttled as AsyncThrottled
from throttled.asyncio.store import RedisStore as AsyncRedisStore
from throttled.exceptions import LimitedError
from throttled.quota import Quota
from throttled.store import RedisStore

pytestmark = pytest.mark.realtime

CALLERS = 50
#: 100 a second, one at a time: the first goes at once, the last after 0.49 s.
QUOTA = "100/s burst 1"
IDEAL = (CALLERS - 1) / 100
#: For a machine that is busy with other tests; the benchmarks hold it to less.
MOST = 1.3 * IDEAL


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    return f"waiting-{time.monotonic_ns()}"


class Clock:
    """Real time, and how often it was read: once a decision."""

    def __init__(self) -> None:
        self.read = 0

    def __call__(self) -> float:
        self.read += 1
        return time.monotonic()


def in_order(served: list[int]) -> bool:
    """Whether they were served as they asked; a busy machine may wake two the other way round."""
    assert sorted(served) == list(range(CALLERS))
    return all(abs(place - number) <= 2 for place, number in enumerate(served))


def in_threads(call: Callable[[], Any], asked: Callable[[], int]) -> tuple[float, list[int]]:
    """Callers in threads, each asking after the one before; how long it took, and who was when."""
    served: list[int] = []
    results: list[Any] = []
    before = asked()

    def run(number: int) -> None:
        result = call()
        served.append(number)
        results.append(result)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(CALLERS)]
    began = time.monotonic()
    for number, thread in enumerate(threads):
        thread.start()
        while asked() <= before + number:
            time.sleep(0)
    for thread in threads:
        thread.join(10)
    took = time.monotonic() - began
    assert all(result.allowed for result in results)
    assert asked() == before + CALLERS, "one decision a grant"
    return took, served


async def in_tasks(call: Callable[[], Any]) -> tuple[float, list[int]]:
    served: list[int] = []

    async def run(number: int) -> None:
        result = await call()
        assert result.allowed
        served.append(number)

    began = time.monotonic()
    async with anyio.create_task_group() as group:
        for number in range(CALLERS):
            group.start_soon(run, number)
            await anyio.lowlevel.checkpoint()
    return time.monotonic() - began, served


@pytest.mark.parametrize("algorithm", ["token_bucket", "leaking_bucket", "gcra"])
def test_threads_are_served_evenly_and_in_order(algorithm: str) -> None:
    clock = Clock()
    throttle = Throttled(using=algorithm, quota=QUOTA, timeout=5, store=MemoryStore(clock=clock))
    took, served = in_threads(lambda: throttle.limit("key"), lambda: clock.read)
    assert in_order(served)
    assert IDEAL <= took <= MOST


@pytest.mark.parametrize("algorithm", ["fixed_window", "sliding_window", "sliding_window_log"])
def test_windows_let_all_in_at_their_edge_in_order(algorithm: str) -> None:
    clock = Clock()
    store = MemoryStore(clock=clock)
    throttle = Throttled(using=algorithm, quota="10/100ms", timeout=5, store=store)
    took, _ = in_threads(lambda: throttle.limit("key"), lambda: clock.read)
    assert took <= 0.6 * 1.3  # the first 10 at once, then 10 in each of 4 or 5 windows


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_tasks_are_served_evenly_and_in_order(backend: str) -> None:
    clock = Clock()
    throttle = AsyncThrottled(quota=QUOTA, timeout=5, store=MemoryStore(clock=clock))
    took, served = anyio.run(in_tasks, lambda: throttle.limit("key"), backend=backend)
    assert in_order(served)
    assert IDEAL <= took <= MOST
    assert clock.read == CALLERS


@pytest.mark.server
def test_threads_on_a_server(server: Server, prefix: str) -> None:
    with RedisStore(server.url) as store:
        throttle = Throttled(quota=QUOTA, timeout=5, store=store, key_prefix=prefix)
        throttle.peek("key")
        took, served = in_threads(
            lambda: throttle.limit("key"), lambda: server.calls("evalsha", "eval")
        )
    assert in_order(served)
    assert took <= MOST


@pytest.mark.server
async def test_tasks_on_a_server(server: Server, prefix: str) -> None:
    async with AsyncRedisStore(server.url) as store:
        throttle = AsyncThrottled(quota=QUOTA, timeout=5, store=store, key_prefix=prefix)
        await throttle.peek("key")
        before = server.calls("evalsha", "eval")
        took, served = await in_tasks(lambda: throttle.limit("key"))
    assert sorted(served) == list(range(CALLERS))
    assert IDEAL <= took <= MOST
    assert server.calls("evalsha", "eval") <= before + CALLERS  # they share round trips


# -- giving up ------------------------------------------------------------------------------------


@pytest.fixture
def interrupt() -> Iterator[Callable[[float], None]]:
    """Press Ctrl-C in so many seconds."""
    main = threading.main_thread().ident
    assert main is not None
    timers = []
    # A process that was started in the background ignores it.
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)

    def press(after: float) -> None:
        timers.append(threading.Timer(after, signal.pthread_kill, (main, signal.SIGINT)))
        timers[-1].start()

    yield press
    for timer in timers:
        timer.cancel()
        timer.join()
    signal.signal(signal.SIGINT, usual)


needs_signals = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")


@needs_signals
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_interrupted_wait_gives_back(algorithm: str, interrupt: Callable[[float], None]) -> None:
    store = MemoryStore()
    throttle = Throttled(using=algorithm, quota="1/366d", timeout=1e9, store=store)
    plan = make_plan(algorithm, Quota.parse("1/366d"))
    assert throttle.limit("key").allowed
    dumped = store.dump(plan, "key")
    interrupt(0.05)
    with pytest.raises(KeyboardInterrupt):
        throttle.limit("key")
    assert store.dump(plan, "key") == dumped


@needs_signals
@pytest.mark.server
def test_an_interrupted_wait_gives_back_on_a_server(
    valkey: Server, prefix: str, interrupt: Callable[[float], None]
) -> None:
    with RedisStore(valkey.url) as store, valkey.client() as client:
        throttle = Throttled(quota="1/366d", timeout=1e9, store=store, key_prefix=prefix)
        assert throttle.limit("key").allowed
        [name] = client.keys(f"{prefix}*")
        stored = client.get(name)
        interrupt(0.05)
        with pytest.raises(KeyboardInterrupt):
            throttle.limit("key")
        assert client.get(name) == stored


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_cancelled_wait_gives_back(algorithm: str, backend: str) -> None:
    store = MemoryStore()
    throttle = AsyncThrottled(using=algorithm, quota="1/366d", timeout=1e9, store=store)
    plan = make_plan(algorithm, Quota.parse("1/366d"))

    async def main() -> None:
        assert (await throttle.limit("key")).allowed
        dumped = store.dump(plan, "key")
        for crowd in (1, 100):
            async with anyio.create_task_group() as group:
                for _ in range(crowd):
                    group.start_soon(throttle.limit, "key")
                await anyio.sleep(0.02)
                assert store.dump(plan, "key") != dumped
                group.cancel_scope.cancel()
            assert store.dump(plan, "key") == dumped

    anyio.run(main, backend=backend)


@pytest.mark.server
async def test_cancelled_waits_give_back_on_a_server(server: Server, prefix: str) -> None:
    async with AsyncRedisStore(server.url) as store:
        throttle = AsyncThrottled(quota="1/366d", timeout=1e9, store=store, key_prefix=prefix)
        assert (await throttle.limit("key")).allowed
        tasks = [asyncio.create_task(throttle.limit("key")) for _ in range(20)]
        with server.client() as client:
            [name] = client.keys(f"{prefix}*")
            await asyncio.sleep(0.1)
            assert float(client.get(name).split()[1]) < 0
            for task in tasks:
                task.cancel()
            for task in tasks:
                with pytest.raises(asyncio.CancelledError):
                    await task
            assert float(client.get(name).split()[1]) >= 0


async def test_those_who_stay_are_served_when_others_leave() -> None:
    store = MemoryStore()
    throttle = AsyncThrottled(quota=QUOTA, timeout=5, store=store)
    assert (await throttle.limit("key")).allowed
    began = time.monotonic()
    tasks = [asyncio.create_task(throttle.limit("key")) for _ in range(10)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert time.monotonic() - began <= 0.1 * 1.3
    assert all(isinstance(result, asyncio.CancelledError) for result in results[::2])
    assert all(result.allowed for result in results[1::2])  # type: ignore[union-attr]
    # Nobody who waits is forgotten, and nothing that was promised stays behind.
    await asyncio.sleep(0.02)
    assert store.run(make_plan("token_bucket", Quota.parse(QUOTA)), "key", 1, LOOK)[1] == 0


async def test_a_timeout_around_a_wait() -> None:
    throttle = AsyncThrottled(quota="1/m", timeout=3600, store=MemoryStore())
    assert (await throttle.limit("key")).allowed
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await throttle.limit("key")
    assert (
        throttle.store.run(make_plan("token_bucket", Quota.parse("1/m")), "key", 1, LOOK)[1] <= 60e6
    )  # type: ignore[index]


# -- what does not wait ---------------------------------------------------------------------------


def test_what_cannot_fit_its_timeout_returns_at_once() -> None:
    throttle = Throttled(key="key", quota="1/m", timeout=0.5, store=MemoryStore())
    assert throttle.limit().allowed
    began = time.monotonic()
    assert throttle.limit().limited
    assert throttle.limit(timeout=59).limited
    assert throttle.limit(cost=2, timeout=1e6).limited
    with pytest.raises(LimitedError), throttle:
        pass
    assert time.monotonic() - began < 0.5  # not even the shortest timeout


def test_a_short_wait_is_waited_out() -> None:
    throttle = Throttled(quota="20/s burst 1", timeout=1, store=MemoryStore())
    began = time.monotonic()
    for _ in range(4):
        result = throttle.limit("key")
        assert result.allowed
        assert result.state.retry_after == 0
    assert 0.15 <= time.monotonic() - began <= 0.15 * 1.3


@needs_signals
@pytest.mark.server
def test_an_interrupt_is_heard_although_the_server_is_gone(
    interrupt: Callable[[float], None], caplog: pytest.LogCaptureFixture
) -> None:
    with Server() as gone, RedisStore(gone.url) as store:
        throttle = Throttled(quota="1/366d", timeout=1e9, store=store)
        assert throttle.limit("key").allowed
        threading.Timer(0.05, gone.stop).start()
        interrupt(1.0)
        with pytest.raises(KeyboardInterrupt):
            throttle.limit("key")
    assert "could not give back its slot: Redis at" in caplog.text


@pytest.mark.server
async def test_a_cancellation_is_heard_although_the_server_is_gone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with Server() as gone:
        async with AsyncRedisStore(gone.url) as store:
            throttle = AsyncThrottled(quota="1/366d", timeout=1e9, store=store)
            assert (await throttle.limit("key")).allowed
            # A limit that the call cannot see, or it would not wait at all.
            async with asyncio.timeout(15), anyio.create_task_group() as group:
                group.start_soon(throttle.limit, "key")
                await anyio.wait_all_tasks_blocked()
                await anyio.to_thread.run_sync(gone.stop)
                group.cancel_scope.cancel()
    assert "could not give back its slot: Redis at" in caplog.text
