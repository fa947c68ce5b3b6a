"""`on_store_error`: what callers get while a store fails, and who decided it."""

from __future__ import annotations

import copy
import logging
import pickle
from math import inf
from typing import Any

import pytest

from tests import failing as stores
from tests.failing import AsyncFailingStore, FailingStore, Flavour, Make
from throttled import MemoryStore, RateLimitResult, RateLimitState, Throttled
from throttled.asyncio import Throttled as AsyncThrottled
from throttled.exceptions import (
    DataError,
    LimitedError,
    SetUpError,
    StateError,
    StoreUnavailableError,
)
from throttled.store.base import Health
from throttled.store.policy import checked_policy
from throttled.testing import FakeClock

WORDS = ("raise", "allow", "deny", "local")
UNKNOWN = RateLimitState(limit=2, remaining=0, reset_after=0, retry_after=0)

flavour, clock, failing = stores.flavour, stores.clock, stores.failing


# -- raise ----------------------------------------------------------------------------------------


def test_without_a_policy_the_error_is_raised(flavour: Flavour) -> None:
    store = flavour.store()
    throttle = flavour.limiter(store, key="key")
    assert throttle.on_store_error == "raise"
    assert flavour.wait(throttle.limit()).source == store.source
    store.fail()
    for call in (
        lambda: flavour.wait(throttle.limit()),
        lambda: flavour.wait(throttle.limit(timeout=60)),
        lambda: flavour.wait(throttle.peek()),
        lambda: flavour.wait(throttle.limit_many(["key"])),
        lambda: flavour.enter(throttle),
        lambda: flavour.decorated(throttle),
    ):
        with pytest.raises(StoreUnavailableError) as raised:
            call()
        assert raised.value is store.error


def test_raising_puts_nothing_between_the_call_and_the_store(flavour: Flavour) -> None:
    store = flavour.store()
    bound = object()
    store.bind = lambda plan: bound
    assert flavour.limiter(store)._decide is bound
    assert flavour.limiter(store, on_store_error="allow")._decide is not bound


# -- allow ----------------------------------------------------------------------------------------


def test_allow_lets_every_call_pass(flavour: Flavour, failing: Make) -> None:
    _, throttle = failing("allow")
    for arguments in ({}, {"cost": 2}, {"cost": 9}, {"cost": 0}, {"timeout": 60}):
        result = flavour.wait(throttle.limit(**arguments))
        assert result.allowed
        assert result.source == "allowed-by-policy"
        assert result.state == UNKNOWN
    assert flavour.wait(throttle.peek()) == UNKNOWN
    assert flavour.enter(throttle).source == "allowed-by-policy"
    assert flavour.decorated(throttle) == "ran"


# -- deny -----------------------------------------------------------------------------------------


def test_deny_refuses_every_call_and_says_whose_fault_it_is(
    flavour: Flavour, failing: Make
) -> None:
    _, throttle = failing("deny")
    for arguments in ({}, {"cost": 2}, {"timeout": 60}):
        result = flavour.wait(throttle.limit(**arguments))
        assert result.limited
        assert result.source == "denied-by-policy"
        assert result.state == RateLimitState(2, 0, 0, 1)
    assert flavour.wait(throttle.peek()) == RateLimitState(2, 0, 0, 1)
    for call in (flavour.enter, flavour.decorated):
        with pytest.raises(LimitedError) as raised:
            call(throttle)
        assert raised.value.rate_limit_result is not None
        assert raised.value.rate_limit_result.source == "denied-by-policy"
        assert str(raised.value) == (
            "Store unavailable: the call was refused by on_store_error='deny', not by its limit: "
            "retry_after=1."
        )


def test_deny_does_not_refuse_a_cost_of_nothing(flavour: Flavour, failing: Make) -> None:
    _, throttle = failing("deny")
    result = flavour.wait(throttle.limit(cost=0))
    assert (result.limited, result.source) == (False, "allowed-by-policy")
    assert result.state == UNKNOWN


def test_deny_says_when_the_store_is_asked_again(flavour: Flavour, failing: Make) -> None:
    store, throttle = failing("deny")
    store.health = lambda: Health("open", failures=3, retry_after=0.25)
    assert flavour.wait(throttle.limit()).state.retry_after == 0.25
    assert flavour.wait(throttle.limit(cost=3)).state.retry_after == inf  # whoever decides


# -- for all of them ------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["allow", "deny", "local", "a store"])
def test_a_store_that_is_back_decides_again_at_once(
    flavour: Flavour, clock: FakeClock, policy: str
) -> None:
    store = flavour.store(clock)
    fallback = flavour.store(clock) if policy == "a store" else policy
    throttle = flavour.limiter(store, key="key", on_store_error=fallback)
    own = store.source
    assert flavour.wait(throttle.limit()).source == own
    store.fail()
    for _ in range(2):
        assert flavour.wait(throttle.limit()).source != own
    store.recover()
    back = flavour.wait(throttle.limit())
    assert (back.allowed, back.source, back.state.remaining) == (True, own, 0), "nothing is copied"
    store.fail()
    if policy in ("local", "a store"):
        assert flavour.wait(throttle.limit()).limited, "nor is anything given back there"


@pytest.mark.parametrize("policy", WORDS)
def test_the_policy_of_the_store_is_the_default(flavour: Flavour, policy: str) -> None:
    store = flavour.store()
    store.on_store_error = policy
    assert flavour.limiter(store).on_store_error == policy
    assert flavour.limiter(store, on_store_error="allow").on_store_error == "allow"
    store.fail()
    throttle = flavour.limiter(store, on_store_error="allow")
    assert flavour.wait(throttle.limit("key")).source == "allowed-by-policy"


@pytest.mark.parametrize("policy", ["allow", "deny", "local"])
@pytest.mark.parametrize("error", [DataError("bad"), SetUpError("bad"), RuntimeError("bad")])
def test_other_errors_are_raised_whatever_the_policy(
    flavour: Flavour, failing: Make, policy: str, error: Exception
) -> None:
    store, throttle = failing(policy)
    store.fail(error)
    for call in (throttle.limit, throttle.peek, lambda: throttle.limit_many(["key"])):
        with pytest.raises(type(error)) as raised:
            flavour.wait(call())
        assert raised.value is error


def test_an_interrupt_is_no_failure(flavour: Flavour, failing: Make) -> None:
    store, throttle = failing("allow")
    store.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        flavour.wait(throttle.limit())


@pytest.mark.parametrize("policy", ["allow", "deny", "local"])
def test_bad_arguments_are_errors_whatever_the_policy(
    flavour: Flavour, failing: Make, policy: str
) -> None:
    _, throttle = failing(policy)
    for bad in ({"key": ""}, {"cost": -1}, {"timeout": -2}):
        with pytest.raises(DataError):
            flavour.wait(throttle.limit(**bad))


def test_a_damaged_key_is_a_failure_of_its_store_alone(
    flavour: Flavour, caplog: pytest.LogCaptureFixture
) -> None:
    store = flavour.store()
    throttle = flavour.limiter(store, on_store_error="local")
    for number in range(3):
        store.bad_keys[f"bad{number}"] = StateError(f"State {number} cannot be used")
    for number in range(3):
        assert flavour.wait(throttle.limit(f"bad{number}")).source == "fallback"
    assert flavour.wait(throttle.limit("good")).source == store.source
    limiter = flavour.limiter(store, on_store_error="allow")
    assert flavour.wait(limiter.limit("bad1")).source == "allowed-by-policy"
    assert [record.levelno for record in caplog.records] == [logging.WARNING], "once"
    assert caplog.messages == [
        "on_store_error decides instead, said once for such keys: State 0 cannot be used"
    ]
    another = flavour.limiter(store, on_store_error="allow", key_prefix="another")
    [result] = flavour.wait(another.limit_many(["bad2"]))
    assert result.source == "allowed-by-policy"
    assert len(caplog.records) == 2, "once for each prefix"


def test_an_outage_is_not_logged_for_each_limit(
    flavour: Flavour, failing: Make, caplog: pytest.LogCaptureFixture
) -> None:
    _, throttle = failing("allow")
    for _ in range(3):
        flavour.wait(throttle.limit())
    assert not caplog.records


# -- provenance -----------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["allow", "deny", "local"])
def test_provenance_survives_copies(flavour: Flavour, failing: Make, policy: str) -> None:
    store, throttle = failing(policy)
    results = [flavour.wait(throttle.limit())]
    store.recover()
    results.append(flavour.wait(throttle.limit()))
    for result in results:
        for twin in (pickle.loads(pickle.dumps(result)), copy.copy(result), copy.deepcopy(result)):
            assert twin == result
            assert twin.source == result.source
            assert repr(twin) == repr(result)
    assert len({result.source for result in results}) == 2


def test_a_refusal_by_policy_travels_as_one(flavour: Flavour, failing: Make) -> None:
    _, throttle = failing("deny")
    with pytest.raises(LimitedError) as raised:
        flavour.enter(throttle)
    twin = pickle.loads(pickle.dumps(raised.value))
    assert str(twin) == str(raised.value)


def test_a_result_made_by_hand_is_of_this_process() -> None:
    assert RateLimitResult(False, UNKNOWN).source == "memory"
    assert Throttled(store=MemoryStore()).limit("key").source == "memory"


# -- bad policies ---------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", ["", "ALLOW", "pass", 1, True, MemoryStore, ["deny"], object])
def test_what_is_no_policy_is_named(flavour: Flavour, bad: Any) -> None:
    said = (
        r"^Invalid on_store_error: .*, must be 'raise', 'allow', 'deny', 'local' "
        r"or a store to fall back to\.$"
    )
    with pytest.raises(DataError, match=said) as raised:
        flavour.limiter(flavour.store(), on_store_error=bad)
    assert repr(bad) in str(raised.value)
    store = flavour.store()
    store.on_store_error = bad
    with pytest.raises(DataError, match=said):
        flavour.limiter(store)
    with pytest.raises(DataError, match=said):
        checked_policy(bad, flavour.asynchronous)


def test_a_store_of_the_other_flavour_cannot_stand_in() -> None:
    with pytest.raises(SetUpError, match=r"^Invalid on_store_error: <.* is for throttled\.asyncio"):
        Throttled(store=FailingStore(), on_store_error=AsyncFailingStore())  # type: ignore[arg-type]
    with pytest.raises(SetUpError, match=r"^Invalid on_store_error: .* would block the event loop"):
        AsyncThrottled(store=AsyncFailingStore(), on_store_error=FailingStore())
    named = MemoryStore()
    named.on_store_error = FailingStore()
    with pytest.raises(SetUpError, match=r"^Invalid on_store_error: .* would block"):
        AsyncThrottled(store=AsyncFailingStore(), on_store_error=named)


def test_a_store_cannot_stand_in_for_itself(flavour: Flavour) -> None:
    one, other = flavour.store(), flavour.store()
    one.on_store_error, other.on_store_error = other, one
    with pytest.raises(SetUpError, match="would replace itself"):
        flavour.limiter(one)
    with pytest.raises(SetUpError, match="would replace itself"):
        flavour.limiter(one, on_store_error=one)
