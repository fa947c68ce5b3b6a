"""What a store keeps in this process after so many keys."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.contract import PATIENT
from throttled import Throttled
from throttled.asyncio import Throttled as AsyncThrottled
from throttled.asyncio import store as astore
from throttled.store import RedisStore

#: Calls in one `limit_many`.
BATCH = 1000
#: Every second call of a key is refused, so what is kept of refusals fills up too; also on a
#: machine that is busy for a while.
QUOTA = "1/m burst 1"
#: By then all is full that has a bound, and its dictionaries have grown as far as they will.
WARM = 30_000


def growth(url: str, asynchronous: bool, keys: int) -> int:
    """How many bytes more a store holds after so many further keys, each never seen before."""
    with _visitor(url, asynchronous) as visit:
        tracemalloc.start()
        try:
            visit(0, WARM)
            before = _held()
            visit(WARM, WARM + keys)
            return _held() - before
        finally:
            tracemalloc.stop()


def _held() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


@contextmanager
def _visitor(url: str, asynchronous: bool) -> Iterator[Callable[[int, int], None]]:
    """What calls the limit of each key in a range twice."""
    if not asynchronous:
        with RedisStore(url, options=PATIENT) as store:
            limit_many: Any = Throttled(quota=QUOTA, store=store, key_prefix="space").limit_many
            yield lambda first, last: _visit(limit_many, first, last)
        return
    with asyncio.Runner() as runner:
        astored = astore.RedisStore(url, options=PATIENT)
        athrottle = AsyncThrottled(quota=QUOTA, store=astored, key_prefix="aspace")
        alimit_many: Any = athrottle.limit_many
        yield lambda first, last: _visit(lambda calls: runner.run(alimit_many(calls)), first, last)
        runner.run(astored.aclose())


def _visit(limit_many: Callable[[list[tuple[str, int]]], Any], first: int, last: int) -> None:
    for start in range(first, last, BATCH):
        results = limit_many([(f"user:{number}", 1) for number in range(start, start + BATCH)] * 2)
        assert sum(result.allowed for result in results) == BATCH
