"""A policy of a service is a `Throttled`, and answers as one in the same process."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Iterator
from dataclasses import FrozenInstanceError
from random import Random
from typing import Any

import pytest

import throttled.asyncio.service as async_service
from tests.service.clients import Caller, Service, caller, client, service
from throttled import MemoryStore, Quota, Rule, Throttled, hooks
from throttled.algorithms.plan import ALGORITHMS
from throttled.asyncio import Throttled as AsyncThrottled
from throttled.asyncio import hooks as async_hooks
from throttled.contrib.asgi import RateLimitMiddleware
from throttled.contrib.wsgi import RateLimitMiddleware as WSGIMiddleware
from throttled.exceptions import (
    DataError,
    LimitedError,
    OperationNotSupportedError,
    SetUpError,
)
from throttled.hooks import Event, Observer
from throttled.service import Client
from throttled.testing import FakeClock, disabled

__all__ = ["caller", "client", "service"]


def told(result: Any) -> tuple[Any, ...]:
    """All that a result says."""
    return (
        result.limited,
        result.allowed,
        result.would_limit,
        result.source,
        result.state,
        result.states,
        result.rules,
        result.rule,
        result.binding,
        result.held,
    )


def test_a_policy_is_a_throttled(caller: Caller, client: Any, service: Service) -> None:
    api = client.policy("api", key="k")
    assert isinstance(api, AsyncThrottled if caller.asynchronous else Throttled)
    assert api.name == "api"
    assert repr(api) == f"Policy('api', key='k', service='{service.target}')"
    assert repr(api.store) == f"Service('{service.target}', policy='api')"
    assert caller.wait(api.limit()).state.remaining == 2
    state = caller.wait(api.peek())
    assert (state.limit, state.remaining, state.reset_after) == (3, 2, 20.0)
    results = caller.wait(api.limit_many(["k", ("k", 2), ("other", 3)]))
    assert [each.limited for each in results] == [False, True, False]
    assert results[0].rules == (Rule("3/m", using="token_bucket"),)
    for each in results:
        with pytest.raises(FrozenInstanceError, match="limited"):
            each.limited = not each.limited
    assert caller.wait(api.refund("k", 1))
    assert not caller.wait(api.refund("nobody", 1))
    caller.wait(api.debit("k", 4))
    assert caller.wait(api.peek("k", 1)).retry_after == 60.0
    caller.wait(api.reset("k"))
    assert caller.wait(api.peek("k")).remaining == 3
    again = pickle.loads(pickle.dumps(results[1]))
    assert told(again) == told(results[1])


def test_limits_of_a_service_cannot_be_decided_at_once(caller: Caller, client: Any) -> None:
    one, other = client.policy("api"), client.policy("other")
    with pytest.raises(OperationNotSupportedError, match=r"Call limit\(\) of each"):
        caller.wait(one.limit_all([(one, "k"), (other, "k")]))


def test_forecasts_are_those_of_the_service(caller: Caller, client: Any, service: Service) -> None:
    api = client.policy("api")
    caller.wait(api.limit("k", 2))
    mine = caller.wait(api.forecast("k"))
    assert mine == service.do(service.policies["api"].forecast("k"))
    assert (mine.spendable_now, mine.full_at) == (1, service.clock.now + 40)
    assert caller.wait(api.forecast("fresh")).next_replenish_at is None
    assert service.asked == ["Check", "Forecast", "Forecast"]


def rules_of(random: Random) -> dict[str, Any]:
    """A limit of one of all kinds."""
    rules: list[Any] = [Rule("5/s", name="a")]
    if random.random() < 0.5:
        rules.append(Rule("40/m burst 9", name="b", cost=random.choice([None, 2])))
    if random.random() < 0.3:
        rules.append(Rule("100/h", using="sliding_window_log", name="c"))
    return {
        "quota": rules if random.random() < 0.6 else "5/s burst 7",
        "using": random.choice(list(ALGORITHMS)),
        "enforce": random.random() < 0.8,
        "exempt": (lambda key: key == "friend") if random.random() < 0.3 else None,
    }


@pytest.mark.parametrize("seed", range(6))
def test_all_that_is_said_is_what_a_throttled_says(caller: Caller, seed: int) -> None:
    random = Random(seed)
    limits = {str(number): rules_of(random) for number in range(4)}
    clock = FakeClock()
    here = {
        name: Throttled(store=MemoryStore(clock=clock), **limit) for name, limit in limits.items()
    }
    with Service(limits) as service:
        client = caller.client(service.target)
        there = {name: client.policy(name) for name in limits}
        for _ in range(60):
            step = random.choice([0, 1e-6, 0.137, 2.5])
            clock.advance(step)
            service.clock.advance(step)
            name, key = random.choice(list(limits)), random.choice(["a", "b", "friend"])
            cost = random.choice([0, 1, 1, 1, 2, 5, 50, 10**9, 10**12])
            mine, theirs = here[name], there[name]
            match random.randrange(8):
                case 0:
                    assert caller.wait(theirs.forecast(key)) == mine.forecast(key)
                case 1:
                    # Of an exempt key a service says that it is; of a look, a limit does not.
                    if key != "friend":
                        assert caller.wait(theirs.peek(key, cost)) == mine.peek(key, cost)
                case 2:
                    caller.wait(theirs.debit(key, 2))
                    mine.debit(key, 2)
                case 3:
                    assert caller.wait(theirs.refund(key, 1)) == mine.refund(key, 1)
                case 4:
                    calls = [(random.choice("ab"), random.randrange(4)) for _ in range(4)]
                    answers = caller.wait(theirs.limit_many(calls))
                    assert [*map(told, answers)] == [*map(told, mine.limit_many(calls))]
                case 5:
                    result = caller.wait(theirs.limit(key, cost, timeout=1.5))
                    assert told(result) == told(mine.limit(key, cost, timeout=1.5))
                    # Whoever waited has moved a clock.
                    now = max(clock.now, service.clock.now)
                    clock.set(now)
                    service.clock.set(now)
                case _:
                    assert told(caller.wait(theirs.limit(key, cost))) == told(mine.limit(key, cost))


def test_waiting_is_the_services(caller: Caller, client: Any, service: Service) -> None:
    one = client.policy("one", timeout=2.0)
    before = service.clock.now
    assert [caller.wait(one.limit("k")).limited for _ in range(3)] == [False] * 3
    assert service.clock.now == before + 2
    refused = caller.wait(one.limit("k", timeout=0.5))
    assert refused.state.retry_after == 1.0
    assert service.clock.now == before + 2
    assert not caller.wait(one.limit("k", timeout=float("inf"))).limited
    assert service.used("one", "k") == 1


def test_a_cost_of_nothing_is_always_allowed(caller: Caller, client: Any) -> None:
    api = client.policy("api")
    caller.wait(api.limit("k", 3))
    result = caller.wait(api.limit("k", 0))
    assert (result.limited, result.state.remaining) == (False, 0)


def test_reservations(caller: Caller, client: Any, service: Service) -> None:
    api = client.policy("api")
    first = caller.wait(api.reserve("k", 2))
    assert first.result.rules == (Rule("3/m", using="token_bucket"),)
    assert service.used("api", "k") == 2
    caller.wait(first.settle(1))
    caller.wait(first.settle(3))
    assert first.settled
    assert service.used("api", "k") == 1
    second = caller.wait(api.reserve("k", 2))
    with pytest.raises(LimitedError) as caught:
        caller.wait(api.reserve("k", 2))
    assert caught.value.rate_limit_result.state.retry_after == 40.0
    caller.wait(second.cancel())
    assert service.used("api", "k") == 1
    third = caller.wait(api.reserve("k", 0))
    caller.wait(third.settle(2))
    assert service.used("api", "k") == 3


def test_a_reservation_whose_block_fails(caller: Caller, client: Any, service: Service) -> None:
    log = client.policy("log")

    def fail() -> None:
        with log.reserve("k", 2):
            raise ZeroDivisionError

    async def afail() -> None:
        async with log.reserve("k", 2):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        caller.wait(afail() if caller.asynchronous else fail())
    assert service.used("log", "k") == 0


class Count(Observer):
    def __init__(self) -> None:
        self.seen: list[bool] = []

    def decided(self, event: Event) -> None:
        assert event.result is not None
        self.seen.append(event.result.limited)


def test_what_is_said_around_a_call(caller: Caller, client: Any) -> None:
    heard: list[Any] = []
    count = Count()

    class Plain(hooks.Hook):
        def on_limit(self, call_next: Any, context: Any) -> Any:
            heard.append((context.key, context.cost, context.algorithm, context.store_type))
            return call_next()

    class Awaited(async_hooks.Hook):
        async def on_limit(self, call_next: Any, context: Any) -> Any:
            heard.append((context.key, context.cost, context.algorithm, context.store_type))
            return await call_next()

    api = client.policy(
        "api",
        hooks=[Awaited() if caller.asynchronous else Plain()],
        on_allow=lambda event: heard.append("allowed"),
        on_deny=lambda event: heard.append("refused"),
    )
    api.observe(count)
    caller.wait(api.limit("k", 2))
    caller.wait(api.limit("k", 2))
    assert heard == [
        ("k", 2, "service", "service"),
        "allowed",
        ("k", 2, "service", "service"),
        "refused",
    ]
    assert count.seen == [False, True]


def test_shadows_exempt_keys_and_the_switch(caller: Caller, client: Any, service: Service) -> None:
    shadow = client.policy("one", enforce=False, timeout=30, exempt=lambda key: key == "friend")
    results = [caller.wait(shadow.limit("k")) for _ in range(2)]
    assert [(each.limited, each.would_limit, each.source) for each in results] == [
        (False, False, "shadow"),
        (False, True, "shadow"),
    ]
    assert caller.wait(shadow.limit("friend")).source == "exempt"
    with disabled():
        assert caller.wait(shadow.limit("k")).source == "disabled"
        assert caller.wait(shadow.limit_many(["k"]))[0].source == "disabled"
        assert caller.wait(shadow.forecast("k")).next_replenish_at is None
        caller.wait(shadow.debit("k", 1))
        caller.wait(shadow.reset("k"))
    assert service.asked == ["Check", "Check"]


def test_decorated_functions_and_blocks(caller: Caller, client: Any, service: Service) -> None:
    api = client.policy("api", key="user:{user}", cost=2)
    block = client.policy("api", key="block", cost=2)
    if caller.asynchronous:

        @api
        async def aserve(user: int) -> str:
            return "served"

        async def aenter() -> None:
            async with block:
                pass

        async def items() -> list[int]:
            return [item async for item in client.policy("many").wrap([1, 2], key="items")]

        serve: Any = aserve
        enter: Any = aenter
        wrapped: Any = items
    else:

        @api
        def plain(user: int) -> str:
            return "served"

        def enter_block() -> None:
            with block:
                pass

        serve, enter = plain, enter_block
        wrapped = lambda: list(client.policy("many").wrap([1, 2], key="items"))  # noqa: E731
    assert caller.wait(serve(7)) == "served"
    assert service.used("api", "user:7") == 2
    with pytest.raises(LimitedError, match="remaining=1"):
        caller.wait(serve(7))
    caller.wait(enter())
    with pytest.raises(LimitedError):
        caller.wait(enter())
    assert caller.wait(wrapped()) == [1, 2]
    assert service.used("many", "items") == 2


def test_a_policy_in_front_of_asgi(service: Service) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    async def main() -> list[tuple[int, dict[bytes, bytes]]]:
        async with async_service.Client(service.target) as client:
            limits = [client.policy("api"), client.policy("many")]
            limited = RateLimitMiddleware(app, limits, key=lambda request: "k")
            seen = []
            for _ in range(4):
                messages: list[Any] = []

                async def send(message: Any, messages: list[Any] = messages) -> None:
                    messages.append(message)

                scope = {
                    "type": "http",
                    "method": "GET",
                    "path": "/",
                    "headers": [],
                    "client": ("192.0.2.1", 1),
                }
                await limited(scope, None, send)
                seen.append((messages[0]["status"], dict(messages[0]["headers"])))
            return seen

    answers = asyncio.run(main())
    assert [status for status, _ in answers] == [200, 200, 200, 429]
    assert answers[0][1][b"ratelimit"].startswith(b'"3/m";r=2;t=20')
    assert int(answers[3][1][b"retry-after"]) == 20


def test_a_policy_in_front_of_wsgi_counts_what_is_to_count(service: Service) -> None:
    from throttled.contrib.wsgi import RateLimit

    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response(f"{environ['PATH_INFO'][1:]} As asked", [])
        return [b""]

    def ask(status: str) -> str:
        environ = {"REQUEST_METHOD": "GET", "PATH_INFO": f"/{status}", "REMOTE_ADDR": "192.0.2.1"}
        started: list[str] = []
        body = limited(environ, lambda status, headers, exc_info=None: started.append(status))
        list(body)
        getattr(body, "close", list)()
        return started[0][:3]

    with Client(service.target) as client:
        counted = RateLimit(
            client.policy("api"), count_when=lambda response: response.status_code == 401
        )
        limited = WSGIMiddleware(app, counted)
        assert [ask("200") for _ in range(5)] == ["200"] * 5
        assert [ask("401") for _ in range(4)] == ["401"] * 3 + ["429"]


def test_a_client_of_async_code_serves_one_loop_after_the_other(service: Service) -> None:
    client = async_service.Client(service.target)
    many = client.policy("many")

    async def ask() -> bool:
        return (await many.limit("k")).limited

    assert [asyncio.run(ask()) for _ in range(3)] == [False] * 3
    assert client._reaches == {}

    async def closed() -> None:
        async with client:
            await many.limit("k")
        await many.limit("k")
        await client.aclose()
        await client.close()

    asyncio.run(closed())
    assert service.used("many", "k") == 5


def test_trio_is_told(service: Service) -> None:
    import trio

    many = async_service.Client(service.target).policy("many")
    with pytest.raises(SetUpError, match="needs asyncio"):
        trio.run(many.limit, "k")


def test_a_closed_client_connects_again(caller: Caller, client: Any) -> None:
    many = client.policy("many")
    caller.wait(many.limit("k"))
    caller.wait(client.close())
    assert caller.wait(many.limit("k")).state.remaining == 998


@pytest.fixture
def at_a_socket(tmp_path: Any) -> Iterator[Service]:
    with Service(address=f"unix:{tmp_path}/throttled.sock") as service:
        yield service


def test_a_unix_socket(caller: Caller, at_a_socket: Service) -> None:
    assert at_a_socket.target.startswith("unix:/")
    many = caller.client(at_a_socket.target).policy("many")
    assert caller.wait(many.limit("k")).state.remaining == 999


def test_the_quota_of_what_stands_in_changes_nothing(caller: Caller, client: Any) -> None:
    api = client.policy("api", quota=Quota.parse("99/s"), using="gcra", on_store_error="local")
    result = caller.wait(api.limit("k"))
    assert result.rules == (Rule("3/m", using="token_bucket"),)
    assert caller.wait(api.refund("k", 1))
    caller.wait(api.reset("k"))
    # Of what an amount applies to, too, the service decides.
    fixed = client.policy("api", quota=Rule("9/s", cost=1), on_store_error="local")
    caller.wait(fixed.debit("k", 2))
    assert caller.wait(fixed.peek("k")).remaining == 1
    assert caller.wait(fixed.refund("k", 2))
    with pytest.raises(DataError, match="are the service's"):
        _ = api.quota
