"""Measure how many decisions a second a store takes, and how long each takes: `measure`."""

from __future__ import annotations

import asyncio
from array import array
from contextlib import suppress
from dataclasses import dataclass
from itertools import cycle, islice, product
from math import ceil
from threading import Barrier, BrokenBarrierError, Thread
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import urlsplit, urlunsplit

import throttled.asyncio as aio
from throttled import MemoryStore, RedisStore, Throttled
from throttled.exceptions import BaseThrottledError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from throttled.algorithms.plan import Plan
    from throttled.base import BaseThrottled

Flavour = Literal["sync", "async"]

#: The word for a store in memory.
MEMORY: Final = "memory"
#: What the keys begin with.
PREFIX: Final = "throttled-bench"

_WARM_UP: Final = 50  # calls that are not measured: connecting, loading the script
_AT_ONCE: Final = 500  # keys removed in one round trip
#: A slow call is a measurement, and no failure: seconds until it is one.
_PATIENT: Final = {"DECISION_TIMEOUT": 10.0}


@dataclass(frozen=True, slots=True)
class Bench:
    """What to measure: every store with every algorithm at every concurrency."""

    stores: tuple[str, ...]
    using: tuple[str, ...]
    concurrency: tuple[int, ...]
    flavour: Flavour
    #: Calls of each measurement.
    calls: int
    #: How many keys they go to, in turn.
    keys: int
    quota: str


@dataclass(frozen=True, slots=True)
class Cell:
    """One measurement. Latencies are in µs, by nearest rank."""

    store: str
    using: str
    flavour: Flavour
    concurrency: int
    calls: int
    keys: int
    refused: int
    #: From the first call to the end of the last one.
    seconds: float
    ops_per_s: float
    p50_us: float
    p99_us: float
    p999_us: float


class _Tally:
    """What is measured at one concurrency, filled in by the workers."""

    def __init__(self, bench: Bench, concurrency: int) -> None:
        calls = bench.calls
        self.concurrency = concurrency
        self.keys = [f"key:{number}" for number in range(bench.keys)]
        #: The numbers of the calls that each worker makes.
        workers = min(concurrency, calls)
        self.shares = [range(number, calls, workers) for number in range(workers)]
        # Each place is written once, by whoever makes the call: nobody waits for anybody.
        self.took = array("q", bytes(8 * calls))
        self.refused: list[int] = []
        self.failures: list[BaseException] = []
        self.wall = 0

    def cell(self, bench: Bench, store: str, using: str) -> Cell:
        took = sorted(self.took)
        seconds = max(self.wall, 1) / 1e9
        return Cell(
            label_of(store),
            using,
            bench.flavour,
            self.concurrency,
            bench.calls,
            bench.keys,
            sum(self.refused),
            seconds,
            bench.calls / seconds,
            *[took[ceil(len(took) * share) - 1] / 1e3 for share in (0.5, 0.99, 0.999)],
        )


def label_of(store: str) -> str:
    """A store's URL without what is secret in it."""
    parts = urlsplit(store)
    if not parts.netloc:
        return store
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def measure(bench: Bench, told: Callable[[str], None]) -> list[Cell]:
    """Take all measurements; `told` hears of each that is over.

    All keys are removed from the stores again, also if something fails. Raises what the library
    raises for a quota or a store that cannot be.
    """
    cells: list[Cell] = []
    if bench.flavour == "async":
        asyncio.run(_measure_async(bench, told, cells))
    else:
        _measure_sync(bench, told, cells)
    return cells


def _measure_sync(bench: Bench, told: Callable[[str], None], cells: list[Cell]) -> None:
    for url in bench.stores:
        shared = None if url == MEMORY else RedisStore(server=url, options=_PATIENT)
        try:
            for using, concurrency in product(bench.using, bench.concurrency):
                store = MemoryStore() if shared is None else shared
                throttle = Throttled(using=using, quota=bench.quota, store=store, key_prefix=PREFIX)
                tally = _Tally(bench, concurrency)
                try:
                    for key in islice(cycle(tally.keys), _WARM_UP):
                        throttle.limit(key)
                    _by_threads(throttle, tally)
                except BaseException:
                    with suppress(BaseThrottledError):  # the first error is the one to hear of
                        for names in _names(throttle, tally.keys):
                            store.reset_all(names)
                    raise
                for names in _names(throttle, tally.keys):
                    store.reset_all(names)
                cells.append(tally.cell(bench, url, using))
                told(f"{using} at {concurrency}")
        finally:
            if shared is not None:
                shared.close()


def _by_threads(throttle: Throttled, tally: _Tally) -> None:
    """Make the calls of a tally, each worker in a thread of its own."""
    over = False
    begins: list[int] = []
    together = Barrier(len(tally.shares), action=lambda: begins.append(perf_counter_ns()))

    def work(share: range) -> None:
        limit, keys, took, now = throttle.limit, tally.keys, tally.took, perf_counter_ns
        refused = 0
        try:
            together.wait()
            for index in share:
                if over:
                    return
                begin = now()
                result = limit(keys[index % len(keys)])
                took[index] = now() - begin
                refused += result.limited
        except BrokenBarrierError:
            return
        except BaseException as error:
            tally.failures.append(error)
        tally.refused.append(refused)

    threads = [Thread(target=work, args=(share,), daemon=True) for share in tally.shares]
    started: list[Thread] = []
    try:
        for thread in threads:
            thread.start()
            started.append(thread)
        for thread in threads:
            thread.join()
        tally.wall = perf_counter_ns() - begins[0]
    finally:
        over = True  # interrupted, or there are no more threads to be had
        together.abort()
        for thread in started:
            thread.join()
    if tally.failures:
        raise tally.failures[0]


async def _measure_async(bench: Bench, told: Callable[[str], None], cells: list[Cell]) -> None:
    for url in bench.stores:
        shared = None if url == MEMORY else aio.RedisStore(server=url, options=_PATIENT)
        try:
            for using, concurrency in product(bench.using, bench.concurrency):
                throttle = aio.Throttled(
                    using=using,
                    quota=bench.quota,
                    store=MemoryStore() if shared is None else shared,
                    key_prefix=PREFIX,
                )
                tally = _Tally(bench, concurrency)
                try:
                    for key in islice(cycle(tally.keys), _WARM_UP):
                        await throttle.limit(key)
                    await _by_tasks(throttle, tally)
                except BaseException:
                    with suppress(BaseThrottledError):
                        await _removed(throttle, tally.keys, shared)
                    raise
                await _removed(throttle, tally.keys, shared)
                cells.append(tally.cell(bench, url, using))
                told(f"{using} at {concurrency}")
        finally:
            if shared is not None:
                await shared.close()


async def _by_tasks(throttle: aio.Throttled, tally: _Tally) -> None:
    """The same by tasks."""

    async def work(share: range) -> None:
        limit, keys, took, now = throttle.limit, tally.keys, tally.took, perf_counter_ns
        refused = 0
        for index in share:
            begin = now()
            result = await limit(keys[index % len(keys)])
            took[index] = now() - begin
            refused += result.limited
        tally.refused.append(refused)

    begin = perf_counter_ns()
    tasks = [asyncio.ensure_future(work(share)) for share in tally.shares]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    tally.wall = perf_counter_ns() - begin


async def _removed(throttle: aio.Throttled, keys: Sequence[str], store: Any) -> None:
    if store is not None:
        for names in _names(throttle, keys):
            await store.reset_all(names)


def _names(throttle: BaseThrottled[Any], keys: Sequence[str]) -> Iterator[list[tuple[Plan, str]]]:
    """All that was written, in portions."""
    assert throttle._terms is not None
    plans = throttle._terms.plan.joint.members
    names = ((plan, key) for key in keys for plan in plans)
    while portion := list(islice(names, _AT_ONCE)):
        yield portion
