"""The ASGI middleware against mistakes of the application, and against callers who look for a way
around it."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import pytest

from tests.contrib.calling import (
    App,
    RateLimitMiddleware,
    any_store,
    call,
    errors,
    limited,
    raw,
    serving,
    statuses,
)
from throttled import Throttled as SyncThrottled
from throttled.asyncio import MemoryStore, Throttled
from throttled.contrib.asgi import RateLimit
from throttled.contrib.identity import client_ip
from throttled.contrib.keys import by_header, by_route, by_user
from throttled.exceptions import DataError

if TYPE_CHECKING:
    pass

__all__ = ["any_store"]


# -- functions of the application that fail -------------------------------------------------------


def no_key(request: Any) -> Any:
    return None


def empty_key(request: Any) -> Any:
    return ""


def raising(request: Any) -> Any:
    raise ZeroDivisionError("in here")


async def raising_later(request: Any) -> Any:
    await asyncio.sleep(0)
    raise ZeroDivisionError("in here")


@pytest.mark.parametrize(
    ("options", "name"),
    [
        *[({"key": each}, each.__name__) for each in (no_key, empty_key, raising, raising_later)],
        ({"key": by_header("X-A", otherwise=empty_key)}, "by_header"),
        ({"key": by_user(otherwise=raising_later)}, "by_user"),
        *[({"cost": each}, each.__name__) for each in (no_key, empty_key, raising, raising_later)],
        ({"cost": lambda request: -1}, "<lambda>"),
        ({"cost": lambda request: 1.5}, "<lambda>"),
        ({"cost": lambda request: True}, "<lambda>"),
        *[({"exempt": each}, each.__name__) for each in (raising, raising_later)],
    ],
)
async def test_a_function_that_fails_is_a_500_that_names_it_in_the_log(
    options: Any, name: str, store: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    inner = App()
    before = RateLimit("5/m", store=store, scope="before")
    app = limited([before, RateLimit("5/m", store=store, **options)], inner)
    answer = await call(app)
    assert answer.status == 500
    assert answer.problem["status"] == 500
    assert "in here" not in str(answer.problem)
    assert not inner.seen
    assert name in errors(caplog)[0]
    assert (await before.throttle().peek("203.0.113.5")).remaining == 5


# -- wrong configuration --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"limit": None}, "rules="),
        ({"limit": "2/fortnight"}, "fortnight"),
        ({"limit": []}, "quota"),
        ({"limit": SyncThrottled(quota="1/m")}, "throttled.asyncio"),
        ({"rules": ["/a"]}, "rules"),
        ({"rules": {"login": "1/m"}}, "'login'"),
        ({"rules": {"post /login": "1/m"}}, "post /login"),
        ({"rules": {"FETCH /login": "1/m"}}, "FETCH"),
        ({"rules": {"/a/{id}.json": "1/m"}}, "{id}.json"),
        ({"rules": {"/a/{id:int}": "1/m"}}, "{id:int}"),
        ({"rules": {"/*/a": "1/m"}}, "'*'"),
        ({"rules": {"/a?b=1": "1/m"}}, "a?b=1"),
        ({"rules": {"/caf%C3%A9": "1/m"}}, "decoded"),
        ({"rules": {"//a": "1/m"}}, "segment ''"),
        ({"rules": {7: "1/m"}}, "7"),
        ({"rules": {"/a": "1/m", "/a/": "1/m"}}, "same keys"),
        ({"exclude": "/health"}, "exclude"),
        ({"exclude": ["health"]}, "'health'"),
        ({"exclude": 5}, "exclude"),
        ({"exempt": "yes"}, "exempt"),
        ({"headers": "X"}, "style"),
        ({"headers": "ietf", "reset": "epoch"}, "epoch"),
        ({"problem": {}}, "problem"),
        ({"key": "ip"}, "key"),
        ({"key": 3}, "key"),
        ({"cost": -1}, "cost"),
        ({"cost": "1"}, "cost"),
        ({"count_when": 401}, "count_when"),
        ({"scope": "{a}"}, "scope"),
        ({"stoer": None}, "stoer"),
        ({"per": "item"}, "per"),
        ({"quota": "5/m"}, "quota"),
        ({"limit": RateLimit("1/m"), "stoer": None}, "stoer"),
        ({"messages": RateLimit("1/m", count_when=bool)}, "count_when"),
    ],
)
def test_wrong_configuration_is_found_when_it_is_made(options: Any, named: str) -> None:
    with pytest.raises(DataError) as caught:
        RateLimitMiddleware(App(), **{"limit": "1/m", **options})
    assert named in str(caught.value)


def test_a_throttled_takes_no_options_of_a_quota() -> None:
    for options in ({"scope": "a"}, {"using": "gcra"}, {"key_prefix": "p"}):
        with pytest.raises(DataError, match="brings its own"):
            RateLimit(Throttled(quota="1/m"), **options)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="hops"):
        client_ip(hops=0)


async def test_two_throttleds_of_the_same_keys_are_refused_and_one_in_two_places_is_not() -> None:
    one, other = Throttled(quota="1/m"), Throttled(quota="2/m")
    with pytest.raises(DataError, match="same keys"):
        RateLimitMiddleware(App(), [one, other])
    RateLimitMiddleware(App(), one, rules={"/a": one})


# -- ways around ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "method", "more"),
    [
        ("/login/", "POST", {}),
        ("/login//", "POST", {}),
        ("//login", "POST", {}),
        ("/login\n", "POST", {}),
        ("login", "POST", {}),
        ("http://example.org/login", "POST", {}),
        ("HTTPS://example.org//login/?a", "POST", {}),
        ("/login", "post", {}),
        ("/api/login", "POST", {"root_path": "/api"}),
        ("/login", "POST", {"root_path": "/api"}),
        ("/items/1", "HEAD", {}),
        ("/items//1/", "head", {}),
        ("/items/\n", "GET", {}),
        ("/items/1\n", "GET", {}),
        ("/admin", "GET", {}),
        ("/admin/", "GET", {}),
        ("/admin//x/../y", "GET", {}),
        ("/admin/x\ny", "BREW", {}),
        ("/api", "GET", {"root_path": "/api"}),
    ],
)
async def test_no_way_around_a_pattern(path: str, method: str, more: Any) -> None:
    rules = dict.fromkeys(("POST /login", "GET /items/{id}", "/admin/*", "GET /"), "1/m")
    app = limited(None, rules=rules, store=MemoryStore())
    assert await statuses(app, 2, path, method, **more) == [200, 429]


@pytest.mark.parametrize(
    ("path", "method", "more"),
    [
        ("/login", "GET", {}),
        ("/loginx", "POST", {}),
        ("/x/login", "POST", {}),
        ("/login/x", "POST", {}),
        ("/administrator", "GET", {}),
        ("/items/1/2", "GET", {}),
        ("/items", "GET", {}),
        ("/apix/login", "POST", {"root_path": "/api"}),
        ("http://[bad/login", "POST", {}),
    ],
)
async def test_what_does_not_match_is_not_limited(path: str, method: str, more: Any) -> None:
    rules = dict.fromkeys(("POST /login", "GET /items/{id}", "/admin/*"), "1/m")
    app = limited(None, rules=rules, store=MemoryStore())
    assert await statuses(app, 2, path, method, **more) == [200, 200]


@pytest.mark.parametrize("path", ["//health", "/health/", "/health\n", "/healthy", "/x/health"])
async def test_what_is_excluded_is_taken_at_its_word(path: str, store: MemoryStore) -> None:
    app = limited("1/m", exclude=["GET /health", "/static/*"], store=store)
    assert await statuses(app, 2, "/health") == [200, 200]
    assert await statuses(app, 2, "/static/a/b") == [200, 200]
    assert await statuses(app, 2, path) == [200, 429]


async def test_a_header_that_comes_twice_is_no_new_caller(store: MemoryStore) -> None:
    """Frameworks differ in which of the two they take for the key."""
    app = limited("2/m", store=store, key=by_header("X-API-Key"))
    both = [
        [("X-API-Key", values[0]), ("X-API-Key", values[1])]
        for number in range(4)
        for values in (("mine", str(number)), (str(number), "mine"))
    ]
    got = [(await call(app, headers=headers)).status for headers in both]
    assert got == [200, 200] + [429] * 6


async def test_a_very_long_key_is_a_key(store: MemoryStore) -> None:
    app = limited("1/m", store=store, key=lambda request: request.header("X-Long"))
    for letter in "ab":
        assert await statuses(app, 2, headers=[("X-Long", letter * 60_000)]) == [200, 429]


# -- warnings ---------------------------------------------------------------------------------


def codes(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [text[:5] for text in errors(caplog) if text.startswith("TH")]


async def test_misuse_that_shows_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    app = limited("9999/m")
    for number in range(3):
        await call(app, headers=[("X-Forwarded-For", "198.51.100.1")])
        await call(app, peer=None)
        await call(app, peer=f"203.0.113.{number}")
    assert codes(caplog) == ["TH001", "TH002"]

    caplog.clear()
    app = limited("9999/m", key=client_ip(hops=2))
    both = [("X-Forwarded-For", "1.1.1.1, 2.2.2.2"), ("Forwarded", "for=1.1.1.2, for=2.2.2.2")]
    for headers in ([("X-Forwarded-For", "198.51.100.1")], both) * 2:
        await call(app, headers=headers)
    assert codes(caplog) == ["TH003", "TH004"]


async def test_all_callers_under_one_key_are_said_once_and_only_where_it_looks_like_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def everyone(request: Any) -> str:
        return "everyone"

    async def flood(key: Any, peers: int) -> list[str]:
        caplog.clear()
        app = limited("9999/m", key=key)
        for number in range(150):
            await call(app, peer=f"203.0.113.{number % peers}")
        return codes(caplog)

    assert await flood(everyone, 50) == ["TH006"]
    assert "everyone" in errors(caplog)[0]
    assert await flood(everyone, 2) == [], "one caller may have two addresses"
    assert await flood(lambda request: request.peer, 50) == []
    assert await flood(client_ip(), 1) == []
    assert await flood(by_route(), 50) == [], "which says that it is for all"


@pytest.mark.parametrize("reads", [True, False])
def test_a_server_that_reads_forwarded_headers_itself_is_no_misuse(
    reads: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """As uvicorn does, unless told otherwise, for a proxy on its own machine."""
    app = limited("1/h", store=MemoryStore())
    with serving(app, lifespan="off", proxy_headers=reads) as port:
        for number in range(2):
            client = f"X-Forwarded-For: 198.51.100.{number}"
            assert raw(port, "GET / HTTP/1.1", client) == (429 if number and not reads else 200)
    assert codes(caplog) == ([] if reads else ["TH001"])
