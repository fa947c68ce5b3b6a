"""`install`: the middleware, answers to refusals, and what counts by its outcome."""

from __future__ import annotations

from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TYPE_CHECKING, Any

import anyio
import httpx
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, Request
from fastapi.exception_handlers import http_exception_handler
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse

from tests.contract import PATIENT
from tests.contrib.fastapi_apps import (
    ANN,
    BOB,
    client,
    dead_store,
    limit,
    logged,
    own_store,
    served,
)
from throttled import MemoryStore
from throttled.asyncio import RedisStore
from throttled.contrib.fastapi import RateLimit, RateLimitedError, install
from throttled.exceptions import DataError
from throttled.testing import FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.servers import Server

PROBLEM = "application/problem+json"


def installed(*arguments: Any, **options: Any) -> FastAPI:
    """An application with `/{n}`, in a memory of its own where time stands still."""
    if arguments or "rules" in options:
        options.setdefault("store", MemoryStore(clock=FakeClock()))
    app = FastAPI()
    install(app, *arguments, **options)
    return app


def plain(n: int) -> int:
    return n


# -- answers --------------------------------------------------------------------------------------


def test_a_refusal_is_a_problem() -> None:
    app = installed()
    app.get("/{n}")(limit("1/h")(plain))
    with client(app) as ann:
        assert ann.get("/1").headers["RateLimit"] == '"1/h";r=0;t=3600'
        refused = ann.get("/1")
    assert (refused.status_code, refused.headers["content-type"]) == (429, PROBLEM)
    assert refused.headers["Retry-After"] == "3600"
    assert refused.headers.get_list("RateLimit") == ['"1/h";r=0;t=3600']
    assert refused.json() == {
        "type": "https://iana.org/assignments/http-problem-types#quota-exceeded",
        "title": "Quota Exceeded",
        "status": 429,
        "detail": "Too many requests. Try again in 3600 seconds.",
        "retry_after": 3600,
        "violated-policies": ["1/h"],
    }


@pytest.mark.parametrize(
    ("style", "told"),
    [
        ("ietf", {"ratelimit": '"1/h";r=0;t=3600', "ratelimit-policy": '"1/h";q=1;w=3600'}),
        ("legacy", {"ratelimit-limit": "1", "ratelimit-remaining": "0", "ratelimit-reset": "3600"}),
        ("x", {"x-ratelimit-limit": "1", "x-ratelimit-remaining": "0"}),
        (None, {}),
    ],
)
def test_the_style_of_headers_is_that_of_install(style: Any, told: dict[str, str]) -> None:
    app = installed(headers=style)
    app.get("/{n}")(limit("1/h")(plain))
    with client(app) as ann:
        for expected in (told, {**told, "retry-after": "3600"}):
            headers = ann.get("/1").headers
            assert {name: headers.get(name) for name in expected} == expected
            assert any("ratelimit" in name for name in headers) is bool(told)


def test_responses_that_a_route_makes_itself_have_the_headers() -> None:
    app = installed()
    app.get("/{n}")(limit("2/h")(lambda n: PlainTextResponse("here", headers={"X-Own": "1"})))
    with client(app) as ann:
        headers = ann.get("/1").headers
    assert (headers["RateLimit"], headers["X-Own"]) == ('"2/h";r=1;t=1800', "1")


def test_layers_and_the_middleware_are_told_in_one_list() -> None:
    app = installed("9/h", rules={"GET /{n}": "5/h"})
    app.get("/{n}", dependencies=[Depends(limit("3/h"))])(limit("1/h")(plain))
    with client(app) as ann:
        headers = ann.get("/1").headers
        assert headers.get_list("RateLimit-Policy") == [
            '"1/h";q=1;w=3600, "3/h";q=3;w=3600, "5/h";q=5;w=3600, "9/h";q=9;w=3600'
        ]
        assert headers["RateLimit"].startswith('"1/h";r=0;t=3600, "3/h";r=2;t=1200')
        assert ann.get("/1").status_code == 429
        # The refused request is given back to the middleware's limits.
        assert ann.get("/a/b").headers["RateLimit"] == '"9/h";r=7;t=800'


def test_the_problem_can_be_replaced() -> None:
    def problem(request: Request, body: dict[str, Any]) -> dict[str, Any]:
        return {"path": request.url.path, "n": request.path_params.get("n"), "was": body["status"]}

    app = installed(problem=problem, rules={"/early": "1/h"})
    app.get("/early")(lambda: 0)
    app.get("/{n}")(limit("1/h")(plain))
    with client(app) as ann:
        refused = [ann.get("/1") for _ in range(2)][1]
        assert refused.json() == {"path": "/1", "n": "1", "was": 429}
        refused = [ann.get("/early") for _ in range(2)][1]
        assert refused.json() == {"path": "/early", "n": None, "was": 429}


async def own_answer(request: Request, error: RateLimitedError) -> JSONResponse:
    return JSONResponse({"wait": error.refusal.retry_after}, 420)


async def own_status(request: Request, error: HTTPException) -> JSONResponse:
    return JSONResponse({"own": error.status_code}, error.status_code)


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize(
    ("kind", "handler", "status", "body"),
    [
        (RateLimitedError, own_answer, 420, {"wait": 3600}),
        (429, own_status, 429, {"own": 429}),
    ],
)
def test_a_handler_of_the_user_answers_instead(
    before: bool, kind: Any, handler: Any, status: int, body: dict[str, Any]
) -> None:
    app = FastAPI()
    if before:
        app.add_exception_handler(kind, handler)
    install(app)
    if not before:
        app.add_exception_handler(kind, handler)
    app.get("/{n}")(limit("1/h")(plain))
    with client(app) as ann:
        refused = [ann.get("/1") for _ in range(2)][1]
    assert (refused.status_code, refused.json()) == (status, body)
    assert refused.headers["Retry-After"] == "3600"
    assert refused.headers.get_list("RateLimit") == ['"1/h";r=0;t=3600']


@pytest.mark.parametrize("with_install", [True, False])
def test_a_handler_of_all_http_errors_can_pass_the_headers_on(with_install: bool) -> None:
    app = FastAPI()
    if with_install:
        install(app)

    @app.exception_handler(RateLimitedError)
    async def handler(request: Request, error: RateLimitedError) -> Any:
        return await http_exception_handler(request, error)

    app.get("/{n}")(limit("1/h")(plain))
    with client(app) as ann:
        refused = [ann.get("/1") for _ in range(2)][1]
    assert refused.headers.get_list("RateLimit") == ['"1/h";r=0;t=3600']
    assert refused.headers.get_list("Retry-After") == ["3600"]


# -- limits of the middleware ---------------------------------------------------------------------


def test_limits_for_all_by_pattern_and_for_none() -> None:
    app = installed(
        "3/h",
        rules={"GET /items/{n}": "1/h"},
        exclude=["/health"],
        exempt=lambda request: request.headers.get("X-Staff") == "yes",
        key=lambda request: request.client.host,
    )
    app.get("/items/{n}")(plain)
    app.get("/health")(lambda: 0)
    with client(app) as ann, client(app, BOB) as bob:
        assert [ann.get("/items/1").status_code for _ in range(2)] == [200, 429]
        assert ann.get("/items/1", headers={"X-Staff": "yes"}).status_code == 200
        assert [ann.get("/none").status_code for _ in range(3)] == [404, 404, 429]
        assert ann.get("/health").status_code == 200
        assert bob.get("/items/1").status_code == 200


def test_one_limit_of_a_route_and_of_the_middleware_has_the_same_functions() -> None:
    seen: list[type[Any]] = []

    def key(request: Request) -> str:
        seen.append(type(request))
        return request.query_params["user"]

    both = limit("2/h", key=key)
    app = FastAPI()
    install(app, both)
    app.get("/{n}")(both(plain))
    with client(app) as ann:
        statuses = [ann.get("/1?user=ann").status_code for _ in range(3)]
        assert statuses == [200, 200, 429]  # two scopes: all, and the route
    assert set(seen) == {Request}


@pytest.mark.parametrize(
    "options",
    [
        {"headers": "own"},
        {"reset": "epoch"},
        {"rules": {"items": "1/m"}},
        {"exclude": "/health"},
        {"limit": "often"},
        {"problem": "body"},
        {"limit": "1/m", "key": "user"},
    ],
    ids=lambda options: next(reversed(options)),
)
def test_wrong_arguments_are_said_when_it_is_installed(options: dict[str, Any]) -> None:
    with pytest.raises(DataError):
        install(FastAPI(), **options)


@pytest.mark.parametrize(("policy", "status"), [("raise", 503), ("deny", 503), ("allow", 200)])
def test_with_a_dead_store_the_policy_decides(
    policy: str, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    app = FastAPI()
    install(app)
    with dead_store(policy) as store:
        app.get("/{n}")(RateLimit("1/h", store=store)(plain))
        with client(app) as ann:
            answer = ann.get("/1")
    assert answer.status_code == status
    if status == 503:
        assert answer.headers["content-type"] == PROBLEM
        assert answer.json()["title"] == "Service Unavailable"
        assert ("Retry-After" in answer.headers) is (policy == "deny")
    assert not any(record.exc_info for record in caplog.records)


def test_applications_that_are_mounted_share_the_passage() -> None:
    inner = installed("5/h")
    inner.get("/{n}")(limit("1/h")(plain))
    app = installed("9/h")
    app.mount("/inner", inner)
    with client(app) as ann:
        told = ann.get("/inner/1").headers.get_list("RateLimit")
        assert told == ['"1/h";r=0;t=3600, "5/h";r=4;t=720, "9/h";r=8;t=400']
        refused = ann.get("/inner/1")
        assert (refused.status_code, refused.headers["content-type"]) == (429, PROBLEM)
        assert refused.headers.get_list("Retry-After") == ["3600"]
        assert ann.get("/none").headers["RateLimit"] == '"9/h";r=7;t=800'


# -- by the outcome -------------------------------------------------------------------------------


def failed(response: Any) -> bool:
    return bool(response.status_code == 401)


def login(name: str = "") -> str:
    if name == "crash":
        raise ZeroDivisionError("in the route")
    if name != "ann":
        raise HTTPException(401)
    return "welcome"


def test_only_failures_count() -> None:
    app = installed()
    app.post("/login")(limit("2/h", count_when=failed)(login))
    with client(app) as ann:
        assert [ann.post("/login?name=ann").status_code for _ in range(5)] == [200] * 5
        assert ann.post("/login?name=ann").headers["RateLimit"] == '"2/h";r=2;t=0'
        assert [ann.post("/login").status_code for _ in range(4)] == [401, 401, 429, 429]
        assert ann.post("/login?name=ann").status_code == 429


def test_of_failures_at_once_no_more_than_the_quota_get_through() -> None:
    app = installed()
    barrier, tried = Barrier(5), []

    def slow() -> str:
        tried.append(1)
        barrier.wait(30)  # all of them are under way at once
        raise HTTPException(401)

    app.post("/login")(limit("5/h", count_when=failed)(slow))
    with client(app) as ann, ThreadPoolExecutor(40) as pool:
        statuses = [each.status_code for each in pool.map(lambda _: ann.post("/login"), range(40))]
    assert (len(tried), statuses.count(401), statuses.count(429)) == (5, 5, 35)


async def test_failures_count_on_a_server(valkey: Server) -> None:
    store = RedisStore(valkey.url, options=PATIENT)
    app = installed()
    guard = limit("3/h", store=store, key_prefix="fastapi-login", count_when=failed)
    app.post("/login")(guard(login))
    async with (
        own_store(store),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app=app, client=ANN), base_url="http://test"
        ) as ann,
    ):
        assert (await ann.post("/login?name=ann")).status_code == 200
        statuses: list[int] = []

        async def ask() -> None:
            statuses.append((await ann.post("/login")).status_code)

        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(ask)
    assert (statuses.count(401), statuses.count(429)) == (3, 17)


def test_an_exception_of_the_route_is_a_500_to_count_when() -> None:
    seen: list[int] = []

    def counts(response: Any) -> bool:
        seen.append(response.status_code)
        return bool(response.status_code == 500)

    app = installed()
    app.post("/login")(limit("1/h", count_when=counts)(login))
    with client(app, raise_server_exceptions=False) as ann:
        assert [ann.post("/login?name=crash").status_code for _ in range(2)] == [500, 429]
    assert seen == [500]


# -- what passes through --------------------------------------------------------------------------


async def test_a_stream_stays_a_stream_and_begins_once() -> None:
    app = installed("9/h")
    gate = anyio.Event()

    @app.get("/", response_class=StreamingResponse)
    @limit("5/h")
    async def stream() -> AsyncIterator[bytes]:
        yield b"first"
        await gate.wait()  # until the client has it
        yield b"second"

    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if not sent:
            return {"type": "http.request", "body": b"", "more_body": False}
        await anyio.sleep_forever()
        raise AssertionError

    async def send(message: Any) -> None:
        sent.append(message)
        if message.get("body") == b"first":
            gate.set()

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/",
        "raw_path": b"/",
        "query_string": b"",
        "headers": [],
        "client": ANN,
        "http_version": "1.1",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
    }
    with anyio.fail_after(30):
        await app(scope, receive, send)
    assert [each["type"] for each in sent].count("http.response.start") == 1
    assert dict(sent[0]["headers"])[b"ratelimit"].startswith(b'"5/h";r=4')
    assert b"".join([each.get("body", b"") for each in sent]) == b"firstsecond"


def test_tasks_run_after_a_response_that_was_admitted() -> None:
    app, ran = installed(), []

    @app.get("/")
    @limit("1/h")
    def index(tasks: BackgroundTasks) -> None:
        tasks.add_task(ran.append, "ran")

    with client(app) as ann:
        assert [ann.get("/").status_code for _ in range(2)] == [200, 429]
    assert ran == ["ran"]


def test_a_real_server_limits_a_sync_route() -> None:
    app = installed()
    app.get("/{n}")(limit("5/h")(plain))
    with (
        served(app) as address,
        httpx.Client(base_url=f"http://{address}") as caller,
        ThreadPoolExecutor(10) as pool,
    ):
        answers = list(pool.map(lambda n: caller.get(f"/{n}"), range(20)))
    assert [each.status_code for each in answers].count(200) == 5
    assert all("RateLimit" in each.headers for each in answers)


# -- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("above", [True, False])
def test_a_decorator_above_that_of_the_route_is_said(
    above: bool, caplog: pytest.LogCaptureFixture
) -> None:
    app = installed()

    def index(n: int) -> int:
        return n

    decorators: list[Callable[..., Any]] = [app.get("/{n}"), limit("1/h")]
    index = decorators[above](decorators[not above](index))
    with client(app) as ann:
        statuses = [ann.get("/1").status_code for _ in range(3)]
    assert statuses == ([200, 200, 200] if above else [200, 429, 429])
    assert logged(caplog).count("TH007: the route /{n} calls") == int(above)
