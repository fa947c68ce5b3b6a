"""Threads or tasks that call a limiter, behind one interface, and what a server saw of them."""

from __future__ import annotations

import asyncio
import faulthandler
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FuturesTimeoutError
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

import pytest

from tests import servers
from tests.servers import Proxy, Server
from throttled import Throttled
from throttled.asyncio import Throttled as AsyncThrottled
from throttled.store.aioredis import RedisStore as AsyncRedisStore
from throttled.store.redis import RedisStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

#: Calls may be held for as long as a busy machine takes to get a test ready.
PATIENT = {"DECISION_TIMEOUT": 20.0}
MANY = "1000/366d"  # so slow that nothing flows in during a test


class Callers:
    """Those who call a store: threads, or tasks of an event loop in a thread of its own."""

    def __init__(self, asynchronous: bool) -> None:
        self.asynchronous = asynchronous
        self._stores: list[Any] = []
        if asynchronous:
            self.loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self.loop.run_forever)
            self._thread.start()
        else:
            self._pool = ThreadPoolExecutor(320)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for store in self._stores:
            self.wait(store.close)
        if not self.asynchronous:
            self._pool.shutdown()
            return
        self.wait(self.loop.shutdown_asyncgens)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Future[Any]:
        """Call a function of a limiter or store, by a thread or task of its own."""
        if self.asynchronous:
            work: Future[Any] = asyncio.run_coroutine_threadsafe(
                function(*args, **kwargs), self.loop
            )
            return work
        return self._pool.submit(function, *args, **kwargs)

    def wait(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The same, and what comes of it."""
        try:
            return self.call(function, *args, **kwargs).result(30)
        except FuturesTimeoutError:
            faulthandler.dump_traceback()  # where everybody is
            raise

    def store(self, *args: Any, **kwargs: Any) -> Any:
        """A store, closed in the end."""
        made: Any = AsyncRedisStore if self.asynchronous else RedisStore
        self._stores.append(made(*args, **kwargs))
        return self._stores[-1]

    def limiter(self, store: Any, quota: str = MANY, **kwargs: Any) -> Any:
        made: Any = AsyncThrottled if self.asynchronous else Throttled
        return made(quota=quota, store=store, **kwargs)

    def lanes(self, store: Any) -> Any:
        return (store._roads[self.loop] if self.asynchronous else store._road).lanes()

    def asking(self, store: Any) -> int:
        """How many calls have no answer yet, be they in line or under way."""
        return sum(1 for lane in self.lanes(store) for _ in lane.waiting())

    def at_work(self) -> int:
        """How many tasks and threads there are that the store began."""

        async def tasks() -> int:
            return len(asyncio.all_tasks()) - 1

        threads = sum(thread.name.startswith("throttled") for thread in threading.enumerate())
        return threads + (self.wait(tasks) if self.asynchronous else 0)

    def join(
        self, store: Any, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]
    ) -> list[Future[Any]]:
        """Put calls in line, behind a flight that is held, each after the one before."""
        before = self.asking(store)
        made = []
        for number, call in enumerate(calls, 1):
            made.append(self.call(function, *call))
            until = time.monotonic() + servers.PATIENCE
            while self.asking(store) < before + number:
                assert time.monotonic() < until, "a call did not get in line"
                time.sleep(0.0002)
        return made

    def hold(self, proxy: Proxy, function: Callable[..., Any], *args: Any) -> Future[Any]:
        """A call whose reply the proxy holds; it has been made before, so the way is known."""
        self.wait(function, *args)
        proxy.caught.clear()
        proxy.mode = "hold"
        held = self.call(function, *args)
        assert proxy.caught.wait(servers.PATIENCE)
        return held


@pytest.fixture(params=["threads", "tasks"])
def callers(request: pytest.FixtureRequest) -> Iterator[Callers]:
    with Callers(request.param == "tasks") as callers:
        yield callers


@pytest.fixture
def key() -> str:
    """A key that no other test uses."""
    return f"user-{time.monotonic_ns()}"


@pytest.fixture
def proxy(valkey: Server) -> Iterator[Proxy]:
    with Proxy(valkey) as proxy:
        yield proxy


@contextmanager
def counted(server: Server) -> Iterator[list[int]]:
    """How many decisions each run of the script took, in their order; after the block."""
    sizes: list[int] = []
    server.ask("CONFIG", "SET", "slowlog-max-len", "100000", "slowlog-log-slower-than", "0")
    server.ask("SLOWLOG", "RESET")
    try:
        yield sizes
        log = server.ask("SLOWLOG", "GET", "100000")
        ran = (entry[3] for entry in reversed(log))
        sizes += [int(words[2]) for words in ran if words[0].upper() in (b"EVALSHA", b"EVAL")]
    finally:
        server.ask("CONFIG", "SET", "slowlog-max-len", "128", "slowlog-log-slower-than", "10000")


@contextmanager
def paused(*nodes: Server) -> Iterator[None]:
    """Scripts wait until the end of the block, when they run in the order in which they came."""
    for node in nodes:
        node.ask("CLIENT", "PAUSE", "20000", "WRITE")
    try:
        yield
    finally:
        for node in nodes:
            node.ask("CLIENT", "UNPAUSE")


def results(calls: Sequence[Future[Any]]) -> list[Any]:
    return [call.result(30) for call in calls]
