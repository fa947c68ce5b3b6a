"""Reserving an estimate, and settling it: for every algorithm on every store, sync and async."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.contract import STORES, MakeRig, Rig
from tests.reserving import BUCKETS, Face, Held, any_rig, face, rig
from throttled.algorithms.plan import ALGORITHMS
from throttled.exceptions import DataError, LimitedError
from throttled.quota import Rule

#: Seconds: more than any wait here takes.
LONG = 100_000.0

__all__ = ["any_rig", "rig"]


@pytest.fixture(params=ALGORITHMS)
def algorithm(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def looks(limiter: Face, key: str) -> list[Any]:
    """All that can be seen of a key."""
    return [limiter.peek(key, cost) for cost in (1, 4, 10)]


def fail(
    limiter: Face, error: BaseException, cost: int, inside: Callable[[Held], None], **kwargs: Any
) -> None:
    """A block that fails."""
    with limiter.reserved("key", cost, **kwargs) as held:
        inside(held)
        raise error


# -- taking ---------------------------------------------------------------------------------------


def test_who_is_refused_hears_so_and_takes_nothing(rig: Rig) -> None:
    limiter = face(rig, "10/m")
    limiter.limit("key", 4)
    before = rig.dump(rig.plan("10/m"), "key")
    with pytest.raises(LimitedError) as refused:
        limiter.reserve("key", 7)
    result = refused.value.rate_limit_result
    assert result is not None
    assert result.limited
    assert result.state.remaining == 6
    assert result.state.retry_after == limiter.peek("key", 7).retry_after > 0
    with pytest.raises(LimitedError), limiter.reserved("key", 11, timeout=LONG):
        pytest.fail("it can never fit")
    assert rig.dump(rig.plan("10/m"), "key") == before


def test_an_estimate_is_taken_at_once(rig: Rig) -> None:
    limiter = face(rig, "10/m")
    held = limiter.reserve("key", 7)
    assert held.result.allowed
    assert held.result.state == limiter.peek("key", 0)
    assert (held.result.state.remaining, held.reservation.cost) == (3, 7)
    assert not held.settled
    assert limiter.limit("key", 4).limited


def test_key_and_cost_are_those_of_the_instance_by_default(any_rig: Rig) -> None:
    limiter = face(any_rig, "10/m", key="key", cost=4)
    assert limiter.reserve().reservation.cost == 4
    assert limiter.free() == 6


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"key": ""}, "key: ''"),
        ({"cost": -1}, "cost: -1"),
        ({"cost": True}, "cost: True"),
        ({"cost": 1.5}, "cost: 1.5"),
        ({"timeout": -2}, "timeout: -2"),
        ({"on_error": "ignore"}, "on_error: 'ignore'"),
    ],
)
def test_bad_arguments_are_named_and_take_nothing(
    any_rig: Rig, arguments: dict[str, Any], named: str
) -> None:
    limiter = face(any_rig, "10/m")
    with pytest.raises(DataError, match=named):
        limiter.reserve(**{"key": "key", "cost": 2, **arguments})
    assert any_rig.dump(any_rig.plan("10/m"), "key") is None


# -- settling for less ----------------------------------------------------------------------------


@pytest.mark.parametrize("actual", [0, 1, 6, 7])
def test_what_was_not_used_is_back(rig: Rig, actual: int) -> None:
    limiter = face(rig, "10/m")
    held = limiter.reserve("key", 7)
    held.settle(actual)
    assert held.settled
    assert limiter.free() == 10 - actual
    assert limiter.limit("key", 10 - actual).allowed
    assert limiter.limit("key").limited


def test_settled_later_it_is_as_if_the_cost_had_been_known(rig: Rig) -> None:
    """Windows and the log book it back where it was taken; the bucket does not run over here."""
    limiter = face(rig, "10/m")
    for seconds in (5, 39, 45, 90, 200):
        held = limiter.reserve("guessed", 6)
        limiter.limit("known", 2)
        rig.clock.advance(3)
        assert limiter.limit("guessed").allowed
        assert limiter.limit("known").allowed
        rig.clock.advance(seconds - 3)
        held.settle(2)
        for later in (0, 10, 30, 45):
            rig.clock.advance(later)
            assert looks(limiter, "guessed") == looks(limiter, "known")
        rig.clock.advance(120)


def test_a_bucket_gives_back_as_of_now_and_never_runs_over(make_rig: MakeRig) -> None:
    for algorithm in BUCKETS:
        rig = make_rig(STORES[0].values[0], algorithm)
        limiter = face(rig, "10/m")
        held = limiter.reserve("key", 10)
        rig.clock.advance(30)
        assert limiter.free() == 5
        held.settle(8)
        assert limiter.free() == 7
        late = limiter.reserve("key", 7)
        rig.clock.advance(60)
        late.settle(0)
        assert limiter.free() == 10
        limiter.drain()
        assert limiter.limit("key").limited


def test_others_feel_at_once_what_came_back(rig: Rig) -> None:
    limiter = face(rig, "10/m")
    held = limiter.reserve("key", 10)
    assert limiter.limit("key", 2).limited
    held.settle(8)
    assert limiter.limit("key", 2).allowed


# -- settling for more ----------------------------------------------------------------------------


def test_more_than_was_reserved_is_charged_even_past_the_limit(rig: Rig) -> None:
    limiter, other = face(rig, "10/m"), face(rig, "10/m")
    rig.after(60_000_000 - rig.now % 60_000_000)
    held = limiter.reserve("key", 3)
    held.settle(9)
    assert other.free() == 1
    limiter.reserve("key", 1).settle(26)
    assert other.free() == 0
    state = other.limit("key").state
    assert 0 < state.retry_after <= state.reset_after
    # 35 were used in all, which drain from a bucket in 210 s.
    rig.clock.advance(60)
    left = {"fixed_window": 10, "sliding_window_log": 10}.get(rig.algorithm, 0)
    assert other.free() == left
    rig.clock.advance(state.retry_after - 60 if state.retry_after > 60 else 0)
    assert other.limit("key").allowed


@pytest.mark.parametrize("periods", [0, 1, 3])
def test_the_excess_is_charged_as_of_now_however_long_it_took(rig: Rig, periods: int) -> None:
    limiter = face(rig, "10/m")
    held = limiter.reserve("key", 1)
    rig.clock.advance(60 * periods)
    free = limiter.free()
    held.settle(6)
    assert limiter.free() == free - 5


# -- giving up ------------------------------------------------------------------------------------


def test_cancelling_leaves_the_key_as_if_never_asked(rig: Rig) -> None:
    limiter, plan = face(rig, "10/m"), rig.plan("10/m")
    held = limiter.reserve("key", 7)
    held.cancel()
    assert held.settled
    assert limiter.free() == 10
    assert rig.dump(plan, "key") is None
    limiter.limit("key", 2)
    limiter.limit("twin", 2)
    limiter.reserve("key", 7).cancel()
    assert looks(limiter, "key") == looks(limiter, "twin")


class Interrupt(BaseException):
    """No `Exception`, like a cancellation."""


@pytest.mark.parametrize("error", [ZeroDivisionError("gone"), Interrupt("gone")])
def test_a_block_that_fails_gives_everything_back(rig: Rig, error: BaseException) -> None:
    limiter = face(rig, "10/m")
    failed: list[Held] = []

    def inside(held: Held) -> None:
        failed.append(held)
        assert limiter.free() == 3

    with pytest.raises(type(error), match="gone"):
        fail(limiter, error, 7, inside)
    assert failed[0].settled
    assert limiter.free() == 10


def test_a_block_that_fails_keeps_the_estimate_if_told_so(rig: Rig) -> None:
    limiter = face(rig, "10/m")
    failed: list[Held] = []
    with pytest.raises(ZeroDivisionError):
        fail(limiter, ZeroDivisionError(), 7, failed.append, on_error="keep")
    assert failed[0].settled
    assert limiter.free() == 3


def test_a_block_that_ends_without_settling_keeps_the_estimate(rig: Rig) -> None:
    limiter = face(rig, "10/m")
    with limiter.reserved("key", 7) as held:
        pass
    assert held.settled
    assert limiter.free() == 3


def test_what_is_settled_stays_so_when_the_block_fails(rig: Rig) -> None:
    limiter = face(rig, "10/m")
    with pytest.raises(ZeroDivisionError):
        fail(limiter, ZeroDivisionError(), 7, lambda held: held.settle(5))
    assert limiter.free() == 5


# -- once -----------------------------------------------------------------------------------------


def test_only_the_first_settling_counts(rig: Rig) -> None:
    limiter = face(rig, "10/m")
    held = limiter.reserve("key", 7)
    held.settle(2)
    for again in (0, 2, 7, 50):
        held.settle(again)
        held.cancel()
        assert limiter.free() == 8


def test_nothing_comes_of_settling_what_was_cancelled_or_left(rig: Rig) -> None:
    limiter = face(rig, "10/m")
    cancelled = limiter.reserve("key", 3)
    cancelled.cancel()
    cancelled.settle(50)
    cancelled.cancel()
    assert limiter.free() == 10
    with limiter.reserved("key", 7) as left:
        pass
    left.settle(50)
    left.settle(0)
    left.cancel()
    assert limiter.free() == 3


@pytest.mark.parametrize("actual", [-1, True, 2.0, "2", None, 1_000_000_001])
def test_a_bad_settlement_is_named_and_settles_nothing(any_rig: Rig, actual: Any) -> None:
    limiter = face(any_rig, "10/m")
    held = limiter.reserve("key", 7)
    with pytest.raises(DataError, match=f"Invalid actual: {actual!r}"):
        held.settle(actual)
    assert not held.settled
    assert limiter.free() == 3
    held.settle(2)
    assert limiter.free() == 8


def test_nothing_reserved_can_be_settled_all_the_same(rig: Rig) -> None:
    """An estimate that comes to 0, as that of a short text may."""
    limiter = face(rig, "10/m")
    held = limiter.reserve("key", 0)
    assert held.result.allowed
    assert rig.dump(rig.plan("10/m"), "key") is None
    held.settle(4)
    held.settle(4)
    assert limiter.free() == 6
    limiter.reserve("key", 0).cancel()
    with pytest.raises(ZeroDivisionError):
        fail(limiter, ZeroDivisionError(), 0, lambda held: None)
    assert limiter.free() == 6


# -- waiting --------------------------------------------------------------------------------------


def test_a_reservation_that_waited_is_settled_at_its_slot(rig: Rig) -> None:
    limiter = face(rig, "10/m")
    limiter.drain()
    wait = limiter.peek("key", 5).retry_after
    began = rig.now
    with limiter.reserved("key", 5, timeout=LONG) as held:
        assert rig.now == began + round(wait * 1e6)
        assert held.result.allowed
        free = limiter.free()
        held.settle(2)
        assert limiter.free() == free + 3
    limiter.drain()
    late = limiter.reserve("key", 5, timeout=LONG)
    rig.clock.advance(7)
    free = limiter.free()
    late.settle(1)
    assert limiter.free() == free + 4


def test_a_slot_beyond_the_timeout_is_refused_at_once(rig: Rig) -> None:
    limiter, plan = face(rig, "10/m"), rig.plan("10/m")
    limiter.drain()
    before, began = rig.dump(plan, "key"), rig.now
    wait = limiter.peek("key", 5).retry_after
    with pytest.raises(LimitedError):
        limiter.reserve("key", 5, timeout=wait - 0.001)
    assert (rig.dump(plan, "key"), rig.now) == (before, began)


def test_a_wait_that_is_cut_short_gives_its_slot_back(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    limiter, plan = face(rig, "10/m"), rig.plan("10/m")
    limiter.drain()
    before = rig.dump(plan, "key")

    def interrupted(instant: float) -> None:
        assert rig.dump(plan, "key") != before
        raise Interrupt

    with monkeypatch.context() as patch:
        patch.setattr(rig.clock, "sleep_until", interrupted)
        with pytest.raises(Interrupt):
            limiter.reserve("key", 5, timeout=LONG)
    assert rig.dump(plan, "key") == before
    limiter.reserve("key", 5, timeout=LONG).settle(5)


def test_a_reservation_that_a_penalty_put_off_is_settled_at_its_new_slot(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    limiter = face(rig, "10/m", hold=True)
    limiter.drain()
    woken: list[float] = []

    async def asleep_until(instant: float) -> None:
        rig.clock.sleep_until(instant)
        woken.append(instant)
        if len(woken) == 1:
            await limiter.throttled.penalize("key", 10)

    def sleep_until(instant: float) -> None:
        type(rig.clock).sleep_until(rig.clock, instant)
        if not rig.kind.asynchronous:
            woken.append(instant)
            if len(woken) == 1:
                limiter.throttled.penalize("key", 10)

    monkeypatch.setattr(rig.clock, "sleep_until", sleep_until)
    monkeypatch.setattr(rig.clock, "asleep_until", asleep_until)
    held = limiter.reserve("key", 5, timeout=LONG)
    assert len(woken) == 2
    assert woken[1] >= woken[0] + 10_000_000
    free = limiter.free()
    held.settle(1)
    assert limiter.free() == free + 4


# -- several rules --------------------------------------------------------------------------------

METERED = [Rule("5/m", cost=1, name="requests"), Rule("100/m", name="tokens")]


def test_a_fixed_cost_stays_when_settled_and_is_back_when_cancelled(rig: Rig) -> None:
    limiter = face(rig, METERED)

    def free() -> list[int]:
        return [state.remaining for state in limiter.limit("key", 0).states]

    held = limiter.reserve("key", 60)
    assert free() == [4, 40]
    held.settle(10)
    assert free() == [4, 90]
    limiter.reserve("key", 50).cancel()
    assert free() == [4, 90]
    taken: list[list[int]] = []
    with pytest.raises(ZeroDivisionError):
        fail(limiter, ZeroDivisionError(), 50, lambda _: taken.append(free()))
    assert taken == [[3, 40]]
    assert free() == [4, 90]
    limiter.reserve("key", 1).settle(150)
    assert free() == [3, 0]


def test_rules_of_different_algorithms_are_settled_alike(any_rig: Rig) -> None:
    rules = [
        Rule("10/m", using="gcra"),
        Rule("20/h", using="sliding_window_log"),
        Rule("50/d", using="fixed_window"),
        Rule("90/w", using="sliding_window"),
    ]
    limiter = face(any_rig, rules)
    held = limiter.reserve("key", 9)
    assert [state.remaining for state in held.result.states] == [1, 11, 41, 81]
    any_rig.clock.advance(12)
    held.settle(4)
    states = limiter.limit("key", 0).states
    assert [state.remaining for state in states] == [8, 16, 46, 86]
    limiter.limit("key", 8)
    # Two of the minute are back in 12 s; each rule has it booked for then.
    late = limiter.reserve("key", 2, timeout=LONG)
    assert [state.remaining for state in limiter.limit("key", 0).states] == [0, 6, 36, 76]
    late.settle(1)
    assert [state.remaining for state in limiter.limit("key", 0).states] == [1, 7, 37, 77]


def test_several_rules_are_reserved_all_or_none(rig: Rig) -> None:
    limiter = face(rig, [Rule("5/s", name="fast"), Rule("7/s", name="slow")])
    limiter.limit("key", 4)
    with pytest.raises(LimitedError) as refused:
        limiter.reserve("key", 2)
    assert refused.value.rate_limit_result is not None
    assert refused.value.rate_limit_result.rule == Rule("5/s", rig.algorithm, name="fast")
    assert [state.remaining for state in limiter.limit("key", 0).states] == [1, 3]
