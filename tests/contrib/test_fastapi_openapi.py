"""What limits do to the OpenAPI document of a FastAPI application."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import APIRouter, Depends, FastAPI
from fastapi.openapi.models import OpenAPI
from fastapi.openapi.utils import get_openapi
from jsonschema import validate

from tests.contrib.fastapi_apps import client, dead_store, limit
from throttled.contrib.fastapi import RateLimit, install


def plain(n: int) -> int:
    return n


def responses(app: FastAPI, path: str = "/{n}", method: str = "get") -> dict[str, Any]:
    schema = app.openapi()
    OpenAPI(**schema)
    found: dict[str, Any] = schema["paths"][path][method]["responses"]
    return found


def test_a_refusal_is_documented_with_its_headers_and_body() -> None:
    app = FastAPI()
    install(app)
    app.get("/{n}")(limit("1/h")(plain))
    documented = responses(app)["429"]
    assert documented["description"] == "Too Many Requests"
    assert set(documented["headers"]) == {"Retry-After", "RateLimit", "RateLimit-Policy"}
    assert documented["headers"]["Retry-After"]["schema"] == {"type": "integer"}
    reference = documented["content"]["application/problem+json"]["schema"]["$ref"]
    assert "503" not in responses(app)
    with client(app) as ann:
        schema = ann.get("/openapi.json").json()
        described = schema["components"]["schemas"][reference.rpartition("/")[2]]
        refused = [ann.get("/1") for _ in range(2)][1]
    validate(refused.json(), described)
    assert set(refused.json()) <= set(described["properties"])
    assert set(documented["headers"]) == {
        name for name in documented["headers"] if name in refused.headers
    }


@pytest.mark.parametrize(
    ("style", "names"),
    [
        ("legacy", {"RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset"}),
        ("x", {"X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset"}),
        (None, set()),
    ],
)
def test_the_headers_are_those_of_the_style(style: Any, names: set[str]) -> None:
    app = FastAPI()
    install(app, headers=style)
    app.get("/{n}")(limit("1/h")(plain))
    assert set(responses(app)["429"]["headers"]) == {"Retry-After", *names}
    with client(app) as ann:
        refused = [ann.get("/1") for _ in range(2)][1]
    assert {name for name in names if name in refused.headers} == names


def deep(once: RateLimit) -> Any:
    """A dependency that depends on one that depends on a limit."""
    first = Depends(once)

    def inner(result: Any = first) -> None: ...

    second = Depends(inner)

    def outer(result: Any = second) -> None: ...

    return outer


def test_it_is_found_wherever_it_stands() -> None:
    once = limit("1/h")
    app = FastAPI()
    install(app, rules={"GET /pattern/{n}": "1/h", "/below/*": "2/h"}, exclude=["/below/not"])
    app.get("/deep/{n}", dependencies=[Depends(deep(once))])(plain)
    app.get("/decorated/{n}")(once(plain))
    app.get("/pattern/{n}")(plain)
    app.post("/pattern/{n}")(plain)
    app.get("/below/{n}")(plain)
    app.get("/below/not")(lambda: 0)
    app.get("/free/{n}")(plain)
    inner, outer = APIRouter(prefix="/inner"), APIRouter(prefix="/outer")
    inner.get("/{n}")(plain)
    outer.include_router(inner, dependencies=[Depends(once)])
    app.include_router(outer)
    documented = {
        (path, method)
        for path, operations in app.openapi()["paths"].items()
        for method in operations
        if "429" in operations[method]["responses"]
    }
    assert documented == {
        ("/deep/{n}", "get"),
        ("/decorated/{n}", "get"),
        ("/pattern/{n}", "get"),
        ("/below/{n}", "get"),
        ("/outer/inner/{n}", "get"),
    }


def test_a_limit_for_all_is_in_all_operations() -> None:
    app = FastAPI()
    install(app, "5/h", exclude=["/health"])
    app.put("/{n}")(plain)
    app.get("/health")(lambda: 0)
    app.get("/hidden", include_in_schema=False)(lambda: 0)
    app.websocket("/chat")(plain)
    assert "429" in responses(app, method="put")
    assert "429" not in responses(app, "/health")
    assert set(app.openapi()["paths"]) == {"/{n}", "/health"}


def test_a_limit_of_the_application_and_routes_that_come_later() -> None:
    app = FastAPI(dependencies=[Depends(limit("5/h"))])
    install(app)
    app.get("/a")(lambda: 0)
    assert "429" in responses(app, "/a")
    app.get("/b")(lambda: 0)
    assert "429" in responses(app, "/b")


def test_what_the_user_says_of_it_stays() -> None:
    app = FastAPI()
    install(app)
    own: dict[int | str, dict[str, Any]] = {429: {"description": "Slow down"}}
    app.get("/{n}", responses=own)(limit("1/h")(plain))
    assert responses(app)["429"] == {"description": "Slow down"}


@pytest.mark.parametrize(
    ("policy", "told"), [("raise", True), ("deny", True), ("allow", False), ("local", False)]
)
def test_a_store_that_may_fail_is_told_where_it_would_be_a_503(policy: str, told: bool) -> None:
    app = FastAPI()
    install(app)
    with dead_store(policy) as store:
        app.get("/{n}")(RateLimit("1/h", store=store)(plain))
        assert ("503" in responses(app)) is told
        app.get("/own/{n}")(RateLimit("1/h", store=store, on_store_error="allow")(plain))
        assert "503" not in responses(app, "/own/{n}")


def test_a_problem_of_the_user_is_not_described() -> None:
    app = FastAPI()
    install(app, problem=lambda request, problem: ("text/plain", "no"))
    app.get("/{n}")(limit("1/h")(plain))
    assert "content" not in responses(app)["429"]
    assert "RateLimitProblem" not in app.openapi()["components"]["schemas"]


def test_an_own_openapi_is_kept() -> None:
    app = FastAPI()

    def own() -> dict[str, Any]:
        return get_openapi(title="Own", version="7", routes=app.routes)

    app.openapi = own  # type: ignore[method-assign]
    install(app)
    app.get("/{n}")(limit("1/h")(plain))
    assert app.openapi()["info"] == {"title": "Own", "version": "7"}
    assert "429" in responses(app)


def test_without_install_the_document_is_fastapis_own() -> None:
    app = FastAPI()
    app.get("/{n}")(limit("1/h")(plain))
    assert "429" not in responses(app)
    assert [each["name"] for each in app.openapi()["paths"]["/{n}"]["get"]["parameters"]] == ["n"]
