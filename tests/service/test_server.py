"""The methods of the service, called over a real channel."""

from __future__ import annotations

import asyncio
from math import inf
from typing import Any

import pytest

from tests.servers import Server, free_port
from tests.service.conftest import MakeLimit
from tests.service.sites import HOST, Code, Site, prefix, refused, site
from throttled import MemoryStore, Rule
from throttled.asyncio import RedisStore, Throttled
from throttled.exceptions import DataError
from throttled.service import messages
from throttled.service.server import MOST_CHECKS, OPERATIONS
from throttled.service.v1 import throttled_pb2 as v1
from throttled.testing import FakeClock, disabled

METHODS = {
    "Check": v1.CheckRequest,
    "Peek": v1.PeekRequest,
    "Forecast": v1.ForecastRequest,
    "Debit": v1.DebitRequest,
    "Refund": v1.RefundRequest,
    "Reset": v1.ResetRequest,
    "Reserve": v1.ReserveRequest,
}


class Permitting(dict[str, Any]):
    """Policies that say what they permit, as those of a file do."""

    def __init__(self, policies: dict[str, Any], *operations: str) -> None:
        super().__init__(policies)
        self.operations = frozenset(operations)

    def spec(self, name: str) -> Any:
        return self


def ask(server: Site, method: str, policy: str, key: str, **fields: Any) -> Any:
    return getattr(server.stub, method)(METHODS[method](policy=policy, key=key, **fields))


# -- what is answered ------------------------------------------------------------------------------


async def test_a_check_says_what_the_library_says(store: MemoryStore, clock: FakeClock) -> None:
    quota = [Rule("10/m"), Rule("100/h", "fixed_window", cost=20, name="calls")]
    ours = Throttled(quota=quota, store=MemoryStore(clock=clock))
    async with site({"api": Throttled(quota=quota, store=store)}) as server:
        for cost in (1, 3, 0, 5, 5, 2, 11):
            clock.advance(0.7)
            decision = await server.check("api", "ann", cost=cost)
            result = await ours.limit("ann", cost)
            assert decision.allowed is result.allowed
            assert decision.would_limit is result.would_limit
            assert decision.binding == result.binding
            assert decision.source == v1.SOURCE_MEMORY
            told = [
                (each.limit, each.remaining, each.reset_after, each.retry_after)
                for each in decision.states
            ]
            assert told == [
                (each.limit, each.remaining, each.reset_after, each.retry_after)
                for each in result.states
            ]
            assert [
                (
                    each.quota,
                    each.algorithm,
                    each.cost if each.HasField("cost") else None,
                    each.name,
                )
                for each in decision.rules
            ] == [("10/m", "token_bucket", None, ""), ("100/h", "fixed_window", 20, "calls")]
    assert decision.states[0].retry_after == inf


async def test_the_cost_is_one_where_it_is_absent(store: MemoryStore) -> None:
    async with site({"api": Throttled(quota="10/m", store=store)}) as server:
        await server.check("api", "k")
        assert await server.remaining("api", "k") == 9
        assert (await server.check("api", "k", cost=0)).allowed
        assert await server.remaining("api", "k") == 9


async def test_peek_and_forecast_change_nothing(store: MemoryStore, clock: FakeClock) -> None:
    async with site({"api": Throttled(quota="60/m", store=store)}) as server:
        await server.check("api", "k", cost=45)
        decision = await ask(server, "Peek", "api", "k", cost=40)
        assert not decision.allowed
        assert decision.states[0].retry_after == 25.0
        forecast = await ask(server, "Forecast", "api", "k")
        assert forecast.spendable_now == 15
        assert forecast.next_replenish_at - clock.now == pytest.approx(1.0)
        assert forecast.full_at - clock.now == pytest.approx(45.0)
        fresh = await ask(server, "Forecast", "api", "unseen")
        assert not fresh.HasField("next_replenish_at")
        assert await server.remaining("api", "k") == 15


async def test_debit_refund_and_reset(make: MakeLimit) -> None:
    async with site({"api": make("100/h", using="fixed_window")}) as server:
        await ask(server, "Debit", "api", "k", amount=130)
        assert not (await server.check("api", "k")).allowed
        assert (await ask(server, "Refund", "api", "k", amount=50)).changed
        assert await server.remaining("api", "k") == 20
        await ask(server, "Reset", "api", "k")
        assert await server.remaining("api", "k") == 100
        assert not (await ask(server, "Refund", "api", "k", amount=1)).changed


async def test_shadow_exempt_and_switched_off(store: MemoryStore) -> None:
    def by_name(key: str) -> bool:
        return key == "vip"

    policies = {
        "shadow": Throttled(quota="1/h", store=store, enforce=False),
        "vips": Throttled(quota="1/h", store=store, key_prefix="vips", exempt=by_name),
    }
    async with site(policies) as server:
        await server.check("shadow", "k")
        for method in ("Check", "Peek"):
            decision = await ask(server, method, "shadow", "k")
            assert (decision.allowed, decision.would_limit) == (True, True)
            assert decision.source == v1.SOURCE_SHADOW
        for method in ("Check", "Check", "Peek"):
            decision = await ask(server, method, "vips", "vip")
            assert (decision.allowed, decision.source) == (True, v1.SOURCE_EXEMPT)
        with disabled():
            for method in ("Check", "Peek"):
                decision = await ask(server, method, "vips", "k", cost=5)
                assert (decision.allowed, decision.source) == (True, v1.SOURCE_DISABLED)


async def test_rules_may_depend_on_the_key(store: MemoryStore) -> None:
    def quota(key: str) -> str:
        return "100/h" if key.startswith("pro:") else "1/h"

    async with site({"api": Throttled(quota=quota, store=store, quota_ttl=0)}) as server:
        assert [each.quota for each in (await server.check("api", "pro:1")).rules] == ["100/h"]
        assert [each.quota for each in (await server.check("api", "free:1")).rules] == ["1/h"]
        await ask(server, "Debit", "api", "pro:1", amount=9)
        assert await server.remaining("api", "pro:1") == 90


# -- many at once ----------------------------------------------------------------------------------


def many(*checks: tuple[str, str, int] | tuple[str, str]) -> v1.CheckManyRequest:
    asked = [
        v1.CheckRequest(policy=each[0], key=each[1], cost=each[2] if len(each) > 2 else None)
        for each in checks
    ]
    return v1.CheckManyRequest(checks=asked)


async def test_many_are_decided_each_by_itself_and_in_their_order(make: MakeLimit) -> None:
    policies = {
        "api": make("3/h", key_prefix=prefix()),
        "two": make("2/h", key_prefix=prefix()),
    }
    async with site(policies) as server:
        names = [("api", "k"), ("two", "k"), ("api", "k", 2), ("two", "k", 2), ("api", "k")]
        answer = await server.stub.CheckMany(many(*names))
        allowed = [each.decision.allowed for each in answer.results]
        assert allowed == [True, True, True, False, False]
        assert [each.decision.states[0].limit for each in answer.results] == [3, 2, 3, 2, 3]


async def test_an_error_takes_the_place_of_its_check(store: MemoryStore) -> None:
    dead = RedisStore(f"redis://{HOST}:{free_port()}/0")
    policies = {
        "api": Throttled(quota="10/h", store=store),
        "down": Throttled(quota="10/h", store=dead),
        "open": Throttled(quota="10/h", store=dead, on_store_error="allow"),
    }
    checks = [
        ("api", "k"),
        ("nowhere", "k"),
        ("api", ""),
        ("api", "x" * 4_097),
        ("api", "k", -1),
        ("down", "k"),
        ("open", "k"),
        ("api", "k", 2),
    ]
    request = many(*checks)
    request.checks.add(policy="api", key="k", timeout=1.0)
    request.checks.add(policy="api", key="k", timeout=-1.0)
    async with site(policies) as server:
        results = (await server.stub.CheckMany(request)).results
        codes = [each.error.code for each in results]
        assert codes == [0, 5, 3, 3, 3, 14, 0, 0, 3, 0]
        assert results[6].decision.source == v1.SOURCE_ALLOWED_BY_POLICY
        assert "nowhere" in results[1].error.message
        assert "4,097" in results[3].error.message
        assert "do not wait" in results[8].error.message
        assert await server.remaining("api", "k") == 6
    await dead.close()


async def test_there_is_a_most_that_one_message_may_hold(store: MemoryStore) -> None:
    async with site({"api": Throttled(quota="5000/h", store=store)}) as server:
        full = [("api", "k")] * MOST_CHECKS
        assert len((await server.stub.CheckMany(many(*full))).results) == MOST_CHECKS
        text = "at most 1,000 checks, not 1,001"
        await refused(
            server.stub.CheckMany(many(*full, ("api", "k"))), Code.RESOURCE_EXHAUSTED, text
        )
        assert await server.remaining("api", "k") == 4_000
        assert not (await server.stub.CheckMany(v1.CheckManyRequest())).results


async def test_a_message_of_more_than_four_megabytes_is_not_taken(store: MemoryStore) -> None:
    async with site({"api": Throttled(quota="10/h", store=store)}) as server:
        await refused(server.check("api", "k" * 5_000_000), Code.RESOURCE_EXHAUSTED)


async def test_at_once_they_admit_exactly_the_quota(make: MakeLimit) -> None:
    policies = {"api": make("100/h", using="fixed_window")}
    async with site(policies) as one, site(policies) as two:
        single = [each.check("api", "k") for each in (one, two) * 60]
        request = many(*[("api", "k")] * 40, *[("other", "k")] * 2)
        several = [each.stub.CheckMany(request) for each in (one, two) * 2]
        decisions = list(await asyncio.gather(*single))
        for answer in await asyncio.gather(*several):
            decisions += [each.decision for each in answer.results if not each.error.code]
        assert len(decisions) == 280
        assert sum([each.allowed for each in decisions]) == 100


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
async def test_what_is_wrong_is_said_and_changes_nothing(store: MemoryStore, method: str) -> None:
    async with site({"api": Throttled(quota="10/h", store=store)}) as server:
        await refused(ask(server, method, "", "k"), Code.NOT_FOUND, "There is no policy ''.")
        await refused(ask(server, method, "apj" * 99, "k"), Code.NOT_FOUND, "(299 characters)")
        await refused(ask(server, method, "api", ""), Code.INVALID_ARGUMENT, "non-empty")
        text = "of 4,097 characters, must have at most 4,096"
        await refused(ask(server, method, "api", "x" * 4_097), Code.INVALID_ARGUMENT, text)
        await ask(server, method, "api", "é" * 4_096)
        fields = METHODS[method].DESCRIPTOR.fields_by_name
        for name in ("cost", "amount"):
            if name in fields:
                wrong = ask(server, method, "api", "k", **{name: -1})
                await refused(wrong, Code.INVALID_ARGUMENT, f"Invalid {name}: -1, must be")
        if "amount" in fields:
            wrong = ask(server, method, "api", "k", amount=1_000_000_001)
            await refused(wrong, Code.INVALID_ARGUMENT, "from 0 to 1000000000")
        if "timeout" in fields:
            for timeout in (-2.0, float("nan"), -inf):
                wrong = ask(server, method, "api", "k", timeout=timeout)
                await refused(wrong, Code.INVALID_ARGUMENT, f"Invalid timeout: {timeout}")
        assert await server.remaining("api", "k") == 10


@pytest.mark.parametrize("method", [*METHODS, "CheckMany", "Settle"])
@pytest.mark.parametrize("content", [b"\xff", b"\x0a\xff", b"\x0a\x02\xc3\x28", b"\x00" * 1000])
async def test_garbage_is_the_callers_fault(
    store: MemoryStore, method: str, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with site({"api": Throttled(quota="10/h", store=store)}) as server:
        text = f"the bytes are no {method} request"
        await refused(server.raw(method, content), Code.INVALID_ARGUMENT, text)
        assert (await server.check("api", "k")).allowed
    assert not caplog.records


async def test_a_policy_permits_what_it_says(store: MemoryStore) -> None:
    limit = Throttled(quota="10/h", store=store)
    async with site(Permitting({"api": limit}, "check", "peek")) as server:
        await server.check("api", "k")
        assert await server.remaining("api", "k") == 9
        for method in METHODS:
            if method not in ("Check", "Peek"):
                text = f"'api' does not permit {method.lower()}, only check, peek."
                await refused(ask(server, method, "api", "k"), Code.UNIMPLEMENTED, text)
        assert server.servicer.operations("api") == {"check", "peek"}
    async with site(Permitting({"api": limit}, "peek")) as server:
        await refused(server.check("api", "k"), Code.UNIMPLEMENTED, "only peek")
        answer = await server.stub.CheckMany(many(("api", "k")))
        assert answer.results[0].error.code == 12
    assert len(OPERATIONS) == 7


async def test_what_no_rule_could_mean_is_not_supported(store: MemoryStore) -> None:
    async with site({"api": Throttled(quota=Rule("10/h", cost=2), store=store)}) as server:
        for method in ("Debit", "Refund"):
            text = f"cannot {method.lower()}: every rule has a cost of its own"
            await refused(ask(server, method, "api", "k", amount=1), Code.UNIMPLEMENTED, text)


async def test_nothing_is_told_of_what_fails_inside(
    store: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(key: str) -> bool:
        raise ZeroDivisionError("secret")

    policies = {
        "api": Throttled(quota="10/h", store=store, exempt=broken),
        "fine": Throttled(quota="10/h", store=store),
    }
    async with site(policies) as server:
        for call in (server.check("api", "k"), ask(server, "Peek", "api", "k")):
            assert await refused(call, Code.INTERNAL) == "internal error"
        results = (await server.stub.CheckMany(many(("api", "k"), ("fine", "k")))).results
        assert (results[0].error.code, results[0].error.message) == (13, "internal error")
        assert results[1].decision.allowed
    assert [each.exc_info[0] for each in caplog.records if each.exc_info] == [ZeroDivisionError] * 3
    assert {each.name for each in caplog.records} == {"throttled"}


@pytest.mark.server
async def test_a_store_that_is_down(valkey: Server) -> None:
    dead = f"redis://{HOST}:{free_port()}/0"
    stores = [RedisStore(dead) for _ in range(3)]
    policies = {
        word: Throttled(quota="10/h", store=each, on_store_error=word)
        for word, each in zip(("raise", "allow", "deny"), stores, strict=True)
    }
    policies["local"] = Throttled(quota="10/h", store=stores[0], on_store_error="local")
    async with site(policies) as server:
        for method in METHODS:
            amount = {"amount": 1} if method in ("Debit", "Refund") else {}
            await refused(ask(server, method, "raise", "k", **amount), Code.UNAVAILABLE)
        decision = await server.check("allow", "k")
        assert (decision.allowed, decision.source) == (True, v1.SOURCE_ALLOWED_BY_POLICY)
        decision = await server.check("deny", "k")
        assert (decision.allowed, decision.source) == (False, v1.SOURCE_DENIED_BY_POLICY)
        assert decision.states[0].retry_after > 0
        decision = await server.check("local", "k")
        assert (decision.allowed, decision.source) == (True, v1.SOURCE_FALLBACK)
        told = server.servicer.stats["allow"].told(False)
        assert (told["errors"], told["allowed"]) == (1, 1)
    for each in stores:
        await each.close()


@pytest.mark.server
async def test_a_damaged_key(valkey: Server) -> None:
    name = prefix()
    with valkey.client() as client:
        client.set(f"{name}:v1:token_bucket:3600000000:{{k}}", "damaged")
    store = RedisStore(valkey.url)
    async with site({"api": Throttled(quota="10/h", store=store, key_prefix=name)}) as server:
        await refused(server.check("api", "k"), Code.DATA_LOSS)
        await refused(ask(server, "Debit", "api", "k", amount=1), Code.DATA_LOSS)
        results = (await server.stub.CheckMany(many(("api", "k"), ("api", "j")))).results
        assert [each.error.code for each in results] == [15, 0]
        await ask(server, "Reset", "api", "k")
        assert (await server.check("api", "k")).allowed
    await store.close()


def test_every_error_has_its_code_and_a_text_that_can_travel() -> None:
    assert messages.problem_of(DataError("x" * 5000)) == (3, "x" * 1000 + "...")
    assert messages.problem_of(ValueError("secret")) == (13, "internal error")
