"""Quotas: built, read from text, printed, refused."""

import copy
import dataclasses
import datetime
import math
import pickle
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from throttled import quota, rate_limiter
from throttled.exceptions import BaseThrottledError, DataError
from throttled.quota import MAX_LIMIT, Quota, Rate

EVAL = {"datetime": datetime, "Quota": Quota, "Rate": Rate}
counts = st.integers(1, MAX_LIMIT)
periods = st.one_of(
    st.timedeltas(quota.MIN_PERIOD, quota.MAX_PERIOD),
    st.integers(1, 366).map(lambda days: timedelta(days=days)),
    st.integers(1, 10**6).map(lambda thousandths: timedelta(milliseconds=thousandths)),
)
quotas = st.builds(Quota, st.builds(Rate, periods, counts), st.none() | counts)


@settings(deadline=None)
@given(quotas)
def test_the_printed_form_is_read_back(value: Quota) -> None:
    assert Quota.parse(str(value)) == value
    assert Quota.parse(str(value).upper()) == value
    assert value.period_us == value.rate.period / timedelta(microseconds=1)


@settings(deadline=None)
@given(quotas)
def test_equal_quotas_are_interchangeable(value: Quota) -> None:
    for twin in (copy.deepcopy(value), pickle.loads(pickle.dumps(value)), eval(repr(value), EVAL)):
        assert twin == value
        assert hash(twin) == hash(value)


@pytest.mark.parametrize(
    ("text", "seconds", "limit", "burst"),
    [
        ("100/s", 1, 100, 100),
        ("100/s burst 200", 1, 100, 200),
        ("100 per second", 1, 100, 100),
        ("5 per 10 minutes", 600, 5, 5),
        ("5/10min", 600, 5, 5),
        ("5/10m", 600, 5, 5),
        ("30/500ms", 0.5, 30, 30),
        ("1000/h", 3600, 1000, 1000),
        ("1_000_000/S", 1, 10**6, 10**6),
        ("  7 / 2 Days   BURST 9 ", 2 * 86400, 7, 9),
        ("1/sec", 1, 1, 1),
        ("1/seconds", 1, 1, 1),
        ("1/minute", 60, 1, 1),
        ("1/hr", 3600, 1, 1),
        ("1/2hours", 7200, 1, 1),
        ("1/day", 86400, 1, 1),
        ("1/w", 604800, 1, 1),
        ("1 per 52 weeks", 52 * 604800, 1, 1),
        ("1/366d", 366 * 86400, 1, 1),
        ("1/1500us", 0.0015, 1, 1),
        ("1\tper\nsecond", 1, 1, 1),
    ],
)
def test_text_forms(text: str, seconds: float, limit: int, burst: int) -> None:
    assert Quota.parse(text) == Quota(Rate(timedelta(seconds=seconds), limit), burst)


@pytest.mark.parametrize(
    ("given", "printed"),
    [
        ("100 per second", "100/s"),
        ("100/1000ms burst 100", "100/s"),
        ("5 per 10 minutes burst 8", "5/10m burst 8"),
        ("1/14days", "1/2w"),
        ("1/366d", "1/366d"),
        ("1/90s", "1/90s"),
        ("1/1500us", "1/1500us"),
    ],
)
def test_the_shortest_form_is_printed(given: str, printed: str) -> None:
    assert str(Quota.parse(given)) == printed


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "must look like"),
        ("100", "must look like"),
        ("/s", "must look like"),
        ("ten/s", "must look like"),
        ("-1/s", "must look like"),
        ("1.5/s", "must look like"),
        ("1/1.5s", "must look like"),
        ("1__0/s", "must look like"),
        ("١/s", "must look like"),
        ("1/s burst", "must look like"),
        ("1/s burst 2 burst 3", "must look like"),
        ("9" * 5000 + "/s", "must look like"),
        ("100/fortnight", "unknown unit 'fortnight', must be one of ms, s,"),
        ("0/s", "Invalid limit: 0, must be a whole number from 1 to 1000000000"),
        ("1000000001/s", "Invalid limit: 1000000001"),
        ("1/s burst 0", "Invalid burst: 0"),
        ("1/0s", "from 1 millisecond to 366 days"),
        ("1/999us", "from 1 millisecond to 366 days"),
        ("1/367d", "from 1 millisecond to 366 days"),
        ("1/99999999999999999999w", "from 1 millisecond to 366 days"),
        ("1,000/s", "without commas"),
        ("100/s; 1000/h", "one rule"),
        ("100/s, 1000/h", "one rule"),
    ],
)
def test_malformed_text_is_refused(text: str, says: str) -> None:
    with pytest.raises(DataError) as caught:
        Quota.parse(text)
    assert says in str(caught.value)
    assert text[:50] in str(caught.value) or "limit" in says or "burst" in says
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("value", [None, 100, b"100/s", ["100/s"], Quota.parse("1/s")])
def test_only_text_is_parsed(value: Any) -> None:
    with pytest.raises(DataError, match=r"must be text such as '100/s'"):
        Quota.parse(value)


@pytest.mark.parametrize(
    "value",
    [0, -1, MAX_LIMIT + 1, True, False, 1.0, "1", math.nan, pytest.param(10**5000, id="huge")],
)
def test_counts_out_of_range_are_refused(value: Any) -> None:
    with pytest.raises(DataError, match="Invalid limit"):
        quota.per_sec(value)
    with pytest.raises(DataError, match="Invalid limit"):
        Rate(timedelta(seconds=1), value)
    with pytest.raises(DataError, match="Invalid burst"):
        quota.per_sec(1, burst=value)
    with pytest.raises(DataError, match="Invalid burst"):
        dataclasses.replace(quota.per_sec(1), burst=value)


@pytest.mark.parametrize(
    "value",
    [timedelta(0), timedelta(microseconds=999), timedelta(days=-1), timedelta.max, 60, None],
)
def test_periods_out_of_range_are_refused(value: Any) -> None:
    with pytest.raises(DataError, match=r"Invalid period: .* must be a datetime.timedelta"):
        quota.per_duration(value, 1)


def test_a_rate_is_asked_for() -> None:
    value: Any = 100
    with pytest.raises(DataError, match="Invalid rate: 100, must be a Rate"):
        Quota(value)


def test_errors_are_value_errors() -> None:
    with pytest.raises(ValueError):
        Quota.parse("")
    with pytest.raises(BaseThrottledError):
        Quota.parse("")


def test_shortcuts() -> None:
    assert str(quota.per_sec(60)) == "60/s"
    assert str(quota.per_min(60, burst=120)) == "60/m burst 120"
    assert str(quota.per_hour(60)) == "60/h"
    assert str(quota.per_day(60, 1)) == "60/d burst 1"
    assert str(quota.per_week(60)) == "60/w"
    assert str(quota.per_duration(timedelta(minutes=2), limit=120, burst=150)) == "120/2m burst 150"


def test_frozen() -> None:
    value = quota.per_sec(1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        value.burst = 2  # type: ignore[misc]


def test_rate_limiter_offers_every_name() -> None:
    assert set(rate_limiter.__all__) >= set(quota.__all__)
    for name in quota.__all__:
        assert getattr(rate_limiter, name) is getattr(quota, name)
