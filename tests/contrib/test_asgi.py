"""The ASGI middleware around a plain application, message by message."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.contract import PATIENT
from tests.contrib.calling import (
    App,
    any_store,
    call,
    errors,
    exchange,
    limited,
    scope_of,
    statuses,
)
from tests.failing import LocalFailingStore
from tests.servers import Server, cluster
from throttled.asyncio import MemoryStore, RedisStore, Throttled
from throttled.contrib.asgi import RateLimit
from throttled.contrib.identity import client_ip
from throttled.contrib.keys import by_header
from throttled.testing import FakeClock, disabled

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["any_store"]


# -- admitted and refused ---------------------------------------------------------------------


async def test_what_is_within_the_limit_passes_and_what_is_beyond_is_a_429(any_store: Any) -> None:
    inner = App()
    app = limited("2/m", inner, store=any_store)
    answers = [await call(app) for _ in range(4)]
    assert [each.status for each in answers] == [200, 200, 429, 429]
    assert len(inner.seen) == 2
    assert [each.left for each in answers] == [1, 0, 0, 0]
    assert "retry-after" not in answers[1].headers
    refused = answers[2]
    assert refused.headers["ratelimit-policy"] == '"2/m";q=2;w=60'
    assert 1 <= int(refused.headers["retry-after"]) <= 30
    assert refused.problem["status"] == 429
    assert refused.problem["retry_after"] == int(refused.headers["retry-after"])


async def test_callers_have_limits_of_their_own_and_addresses_of_one_network_share_one(
    store: MemoryStore,
) -> None:
    app = limited("1/m", store=store)
    for peer in ("203.0.113.5", "203.0.113.6", "2001:db8::1"):
        assert await statuses(app, 2, peer=peer) == [200, 429]
    assert await statuses(app, 1, peer="2001:db8::2") == [429]
    assert await statuses(app, 1, peer="2001:db8:0:1::2") == [200]


async def test_who_writes_forwarded_headers_himself_has_one_limit(store: MemoryStore) -> None:
    app = limited("1/m", store=store)
    first = await call(app, headers=[("X-Forwarded-For", "198.51.100.1")])
    second = await call(app, headers=[("X-Forwarded-For", "198.51.100.2")])
    assert (first.status, second.status) == (200, 429)


async def test_behind_a_trusted_proxy_the_client_is_counted(store: MemoryStore) -> None:
    app = limited("1/m", store=store, key=client_ip(trusted_proxies=["10.0.0.0/8"]))
    for client in ("198.51.100.1", "198.51.100.2"):
        header = [("X-Forwarded-For", f"1.1.1.1, {client}")]
        assert await statuses(app, 2, headers=header, peer="10.0.0.1") == [200, 429]


async def test_exactly_the_quota_is_admitted_of_requests_at_once(any_store: Any) -> None:
    inner = App()
    app = limited("20/h", inner, store=any_store)
    answers = await asyncio.gather(*[call(app) for _ in range(60)])
    assert sorted(each.status for each in answers) == [200] * 20 + [429] * 40
    assert len(inner.seen) == 20


async def test_time_brings_a_caller_back(store: MemoryStore, clock: FakeClock) -> None:
    app = limited("1/m", store=store)
    await call(app)
    wait = int((await call(app)).headers["retry-after"])
    clock.advance(wait - 1)
    assert (await call(app)).status == 429
    clock.advance(1)
    assert (await call(app)).status == 200


async def test_a_request_that_may_wait_does_and_one_that_may_not_is_refused(
    store: MemoryStore, clock: FakeClock
) -> None:
    app = limited("1/s burst 1", store=store, timeout=5)
    begun = clock.now
    answers = await statuses(app, 4)
    assert answers == [200] * 4
    assert clock.now - begun == 3
    short = limited(RateLimit("1/s burst 1", store=store, timeout=0.5, scope="short"))
    assert await statuses(short, 2) == [200, 429]


async def test_a_cost_that_can_never_fit_is_refused_without_a_time(store: MemoryStore) -> None:
    inner = App()
    app = limited("5/m", inner, store=store, cost=lambda request: 6)
    answer = await call(app)
    assert answer.status == 429
    assert "retry-after" not in answer.headers
    assert "retry_after" not in answer.problem
    assert not inner.seen


@pytest.mark.server
async def test_a_limiter_made_at_import_serves_one_loop_after_the_other(valkey: Server) -> None:
    store = RedisStore(valkey.url, options=PATIENT)
    app = limited(RateLimit("2/h", store=store, scope="loops"))

    async def once() -> int:
        try:
            return (await call(app, peer="198.51.100.77")).status
        finally:
            await store.close()

    def runs() -> list[int]:
        return [asyncio.run(once()) for _ in range(3)]

    assert await asyncio.to_thread(runs) == [200, 200, 429]


async def test_limits_can_be_switched_off(store: MemoryStore) -> None:
    app = limited("1/m", store=store, count_when=lambda response: response.status_code == 401)
    with disabled():
        answers = [await call(app) for _ in range(3)]
    assert [each.status for each in answers] == [200] * 3
    assert all(each.headers == {} for each in answers)


def test_it_runs_on_trio_in_memory() -> None:
    app = limited("1/m")
    sent: list[Any] = []

    async def plain(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    app.app = plain

    async def send(message: Any) -> None:
        await trio.lowlevel.checkpoint()
        sent.append(message)

    async def run() -> None:
        for _ in range(2):
            await app(scope_of(peer="198.51.100.9"), None, send)

    trio.run(run)
    assert [each["status"] for each in sent if "status" in each] == [200, 429]


# -- which limits -----------------------------------------------------------------------------


async def test_rules_limit_what_matches_besides_what_holds_for_all(store: MemoryStore) -> None:
    rules = {"POST /login": "1/m", "/items/{id}": "2/h", "/admin/*": "1/s burst 1"}
    app = limited("6/h", rules=rules, store=store)
    assert await statuses(app, 2, "/login", "POST") == [200, 429]
    assert await statuses(app, 1, "/login", "GET") == [200]
    assert await statuses(app, 1, "/items/1") == [200]
    assert await statuses(app, 2, "/items/2", "DELETE") == [200, 429]
    assert await statuses(app, 2, "/admin/a/b") == [200, 429]
    # Six of a hundred would be too many: refused ones were not counted.
    assert await statuses(app, 2, "/") == [200, 429]


async def test_what_is_excluded_or_exempt_is_neither_counted_nor_told(store: MemoryStore) -> None:
    async def is_staff(request: Any) -> bool:
        await asyncio.sleep(0)
        return bool(request.header("X-Staff") == "yes")

    for exempt in (is_staff, lambda request: request.header("X-Staff") == "yes"):
        scope = str(id(exempt))
        app = limited(
            RateLimit("1/m", store=store, scope=scope), exclude=["/health"], exempt=exempt
        )
        for _ in range(3):
            assert (await call(app, "/health")).headers == {}
            assert (await call(app, headers=[("x-staff", "yes")])).headers == {}
        assert await statuses(app, 2) == [200, 429]


async def test_one_limit_may_exempt_a_request_where_others_do_not(store: MemoryStore) -> None:
    lenient = RateLimit("1/h", store=store, exempt=lambda request: request.method == "GET")
    app = limited("3/m", rules={"/*": lenient}, store=store)
    assert await statuses(app, 2) == [200, 200]
    assert await statuses(app, 1, "/", "POST") == [200]
    assert await statuses(app, 1, "/", "POST") == [429]


async def test_keys_and_costs_come_from_the_request_sync_or_async(store: MemoryStore) -> None:
    async def tenant(request: Any) -> str:
        await asyncio.sleep(0)
        return str(request.header("X-Tenant"))

    async def size(request: Any) -> int:
        await asyncio.sleep(0)
        return int(request.header("X-Size"))

    for key, cost in (
        (tenant, size),
        (lambda r: r.header("X-Tenant"), lambda r: int(r.header("X-Size"))),
    ):
        prefix = "async" if key is tenant else "sync"
        app = limited("10/m", store=store, key=key, cost=cost, key_prefix=prefix)
        for name in ("a", "b"):
            headers = [("X-Tenant", name), ("X-Size", "7")]
            answers = [await call(app, headers=headers) for _ in range(2)]
            assert [each.status for each in answers] == [200, 429]
            assert answers[0].left == 3
        free = await call(app, headers=[("X-Tenant", "a"), ("X-Size", "0")])
        assert (free.status, free.left) == (200, 3)


async def test_several_limits_take_all_or_nothing(any_store: Any) -> None:
    wide = RateLimit("10/h", store=any_store, scope="wide")
    narrow = RateLimit("2/h", store=any_store, scope="narrow", key=by_header("X-API-Key"))
    app = limited([wide, narrow])
    key = [("X-API-Key", "k")]
    assert await statuses(app, 6, headers=key) == [200, 200, 429, 429, 429, 429]
    assert (await wide.throttle().peek("203.0.113.5")).remaining == 8
    both = await call(app, headers=[("X-API-Key", "other")])
    assert both.headers["ratelimit-policy"] == '"2/h";q=2;w=3600, "10/h";q=10;w=3600'
    assert both.headers["ratelimit"].startswith('"2/h";r=1;t=')


@pytest.mark.server
async def test_limits_of_different_stores_take_all_or_nothing(valkey: Server) -> None:
    shared = RedisStore(valkey.url, options=PATIENT)
    first = RateLimit("10/h", store=MemoryStore(), scope="here")
    second = RateLimit("1/h", store=shared, scope="there")
    counting = RateLimit("9/h", store=shared, scope="401", count_when=lambda response: True)
    app = limited([first, counting, second])
    peer = "198.51.100.20"
    assert await statuses(app, 3, peer=peer) == [200, 429, 429]
    assert (await first.throttle().peek(peer)).remaining == 9
    assert (await counting.throttle().peek(peer)).remaining == 8
    await shared.close()


@pytest.mark.server
@pytest.mark.slow
async def test_keys_of_different_nodes_of_a_cluster_take_all_or_nothing() -> None:
    with cluster(3) as nodes:
        store = RedisStore(nodes.url(), options=PATIENT)
        wide = RateLimit("50/h", store=store, scope="wide")
        app = limited([wide, RateLimit("1/h", store=store, scope="key", key=lambda r: r.path)])
        for number in range(10):
            assert await statuses(app, 3, f"/{number}") == [200, 429, 429]
        assert (await wide.throttle().peek("203.0.113.5")).remaining == 40
        await store.close()


async def test_a_throttled_of_the_user_counts_under_its_own_prefix_wherever_it_stands(
    store: MemoryStore,
) -> None:
    throttle = Throttled(quota="3/m", store=store, key_prefix="mine")
    rules = {"POST /login": throttle, "POST /register": throttle, "/*": throttle}
    app = limited(None, rules=rules)
    assert await statuses(app, 2, "/login", "POST") == [200, 200]
    assert await statuses(app, 2, "/register", "POST") == [200, 429]
    assert (await throttle.peek("203.0.113.5")).remaining == 0


async def test_a_throttled_that_two_limits_charge_is_charged_by_both(store: MemoryStore) -> None:
    throttle = Throttled(quota="12/h", store=store)
    rules = {"/*": RateLimit(throttle), "/heavy": RateLimit(throttle, cost=4)}
    app = limited(None, rules=rules)
    assert await statuses(app, 3, "/heavy") == [200, 200, 429]
    assert (await throttle.peek("203.0.113.5")).remaining == 2
    assert await statuses(app, 3, "/light") == [200, 200, 429]


async def test_a_list_of_quotas_is_one_limit_of_several_rules(store: MemoryStore) -> None:
    app = limited(["2/s", "3/h"], store=store)
    answer = await call(app)
    assert answer.headers["ratelimit-policy"] == '"2/s";q=2;w=1, "3/h";q=3;w=3600'


async def test_a_quota_by_the_key(store: MemoryStore) -> None:
    async def tier(key: str) -> str:
        return "1/m" if key == "free" else "2/m"

    app = limited(tier, store=store, key=lambda request: request.header("X-Plan"))
    assert await statuses(app, 2, headers=[("X-Plan", "free")]) == [200, 429]
    assert await statuses(app, 3, headers=[("X-Plan", "pro")]) == [200, 200, 429]


async def test_a_key_can_be_reset_by_its_scope(store: MemoryStore) -> None:
    limit = RateLimit("1/m", store=store)
    app = limited(None, rules={"GET /items/{id}": limit})
    assert await statuses(app, 2, "/items/1") == [200, 429]
    await limit.throttle("GET /items/{id}").reset("203.0.113.5")
    assert await statuses(app, 2, "/items/2") == [200, 429]


# -- nested -----------------------------------------------------------------------------------


async def test_nested_middlewares_share_a_passage_and_tell_their_limits_once(
    any_store: Any,
) -> None:
    inner_limit = RateLimit("2/h", store=any_store, scope="inner")
    outer_limit = RateLimit("10/h", store=any_store, scope="outer")
    inner = limited(inner_limit)
    app = limited(outer_limit, inner)
    answers = [await call(app) for _ in range(4)]
    assert [each.status for each in answers] == [200, 200, 429, 429]
    assert answers[0].headers["ratelimit-policy"] == '"2/h";q=2;w=3600, "10/h";q=10;w=3600'
    assert answers[2].headers["ratelimit-policy"] == '"2/h";q=2;w=3600'
    assert (await outer_limit.throttle().peek("203.0.113.5")).remaining == 8, "given back"


async def test_nested_middlewares_of_the_same_scope_do_not_disturb_each_other(
    store: MemoryStore,
) -> None:
    inner = limited("3/m", store=store)
    app = limited("100/m", inner, store=store)
    answers = [await call(app) for _ in range(4)]
    assert [each.status for each in answers] == [200, 200, 200, 429]
    assert answers[0].headers["ratelimit"].count(";r=") == 2
    assert ";r=99;" in answers[0].headers["ratelimit"]


async def test_headers_of_the_application_are_merged_not_overwritten(store: MemoryStore) -> None:
    theirs = [(b"ratelimit-policy", b'"app";q=5;w=1'), (b"ratelimit", b'"app";r=1;t=1')]
    app = limited("9/m", App(headers=[*theirs, (b"set-cookie", b"a=1"), (b"x", b"1")]), store=store)
    headers = (await call(app)).headers
    assert headers["ratelimit-policy"] == '"app";q=5;w=1, "9/m";q=9;w=60'
    assert headers["ratelimit"].startswith('"app";r=1;t=1, "9/m";r=8;t=')
    assert headers["set-cookie"] == "a=1"


async def test_a_scope_that_is_used_again_is_a_new_request(store: MemoryStore) -> None:
    app = limited("2/m", store=store)
    scope = scope_of()
    answers = [await exchange(app, scope) for _ in range(3)]
    assert [each.status for each in answers] == [200, 200, 429]
    assert [each.left for each in answers] == [1, 0, 0]
    assert (await app._rules.limits[0].throttle().peek("203.0.113.5")).remaining == 0


# -- the answer -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ({}, {"ratelimit-policy", "ratelimit"}),
        ({"headers": "legacy"}, {f"ratelimit-{each}" for each in ("limit", "remaining", "reset")}),
        ({"headers": "x"}, {f"x-ratelimit-{each}" for each in ("limit", "remaining", "reset")}),
        ({"headers": None}, set()),
    ],
)
async def test_headers_of_every_style_stand_on_both_answers(
    options: Any, fields: set[str], store: MemoryStore
) -> None:
    app = limited("1/m", store=store, **options)
    admitted, refused = await call(app), await call(app)
    assert set(admitted.headers) == fields
    assert set(refused.headers) - {"content-type", "content-length"} == {*fields, "retry-after"}


async def test_the_reset_of_x_headers_may_be_an_instant(store: MemoryStore) -> None:
    app = limited("1/m", store=store, headers="x", reset="epoch")
    assert int((await call(app)).headers["x-ratelimit-reset"]) > 1_600_000_000


async def test_the_problem_is_replaced_by_json_or_by_what_else_is_wanted(
    store: MemoryStore,
) -> None:
    async def as_json(request: Any, body: dict[str, Any]) -> Any:
        return {"error": body["title"], "at": request.path}

    app = limited(RateLimit("1/m", store=store, scope="a"), problem=as_json)
    await call(app)
    assert (await call(app, "/x")).problem == {"error": "Quota Exceeded", "at": "/x"}

    app = limited(
        RateLimit("1/m", store=store, scope="b"), problem=lambda r, b: ("text/plain", "slow down")
    )
    await call(app)
    refused = await call(app)
    assert refused.headers["content-type"] == "text/plain"
    assert (refused.status, refused.body) == (429, b"slow down")


@pytest.mark.parametrize(
    "broken",
    [
        lambda r, b: 1 / 0,
        lambda r, b: None,
        lambda r, b: {"x": object()},
        lambda r, b: "text",
        lambda r, b: ("text/plain\r\nX-Evil: 1", "a"),
        lambda r, b: ("text/plain\N{SNOWMAN}", "a"),
    ],
)
async def test_a_problem_function_that_fails_leaves_the_plain_problem(
    broken: Any, store: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    app = limited("1/m", store=store, problem=broken)
    await call(app)
    assert (await call(app)).problem["status"] == 429
    assert "<lambda>" in errors(caplog)[0]


# -- what is not theirs to touch --------------------------------------------------------------


async def test_lifespan_and_what_is_unknown_pass(store: MemoryStore) -> None:
    inner = App()
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope, receive, send))

    wrapped: Callable[..., Any] = limited("1/m", app, store=store)
    for kind in ("lifespan", "lifespan", "something.new"):
        scope, receive, send = {"type": kind}, object(), object()
        await wrapped(scope, receive, send)
        assert seen[-1] == (scope, receive, send)
        assert scope == {"type": kind}
    assert not inner.seen


async def test_messages_pass_one_by_one_as_they_are(store: MemoryStore) -> None:
    """Each is out before the next is made, in either direction."""
    sent: list[Any] = []
    asked = 0
    script = [
        {"type": "http.response.early_hint", "links": [b"</a.css>"]},
        {"type": "http.response.debug", "info": {"x": 1}},
        {"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")], "trailers": True},
        {"type": "http.response.body", "body": b"1", "more_body": True},
        {"type": "http.response.pathsend", "path": "/x"},
        {"type": "http.response.zerocopysend", "file": 3},
        {"type": "http.response.body", "body": b"2"},
        {"type": "http.response.trailers", "headers": [(b"t", b"1")]},
    ]

    async def streams(scope: Any, receive: Any, send: Any) -> None:
        for number in range(3):
            assert asked == number, "the body was not read ahead"
            assert await receive() is chunks[number]
        for number, message in enumerate(script):
            await send(message)
            assert len(sent) == number + 1

    chunks = [{"type": "http.request", "body": b"x", "more_body": n < 2} for n in range(3)]

    async def receive() -> Any:
        nonlocal asked
        asked += 1
        return chunks[asked - 1]

    async def send(message: Any) -> None:
        sent.append(message)

    await limited("1/m", streams, store=store)(scope_of(), receive, send)
    start = sent.pop(2)
    assert all(one is other for one, other in zip(sent, script[:2] + script[3:], strict=True))
    assert script[2]["headers"] == [(b"a", b"b")], "the application's own message is not changed"
    assert start["headers"][0] == (b"a", b"b")
    assert start["trailers"] is True
    assert {name for name, _ in start["headers"]} == {b"a", b"ratelimit-policy", b"ratelimit"}


async def test_a_response_without_headers_is_told_of_too(store: MemoryStore) -> None:
    async def bare(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204})

    assert (await call(limited("2/m", bare, store=store))).left == 1


async def test_a_store_of_this_process_may_fail_as_well() -> None:
    store = LocalFailingStore()
    app = limited("2/m", store=store, on_store_error="raise")
    assert (await call(app)).status == 200
    store.fail()
    assert [(await call(app)).status for _ in range(2)] == [503, 503]
    store.recover()
    assert [(await call(app)).status for _ in range(2)] == [200, 429]
