"""The names people import, and what importing them does."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import subprocess
import sys
from typing import Any

import pytest

import throttled
import throttled.asyncio

MODULES = ("exceptions", "rate_limiter", "store", "utils", "testing", "asyncio", "asyncio.store")


def test_both_namespaces_have_the_same_names() -> None:
    assert sorted(throttled.__all__) == sorted(throttled.asyncio.__all__)
    assert sorted(throttled.store.__all__) == sorted(throttled.asyncio.store.__all__)


@pytest.mark.parametrize("name", [None, *MODULES])
def test_all_is_right(name: str | None) -> None:
    module = importlib.import_module(f"throttled.{name}" if name else "throttled")
    listed = getattr(module, "__all__", None)
    if listed is None:
        return
    assert len(set(listed)) == len(listed)
    for each in listed:
        assert getattr(module, each) is not None


def test_what_the_namespaces_share_and_what_not() -> None:
    differing = {"Hook", "Reservation", "Throttled", "RedisStore", "load", "store"}
    for name in throttled.__all__:
        same = getattr(throttled, name) is getattr(throttled.asyncio, name)
        assert same != (name in differing), name


def parameters(call: Any) -> list[tuple[str, Any]]:
    return [
        (each.name, each.default)
        for each in inspect.signature(call).parameters.values()
        if each.name != "self"
    ]


@pytest.mark.parametrize(
    "name",
    [
        "__init__",
        "limit",
        "limit_many",
        "limit_all",
        "peek",
        "forecast",
        "reserve",
        "debit",
        "refund",
        "reset",
        "penalize",
        "wrap",
        "__call__",
    ],
)
def test_both_flavours_take_the_same_arguments(name: str) -> None:
    sync, async_ = throttled.Throttled, throttled.asyncio.Throttled
    assert parameters(getattr(sync, name)) == parameters(getattr(async_, name))


@pytest.mark.parametrize(
    "name",
    [
        "run",
        "run_many",
        "admit_all",
        "adjust",
        "adjust_all",
        "undo",
        "withdraw",
        "arrived",
        "reset",
        "reset_all",
        "close",
    ],
)
def test_both_redis_stores_take_the_same_arguments(name: str) -> None:
    sync = getattr(throttled.store.RedisStore, name)
    async_ = getattr(throttled.asyncio.store.RedisStore, name)
    assert (
        parameters(sync) == parameters(async_) == parameters(getattr(throttled.MemoryStore, name))
    )
    assert not inspect.iscoroutinefunction(sync)
    assert inspect.iscoroutinefunction(async_)


@pytest.mark.parametrize("name", ["bind", "decide_many", "health"])
def test_all_stores_decide_and_report_by_the_same_arguments(name: str) -> None:
    stores = throttled.MemoryStore, throttled.store.RedisStore, throttled.asyncio.store.RedisStore
    memory, sync, async_ = (parameters(getattr(store, name)) for store in stores)
    assert memory == sync == async_


def test_parameters_and_defaults_people_rely_on() -> None:
    throttle = throttled.Throttled
    assert parameters(throttle.limit)[:3] == [("key", None), ("cost", 1), ("timeout", None)]
    names = [name for name, _ in parameters(throttle.__init__)]
    assert names[:6] == ["key", "timeout", "using", "quota", "store", "cost"]
    assert {"key_prefix", "on_store_error", "hooks", "hold", "enforce", "exempt"} < {*names[6:]}
    plain = throttle()
    assert (plain.key, plain.timeout, plain.cost) == (None, -1, 1)
    assert plain.on_store_error == "raise"
    assert (plain.quota.limit, plain.quota.burst, plain.quota.period_us) == (60, 60, 60_000_000)
    assert repr(plain).startswith(
        "Throttled(using='token_bucket', quota='60/m', store=MemoryStore("
    )
    keyed = throttled.asyncio.Throttled(key="k", quota="5/s", using="gcra")
    assert repr(keyed).startswith("Throttled(key='k', using='gcra', quota='5/s', store=")


@pytest.mark.parametrize(
    "statement",
    [
        "from throttled import Throttled",
        "from throttled import RateLimiterType, Throttled, rate_limiter, store, utils",
        "from throttled import exceptions, rate_limiter",
        "from throttled.asyncio import RateLimiterType, Throttled, rate_limiter, store, utils",
        "from throttled.store import MemoryStore, RedisStore",
        "from throttled.store import ConnectionFactory, SentinelConnectionFactory",
        "from throttled.store import ClusterConnectionFactory",
        "from throttled.asyncio.store import ConnectionFactory, MemoryStore, RedisStore",
        "from throttled.exceptions import BaseThrottledError, DataError, LimitedError, SetUpError",
        "from throttled.exceptions import StoreUnavailableError",
        "from throttled.rate_limiter import per_sec, per_min, per_hour, per_day, per_week",
        "from throttled.rate_limiter import per_duration, Quota, Rate",
        "from throttled.utils import Benchmark",
        "from throttled.testing import FakeClock, disabled",
        "from throttled import Hook, HookContext, Key, Rule, Forecast",
        "from throttled.asyncio import Hook, HookContext, Key, Rule, Forecast",
        "from throttled.hooks import Event, Hook, HookContext",
        "from throttled.asyncio.hooks import Event, Hook, HookContext",
        "from throttled import MemoryStore, RedisStore, RateLimitResult, RateLimitState",
    ],
)
def test_documented_imports(statement: str) -> None:
    exec(statement, {})


def test_documented_names_of_the_algorithms() -> None:
    kinds = throttled.RateLimiterType
    for name in ("FIXED_WINDOW", "SLIDING_WINDOW", "TOKEN_BUCKET", "LEAKING_BUCKET", "GCRA"):
        assert kinds[name].value == name.lower()
        for using in (kinds[name], kinds[name].value, name.lower()):
            assert throttled.Throttled(using=using).limit(f"names {name} {using}").allowed


def test_errors_have_one_base() -> None:
    exceptions = throttled.exceptions
    for name in exceptions.__all__:
        assert issubclass(getattr(exceptions, name), exceptions.BaseThrottledError)
    assert issubclass(exceptions.DataError, ValueError)


def test_the_documented_first_call() -> None:
    """60 requests a minute by default; the reprs are what the documentation shows."""
    from throttled.testing import FakeClock

    throttle = throttled.Throttled(store=throttled.MemoryStore(clock=FakeClock()))
    state = "RateLimitState(limit=60, remaining=59, reset_after=1, retry_after=0)"
    assert repr(throttle.limit("key", 1)) == (
        f"RateLimitResult(limited=False, state={state}, source='memory')"
    )
    assert repr(throttle.peek("key")) == state
    refused = throttle.limit("key", 60)
    assert repr(refused) == (
        "RateLimitResult(limited=True, "
        "state=RateLimitState(limit=60, remaining=59, reset_after=1, retry_after=1), "
        "source='memory')"
    )


def test_a_result_is_true_whatever_it_says() -> None:
    throttle = throttled.Throttled(quota="1/m", store=throttled.MemoryStore())
    admitted, refused = throttle.limit("key"), throttle.limit("key")
    assert admitted
    assert refused
    assert (admitted.allowed, refused.allowed) == (True, False)


def test_importing_it_starts_nothing() -> None:
    """Neither redis, nor a thread, nor an event loop, nor a connection."""
    script = """
import sys, threading
import throttled, throttled.asyncio, throttled.store, throttled.asyncio.store, throttled.testing
throttled.Throttled(quota="5/s").limit("key")
loaded = [name for name in sys.modules if name.split(".")[0] in
          ("redis", "hiredis", "fakeredis", "rich", "trio")]
assert not loaded, loaded
assert threading.active_count() == 1, threading.enumerate()
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_without_the_redis_package_an_error_names_the_extra() -> None:
    script = """
import sys
sys.modules["redis"] = None
import throttled, throttled.asyncio
throttled.Throttled().limit("key")
for made in (throttled.store.RedisStore, throttled.asyncio.store.RedisStore):
    try:
        made()
    except throttled.exceptions.SetUpError as error:
        assert 'pip install "throttled-core[redis]"' in str(error), error
    else:
        raise AssertionError("made without redis")
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_limiter_made_at_import_works_in_any_loop() -> None:
    throttle = throttled.asyncio.Throttled(quota="2/m", store=throttled.MemoryStore())
    assert asyncio.run(throttle.limit("key")).allowed
    assert asyncio.run(throttle.limit("key")).allowed
    assert asyncio.run(throttle.limit("key")).limited


def test_a_limited_error_travels_between_processes() -> None:
    import copy
    import pickle

    throttle = throttled.Throttled(key="k", quota="1/m", store=throttled.MemoryStore())
    throttle.limit()
    with pytest.raises(throttled.exceptions.LimitedError) as raised, throttle:
        pass
    error = raised.value
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert str(twin) == str(error)
        assert twin.rate_limit_result == error.rate_limit_result
