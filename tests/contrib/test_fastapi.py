"""`RateLimit` in FastAPI, without `install`: a dependency and a decorator."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import anyio
import httpx
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient
from pydantic import BaseModel

import throttled
from tests.contract import PATIENT
from tests.contrib.fastapi_apps import ANN, BOB, client, dead_store, limit, logged, own_store
from throttled import MemoryStore, RateLimitResult
from throttled.asyncio import RedisStore, Throttled
from throttled.contrib.fastapi import RateLimit
from throttled.contrib.keys import by_header
from throttled.exceptions import DataError
from throttled.testing import FakeClock

if TYPE_CHECKING:
    from decimal import Decimal

    from tests.servers import Server


class Item(BaseModel):
    name: str


# -- as a dependency ------------------------------------------------------------------------------


def test_a_route_admits_its_quota_and_says_when_to_come_back() -> None:
    clock = FakeClock()
    app = FastAPI()

    @app.get("/", dependencies=[Depends(limit("2/minute", store=MemoryStore(clock=clock)))])
    async def index() -> str:
        return "here"

    with client(app) as ann:
        first = ann.get("/")
        assert (first.status_code, first.json()) == (200, "here")
        assert first.headers["RateLimit"] == '"2/m";r=1;t=30'
        assert first.headers["RateLimit-Policy"] == '"2/m";q=2;w=60'
        assert ann.get("/").status_code == 200
        refused = ann.get("/")
        assert refused.status_code == 429
        assert refused.headers["Retry-After"] == "30"
        assert refused.headers["RateLimit"] == '"2/m";r=0;t=30'
        problem = refused.json()["detail"]
        assert (problem["status"], problem["retry_after"]) == (429, 30)
        clock.advance(29.999)
        assert ann.get("/").status_code == 429
        clock.advance(0.001)
        assert ann.get("/").status_code == 200
    with client(app, BOB) as bob:
        assert bob.get("/").status_code == 200


async def test_tasks_at_once_are_admitted_just_the_quota_by_a_server(valkey: Server) -> None:
    store = RedisStore(valkey.url, options=PATIENT)
    app = FastAPI()

    @app.get("/{n}")
    @RateLimit("10/hour", store=store, key_prefix="fastapi-at-once")
    async def index(n: int) -> int:
        return n

    async with (
        own_store(store),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app=app, client=ANN), base_url="http://test"
        ) as ann,
    ):
        statuses: list[int] = []

        async def ask(n: int) -> None:
            statuses.append((await ann.get(f"/{n}")).status_code)

        async with anyio.create_task_group() as tasks:
            for n in range(50):
                tasks.start_soon(ask, n)
    assert (statuses.count(200), statuses.count(429)) == (10, 40)


def test_threads_at_once_are_admitted_just_the_quota_by_a_sync_route() -> None:
    app = FastAPI()
    ran: list[int] = []

    @app.get("/{n}")
    @limit("5/hour")
    def index(n: int) -> int:
        ran.append(n)
        return n

    with client(app) as ann, ThreadPoolExecutor(20) as pool:
        statuses = [each.status_code for each in pool.map(lambda n: ann.get(f"/{n}"), range(40))]
    assert (statuses.count(200), statuses.count(429)) == (5, 35)
    assert len(ran) == 5


def test_its_value_is_the_decision() -> None:
    app = FastAPI()
    once = limit("2/m", exempt=lambda request: "staff" in request.query_params)

    decision = Depends(once)

    @app.get("/")
    async def index(result: RateLimitResult | None = decision) -> int | None:
        return result and result.state.remaining

    with client(app) as ann:
        assert ann.get("/").json() == 1
        assert ann.get("/?staff").json() is None


@pytest.mark.parametrize("decorated", [False, True])
def test_overriding_the_dependency_switches_it_off(decorated: bool) -> None:
    app = FastAPI()
    once = limit("1/h")
    if decorated:
        app.get("/")(once(lambda: "here"))
    else:
        app.get("/", dependencies=[Depends(once)])(lambda: "here")
    with client(app) as ann:
        app.dependency_overrides[once] = lambda: None
        assert {ann.get("/").status_code for _ in range(5)} == {200}
        app.dependency_overrides = {}
        assert [ann.get("/").status_code for _ in range(2)] == [200, 429]


def test_a_dependency_with_yield_is_left_when_a_request_is_refused() -> None:
    app = FastAPI()
    seen: list[str] = []

    def session() -> Iterator[str]:
        seen.append("opened")
        try:
            yield "session"
        except HTTPException as error:
            seen.append(str(error.status_code))
            raise
        finally:
            seen.append("closed")

    @app.get("/", dependencies=[Depends(session), Depends(limit("1/h"))])
    async def index() -> None:
        seen.append("ran")

    with client(app) as ann:
        assert [ann.get("/").status_code for _ in range(2)] == [200, 429]
    assert seen == ["opened", "ran", "closed", "opened", "429", "closed"]


# -- as a decorator -------------------------------------------------------------------------------


async def coroutine(n: int) -> str:
    """Say a number."""
    return f"said {n}"


def plain(n: int) -> str:
    """Say a number."""
    return f"said {n}"


def iterator(n: int) -> Iterator[str]:
    """Say a number."""
    yield f"said {n}"


async def async_iterator(n: int) -> AsyncIterator[str]:
    """Say a number."""
    yield f"said {n}"


ENDPOINTS: list[Callable[..., Any]] = [coroutine, plain, iterator, async_iterator]


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda each: each.__name__)
def test_any_kind_of_function_can_be_decorated(endpoint: Callable[..., Any]) -> None:
    app = FastAPI()
    streams = "iterator" in endpoint.__name__
    options: dict[str, Any] = {"response_class": StreamingResponse} if streams else {}
    app.get("/{n}", **options)(limit("1/h")(endpoint))
    with client(app) as ann:
        first = ann.get("/7")
        assert first.status_code == 200
        assert "said 7" in first.text
        assert ann.get("/7").status_code == 429
        assert not app.openapi()["paths"]["/{n}"]["get"]["parameters"][1:]


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda each: each.__name__)
def test_a_decorated_function_stays_what_it_is(endpoint: Callable[..., Any]) -> None:
    decorated = limit("1/h")(endpoint)
    assert decorated.__name__ == endpoint.__name__
    assert decorated.__doc__ == "Say a number."
    assert get_type_hints(decorated) == get_type_hints(endpoint)
    for kind in ("iscoroutinefunction", "isgeneratorfunction", "isasyncgenfunction"):
        asked = getattr(inspect, kind)
        assert asked(decorated) == asked(endpoint), kind


async def test_outside_of_a_request_a_decorated_function_is_not_limited() -> None:
    once = limit("1/h")
    assert [await once(coroutine)(n) for n in range(3)] == ["said 0", "said 1", "said 2"]
    assert [once(plain)(n=n) for n in range(3)] == ["said 0", "said 1", "said 2"]
    assert [*once(iterator)(4)] == ["said 4"]
    assert [each async for each in once(async_iterator)(4)] == ["said 4"]


nothing = Depends(lambda: None)


@limit("1/h")
async def with_everything(
    n: int,
    item: Item,
    tasks: BackgroundTasks,
    more: Annotated[str, Depends(lambda: "more")],
    price: Decimal | None = nothing,
    q: str = "q",
) -> Item:
    tasks.add_task(done.append, item.name)
    return Item(name=f"{n} {item.name} {more} {q} {price}")


done: list[str] = []


def test_annotations_that_are_text_are_understood_and_tasks_run_afterwards() -> None:
    app = FastAPI()
    app.post("/{n}")(with_everything)
    with client(app) as ann:
        answer = ann.post("/1?q=x", json={"name": "ann"})
        assert answer.json() == {"name": "1 ann more x None"}
        assert done == ["ann"]
        assert ann.post("/1", json={"name": "ann"}).status_code == 429
    assert done == ["ann"]
    assert "_throttled" not in str(app.openapi())


def test_decorators_stand_above_each_other() -> None:
    app = FastAPI()
    ten, two = limit("10/h"), limit("2/h")
    app.get("/")(ten(two(lambda: "here")))
    with client(app) as ann:
        assert [ann.get("/").status_code for _ in range(4)] == [200, 200, 429, 429]
    assert ten.throttle("GET /").rules[0].quota.limit == 10
    # What a refused request took is given back.
    assert anyio.run(ten.throttle("GET /").peek, ANN[0]).remaining == 8


@pytest.mark.parametrize("what", [None, Item, 3])
def test_it_decorates_functions_only(what: Any) -> None:
    with pytest.raises(DataError, match="Invalid use of RateLimit"):
        limit("1/h")(what)


# -- whom and how much ----------------------------------------------------------------------------


def test_functions_are_given_the_request_of_starlette() -> None:
    async def key(request: Request) -> str:
        body = await request.json()
        return f"{request.state.tenant}:{request.path_params['n']}:{body['name']}"

    def tenant(request: Request) -> None:
        request.state.tenant = request.headers["X-Tenant"]

    def cost(request: Request) -> int:
        return int(request.query_params.get("cost", 1))

    app = FastAPI()
    three = limit("3/h", key=key, cost=cost, exempt=lambda request: request.method == "PUT")

    @app.api_route("/{n}", methods=["POST", "PUT"], dependencies=[Depends(tenant), Depends(three)])
    async def index(n: int, item: Item) -> str:
        return item.name

    with client(app) as ann:
        headers, json = {"X-Tenant": "t"}, {"name": "x"}
        assert ann.post("/1?cost=3", headers=headers, json=json).status_code == 200
        assert ann.post("/1", headers=headers, json=json).status_code == 429
        assert ann.post("/2?cost=4", headers=headers, json=json).status_code == 429
        assert ann.put("/1", headers=headers, json=json).status_code == 200
    assert anyio.run(three.throttle("POST|PUT /{n}").peek, "t:1:x").remaining == 0


def test_a_throttled_of_the_user_counts_under_its_own_prefix() -> None:
    throttle = Throttled(quota="2/h", store=MemoryStore(clock=FakeClock()))
    app = FastAPI(dependencies=[Depends(RateLimit(throttle, key=by_header("X-API-Key")))])
    app.get("/a/{n}")(plain)
    app.get("/b/{n}")(plain)
    with client(app) as ann:
        headers = {"X-API-Key": "secret"}
        paths = ["/a/1", "/b/1", "/a/1"]
        statuses = [ann.get(path, headers=headers).status_code for path in paths]
        assert statuses == [200, 200, 429]
        assert ann.get("/a/1", headers={"X-API-Key": "other"}).status_code == 200


def test_a_request_that_does_not_validate_counts() -> None:
    app = FastAPI()
    app.get("/{n}")(limit("1/h")(plain))
    with client(app) as ann:
        assert [ann.get("/none").status_code for _ in range(2)] == [422, 429]


# -- faults ---------------------------------------------------------------------------------------


def raising(request: Request) -> str:
    raise ZeroDivisionError("no key")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"key": raising}, "Key function raising raised"),
        ({"key": lambda request: ""}, "returned '', must be a non-empty string"),
        ({"cost": lambda request: -1}, "Cost function"),
        ({"exempt": raising}, "Exempt function raising raised"),
        ({"count_when": raising}, "install(app)"),
    ],
    ids=["raises", "nothing", "cost", "exempt", "count_when"],
)
def test_a_function_that_fails_is_a_500_and_named_in_the_log(
    options: dict[str, Any], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = FastAPI()
    app.get("/{n}")(limit("1/h", **options)(plain))
    with client(app) as ann:
        answer = ann.get("/1")
    assert answer.status_code == 500
    assert answer.json()["detail"]["title"] == "Internal Server Error"
    assert said in logged(caplog)


@pytest.mark.parametrize(
    ("policy", "status"), [("raise", 503), ("deny", 503), ("allow", 200), ("local", 200)]
)
def test_with_a_dead_store_the_policy_decides(
    policy: str, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    app = FastAPI()
    with dead_store(policy) as store:
        app.get("/{n}")(RateLimit("1/h", store=store)(plain))
        with client(app) as ann:
            answer = ann.get("/1")
            assert answer.status_code == status
            assert ann.get("/1").status_code == (429 if policy == "local" else status)
    if status == 503:
        assert answer.json()["detail"]["status"] == 503
    assert "RateLimit" not in answer.headers or policy == "local"
    assert not any(record.exc_info for record in caplog.records)


@pytest.mark.parametrize(
    ("arguments", "options", "said"),
    [
        (["none"], {}, "none"),
        (["1/h"], {"key": "user"}, "Invalid key"),
        (["1/h"], {"cost": -1}, "cost"),
        (["1/h"], {"scope": ""}, "scope"),
        ([throttled.Throttled(quota="1/h")], {}, "throttled.asyncio"),
    ],
    ids=["quota", "key", "cost", "scope", "flavour"],
)
def test_wrong_arguments_are_said_at_once(
    arguments: list[Any], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(DataError, match=said):
        RateLimit(*arguments, **options)


async def test_it_decides_in_a_thread_where_it_is_not_seen_to_be_async() -> None:
    once = limit("1/h")
    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "client": ANN}

    def depend() -> Any:
        return once(Request(dict(scope)), Response())

    assert (await anyio.to_thread.run_sync(depend)).state.remaining == 0
    with pytest.raises(HTTPException) as caught:
        await anyio.to_thread.run_sync(depend)
    assert caught.value.status_code == 429


def test_the_test_client_needs_no_lifespan() -> None:
    app = FastAPI()
    app.get("/{n}")(limit("1/h")(plain))
    assert [TestClient(app, client=ANN).get("/1").status_code for _ in range(2)] == [200, 429]
