"""What is done to a key without asking: `debit`, `refund`, `reset`; and what a `forecast` says."""

from __future__ import annotations

import time
from math import ceil
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.contract import STORES, Kind, MakeRig, Rig
from tests.reserving import BUCKETS, RULES, Face, any_rig, face, rig
from throttled.algorithms.plan import ALGORITHMS
from throttled.exceptions import DataError
from throttled.quota import Rule
from throttled.result import Forecast

__all__ = ["any_rig", "rig"]


@pytest.fixture(params=ALGORITHMS)
def algorithm(request: pytest.FixtureRequest) -> str:
    return str(request.param)


METERED = [Rule("5/m", cost=1, name="requests"), Rule("100/m", name="tokens")]


def free_by_rule(limiter: Face) -> list[int]:
    return [state.remaining for state in limiter.limit("key", 0).states]


# -- debit ----------------------------------------------------------------------------------------


def test_a_debit_charges_what_was_used_without_asking(rig: Rig) -> None:
    limiter = face(rig, "10/m")
    limiter.debit("key", 4)
    assert limiter.free() == 6
    limiter.debit("key", 7)
    state = limiter.limit("key").state
    assert state.remaining == 0
    assert state.retry_after > 0
    rig.clock.advance(state.retry_after)
    assert limiter.limit("key").allowed


def test_a_debt_is_paid_off_before_anybody_passes(rig: Rig) -> None:
    limiter = face(rig, "10/m")
    rig.after(60_000_000 - rig.now % 60_000_000)
    limiter.debit("key", 30)
    rig.clock.advance(59.999_999)
    assert limiter.free() == 0
    rig.clock.advance(0.000_001)
    # A fixed window forgives at its boundary, and a log forgets after a period.
    forgiven = rig.algorithm in ("fixed_window", "sliding_window_log")
    assert limiter.free() == (10 if forgiven else 0)
    rig.clock.advance(119.999_999)
    assert limiter.free() == (9 if rig.algorithm in BUCKETS else 10)
    rig.clock.advance(0.000_001)
    assert limiter.free() == 10


def test_a_debit_is_felt_however_far_ahead_others_are_promised(rig: Rig) -> None:
    plan = rig.plan("2/m")
    limiter = face(rig, "2/m")
    rig.drain(plan, "key")
    waiting = [rig.promise(plan, "key", 2) for _ in range(3)]
    before = rig.dump(plan, "key")
    limiter.debit("key", 2)
    assert rig.dump(plan, "key") != before
    for ticket in reversed(waiting):
        rig.withdraw(ticket)
    assert limiter.limit("key").limited


def test_rules_with_a_fixed_cost_are_not_adjusted(any_rig: Rig) -> None:
    limiter = face(any_rig, METERED)
    limiter.debit("key", 150)
    assert free_by_rule(limiter) == [5, 0]
    assert limiter.refund("key", 90)
    assert free_by_rule(limiter) == [5, 40]
    limiter.limit("key", 10)
    limiter.refund("key", 1000)
    assert free_by_rule(limiter) == [4, 100]


def test_there_is_nothing_to_adjust_where_every_cost_is_fixed(any_rig: Rig) -> None:
    limiter = face(any_rig, Rule("5/m", cost=2))
    for adjust in (limiter.debit, limiter.refund):
        with pytest.raises(DataError, match="every rule has a cost of its own"):
            adjust("key", 1)


# -- refund ---------------------------------------------------------------------------------------


def test_a_refund_gives_back_at_most_what_is_outstanding(rig: Rig) -> None:
    limiter = face(rig, "10/m")
    limiter.limit("key", 6)
    assert limiter.refund("key", 2) is True
    assert limiter.free() == 6
    assert limiter.refund("key", 1000) is True
    assert limiter.free() == 10
    assert limiter.refund("key", 1) is False
    assert limiter.refund("never seen", 1) is False
    assert limiter.limit("key", 10).allowed
    assert limiter.limit("key").limited


def test_a_refund_of_all_leaves_no_trace(rig: Rig) -> None:
    limiter = face(rig, "10/m")
    limiter.limit("key", 6)
    limiter.refund("key", 6)
    assert rig.dump(rig.plan("10/m"), "key") is None


def test_a_refund_after_a_debit_brings_everything_back(rig: Rig) -> None:
    limiter = face(rig, "10/m")
    limiter.debit("key", 25)
    assert limiter.refund("key", 14)
    assert limiter.free() == 0
    assert limiter.refund("key", 1)
    assert limiter.free() == 0
    assert limiter.refund("key", 11)
    assert limiter.free() == 10
    assert limiter.peek("key").reset_after == 0


def test_the_newest_is_given_back_first(make_rig: MakeRig) -> None:
    for kind in STORES:
        rig = make_rig(kind.values[0], "sliding_window_log")
        limiter = face(rig, "10/m")
        limiter.limit("key", 3)
        rig.clock.advance(10)
        limiter.limit("key", 4)
        rig.clock.advance(10)
        limiter.refund("key", 3)
        assert limiter.free() == 6
        assert limiter.peek("key").reset_after == 50
        limiter.refund("key", 2)
        assert limiter.free() == 8
        assert limiter.peek("key").reset_after == 40
        rig.clock.advance(40)
        assert limiter.free() == 10


def test_a_refund_puts_nobody_on_an_instant_that_was_promised(rig: Rig) -> None:
    """One at a time, and three who wait."""
    limiter, plan = face(rig, "1/s"), rig.plan("1/s")
    rig.drain(plan, "key")
    promised = [rig.promise(plan, "key") for _ in range(3)]
    for _ in range(3):
        limiter.refund("key", 5)
    assert limiter.limit("key").limited
    for ticket in promised:
        rig.clock.sleep_until(ticket.slot)
        rig.arrived(ticket)
        assert limiter.limit("key").limited
    later = [rig.promise(plan, "key").slot for _ in range(2)]
    assert promised[-1].slot < later[0] < later[1]


def test_a_refund_never_takes_what_waiters_were_promised(rig: Rig) -> None:
    """All that was used before is given back, and still there is no room but beside them."""
    limiter, plan = face(rig, "10/m"), rig.plan("10/m")
    rig.after(60_000_000 - rig.now % 60_000_000)
    limiter.limit("key", 10)
    rig.after(60_000_000 if rig.algorithm == "sliding_window" else 1_000_000)
    waiting = [rig.promise(plan, "key") for _ in range(9)]
    limiter.refund("key", 10)
    slots = [ticket.slot for ticket in waiting + [rig.promise(plan, "key") for _ in range(20)]]
    assert slots == sorted(slots)
    began = slots[0] - slots[0] % 60_000_000
    in_a_period = sum(began <= slot < began + 60_000_000 for slot in slots)
    assert in_a_period <= (20 if rig.algorithm in BUCKETS else 10)


def test_waiters_are_served_at_their_slots_whatever_is_refunded(rig: Rig) -> None:
    limiter, plan = face(rig, "4/s"), rig.plan("4/s")
    rig.drain(plan, "key")
    waiting = [rig.promise(plan, "key") for _ in range(5)]
    limiter.refund("key", 3)
    for ticket in waiting:
        assert limiter.limit("key", 4).limited
        rig.clock.sleep_until(ticket.slot)
        rig.arrived(ticket)
    assert 0 <= limiter.free() <= 4
    rig.clock.advance(limiter.peek("key").reset_after)
    assert limiter.free() == 4


# -- bad arguments --------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [-1, True, 1.0, "1", None, 1_000_000_001, float("nan")])
def test_a_bad_amount_is_named_and_changes_nothing(any_rig: Rig, n: Any) -> None:
    limiter, plan = face(any_rig, "10/m"), any_rig.plan("10/m")
    limiter.limit("key", 5)
    before = any_rig.dump(plan, "key")
    for adjust in (limiter.debit, limiter.refund):
        with pytest.raises(DataError, match=f"Invalid n: {n!r}, must be an integer from 0"):
            adjust("key", n)
    assert any_rig.dump(plan, "key") == before


@pytest.mark.parametrize("key", ["", None, 5, b"key"])
def test_a_bad_key_is_named(any_rig: Rig, key: Any) -> None:
    limiter = face(any_rig, "10/m", hold=True)
    for change in (limiter.debit, limiter.refund, limiter.penalize):
        with pytest.raises(DataError, match=f"Invalid key: {key!r}"):
            change(key, 1)
    with pytest.raises(DataError, match=f"Invalid key: {key!r}"):
        limiter.reset(key)


def test_an_amount_of_0_changes_nothing(any_rig: Rig) -> None:
    limiter = face(any_rig, "10/m")
    limiter.debit("key", 0)
    assert limiter.refund("key", 0) is False
    assert any_rig.dump(any_rig.plan("10/m"), "key") is None


def test_the_largest_amounts_are_possible(rig: Rig) -> None:
    limiter = face(rig, "10/m")
    limiter.debit("key", 10**9)
    assert limiter.limit("key").limited
    assert limiter.refund("key", 10**9)
    assert limiter.free() == 10


# -- reset ----------------------------------------------------------------------------------------


def test_after_a_reset_a_key_is_as_if_never_seen(rig: Rig) -> None:
    limiter, plan = face(rig, "10/m"), rig.plan("10/m")
    for take in (lambda: limiter.limit("key", 10), lambda: limiter.debit("key", 99)):
        take()
        limiter.limit("other", 4)
        limiter.reset("key")
        assert rig.dump(plan, "key") is None
        assert limiter.free() == 10
        assert limiter.peek("key").reset_after == 0
        assert limiter.free("other") == 6
        limiter.reset("other")
    limiter.reset("never seen")


def test_a_reset_forgets_all_rules_and_the_penalty(any_rig: Rig) -> None:
    rules = [Rule("10/s", name="a"), Rule("20/h", using="sliding_window_log"), Rule("9/d", cost=3)]
    limiter = face(any_rig, rules, hold=True)
    limiter.limit("key", 10)
    limiter.penalize("key", 3600)
    assert limiter.limit("key").held
    limiter.reset("key")
    result = limiter.limit("key", 10)
    assert result.allowed
    assert not result.held
    assert [state.remaining for state in result.states] == [0, 10, 6]


def test_who_waited_before_a_reset_gives_back_nothing_of_what_came_after(rig: Rig) -> None:
    plan = rig.plan("2/m")
    limiter = face(rig, "2/m")
    rig.drain(plan, "key")
    waiting = rig.promise(plan, "key")
    limiter.reset("key")
    limiter.limit("key", 2)
    taken = rig.dump(plan, "key")
    rig.withdraw(waiting)
    assert rig.dump(plan, "key") == taken


def test_a_refund_reaches_into_the_window_before(make_rig: MakeRig, any_rig: Rig) -> None:
    rig = make_rig(any_rig.kind, "sliding_window")
    limiter = face(rig, "10/m")
    rig.clock.set(1_700_000_040.0)  # a boundary
    limiter.limit("key", 6)
    rig.clock.advance(60)
    limiter.limit("key", 2)
    assert limiter.refund("key", 5)
    assert limiter.free() == 7, "2 of this window and 3 of the one before"
    assert limiter.refund("key", 100)
    assert limiter.free() == 10
    assert not limiter.refund("key", 1)


# -- forecast -------------------------------------------------------------------------------------


def micros(seconds: float) -> int:
    """A public instant in whole µs: what a float of this size still tells apart."""
    return round(seconds * 1e6)


def forecast_at(rig: Rig, limiter: Face, microseconds: int) -> Forecast:
    rig.clock.set(microseconds / 1e6)
    assert rig.now == microseconds
    return limiter.forecast("key")


def keeps_its_word(rig: Rig, limiter: Face) -> Forecast:
    """A forecast, after asking at the instants that it names and a µs before."""
    now = int(rig.now)
    forecast = limiter.forecast("key")
    spendable = forecast.spendable_now
    assert type(spendable) is int
    if spendable:
        assert limiter.peek("key", spendable).retry_after == 0
    wait = limiter.peek("key", spendable + 1).retry_after
    assert wait > 0
    if forecast.next_replenish_at is None:
        assert wait == float("inf")
    else:
        at = micros(forecast.next_replenish_at)
        assert at == now + ceil(round(wait * 1e6, 3))
        assert forecast_at(rig, limiter, at - 1).spendable_now <= spendable
        assert forecast_at(rig, limiter, at).spendable_now > spendable
    full = micros(forecast.full_at)
    capacity = min(state.limit for state in limiter.limit("key", 0).states)
    if full > now:
        assert forecast_at(rig, limiter, full - 1).full_at > (full - 1) / 1e6
    at_last = forecast_at(rig, limiter, full)
    assert at_last.next_replenish_at is None
    assert micros(at_last.full_at) == full
    assert at_last.spendable_now == capacity
    rig.clock.set(now / 1e6)
    return forecast


def test_a_key_never_seen_is_full_now(rig: Rig) -> None:
    limiter = face(rig, "10/m")
    assert limiter.forecast("key") == Forecast(10, None, rig.clock.now)
    assert rig.dump(rig.plan("10/m"), "key") is None


def test_a_forecast_says_when_more_can_be_spent_and_when_all(rig: Rig) -> None:
    limiter, plan = face(rig, "10/m"), rig.plan("10/m")
    took = 0
    for cost, then in ((3, 7.3), (4, 11.1), (2, 0.5), (9, 61.7), (10, 13.0)):
        free = limiter.free()
        took += limiter.limit("key", min(cost, free) or 1).allowed
        before = rig.dump(plan, "key")
        keeps_its_word(rig, limiter)
        assert rig.dump(plan, "key") == before
        rig.clock.advance(then)
        keeps_its_word(rig, limiter)
    assert took > 2


@pytest.mark.parametrize("quota", ["1/w", "7/s burst 3", "1/ms", "104000/d", "3/s"])
def test_a_forecast_is_exact_at_any_rate(rig: Rig, quota: str) -> None:
    limiter = face(rig, quota)
    limiter.drain()
    forecast = keeps_its_word(rig, limiter)
    assert forecast.spendable_now == 0
    assert forecast.next_replenish_at is not None
    rig.clock.set(rig.clock.now + 0.7 * (forecast.next_replenish_at - rig.clock.now))
    keeps_its_word(rig, limiter)


def test_a_forecast_knows_of_debts_and_of_those_who_wait(rig: Rig) -> None:
    limiter, plan = face(rig, "10/m"), rig.plan("10/m")
    limiter.debit("key", 17)
    assert keeps_its_word(rig, limiter).spendable_now == 0
    limiter.reset("key")
    rig.drain(plan, "key")
    last = [rig.promise(plan, "key", 3) for _ in range(4)][-1].slot
    forecast = keeps_its_word(rig, limiter)
    assert forecast.spendable_now == 0
    assert forecast.next_replenish_at is not None
    assert micros(forecast.next_replenish_at) >= last


def test_a_forecast_by_several_rules_is_that_of_the_slowest(any_rig: Rig) -> None:
    rules = [Rule("10/s", using="gcra"), Rule("20/m", using="sliding_window_log"), Rule("30/h")]
    limiter = face(any_rig, rules)
    assert limiter.forecast("key") == Forecast(10, None, any_rig.clock.now)
    limiter.limit("key", 8)
    forecast = keeps_its_word(any_rig, limiter)
    assert forecast.spendable_now == 2
    assert micros(forecast.next_replenish_at or 0) == any_rig.now + 100_000
    # The hour's bucket of 30 is full again last.
    assert micros(forecast.full_at) == any_rig.now + 8 * 120_000_000
    any_rig.clock.advance(1)
    limiter.limit("key", 10)
    any_rig.clock.advance(1)
    forecast = keeps_its_word(any_rig, limiter)
    assert forecast.spendable_now == 2
    assert micros(forecast.next_replenish_at or 0) == any_rig.now + 58_000_000


def test_a_fixed_cost_does_not_bound_what_can_be_spent(any_rig: Rig) -> None:
    """500 requests and 200,000 tokens: one request may spend all the tokens."""
    limiter = face(any_rig, METERED)
    assert limiter.forecast("key").spendable_now == 100
    limiter.limit("key", 90)
    forecast = limiter.forecast("key")
    assert forecast.spendable_now == 10
    assert micros(forecast.next_replenish_at or 0) == any_rig.now + 600_000
    for _ in range(4):
        assert limiter.limit("key", 1).allowed
    # No request is left, whatever it may cost.
    forecast = limiter.forecast("key")
    assert forecast.spendable_now == 0
    assert micros(forecast.next_replenish_at or 0) == any_rig.now + 12_000_000
    any_rig.clock.advance(12)
    assert limiter.forecast("key").spendable_now == 26


def test_a_forecast_where_every_cost_is_fixed_says_when_a_call_fits(any_rig: Rig) -> None:
    limiter = face(any_rig, Rule("6/m", cost=4))
    limiter.limit("key")
    forecast = limiter.forecast("key")
    assert forecast.spendable_now == 0
    assert micros(forecast.next_replenish_at or 0) == any_rig.now + 20_000_000


def test_a_forecast_of_a_key_that_is_held(rig: Rig) -> None:
    limiter = face(rig, "10/m", hold=True)
    limiter.penalize("key", 25)
    forecast = keeps_its_word(rig, limiter)
    assert forecast.spendable_now == 0
    assert micros(forecast.next_replenish_at or 0) == micros(forecast.full_at) == rig.now + 25e6
    limiter.reset("key")
    limiter.drain()
    limiter.penalize("key", 130)
    forecast = keeps_its_word(rig, limiter)
    assert forecast.next_replenish_at == forecast.full_at


@pytest.mark.parametrize("kind", [each for each in STORES if each.values[0].real])
def test_a_forecast_is_in_seconds_since_the_epoch(make_rig: MakeRig, kind: Kind) -> None:
    rig = make_rig(kind)
    store = rig.wall_store()
    limiter = Face(rig, type(rig.limiter("1/m").throttled)(quota="1/h", store=store))
    began = time.time()
    limiter.reset("forecast")
    limiter.limit("forecast")
    forecast = limiter.forecast("forecast")
    assert forecast.spendable_now == 0
    assert abs((forecast.next_replenish_at or 0) - began - 3600) < 30
    assert abs(forecast.full_at - began - 3600) < 30
    limiter.reset("forecast")
    rig.wait(store.close())


@pytest.mark.parametrize("algorithm", RULES)
def test_forecasts_are_exact_in_any_state(make_rig: MakeRig, algorithm: str) -> None:
    rig = make_rig(Kind("memory"), algorithm)
    limiter = face(rig, "10/s burst 7")
    steps = st.tuples(
        st.sampled_from(["limit", "debit", "refund", "wait"]),
        st.integers(0, 9),
        st.sampled_from([0.0, 0.01, 1 / 3, 0.9, 1.7]),
    )

    @settings(max_examples=settings().max_examples // 2)
    @given(st.lists(steps, max_size=12))
    def check(history: list[tuple[str, int, float]]) -> None:
        limiter.reset("key")
        rig.clock.set(1_700_000_000.123457)
        for what, n, seconds in history:
            if what == "wait":
                limiter.limit("key", n, 2.0)
            else:
                getattr(limiter, what)("key", n)
            rig.clock.advance(seconds)
        keeps_its_word(rig, limiter)

    check()
