"""The sliding window log takes as long with 70,000 entries as with 70, or not much longer."""

from __future__ import annotations

from contextlib import ExitStack
from itertools import count, repeat
from time import perf_counter
from typing import TYPE_CHECKING, Any

import pytest

from tests.benchmarks.measured import Batch, Measured, calls_of
from tests.benchmarks.test_server import name_of
from tests.servers import binaries
from throttled import MemoryStore, Quota, RedisStore, Throttled
from throttled.algorithms.plan import make_plan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.servers import Server

FEW, MANY = 70, 70_000
LOG = "sliding_window_log"
#: Every refusal is the server's own.
ASKING = {"LOCAL_DENY_SECONDS": 0}
TABLE = "The log with 70,000 entries in the window, to 70"


@pytest.fixture(
    params=["memory", *(pytest.param(name, marks=pytest.mark.server) for name in binaries())]
)
def place(
    request: pytest.FixtureRequest, server_named: Callable[[str], Server]
) -> Iterator[tuple[str, Callable[..., Any]]]:
    """The name of a place, and what makes stores there."""
    if request.param == "memory":
        yield "memory", MemoryStore
        return
    server = server_named(request.param)
    with ExitStack() as stack:
        with server.client() as client:
            client.flushdb()
        yield (
            name_of(server),
            lambda **clock: stack.enter_context(RedisStore(server.url, ASKING, **clock)),
        )


def fill(store: Any, key: str, number: int) -> None:
    """Make so many entries."""
    plan = make_plan(LOG, Quota.parse("1000000/h"))
    while number > 0:
        store.run_many([(plan, key, 1, 0.0)] * min(number, 1_000))
        number -= 1_000


def test_an_allowed_call(
    benchmark: Any, measured: Measured, place: tuple[str, Callable[..., Any]]
) -> None:
    name, make_store = place
    store = make_store()
    throttle = Throttled(using=LOG, quota="1000000/h", store=store)
    fill(store, "many", MANY)
    fresh = count()

    def few() -> float:
        key = f"few:{next(fresh)}"
        fill(store, key, FEW)
        return calls_of(throttle.limit, key, FEW)()

    measured.compare(
        benchmark,
        TABLE,
        "allowed",
        name,
        ours=calls_of(throttle.limit, "many", FEW),
        base=few,
        ceiling=2.0,
        rounds=40,
    )


def test_an_allowed_call_that_pushes_out_the_oldest(
    benchmark: Any, measured: Measured, place: tuple[str, Callable[..., Any]]
) -> None:
    name, make_store = place

    def steady(entries: int) -> Batch:
        # At every look at the clock, one entry leaves the window.
        clock = count(1e6, 60 / entries).__next__
        throttle = Throttled(using=LOG, quota="1000000/m", store=make_store(clock=clock))
        key = f"steady:{entries}"
        for _ in range(entries + 100):
            throttle.limit(key)
        state = throttle.peek(key)
        assert state.limit - state.remaining == pytest.approx(entries, abs=2)
        return calls_of(throttle.limit, key, 200)

    measured.compare(
        benchmark,
        TABLE,
        "allowed, the oldest leaves",
        name,
        ours=steady(MANY),
        base=steady(FEW),
        ceiling=2.0,
        rounds=40,
    )


def test_a_refused_call(
    benchmark: Any, measured: Measured, place: tuple[str, Callable[..., Any]]
) -> None:
    name, make_store = place
    store = make_store()

    def full(entries: int) -> Batch:
        fill(store, f"full:{entries}", entries)
        throttle = Throttled(using=LOG, quota=f"{entries}/h", store=store)
        assert throttle.limit(f"full:{entries}").limited
        return calls_of(throttle.limit, f"full:{entries}", 200)

    measured.compare(
        benchmark, TABLE, "refused", name, ours=full(MANY), base=full(FEW), ceiling=2.0
    )


# 65,536 entries just fill what memory has set aside for them.
@pytest.mark.parametrize("many", [MANY, 65_536], ids=["", "at the edge"])
def test_a_promise_given_back(
    benchmark: Any, measured: Measured, place: tuple[str, Callable[..., Any]], many: int
) -> None:
    name, make_store = place
    store = make_store()

    def promised(entries: int) -> Batch:
        key = f"promised:{entries}"
        fill(store, key, entries)
        plan = make_plan(LOG, Quota.parse(f"{entries}/h"))

        def batch() -> float:
            start = perf_counter()
            for _ in repeat(None, 100):
                ticket, wait, _, _ = store.run(plan, key, 1, 2**62)
                assert wait > 0
                store.withdraw(ticket)
            return (perf_counter() - start) / 100

        return batch

    measured.compare(
        benchmark,
        TABLE,
        "promised and given back" + (f", {many:,} entries" if many != MANY else ""),
        name,
        ours=promised(many),
        base=promised(FEW),
        ceiling=2.0,
    )
