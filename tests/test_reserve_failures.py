"""Reservations whose store fails on the way."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from inspect import isawaitable
from typing import Any

import pytest

from tests.failing import DOWN, AsyncFailingStore, FailingStore, LocalFailingStore
from tests.servers import PATIENCE, Server
from throttled import MemoryStore, Throttled
from throttled.asyncio import Throttled as AsyncThrottled
from throttled.exceptions import LimitedError, SetUpError, StoreUnavailableError
from throttled.store import aioredis, redis
from throttled.testing import FakeClock

pytestmark = pytest.mark.realtime

Body = Callable[[Any], Awaitable[None]]


def _own(store: Any, admitted: Any) -> Any:
    answer, ticket = admitted
    if ticket is not None:
        ticket.store, ticket.source = store, "server"
    return answer, ticket


class Failing(FailingStore):
    """One that can reserve."""

    def admit_all(self, *args: Any) -> Any:
        return _own(self, self._ask("admit_all", *args))

    def adjust_all(self, changes: Sequence[Any]) -> list[bool]:
        changed: list[bool] = self._ask("adjust_all", changes)
        return changed


class LocalFailing(Failing, LocalFailingStore):
    pass


class AsyncFailing(AsyncFailingStore):
    async def admit_all(self, *args: Any) -> Any:
        await asyncio.sleep(0)
        return _own(self, self._ask("admit_all", *args))

    async def adjust_all(self, changes: Sequence[Any]) -> list[bool]:
        await asyncio.sleep(0)
        changed: list[bool] = self._ask("adjust_all", changes)
        return changed


class Flavour:
    """A flavour and a store for it. Bodies of blocks are written once, as coroutines."""

    def __init__(self, made: Any, store: Any) -> None:
        self.made = made
        self._store = store
        self.runner = asyncio.Runner()
        self.clock = FakeClock()

    @property
    def asynchronous(self) -> bool:
        return self.made is AsyncThrottled

    def store(self) -> Any:
        return self._store(self.clock)

    def limiter(self, store: Any, policy: Any = "raise", **arguments: Any) -> Any:
        return self.made(quota="10/m", store=store, on_store_error=policy, **arguments)

    def wait(self, value: Any) -> Any:
        return self.runner.run(_awaited(value)) if isawaitable(value) else value

    def reserve(self, throttle: Any, cost: int = 7, **arguments: Any) -> Any:
        return self.wait(throttle.reserve("key", cost, **arguments))

    def free(self, throttle: Any) -> int:
        return int(self.wait(throttle.peek("key")).remaining)

    def block(self, throttle: Any, body: Body, **arguments: Any) -> None:
        """Run a body in a block that reserves 7."""

        async def block() -> None:
            made = throttle.reserve("key", 7, **arguments)
            if self.asynchronous:
                async with made as reservation:
                    await body(reservation)
            else:
                with made as reservation:
                    await body(reservation)

        self.runner.run(block())


async def _awaited(value: Awaitable[Any]) -> Any:
    return await value


FLAVOURS: dict[str, tuple[Any, Any]] = {
    "sync": (Throttled, Failing),
    "async": (AsyncThrottled, AsyncFailing),
    "async on a local store": (AsyncThrottled, LocalFailing),
}


@pytest.fixture(params=FLAVOURS)
def flavour(request: pytest.FixtureRequest) -> Iterator[Flavour]:
    flavour = Flavour(*FLAVOURS[request.param])
    yield flavour
    flavour.runner.close()


def fallback(flavour: Flavour, name: str) -> Any:
    """An `on_store_error` by name."""
    return MemoryStore(clock=flavour.clock) if name == "store" else name


POLICIES = ("raise", "allow", "deny", "local", "store")
SILENT = POLICIES[1:]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_store_that_fails_never_hides_the_error_of_the_block(
    flavour: Flavour, policy: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = flavour.store()
    throttle = flavour.limiter(store, fallback(flavour, policy))
    error = ZeroDivisionError("of the block")

    async def body(reservation: Any) -> None:
        store.fail()
        raise error

    with pytest.raises(ZeroDivisionError, match="of the block") as raised:
        flavour.block(throttle, body)
    assert raised.value is error
    assert store.asked == ["admit_all", "adjust_all"]
    assert warnings(caplog) == [
        f"A reservation could not be settled and keeps its estimate: {DOWN}"
    ]
    store.recover()
    assert store.memory.run(throttle._terms.plan.joint.plans[0], "key", 0, 0.0)[2] == 3


def test_settling_raises_what_the_store_raises(flavour: Flavour) -> None:
    store = flavour.store()
    throttle = flavour.limiter(store)
    for act in ("settle", "cancel"):
        reservation = flavour.reserve(throttle, 2)
        store.fail()
        with pytest.raises(StoreUnavailableError, match=DOWN):
            flavour.wait(reservation.settle(1) if act == "settle" else reservation.cancel())
        assert reservation.settled
        store.recover()


@pytest.mark.parametrize("policy", SILENT)
def test_settling_only_logs_where_the_policy_does_not_raise(
    flavour: Flavour, policy: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = flavour.store()
    throttle = flavour.limiter(store, fallback(flavour, policy))
    reservation = flavour.reserve(throttle)
    store.fail()
    flavour.wait(reservation.settle(1))
    assert len(warnings(caplog)) == 1
    assert DOWN in warnings(caplog)[0]


@pytest.mark.parametrize("policy", POLICIES)
def test_what_failed_to_settle_is_never_sent_again(flavour: Flavour, policy: str) -> None:
    """Whether it was counted is not known, and it must not be counted twice."""
    store = flavour.store()
    throttle = flavour.limiter(store, fallback(flavour, policy))

    async def body(reservation: Any) -> None:
        store.fail()
        try:
            settled = reservation.settle(1)
            if flavour.asynchronous:
                await settled
        finally:
            store.recover()
        if flavour.asynchronous:
            await reservation.settle(1)
            await reservation.cancel()
        else:
            reservation.settle(1)
            reservation.cancel()

    if policy == "raise":
        # The error leaves the block, which does not give back either.
        with pytest.raises(StoreUnavailableError):
            flavour.block(throttle, body)
    else:
        flavour.block(throttle, body)
    assert store.asked == ["admit_all", "adjust_all"]


def test_a_block_that_keeps_its_estimate_does_not_ask_the_store(flavour: Flavour) -> None:
    store = flavour.store()
    throttle = flavour.limiter(store)

    async def body(reservation: Any) -> None:
        store.fail()

    async def fails(reservation: Any) -> None:
        raise ZeroDivisionError

    flavour.block(throttle, body)
    store.recover()
    flavour.wait(throttle.reset("key"))
    del store.asked[:]
    with pytest.raises(ZeroDivisionError):
        flavour.block(throttle, fails, on_error="keep")
    assert store.asked == ["admit_all"]


@pytest.mark.parametrize("act", ["settle", "cancel"])
def test_what_a_fallback_store_granted_is_settled_there(flavour: Flavour, act: str) -> None:
    store, other = flavour.store(), MemoryStore(clock=flavour.clock)
    throttle = flavour.limiter(store, other)
    at_other = flavour.limiter(other)
    store.fail()
    reservation = flavour.reserve(throttle)
    assert reservation.result.source == "fallback"
    assert flavour.free(at_other) == 3
    store.recover()
    flavour.wait(reservation.settle(2) if act == "settle" else reservation.cancel())
    assert flavour.free(at_other) == (8 if act == "settle" else 10)
    assert store.asked == ["admit_all"]


def test_what_the_first_store_granted_is_not_settled_at_another(flavour: Flavour) -> None:
    store, other = flavour.store(), MemoryStore(clock=flavour.clock)
    reservation = flavour.reserve(flavour.limiter(store, other))
    store.fail()
    flavour.wait(reservation.settle(2))
    assert len(other) == 0


def test_this_process_settles_what_it_granted_alone(flavour: Flavour) -> None:
    store = flavour.store()
    throttle = flavour.limiter(store, "local")
    store.fail()
    reservation = flavour.reserve(throttle)
    assert reservation.result.source == "fallback"
    flavour.wait(reservation.settle(2))
    assert flavour.reserve(throttle, 8).result.state.remaining == 0
    with pytest.raises(LimitedError):
        flavour.reserve(throttle, 1)


def test_what_waited_at_a_fallback_store_is_settled_there(flavour: Flavour) -> None:
    store, other = flavour.store(), MemoryStore(clock=flavour.clock)
    throttle = flavour.limiter(store, other, timeout=60)
    store.fail()
    flavour.reserve(throttle, 10)
    began = flavour.clock.now
    reservation = flavour.reserve(throttle, 5)
    assert flavour.clock.now == began + 30
    assert reservation.result.source == "fallback"
    flavour.wait(reservation.settle(1))
    assert flavour.free(flavour.limiter(other)) == 4


def test_what_a_policy_allowed_has_nothing_to_settle(
    flavour: Flavour, caplog: pytest.LogCaptureFixture
) -> None:
    store = flavour.store()
    store.fail()
    reservation = flavour.reserve(flavour.limiter(store, "allow"))
    assert reservation.result.source == "allowed-by-policy"
    flavour.wait(reservation.settle(50))
    assert store.asked == ["admit_all"]
    assert not warnings(caplog)


def test_what_a_policy_denies_is_refused(flavour: Flavour) -> None:
    store = flavour.store()
    store.fail()
    with pytest.raises(LimitedError) as refused:
        flavour.reserve(flavour.limiter(store, "deny"))
    assert refused.value.rate_limit_result is not None
    assert refused.value.rate_limit_result.source == "denied-by-policy"


def test_a_store_that_fails_to_decide_raises(flavour: Flavour) -> None:
    store = flavour.store()
    store.fail()
    with pytest.raises(StoreUnavailableError, match=DOWN):
        flavour.reserve(flavour.limiter(store))


def test_a_store_that_cannot_reserve_says_so() -> None:
    throttle = Throttled(quota="10/m", store=FailingStore())
    with pytest.raises(SetUpError, match=r"FailingStore .*admit_all"):
        throttle.reserve("key")


# -- a server that is gone ------------------------------------------------------------------------

SERVED: dict[str, tuple[Any, Any]] = {
    "sync": (Throttled, redis.RedisStore),
    "async": (AsyncThrottled, aioredis.RedisStore),
}


@pytest.fixture(params=SERVED)
def served(request: pytest.FixtureRequest) -> Iterator[Flavour]:
    flavour = Flavour(*SERVED[request.param])
    yield flavour
    flavour.runner.close()


@pytest.mark.server
@pytest.mark.parametrize("policy", ["raise", "local"])
def test_a_killed_server_never_hides_the_error_of_the_block(
    served: Flavour, policy: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Server() as server:
        store = served._store(server.url, {"DECISION_TIMEOUT": PATIENCE})
        throttle = served.limiter(store, policy)

        async def body(reservation: Any) -> None:
            assert reservation.result.source == "server"
            server.kill()
            raise ZeroDivisionError("of the block")

        with pytest.raises(ZeroDivisionError, match="of the block"):
            served.block(throttle, body)
        assert any("could not be settled" in each for each in warnings(caplog))
        served.wait(store.close())


@pytest.mark.server
@pytest.mark.parametrize("policy", ["raise", "local"])
def test_settling_at_a_killed_server_raises_or_logs_by_policy(
    served: Flavour, policy: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Server() as server:
        store = served._store(server.url, {"DECISION_TIMEOUT": PATIENCE})
        throttle = served.limiter(store, policy)
        reservation = served.reserve(throttle)
        server.kill()
        if policy == "raise":
            with pytest.raises(StoreUnavailableError):
                served.wait(reservation.settle(1))
        else:
            served.wait(reservation.settle(1))
            assert any("could not be settled" in each for each in warnings(caplog))
        server.start()
        served.wait(reservation.settle(1))
        # It came back empty, and nothing was sent again.
        assert served.free(throttle) == 10
        served.wait(store.close())


@pytest.mark.server
@pytest.mark.parametrize("actual", [2, 9])
async def test_a_settlement_is_seen_to_its_end_though_its_task_is_cancelled(
    valkey: Server, actual: int
) -> None:
    async with aioredis.RedisStore(valkey.url, {"DECISION_TIMEOUT": PATIENCE}) as store:
        throttle = AsyncThrottled(quota="10/366d", store=store, key_prefix="settled")
        for steps in range(4):
            await throttle.reset("key")
            reservation = await throttle.reserve("key", 7)
            settling = asyncio.ensure_future(reservation.settle(actual))
            for _ in range(steps):
                await asyncio.sleep(0)
            if steps:  # a task that has not begun has settled nothing
                settling.cancel()
            await asyncio.wait([settling])
            assert (await throttle.peek("key")).remaining == 10 - actual
        await throttle.reset("key")
