"""Quotas that change while they are in use: set on the instance, or given by a callable."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.contract import STORES, MakeRig, Rig
from tests.reserving import BUCKETS, RULES, Face, any_rig, face, rig
from throttled import MemoryStore, Throttled
from throttled.exceptions import DataError, LimitedError
from throttled.quota import Rule, per_min
from throttled.testing import FakeClock

__all__ = ["any_rig", "rig"]


@pytest.fixture(params=RULES)
def algorithm(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Tariff:
    """A limiter and how to change its quota."""

    def __init__(self, limiter: Face, change: Callable[[Any], None]) -> None:
        self.limiter = limiter
        self.change = change


def set_on_the_instance(rig: Rig, quota: Any) -> Tariff:
    limiter = face(rig, quota)

    def change(quota: Any) -> None:
        limiter.throttled.quota = quota

    return Tariff(limiter, change)


def given_by_a_callable(rig: Rig, quota: Any) -> Tariff:
    """Asked each time, so that no time has to pass."""
    current = [quota]

    async def later(key: str) -> Any:
        return current[0]

    now = lambda key: current[0]  # noqa: E731
    limiter = face(rig, later if rig.kind.asynchronous else now, quota_ttl=0)

    def change(quota: Any) -> None:
        current[0] = quota

    return Tariff(limiter, change)


@pytest.fixture(params=[set_on_the_instance, given_by_a_callable], ids=lambda way: way.__name__)
def make(request: pytest.FixtureRequest) -> Any:
    return request.param


Make = Callable[[Rig, Any], Tariff]


def test_a_higher_limit_applies_at_once_to_what_was_counted(rig: Rig, make: Make) -> None:
    tariff = make(rig, "4/m")
    limiter = tariff.limiter
    assert limiter.limit("key", 4).allowed
    refused = limiter.limit("key")
    assert refused.limited
    tariff.change("10/m")
    state = limiter.peek("key")
    assert state.limit == 10
    if rig.algorithm in BUCKETS:
        # What it holds stays; from now on it fills faster, and higher.
        assert state.remaining == 0
        assert (refused.state.retry_after, state.retry_after) == (15, 6)
        rig.clock.advance(60)
        assert limiter.free() == 10
    else:
        assert state.remaining == 6
        assert limiter.limit("key", 6).allowed
        assert limiter.limit("key").limited


def test_a_lower_limit_applies_at_once_to_what_was_counted(rig: Rig, make: Make) -> None:
    tariff = make(rig, "10/m")
    limiter = tariff.limiter
    assert limiter.limit("key", 3).allowed
    tariff.change("5/m")
    # A bucket keeps what it holds, as far as it still can; the others what they have counted.
    assert limiter.free() == (5 if rig.algorithm in BUCKETS else 2)
    assert limiter.peek("key", 6).retry_after == float("inf")
    tariff.change("2/m")
    assert limiter.free() == (2 if rig.algorithm in BUCKETS else 0)
    tariff.change("10/m")
    # Looking has changed nothing.
    assert limiter.free() == 7
    limiter.drain()
    assert limiter.limit("key").limited


def test_a_burst_that_changes_applies_at_once(make_rig: MakeRig, make: Make) -> None:
    for kind in STORES:
        rig = make_rig(kind.values[0], "gcra")
        tariff = make(rig, "10/m burst 8")
        limiter = tariff.limiter
        limiter.limit("key", 3)
        tariff.change("10/m burst 2")
        assert (limiter.free(), limiter.peek("key").limit) == (2, 2)
        limiter.limit("key", 2)
        tariff.change("10/m burst 20")
        assert (limiter.free(), limiter.peek("key").limit) == (0, 20)
        rig.clock.advance(120)
        assert limiter.limit("key", 20).allowed
        assert limiter.limit("key").limited


def test_no_refusal_of_a_moment_ago_outlives_a_raise(rig: Rig, make: Make) -> None:
    """Stores remember refusals for a while; those of another quota do not count."""
    tariff = make(rig, "4/m")
    tariff.limiter.limit("key", 4)
    assert [tariff.limiter.limit("key", 3).limited for _ in range(3)] == [True] * 3
    tariff.change("4000/m burst 4000")
    rig.clock.advance(0.05)
    assert tariff.limiter.limit("key", 3).allowed


def test_what_is_reserved_is_settled_under_another_quota(rig: Rig, make: Make) -> None:
    tariff = make(rig, "10/m")
    held = tariff.limiter.reserve("key", 8)
    tariff.change("20/m")
    free = tariff.limiter.free()
    held.settle(3)
    assert tariff.limiter.free() == free + 5
    assert free == (2 if rig.algorithm in BUCKETS else 12)


def test_rules_may_come_and_go(any_rig: Rig, make: Make) -> None:
    tariff = make(any_rig, "10/m")
    limiter = tariff.limiter
    limiter.limit("key", 4)
    tariff.change([Rule("10/m"), Rule("20/h", using="sliding_window_log")])
    result = limiter.limit("key", 2)
    assert [state.remaining for state in result.states] == [4, 18]
    tariff.change("20/h; 10/m")
    result = limiter.limit("key", 0)
    # By another algorithm the hour begins anew; the minute goes on.
    assert [state.remaining for state in result.states] == [20, 4]
    tariff.change(per_min(10))
    assert limiter.free() == 4


def test_all_that_a_quota_may_be_can_be_set(any_rig: Rig) -> None:
    limiter = face(any_rig, "1/m")
    throttle = limiter.throttled
    for quota, limits in [
        ("5/m", [5]),
        ("5/m; 9/h", [5, 9]),
        (per_min(7), [7]),
        (Rule("8/m", using="fixed_window"), [8]),
        ([per_min(7), "9/h"], [7, 9]),
    ]:
        throttle.quota = quota
        assert [rule.quota.limit for rule in throttle.rules] == limits
        assert throttle.quota == throttle.rules[0].quota
        assert [state.limit for state in limiter.limit("key", 0).states] == limits
    throttle.quota = lambda key: "3/m"
    assert limiter.peek("key").limit == 3
    with pytest.raises(DataError, match="they depend on the key"):
        _ = throttle.quota
    throttle.quota = "4/m"
    assert limiter.peek("key").limit == 4
    assert throttle.quota == per_min(4)


@pytest.mark.parametrize(
    "quota", ["nonsense", None, 5, [], ["5/m", "6/m"], Rule("5/m", cost=9), "0/m"]
)
def test_a_bad_quota_is_refused_and_the_old_one_stays(any_rig: Rig, quota: Any) -> None:
    limiter = face(any_rig, "10/m")
    limiter.limit("key", 4)
    with pytest.raises(DataError):
        limiter.throttled.quota = quota
    assert limiter.throttled.quota == per_min(10)
    assert limiter.limit("key").state.remaining == 5
    limiter.reserve("key", 1).settle(0)
    limiter.debit("key", 1)
    assert limiter.free() == 4
    assert "10/m" in repr(limiter.throttled)


def test_who_waits_already_keeps_the_slot(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    limiter = face(rig, "10/m")
    limiter.drain()
    slot = rig.now + round(limiter.peek("key").retry_after * 1e6)

    def sleep_until(instant: float) -> None:
        limiter.throttled.quota = "1/m"
        type(rig.clock).sleep_until(rig.clock, instant)

    monkeypatch.setattr(rig.clock, "sleep_until", sleep_until)
    assert limiter.limit("key", timeout=600).allowed
    assert rig.now == slot
    assert limiter.limit("key").limited


# -- by key ---------------------------------------------------------------------------------------


def tiered(rig: Rig, tiers: dict[str, Any], asked: list[str], **arguments: Any) -> Face:
    """A limiter whose quotas are looked up, in async code by a coroutine function."""

    def look_up(key: str) -> Any:
        asked.append(key)
        return tiers[key]

    async def later(key: str) -> Any:
        return look_up(key)

    return face(rig, later if rig.kind.asynchronous else look_up, **arguments)


def test_each_key_has_its_quota(rig: Rig) -> None:
    asked: list[str] = []
    limiter = tiered(rig, {"free": "3/m", "paid": "30/m; 90/h"}, asked)
    assert limiter.limit("free", 3).state.limit == 3
    assert limiter.limit("free").limited
    result = limiter.limit("paid", 20)
    assert [state.remaining for state in result.states] == [10, 70]
    assert sorted(asked) == ["free", "paid"]


def test_everything_done_to_a_key_goes_by_its_quota(rig: Rig) -> None:
    limiter = tiered(rig, {"key": "10/m", "other": "4/m"}, [], hold=True)
    assert [result.state.limit for result in limiter.limit_many([("key", 2), "other"])] == [10, 4]
    limiter.debit("key", 3)
    held = limiter.reserve("key", 4)
    assert held.result.state.remaining == 1
    held.settle(1)
    assert limiter.refund("key", 2)
    assert limiter.forecast("key").spendable_now == 6
    assert limiter.forecast("other").spendable_now == 3
    with pytest.raises(LimitedError):
        limiter.reserve("other", 4)
    limiter.penalize("key", 5)
    assert limiter.limit("key").held
    limiter.reset("key")
    assert limiter.free() == 10


def test_a_new_quota_applies_when_the_cached_one_has_run_out(rig: Rig) -> None:
    asked: list[str] = []
    tiers: dict[str, Any] = {"key": "100/h"}
    limiter = tiered(rig, tiers, asked, quota_ttl=20)
    assert limiter.limit("key", 40).allowed
    tiers["key"] = "1000/h"
    rig.clock.advance(19.9)
    assert limiter.limit("key").state.limit == 100
    assert asked == ["key"]
    rig.clock.advance(0.2)
    state = limiter.limit("key", 1).state
    assert state.limit == 1000
    assert asked == ["key", "key"]
    if rig.algorithm in BUCKETS:
        # It held 59.55 of a hundred, and has filled at the new rate since.
        assert state.remaining == 58
    else:
        assert state.remaining == 1000 - 42
    tiers["key"] = "50/h"
    rig.clock.advance(20)
    assert limiter.free() == (50 if rig.algorithm in BUCKETS else 8)


def test_a_bad_quota_of_a_key_is_named_and_takes_nothing(any_rig: Rig) -> None:
    tiers: dict[str, Any] = {"key": "nonsense", "good": "5/m"}
    limiter = tiered(any_rig, tiers, [])
    calls: list[Callable[[], Any]] = [
        lambda: limiter.limit("key"),
        lambda: limiter.reserve("key"),
        lambda: limiter.debit("key", 1),
        lambda: limiter.refund("key", 1),
        lambda: limiter.reset("key"),
        lambda: limiter.peek("key"),
        lambda: limiter.forecast("key"),
        lambda: limiter.limit_many(["good", "key"]),
    ]
    for call in calls:
        with pytest.raises(DataError, match="returned 'nonsense'"):
            call()
    assert limiter.free("good") == 5
    tiers["key"] = "7/m"
    assert limiter.limit("key").state.remaining == 6


# -- while others call ----------------------------------------------------------------------------


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(5) as pool:
        yield pool


def test_threads_find_one_quota_or_the_other(threads: ThreadPoolExecutor) -> None:
    throttle = Throttled(quota="1000/366d", store=MemoryStore(clock=FakeClock()))
    stop = threading.Event()

    def call() -> set[int]:
        seen: set[int] = set()
        while not stop.is_set():
            seen.add(throttle.limit("key", 0).state.limit)
            with throttle.reserve("key", 2) as reservation:
                seen.add(reservation.result.state.limit)
                reservation.settle(1)
            throttle.refund("key", 1)
            seen.add(throttle.limit_many(["key"])[0].state.limit)
            throttle.refund("key", 1)
        return seen

    calling = [threads.submit(call) for _ in range(4)]
    try:
        for _ in range(150):
            throttle.quota = lambda key: "2000/366d"
            throttle.quota = "3000/366d"
            throttle.quota = "1000/366d"
    finally:
        stop.set()
    for each in calling:
        assert each.result(30) <= {1000, 2000, 3000}
