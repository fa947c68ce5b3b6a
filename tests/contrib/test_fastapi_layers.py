"""`RateLimit` on routes, routers and the application: what counts together, and what is one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
import httpx
from fastapi import APIRouter, Depends, FastAPI
from starlette.routing import Mount

from tests.contract import PATIENT
from tests.contrib.fastapi_apps import ANN, BOB, client, limit, logged, own_store
from throttled import MemoryStore
from throttled.asyncio import RedisStore
from throttled.contrib.keys import by_route
from throttled.testing import FakeClock

if TYPE_CHECKING:
    import pytest

    from tests.servers import Server
    from throttled.contrib.fastapi import RateLimit


def plain(n: int) -> int:
    return n


# -- in which scope -------------------------------------------------------------------------------


def test_a_routers_limit_counts_each_route_by_itself() -> None:
    each = limit("1/h")
    router = APIRouter(prefix="/v1", dependencies=[Depends(each)])
    router.get("/a/{n}")(plain)
    router.api_route("/b/{n}", methods=["POST", "GET"])(plain)
    inner = APIRouter(prefix="/inner")
    inner.get("/a/{n}")(plain)
    router.include_router(inner)
    app = FastAPI()
    app.include_router(router, prefix="/api")
    app.include_router(router, prefix="/other")
    with client(app) as ann:
        paths = ["/api/v1/a/1", "/api/v1/b/1", "/api/v1/inner/a/1", "/other/v1/a/1"]
        assert [ann.get(path).status_code for path in paths] == [200] * 4
        assert [ann.get(path).status_code for path in paths] == [429] * 4
        assert ann.get("/api/v1/a/2").status_code == 429
        assert ann.post("/api/v1/b/1").status_code == 429
        anyio.run(each.throttle("GET|POST /api/v1/b/{n}").reset, ANN[0])
        assert ann.post("/api/v1/b/1").status_code == 200
    assert set(each._throttles) == {
        "GET /api/v1/a/{n}",
        "GET|POST /api/v1/b/{n}",
        "GET /api/v1/inner/a/{n}",
        "GET /other/v1/a/{n}",
    }


def test_routes_of_one_scope_count_together() -> None:
    together = limit("2/h", scope="api")
    app = FastAPI(dependencies=[Depends(together)])
    app.get("/a/{n}")(plain)
    app.get("/b/{n}")(plain)
    with client(app) as ann:
        assert [ann.get(path).status_code for path in ("/a/1", "/b/1", "/a/1")] == [200, 200, 429]
    assert anyio.run(together.throttle().peek, ANN[0]).remaining == 0


def test_an_application_that_is_mounted_counts_under_its_path() -> None:
    each = limit("1/h")
    inner = FastAPI(dependencies=[Depends(each)])
    inner.get("/{n}")(plain)
    middle = FastAPI()
    middle.mount("/{n:int}", inner)  # with the name of the route's own parameter, and of this one
    router = APIRouter(routes=[Mount("/tenants/{tenant}", inner), Mount("/inner", inner)])
    app = FastAPI()
    app.include_router(router, prefix="/in")
    app.mount("/inner", inner)
    app.mount("/middle/{n}", middle)
    with client(app, root_path="/proxied") as ann:
        paths = ["/inner/1", "/in/inner/1", "/in/tenants/a/1", "/middle/a/1/1"]
        assert [ann.get("/proxied" + path).status_code for path in paths] == [200] * 4
        # Nobody gets around it by a value of his own in the path.
        paths = ["/inner/2", "/in/inner/2", "/in/tenants/b/1", "/middle/a/2/1", "/middle/b/002/1"]
        assert [ann.get("/proxied" + path).status_code for path in paths] == [429] * 5
        app.mount("/late", inner)
        assert ann.get("/proxied/late/1").status_code == 200
    assert set(each._throttles) == {
        "GET /inner/{n}",
        "GET /in/inner/{n}",
        "GET /in/tenants/{tenant}/{n}",
        "GET /middle/{n}/{n}/{n}",
        "GET /late/{n}",
    }


def test_a_key_by_route_is_the_template() -> None:
    app = FastAPI()
    app.get("/{n}")(limit("1/h", key=by_route())(plain))
    with client(app) as ann, client(app, BOB) as bob:
        assert ann.get("/1").status_code == 200
        assert bob.get("/2").status_code == 429


# -- layers ---------------------------------------------------------------------------------------


def layered(**options: Any) -> tuple[FastAPI, list[RateLimit]]:
    """All layers hold for `/v1/{n}`, the last one the tightest."""
    limits = [limit(f"{n}/h", **options) for n in (40, 30, 20, 2)]
    app = FastAPI(dependencies=[Depends(limits[0])])
    router = APIRouter(prefix="/v1", dependencies=[Depends(limits[1])])
    router.get("/{n}", dependencies=[Depends(limits[2])])(limits[3](plain))
    app.include_router(router)
    return app, limits


def test_the_layers_of_a_request_take_all_or_nothing() -> None:
    app, limits = layered()
    with client(app) as ann:
        answers = [ann.get("/v1/1") for _ in range(5)]
        assert [each.status_code for each in answers] == [200, 200, 429, 429, 429]
        told = answers[0].headers.get_list("RateLimit-Policy")
        assert told == [
            '"2/h";q=2;w=3600, "20/h";q=20;w=3600, "30/h";q=30;w=3600, "40/h";q=40;w=3600'
        ]
    left = [anyio.run(each.throttle("GET /v1/{n}").peek, ANN[0]).remaining for each in limits]
    assert left == [38, 28, 18, 0]


async def test_the_layers_take_all_or_nothing_of_a_server(valkey: Server) -> None:
    store = RedisStore(valkey.url, options=PATIENT)
    app, limits = layered(store=store, key_prefix="fastapi-layers")
    async with (
        own_store(store),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app=app, client=ANN), base_url="http://test"
        ) as ann,
    ):
        statuses = [(await ann.get("/v1/1")).status_code for _ in range(5)]
        assert statuses == [200, 200, 429, 429, 429]
        left = [(await each.throttle("GET /v1/{n}").peek(ANN[0])).remaining for each in limits]
    assert left == [38, 28, 18, 0]


def test_a_fault_in_a_later_layer_takes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    first, faulty = limit("5/h"), limit("9/h", key=lambda request: None)
    app = FastAPI(dependencies=[Depends(first)])
    app.get("/{n}")(faulty(plain))
    with client(app) as ann:
        assert ann.get("/1").status_code == 500
    assert anyio.run(first.throttle("GET /{n}").peek, ANN[0]).remaining == 5
    assert "Key function" in logged(caplog)


def test_a_request_counts_once_by_one_limit_however_often_it_is_named() -> None:
    store = MemoryStore(clock=FakeClock())
    same, alike = limit("3/h", store=store), limit("3 per hour", store=store)
    dearer = limit("9/h", store=store, cost=2)
    app = FastAPI(dependencies=[Depends(same), Depends(dearer)])
    app.get("/{n}", dependencies=[Depends(alike), Depends(same, use_cache=False)])(plain)
    with client(app) as ann:
        answer = ann.get("/1")
        assert answer.headers["RateLimit"] == '"3/h";r=2;t=1200, "9/h";r=7;t=800'
        assert [ann.get("/1").status_code for _ in range(3)] == [200, 200, 429]
