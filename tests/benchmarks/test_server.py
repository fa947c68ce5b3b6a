"""What a decision on a local server costs, next to redis-py's INCRBY."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import pytest
import redis

from tests.benchmarks.measured import ALGORITHMS, Measured, calls_of, plenty
from throttled import RedisStore, Throttled

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers import Server

pytestmark = pytest.mark.server

CALLS = 50
#: What RedisStore sets unless told otherwise. redis-py left to its own choice is 1 to 2 % slower.
SETTINGS: dict[str, Any] = {"protocol": 2, "socket_timeout": 5, "socket_connect_timeout": 5}


def name_of(server: Server) -> str:
    """Valkey or Redis, with its version."""
    with server.client() as client:
        info = client.info("server")
    if "valkey_version" in info:
        return f"Valkey {info['valkey_version']}"
    return f"Redis {info['redis_version']}"


def at(place: str, server: Server) -> AbstractContextManager[None]:
    """Bound to one core, or where the scheduler likes."""
    if place != "one core":
        return nullcontext()
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("processes cannot be bound to a core here")
    return on_one_core(server)


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
    with at(place, server), ExitStack() as stack:
        client = stack.enter_context(redis.Redis.from_url(server.url, **SETTINGS))
        # Every refusal is the server's own.
        store = stack.enter_context(RedisStore(server.url, {"LOCAL_DENY_SECONDS": 0}))
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
