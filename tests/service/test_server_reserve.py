"""Reservations over the service: settled once, by any process of it."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from typing import Any

import grpc
import grpc.aio
import pytest

from tests.servers import Server, free_port
from tests.service.conftest import MakeLimit
from tests.service.sites import HOST, Code, prefix, refused, site, until
from throttled import MemoryStore, Rule
from throttled.algorithms.plan import ALGORITHMS
from throttled.asyncio import RedisStore, Throttled
from throttled.hooks import Event, Observer
from throttled.service.tickets import Tickets
from throttled.service.v1 import throttled_pb2 as v1
from throttled.testing import FakeClock, disabled

BOTH = [Rule("100/m"), Rule("10/h", "fixed_window", cost=1, name="calls")]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_settled_by_another_process_and_once(make: MakeLimit, algorithm: str) -> None:
    one, two = make("100/h", using=algorithm), make("100/h", using=algorithm)
    async with site({"api": one}) as here, site({"api": two}) as there:
        reserved = await here.reserve("api", "k", cost=60)
        assert (await there.remaining("api", "k"), reserved.decision.allowed) == (40, True)
        assert await there.settle(reserved.ticket, 20)
        assert await here.remaining("api", "k") == 80
        for each, actual in ((here, 20), (there, 5), (here, None)):
            assert not await each.settle(reserved.ticket, actual)
        assert await here.remaining("api", "k") == 80

        more = await there.reserve("api", "k", cost=10)
        assert await here.settle(more.ticket, 30)
        assert await there.remaining("api", "k") == 50
        none = await there.reserve("api", "k", cost=50)
        assert await here.settle(none.ticket)
        assert await there.remaining("api", "k") == 50
        assert (here.servicer.tickets.issued, there.servicer.tickets.settled) == (1, 1)


async def test_what_came_to_the_estimate_is_settled_too(make: MakeLimit) -> None:
    async with site({"api": make("100/h", using="fixed_window")}) as server:
        reserved = await server.reserve("api", "k", cost=10)
        assert await server.settle(reserved.ticket, 10)
        assert not await server.settle(reserved.ticket, 0)
        assert await server.remaining("api", "k") == 90


async def test_rules_with_a_cost_of_their_own_keep_it(make: MakeLimit) -> None:
    async with site({"api": make(BOTH)}) as server:

        async def left() -> list[int]:
            decision = await server.stub.Peek(v1.PeekRequest(policy="api", key="k"))
            return [each.remaining for each in decision.states]

        first = await server.reserve("api", "k", cost=50)
        assert await server.settle(first.ticket, 0)
        assert await left() == [100, 9]
        second = await server.reserve("api", "k", cost=50)
        assert await server.settle(second.ticket)
        assert await left() == [100, 9]


async def test_a_refused_one_has_no_ticket(make: MakeLimit) -> None:
    async with site({"api": make("5/h")}) as server:
        reserved = await server.reserve("api", "k", cost=6)
        assert (reserved.decision.allowed, reserved.ticket) == (False, "")
        assert reserved.decision.states[0].retry_after == float("inf")
        await refused(server.settle(reserved.ticket), Code.INVALID_ARGUMENT, "it is empty")


async def test_a_cost_of_nothing_may_be_settled_for_more(make: MakeLimit) -> None:
    async with site({"api": make("100/h", using="fixed_window")}) as server:
        reserved = await server.reserve("api", "k", cost=0)
        assert await server.remaining("api", "k") == 100
        assert await server.settle(reserved.ticket, 7)
        assert not await server.settle(reserved.ticket, 7)
        assert await server.remaining("api", "k") == 93


async def test_at_once_from_two_servers_one_settles(make: MakeLimit) -> None:
    policies = [{"api": make("1000/h", using="fixed_window")} for _ in range(2)]
    async with site(policies[0]) as here, site(policies[1]) as there:
        for round_ in range(10):
            reserved = await here.reserve("api", "k", cost=50)
            done = await asyncio.gather(
                *[each.settle(reserved.ticket, n) for n in (0, 10, 20) for each in (here, there)]
            )
            assert done.count(True) == 1, round_
            used = 1000 - await here.remaining("api", "k")
            assert used in (0, 10, 20)
            await here.stub.Reset(v1.ResetRequest(policy="api", key="k"))


async def test_what_comes_back_goes_to_its_slot(store: MemoryStore, clock: FakeClock) -> None:
    clock.set(1_700_000_040)  # the beginning of a minute
    limit = Throttled(using="sliding_window", quota="100/m", store=store)
    async with site({"api": limit}) as server:
        reserved = await server.reserve("api", "k", cost=60)
        clock.advance(75)
        assert await server.remaining("api", "k") == 55
        assert await server.settle(reserved.ticket, 20)
        assert await server.remaining("api", "k") == 85


async def test_nothing_taken_settles_to_nothing(store: MemoryStore) -> None:
    policies = {
        "exempt": Throttled(quota="5/h", store=store, exempt=lambda key: True),
        "shadow": Throttled(quota="5/h", store=store, enforce=False, key_prefix="shadow"),
    }
    async with site(policies) as server:
        for name, cost in (("exempt", 3), ("shadow", 6)):
            reserved = await server.reserve(name, "k", cost=cost)
            assert reserved.decision.allowed
            assert await server.settle(reserved.ticket, 1)
            assert await server.settle(reserved.ticket, 2)
        with disabled():
            off = await server.reserve("exempt", "k", cost=9)
        assert await server.settle(off.ticket, 1)
        taken = await server.reserve("shadow", "k", cost=4)
        assert taken.decision.source == v1.SOURCE_SHADOW
        assert await server.settle(taken.ticket, 1)
        assert not await server.settle(taken.ticket, 2)
        assert len(store) == 1


# -- tickets that cannot be settled ----------------------------------------------------------------


async def test_what_is_no_ticket(store: MemoryStore) -> None:
    async with site({"api": Throttled(quota="5/h", store=store)}) as server:
        good = (await server.reserve("api", "k", cost=3)).ticket
        signed, _, signature = good.rpartition(".")
        wrong = {
            "": "it is empty",
            "nonsense": "must be the text that Reserve answered",
            "v2" + good[2:]: "must be the text that Reserve answered",
            "é" + good: "must be the text that Reserve answered",
            good + "x": "damaged, or was issued with another secret",
            good[:-2]: "damaged, or was issued with another secret",
            f"{signed}x.{signature}": "damaged, or was issued with another secret",
            "v1." + "x" * 50_000 + "." + signature: "must be the text that Reserve answered",
        }
        for ticket, text in wrong.items():
            said = await refused(server.settle(ticket, 1), Code.INVALID_ARGUMENT, text)
            assert said.startswith("Invalid ticket: ")
            assert not ticket or ticket not in said
        for actual in (-1, 1_000_000_001):
            await refused(server.settle(good, actual), Code.INVALID_ARGUMENT, "Invalid actual")
        assert await server.remaining("api", "k") == 2
        assert await server.settle(good, 0)


async def test_secrets_may_be_changed_one_after_the_other(store: MemoryStore) -> None:
    policies = {"api": Throttled(quota="50/h", store=store)}
    async with (
        site(policies, tickets=Tickets(["old"])) as before,
        site(policies, tickets=Tickets(["new", "old"])) as both,
        site(policies, tickets=Tickets(["new"])) as after,
    ):
        old = [(await before.reserve("api", "k", cost=3)).ticket for _ in range(2)]
        new = (await both.reserve("api", "k", cost=3)).ticket
        assert await both.settle(old[0], 0)
        await refused(after.settle(old[1], 0), Code.INVALID_ARGUMENT, "another secret")
        await refused(before.settle(new, 0), Code.INVALID_ARGUMENT, "another secret")
        assert await after.settle(new, 0)


async def test_expired_tickets_keep_their_estimate(make: MakeLimit, clock: FakeClock) -> None:
    tickets = Tickets(ttl=60, clock=clock)
    async with site({"api": make("100/h")}, tickets=tickets) as server:
        first, second = [(await server.reserve("api", "k", cost=30)).ticket for _ in range(2)]
        clock.advance(59.999)
        assert await server.settle(first, 0)
        clock.advance(5.001)
        text = "it expired 5 s ago; the estimate stays taken"
        await refused(server.settle(second, 0), Code.INVALID_ARGUMENT, text)
        await refused(server.settle(first, 0), Code.INVALID_ARGUMENT, "expired")
        assert await server.remaining("api", "k") == 70


async def test_a_policy_that_is_gone(store: MemoryStore) -> None:
    policies: dict[str, Any] = {"api": Throttled(quota="5/h", store=store)}
    async with site(policies) as server:
        ticket = (await server.reserve("api", "k", cost=3)).ticket
        policies["other"] = policies.pop("api")
        await refused(server.settle(ticket, 0), Code.NOT_FOUND, "There is no policy 'api'.")
        policies["api"] = policies["other"]
        assert await server.settle(ticket, 0)


async def test_a_quota_that_has_changed_meanwhile(make: MakeLimit) -> None:
    limit = make("100/h", using="fixed_window")
    async with site({"api": limit}) as server:
        ticket = (await server.reserve("api", "k", cost=60)).ticket
        limit.quota = "80/h"  # type: ignore[assignment]
        assert await server.remaining("api", "k") == 20
        assert await server.settle(ticket, 10)
        assert await server.remaining("api", "k") == 70


async def test_what_one_memory_counted_no_other_can_settle() -> None:
    limits = [Throttled(quota="10/h", store=MemoryStore()) for _ in range(2)]
    async with site({"api": limits[0]}) as here, site({"api": limits[1]}) as there:
        ticket = (await here.reserve("api", "k", cost=5)).ticket
        await there.check("api", "k", cost=5)
        assert not await there.settle(ticket, 0)
        assert (await here.remaining("api", "k"), await there.remaining("api", "k")) == (5, 5)
        assert await here.settle(ticket, 0)
        assert await here.remaining("api", "k") == 10


@pytest.mark.server
async def test_stores_that_stand_in_settle_what_they_took(valkey: Server) -> None:
    dead = [RedisStore(f"redis://{HOST}:{free_port()}/0") for _ in range(2)]
    alive = [RedisStore(valkey.url) for _ in range(2)]
    shared = prefix()

    def policies(place: int) -> dict[str, Any]:
        return {
            "local": Throttled(
                quota="10/h", store=dead[place], on_store_error="local", key_prefix=shared
            ),
            "other": Throttled(
                quota="100/m", store=dead[place], on_store_error=alive[place], key_prefix=shared
            ),
            "allow": Throttled(quota="10/h", store=dead[place], on_store_error="allow"),
        }

    async with site(policies(0)) as here, site(policies(1)) as there:
        tickets = {}
        for name in ("local", "other", "allow"):
            reserved = await here.reserve(name, "k", cost=5)
            assert reserved.decision.allowed
            tickets[name] = reserved.ticket
        # Another process has another memory; a server it shares.
        assert not await there.settle(tickets["local"], 2)
        assert await here.settle(tickets["local"], 2)
        assert not await here.settle(tickets["local"], 0)
        assert await here.remaining("local", "k") == 8
        assert await there.settle(tickets["other"], 2)
        assert not await here.settle(tickets["other"], 0)
        assert await here.remaining("other", "k") == 98
        assert await there.settle(tickets["allow"], 2)
    for each in dead + alive:
        await each.close()


@pytest.mark.server
async def test_a_store_that_is_down_when_it_is_settled() -> None:
    with Server() as server:
        store = RedisStore(server.url)
        async with site({"api": Throttled(quota="10/h", store=store)}) as here:
            ticket = (await here.reserve("api", "k", cost=5)).ticket
            server.stop()
            await refused(here.settle(ticket, 2), Code.UNAVAILABLE)
            assert here.servicer.tickets.settled == 0
        await store.close()


# -- answers that cannot be delivered --------------------------------------------------------------


async def test_what_nobody_was_told_of_is_given_back(make: MakeLimit) -> None:
    class Hangs(Observer):
        """Has the call end while its answer is on its way out."""

        def decided(self, event: Event) -> None:
            task = asyncio.current_task()
            assert task is not None
            asyncio.get_running_loop().call_soon(task.cancel)

    limit = make("100/h", using="fixed_window")
    async with site({"api": limit, "other": make("100/h", using="fixed_window")}) as server:
        limit.observe(Hangs())
        for _ in range(5):
            await _told(server.reserve("api", "k", cost=10))
            await until(lambda: not server.servicer.running)
            await server.servicer.ended()
        assert server.servicer.tickets.issued == server.servicer.tickets.settled == 5
        assert await server.remaining("other", "k") == 100


async def test_clients_that_cancel_at_any_time_lose_next_to_nothing(make: MakeLimit) -> None:
    chance, few = random.Random(7), asyncio.Semaphore(4)
    async with site({"api": make("1000000/h", using="fixed_window")}) as server:

        async def ask() -> str | None:
            async with few:
                call = server.reserve("api", "k", cost=10)
                task = asyncio.ensure_future(_told(call))
                await asyncio.sleep(chance.uniform(0, 0.01))
                call.cancel()
                return await task

        tickets = await asyncio.gather(*[ask() for _ in range(300)])
        await until(lambda: not server.servicer.running)
        await server.servicer.ended()
        taken = 1_000_000 - await server.remaining("api", "k")
        told = len([each for each in tickets if each])
        # Of some, the answer was on its way when they gave up: those keep their estimate.
        assert told * 10 <= taken <= server.servicer.tickets.issued * 10
        assert taken % 10 == 0


async def _told(call: Any) -> str | None:
    with suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
        return str((await call).ticket)
    return None
