"""What it costs to keep several rules at once, next to keeping one of them."""

from __future__ import annotations

from contextlib import ExitStack
from time import process_time
from typing import TYPE_CHECKING, Any

import pytest

from tests.benchmarks.measured import Batch, Measured, calls_of
from tests.benchmarks.test_server import SETTINGS, at, name_of
from throttled import MemoryStore, RedisStore, Rule, Throttled

if TYPE_CHECKING:
    from tests.servers import Server

PLENTY = "1000000000"
#: The rules, and which of the algorithms they are compared with.
RULES: dict[str, tuple[Any, str]] = {
    "two buckets": (f"{PLENTY}/s; {PLENTY}/h", "token_bucket"),
    "two fixed windows": (f"{PLENTY}/s; {PLENTY}/h", "fixed_window"),
    "two sliding windows": (f"{PLENTY}/m; {PLENTY}/h", "sliding_window"),
    "two logs": ("1000000/d; 1000000/366d", "sliding_window_log"),
    "a bucket and a fixed window": (
        [Rule(f"{PLENTY}/s"), Rule(f"{PLENTY}/h", using="fixed_window")],
        "token_bucket",
    ),
    "three buckets": (f"{PLENTY}/s; {PLENTY}/m; {PLENTY}/h", "token_bucket"),
}
#: Without an aim on a server: a third rule, and logs, which are looked at before they are written.
DEARER = ("three buckets", "two logs")
HOLD = "a bucket that heeds penalties"


def limiter(name: str, store: Any) -> tuple[Throttled, Throttled]:
    """Several rules, and one of them."""
    quota, using = RULES.get(name, (f"{PLENTY}/s", "token_bucket"))
    several = Throttled(
        quota=quota, using=using, store=store, hold=name == HOLD, key_prefix="several"
    )
    plenty = "1000000/d" if using == "sliding_window_log" else f"{PLENTY}/h"
    return several, Throttled(quota=plenty, using=using, store=store)


def batches(name: str, store: Any, calls: int, clock: Any = None) -> tuple[Batch, Batch]:
    """Calls of several rules, and of one."""
    more = () if clock is None else (clock,)
    several, one = (calls_of(each.limit, "key", calls, *more) for each in limiter(name, store))
    return several, one


@pytest.mark.parametrize("name", [*RULES, HOLD])
def test_in_memory(benchmark: Any, measured: Measured, name: str) -> None:
    several, one = batches(name, MemoryStore(), 1_000, process_time)
    measured.compare(
        benchmark,
        "Several rules, to one of them",
        name,
        "in memory",
        ours=several,
        base=one,
        ceiling=1.6 if name.startswith(("two", "a bucket and")) else None,
        rounds=100,
    )


@pytest.mark.server
@pytest.mark.parametrize("name", [*RULES, HOLD])
@pytest.mark.parametrize("place", ["unpinned", "one core"])
def test_on_a_server(
    benchmark: Any, measured: Measured, server: Server, name: str, place: str
) -> None:
    with at(place, server), ExitStack() as stack:
        store = stack.enter_context(RedisStore(server.url))
        with server.client(**SETTINGS) as client:
            client.flushdb()
        several, one = batches(name, store, 50)
        measured.compare(
            benchmark,
            "Several rules, to one of them",
            name,
            f"{name_of(server)}, {place}",
            ours=several,
            base=one,
            # With client and server on one core there is next to nothing to wait for.
            ceiling=1.15 if name not in DEARER and place == "unpinned" else None,
            rounds=150,
        )


@pytest.mark.parametrize("name", ["two buckets"])
def test_refused_in_memory(benchmark: Any, measured: Measured, name: str) -> None:
    store = MemoryStore()
    several = Throttled(quota="1/h; 1000/d", store=store, key_prefix="several")
    one = Throttled(quota="1/h", store=store)
    several.limit("key")
    one.limit("key")
    measured.compare(
        benchmark,
        "Several rules, to one of them",
        name,
        "in memory, refused",
        ours=calls_of(several.limit, "key", 1_000, process_time),
        base=calls_of(one.limit, "key", 1_000, process_time),
        rounds=100,
    )
