"""How many decisions are made in the time of one INCRBY through redis-py."""

from __future__ import annotations

import asyncio
import socket
from contextlib import ExitStack
from itertools import repeat
from time import perf_counter
from typing import TYPE_CHECKING, Any

import pytest
import redis

from tests.benchmarks.measured import Measured, calls_of, plenty, threads_of
from tests.benchmarks.test_server import SETTINGS, at, name_of
from tests.servers import HOST
from throttled import RedisStore, Throttled
from throttled import asyncio as throttled_asyncio
from throttled.algorithms.plan import NOW, make_plan
from throttled.quota import Quota
from throttled.store.wire import Wording

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.benchmarks.measured import Batch
    from tests.servers import Server

pytestmark = pytest.mark.server

CALLS = 50
THREADS = 16
TASKS = 100
SHARE = 50
QUOTA = plenty("token_bucket")

PLACES = pytest.mark.parametrize("place", ["one core", "unpinned"])


def table_of(server: Server) -> str:
    return f"Decisions in the time of one INCRBY, {name_of(server)}"


class Rivals:
    """A limiter and a redis-py client with the same settings of the connection."""

    def __init__(self, server: Server, stack: ExitStack) -> None:
        self.client = stack.enter_context(redis.Redis.from_url(server.url, **SETTINGS))
        self.client.flushdb()
        store = stack.enter_context(RedisStore(server.url))
        self.throttle = Throttled(quota=QUOTA, store=store)
        self.refusing = Throttled(quota="1/h", store=store, key_prefix="refusing")
        self.refusing.limit("key")
        self.throttle.limit("key")
        sock = socket.create_connection((HOST, server.port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = stack.enter_context(sock)
        plan = make_plan("token_bucket", Quota.parse(QUOTA))
        self.request = Wording(plan).asking("key", 1, NOW)

    def bare(self, _: str) -> None:
        """The script without a client: a ready request on a socket, its reply not even parsed."""
        self.sock.sendall(self.request)
        self.sock.recv(4096)

    def hundred(self, _: str) -> None:
        self.throttle.limit_many(HUNDRED)

    def pipeline(self, _: str) -> None:
        pipe = self.client.pipeline(transaction=False)
        for key, cost in HUNDRED:
            pipe.incrby(key, cost)
        pipe.execute()


HUNDRED = [(f"key{number}", 1) for number in range(100)]

#: Row -> ours, theirs, at least, rounds.
ROWS: dict[str, tuple[Callable[[Rivals], Batch], Callable[[Rivals], Batch], float, int]] = {
    "one thread": (
        lambda rivals: calls_of(rivals.throttle.limit, "key", CALLS),
        lambda rivals: calls_of(rivals.client.incrby, "counter", CALLS),
        1.2,
        100,
    ),
    "one thread, bare socket": (
        lambda rivals: calls_of(rivals.bare, "key", CALLS),
        lambda rivals: calls_of(rivals.client.incrby, "counter", CALLS),
        0,
        100,
    ),
    "refused, one key": (
        lambda rivals: calls_of(rivals.refusing.limit, "key", CALLS),
        lambda rivals: calls_of(rivals.client.incrby, "counter", CALLS),
        30,
        100,
    ),
    "16 threads": (
        lambda rivals: threads_of(rivals.throttle.limit, THREADS, SHARE),
        lambda rivals: threads_of(rivals.client.incrby, THREADS, SHARE),
        2.5,
        15,
    ),
    "limit_many of 100": (
        lambda rivals: calls_of(rivals.hundred, "", 5),
        lambda rivals: calls_of(rivals.pipeline, "", 5),
        0.65,
        40,
    ),
}


@PLACES
@pytest.mark.parametrize("row", ROWS)
def test_rates(benchmark: Any, measured: Measured, server: Server, place: str, row: str) -> None:
    ours, theirs, floor, rounds = ROWS[row]
    # Threads that share a core with the server mostly wait for their turn; a single one apart from
    # it is woken up for each reply, which takes longer than everything else.
    if (row, place) in (("16 threads", "one core"), ("one thread", "unpinned")):
        floor = 0
    with at(place, server), ExitStack() as stack:
        rivals = Rivals(server, stack)
        measured.compare(
            benchmark,
            table_of(server),
            row,
            place,
            ours=ours(rivals),
            base=theirs(rivals),
            floor=floor,
            rounds=rounds,
        )
        assert rivals.refusing.limit("key").limited


@PLACES
@pytest.mark.parametrize("tasks", [1, TASKS])
def test_tasks(benchmark: Any, measured: Measured, server: Server, place: str, tasks: int) -> None:
    """Against `redis.asyncio`."""
    client: Any = redis.asyncio.Redis.from_url(server.url, **SETTINGS)
    store = throttled_asyncio.RedisStore(server=server.url)
    throttle = throttled_asyncio.Throttled(quota=QUOTA, store=store)
    share = 20 if tasks > 1 else CALLS

    async def together(call: Any) -> float:
        async def calls() -> None:
            for _ in repeat(None, share):
                await call("key")

        start = perf_counter()
        await asyncio.gather(*(calls() for _ in range(tasks)))
        return (perf_counter() - start) / (tasks * share)

    with at(place, server), asyncio.Runner() as runner:
        runner.run(client.flushdb())
        measured.compare(
            benchmark,
            table_of(server),
            f"{tasks} asyncio tasks" if tasks > 1 else "1 asyncio task",
            place,
            ours=lambda: runner.run(together(throttle.limit)),
            base=lambda: runner.run(together(client.incrby)),
            floor=4.5 if tasks > 1 else 0,
            rounds=20 if tasks > 1 else 60,
        )
        runner.run(store.close())
        runner.run(client.aclose())
