"""Bad arguments: an error that names the value and what is right, before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from math import inf, nan
from typing import Any

import pytest

from tests.contract import KINDS, STORES, Kind, MakeRig, Rig
from tests.servers import free_port
from throttled import MemoryStore, Quota, Rate, Throttled, per_duration, per_sec
from throttled.algorithms.plan import ALGORITHMS
from throttled.asyncio import Throttled as AsyncThrottled
from throttled.asyncio.store import RedisStore as AsyncRedisStore
from throttled.exceptions import DataError, SetUpError, StateError, StoreUnavailableError
from throttled.store import RedisStore

LOCAL = [kind for kind in KINDS if not kind.real]
HUGE = 10**5000  # longer than Python prints


def each(*values: Any) -> list[Any]:
    """Values for `parametrize`, each with a name that can be printed."""
    return [
        pytest.param(v, id="huge" if type(v) is int and abs(v) == HUGE else repr(v)) for v in values
    ]


COSTS = each(-1, -HUGE, True, False, 1.0, 0.5, nan, inf, "1", None, [1])
COUNTS = each(0, -1, True, 1.5, "5", None, 10**9 + 1, HUGE)


@pytest.fixture(params=LOCAL, ids=str)
def rig(request: pytest.FixtureRequest, make_rig: MakeRig) -> Rig:
    return make_rig(request.param)


@pytest.mark.parametrize("key", ["", 0, 7, b"key", 1.5, True, ["key"], ("a", "b")], ids=repr)
def test_key(rig: Rig, key: Any) -> None:
    limiter = rig.limiter("5/m")
    for call in (limiter.limit, limiter.peek):
        with pytest.raises(DataError) as error:
            call(key)
        assert str(error.value) == f"Invalid key: {key!r}, must be a non-empty string."
    for made in (Throttled, AsyncThrottled):
        with pytest.raises(DataError, match="Invalid key: "):
            made(key=key)


def test_no_key_at_all(rig: Rig) -> None:
    limiter = rig.limiter("5/m")
    for call in (limiter.limit, limiter.peek):
        with pytest.raises(DataError, match=r"^Invalid key: None, must be a non-empty"):
            call()


def test_decorator_without_a_key() -> None:
    for made in (Throttled, AsyncThrottled):
        with pytest.raises(DataError, match=r"Invalid key: None.*key="):
            made()(print)
    with pytest.raises(DataError, match=r"Invalid key: <built-in function print>.*@Throttled\("):
        Throttled(print)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="Invalid key: None"), Throttled():
        pass


@pytest.mark.parametrize("cost", COSTS)
def test_cost(rig: Rig, cost: Any) -> None:
    limiter = rig.limiter("5/m")
    for call in (limiter.limit, limiter.peek):
        with pytest.raises(DataError) as error:
            call("key", cost)
        assert str(error.value).startswith("Invalid cost: ")
        assert str(error.value).endswith("must be an integer of 0 or more.")
        if isinstance(cost, int) and abs(cost) > 10**100:
            assert len(str(error.value)) < 200
        else:
            assert repr(cost) in str(error.value)
    for made in (Throttled, AsyncThrottled):
        with pytest.raises(DataError, match="Invalid cost: "):
            made(key="key", cost=cost)
    assert rig.dump(rig.plan("5/m"), "key") is None


def test_a_huge_cost_never_fits(rig: Rig) -> None:
    limiter = rig.limiter("5/m")
    for cost in (10**9 + 1, 2**53, 2**64, HUGE):
        assert limiter.limit("key", cost, 10).state.retry_after == inf
    assert limiter.limit("key", 5).allowed


@pytest.mark.parametrize("timeout", [nan, -0.5, -1.5, -2, -inf, "1", True, [1]], ids=repr)
def test_timeout(rig: Rig, timeout: Any) -> None:
    limiter = rig.limiter("5/m")
    with pytest.raises(DataError) as error:
        limiter.limit("key", 1, timeout)
    assert str(error.value) == (
        f"Invalid timeout: {timeout!r}, must be seconds of 0 or more, or -1 not to wait."
    )
    for made in (Throttled, AsyncThrottled):
        with pytest.raises(DataError, match="Invalid timeout: "):
            made(timeout=timeout)
    assert rig.dump(rig.plan("5/m"), "key") is None


@pytest.mark.parametrize("limit", COUNTS)
def test_limit_and_burst(limit: Any) -> None:
    with pytest.raises(DataError, match=r"^Invalid limit: .*must be a whole number from 1 to"):
        per_sec(limit)
    if limit is not None:
        with pytest.raises(DataError, match=r"^Invalid burst: .*must be a whole number from 1 to"):
            per_sec(5, burst=limit)


@pytest.mark.parametrize(
    "period",
    [
        timedelta(0),
        timedelta(seconds=-1),
        timedelta(microseconds=999),
        timedelta(days=367),
        60,
        1.5,
        None,
        "1s",
    ],
    ids=repr,
)
def test_period(period: Any) -> None:
    for make in (lambda: per_duration(period, 5), lambda: Rate(period, 5)):
        with pytest.raises(DataError) as error:
            make()
        assert repr(period) in str(error.value)
        assert "1 millisecond to 366 days" in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "fast",
        "5",
        "5/",
        "/s",
        "5/fortnight",
        "-5/s",
        "5.5/s",
        "0/s",
        "5/0s",
        "5/s burst",
        "5/s burst 0",
        "5 per",
        "5/400d",
        "5/s; 10/x",
        "1,000/s",
        ";",
        "٣/s",
    ],
)
def test_quota_text(text: str) -> None:
    for make in (
        lambda text: Throttled(quota=text),
        lambda text: AsyncThrottled(quota=text),
        Quota.parse,
    ):
        with pytest.raises(DataError) as error:
            make(text)
        shown = str(error.value)
        assert repr(text) in shown or "whole number from 1" in shown


@pytest.mark.parametrize("quota", [5, 5.0, b"5/s", [], timedelta(seconds=1), Rate(timedelta(1), 1)])
def test_quota_of_another_type(quota: Any) -> None:
    for made in (Throttled, AsyncThrottled):
        with pytest.raises(DataError) as error:
            made(quota=quota)
        assert repr(quota) in str(error.value)


@pytest.mark.parametrize("using", ["", "TOKEN_BUCKET", "leaky_bucket", 3, ["gcra"]], ids=repr)
def test_algorithm(using: Any) -> None:
    for made in (Throttled, AsyncThrottled):
        with pytest.raises(DataError) as error:
            made(using=using)
        assert repr(using) in str(error.value)
        assert all(name in str(error.value) for name in ALGORITHMS)


@pytest.mark.parametrize("prefix", ["", "{", "a{b}", 5, None], ids=repr)
def test_key_prefix(prefix: Any) -> None:
    for made in (Throttled, AsyncThrottled):
        with pytest.raises(DataError) as error:
            made(key_prefix=prefix)
        assert repr(prefix) in str(error.value)


@pytest.mark.parametrize("size", [0, -1, True, 1.5, "1024", None], ids=repr)
def test_max_size(size: Any) -> None:
    with pytest.raises(DataError) as error:
        MemoryStore(options={"MAX_SIZE": size})
    assert str(error.value) == f"Invalid MAX_SIZE: {size!r}, must be an integer of at least 1."


def test_memory_store_arguments() -> None:
    with pytest.raises(SetUpError, match=r"'MAXSIZE'.*'MAX_SIZE'"):
        MemoryStore(options={"MAXSIZE": 5})
    with pytest.raises(SetUpError, match="Invalid server: 'redis://localhost'"):
        MemoryStore("redis://localhost")
    with pytest.raises(SetUpError, match="Invalid clock: 5"):
        MemoryStore(clock=5)  # type: ignore[arg-type]


@pytest.mark.parametrize("store", ["redis://localhost", 5, MemoryStore, {}], ids=repr)
def test_store(store: Any) -> None:
    for made in (Throttled, AsyncThrottled):
        with pytest.raises(SetUpError, match="Invalid store: "):
            made(store=store)


def test_store_of_the_other_flavour() -> None:
    with pytest.raises(SetUpError, match=r"Invalid store: .*asyncio"):
        Throttled(store=AsyncRedisStore())  # type: ignore[arg-type]
    with pytest.raises(SetUpError, match=r"Invalid store: .*throttled\.asyncio"):
        AsyncThrottled(store=RedisStore())


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost",
        "http://localhost",
        "redis://localhost:port",
        "redis://h:99999999",
        5,
        "redis+sentinel://",
        "redis+cluster://",
    ],
    ids=repr,
)
@pytest.mark.parametrize("made", [RedisStore, AsyncRedisStore])
def test_url(made: Callable[..., Any], url: Any) -> None:
    with pytest.raises(SetUpError) as error:
        made(url)
    assert repr(url) in str(error.value) or str(url) in str(error.value)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_unreachable_server(asynchronous: bool) -> None:
    url = f"redis://127.0.0.1:{free_port()}/0"
    rig = Rig(Kind("nowhere", asynchronous), url=url)
    limiter = rig.limiter("5/m")
    for call in (limiter.limit, limiter.peek):
        with pytest.raises(StoreUnavailableError, match=url[8:-2]):
            call("key")
    rig.close()


# -- what stands in Redis already -----------------------------------------------------------------

DAMAGED = [
    "",
    "x",
    "1",
    "12 ",
    " 12",
    "1 2 3",
    "nan 1",
    "1 inf",
    "1 2 3 4 5",
    "1 2 3 x",
    "\0\xff",
    "  ",
]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("kind", [param for param in STORES if not param.values[0].memory])
def test_damaged_state_is_an_error_that_names_the_key(
    make_rig: MakeRig, kind: Kind, algorithm: str
) -> None:
    rig = make_rig(kind, algorithm)
    plan = rig.plan("5/m")
    spoilt: list[Callable[[str], Any]] = [
        lambda name: rig.raw.hset(name, "a", "b"),
        lambda name: rig.raw.sadd(name, "a"),
        lambda name: rig.raw.zadd(name, {"a": 1}),
        *[lambda name, text=text: rig.raw.set(name, text) for text in DAMAGED],
    ]
    lists = (
        ["1"],
        ["1", "2"],
        ["a", "b", "c"],
        ["a", "b", "c", "d"],
        ["1", "nan", "1"],
        ["1", "2", "x"],
        ["1", "2", "3", "4"],
        ["1", "2", "3", "x", "5"],
    )
    spoilt += [lambda name, items=items: rig.raw.rpush(name, *items) for items in lists]
    for number, spoil in enumerate(spoilt):
        key = f"key{number}"
        name = rig.name(plan, key)
        spoil(name)
        dumped = rig.raw.dump(name)
        for cost, patience in ((1, 0.0), (1, 60e6), (0, 0.0), (1, -inf)):
            with pytest.raises(StateError) as error:
                rig.run(plan, key, cost, patience)
            assert name in str(error.value)
        with pytest.raises(StateError):
            rig.adjust(plan, key, 1)
        replies = rig.wait(
            rig.store.run_many([(plan, "fine", 1, 0.0), (plan, key, 1, 0.0), (plan, "too", 1, 0.0)])
        )
        assert isinstance(replies[1], StateError)
        assert replies[0][2] == replies[2][2] == 4
        rig.reset(plan, "fine")
        rig.reset(plan, "too")
        assert rig.raw.dump(name) == dumped, "a bad state is left as it is"
        rig.reset(plan, key)
        assert rig.run(plan, key)[1] == 0


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_state_of_another_algorithm_is_no_state(make_rig: MakeRig, algorithm: str) -> None:
    """Their keys differ; were one copied over another, it would be an error."""
    rig = make_rig(Kind("fakeredis"), algorithm)
    plan = rig.plan("5/m")
    for name in ALGORITHMS:
        other = rig.plan("5/m", name)
        # Both windows are four numbers, and so is a bucket that has promised something.
        if plan.kind != other.kind and (
            "sliding_window_log" in (plan.kind, other.kind) or other.kind == "bucket"
        ):
            rig.run(other, "key")
            rig.raw.copy(rig.name(other, "key"), rig.name(plan, "key"), replace=True)
            with pytest.raises(StateError):
                rig.run(plan, "key")
