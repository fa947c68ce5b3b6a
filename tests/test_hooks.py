"""Hooks: code of users around decisions."""

from __future__ import annotations

import logging
from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest

import throttled.asyncio
import throttled.asyncio.hooks as async_hooks
from tests import flavours
from tests.failing import FailingStore
from tests.flavours import (
    CONTEXT,
    FAULTY,
    Body,
    Decision,
    Flavour,
    driven,
    faults,
    passed,
    passes,
    raises_after,
    raises_before,
    result,
    returns_nothing,
)
from throttled import MemoryStore, RateLimitResult, hooks
from throttled.exceptions import DataError, LimitedError, StateError, StoreUnavailableError
from throttled.hooks import HookContext, checked_hooks, store_type_of
from throttled.store import RedisStore
from throttled.testing import FakeClock

flavour = flavours.flavour

# -- the order ------------------------------------------------------------------------------------


def test_the_first_hook_is_the_outermost(flavour: Flavour) -> None:
    seen: list[Any] = []

    def named(name: str) -> Body:
        async def body(call_next: Any, context: HookContext) -> Any:
            seen.append(f"{name} before")
            answer = await call_next()
            seen.append(f"{name} after")
            return answer

        return body

    decision = Decision()

    def decide() -> Any:
        seen.append("decision")
        return decision()

    assert passed(flavour, [named("A"), named("B")], decide) is decision.answer
    assert seen == ["A before", "B before", "decision", "B after", "A after"]


def test_without_hooks_there_is_the_decision_alone(flavour: Flavour) -> None:
    decision = Decision()
    assert passed(flavour, [], decision) is decision.answer


def test_every_hook_gets_the_context(flavour: Flavour) -> None:
    seen: list[HookContext] = []

    async def body(call_next: Any, context: HookContext) -> Any:
        seen.append(context)
        return await call_next()

    passed(flavour, [body, body], Decision())
    assert seen == [CONTEXT, CONTEXT]


def test_the_context_has_four_names_and_cannot_be_changed() -> None:
    assert [each.name for each in fields(HookContext)] == ["key", "cost", "algorithm", "store_type"]
    with pytest.raises(FrozenInstanceError):
        CONTEXT.key = "other"  # type: ignore[misc]
    assert not hasattr(CONTEXT, "__dict__")


def test_the_store_type_is_a_known_name_or_that_of_the_class() -> None:
    class Named(MemoryStore):
        pass

    assert store_type_of(MemoryStore()) == store_type_of(Named()) == "memory"
    assert store_type_of(RedisStore(server="redis://127.0.0.1:1/0")) == "redis"
    assert store_type_of(throttled.asyncio.RedisStore(server="redis://127.0.0.1:1/0")) == "redis"
    assert store_type_of(FailingStore()) == "failingstore"


# -- hooks that fail ------------------------------------------------------------------------------


@pytest.mark.parametrize("faulty", FAULTY)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_hook_that_fails_changes_nothing(
    flavour: Flavour, faulty: Body, place: int, caplog: pytest.LogCaptureFixture
) -> None:
    others: list[str] = []

    async def other(call_next: Any, context: HookContext) -> Any:
        others.append("before")
        answer = await call_next()
        others.append("after")
        return answer

    decision = Decision()
    bodies: list[Body] = [other, other]
    bodies.insert(place, faulty)
    assert passed(flavour, bodies, decision) is decision.answer
    assert decision.taken == 1
    assert others == ["before", "before", "after", "after"]
    [fault] = faults(caplog)
    assert "AwaitedHook" in fault.getMessage() or "PlainHook" in fault.getMessage()
    assert fault.levelno == logging.ERROR


@pytest.mark.parametrize("faulty", [raises_before, raises_after])
def test_what_a_hook_raised_is_logged_with_its_traceback(
    flavour: Flavour, faulty: Body, caplog: pytest.LogCaptureFixture
) -> None:
    passed(flavour, [faulty], Decision())
    assert "Traceback" in caplog.text
    assert faulty.__name__ in caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_what_a_hook_returned_is_logged(flavour: Flavour, caplog: pytest.LogCaptureFixture) -> None:
    passed(flavour, [returns_nothing], Decision())
    assert "returned None instead of a RateLimitResult" in caplog.text


def test_hooks_that_all_fail_leave_the_decision(
    flavour: Flavour, caplog: pytest.LogCaptureFixture
) -> None:
    decision = Decision(result(limited=True))
    assert passed(flavour, [*FAULTY, *FAULTY], decision) is decision.answer
    assert decision.taken == 1
    assert len(faults(caplog)) == 2 * len(FAULTY)


def test_a_hook_that_fails_after_another_result_leaves_what_it_was_given(
    flavour: Flavour,
) -> None:
    other = result(limited=True)

    async def replaces(call_next: Any, context: HookContext) -> Any:
        await call_next()
        return other

    assert passed(flavour, [raises_after, replaces], Decision()) is other


def test_a_good_hook_is_not_logged(flavour: Flavour, caplog: pytest.LogCaptureFixture) -> None:
    passed(flavour, [passes, passes], Decision())
    assert not faults(caplog)


# -- hooks that decide ----------------------------------------------------------------------------


def test_a_hook_may_answer_instead_of_the_decision(
    flavour: Flavour, caplog: pytest.LogCaptureFixture
) -> None:
    mine = result(limited=True)

    async def answers(call_next: Any, context: HookContext) -> Any:
        return mine

    decision = Decision()
    assert passed(flavour, [passes, answers, passes], decision) is mine
    assert decision.taken == 0
    assert not faults(caplog)


def test_a_hook_may_return_another_result(flavour: Flavour) -> None:
    mine = result(limited=True)

    async def replaces(call_next: Any, context: HookContext) -> Any:
        return mine if (await call_next()).allowed else None

    decision = Decision()
    assert passed(flavour, [replaces], decision) is mine
    assert decision.taken == 1


@pytest.mark.parametrize("answer", [result(), StoreUnavailableError("gone"), KeyboardInterrupt()])
def test_however_often_a_hook_asks_the_decision_is_taken_once(
    flavour: Flavour, answer: Any
) -> None:
    inner: list[str] = []
    given: list[Any] = []

    async def asks_thrice(call_next: Any, context: HookContext) -> Any:
        for _ in range(3):
            try:
                given.append(await call_next())
            except BaseException as error:
                given.append(error)
        return await call_next()

    async def counts(call_next: Any, context: HookContext) -> Any:
        inner.append("called")
        return await call_next()

    decision = Decision(answer)
    if isinstance(answer, RateLimitResult):
        assert passed(flavour, [asks_thrice, counts], decision) is answer
    else:
        with pytest.raises(type(answer)) as raised:
            passed(flavour, [asks_thrice, counts], decision)
        assert raised.value is answer
    assert decision.taken == 1
    assert inner == ["called"]
    assert given == [answer] * 3


# -- errors of the decision -----------------------------------------------------------------------


@pytest.mark.parametrize("error", [DataError("bad"), StoreUnavailableError("gone"), ValueError()])
def test_an_error_of_the_decision_comes_through_as_it_is(
    flavour: Flavour, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    decision = Decision(error)
    with pytest.raises(type(error)) as raised:
        passed(flavour, [passes, passes], decision)
    assert raised.value is error
    assert error.__context__ is None
    assert decision.taken == 1
    assert not faults(caplog)


def test_a_hook_may_see_an_error_and_raise_it_again(flavour: Flavour) -> None:
    seen: list[Exception] = []

    async def looks(call_next: Any, context: HookContext) -> Any:
        try:
            return await call_next()
        except StateError as error:
            seen.append(error)
            raise

    error = StateError("damaged")
    with pytest.raises(StateError):
        passed(flavour, [looks, looks], Decision(error))
    assert seen == [error, error]


def test_a_hook_may_answer_an_error_with_a_result(
    flavour: Flavour, caplog: pytest.LogCaptureFixture
) -> None:
    mine = result()

    async def saves(call_next: Any, context: HookContext) -> Any:
        try:
            return await call_next()
        except StoreUnavailableError:
            return mine

    decision = Decision(StoreUnavailableError("gone"))
    assert passed(flavour, [passes, saves, passes], decision) is mine
    assert decision.taken == 1
    assert not faults(caplog)


@pytest.mark.parametrize("faulty", FAULTY)
def test_an_error_of_the_decision_outlasts_a_hook_that_fails(
    flavour: Flavour, faulty: Body
) -> None:
    error = StoreUnavailableError("gone")
    decision = Decision(error)
    with pytest.raises(StoreUnavailableError) as raised:
        passed(flavour, [passes, faulty, passes], decision)
    assert raised.value is error
    assert decision.taken == 1


def test_a_hook_cannot_raise_something_else_for_an_error(
    flavour: Flavour, caplog: pytest.LogCaptureFixture
) -> None:
    async def wraps(call_next: Any, context: HookContext) -> Any:
        try:
            return await call_next()
        except StoreUnavailableError as error:
            raise ConnectionError("wrapped") from error

    with pytest.raises(StoreUnavailableError):
        passed(flavour, [wraps], Decision(StoreUnavailableError("gone")))
    assert len(faults(caplog)) == 1


# -- bad hooks ------------------------------------------------------------------------------------


def test_hooks_are_kept_in_their_order(flavour: Flavour) -> None:
    given = [flavour.hook(passes), flavour.hook(raises_after)]
    for hooks_of_a_kind in (given, tuple(given), iter(given)):
        assert checked_hooks(hooks_of_a_kind, flavour.asynchronous) == tuple(given)
    assert checked_hooks((), flavour.asynchronous) == ()
    assert checked_hooks(None, flavour.asynchronous) == ()


@pytest.mark.parametrize("bad", [7, "hooks", b"hooks", object(), len])
def test_what_is_no_list_of_hooks_is_an_error(flavour: Flavour, bad: Any) -> None:
    with pytest.raises(DataError, match=r"^Invalid hooks: .*must be a list such as") as raised:
        checked_hooks(bad, flavour.asynchronous)
    assert repr(bad) in str(raised.value)


def test_one_hook_is_no_list(flavour: Flavour) -> None:
    with pytest.raises(DataError, match=r"^Invalid hooks: .*must be a list such as \[MyHook\(\)\]"):
        checked_hooks(flavour.hook(passes), flavour.asynchronous)


def test_what_is_no_hook_is_an_error_that_names_it(flavour: Flavour) -> None:
    other = Flavour("sync" if flavour.asynchronous else "asyncio")
    here, there = "throttled.asyncio", "throttled"
    if not flavour.asynchronous:
        here, there = there, here
    bad: dict[Any, str] = {
        7: rf"7 must be an instance of {here}\.Hook",
        None: rf"None must be an instance of {here}\.Hook",
        len: rf"{len!r} must be an instance of {here}\.Hook",
        type(flavour.hook(passes)): rf"is a class, must be an instance of {here}\.Hook",
        other.hook(passes): rf"is a hook of {there}, must be an instance of {here}\.Hook",
    }
    for hook, why in bad.items():
        with pytest.raises(DataError, match=f"^Invalid hook: .*{why}"):
            checked_hooks([flavour.hook(passes), hook], flavour.asynchronous)


def test_a_hook_of_sync_code_is_not_async() -> None:
    class Awaited(hooks.Hook):
        async def on_limit(self, call_next: Any, context: HookContext) -> Any:  # type: ignore[override]
            return call_next()

    with pytest.raises(DataError, match="async on_limit"):
        checked_hooks([Awaited()], False)


def test_a_hook_has_to_say_what_it_does() -> None:
    for kind in (hooks.Hook, async_hooks.Hook):
        with pytest.raises(TypeError, match="abstract"):
            type("Silent", (kind,), {})()


# -- in a Throttled -------------------------------------------------------------------------------


def test_hooks_wrap_every_call(flavour: Flavour) -> None:
    seen: list[Any] = []

    async def looks(call_next: Any, context: HookContext) -> Any:
        answer = await call_next()
        seen.append((context, answer.limited))
        return answer

    throttle = flavour.limiter(using="gcra", hooks=[flavour.hook(looks)])
    answers = [flavour.run(throttle.limit, "user:1", cost) for cost in (1, 2, 1)]
    assert [answer.limited for answer in answers] == [False, True, False]
    assert seen == [
        (HookContext("user:1", 1, "gcra", "memory"), False),
        (HookContext("user:1", 2, "gcra", "memory"), True),
        (HookContext("user:1", 1, "gcra", "memory"), False),
    ]


def test_hooks_wrap_decorated_functions_and_blocks(flavour: Flavour) -> None:
    asked: list[str] = []

    async def looks(call_next: Any, context: HookContext) -> Any:
        asked.append(context.key)
        return await call_next()

    throttle = flavour.limiter(key="key", quota="2/m", hooks=[flavour.hook(looks)])
    if flavour.asynchronous:

        @throttle
        async def ping() -> str:
            return "pong"

        async def block() -> None:
            async with throttle:
                pass
    else:

        @throttle
        def ping() -> str:
            return "pong"

        def block() -> None:
            with throttle:
                pass

    assert flavour.run(ping) == "pong"
    flavour.run(block)
    for limited in (ping, block):
        with pytest.raises(LimitedError):
            flavour.run(limited)
    assert asked == ["key"] * 4


@pytest.mark.parametrize("faulty", FAULTY)
def test_a_hook_that_fails_costs_nothing(
    flavour: Flavour, faulty: Body, caplog: pytest.LogCaptureFixture
) -> None:
    throttle = flavour.limiter(hooks=[flavour.hook(faulty), flavour.hook(raises_after)])
    answers = [flavour.run(throttle.limit, "key") for _ in range(3)]
    assert [answer.limited for answer in answers] == [False, False, True]
    assert [answer.state.remaining for answer in answers] == [1, 0, 0]
    assert len(faults(caplog)) == 6


def test_a_hook_sees_that_the_store_failed(flavour: Flavour) -> None:
    seen: list[Exception] = []

    async def looks(call_next: Any, context: HookContext) -> Any:
        try:
            return await call_next()
        except StoreUnavailableError as error:
            seen.append(error)
            raise

    store = flavour.failing_store()
    store.fail()
    throttle = flavour.limiter(store=store, hooks=[flavour.hook(looks)])
    with pytest.raises(StoreUnavailableError) as raised:
        flavour.run(throttle.limit, "key")
    assert seen == [raised.value] == [store.error]
    assert store.asked == ["run"]


def test_a_call_that_waits_comes_back_to_its_hook_when_it_is_served(flavour: Flavour) -> None:
    clock = FakeClock()
    spans: list[float] = []

    async def measures(call_next: Any, context: HookContext) -> Any:
        start = clock.now
        answer = await call_next()
        spans.append(clock.now - start)
        return answer

    throttle = flavour.limiter(
        quota="1/m", timeout=60, store=MemoryStore(clock=clock), hooks=[flavour.hook(measures)]
    )
    for _ in range(2):
        assert flavour.run(throttle.limit, "key").allowed
    assert spans == [0.0, 60.0]


def test_hooks_wrap_reservations(flavour: Flavour) -> None:
    seen: list[tuple[int, bool]] = []

    async def looks(call_next: Any, context: HookContext) -> Any:
        answer = await call_next()
        seen.append((context.cost, answer.limited))
        return answer

    throttle = flavour.limiter(quota="5/m", hooks=[flavour.hook(raises_after), flavour.hook(looks)])

    async def reserve(cost: int) -> Any:
        reserving = throttle.reserve("key", cost)
        return await reserving if flavour.asynchronous else reserving

    run = flavour.run if flavour.asynchronous else lambda function, *args: driven(function(*args))
    reservation = run(reserve, 4)
    with pytest.raises(LimitedError):
        run(reserve, 2)
    assert seen == [(4, False), (2, True)]
    flavour.run(reservation.settle, 1)
    assert flavour.run(throttle.peek, "key").remaining == 4
    assert seen == [(4, False), (2, True)]


def test_bad_hooks_are_an_error_when_the_limit_is_made(flavour: Flavour) -> None:
    with pytest.raises(DataError, match="Invalid hook: 7"):
        flavour.limiter(hooks=[7])


def test_hooks_are_public_in_both_namespaces() -> None:
    import throttled as sync

    assert sync.Hook is hooks.Hook
    assert throttled.asyncio.Hook is async_hooks.Hook
    assert sync.HookContext is throttled.asyncio.HookContext is HookContext
