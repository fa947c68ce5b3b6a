"""What a decision in memory costs.

One thread that never waits is timed by the processor time of the process: other processes make it
last longer, but hardly cost it more. Threads are timed by the wall, for what they lose is waiting.
"""

from __future__ import annotations

import asyncio
import threading
from itertools import cycle, islice, repeat
from time import process_time
from typing import TYPE_CHECKING, Any

import pytest

from tests.benchmarks.measured import (
    ALGORITHMS,
    RULES,
    Batch,
    Measured,
    calls_of,
    plenty,
    threads_of,
)
from throttled import MemoryStore, Throttled
from throttled import asyncio as throttled_asyncio

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Batches of about a millisecond: few of them are interrupted by other processes, and both sides
#: of a ratio as often.
CALLS = 1_000
COUNTS = 5_000
TABLE = "Decisions in memory"
KEYS = [f"user:{number}" for number in range(100_000)]
THREADS = 8

CEILINGS = dict.fromkeys(ALGORITHMS, 5.0) | {"sliding_window": 6.0, "sliding_window_log": 8.0}


def counter() -> Batch:
    """The least that a limiter could do: count under a lock."""
    d, k, lock = {"key": 0}, "key", threading.Lock()

    def batch() -> float:
        start = process_time()
        for _ in repeat(None, COUNTS):
            with lock:
                d[k] += 1
        return (process_time() - start) / COUNTS

    return batch


def hot(algorithm: str) -> Batch:
    """Allowed calls with one key."""
    throttle = Throttled(using=algorithm, quota=plenty(algorithm), store=MemoryStore())
    batch = calls_of(throttle.limit, "key", CALLS, process_time)
    assert throttle.limit("key").allowed
    return batch


def rotating(throttle: Throttled) -> Batch:
    """Calls with 100,000 keys in turns, all of which have been seen."""
    limit = throttle.limit
    for key in KEYS:
        limit(key)
    keys = cycle(KEYS)

    def batch() -> float:
        some = list(islice(keys, 2 * CALLS))
        start = process_time()
        for key in some:
            limit(key)
        return (process_time() - start) / len(some)

    return batch


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_allowed_call(benchmark: Any, measured: Measured, algorithm: str) -> None:
    measured.compare(
        benchmark,
        TABLE,
        algorithm,
        "allowed, to a counter",
        ours=hot(algorithm),
        base=counter(),
        ceiling=CEILINGS[algorithm],
        rounds=150,
    )


@pytest.mark.parametrize("algorithm", RULES)
def test_a_refused_call(benchmark: Any, measured: Measured, algorithm: str) -> None:
    throttle = Throttled(using=algorithm, quota="1/h", store=MemoryStore())
    throttle.limit("key")
    refused = calls_of(throttle.limit, "key", CALLS, process_time)
    measured.compare(
        benchmark,
        TABLE,
        algorithm,
        "refused, to allowed",
        ours=refused,
        base=hot(algorithm),
        ceiling=1.0,
        rounds=100,
    )
    assert throttle.limit("key").limited


@pytest.mark.parametrize("algorithm", RULES)
def test_many_keys(benchmark: Any, measured: Measured, algorithm: str) -> None:
    store = MemoryStore(options={"MAX_SIZE": len(KEYS)})
    throttle = Throttled(using=algorithm, quota=plenty(algorithm), store=store)
    measured.compare(
        benchmark,
        TABLE,
        algorithm,
        "100,000 keys, to one",
        ours=rotating(throttle),
        base=hot(algorithm),
        ceiling=1.5,
        rounds=200,
    )
    assert len(store) == len(KEYS)


@pytest.mark.parametrize("algorithm", RULES)
def test_every_call_evicts(benchmark: Any, measured: Measured, algorithm: str) -> None:
    store = MemoryStore(options={"MAX_SIZE": len(KEYS) // 2})
    # A quota that refills so slowly that no key is as if never seen when its turn to go has come.
    throttle = Throttled(using=algorithm, quota="1000/h", store=store)
    evicting = rotating(throttle)
    measured.compare(
        benchmark,
        TABLE,
        algorithm,
        "evicting, to one key",
        ours=evicting,
        base=hot(algorithm),
        ceiling=3.0,
        rounds=200,
    )
    before = store.evicted
    for _ in range(10):
        evicting()
    assert store.evicted - before > 0.99 * 10 * 2 * CALLS


@pytest.mark.parametrize("algorithm", RULES)
def test_eight_threads_on_one_key(benchmark: Any, measured: Measured, algorithm: str) -> None:
    throttle = Throttled(using=algorithm, quota=plenty(algorithm), store=MemoryStore())
    limit = throttle.limit

    measured.compare(
        benchmark,
        TABLE,
        algorithm,
        "8 threads, to one",
        ours=threads_of(limit, THREADS, 20 * CALLS // THREADS),
        base=threads_of(limit, 1, 20 * CALLS),
        ceiling=1.5,
        rounds=8,
    )
    if algorithm != "sliding_window_log":
        return
    # Nothing was lost on the way: whatever was asked is in the log.
    state = throttle.peek("key")
    assert (state.limit - state.remaining) % (20 * CALLS) == 0


@pytest.mark.parametrize("algorithm", RULES)
def test_the_async_call(benchmark: Any, measured: Measured, algorithm: str) -> None:
    throttle = throttled_asyncio.Throttled(
        using=algorithm, quota=plenty(algorithm), store=MemoryStore()
    )

    async def calls(numbers: Iterable[None]) -> float:
        limit = throttle.limit
        start = process_time()
        for _ in numbers:
            await limit("key")
        return (process_time() - start) / CALLS

    with asyncio.Runner() as runner:
        measured.compare(
            benchmark,
            TABLE,
            algorithm,
            "async, to sync",
            ours=lambda: runner.run(calls(repeat(None, CALLS))),
            base=hot(algorithm),
            ceiling=1.5,
            rounds=100,
        )
