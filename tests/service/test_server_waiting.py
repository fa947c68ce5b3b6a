"""Calls that wait for their slot, and what becomes of those that end before."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Any

import grpc
import grpc.aio
import pytest

from tests.service.conftest import MakeLimit
from tests.service.sites import Code, Site, connected, refused, site, until
from throttled import MemoryStore
from throttled.asyncio import Throttled
from throttled.service.v1 import throttled_pb2 as v1
from throttled.service.v1.throttled_pb2_grpc import RateLimiterStub
from throttled.testing import FakeClock

pytestmark = pytest.mark.realtime


async def waits(server: Site, number: int = 1) -> None:
    """Wait until so many calls wait for their slot."""
    await until(lambda: sum(server.servicer.waiting().values()) == number)


async def test_the_answer_comes_when_the_slot_does(store: MemoryStore, clock: FakeClock) -> None:
    began = clock.now
    async with site({"api": Throttled(quota="60/m burst 1", store=store)}) as server:
        for seconds in (0, 1, 2):
            assert (await server.check("api", "k", timeout=5)).allowed
            assert clock.now - began == seconds
        reserved = await server.reserve("api", "k", timeout=5)
        assert (reserved.decision.allowed, clock.now - began) == (True, 3)
        assert server.servicer.waiting() == {}


async def test_who_does_not_want_to_wait_is_refused(make: MakeLimit) -> None:
    async with site({"api": make("1/h", timeout=7200)}) as server:
        await server.check("api", "k")
        for timeout in (0, -1, 0.001, 3599):
            decision = await server.check("api", "k", timeout=timeout)
            assert not decision.allowed
            assert 3590 < decision.states[0].retry_after <= 3600


async def test_a_slot_beyond_the_deadline_is_refused_at_once(make: MakeLimit) -> None:
    async with site({"api": make("6/m burst 1")}) as server:
        await server.check("api", "k")
        for call in (server.stub.Check, server.stub.Reserve):
            kind = v1.CheckRequest if call is server.stub.Check else v1.ReserveRequest
            began = time.monotonic()
            answer = await call(kind(policy="api", key="k", timeout=60), timeout=8)
            assert time.monotonic() - began < 5
            decision = answer if kind is v1.CheckRequest else answer.decision
            assert not decision.allowed
            assert decision.states[0].retry_after > 8
        # Nothing of it is left behind.
        assert (await server.check("api", "k")).states[0].retry_after <= 10


async def test_a_slot_before_the_deadline_is_waited_for(make: MakeLimit) -> None:
    async with site({"api": make("5/s burst 1")}) as server:
        await server.check("api", "k")
        request = v1.CheckRequest(policy="api", key="k", timeout=60)
        assert (await server.stub.Check(request, timeout=20)).allowed


@pytest.mark.parametrize("method", ["Check", "Reserve"])
async def test_a_call_that_is_cancelled_gives_its_slot_back(make: MakeLimit, method: str) -> None:
    async with site({"api": make("1/h")}) as server:
        await server.check("api", "k")
        before = (await server.check("api", "k")).states[0]
        kind: Any = getattr(v1, f"{method}Request")
        waiting = getattr(server.stub, method)(kind(policy="api", key="k", timeout=7200))
        task = asyncio.ensure_future(_code(waiting))
        await waits(server)
        waiting.cancel()
        assert await task is Code.CANCELLED
        await until(lambda: not server.servicer.running)
        after = (await server.check("api", "k")).states[0]
        assert after.retry_after <= before.retry_after
        assert server.servicer.waiting() == {}


async def test_those_behind_a_cancelled_one_move_up_or_keep_their_slot(make: MakeLimit) -> None:
    async with site({"api": make("4/s burst 1")}) as server:
        await server.check("api", "k")
        calls = [server.check("api", "k", timeout=30) for _ in range(3)]
        tasks = [asyncio.ensure_future(_code(each)) for each in calls]
        await waits(server, 3)
        calls[0].cancel()
        assert await asyncio.gather(*tasks) == [Code.CANCELLED, Code.OK, Code.OK]


async def test_a_client_that_dies_gives_its_slots_back(make: MakeLimit) -> None:
    async with site({"api": make("1/h")}) as server:
        await server.check("api", "k")
        channel = connected(server.address)
        call = RateLimiterStub(channel).Check
        waiting = call(v1.CheckRequest(policy="api", key="k", timeout=7200))
        task = asyncio.ensure_future(_code(waiting))
        await waits(server)
        await channel.close()
        await task
        await until(lambda: not server.servicer.running)
        assert (await server.check("api", "k")).states[0].retry_after <= 3600


async def test_a_service_that_is_to_stop_sends_those_away_who_would_wait_longer(
    make: MakeLimit,
) -> None:
    async with site({"api": make("5/s burst 1"), "slow": make("1/h")}) as server:
        await server.check("api", "k")
        await server.check("slow", "k")
        soon = asyncio.ensure_future(_code(server.check("api", "k", timeout=60)))
        late = server.check("slow", "k", timeout=7200)
        later = server.reserve("slow", "k", timeout=9000)
        await waits(server, 3)
        server.servicer.leave(30)
        for each in (late, later):
            await refused(each, Code.UNAVAILABLE, "about to stop")
        assert await soon is Code.OK
        assert (await server.check("slow", "k")).states[0].retry_after <= 3600
        # Who comes now is not promised what cannot be kept.
        assert not (await server.check("slow", "k", timeout=7200)).allowed


async def test_waits_are_counted_by_policy(make: MakeLimit) -> None:
    async with site({"api": make("1/h"), "other": make("1/d")}) as server:
        for name in ("api", "other"):
            await server.check(name, "k")
        calls = [server.check(name, "k", timeout=1e6) for name in ("api", "api", "other")]
        await waits(server, 3)
        assert server.servicer.waiting() == {"api": 2, "other": 1}
        for each in calls:
            each.cancel()
        await waits(server, 0)


async def _code(call: Any) -> grpc.StatusCode:
    with suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
        await call
    code: grpc.StatusCode = await call.code()
    return code
