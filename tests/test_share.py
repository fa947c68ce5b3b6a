"""`"local"` in several processes: what their shares of a quota admit together."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.failing import FailingStore
from throttled import Throttled
from throttled.algorithms.plan import ALGORITHMS
from throttled.exceptions import DataError
from throttled.quota import MAX_PERIOD, Quota
from throttled.store.policy import share
from throttled.testing import FakeClock


@pytest.mark.parametrize(
    ("quota", "n", "part"),
    [
        ("100/s burst 200", 1, "100/s burst 200"),
        ("100/s burst 200", 4, "25/s burst 50"),
        ("100/s burst 2", 4, "25/s burst 1"),
        ("15/s", 8, "1/s"),
        ("5/s", 8, "1/2s"),  # 8 in 2 s of 10
        ("5/s burst 16", 8, "1/2s burst 2"),
        ("1/m", 7, "1/7m"),
        ("1/100d", 3, "1/300d"),
        ("1/366d", 5, "1/366d"),  # no longer period can be
        ("1/ms", 10**9, "1/1000000s"),
        ("1/366d", 10**18, "1/366d"),
    ],
)
def test_the_part_of_a_quota(quota: str, n: int, part: str) -> None:
    assert share(Quota.parse(quota), n) == Quota.parse(part)


@pytest.mark.parametrize("bad", [0, -1, 1.5, True, "2", None])
def test_a_share_is_a_whole_number_of_at_least_one(bad: Any) -> None:
    with pytest.raises(DataError, match=r"^Invalid LOCAL_SHARE: "):
        share(Quota.parse("1/s"), bad)
    store = FailingStore()
    store.local_share = bad
    with pytest.raises(DataError, match=r"^Invalid LOCAL_SHARE: "):
        Throttled(store=store, on_store_error="local")


@given(
    limit=st.integers(1, 10**9),
    burst=st.integers(1, 10**9),
    period=st.sampled_from(["ms", "s", "7m", "w", "366d"]),
    n=st.integers(1, 2000),
)
def test_shares_never_add_up_to_more(limit: int, burst: int, period: str, n: int) -> None:
    quota = Quota.parse(f"{limit}/{period} burst {burst}")
    part = share(quota, n)
    if part.rate.period < MAX_PERIOD:
        assert n * part.limit * quota.period_us <= limit * part.period_us, "the rate"
    periods, rest = divmod(part.period_us, quota.period_us)
    if not rest:
        assert n * part.limit <= limit * periods or part.rate.period == MAX_PERIOD
    assert n * part.burst <= max(burst, n)


@given(
    algorithm=st.sampled_from(list(ALGORITHMS)),
    limit=st.integers(1, 12),
    burst=st.integers(1, 12),
    n=st.integers(1, 6),
    steps=st.lists(
        st.tuples(st.integers(0, 5), st.integers(1, 3), st.sampled_from([0, 0.3, 1, 2.5, 7])),
        max_size=60,
    ),
)
def test_processes_together_stay_within_the_quota(
    algorithm: str, limit: int, burst: int, n: int, steps: list[tuple[int, int, float]]
) -> None:
    clock = FakeClock(1_700_000_000.3)
    parts = []
    for _ in range(n):
        store = FailingStore(clock)
        store.fail()
        store.local_share = n
        quota = f"{limit}/2s burst {burst}"
        parts.append(Throttled(using=algorithm, quota=quota, store=store, on_store_error="local"))
    taken: list[tuple[float, int]] = []
    for process, cost, pause in steps:
        clock.advance(pause)
        asking = parts if pause else [parts[process % n]]
        taken += [(clock.now, cost) for part in asking if part.limit("key", cost).allowed]
    periods = 1 if limit >= n else -(-n // limit)
    span, most = 2.0 * periods, limit * periods
    for began, _ in taken:
        if algorithm == "sliding_window_log":
            assert sum(cost for at, cost in taken if began <= at < began + span) <= most
        elif algorithm.endswith("window"):
            edge = began // span * span
            assert sum(cost for at, cost in taken if edge <= at < edge + span) <= most
        else:
            for end, _ in taken:
                inside = sum(cost for at, cost in taken if began <= at <= end)
                assert inside <= max(burst, n) + limit * max(end - began, 0) / 2 + 1e-6
