"""`limit_many`: several decisions at once, each by itself."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from tests import failing
from tests.contract import STORES, Kind, Rig
from tests.failing import DOWN, Flavour
from throttled.algorithms.plan import ALGORITHMS
from throttled.exceptions import DataError, StateError, StoreUnavailableError
from throttled.result import RateLimitResult, RateLimitState

flavour = failing.flavour


def many(rig: Rig, limiter: Any, calls: Any) -> list[RateLimitResult]:
    results: list[RateLimitResult] = rig.wait(limiter.throttled.limit_many(calls))
    return results


# -- on every store -------------------------------------------------------------------------------

MakeRig = Callable[..., Rig]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("kind", STORES)
def test_many_calls_are_answered_as_one_after_the_other(
    make_rig: MakeRig, kind: Kind, algorithm: str
) -> None:
    rig = make_rig(kind, algorithm)
    limiter = rig.limiter("5/m")
    costs = [1, 2, 9, 0, 1, 2, 1, 1]
    singles = [limiter.limit("single", cost) for cost in costs]
    results = many(rig, limiter, [("many", cost) for cost in costs])
    assert [result.limited for result in results] == [
        False, False, True, False, False, True, False, True
    ]  # fmt: skip
    assert results == singles
    assert {result.source for result in results} <= {rig.store.source, "local-deny"}


@pytest.mark.parametrize("kind", STORES)
def test_results_are_in_the_order_of_the_calls(make_rig: MakeRig, kind: Kind) -> None:
    rig = make_rig(kind)
    limiter = rig.limiter("400/m")
    calls = [(f"key {number}", number) for number in range(300)]  # more than one script run takes
    results = many(rig, limiter, calls)
    assert [result.state.remaining for result in results] == [400 - cost for _, cost in calls]
    assert not any(result.limited for result in results)
    again = many(rig, limiter, calls)
    assert [result.limited for result in again] == [2 * cost > 400 for _, cost in calls]


@pytest.mark.parametrize("kind", STORES)
def test_a_long_batch_of_one_key_admits_the_quota(make_rig: MakeRig, kind: Kind) -> None:
    rig = make_rig(kind)
    results = many(rig, rig.limiter("200/m"), ["key"] * 300)
    assert [result.allowed for result in results] == [True] * 200 + [False] * 100


@pytest.mark.parametrize("kind", STORES)
def test_it_never_waits(make_rig: MakeRig, kind: Kind) -> None:
    rig = make_rig(kind)
    limiter = rig.limiter("1/m", timeout=3600)
    before = rig.clock.now
    first, second = many(rig, limiter, ["key", "key"])
    assert (first.allowed, second.limited) == (True, True)
    assert second.state.retry_after == 60
    assert rig.clock.now == before
    assert limiter.peek("key").retry_after == 60, "nothing was promised"


@pytest.mark.parametrize("kind", STORES)
def test_refusals_and_costs_of_nothing_write_nothing(make_rig: MakeRig, kind: Kind) -> None:
    rig = make_rig(kind)
    limiter = rig.limiter("2/m")
    results = many(rig, limiter, [("key", 3), ("key", 0)])
    assert [result.limited for result in results] == [True, False]
    assert rig.dump(rig.plan("2/m"), "key") is None


@pytest.mark.parametrize("policy", ["raise", "allow", "deny", "local"])
@pytest.mark.parametrize("kind", [each for each in STORES if not each.values[0].memory])
def test_a_damaged_key_leaves_the_others_decided(
    make_rig: MakeRig, kind: Kind, policy: str
) -> None:
    rig = make_rig(kind)
    limiter = rig.limiter("2/m", on_store_error=policy)
    rig.raw.set(rig.name(rig.plan("2/m"), "bad"), "not a state")
    calls = ["good", "bad", "good", ("good", 1)]
    if policy == "raise":
        with pytest.raises(StateError, match="bad") as raised:
            many(rig, limiter, calls)
        outcomes = raised.value.outcomes
        assert outcomes[1] is raised.value
    else:
        outcomes = tuple(many(rig, limiter, calls))
        assert (
            outcomes[1].source
            == {  # type: ignore[union-attr]
                "allow": "allowed-by-policy",
                "deny": "denied-by-policy",
                "local": "fallback",
            }[policy]
        )
    others: list[Any] = [outcomes[0], *outcomes[2:]]
    assert [other.limited for other in others] == [False, False, True]
    assert {other.source for other in others} == {"server"}


# -- when the store fails -------------------------------------------------------------------------


def test_the_error_that_is_raised_tells_what_became_of_all(flavour: Flavour) -> None:
    store = flavour.store()
    first = store.bad_keys["b"] = StateError("b cannot be used")
    second = store.bad_keys["d"] = StoreUnavailableError(DOWN)
    throttle = flavour.limiter(store, "1/m")
    with pytest.raises(StateError, match="b cannot be used") as raised:
        flavour.wait(throttle.limit_many(["a", "b", "c", "d", "a"]))
    assert raised.value is first
    a, b, c, d, refused = raised.value.outcomes
    assert (b, d) == (first, second)
    assert [each.limited for each in (a, c, refused)] == [False, False, True]
    assert flavour.wait(throttle.limit("c")).limited, "what was admitted is taken"


def test_an_outage_is_the_outcome_of_every_call(flavour: Flavour) -> None:
    store = flavour.store()
    store.fail()
    with pytest.raises(StoreUnavailableError) as raised:
        flavour.wait(flavour.limiter(store).limit_many(["a", "b"]))
    assert raised.value is store.error
    assert raised.value.outcomes == (store.error, store.error)


def test_an_error_with_outcomes_travels(flavour: Flavour) -> None:
    store = flavour.store()
    store.bad_keys["b"] = StateError("b cannot be used")
    with pytest.raises(StateError) as raised:
        flavour.wait(flavour.limiter(store).limit_many(["a", "b"]))
    for twin in (pickle.loads(pickle.dumps(raised.value)), copy.copy(raised.value)):
        assert str(twin) == "b cannot be used"
        assert twin.outcomes[0] == raised.value.outcomes[0]


def test_other_errors_have_no_outcomes() -> None:
    assert StoreUnavailableError(DOWN).outcomes == ()
    assert StateError("damaged").outcomes == ()


@pytest.mark.parametrize(
    ("policy", "limited", "source"),
    [
        ("allow", [False, False, False, False], "allowed-by-policy"),
        ("deny", [True, True, True, False], "denied-by-policy"),
        ("local", [False, True, False, False], "fallback"),
        ("a store", [False, True, False, False], "fallback"),
    ],
)
def test_a_policy_answers_for_the_whole_batch(
    flavour: Flavour, policy: str, limited: list[bool], source: str
) -> None:
    store, fallback = flavour.store(), flavour.store()
    store.fail()
    throttle = flavour.limiter(
        store, "1/m", timeout=60, on_store_error=fallback if policy == "a store" else policy
    )
    results = flavour.wait(throttle.limit_many(["a", "a", "b", ("b", 0)]))
    assert [result.limited for result in results] == limited
    assert {result.source for result in results[:3]} == {source}


def test_a_policy_answers_only_for_what_failed(flavour: Flavour) -> None:
    store, fallback = flavour.store(), flavour.store()
    store.bad_keys["b"] = store.bad_keys["c"] = StateError("cannot be used")
    fallback.bad_keys["c"] = StoreUnavailableError(DOWN)
    fallback.on_store_error = "deny"
    throttle = flavour.limiter(store, "1/m", on_store_error=fallback)
    results = flavour.wait(throttle.limit_many(["a", "b", "c", "a", "b"]))
    assert [result.source for result in results] == [
        store.source,
        "fallback",
        "denied-by-policy",
        store.source,
        "fallback",
    ]
    assert [result.limited for result in results] == [False, False, True, True, True]
    assert results[2].state == RateLimitState(1, 0, 0, 1)
    fallback.on_store_error = "raise"
    throttle = flavour.limiter(store, "9/m", on_store_error=fallback)
    with pytest.raises(StoreUnavailableError) as raised:
        flavour.wait(throttle.limit_many(["a", "b", "c"]))
    assert [getattr(each, "source", None) for each in raised.value.outcomes] == [
        store.source,
        "fallback",
        None,
    ]


# -- arguments ------------------------------------------------------------------------------------


def test_nothing_to_decide_asks_nobody(flavour: Flavour) -> None:
    store = flavour.store()
    assert flavour.wait(flavour.limiter(store).limit_many([])) == []
    assert flavour.wait(flavour.limiter(store).limit_many(iter(()))) == []
    assert not store.asked


def test_calls_may_come_from_any_iterable(flavour: Flavour) -> None:
    store = flavour.store()
    throttle = flavour.limiter(store, "9/m")
    for calls in (
        ("a", "b"),
        {"a": None, "b": None}.keys(),
        (key for key in "ab"),
        [["a", 1], "b"],
    ):
        assert len(flavour.wait(throttle.limit_many(calls))) == 2
    assert flavour.wait(throttle.peek("a")).remaining == 5
    assert store.asked == ["run_many"] * 4 + ["run"], "one call of the store each"


@pytest.mark.parametrize(
    ("calls", "said"),
    [
        ("abc", "Invalid calls: 'abc', must be an iterable of keys or of (key, cost) pairs."),
        (5, "Invalid calls: 5, must be an iterable of keys or of (key, cost) pairs."),
        ({"a": 1}, "Invalid calls: {'a': 1}, must be an iterable of keys or of (key, cost) pairs."),
        (["a", 5], "Invalid calls[1]: 5, must be a key or a (key, cost) pair."),
        (["a", ("a", 1, 2)], "Invalid calls[1]: ('a', 1, 2), must be a key or a (key, cost) pair."),
        (["a", None], "Invalid calls[1]: None, must be a key or a (key, cost) pair."),
        (
            ["a", "b", ""],
            "Invalid calls[2]: ''. Invalid key: '', must be a non-empty string.",
        ),
        (
            [("a", -1)],
            "Invalid calls[0]: ('a', -1). Invalid cost: -1, must be an integer of 0 or more.",
        ),
        (
            ["a", (1, 1)],
            "Invalid calls[1]: (1, 1). Invalid key: 1, must be a non-empty string.",
        ),
    ],
)
def test_a_bad_call_is_named_and_nothing_is_taken(flavour: Flavour, calls: Any, said: str) -> None:
    store = flavour.store()
    throttle = flavour.limiter(store, on_store_error="allow")
    with pytest.raises(DataError) as raised:
        flavour.wait(throttle.limit_many(calls))
    assert str(raised.value) == said
    assert not store.asked


def test_a_cost_that_can_never_fit_is_refused_for_good(flavour: Flavour) -> None:
    throttle = flavour.limiter(flavour.store(), "5/m")
    [result] = flavour.wait(throttle.limit_many([("a", 10**30)]))
    assert result.limited
    assert result.state.retry_after == float("inf")
