"""Limits that only watch (`enforce=False`), and keys that none applies to (`exempt=`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from tests.contract import Rig
from tests.failing import AsyncFailingStore, FailingStore
from tests.reserving import RULES, Face, any_rig, face, rig
from throttled import MemoryStore, RateLimitResult, Throttled
from throttled.asyncio import Throttled as AsyncThrottled
from throttled.exceptions import DataError, LimitedError
from throttled.quota import Rule
from throttled.testing import FakeClock

__all__ = ["any_rig", "rig"]


@pytest.fixture(params=RULES)
def algorithm(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def shadow(rig: Rig, quota: Any = "3/m", **arguments: Any) -> Face:
    return face(rig, quota, enforce=False, **arguments)


def told(result: RateLimitResult) -> tuple[bool, bool, str]:
    return result.limited, result.would_limit, result.source


PASSED, WOULD_NOT_PASS = (False, False, "shadow"), (False, True, "shadow")

# -- shadow ---------------------------------------------------------------------------------------


def test_a_shadow_decides_and_counts_and_lets_pass(rig: Rig) -> None:
    watching, strict = shadow(rig), face(rig, "3/m")
    assert [told(watching.limit("key")) for _ in range(3)] == [PASSED] * 3
    assert strict.limit("key").limited
    refused = watching.limit("key")
    assert told(refused) == WOULD_NOT_PASS
    assert refused.allowed
    # It says what enforcement would have said.
    assert refused.state == strict.limit("key").state
    assert refused.state.retry_after > 0
    assert told(watching.limit("key", 9)) == WOULD_NOT_PASS
    assert told(watching.limit("other")) == PASSED
    rig.clock.advance(120)
    assert told(watching.limit("key")) == PASSED


def test_what_a_shadow_would_refuse_takes_nothing(rig: Rig) -> None:
    watching = shadow(rig)
    watching.limit("key", 2)
    before = rig.dump(rig.plan("3/m"), "key")
    watching.limit("key", 2)
    assert rig.dump(rig.plan("3/m"), "key") == before
    assert told(watching.limit("key", 0)) == PASSED


def test_a_shadow_books_slots_and_does_not_wait_for_them(rig: Rig) -> None:
    """So that the line is as long as it would be; nobody sleeps."""
    watching, strict = shadow(rig), face(rig, "3/m")
    watching.limit("key", 3)
    began, first = rig.now, strict.peek("key").retry_after
    for _ in range(3):
        assert told(watching.limit("key", timeout=600)) == PASSED
    assert rig.now == began
    assert strict.peek("key").retry_after > first
    assert told(watching.limit("key", 3, timeout=first)) == WOULD_NOT_PASS
    # The slots are used when they come: they stand, whatever is withdrawn after them.
    rig.clock.advance(first)
    assert strict.limit("key").limited == (strict.peek("key").retry_after > 0)


def test_a_block_of_a_shadow_is_entered(any_rig: Rig) -> None:
    watching = shadow(any_rig, "1/m", key="key")
    for expected in (PASSED, WOULD_NOT_PASS):
        with watching as result:
            assert told(result) == expected


def test_a_function_limited_by_a_shadow_is_called(any_rig: Rig) -> None:
    watching = shadow(any_rig, "1/m", key="key")
    called: list[int] = []

    def note(n: int) -> int:
        called.append(n)
        return n

    async def anote(n: int) -> int:
        return note(n)

    function = watching.throttled(anote if any_rig.kind.asynchronous else note)
    assert [any_rig.wait(function(n)) for n in range(3)] == [0, 1, 2]
    assert called == [0, 1, 2]
    assert watching.free() == 0


def test_many_calls_of_a_shadow_pass_each_with_its_own_answer(rig: Rig) -> None:
    watching = shadow(rig)
    results = watching.limit_many([("key", 2), ("key", 2), "key", ("other", 9), ("key", 0)])
    assert [told(result) for result in results] == [
        PASSED,
        WOULD_NOT_PASS,
        PASSED,
        WOULD_NOT_PASS,
        PASSED,
    ]
    assert watching.free() == 0


def test_a_shadow_reserves_and_settles_what_it_counted(rig: Rig) -> None:
    watching = shadow(rig, "10/m")
    held = watching.reserve("key", 8)
    assert told(held.result) == PASSED
    # Over the limit: it passes, and as nothing was taken there is nothing to settle.
    over = watching.reserve("key", 8)
    assert told(over.result) == WOULD_NOT_PASS
    over.settle(2)
    assert watching.free() == 2
    held.settle(3)
    assert watching.free() == 7
    with watching.reserved("key", 5) as inside:
        inside.cancel()
    assert watching.free() == 7


def test_a_shadow_of_several_rules_says_which_would_refuse(any_rig: Rig) -> None:
    watching = shadow(any_rig, [Rule("5/s", name="fast"), Rule("7/h", name="slow")])
    assert told(watching.limit("key", 4)) == PASSED
    refused = watching.limit("key", 4)
    assert told(refused) == WOULD_NOT_PASS
    assert refused.rule is not None
    assert refused.rule.name == "slow"
    assert [state.remaining for state in refused.states] == [1, 3]


def test_peek_and_forecast_of_a_shadow_are_those_of_the_key(any_rig: Rig) -> None:
    watching, strict = shadow(any_rig), face(any_rig, "3/m")
    watching.limit("key", 3)
    assert watching.peek("key") == strict.peek("key")
    assert watching.forecast("key") == strict.forecast("key")


def test_events_of_a_shadow_tell_of_calls_that_passed(any_rig: Rig) -> None:
    seen: list[tuple[str, Any]] = []

    def heard(what: str) -> Callable[[Any], None]:
        return lambda event: seen.append((what, event.result and told(event.result)))

    watching = shadow(
        any_rig, "1/m", on_allow=heard("allow"), on_deny=heard("deny"), on_wait=heard("wait")
    )
    watching.limit("key")
    watching.limit("key")
    watching.limit("key", timeout=600)
    assert seen == [("allow", PASSED), ("allow", WOULD_NOT_PASS), ("allow", PASSED)]


FLAVOURS: dict[str, tuple[Any, Any]] = {
    "sync": (Throttled, FailingStore),
    "async": (AsyncThrottled, AsyncFailingStore),
}


@pytest.mark.parametrize("policy", ["raise", "allow", "deny"])
@pytest.mark.parametrize(("made", "store_of"), FLAVOURS.values(), ids=FLAVOURS)
def test_a_shadow_passes_when_the_store_fails(made: Any, store_of: Any, policy: str) -> None:
    store = store_of(FakeClock())
    store.fail()
    throttle = made(
        "key", quota="1/m", store=store, enforce=False, on_store_error=policy, timeout=30
    )

    async def main() -> None:
        async def done(value: Any) -> Any:
            return await value if made is AsyncThrottled else value

        for answer in [
            await done(throttle.limit()),
            *await done(throttle.limit_many(["key", ("other", 5)])),
        ]:
            assert answer.allowed
            assert answer.source == "shadow"
            assert answer.would_limit == (policy == "deny")

    anyio.run(main)


def test_other_errors_of_a_shadow_come_through() -> None:
    store = FailingStore()
    store.fail(ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError):
        Throttled(quota="1/m", store=store, enforce=False).limit("key")
    with pytest.raises(DataError):
        Throttled(quota="1/m", store=MemoryStore(), enforce=False).limit("key", -1)


# -- exemptions -----------------------------------------------------------------------------------

EXEMPT = (False, False, "exempt")


def exempting(rig: Rig, **arguments: Any) -> tuple[Face, list[str]]:
    """A limiter that lets keys of the staff pass, in async code by a coroutine function."""
    asked: list[str] = []

    def is_staff(key: str) -> bool:
        asked.append(key)
        return key.startswith("staff")

    async def ais_staff(key: str) -> bool:
        await checkpoint()
        return is_staff(key)

    exempt = ais_staff if rig.kind.asynchronous else is_staff
    return face(rig, "3/m", exempt=exempt, **arguments), asked


def test_an_exempt_key_passes_and_counts_nothing(rig: Rig) -> None:
    limiter, asked = exempting(rig)
    for cost in (1, 3, 50):
        result = limiter.limit("staff:1", cost)
        assert told(result) == EXEMPT
        assert (result.state.limit, result.state.remaining) == (3, 3)
        assert (result.state.retry_after, result.state.reset_after) == (0, 0)
    assert rig.dump(rig.plan("3/m"), "staff:1") is None
    assert limiter.limit("user:1", 3).source != "exempt"
    assert limiter.limit("user:1").limited
    assert asked == ["staff:1"] * 3 + ["user:1"] * 2


def test_an_exempt_key_passes_whatever_was_counted_before(any_rig: Rig) -> None:
    face(any_rig, "3/m").limit("staff", 3)
    limiter, _ = exempting(any_rig)
    began = any_rig.now
    assert told(limiter.limit("staff", 3, timeout=600)) == EXEMPT
    assert any_rig.now == began
    assert limiter.free("staff") == 0


def test_blocks_functions_and_many_calls_are_exempt_too(any_rig: Rig) -> None:
    limiter, _ = exempting(any_rig, key="staff")

    def function() -> str:
        return "ran"

    async def afunction() -> str:
        return function()

    call = limiter.throttled(afunction if any_rig.kind.asynchronous else function)
    for _ in range(5):
        with limiter as result:
            assert told(result) == EXEMPT
        assert any_rig.wait(call()) == "ran"
    results = limiter.limit_many([("staff", 9), ("user", 2), "staff", ("user", 2)])
    assert [result.source == "exempt" for result in results] == [True, False, True, False]
    assert [result.limited for result in results] == [False, False, False, True]
    assert limiter.free("staff") == 3


def test_a_reservation_of_an_exempt_key_has_nothing_to_settle(any_rig: Rig) -> None:
    limiter, _ = exempting(any_rig)
    held = limiter.reserve("staff", 50)
    assert told(held.result) == EXEMPT
    held.settle(7)
    assert limiter.free("staff") == 3
    limiter.reserve("staff", 0).settle(2)
    assert limiter.free("staff") == 3
    with pytest.raises(LimitedError):
        limiter.reserve("user", 50)


def test_an_exempt_key_of_a_shadow_is_exempt(any_rig: Rig) -> None:
    limiter, _ = exempting(any_rig, enforce=False)
    assert told(limiter.limit("staff", 50)) == EXEMPT
    assert told(limiter.limit("user", 50)) == WOULD_NOT_PASS
    assert [told(each) for each in limiter.limit_many([("staff", 50), ("user", 50)])] == [
        EXEMPT,
        WOULD_NOT_PASS,
    ]


def test_an_error_of_the_callable_comes_through_and_takes_nothing(any_rig: Rig) -> None:
    def broken(key: str) -> bool:
        raise ZeroDivisionError(key)

    async def abroken(key: str) -> bool:
        raise ZeroDivisionError(key)

    for enforce in (True, False):
        limiter = face(
            any_rig,
            "3/m",
            exempt=abroken if any_rig.kind.asynchronous else broken,
            enforce=enforce,
        )
        calls: list[Callable[[], Any]] = [
            lambda limiter=limiter: limiter.limit("key"),
            lambda limiter=limiter: limiter.limit_many(["other", "key"]),
            lambda limiter=limiter: limiter.reserve("key"),
        ]
        for call in calls:
            with pytest.raises(ZeroDivisionError):
                call()
    assert any_rig.dump(any_rig.plan("3/m"), "key") is None
    assert any_rig.dump(any_rig.plan("3/m"), "other") is None


def test_an_exemption_that_cannot_be_asked_is_refused() -> None:
    async def later(key: str) -> bool:
        return True

    with pytest.raises(DataError, match=r"Invalid exempt: .*later is async"):
        Throttled(exempt=later)
    for made in (Throttled, AsyncThrottled):
        with pytest.raises(DataError, match="Invalid exempt: 'staff', must be a callable"):
            made(exempt="staff")
        with pytest.raises(DataError, match="Invalid enforce: 'no', must be True or False"):
            made(enforce="no")
