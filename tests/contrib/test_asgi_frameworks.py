"""The ASGI middleware in Starlette, FastAPI, Litestar and Quart, by their test clients and served
by a real server."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from typing import Any

import pytest
from litestar import Litestar, asgi, get
from litestar.middleware import DefineMiddleware
from litestar.testing import TestClient as LitestarClient
from quart import websocket
from quart.testing.connections import WebsocketResponseError
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import FileResponse, PlainTextResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.websockets import WebSocketDisconnect

from tests.contract import PATIENT
from tests.contrib.calling import RateLimitMiddleware, call, dead_store, raw, scope_of, serving
from tests.contrib.sites import Site, fastapi, litestar, litestar_wrapped, quart, starlette
from throttled.asyncio import MemoryStore, RedisStore
from throttled.contrib.asgi import RateLimit
from throttled.contrib.keys import by_route, by_user
from throttled.exceptions import DataError
from throttled.testing import FakeClock

pytestmark = pytest.mark.realtime

FRAMEWORKS = [starlette, fastapi, litestar, litestar_wrapped, quart]
Make = Callable[..., Site]
every = pytest.mark.parametrize("make", FRAMEWORKS, ids=lambda make: make.__name__)


def failed(response: Any) -> bool:
    return bool(response.status_code == 401)


async def ask(site: Site, n: int, path: str, method: str = "GET", **scope: Any) -> list[int]:
    found = []
    for _ in range(n):
        answer = await call(site.app, path, method, **scope)
        found.append(answer.status)
    return found


@every
@pytest.mark.parametrize("where", ["memory", pytest.param("server", marks=pytest.mark.server)])
async def test_the_quota_is_admitted_and_told(
    make: Make, where: str, request: pytest.FixtureRequest
) -> None:
    if where == "server":
        server = request.getfixturevalue("valkey")
        with server.client() as client:
            client.flushall()
        store: Any = RedisStore(server.url, options=PATIENT)
    else:
        store = MemoryStore()
    site = make(limit="9/h", rules={"GET /items/{id}": "2/h"}, store=store)
    answers = [await call(site.app, f"/items/{n}") for n in range(4)]
    assert [each.status for each in answers] == [200, 200, 429, 429]
    assert site.ran == ["item"] * 2
    assert answers[0].headers["ratelimit-policy"] == '"2/h";q=2;w=3600, "9/h";q=9;w=3600'
    assert answers[2].problem["violated-policies"] == ["2/h"]
    assert int(answers[2].headers["retry-after"]) > 0
    head = await call(site.app, "/items/1", "HEAD")
    assert head.status in (429, 405), "in Litestar GET is no HEAD"
    if where == "server":
        await store.close()


@every
async def test_only_failed_logins_count_and_none_slips_through_at_once(make: Make) -> None:
    rules = {"POST /login": "5/m"}
    site = make(rules=rules, count_when=failed, store=MemoryStore(clock=FakeClock()))
    assert await ask(site, 9, "/login", "POST") == [200] * 9
    site.ran.clear()
    tries = [call(site.app, "/login", "POST", query_string=b"bad=1") for _ in range(20)]
    answers = await asyncio.gather(*tries)
    assert sorted(each.status for each in answers) == [401] * 5 + [429] * 15
    assert len(site.ran) == 5


@every
async def test_an_exception_in_a_view_is_a_500_for_count_when(make: Make) -> None:
    seen: list[int] = []

    def note(response: Any) -> bool:
        seen.append(response.status_code)
        return bool(response.status_code < 500)

    site = make(limit="1/m", count_when=note, store=MemoryStore())
    for _ in range(3):
        try:
            answer = await call(site.app, "/broken")
        except ZeroDivisionError:  # Starlette raises it again when it has answered
            pass
        else:
            assert answer.status == 500
            assert answer.left == 1
    assert seen == [500] * 3
    assert site.ran == ["broken"] * 3


@every
async def test_a_stream_is_out_before_it_is_done(make: Make) -> None:
    site = make(limit="9/m", store=MemoryStore())
    sent: list[Any] = []

    given = False
    done = asyncio.Event()

    async def receive() -> Any:
        nonlocal given
        if given:
            await done.wait()
            return {"type": "http.disconnect"}
        given = True
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)
        if message.get("body") == b"first":
            site.first.set()
        if message["type"] == "http.response.body" and not message.get("more_body"):
            done.set()

    await asyncio.wait_for(site.app(scope_of("/stream"), receive, send), 10)
    assert [each["type"] for each in sent].count("http.response.start") == 1
    assert [each["body"] for each in sent if each.get("body")] == [b"first", b"last"]


@every
async def test_a_request_body_is_passed_chunk_by_chunk(make: Make) -> None:
    site = make(limit="9/m", store=MemoryStore())
    number = 0

    async def receive() -> Any:
        nonlocal number
        number += 1
        if number == 2:
            # The second chunk comes when the first has been read.
            while site.ran != ["0"]:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        if number > 2:
            await answered.wait()
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": b"%d" % (number - 1), "more_body": number < 2}

    answered = asyncio.Event()
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            answered.set()

    await asyncio.wait_for(site.app(scope_of("/upload", "POST"), receive, send), 5)
    assert [each for each in site.ran if each] == ["0", "1"]
    assert sent[0]["status"] == 200


@every
@pytest.mark.parametrize(("policy", "status"), [("raise", 503), ("deny", 503), ("allow", 200)])
async def test_a_dead_store_is_what_the_policy_says(
    make: Make, policy: Any, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    store = dead_store(policy)
    site = make(limit="1/m", store=store)
    assert await ask(site, 2, "/items/1") == [status] * 2
    assert not [record for record in caplog.records if record.exc_info]
    await store.close()


@every
def test_no_request_target_gets_around_a_pattern_on_a_real_server(make: Make) -> None:
    """However a target is written, a handler of a limited route runs once."""
    targets = [
        ("POST", "/login", "login"),
        ("POST", "/login/", "login"),
        ("POST", "//login", "login"),
        ("POST", "/login%0A", "login"),
        ("POST", "/%6cogin", "login"),
        ("POST", "/login?x=1", "login"),
        ("POST", "login", "login"),
        ("POST", "http://localhost/login", "login"),
        ("POST", "http://localhost//login", "login"),
        ("post", "/login", "login"),
        ("POST", "/x/../login", "login"),
        ("POST", "/./login", "login"),
        ("POST", "/login;a=1", "login"),
        ("POST", "/LOGIN", "login"),
        ("GET", "/items/1", "item"),
        ("HEAD", "/items/1", "item"),
        ("GET", "/items//1", "item"),
        ("GET", "/items/%0A", "item"),
        ("GET", "/items/a%2Fb", "item"),
        ("GET", "/items/%252F", "item"),
        ("get", "http://localhost/items/1", "item"),
    ]
    rules = {"POST /login": "1/h", "GET /items/{id}": "1/h"}
    site = make(rules=rules, store=MemoryStore(), key=lambda request: request.header("X-Case"))
    with serving(site.app, lifespan="off", http="h11") as port:
        for number, (method, target, name) in enumerate(targets):
            site.ran.clear()
            lines = (f"{method} {target} HTTP/1.1", f"X-Case: {number}", "Content-Length: 0")
            got = [raw(port, *lines) for _ in range(3)]
            assert site.ran in ([], [name]), (method, target, got)


# -- Starlette --------------------------------------------------------------------------------


def test_starlette_by_its_test_client_with_lifespan_background_and_gzip() -> None:
    events: list[str] = []

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        events.append("up")
        yield
        events.append("down")

    async def home(request: Any) -> Any:
        return PlainTextResponse("x" * 2000, background=BackgroundTask(events.append, "after"))

    app = Starlette(
        routes=[Route("/", home)],
        lifespan=lifespan,
        middleware=[
            Middleware(RateLimitMiddleware, limit="2/m", store=MemoryStore()),
            Middleware(GZipMiddleware),
        ],
    )
    with TestClient(app, client=("203.0.113.5", 1)) as client:
        statuses = [client.get("/").status_code for _ in range(3)]
        assert client.get("/").headers["retry-after"]
    assert statuses == [200, 200, 429]
    assert events == ["up", "after", "after", "down"]


def test_starlette_says_at_start_up_what_is_wrong() -> None:
    app = Starlette(middleware=[Middleware(RateLimitMiddleware, limit="5/m", rules={"x": "1/m"})])
    with pytest.raises(DataError, match="Invalid pattern"), TestClient(app):
        pass


async def test_starlette_mounts_with_a_middleware_of_their_own_are_all_or_nothing() -> None:
    async def home(request: Any) -> Any:
        return PlainTextResponse("ok")

    store = MemoryStore(clock=FakeClock())
    outer, inner = RateLimit("9/h", store=store), RateLimit("2/h", store=store)
    mount = Mount(
        "/api",
        routes=[Route("/", home), Route("/users", home)],
        middleware=[Middleware(RateLimitMiddleware, rules={"/users": inner, "/": "1/s burst 1"})],
    )
    app = Starlette(
        routes=[mount], middleware=[Middleware(RateLimitMiddleware, rules={"/api/*": outer})]
    )
    site = Site(app)
    assert await ask(site, 4, "/api/users") == [200, 200, 429, 429]
    assert (await outer.throttle("/api/*").peek("203.0.113.5")).remaining == 7
    assert await ask(site, 2, "/api/") == [200, 429]
    answer = await call(app, "/api/users", peer="203.0.113.6")
    assert answer.headers["ratelimit-policy"] == '"2/h";q=2;w=3600, "9/h";q=9;w=3600'


async def test_starlette_behind_a_middleware_that_buffers() -> None:
    async def home(request: Any) -> Any:
        return PlainTextResponse("ok")

    async def dispatch(request: Any, call_next: Any) -> Any:
        return await call_next(request)

    app = Starlette(
        routes=[Route("/", home)],
        middleware=[
            Middleware(RateLimitMiddleware, limit="9/h", store=MemoryStore()),
            Middleware(BaseHTTPMiddleware, dispatch=dispatch),
            Middleware(RateLimitMiddleware, limit="2/h", store=MemoryStore()),
        ],
    )
    answers = [await call(app) for _ in range(3)]
    assert [each.status for each in answers] == [200, 200, 429]
    assert answers[0].headers["ratelimit"].count(";r=") == 2


async def test_starlette_users_are_counted_by_who_they_are() -> None:
    class Backend(AuthenticationBackend):
        async def authenticate(self, conn: Any) -> Any:
            name = conn.headers.get("x-user")
            return (AuthCredentials(), SimpleUser(name)) if name else None

    async def home(request: Any) -> Any:
        return PlainTextResponse("ok")

    app = Starlette(
        routes=[Route("/", home)],
        middleware=[
            Middleware(AuthenticationMiddleware, backend=Backend()),
            Middleware(RateLimitMiddleware, limit="1/h", key=by_user(), store=MemoryStore()),
        ],
    )
    site = Site(app)
    for headers in ([("x-user", "ann")], [("x-user", "bob")], []):
        assert await ask(site, 2, "/", headers=headers) == [200, 429]
    # Who is called as an address is counted is another one.
    assert await ask(site, 2, "/", headers=[("x-user", "|203.0.113.5")]) == [200, 429]


async def test_starlette_sends_files_as_the_server_can(tmp_path: Any) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")

    async def file(request: Any) -> Any:
        return FileResponse(path)

    app = Starlette(
        routes=[Route("/", file)],
        middleware=[Middleware(RateLimitMiddleware, limit="9/h", store=MemoryStore())],
    )
    answer = await call(app, extensions={"http.response.pathsend": {}})
    assert [each["type"] for each in answer.messages] == [
        "http.response.start",
        "http.response.pathsend",
    ]
    assert answer.left == 8


def test_starlette_websockets_by_the_test_client() -> None:
    async def chat(websocket: Any) -> None:
        await websocket.accept()
        async for text in websocket.iter_text():
            await websocket.send_text(text.upper())

    app = Starlette(
        routes=[WebSocketRoute("/chat", chat)],
        middleware=[
            Middleware(RateLimitMiddleware, limit="1/h", messages="2/h", store=MemoryStore())
        ],
    )
    client = TestClient(app, client=("203.0.113.5", 1))
    with client.websocket_connect("/chat") as connection:
        for text in "abc":
            connection.send_text(text)
        assert [connection.receive_text() for _ in range(2)] == ["A", "B"]
        with pytest.raises(WebSocketDisconnect) as caught:
            connection.receive_text()
    assert caught.value.code == 1008
    with pytest.raises(WebSocketDenialResponse) as denied, client.websocket_connect("/chat"):
        pass
    assert denied.value.status_code == 429
    assert denied.value.headers["ratelimit-policy"] == '"1/h";q=1;w=3600'


# -- the others -------------------------------------------------------------------------------


async def test_litestar_by_its_route_under_a_root_path_and_in_a_mount() -> None:
    store = MemoryStore()

    @get("/items/{id:int}")
    async def item() -> str:
        return "item"

    @asgi("/inner", is_mount=True, copy_scope=True)
    async def inner(scope: Any, receive: Any, send: Any) -> None:
        await RateLimitMiddleware(
            PlainTextResponse("ok"), rules={"/users": RateLimit("1/h", store=store, scope="users")}
        )(scope, receive, send)

    limit = RateLimit("2/h", key=by_route(), store=store, scope="by route")
    app = Litestar(
        [item, inner],
        logging_config=None,  # which would be that of all tests
        middleware=[DefineMiddleware(RateLimitMiddleware, rules={"/items/{id}": limit})],
    )
    site = Site(app)
    for number, status in enumerate([200, 200, 429]):
        assert await ask(site, 1, f"/api/items/{number}", root_path="/api") == [status]
    assert (await limit.throttle().peek("GET /items/{id}")).remaining == 0
    assert await ask(site, 2, "/inner/users") == [200, 429]

    @get("/api/x")
    async def twice() -> str:
        return "x"

    rules = {"/api/x": RateLimit("1/h", store=store)}
    middleware = [DefineMiddleware(RateLimitMiddleware, rules=rules)]
    app = Litestar([twice], middleware=middleware, logging_config=None)
    assert await ask(Site(app), 2, "/api/api/x", root_path="/api") == [200, 429]


def test_litestar_by_its_test_client() -> None:
    site = litestar(limit="1/h", store=MemoryStore(), headers="x")
    with LitestarClient(site.app) as client:
        assert client.get("/items/1").headers["x-ratelimit-remaining"] == "0"
        assert client.get("/items/1").status_code == 429


async def test_quart_by_its_test_client_over_websockets_too() -> None:
    site = quart(limit="2/h", messages="1/h", store=MemoryStore())

    @site.app.websocket("/ws")
    async def ws() -> None:
        while True:
            await websocket.send(await websocket.receive())

    client = site.app.test_client()
    response = await client.get("/items/1")
    assert response.headers["RateLimit-Policy"] == '"2/h";q=2;w=3600'
    async with client.websocket("/ws") as connection:
        await connection.send("a")
        assert await connection.receive() == "a"
    with pytest.raises(WebsocketResponseError) as caught:
        async with client.websocket("/ws") as connection:
            await connection.receive()
    assert caught.value.response.status_code == 429
    assert (await client.get("/items/1")).status_code == 429


def test_fastapi_by_its_test_client_keeps_its_document_and_its_errors() -> None:
    site = fastapi(limit="3/h", store=MemoryStore(), exclude=["/openapi.json"])
    client = TestClient(site.app, client=("203.0.113.5", 1), raise_server_exceptions=False)
    assert client.get("/openapi.json").status_code == 200
    assert client.get("/items/1").status_code == 200
    assert client.get("/nowhere").headers["ratelimit"].startswith('"3/h";r=1;')
    assert client.get("/broken").status_code == 500
    assert client.get("/items/1").json()["title"] == "Quota Exceeded"


# -- on a real server -------------------------------------------------------------------------


@every
def test_a_refused_upload_leaves_the_connection_in_order(make: Make) -> None:
    """Nobody reads the body of a refused request: the next one on the connection is not spoilt."""
    site = make(rules={"POST /upload": "1/h"}, store=MemoryStore())
    with (
        serving(site.app, lifespan="off") as port,
        closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection,
    ):
        got = []
        for path, method, body in (
            ("/upload", "POST", b"x" * 5000),
            ("/upload", "POST", b"GET /evil HTTP/1.1\r\n\r\n" * 200),
            ("/items/1", "GET", None),
            ("/items/1", "HEAD", None),
        ):
            connection.request(method, path, body)
            response = connection.getresponse()
            text = response.read()
            got.append(response.status)
            if response.status == 429:
                assert json.loads(text)["status"] == 429
    assert got[:3] == [200, 429, 200]


def test_what_waits_is_served_in_time_by_a_real_server() -> None:
    site = starlette(limit="10/s burst 1", timeout=5, store=MemoryStore())
    with serving(site.app, lifespan="off") as port:
        begun = time.monotonic()
        got = [raw(port, "GET /items/1 HTTP/1.1") for _ in range(5)]
        assert time.monotonic() - begun > 0.35
    assert got == [200] * 5


def test_a_server_with_workers_is_told_that_they_do_not_share_memory(tmp_path: Any) -> None:
    """The workers of uvicorn see in `sys.argv` what it was told, and not in `sys.orig_argv`."""
    code = (
        "from starlette.applications import Starlette\n"
        "from throttled.contrib.asgi import RateLimitMiddleware\n"
        "import logging, os, signal\n"
        "logging.basicConfig()\n"
        "app = RateLimitMiddleware(Starlette(), '5/m')\n"
        "os.kill(os.getppid(), signal.SIGTERM)\n"
    )
    (tmp_path / "served.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "-m", "uvicorn", "served:app", "--workers", "2", "--port", "0"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": ":".join([".", *sys.path])},
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    assert "TH005" in done.stderr, done.stderr
    assert "2 workers" in done.stderr
