"""Events: what `on_allow`, `on_deny`, `on_error` and `on_wait` hear."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from tests import flavours
from tests.flavours import Flavour, faults
from throttled import MemoryStore, RateLimitResult, RateLimitState
from throttled.exceptions import DataError, LimitedError, StoreUnavailableError
from throttled.hooks import Event, checked_events
from throttled.testing import FakeClock

flavour = flavours.flavour

NAMES = ("on_allow", "on_deny", "on_error", "on_wait")
ALLOWED = RateLimitResult(False, RateLimitState(2, 1, 30.0, 0.0))
DENIED = RateLimitResult(True, RateLimitState(2, 0, 60.0, 30.0))
THROTTLE = object()


class Heard:
    """Callbacks that note what they are told."""

    def __init__(self, wrap: Callable[[Any], Any] = lambda hear: hear) -> None:
        self.events: list[tuple[str, Event]] = []
        self.callbacks: dict[str, Any] = {
            name: wrap(functools.partial(self._hear, name)) for name in NAMES
        }

    def _hear(self, name: str, event: Event) -> str:
        self.events.append((name, event))
        return "ignored"

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.events]


def awaited(hear: Callable[[Event], Any]) -> Any:
    async def callback(event: Event) -> None:
        await checkpoint()
        hear(event)

    return callback


def told(flavour: Flavour, tell: Callable[..., Any], *args: Any) -> None:
    """Tell of an event, as a `Throttled` does."""
    if not flavour.asynchronous:
        assert tell(*args) is None
        return

    async def main() -> None:
        telling = tell(*args)
        if telling is not None:
            await telling

    flavour.run(main)


def ways(flavour: Flavour) -> list[Callable[[Any], Any]]:
    """The kinds of callbacks that a flavour takes."""
    return [lambda hear: hear, awaited] if flavour.asynchronous else [lambda hear: hear]


# -- by themselves --------------------------------------------------------------------------------


def test_each_event_has_its_callback(flavour: Flavour) -> None:
    error = StoreUnavailableError("gone")
    for wrap in ways(flavour):
        heard = Heard(wrap)
        events = checked_events(flavour.asynchronous, **heard.callbacks)
        assert events is not None
        told(flavour, events.decided, THROTTLE, "key", 1, ALLOWED)
        told(flavour, events.decided, THROTTLE, "key", 2, DENIED, 1.5)
        told(flavour, events.failed, THROTTLE, "key", 3, error)
        told(flavour, events.waits, THROTTLE, "key", 4, 2.5)
        assert heard.events == [
            ("on_allow", Event("key", 1, ALLOWED, 0.0, None, THROTTLE)),
            ("on_deny", Event("key", 2, DENIED, 1.5, None, THROTTLE)),
            ("on_error", Event("key", 3, None, 0.0, error, THROTTLE)),
            ("on_wait", Event("key", 4, None, 2.5, None, THROTTLE)),
        ]


def test_an_event_has_seven_names_and_cannot_be_changed() -> None:
    names = ["key", "cost", "result", "wait", "error", "throttle", "took"]
    assert [each.name for each in fields(Event)] == names
    event = Event("key", 1, ALLOWED, 0.0, None, THROTTLE)
    with pytest.raises(FrozenInstanceError):
        event.key = "other"  # type: ignore[misc]
    assert not hasattr(event, "__dict__")


def test_without_callbacks_there_is_nothing_to_do() -> None:
    for asynchronous in (False, True):
        assert checked_events(asynchronous) is None


def test_what_nobody_listens_to_is_not_told(flavour: Flavour) -> None:
    heard = Heard()
    for name in NAMES:
        events = checked_events(flavour.asynchronous, **{name: heard.callbacks[name]})
        assert events is not None
        told(flavour, events.decided, THROTTLE, "key", 1, ALLOWED)
        told(flavour, events.decided, THROTTLE, "key", 1, DENIED)
        told(flavour, events.failed, THROTTLE, "key", 1, ValueError())
        told(flavour, events.waits, THROTTLE, "key", 1, 2.5)
    assert heard.names == list(NAMES)


def test_a_callback_that_fails_is_logged_and_changes_nothing(
    flavour: Flavour, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(event: Event) -> None:
        raise ZeroDivisionError(event.key)

    for number, wrap in enumerate(ways(flavour), 1):
        events = checked_events(flavour.asynchronous, on_allow=wrap(broken))
        assert events is not None
        told(flavour, events.decided, THROTTLE, "key", 1, ALLOWED)
        assert len(faults(caplog)) == number
    assert "Event callback" in caplog.text
    assert "broken" in caplog.text
    assert "ZeroDivisionError: key" in caplog.text


def test_an_interrupt_within_a_callback_passes(flavour: Flavour) -> None:
    def interrupted(event: Event) -> None:
        raise KeyboardInterrupt

    for wrap in ways(flavour):
        events = checked_events(flavour.asynchronous, on_allow=wrap(interrupted))
        assert events is not None
        with pytest.raises(KeyboardInterrupt):
            told(flavour, events.decided, THROTTLE, "key", 1, ALLOWED)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [7, "print", (), object()])
def test_what_cannot_be_called_is_an_error(flavour: Flavour, name: str, bad: Any) -> None:
    with pytest.raises(DataError, match=f"^Invalid {name}: .*must be a callable") as raised:
        checked_events(flavour.asynchronous, **{name: bad})
    assert repr(bad) in str(raised.value)


class AsyncCallable:
    async def __call__(self, event: Event) -> None: ...


@pytest.mark.parametrize("name", NAMES)
def test_sync_code_has_no_coroutine_functions_for_callbacks(name: str) -> None:
    for callback in (awaited(print), functools.partial(awaited(print)), AsyncCallable()):
        with pytest.raises(DataError, match=f"^Invalid {name}: .*is async"):
            checked_events(False, **{name: callback})
        assert checked_events(True, **{name: callback}) is not None


# -- in a Throttled -------------------------------------------------------------------------------


def test_calls_are_heard(flavour: Flavour) -> None:
    for wrap in ways(flavour):
        heard = Heard(wrap)
        throttle = flavour.limiter(**heard.callbacks)
        results = [flavour.run(throttle.limit, "key", cost) for cost in (2, 1)]
        assert heard.events == [
            ("on_allow", Event("key", 2, results[0], 0.0, None, throttle)),
            ("on_deny", Event("key", 1, results[1], 0.0, None, throttle)),
        ]


def test_a_wait_is_heard_before_and_after(flavour: Flavour) -> None:
    clock = FakeClock()
    for wrap in ways(flavour):
        heard = Heard(wrap)
        throttle = flavour.limiter(
            quota="1/m", timeout=60, store=MemoryStore(clock=clock), **heard.callbacks
        )
        results = [flavour.run(throttle.limit, f"key {wrap}") for _ in range(2)]
        assert heard.names == ["on_allow", "on_wait", "on_allow"]
        [first, wait, second] = [event for _, event in heard.events]
        assert [first.wait, wait.wait, second.wait] == [0.0, 60.0, 60.0]
        assert [first.result, wait.result, second.result] == [results[0], None, results[1]]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_call_cancelled_while_its_wait_is_told_gives_back_its_slot(backend: str) -> None:
    async def main() -> None:
        hearing = anyio.Event()

        async def hear(event: Event) -> None:
            hearing.set()
            await anyio.sleep_forever()

        limiter = Flavour(backend).limiter(quota="1/m", timeout=60, on_wait=hear)
        await limiter.limit("key")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(limiter.limit, "key")
            await hearing.wait()
            tasks.cancel_scope.cancel()
        assert (await limiter.peek("key")).retry_after == 60

    anyio.run(main, backend=backend)


def test_a_call_interrupted_while_its_wait_is_told_gives_back_its_slot() -> None:
    def hear(event: Event) -> None:
        raise KeyboardInterrupt

    limiter = Flavour("sync").limiter(quota="1/m", timeout=60, on_wait=hear)
    limiter.limit("key")
    with pytest.raises(KeyboardInterrupt):
        limiter.limit("key")
    assert limiter.peek("key").retry_after == 60


def test_a_call_that_nobody_could_decide_is_heard(flavour: Flavour) -> None:
    for wrap in ways(flavour):
        heard = Heard(wrap)
        store = flavour.failing_store()
        store.fail()
        throttle = flavour.limiter(store=store, **heard.callbacks)
        with pytest.raises(StoreUnavailableError):
            flavour.run(throttle.limit, "key")
        assert heard.events == [
            ("on_error", Event("key", 1, None, 0.0, store.error, throttle)),
        ]


def test_a_failure_that_a_policy_answers_is_heard_and_so_is_the_answer(flavour: Flavour) -> None:
    for policy, name in (("allow", "on_allow"), ("deny", "on_deny")):
        for wrap in ways(flavour):
            heard = Heard(wrap)
            store = flavour.failing_store()
            store.fail()
            throttle = flavour.limiter(store=store, on_store_error=policy, **heard.callbacks)
            answer = flavour.run(throttle.limit, "key")
            assert heard.events == [
                ("on_error", Event("key", 1, None, 0.0, store.error, throttle)),
                (name, Event("key", 1, answer, 0.0, None, throttle)),
            ]


def test_several_calls_at_once_are_heard_each(flavour: Flavour) -> None:
    for wrap in ways(flavour):
        heard = Heard(wrap)
        throttle = flavour.limiter(**heard.callbacks)
        answers = flavour.run(throttle.limit_many, ["a", ("b", 3)])
        assert heard.events == [
            ("on_allow", Event("a", 1, answers[0], 0.0, None, throttle)),
            ("on_deny", Event("b", 3, answers[1], 0.0, None, throttle)),
        ]


def test_a_limit_that_is_not_enforced_is_heard_to_let_pass(flavour: Flavour) -> None:
    heard = Heard()
    throttle = flavour.limiter(quota="1/m", enforce=False, **heard.callbacks)
    for _ in range(2):
        assert flavour.run(throttle.limit, "key").allowed
    assert heard.names == ["on_allow", "on_allow"]
    told_of = [event.result for _, event in heard.events]
    assert [each is not None and each.would_limit for each in told_of] == [False, True]


def test_looking_is_not_heard(flavour: Flavour) -> None:
    heard = Heard()
    throttle = flavour.limiter(**heard.callbacks)
    flavour.run(throttle.peek, "key", 9)
    assert heard.names == []


def test_decorated_functions_are_heard(flavour: Flavour) -> None:
    heard = Heard()
    throttle = flavour.limiter(key="key", quota="1/m", **heard.callbacks)
    if flavour.asynchronous:

        @throttle
        async def ping() -> str:
            return "pong"
    else:

        @throttle
        def ping() -> str:
            return "pong"

    assert flavour.run(ping) == "pong"
    with pytest.raises(LimitedError):
        flavour.run(ping)
    assert heard.names == ["on_allow", "on_deny"]


def test_callbacks_that_fail_change_no_call(
    flavour: Flavour, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(event: Event) -> None:
        raise ZeroDivisionError

    for number, wrap in enumerate(ways(flavour), 1):
        throttle = flavour.limiter(
            quota="1/m",
            store=MemoryStore(clock=FakeClock()),
            **{name: wrap(broken) for name in NAMES},
        )
        assert flavour.run(throttle.limit, "key").allowed
        assert flavour.run(throttle.limit, "key").limited
        assert flavour.run(throttle.limit, "key", timeout=60).allowed
        assert len(faults(caplog)) == 4 * number


def test_bad_callbacks_are_an_error_when_the_limit_is_made(flavour: Flavour) -> None:
    with pytest.raises(DataError, match="Invalid on_deny: 7"):
        flavour.limiter(on_deny=7)
