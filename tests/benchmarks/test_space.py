"""What a key takes, in memory and on a server."""

from __future__ import annotations

import gc
import tracemalloc
from typing import TYPE_CHECKING

import pytest

from tests.benchmarks.measured import ALGORITHMS, Measured
from tests.benchmarks.test_server import name_of
from throttled import MemoryStore, Quota, RedisStore, Throttled
from throttled.algorithms.plan import make_plan

if TYPE_CHECKING:
    from tests.servers import Server

KEYS = 100_000
ENTRIES = 10_000
BUCKETS = ("token_bucket", "leaking_bucket", "gcra")
LOG = "sliding_window_log"
TABLE = "Bytes a key"
ENTRY = f"an entry of the log, of {ENTRIES:,}"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_bytes_in_memory(measured: Measured, algorithm: str) -> None:
    """One call each of 100,000 keys: everything the store has taken since, by the key."""
    keys = [f"user:{number}" for number in range(KEYS)]
    store = MemoryStore(options={"MAX_SIZE": KEYS})
    throttle = Throttled(using=algorithm, quota="60/h", store=store)
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for key in keys:
            throttle.limit(key)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(store) == KEYS
    ceiling = 450 if algorithm in BUCKETS else None
    measured.hold(TABLE, algorithm, "memory", (after - before) / KEYS, ceiling)


@pytest.mark.server
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_bytes_on_a_server(measured: Measured, server: Server, algorithm: str) -> None:
    """`MEMORY USAGE` of `user:1`, its state at its longest: fresh, used up, and with promises."""
    most = 0
    with server.client() as client, RedisStore(server=server.url) as store:
        for text in ("60/m", "7/s", "100/s burst 200", "1000000/d", "1/w"):
            client.flushdb()
            plan = make_plan(algorithm, Quota.parse(text))
            key = plan.prefix + "{user:1}"
            costs = [1, min(plan.capacity - 1, 10_000), 1, 1]
            for cost in costs:
                if cost and (algorithm != LOG or not client.exists(key)):
                    store.run(plan, "user:1", cost, 2.0**62)
                    most = max(most, client.memory_usage(key, samples=0))
    ceiling = None if algorithm == LOG else 176
    measured.hold(TABLE, algorithm, name_of(server), most, ceiling)


@pytest.mark.server
def test_bytes_of_an_entry_of_the_log(measured: Measured, server: Server) -> None:
    plan = make_plan(LOG, Quota.parse("1000000/d"))
    with server.client() as client, RedisStore(server=server.url) as store:
        client.flushdb()
        for _ in range(ENTRIES // 100):
            store.run_many([(plan, "user:1", 1, 0.0)] * 100)
        used = client.memory_usage(plan.prefix + "{user:1}", samples=0)
    measured.hold(TABLE, ENTRY, name_of(server), used / ENTRIES, 40)


def test_bytes_of_an_entry_of_the_log_in_memory(measured: Measured) -> None:
    throttle = Throttled(using=LOG, quota="1000000/d", store=MemoryStore())
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(ENTRIES):
            throttle.limit("user:1")
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    measured.hold(TABLE, ENTRY, "memory", (after - before) / ENTRIES, None)
