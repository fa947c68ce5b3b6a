"""What a decision on a local server costs, next to redis-py's INCRBY."""

from __future__ import annotations

import asyncio
import os
from contextlib import ExitStack, contextmanager
from itertools import repeat
from time import perf_counter
from typing import TYPE_CHECKING, Any

import pytest
import redis

from tests.benchmarks.measured import ALGORITHMS, Measured, calls_of, plenty, threads_of
from throttled import RedisStore, Throttled
from throttled import asyncio as throttled_asyncio

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers import Server

pytestmark = pytest.mark.server

CALLS = 50
SHARE = 250
THREADS = 16
#: What RedisStore sets unless told otherwise. redis-py left to its own choice is 1 to 2 % slower.
SETTINGS: dict[str, Any] = {"protocol": 2, "socket_timeout": 5, "socket_connect_timeout": 5}


def name_of(server: Server) -> str:
    """Valkey or Redis, with its version."""
    with server.client() as client:
        info = client.info("server")
    if "valkey_version" in info:
        return f"Valkey {info['valkey_version']}"
    return f"Redis {info['redis_version']}"


@contextmanager
def on_one_core(server: Server) -> Iterator[None]:
    """Client and server take turns on one core, so that no scheduler has a say."""
    with server.client() as client:
        process = client.info("server")["process_id"]
    cores = os.sched_getaffinity(0)
    threads = [int(name) for name in os.listdir(f"/proc/{process}/task")]
    try:
        for thread in (0, *threads):
            os.sched_setaffinity(thread, {min(cores)})
        yield
    finally:
        for thread in (0, *threads):
            os.sched_setaffinity(thread, cores)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("outcome", ["allowed", "refused"])
@pytest.mark.parametrize("place", ["one core", "unpinned"])
def test_one_connection(
    benchmark: Any, measured: Measured, server: Server, algorithm: str, outcome: str, place: str
) -> None:
    with ExitStack() as stack:
        if place == "one core":
            if not hasattr(os, "sched_setaffinity"):
                pytest.skip("processes cannot be bound to a core here")
            stack.enter_context(on_one_core(server))
        client = stack.enter_context(redis.Redis.from_url(server.url, **SETTINGS))
        store = stack.enter_context(RedisStore(server=server.url))
        quota = plenty(algorithm) if outcome == "allowed" else "1/h"
        throttle = Throttled(using=algorithm, quota=quota, store=store)
        client.flushdb()
        throttle.limit("key")
        measured.compare(
            benchmark,
            f"Decisions on {name_of(server)}, to INCRBY",
            algorithm,
            f"{outcome}, {place}",
            ours=calls_of(throttle.limit, "key", CALLS),
            base=calls_of(client.incrby, "counter", CALLS),
            ceiling=1.1,
            rounds=150,
        )
        assert throttle.limit("key").limited == (outcome == "refused")


@pytest.mark.parametrize("algorithm", ["token_bucket"])
def test_sixteen_threads(
    benchmark: Any, measured: Measured, server: Server, algorithm: str
) -> None:
    """For information: how much the threads of a process get done together."""
    with (
        redis.Redis.from_url(server.url, **SETTINGS) as client,
        RedisStore(server=server.url) as store,
    ):
        throttle = Throttled(using=algorithm, quota=plenty(algorithm), store=store)

        measured.compare(
            benchmark,
            f"Decisions on {name_of(server)}, to INCRBY",
            algorithm,
            f"{THREADS} threads",
            ours=threads_of(throttle.limit, THREADS, SHARE),
            base=threads_of(client.incrby, THREADS, SHARE),
            ceiling=None,
            rounds=5,
        )


@pytest.mark.parametrize("algorithm", ["token_bucket"])
def test_the_async_call(benchmark: Any, measured: Measured, server: Server, algorithm: str) -> None:
    """For information: one task after the other, to INCRBY of `redis.asyncio`."""
    client: Any = redis.asyncio.Redis.from_url(server.url, **SETTINGS)
    store = throttled_asyncio.RedisStore(server=server.url)
    throttle = throttled_asyncio.Throttled(using=algorithm, quota=plenty(algorithm), store=store)

    async def calls(call: Any) -> float:
        start = perf_counter()
        for _ in repeat(None, CALLS):
            await call("key")
        return (perf_counter() - start) / CALLS

    with asyncio.Runner() as runner:
        measured.compare(
            benchmark,
            f"Decisions on {name_of(server)}, to INCRBY",
            algorithm,
            "async, to async",
            ours=lambda: runner.run(calls(throttle.limit)),
            base=lambda: runner.run(calls(client.incrby)),
            ceiling=None,
            rounds=60,
        )
        runner.run(store.close())
        runner.run(client.aclose())
