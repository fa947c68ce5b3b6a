"""The WSGI middleware, around plain applications and behind real servers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any
from wsgiref.validate import validator

import pytest
from werkzeug.middleware.proxy_fix import ProxyFix

from tests.contrib.serving import (
    any_store,
    ask,
    asked,
    dead_store,
    environ_of,
    hello,
    said,
    warned_anew,
)
from throttled import MemoryStore
from throttled.asyncio import Throttled as AsyncThrottled
from throttled.contrib.asgi import RateLimit as AsyncRateLimit
from throttled.contrib.identity import client_ip
from throttled.contrib.keys import by_header, by_route, by_user
from throttled.contrib.wsgi import RateLimit, RateLimitMiddleware, Request, Response
from throttled.exceptions import DataError
from throttled.testing import FakeClock, disabled

__all__ = ["any_store", "dead_store", "warned_anew"]


# -- admitting and refusing ------------------------------------------------------------------------


def test_the_quota_passes_and_the_rest_is_told_when_to_come_back(
    any_store: Any, clock: FakeClock
) -> None:
    app = RateLimitMiddleware(validator(hello), "2/minute", store=any_store)
    first, second, third = ask(app), ask(app), ask(app)
    assert [first.status, second.status, third.status] == [200, 200, 429]
    assert first.headers["ratelimit"] == '"2/m";r=1;t=30'
    assert first.headers["ratelimit-policy"] == '"2/m";q=2;w=60'
    assert "retry-after" not in first.headers
    assert third.headers["ratelimit"] == '"2/m";r=0;t=30'
    assert third.headers["retry-after"] == "30"
    assert third.headers["content-type"] == "application/problem+json"
    assert third.headers["content-length"] == str(len(third.body))
    assert json.loads(third.body)["violated-policies"] == ["2/m"]
    assert asked(app, 2, peer="203.0.113.6") == [200, 200]
    clock.advance(29.9)
    assert ask(app).status == 429
    clock.advance(0.1)
    assert ask(app).status == 200


def test_rules_hold_by_method_and_path_beside_the_limit_for_all(store: MemoryStore) -> None:
    rules = {"POST /login": "1/m", "/admin/*": RateLimit("2/m", store=store)}
    app = RateLimitMiddleware(hello, "4/m", rules=rules, exclude=["/health"], store=store)
    assert asked(app, 2, "/login", "POST") == [200, 429]
    assert asked(app, 3, "/admin/users") == [200, 200, 429]
    # What was refused by one was taken by none.
    assert asked(app, 2, "/login", "GET") == [200, 429]
    assert asked(app, 9, "/health") == [200] * 9


def test_a_layer_within_refuses_and_the_layer_around_has_taken_nothing(any_store: Any) -> None:
    # They are of different keys, so that they are not decided together.
    inner = RateLimitMiddleware(hello, "1/m", key=lambda request: "all", store=any_store)
    app = RateLimitMiddleware(inner, "3/m", store=any_store)
    assert [ask(app).status for _ in range(5)] == [200, 429, 429, 429, 429]
    around = RateLimitMiddleware(hello, "3/m", store=any_store)
    assert ask(around).headers["ratelimit"].startswith('"3/m";r=1;')


def test_two_layers_tell_their_headers_once_with_the_tighter_one_first(store: MemoryStore) -> None:
    app = RateLimitMiddleware(RateLimitMiddleware(hello, "2/m", store=store), "9/m", store=store)
    assert ask(app).headers["ratelimit-policy"] == '"2/m";q=2;w=60, "9/m";q=9;w=60'
    assert ask(app).headers["ratelimit"].startswith('"2/m";r=0;')


def test_headers_that_the_application_sets_are_merged_and_not_overwritten(
    store: MemoryStore,
) -> None:
    def limited(environ: Any, start_response: Any) -> Iterable[bytes]:
        own = [("RateLimit-Policy", '"own";q=1'), ("RateLimit", '"own";r=1'), ("Set-Cookie", "a=1")]
        start_response("200 OK", [("Content-Type", "text/plain"), *own])
        return [b""]

    answer = ask(RateLimitMiddleware(limited, "9/m", store=store))
    assert answer.headers["ratelimit-policy"] == '"own";q=1, "9/m";q=9;w=60'
    assert answer.headers["set-cookie"] == "a=1"


@pytest.mark.parametrize(
    ("style", "names"),
    [
        ("legacy", ["ratelimit-limit", "ratelimit-remaining", "ratelimit-reset", "retry-after"]),
        ("x", ["retry-after", "x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"]),
        (None, ["retry-after"]),
    ],
)
def test_other_headers_on_request(style: Any, names: list[str], store: MemoryStore) -> None:
    app = RateLimitMiddleware(hello, "1/m", headers=style, store=store)
    ask(app)
    found = sorted(name for name in ask(app).headers if not name.startswith("content"))
    assert found == names


def test_the_answer_to_a_head_request_has_no_body(store: MemoryStore) -> None:
    app = RateLimitMiddleware(hello, "1/m", store=store)
    ask(app)
    refused = ask(app, method="HEAD")
    assert refused.status == 429
    assert refused.body == b""
    assert int(refused.headers["content-length"]) > 0


def test_the_body_of_a_refusal_can_be_replaced(store: MemoryStore) -> None:
    def plainly(request: Request, problem: dict[str, Any]) -> tuple[str, str]:
        return "text/plain", f"{request.path}: {problem['retry_after']} s"

    app = RateLimitMiddleware(hello, "1/m", problem=plainly, store=store)
    ask(app)
    refused = ask(app, "/tee/Käse".encode().decode("latin-1"))
    assert refused.body == "/tee/Käse: 60 s".encode()
    assert refused.headers["content-type"] == "text/plain"


def test_limits_can_be_switched_off(store: MemoryStore) -> None:
    app = RateLimitMiddleware(hello, "1/m", store=store)
    with disabled():
        assert asked(app, 3) == [200] * 3
        assert "ratelimit" not in ask(app).headers
    assert asked(app, 2) == [200, 429]


# -- whom it counts --------------------------------------------------------------------------------


def test_forwarded_headers_count_from_trusted_proxies_alone(store: MemoryStore) -> None:
    seen = client_ip(trusted_proxies=["10.0.0.0/8"])
    app = RateLimitMiddleware(hello, "1/m", key=seen, store=store)

    def through(proxy: str, path: str) -> int:
        return ask(app, peer=proxy, HTTP_X_FORWARDED_FOR=path).status

    assert through("10.0.0.1", "203.0.113.1") == 200
    assert through("10.0.0.2", "198.51.100.9, 203.0.113.1") == 429  # the leftmost is his own
    assert through("203.0.113.1", "198.51.100.1") == 429
    assert through("10.0.0.1", "203.0.113.2") == 200


def test_what_proxy_fix_has_used_up_is_not_read_again(
    store: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    for key in (client_ip(), client_ip(trusted_proxies=["10.0.0.0/8"])):
        keyed = RateLimitMiddleware(hello, "1/m", key=key, scope=repr(key), store=store)
        app = ProxyFix(keyed, x_for=1)

        def through(path: str, app: Any = app) -> int:
            return ask(app, peer="10.0.0.1", HTTP_X_FORWARDED_FOR=path).status

        assert through("10.9.9.9") == 200
        assert through("203.0.113.7, 10.9.9.9") == 429  # a client inside that makes addresses up
        assert through("10.9.9.8") == 200
    assert said(caplog) == []


def test_requests_are_told_apart_by_header_user_and_path(store: MemoryStore) -> None:
    by_key = RateLimitMiddleware(hello, "1/m", key=by_header("X-API-Key"), store=store)
    assert asked(by_key, 2, HTTP_X_API_KEY="a") == [200, 429]
    assert asked(by_key, 2, HTTP_X_API_KEY="b") == [200, 429]
    by_name = RateLimitMiddleware(hello, "1/m", key=by_user(), scope="users", store=store)
    assert asked(by_name, 2, REMOTE_USER="ann") == [200, 429]
    assert asked(by_name, 2, REMOTE_USER="") == [200, 429]  # by address
    by_path = RateLimitMiddleware(hello, "1/m", key=by_route(), scope="paths", store=store)
    assert asked(by_path, 2, "/a") == [200, 429]
    assert asked(by_path, 2, "/b") == [200, 429]


def test_functions_see_the_request(store: MemoryStore) -> None:
    seen: list[Request] = []

    def key(request: Request) -> str:
        seen.append(request)
        return request.header("x-name") or "nobody"

    app = RateLimitMiddleware(
        hello,
        "5/m",
        key=key,
        cost=lambda request: int(request.header("X-Cost") or 1),
        exempt=lambda request: request.user == "root",
        store=store,
    )
    assert ask(app, HTTP_X_NAME="ann", HTTP_X_COST="4").headers["ratelimit"].startswith('"5/m";r=1')
    assert ask(app, HTTP_X_NAME="ann", HTTP_X_COST="2").status == 429
    assert "ratelimit" not in ask(app, REMOTE_USER="root").headers
    assert seen[0].environ["HTTP_X_NAME"] == "ann"
    assert isinstance(seen[0], Request)


@pytest.mark.usefixtures("warned_anew")
def test_counts_of_several_processes_in_memory_are_warned_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = RateLimitMiddleware(hello, "9/m")
    ask(app, **{"wsgi.multiprocess": False})
    assert said(caplog) == []
    for _ in range(2):
        ask(app, **{"wsgi.multiprocess": True})
    assert [text[:5] for text in said(caplog)] == ["TH005"]


# -- what counts by its outcome --------------------------------------------------------------------


def failed(response: Response) -> bool:
    return response.status_code == 401


def test_only_some_outcomes_count(any_store: Any) -> None:
    app = RateLimitMiddleware(hello, "2/m", count_when=failed, store=any_store)
    assert asked(app, 5, "/200") == [200] * 5
    assert ask(app, "/200").headers["ratelimit"].startswith('"2/m";r=2;')
    assert asked(app, 3, "/401") == [401, 401, 429]
    assert ask(app, "/200").status == 429


def test_count_when_sees_status_and_headers(store: MemoryStore) -> None:
    def own(environ: Any, start_response: Any) -> Iterable[bytes]:
        start_response("201 Made", [("Content-Type", "text/plain"), ("X-Cache", "HIT")])
        return [b""]

    seen: list[Any] = []

    def note(response: Response) -> bool:
        seen.append((response.status_code, response.headers["x-cache"]))
        return False

    ask(RateLimitMiddleware(own, "2/m", count_when=note, store=store))
    assert seen == [(201, "HIT")]


@pytest.mark.parametrize("lazily", [False, True])
def test_an_application_that_raises_counts_as_a_500(lazily: bool, store: MemoryStore) -> None:
    def now(environ: Any, start_response: Any) -> Iterable[bytes]:
        raise ZeroDivisionError

    def later(environ: Any, start_response: Any) -> Iterator[bytes]:
        raise ZeroDivisionError
        yield b""

    for counted, left in (([200], 2), ([500], 1)):
        app = RateLimitMiddleware(
            later if lazily else now,
            "2/m",
            count_when=lambda response, counted=counted: response.status_code in counted,
            store=store,
        )
        with pytest.raises(ZeroDivisionError):
            list(app(environ_of(), lambda *args: None))  # type: ignore[arg-type]
        key = "203.0.113.5"
        assert (
            app._rules.of(Request(environ_of()))[0][0].throttle("all").peek(key).remaining == left
        )


# -- faults ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "status"), [("raise", 503), ("deny", 503), ("allow", 200), ("local", 200)]
)
def test_a_dead_store_is_no_429(
    policy: Any, status: int, dead_store: Any, caplog: pytest.LogCaptureFixture
) -> None:
    app = RateLimitMiddleware(hello, "1/m", store=dead_store, on_store_error=policy)
    answer = ask(app)
    assert answer.status == status
    if status == 503:
        assert json.loads(answer.body)["status"] == 503
        assert b"Traceback" not in answer.body
        assert "ratelimit" not in answer.headers
    assert (policy == "raise") == any("answered with 503" in each for each in said(caplog))


def test_a_function_that_fails_is_a_500_that_the_log_names(
    store: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(request: Request) -> Any:
        raise ZeroDivisionError

    def nothing(request: Request) -> Any:
        return None

    cases: list[dict[str, Any]] = [
        {"key": broken},
        {"key": nothing},
        {"cost": broken},
        {"cost": nothing},
        {"exempt": broken},
    ]
    for options in cases:
        caplog.clear()
        answer = ask(RateLimitMiddleware(hello, "1/m", store=store, **options))
        assert answer.status == 500
        assert answer.headers["content-type"] == "application/problem+json"
        (line,) = said(caplog)
        [function] = options.values()
        assert function.__qualname__ in line


def unusable(request: Any) -> Any: ...


async def awaited(request: Any) -> str:
    return "a"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"limit": "ten a minute"}, "ten a minute"),
        ({"limit": "1/m", "rules": {"login": "1/m"}}, "login"),
        ({"limit": "1/m", "rules": {"FETCH /": "1/m"}}, "FETCH"),
        ({"limit": "1/m", "rules": ["/a"]}, "rules"),
        ({"limit": "1/m", "exclude": "/health"}, "exclude"),
        ({"limit": "1/m", "headers": "rfc"}, "rfc"),
        ({"limit": "1/m", "reset": "epoch"}, "epoch"),
        ({"limit": "1/m", "key": "ip"}, "key"),
        ({"limit": "1/m", "key": awaited}, "async"),
        ({"limit": "1/m", "count_when": awaited}, "async"),
        ({"limit": "1/m", "cost": -1}, "cost"),
        ({"limit": "1/m", "burts": 2}, "burts"),
        ({"limit": AsyncThrottled(quota="1/m")}, "Throttled"),
        ({"limit": AsyncRateLimit("1/m")}, "RateLimit"),
    ],
)
def test_what_is_wrong_is_said_when_it_is_made(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        RateLimitMiddleware(hello, **arguments)
