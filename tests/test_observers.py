"""Observers: what `throttle.observe` lets them hear."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests import callers as shared
from tests import flavours, servers
from tests.callers import PATIENT, Callers
from tests.failing import LocalFailingStore
from tests.flavours import Flavour, faults
from tests.servers import Proxy
from throttled import Hook, HookContext, MemoryStore, RateLimitResult, Rule, Throttled
from throttled.asyncio.hooks import Observer as AsyncObserver
from throttled.exceptions import DataError, LimitedError, StoreUnavailableError
from throttled.hooks import Event, Observer
from throttled.testing import FakeClock, disabled

pytestmark = pytest.mark.realtime

flavour = flavours.flavour
valkey, key, proxy, callers = servers.valkey, shared.key, shared.proxy, shared.callers
on_server = pytest.mark.server

#: How long a slow store takes, in seconds: far more than the rest of a call.
SLOW = 0.05


class Ear(Observer):
    """Notes what it is told."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, Event]] = []

    def decided(self, event: Event) -> None:
        assert event.result is not None
        self.heard.append(("refused" if event.result.limited else "admitted", event))

    def waits(self, event: Event) -> None:
        self.heard.append(("waits", event))

    def failed(self, event: Event) -> None:
        self.heard.append(("failed", event))

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.heard]

    @property
    def events(self) -> list[Event]:
        return [event for _, event in self.heard]


def observed(flavour: Flavour, **arguments: Any) -> tuple[Any, Ear]:
    """A limiter, and what listens to it."""
    throttle, ear = flavour.limiter(**arguments), Ear()
    throttle.observe(ear)
    return throttle, ear


def plain_path(throttle: Any) -> bool:
    """Whether calls go straight to what decides, past all that not every limit has."""
    return bool(throttle._decide == throttle._ask)


# -- who hears what -------------------------------------------------------------------------------


def test_calls_are_heard_from_then_on(flavour: Flavour) -> None:
    throttle, ear = flavour.limiter(), Ear()
    flavour.run(throttle.limit, "key")
    throttle.observe(ear)
    results = [flavour.run(throttle.limit, "key") for _ in range(2)]
    assert ear.heard == [
        ("admitted", Event("key", 1, results[0], 0.0, None, throttle)),
        ("refused", Event("key", 1, results[1], 0.0, None, throttle)),
    ], "what was counted before counts on"


def test_several_hear_the_same_and_one_hears_once(flavour: Flavour) -> None:
    throttle, ear = observed(flavour)
    other = Ear()
    for each in (ear, other, ear):
        throttle.observe(each)
    flavour.run(throttle.limit, "key")
    assert ear.names == other.names == ["admitted"]
    assert ear.events[0] is other.events[0]


def test_callbacks_hear_on(flavour: Flavour) -> None:
    told: list[Event] = []
    throttle, ear = observed(flavour, on_allow=told.append, on_error=told.append)
    flavour.run(throttle.limit, "key", 2)
    flavour.run(throttle.limit, "key")
    assert ear.names == ["admitted", "refused"]
    assert told == ear.events[:1]


def test_one_that_overrides_nothing_changes_nothing(flavour: Flavour) -> None:
    throttle = flavour.limiter(quota="1/m", timeout=60)
    throttle.observe(Observer())
    assert [flavour.run(throttle.limit, "key").limited for _ in range(2)] == [False, False]


def test_both_namespaces_have_one_kind_of_observer() -> None:
    assert AsyncObserver is Observer


def test_a_wait_is_heard_before_and_after(flavour: Flavour) -> None:
    throttle, ear = observed(flavour, quota="1/m", timeout=60)
    for _ in range(2):
        flavour.run(throttle.limit, "key")
    assert ear.names == ["admitted", "waits", "admitted"]
    assert [event.wait for event in ear.events] == [0.0, 60.0, 60.0]


def test_with_and_decorators_are_heard(flavour: Flavour) -> None:
    throttle, ear = observed(flavour, key="key", quota="1/m")
    if flavour.asynchronous:

        @throttle
        async def ping() -> str:
            return "pong"

        async def enter() -> None:
            async with throttle:
                pass
    else:

        @throttle
        def ping() -> str:
            return "pong"

        def enter() -> None:
            with throttle:
                pass

    assert flavour.run(ping) == "pong"
    with pytest.raises(LimitedError):
        flavour.run(enter)
    assert ear.names == ["admitted", "refused"]


def test_reservations_are_heard(flavour: Flavour) -> None:
    throttle, ear = observed(flavour)

    async def areserve(cost: int) -> None:
        await throttle.reserve("key", cost)

    reserve = areserve if flavour.asynchronous else lambda cost: throttle.reserve("key", cost)
    flavour.run(reserve, 2)
    with pytest.raises(LimitedError):
        flavour.run(reserve, 1)
    assert ear.names == ["admitted", "refused"]
    assert [event.cost for event in ear.events] == [2, 1]


def test_several_calls_at_once_are_heard_each(flavour: Flavour) -> None:
    throttle, ear = observed(flavour)
    results = flavour.run(throttle.limit_many, ["a", ("b", 3)])
    assert ear.names == ["admitted", "refused"]
    assert [event.result for event in ear.events] == results
    assert ear.events[0].took == ear.events[1].took > 0.0


def test_limits_asked_together_are_heard_each(flavour: Flavour) -> None:
    store = MemoryStore(clock=FakeClock())
    user, users = observed(flavour, store=store, quota="5/m", key_prefix="user")
    org, orgs = observed(flavour, store=store, quota="1/m", key_prefix="org")
    for _ in range(2):
        flavour.run(flavour.made.limit_all, [(user, "ann"), (org, "acme")])
    flavour.run(flavour.made.limit_all, [(user, "ann"), (org, "acme")], timeout=60)
    assert users.names == orgs.names == ["admitted", "refused", "waits", "admitted"]
    assert {event.key for event in users.events} == {"ann"}
    assert {event.key for event in orgs.events} == {"acme"}
    assert [event.took > 0.0 for event in users.events] == [True, True, False, True]
    assert users.events[3].wait == 60.0
    assert users.events[3].took < 30.0, "that is no part of the wait"


def test_what_decides_nothing_is_not_heard(flavour: Flavour) -> None:
    throttle, ear = observed(flavour)
    flavour.run(throttle.peek, "key")
    flavour.run(throttle.debit, "key", 1)
    flavour.run(throttle.reset, "key")
    with disabled():
        flavour.run(throttle.limit, "key")
    assert ear.names == []


def test_exempt_keys_are_heard_and_took_no_time(flavour: Flavour) -> None:
    throttle, ear = observed(flavour, exempt=lambda key: key == "me")
    flavour.run(throttle.limit, "me")
    flavour.run(throttle.limit_many, ["me", "you"])
    sources = [event.result.source for event in ear.events if event.result is not None]
    assert sources == ["exempt", "exempt", "memory"]
    assert [event.took > 0.0 for event in ear.events] == [False, False, True]


def test_what_a_hook_makes_of_a_decision_is_what_is_heard() -> None:
    class Refuses(Hook):
        def on_limit(self, call_next: Any, context: HookContext) -> RateLimitResult:
            state = call_next().state
            return RateLimitResult(True, state)

    throttle, ear = Throttled(store=MemoryStore(), hooks=[Refuses()]), Ear()
    throttle.observe(ear)
    assert throttle.limit("key").limited
    assert ear.names == ["refused"]


# -- failures -------------------------------------------------------------------------------------


def test_a_store_that_fails_is_heard_under_every_policy(flavour: Flavour) -> None:
    said = {"raise": ["failed"], "allow": ["failed", "admitted"], "deny": ["failed", "refused"]}
    for policy, names in said.items():
        store = flavour.failing_store()
        throttle, ear = observed(flavour, store=store, on_store_error=policy)
        store.fail()
        try:
            flavour.run(throttle.limit, "key")
        except StoreUnavailableError:
            assert policy == "raise"
        assert ear.names == names
        assert ear.events[0].error is store.error


def test_failures_of_a_limit_that_depends_on_the_key_are_heard(flavour: Flavour) -> None:
    store = flavour.failing_store()
    throttle = flavour.limiter(store=store, quota=lambda key: "2/m", on_store_error="allow")
    flavour.run(throttle.limit, "key")  # its terms are known now
    ear = Ear()
    throttle.observe(ear)
    store.fail()
    flavour.run(throttle.limit, "key")
    flavour.run(throttle.limit_many, ["key"])
    assert ear.names == ["failed", "admitted"] * 2


def test_an_observer_that_raises_is_logged_and_changes_nothing(
    flavour: Flavour, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Observer):
        def _break(self, event: Event) -> None:
            raise ZeroDivisionError

        decided = waits = failed = _break

    store, ear = LocalFailingStore(FakeClock()), Ear()
    broken = flavour.limiter(store=store, quota="1/m", timeout=60, on_store_error="allow")
    for each in (Broken(), ear):
        broken.observe(each)
    assert flavour.run(broken.limit, "key").allowed
    assert flavour.run(broken.limit, "key").allowed
    store.fail()
    assert flavour.run(broken.limit, "key").source == "allowed-by-policy"
    assert ear.names == ["admitted", "waits", "admitted", "failed", "admitted"]
    logged = faults(caplog)
    assert len(logged) == 5
    assert all("Broken._break failed" in record.getMessage() for record in logged)
    assert "ZeroDivisionError" in caplog.text


def test_an_interrupt_within_an_observer_passes_and_gives_back_the_slot() -> None:
    class Interrupted(Observer):
        def waits(self, event: Event) -> None:
            raise KeyboardInterrupt

    throttle = Throttled(quota="1/m", timeout=60, store=MemoryStore(clock=FakeClock()))
    throttle.observe(Interrupted())
    throttle.limit("key")
    with pytest.raises(KeyboardInterrupt):
        throttle.limit("key")
    assert throttle.peek("key").retry_after == 60


class AsyncEar(Observer):
    async def waits(self, event: Event) -> None:  # type: ignore[override]
        pass


@pytest.mark.parametrize("bad", [None, "print", print, Observer, object(), Ear])
def test_what_is_no_observer_is_an_error(flavour: Flavour, bad: Any) -> None:
    throttle = flavour.limiter()
    with pytest.raises(DataError, match=r"^Invalid observer: .*instance of throttled.hooks"):
        throttle.observe(bad)
    assert plain_path(throttle)


def test_an_observer_with_async_methods_is_an_error(flavour: Flavour) -> None:
    with pytest.raises(DataError, match=r"^Invalid observer: AsyncEar.waits is async"):
        flavour.limiter().observe(AsyncEar())


# -- a limit goes on as it was --------------------------------------------------------------------


def test_a_limit_that_nobody_observes_is_decided_as_ever(flavour: Flavour) -> None:
    throttle = flavour.limiter()
    assert plain_path(throttle)
    throttle.observe(Ear())
    assert not plain_path(throttle)
    throttle.quota = "3/m"
    assert not plain_path(throttle), "a new quota is observed as well"


def test_observing_leaves_rules_and_counts_as_they_were(flavour: Flavour) -> None:
    rules = (rule for rule in [Rule("9/m", name="nine"), Rule("5/m", using="gcra", cost=2)])
    throttle = flavour.limiter(quota=rules)
    before = throttle.rules
    flavour.run(throttle.limit, "key")
    throttle.observe(Ear())
    assert throttle.rules == before
    assert [state.remaining for state in flavour.run(throttle.limit, "key").states] == [7, 1]


def test_a_quota_set_later_is_observed(flavour: Flavour) -> None:
    throttle, ear = observed(flavour)
    throttle.quota = "1/m"
    for _ in range(2):
        flavour.run(throttle.limit, "key")
    assert ear.names == ["admitted", "refused"]


# -- how long it took -----------------------------------------------------------------------------


class SlowStore(LocalFailingStore):
    def _ask(self, name: str, *args: Any) -> Any:
        time.sleep(SLOW)
        return super()._ask(name, *args)


def test_how_long_the_store_took_is_told_without_the_wait(flavour: Flavour) -> None:
    store = SlowStore(FakeClock())
    throttle, ear = observed(flavour, store=store, quota="1/m", timeout=60)
    began = time.perf_counter()
    for _ in range(2):
        flavour.run(throttle.limit, "key")
    passed = time.perf_counter() - began
    admitted = [event for event in ear.events if event.result is not None]
    assert [event.wait for event in admitted] == [0.0, 60.0]
    assert all(event.took >= 0.9 * SLOW for event in admitted)
    assert sum(event.took for event in admitted) <= passed - 0.9 * SLOW, "`arrived` is no decision"


def test_hooks_and_callbacks_are_no_part_of_the_decision() -> None:
    class Slow(Hook):
        def on_limit(self, call_next: Any, context: HookContext) -> RateLimitResult:
            time.sleep(SLOW)
            result: RateLimitResult = call_next()
            return result

    throttle, ear = Throttled(store=MemoryStore(), hooks=[Slow()]), Ear()
    throttle.observe(ear)
    throttle.limit("key")
    assert 0.0 < ear.events[0].took < SLOW


@on_server
def test_how_long_a_server_takes_is_told(proxy: Proxy, callers: Callers, key: str) -> None:
    store = callers.store(proxy.url, PATIENT)
    throttle, ear = callers.limiter(store), Ear()
    throttle.observe(ear)
    callers.wait(throttle.limit, key)
    proxy.delay = SLOW
    for function in (throttle.limit, throttle.limit_many):
        callers.wait(function, key if function == throttle.limit else [key])
    assert ear.names == ["admitted"] * 3
    assert all(event.took >= 0.9 * SLOW for event in ear.events[1:])
    result: Any = ear.events[1].result
    assert result.source == "server"
