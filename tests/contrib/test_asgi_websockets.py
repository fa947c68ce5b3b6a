"""WebSockets: limited by connection and by message, scripted and on real servers."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.contract import PATIENT
from tests.contrib.calling import (
    Answer,
    App,
    call,
    dead_store,
    limited,
    scope_of,
    serving,
    serving_by_hypercorn,
)
from throttled.asyncio import MemoryStore, RedisStore, Throttled
from throttled.contrib.asgi import RateLimit
from throttled.testing import FakeClock

pytestmark = pytest.mark.realtime

if TYPE_CHECKING:
    from tests.servers import Server

CONNECT = {"type": "websocket.connect"}
WITH_RESPONSES = {"extensions": {"websocket.http.response": {}}}


def said(text: str) -> Any:
    return {"type": "websocket.receive", "text": text}


class Chat:
    """Accepts and answers every message; notes what it hears."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "websocket.connect"
        await send({"type": "websocket.accept"})
        while True:
            message = await receive()
            self.heard.append(message)
            if message["type"] == "websocket.disconnect":
                return
            await send({"type": "websocket.send", "text": message["text"].upper()})


async def converse(app: Any, *messages: Any, path: str = "/chat", **more: Any) -> Answer:
    """One connection on which a client says all of that and hangs up."""
    scope = scope_of(path, **more)
    del scope["method"]
    answer = Answer()
    waiting = iter([CONNECT, *messages])

    async def receive() -> Any:
        await asyncio.sleep(0)
        return next(waiting, {"type": "websocket.disconnect", "code": 1000})

    async def send(message: Any) -> None:
        await asyncio.sleep(0)
        answer.messages.append(message)

    await app({**scope, "type": "websocket", "subprotocols": []}, receive, send)
    return answer


def kinds(answer: Answer) -> list[str]:
    return [each["type"].removeprefix("websocket.") for each in answer.messages]


def told(message: Any) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in message["headers"]}


# -- by connection ----------------------------------------------------------------------------


async def test_a_connection_beyond_the_limit_is_refused_before_it_is_accepted(
    store: MemoryStore,
) -> None:
    chat = Chat()
    app = limited("1/m", chat, store=store)
    first = await converse(app, said("a"))
    assert kinds(first) == ["accept", "send"]
    assert told(first.messages[0])["ratelimit"].startswith('"1/m";r=0;t=')

    (closed,) = (await converse(app)).messages
    assert (closed["type"], closed["code"]) == ("websocket.close", 1008)
    assert closed["reason"] == "Too many requests. Try again in 60 seconds."
    assert len(chat.heard) == 2


async def test_a_server_that_can_answers_a_refused_connection_with_a_response(
    store: MemoryStore,
) -> None:
    app = limited("1/m", Chat(), store=store)
    await converse(app, **WITH_RESPONSES)
    answer = await converse(app, **WITH_RESPONSES)
    assert kinds(answer) == ["http.response.start", "http.response.body"]
    assert answer.status == 429
    assert answer.headers["retry-after"] == "60"
    assert answer.headers["ratelimit-policy"] == '"1/m";q=1;w=60'
    assert answer.problem["status"] == 429


async def test_patterns_hold_for_connections_and_those_of_a_method_do_not(
    store: MemoryStore,
) -> None:
    rules = {"/chat": "2/m", "WEBSOCKET /only": "1/m", "GET /page": "1/m"}
    app = limited(None, Chat(), rules=rules, store=store)
    assert [kinds(await converse(app)) for _ in range(3)] == [["accept"], ["accept"], ["close"]]
    assert [kinds(await converse(app, path="/only/")) for _ in range(2)] == [["accept"], ["close"]]
    assert [kinds(await converse(app, path="/page")) for _ in range(2)] == [["accept"]] * 2


async def test_connections_and_requests_share_a_limit_without_a_method(store: MemoryStore) -> None:
    """So that an upgrade is no way around it."""
    limit = RateLimit("2/m", store=store)
    web, chat = (limited(None, app, rules={"/page": limit}) for app in (App(), Chat()))
    assert (await call(web, "/page")).status == 200
    assert kinds(await converse(chat, path="/page")) == ["accept"]
    assert kinds(await converse(chat, path="/page")) == ["close"]
    assert (await call(web, "/page")).status == 429


@pytest.mark.parametrize("dead", ["raise", "deny"])
async def test_a_dead_store_refuses_as_unavailable(
    dead: Any, caplog: pytest.LogCaptureFixture
) -> None:
    store = dead_store(dead)
    app = limited("1/m", Chat(), store=store)
    (closed,) = (await converse(app)).messages
    assert (closed["type"], closed["code"]) == ("websocket.close", 1013)
    assert (await converse(app, **WITH_RESPONSES)).status == 503
    assert not [record for record in caplog.records if record.exc_info]
    await store.close()


async def test_a_key_that_fails_refuses_as_an_error(
    store: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    app = limited("1/m", Chat(), store=store, key=lambda request: None)
    (closed,) = (await converse(app)).messages
    assert (closed["type"], closed["code"]) == ("websocket.close", 1011)
    assert (await converse(app, **WITH_RESPONSES)).status == 500
    assert "<lambda>" in caplog.text


@pytest.mark.parametrize(
    ("first", "status"),
    [
        ({"type": "websocket.accept"}, 101),
        ({"type": "websocket.close", "code": 1000}, 403),
        ({"type": "websocket.http.response.start", "status": 401, "headers": []}, 401),
    ],
)
async def test_what_counts_may_depend_on_how_the_connection_was_answered(
    first: Any, status: int, store: MemoryStore
) -> None:
    seen: list[int] = []

    async def answers(scope: Any, receive: Any, send: Any) -> None:
        await send(first)
        await send({"type": "websocket.close", "code": 1000})

    def note(response: Any) -> bool:
        seen.append(response.status_code)
        return bool(response.status_code != 101)

    app = limited("2/m", answers, store=store, count_when=note)
    answer = await converse(app)
    assert seen == [status]
    left = await app._rules.limits[0].throttle().peek("203.0.113.5")
    assert left.remaining == (2 if status == 101 else 1)
    assert ("headers" in answer.messages[0]) is (first["type"] != "websocket.close")


# -- by message -------------------------------------------------------------------------------


async def test_a_message_beyond_the_limit_closes_the_connection(store: MemoryStore) -> None:
    chat = Chat()
    app = limited(None, chat, messages="2/m", store=store)
    answer = await converse(app, *map(said, "abcd"))
    assert kinds(answer) == ["accept", "send", "send", "close"]
    assert answer.messages[-1]["code"] == 1008
    assert [each.get("text") for each in chat.heard] == ["a", "b", None]
    assert chat.heard[-1] == {"type": "websocket.disconnect", "code": 1008, "reason": ""}
    assert kinds(await converse(app)) == ["accept"], "messages are no connections"
    assert kinds(await converse(app, said("e"))) == ["accept", "close"], "but have one count"


async def test_a_message_that_may_wait_keeps_the_client_waiting(
    store: MemoryStore, clock: FakeClock
) -> None:
    chat = Chat()
    app = limited(None, chat, messages="1/s burst 1", store=store, timeout=5)
    begun = clock.now
    answer = await converse(app, *map(said, "abcd"))
    assert kinds(answer) == ["accept"] + ["send"] * 4
    assert clock.now - begun == 3


async def test_an_application_hears_no_more_and_says_no_more_once_it_is_closed(
    store: MemoryStore,
) -> None:
    heard: list[Any] = []

    async def deaf(scope: Any, receive: Any, send: Any) -> None:
        heard.extend([(await receive())["type"] for _ in range(5)])
        await send({"type": "websocket.close", "code": 1000})  # as it may after a disconnect
        with pytest.raises(OSError, match="closed"):
            await send({"type": "websocket.send", "text": "into the void"})

    app = limited(None, deaf, messages="1/m", store=store)
    answer = await converse(app, *map(said, "abcd"))
    assert kinds(answer) == ["close"]
    assert [each.removeprefix("websocket.") for each in heard] == [
        "connect",
        "receive",
        *["disconnect"] * 3,
    ]


async def test_who_only_sends_ends_when_the_connection_is_closed(store: MemoryStore) -> None:
    """A producer that does not listen would otherwise produce for ever."""
    produced = 0

    async def two(scope: Any, receive: Any, send: Any) -> None:
        async def produce() -> None:
            nonlocal produced
            with suppress(OSError):
                while True:
                    await send({"type": "websocket.send", "text": "tick"})
                    produced += 1

        producing = asyncio.create_task(produce())
        while (await receive())["type"] != "websocket.disconnect":
            pass
        await asyncio.wait_for(producing, 5)

    await converse(limited(None, two, messages="1/m", store=store), *map(said, "abc"))
    assert produced


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"key": lambda request: ""}, 1011),
        ({"cost": lambda request: None}, 1011),
        ({"store": "dead"}, 1013),
    ],
)
async def test_what_fails_at_a_message_closes_the_connection_and_is_logged(
    options: Any, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    if "store" in options:
        options = {"store": dead_store()}
    chat = Chat()
    answer = await converse(limited(None, chat, messages="9/m", **options), said("a"))
    assert kinds(answer) == ["accept", "close"]
    assert answer.messages[-1]["code"] == code
    assert chat.heard[-1]["type"] == "websocket.disconnect"
    assert "answered with" in caplog.text
    if "store" in options:
        await options["store"].close()


async def test_messages_have_keys_costs_exclusions_and_exemptions(store: MemoryStore) -> None:
    app = limited(
        "9/m",
        Chat(),
        messages=RateLimit("10/m", store=store, cost=6, key=lambda r: r.header("X-User")),
        exclude=["/free"],
        exempt=lambda request: request.header("X-User") == "staff",
        store=store,
    )
    ann, staff = [("X-User", "ann")], [("X-User", "staff")]
    assert kinds(await converse(app, said("a"), said("b"), headers=ann))[-1] == "close"
    assert kinds(await converse(app, *map(said, "abc"), path="/free", headers=ann))[-1] == "send"
    assert kinds(await converse(app, *map(said, "abc"), headers=staff))[-1] == "send"


# -- on real servers --------------------------------------------------------------------------


@pytest.fixture(params=["websockets-sansio", "wsproto", "hypercorn"])
def serve(request: pytest.FixtureRequest) -> Any:
    if request.param == "hypercorn":
        return serving_by_hypercorn
    return lambda app: serving(app, ws=request.param)


def closing_at_the_end(app: Any, store: Any) -> Any:
    """An application that closes a store in the loop that has used it."""

    async def closing(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await app(scope, receive, send)
            return
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await store.close()
        await send({"type": "lifespan.shutdown.complete"})

    return closing


async def test_a_real_client_is_refused_with_a_429_and_told_of_its_limit(serve: Any) -> None:
    app = limited("2/h", Chat(), store=MemoryStore())
    with serve(app) as port:
        url = f"ws://127.0.0.1:{port}/chat"
        for left in (1, 0):
            async with connect(url) as client:
                assert client.response is not None
                assert f";r={left};" in client.response.headers["RateLimit"]
                await client.send("hello")
                assert await client.recv() == "HELLO"
        with pytest.raises(InvalidStatus) as caught:
            await connect(url)
    response = caught.value.response
    assert response.status_code == 429
    assert int(response.headers["Retry-After"]) > 0
    assert response.headers["Content-Type"] == "application/problem+json"
    assert json.loads(response.body or b"")["status"] == 429


@pytest.mark.server
async def test_a_real_client_that_says_too_much_is_closed(serve: Any, valkey: Server) -> None:
    with valkey.client() as raw:
        raw.flushall()
    store = RedisStore(valkey.url, options=PATIENT)
    chat = Chat()
    app = limited(None, chat, messages="3/h", store=store)
    with serve(closing_at_the_end(app, store)) as port:
        async with connect(f"ws://127.0.0.1:{port}/chat") as client:
            for number in range(5):
                await client.send(str(number))
            assert [await client.recv() for _ in range(3)] == ["0", "1", "2"]
            with pytest.raises(ConnectionClosed) as caught:
                await client.recv()
    assert caught.value.rcvd is not None
    assert caught.value.rcvd.code == 1008
    assert caught.value.rcvd.reason.startswith("Too many requests.")
    assert [each["type"] for each in chat.heard][-1] == "websocket.disconnect"


async def test_a_real_client_that_says_too_much_waits(serve: Any) -> None:
    app = limited(None, Chat(), messages="20/s burst 1", timeout=5, store=MemoryStore())
    loop = asyncio.get_running_loop()
    with serve(app) as port:
        async with connect(f"ws://127.0.0.1:{port}/chat") as client:
            begun = loop.time()
            for number in range(11):
                await client.send(str(number))
            assert [await client.recv() for _ in range(11)] == [str(n) for n in range(11)]
            assert loop.time() - begun > 0.4


async def test_of_real_connections_at_once_exactly_the_quota_is_accepted(serve: Any) -> None:
    async def attempt(url: str) -> int:
        try:
            async with connect(url):
                return 101
        except InvalidStatus as error:
            return error.response.status_code

    with serve(limited(Throttled(quota="5/h", store=MemoryStore()), Chat())) as port:
        url = f"ws://127.0.0.1:{port}/chat"
        outcomes = await asyncio.gather(*[attempt(url) for _ in range(15)])
    assert sorted(outcomes) == [101] * 5 + [429] * 10


async def test_a_dead_store_is_a_503_for_a_real_client(serve: Any) -> None:
    app = limited("2/h", Chat(), store=dead_store())
    with serve(app) as port, pytest.raises(InvalidStatus) as caught:
        await connect(f"ws://127.0.0.1:{port}/chat")
    assert caught.value.response.status_code == 503
