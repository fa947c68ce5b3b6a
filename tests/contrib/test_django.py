"""The adapter of Django, in real sync and async stacks."""

from __future__ import annotations

import asyncio
import logging
import math
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import pytest
from asgiref.sync import iscoroutinefunction
from django.core.asgi import get_asgi_application
from django.core.exceptions import ImproperlyConfigured
from django.core.handlers.wsgi import WSGIHandler
from django.http import Http404, HttpResponse, HttpResponseForbidden, StreamingHttpResponse
from django.test import RequestFactory
from django.urls import path, re_path
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.csrf import csrf_exempt

from tests.contrib.django_site import (
    MIDDLEWARE,
    SESSIONS,
    USERS,
    Caller,
    Where,
    home,
    problem,
    remaining,
    site,
    view,
    with_users,
)
from tests.contrib.django_site.serving import Serving, answers
from tests.servers import Server, free_port
from throttled import MemoryStore, RedisStore, Throttled
from throttled.asyncio import RedisStore as AsyncRedisStore
from throttled.asyncio import Throttled as AsyncThrottled
from throttled.contrib.django import RateLimit, rate_limit
from throttled.contrib.keys import by_header, by_route, by_user, combined
from throttled.exceptions import DataError
from throttled.hooks import Event, Observer
from throttled.testing import disabled

_prefixes = (f"django-{n}" for n in count())

STACKS = pytest.mark.parametrize("stack", ["wsgi", "asgi"])
VIEWS = pytest.mark.parametrize("kind", ["sync", "async"])


@pytest.fixture(params=["memory", pytest.param("server", marks=pytest.mark.server)])
def where(request: pytest.FixtureRequest) -> Where:
    if request.param == "memory":
        return Where()
    return Where(request.getfixturevalue("server_named")("valkey").url)


@pytest.fixture
def memory() -> Where:
    return Where()


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    """What the library logged."""
    with caplog.at_level(logging.WARNING, "throttled"):
        yield lambda: [r.getMessage() for r in caplog.records if r.name == "throttled"]


# -- the middleware -------------------------------------------------------------------------------


@STACKS
@VIEWS
def test_the_middleware_admits_the_quota_and_tells_when_more_fits(
    stack: str, kind: str, where: Where
) -> None:
    with site(home(kind), THROTTLED={**where.said, "LIMIT": "2/m"}):
        call = Caller(stack)
        for left in (1, 0):
            response = call()
            assert response.status_code == 200
            assert response.content == b"fine"
            assert response["RateLimit-Policy"] == '"2/m";q=2;w=60'
            assert remaining(response) == left
            assert "Retry-After" not in response
        refused = call()
        assert refused.status_code == 429
        assert refused["Retry-After"] == "30"
        assert refused["RateLimit"] == '"2/m";r=0;t=30'
        assert problem(refused)["retry_after"] == 30
        where.clock.advance(29.9)
        assert call().status_code == 429
        where.clock.advance(0.1)
        assert call().status_code == 200


@STACKS
def test_each_address_has_a_limit_of_its_own(stack: str, memory: Where) -> None:
    with site(home(), THROTTLED={**memory.said, "LIMIT": "1/m"}):
        for peer in ("192.0.2.1", "192.0.2.2", "2001:db8::1"):
            assert Caller(stack, peer=peer).statuses(2) == [200, 429]
        # Of the same /64.
        assert Caller(stack, peer="2001:db8::2").statuses(1) == [429]


@STACKS
def test_a_forwarded_header_is_not_believed_unless_the_proxy_is_trusted(
    stack: str, memory: Where, logged: Callable[[], list[str]]
) -> None:
    with site(home(), THROTTLED={**memory.said, "LIMIT": "1/m"}):
        call = Caller(stack)
        assert call(headers={"X-Forwarded-For": "192.0.2.1"}).status_code == 200
        assert call(headers={"X-Forwarded-For": "192.0.2.2"}).status_code == 429
    assert [line[:5] for line in logged()] == ["TH001"]


@STACKS
def test_rules_hold_by_method_and_path_and_excluded_paths_pass(stack: str, where: Where) -> None:
    urls = [path("login", view("sync")), path("health", view("sync")), home()]
    said = {**where.said, "LIMIT": "5/m", "RULES": {"POST /login": "1/m"}, "EXCLUDE": ["/health"]}
    with site(*urls, THROTTLED=said):
        call = Caller(stack)
        assert call.statuses(2, "/login", method="post") == [200, 429]
        # The refused one gave back what it had taken of the limit for all.
        assert remaining(call("/login")) == 3
        assert [remaining(call()) for _ in range(3)] == [2, 1, 0]
        assert call().status_code == 429
        answered = call("/health")
        assert answered.status_code == 200
        assert "RateLimit" not in answered


@STACKS
def test_an_exempt_request_passes_uncounted_and_a_cost_is_taken(stack: str, memory: Where) -> None:
    said = {
        **memory.said,
        "LIMIT": "10/m",
        "EXEMPT": lambda request: request.headers.get("X-Staff") == "yes",
        "COST": lambda request: int(request.GET.get("n", 1)),
    }
    with site(home(), THROTTLED=said):
        call = Caller(stack)
        assert remaining(call("/?n=7")) == 3
        assert "RateLimit" not in call("/?n=7", headers={"X-Staff": "yes"})
        assert call("/?n=4").status_code == 429
        assert remaining(call("/?n=3")) == 0


def test_a_sync_stack_stays_sync_and_an_async_one_async(memory: Where) -> None:
    from throttled.contrib.django import RateLimitMiddleware

    async def awaited(request: Any) -> None: ...

    with site(THROTTLED={**memory.said, "LIMIT": "1/m"}):
        assert iscoroutinefunction(RateLimitMiddleware(awaited))
        assert not iscoroutinefunction(RateLimitMiddleware(lambda request: None))

    here = threading.get_ident()
    seen: list[bool] = []

    def note(request: Any) -> HttpResponse:
        seen.append(threading.get_ident() == here)
        return HttpResponse()

    for stack, kind in (("wsgi", "sync"), ("asgi", "async")):
        with site(path("", view(kind, note)), THROTTLED={**memory.said, "LIMIT": "10/m"}):
            assert Caller(stack)().status_code == 200
    assert seen == [True, True]


@pytest.mark.server
def test_sync_and_async_stacks_share_the_counts_of_a_url(valkey: Server) -> None:
    said = {"STORE": valkey.url, "KEY_PREFIX": next(_prefixes), "LIMIT": "3/h"}
    with site(home(), THROTTLED=said):
        assert [Caller(s)().status_code for s in ("wsgi", "asgi", "wsgi", "asgi", "wsgi")] == [
            *[200] * 3,
            *[429] * 2,
        ]


@STACKS
@VIEWS
@pytest.mark.parametrize(
    ("policy", "status"), [("raise", 503), ("deny", 503), ("allow", 200), ("local", 200)]
)
def test_a_dead_store_is_503_or_what_the_policy_says_and_never_429(
    stack: str, kind: str, policy: str, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"redis://127.0.0.1:{free_port()}/0"
    said = {"STORE": url, "ON_STORE_ERROR": policy, "LIMIT": "5/m"}
    limited = rate_limit("5/h")(view(kind))
    urls = [home(kind), path("own", limited)]
    with site(*urls, THROTTLED=said, DEBUG=True):
        for middleware, target in ((MIDDLEWARE, "/"), (None, "/own")):
            with site(*urls, middleware=[middleware] * bool(middleware), DEBUG=True):
                response = Caller(stack)(target)
                assert response.status_code == status
                if status == 503:
                    assert "Traceback" not in response.content.decode()
                    problem(response)


@STACKS
def test_a_cost_of_the_setting_is_what_every_request_takes(stack: str, memory: Where) -> None:
    with site(home(), THROTTLED={**memory.said, "LIMIT": "10/m", "COST": 4}):
        assert Caller(stack).statuses(3) == [200, 200, 429]


@STACKS
@pytest.mark.parametrize(
    ("said", "name"),
    [
        ({"KEY": lambda request: None}, "lambda"),
        ({"KEY": lambda request: request.nothing}, "lambda"),
        ({"COST": lambda request: -1}, "lambda"),
        ({"EXEMPT": lambda request: 1 / 0}, "lambda"),
    ],
)
def test_a_function_of_the_site_that_fails_is_500_and_named_in_the_log(
    stack: str, said: dict[str, Any], name: str, memory: Where, logged: Callable[[], list[str]]
) -> None:
    with site(home(), THROTTLED={**memory.said, "LIMIT": "5/m", **said}):
        response = Caller(stack)()
    assert response.status_code == 500
    assert problem(response)["title"] == "Internal Server Error"
    assert any(name in line for line in logged())


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("100/m", "Invalid THROTTLED: '100/m', must be a dictionary"),
        ({"LIMITS": "100/m"}, "Unknown THROTTLED\\['LIMITS'\\], must be one of LIMIT, RULES"),
        ({"LIMIT": "100 a fortnight"}, "Invalid THROTTLED\\['LIMIT'\\]"),
        ({"RULES": ["/"]}, "Invalid THROTTLED\\['RULES'\\]: Invalid rules"),
        ({"RULES": {"login": "1/m"}}, "Invalid THROTTLED\\['RULES'\\]: Invalid pattern: 'login'"),
        ({"RULES": {"FETCH /": "1/m"}}, "Invalid THROTTLED\\['RULES'\\].*unknown method FETCH"),
        ({"RULES": {"/": "often"}}, "Invalid THROTTLED\\['RULES'\\].*often"),
        ({"EXCLUDE": "/health"}, "Invalid THROTTLED\\['EXCLUDE'\\]: Invalid exclude"),
        ({"EXEMPT": 1}, "Invalid THROTTLED\\['EXEMPT'\\]: Invalid exempt"),
        ({"KEY": "no.such.function"}, "Invalid THROTTLED\\['KEY'\\]: No module named 'no'"),
        ({"KEY": 7}, "Invalid THROTTLED\\['KEY'\\]: Invalid key: 7"),
        ({"COST": -1}, "Invalid THROTTLED\\['COST'\\]"),
        ({"COUNT_WHEN": 401}, "Invalid THROTTLED\\['COUNT_WHEN'\\]: Invalid count_when: 401"),
        ({"STORE": 7}, "Invalid THROTTLED\\['STORE'\\]: Invalid store: 7"),
        ({"STORE": "mongodb://here"}, "Invalid THROTTLED\\['STORE'\\]"),
        ({"STORE": {"host": "here"}}, "Invalid THROTTLED\\['STORE'\\].*'host'"),
        ({"STORE": "django.nothing"}, "Invalid THROTTLED\\['STORE'\\]"),
        ({"USING": "magic"}, "Invalid THROTTLED\\['USING'\\]: Invalid algorithm"),
        ({"KEY_PREFIX": "{"}, "Invalid THROTTLED\\['KEY_PREFIX'\\]"),
        ({"ON_STORE_ERROR": "shrug"}, "Invalid THROTTLED\\['ON_STORE_ERROR'\\]"),
        ({"ENFORCE": "no"}, "Invalid THROTTLED\\['ENFORCE'\\]"),
        ({"HEADERS": "rfc"}, "Invalid THROTTLED\\['HEADERS'\\]: Invalid header style: 'rfc'"),
        ({"RESET": "epoch"}, "Invalid THROTTLED\\['RESET'\\]"),
        ({"PROBLEM": "sorry"}, "Invalid THROTTLED\\['PROBLEM'\\]"),
    ],
)
@STACKS
def test_a_wrong_setting_is_named_when_the_site_starts(stack: str, said: Any, message: str) -> None:
    start = WSGIHandler if stack == "wsgi" else get_asgi_application
    with site(home(), THROTTLED=said), pytest.raises(ImproperlyConfigured, match=message):
        start()


def test_async_functions_and_stores_do_not_go_with_a_sync_stack() -> None:
    async def key(request: Any) -> str:
        return "all"

    store = AsyncRedisStore(server="redis://127.0.0.1:1/0")
    for said, name in (({"KEY": key}, "KEY"), ({"STORE": store}, "STORE")):
        with site(home(), THROTTLED={"LIMIT": "1/m", **said}):
            get_asgi_application()
            with pytest.raises(ImproperlyConfigured, match=name):
                WSGIHandler()
    with site(home(), THROTTLED={"LIMIT": Throttled(quota="1/m")}):
        WSGIHandler()
        with pytest.raises(ImproperlyConfigured, match=r"LIMIT.*must be a Throttled of"):
            get_asgi_application()
    store_of_threads = RedisStore(server="redis://127.0.0.1:1/0")
    with (
        site(home(), THROTTLED={"LIMIT": "1/m", "STORE": store_of_threads}),
        pytest.raises(ImproperlyConfigured, match="would block the event loop"),
    ):
        get_asgi_application()


key_by_agent = by_header("User-Agent")
shared_store = MemoryStore()


def says_sorry(request: Any, body: dict[str, Any]) -> tuple[str, str]:
    return "text/plain", f"{request.path}: sorry, {body['status']}"


@STACKS
def test_callables_and_stores_may_be_dotted_paths(stack: str) -> None:
    here = __name__
    said = {
        "LIMIT": "1/d",
        "KEY": f"{here}.key_by_agent",
        "STORE": f"{here}.shared_store",
        "PROBLEM": f"{here}.says_sorry",
        "KEY_PREFIX": next(_prefixes),
    }
    before = len(shared_store)
    with site(home(), THROTTLED=said):
        call = Caller(stack)
        assert call(headers={"User-Agent": "a"}).status_code == 200
        assert call(headers={"User-Agent": "b"}).status_code == 200
        refused = call(headers={"User-Agent": "a"})
    assert (refused.status_code, refused.content) == (429, b"/: sorry, 429")
    assert refused["Content-Type"] == "text/plain"
    assert "Retry-After" in refused
    assert len(shared_store) == before + 2


@STACKS
@pytest.mark.parametrize(
    ("said", "names"),
    [
        ({"HEADERS": "legacy"}, {"RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset"}),
        (
            {"HEADERS": "x", "RESET": "epoch"},
            {"X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset"},
        ),
        ({"HEADERS": None}, set()),
    ],
)
def test_the_style_of_the_headers_is_a_setting(
    stack: str, said: dict[str, Any], names: set[str], memory: Where
) -> None:
    with site(home(), THROTTLED={**memory.said, "LIMIT": "1/m", **said}):
        call = Caller(stack)
        for found, more in ((call(), set()), (call(), {"Retry-After"})):
            told = {n for n in found.headers if "ratelimit" in n.lower() or n == "Retry-After"}
            assert told == names | more


@STACKS
def test_headers_of_another_limiter_are_merged_and_not_overwritten(
    stack: str, memory: Where
) -> None:
    def answer(request: Any) -> HttpResponse:
        return HttpResponse(
            headers={"RateLimit-Policy": '"own";q=9;w=1', "RateLimit": '"own";r=0;t=1'}
        )

    with site(path("", view("sync", answer)), THROTTLED={**memory.said, "LIMIT": "5/m"}):
        response = Caller(stack)()
    assert response["RateLimit-Policy"] == '"own";q=9;w=1, "5/m";q=5;w=60'
    assert response["RateLimit"] == '"own";r=0;t=1, "5/m";r=4;t=12'


# -- views ----------------------------------------------------------------------------------------


@STACKS
@VIEWS
def test_a_limited_view_needs_no_middleware(stack: str, kind: str, where: Where) -> None:
    limited = rate_limit("2/m")(view(kind))
    with site(path("a", limited), home(), middleware=[], THROTTLED=where.said):
        call = Caller(stack)
        assert remaining(call("/a")) == 1
        assert call.statuses(2, "/a") == [200, 429]
        refused = call("/a")
        assert (refused["Retry-After"], problem(refused)["retry_after"]) == ("30", 30)
        assert "RateLimit" not in call("/")
        where.clock.advance(30)
        assert call("/a").status_code == 200


@VIEWS
def test_a_decorated_view_is_still_itself(kind: str) -> None:
    plain = view(kind)
    limited = csrf_exempt(rate_limit("1/m")(csrf_exempt(plain)))
    assert iscoroutinefunction(limited) == (kind == "async")
    assert (limited.__name__, limited.__doc__) == (plain.__name__, "Answers.")
    assert limited.csrf_exempt
    assert rate_limit("1/m")(csrf_exempt(plain)).csrf_exempt


@STACKS
def test_a_view_counts_by_its_route_whatever_the_method(stack: str, where: Where) -> None:
    limit = rate_limit("2/h")
    urls = [
        path("items/<int:id>/", limit(view("sync"))),
        re_path(r"^old/(?P<id>\d+)$", limit(view("sync"))),
    ]
    with site(*urls, middleware=[], THROTTLED=where.said):
        call = Caller(stack)
        assert call.statuses(1, "/items/1/") == [200]
        assert call("/items/2/", method="post").status_code == 200
        assert call("/items/3/", method="head").status_code == 429
        assert call("/old/1").status_code == 200
        limit.throttle("/items/<int:id>/").reset("127.0.0.1")
        assert call("/items/1/").status_code == 200


@STACKS
@VIEWS
def test_a_refusal_of_the_view_gives_back_what_the_middleware_took(
    stack: str, kind: str, where: Where
) -> None:
    limited = rate_limit("1/m")(view(kind))
    said = {**where.said, "LIMIT": "10/h"}
    with site(path("a", limited), home(), THROTTLED=said):
        call = Caller(stack)
        first = call("/a")
        # Two layers, told once, the one that leaves less first.
        assert first["RateLimit-Policy"] == '"1/m";q=1;w=60, "10/h";q=10;w=3600'
        assert call.statuses(3, "/a") == [429] * 3
        refused = call("/a")
        assert refused["RateLimit-Policy"] == '"1/m";q=1;w=60'
        assert refused["Retry-After"] == "60"
        assert remaining(call("/")) == 8


def only_sync(get_response: Any) -> Any:
    return lambda request: get_response(request)


only_sync.async_capable = False  # type: ignore[attr-defined]


@VIEWS
def test_layers_on_both_sides_of_a_sync_middleware_are_all_or_nothing(
    kind: str, where: Where
) -> None:
    limited = rate_limit("1/m", count_when=lambda response: response.status_code == 200)(view(kind))
    said = {**where.said, "LIMIT": "10/h"}
    middleware = [MIDDLEWARE, f"{__name__}.only_sync"]
    with site(path("a", limited), home(), middleware=middleware, THROTTLED=said):
        call = Caller("asgi")
        assert call.statuses(4, "/a") == [200, 429, 429, 429]
        assert remaining(call("/")) == 8


@STACKS
@VIEWS
@pytest.mark.parametrize("middleware", [[], [MIDDLEWARE]])
def test_only_what_count_when_says_counts(
    stack: str, kind: str, middleware: list[str], where: Where
) -> None:
    def answer(request: Any) -> HttpResponse:
        return HttpResponse() if request.GET.get("password") == "right" else HttpResponseForbidden()

    seen: list[type] = []

    def failed(response: Any) -> bool:
        seen.append(type(response))
        return response.status_code == 403

    limited = rate_limit("2/m", count_when=failed)(view(kind, answer))
    with site(path("a", limited), middleware=middleware, THROTTLED=where.said):
        call = Caller(stack)
        assert call.statuses(4, "/a?password=right") == [200] * 4
        assert remaining(call("/a?password=right")) == 2
        assert call.statuses(3, "/a") == [403, 403, 429]
        assert call("/a?password=right").status_code == 429
    assert set(seen) == {HttpResponse, HttpResponseForbidden}


@STACKS
@VIEWS
@pytest.mark.parametrize("middleware", [[], [MIDDLEWARE]])
@pytest.mark.parametrize(("error", "status"), [(Http404, 404), (ZeroDivisionError, 500)])
def test_an_exception_counts_as_the_response_that_django_makes_of_it(
    stack: str, kind: str, middleware: list[str], error: Any, status: int, memory: Where
) -> None:
    def answer(request: Any) -> HttpResponse:
        raise error

    for counts in (True, False):
        seen: list[int] = []

        def count_when(response: Any, seen: Any = seen, counts: bool = counts) -> bool:
            seen.append(response.status_code)
            return counts

        limited = rate_limit("1/m", count_when=count_when, scope=str(counts))(view(kind, answer))
        with site(path("a", limited), middleware=middleware, THROTTLED=memory.said):
            assert Caller(stack).statuses(2, "/a") == [status, 429 if counts else status]
            assert set(seen) == {status}


@STACKS
def test_the_middleware_counts_failures_too(stack: str, where: Where) -> None:
    def answer(request: Any) -> HttpResponse:
        raise Http404

    said = {
        **where.said,
        "LIMIT": "2/m",
        "COUNT_WHEN": lambda response: response.status_code == 404,
    }
    with site(path("a", view("sync", answer)), home(), THROTTLED=said):
        call = Caller(stack)
        assert call.statuses(5) == [200] * 5
        assert call.statuses(3, "/a") == [404, 404, 429]
        assert call().status_code == 429
        assert call("/no/such/page").status_code == 429


def classes(limit: Any) -> Iterator[tuple[str, Any, set[str]]]:
    """Views of classes in every way that they can be limited, with what is limited of them."""

    def ok() -> HttpResponse:
        return HttpResponse("fine")

    @method_decorator(limit, name="dispatch")
    class Dispatch(View):
        def get(self, request: Any) -> HttpResponse:
            return ok()

        post = get

    @method_decorator(limit, name="dispatch")
    class AsyncDispatch(View):
        async def get(self, request: Any) -> HttpResponse:
            return ok()

        post = get

    class Handler(View):
        @method_decorator(limit)
        def get(self, request: Any) -> HttpResponse:
            return ok()

        def post(self, request: Any) -> HttpResponse:
            return ok()

    class AsyncHandler(View):
        @method_decorator(limit)
        async def get(self, request: Any) -> HttpResponse:
            return ok()

        async def post(self, request: Any) -> HttpResponse:
            return ok()

    class Directly(View):
        @limit
        def get(self, request: Any) -> HttpResponse:
            return ok()

        def post(self, request: Any) -> HttpResponse:
            return ok()

    class AsyncDirectly(View):
        @limit
        async def get(self, request: Any) -> HttpResponse:
            return ok()

        async def post(self, request: Any) -> HttpResponse:
            return ok()

    class AsyncDispatchDirectly(View):
        async def get(self, request: Any) -> HttpResponse:
            return ok()

        post = get

        @limit
        def dispatch(self, request: Any, *args: Any, **kwargs: Any) -> Any:
            return super().dispatch(request, *args, **kwargs)

    yield "dispatch", Dispatch.as_view(), {"get", "post"}
    yield "adispatch", AsyncDispatch.as_view(), {"get", "post"}
    yield "handler", Handler.as_view(), {"get"}
    yield "ahandler", AsyncHandler.as_view(), {"get"}
    yield "directly", Directly.as_view(), {"get"}
    yield "adirectly", AsyncDirectly.as_view(), {"get"}
    yield "adispatchdirectly", AsyncDispatchDirectly.as_view(), {"get", "post"}
    yield "view", limit(View.as_view()), {"get", "post"}
    yield "aview", limit(AsyncDispatch.as_view()), {"get", "post"}


@STACKS
def test_views_of_classes_are_limited_as_a_whole_or_by_handler(stack: str, where: Where) -> None:
    with site(THROTTLED=where.said):
        found = list(classes(rate_limit("2/h")))
    urls = [path(name, limited) for name, limited, _ in found]
    with site(*urls, middleware=[], THROTTLED=where.said):
        call = Caller(stack)
        for name, _, methods in found:
            got = [call(f"/{name}") for _ in range(3)]
            assert [each.status_code == 429 for each in got] == [False, False, True], name
            assert [remaining(each) for each in got[:2]] == [1, 0], name
            posted = call(f"/{name}", method="post").status_code
            assert posted == (429 if "post" in methods else 200), name


def test_views_of_one_name_have_limits_of_their_own(memory: Where) -> None:
    urls = [path(each, rate_limit("1/h")(view("sync"))) for each in ("a", "b")]
    with site(*urls, middleware=[], THROTTLED=memory.said):
        call = Caller("wsgi")
        assert [call(each).status_code for each in ("/a", "/b", "/a")] == [200, 200, 429]


@STACKS
def test_handlers_of_one_class_do_not_share_their_counts(stack: str, memory: Where) -> None:
    class Both(View):
        @method_decorator(rate_limit("1/h"))
        def get(self, request: Any) -> HttpResponse:
            return HttpResponse()

        @method_decorator(rate_limit("1/h"))
        def post(self, request: Any) -> HttpResponse:
            return HttpResponse()

    with site(path("a", Both.as_view()), middleware=[], THROTTLED=memory.said):
        call = Caller(stack)
        assert call.statuses(2, "/a") == [200, 429]
        assert call("/a", method="head").status_code == 429
        assert call.statuses(2, "/a", method="post") == [200, 429]


@STACKS
@VIEWS
def test_a_view_may_have_several_limits(stack: str, kind: str, where: Where) -> None:
    limited = rate_limit("1/m")(rate_limit("3/h")(view(kind)))
    with site(path("a", limited), middleware=[], THROTTLED=where.said):
        call = Caller(stack)
        assert call.statuses(3, "/a") == [200, 429, 429]
        where.clock.advance(60)
        answered = call("/a")
        assert answered.status_code == 200
        assert answered["RateLimit-Policy"].count(";q=") == 2
        where.clock.advance(60)
        assert call.statuses(1, "/a") == [200]


@STACKS
@pytest.mark.parametrize("middleware", [[], [MIDDLEWARE]])
def test_a_stream_is_passed_on_untouched(stack: str, middleware: list[str], memory: Where) -> None:
    taken: list[int] = []

    def items() -> Iterator[bytes]:
        for n in range(3):
            taken.append(n)
            yield b"x"

    async def aitems() -> Any:
        for item in items():
            yield item

    made = items if stack == "wsgi" else aitems
    seen: list[Any] = []

    def count_when(response: Any) -> bool:
        seen.append((response.streaming, list(taken)))
        return True

    limited = rate_limit("5/m", count_when=count_when)(
        view("sync" if stack == "wsgi" else "async", lambda _: StreamingHttpResponse(made()))
    )
    with site(path("a", limited), middleware=middleware, THROTTLED=memory.said):
        if stack == "wsgi":
            response = Caller(stack)("/a")
            body = b"".join(response.streaming_content)
        else:

            async def read() -> tuple[Any, bytes]:
                response = await Caller(stack).client.get("/a")
                return response, b"".join([part async for part in response.streaming_content])

            response, body = asyncio.run(read())
    assert body == b"xxx"
    assert remaining(response) == 4
    # Nothing of it had been made when it was decided whether it counts.
    assert seen == [(True, [])]


@STACKS
@VIEWS
def test_users_have_limits_of_their_own_and_nobody_counts_by_address(
    stack: str, kind: str, where: Where
) -> None:
    ann, bob = with_users()
    limited = rate_limit("1/h", key=by_user())(view(kind))
    both = rate_limit("2/h", key=combined(by_user(), by_route()))(view(kind))
    middleware = [SESSIONS, USERS, MIDDLEWARE]
    said = {**where.said, "LIMIT": "100/h", "KEY": "throttled.contrib.keys.by_user"}
    with site(path("a", limited), path("b", both), middleware=middleware, THROTTLED=said):
        for user in (ann, bob, None):
            call = Caller(stack, user)
            assert call.statuses(2, "/a") == [200, 429]
            assert call.statuses(3, "/b") == [200, 200, 429]


def test_nobody_may_count_by_an_async_key(memory: Where) -> None:
    limited = rate_limit("1/h", key=by_user(otherwise=awaited_key))(view("async"))
    urls = [path("a", limited)]
    with site(*urls, middleware=[SESSIONS, USERS], THROTTLED=memory.said):
        assert Caller("asgi", peer="192.0.2.1").statuses(1, "/a") == [200]
        assert Caller("asgi", peer="192.0.2.2").statuses(1, "/a") == [429]


def test_a_user_that_was_put_on_the_request_counts_in_async_code(memory: Where) -> None:
    from django.contrib.auth.models import AnonymousUser, User

    limited = rate_limit("1/h", key=by_user())(view("async"))

    def answer(user: Any) -> int:
        request = RequestFactory().get("/a")
        request.user = user
        found: int = asyncio.run(limited(request)).status_code
        return found

    with site(THROTTLED=memory.said):
        assert [answer(User(pk=n)) for n in (1, 1, 2)] == [200, 429, 200]
        assert [answer(AnonymousUser()) for _ in range(2)] == [200, 429]


async def awaited_key(request: Any) -> str:
    await asyncio.sleep(0)
    return "all"


def test_an_async_view_takes_async_functions_and_a_sync_one_refuses_them(memory: Where) -> None:
    with site(THROTTLED=memory.said):
        limit = rate_limit("1/m", key=awaited_key)
        with pytest.raises(DataError, match="awaited_key is async"):
            limit(view("sync"))
        urls = [path("a", limit(view("async")))]
        with site(*urls, middleware=[], THROTTLED=memory.said):
            assert Caller("asgi").statuses(2, "/a") == [200, 429]
            assert Caller("wsgi").statuses(1, "/a") == [429]

            @method_decorator(limit, name="get")
            @method_decorator(limit, name="dispatch")
            class Fine(View):
                async def get(self, request: Any) -> HttpResponse:
                    return HttpResponse()

        with site(path("f", Fine.as_view()), middleware=[], THROTTLED=memory.said):
            assert Caller("asgi").statuses(2, "/f") == [200, 429]


def test_a_site_with_a_store_for_tasks_limits_async_views_only() -> None:
    store = AsyncRedisStore(server="redis://127.0.0.1:1/0")
    with site(THROTTLED={"STORE": store}):
        limit = rate_limit("1/m")
        limit(view("async"))
        with pytest.raises(ImproperlyConfigured, match=r"STORE.*is for throttled\.asyncio"):
            limit(view("sync"))


def test_a_throttled_of_yours_is_for_views_of_its_flavour(memory: Where) -> None:
    store = memory.said["STORE"]
    sync = Throttled(quota="2/m", store=store, key_prefix=next(_prefixes))
    unsync = AsyncThrottled(quota="2/m", store=store, key_prefix=next(_prefixes))
    with site(THROTTLED={}):
        with pytest.raises(DataError, match=r"must be a Throttled of throttled\.asyncio"):
            rate_limit(sync)(view("async"))
        with pytest.raises(DataError, match=r"must be a Throttled of throttled\."):
            rate_limit(unsync)(view("sync"))
        urls = [
            path("s", rate_limit(sync)(view("sync"))),
            path("a", rate_limit(unsync)(view("async"))),
        ]
    with site(*urls, middleware=[], THROTTLED={"USING": "gcra"}):
        for stack in ("wsgi", "asgi"):
            call = Caller(stack)
            assert [remaining(call(target)) for target in ("/s", "/a")] == [
                1 - (stack == "asgi")
            ] * 2
    assert sync.peek("127.0.0.1").remaining == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rate_limit("sometimes"), "sometimes"),
        (lambda: rate_limit("1/m", cost=-1), "Invalid cost: -1"),
        (lambda: rate_limit("1/m", key="user"), "Invalid key: 'user'"),
        (lambda: rate_limit("1/m", count_when=401), "Invalid count_when: 401"),
        (lambda: rate_limit("1/m", exempt=True), "Invalid exempt"),
        (lambda: rate_limit("1/m", scope="{"), "Invalid scope"),
        (lambda: rate_limit("1/m", using="magic"), "Invalid algorithm"),
        (lambda: rate_limit(Throttled(quota="1/m"), scope="a"), "Invalid scope"),
        (lambda: rate_limit("1/m")(View), "must be a function; for a class say"),
        (lambda: rate_limit("1/m")("view"), "must be a function"),
        (
            lambda: rate_limit("1/m")(rate_limit("1/m", key=by_user())(view("sync"))),
            "would count under the same keys",
        ),
    ],
)
def test_a_wrong_argument_is_named_where_it_is_written(
    make: Callable[[], Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        make()


def test_a_view_that_is_called_without_a_request_says_so() -> None:
    with pytest.raises(TypeError, match="plain was not called with a request"):
        rate_limit("1/m")(view("sync"))("request")


def test_a_limit_of_a_settings_file_is_checked_when_the_site_starts() -> None:
    code = """
from django.conf import settings
from throttled.contrib.django import RateLimit
from throttled.contrib.keys import by_route
right, wrong = RateLimit("1/m", key=by_route()), RateLimit("often")
settings.configure(MIDDLEWARE=["throttled.contrib.django.RateLimitMiddleware"], ROOT_URLCONF=[],
                   THROTTLED={"LIMIT": right})
import django
from django.core.handlers.wsgi import WSGIHandler
from django.core.exceptions import ImproperlyConfigured
django.setup()
WSGIHandler()
settings.THROTTLED = {"RULES": {"/": wrong}}
from throttled.contrib import _django
_django._site.cache_clear()
try:
    WSGIHandler()
except ImproperlyConfigured as error:
    print(error)
"""
    assert "Invalid THROTTLED['RULES']: Invalid quota: 'often'" in fresh(code)


def test_django_alone_is_enough_and_the_package_imports_neither() -> None:
    assert fresh("import sys, throttled; print('django' in sys.modules)") == "False\n"
    code = "import sys; sys.modules['rest_framework'] = None; import throttled.contrib.django"
    assert fresh(code) == ""


def fresh(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@STACKS
def test_limits_can_be_switched_off_in_tests(stack: str, memory: Where) -> None:
    with site(
        path("a", rate_limit("1/m")(view("sync"))), THROTTLED={**memory.said, "LIMIT": "1/m"}
    ):
        call = Caller(stack)
        with disabled():
            assert call.statuses(3, "/a") == [200] * 3
        assert call.statuses(2, "/a") == [200, 429]


def test_an_observer_hears_of_both_flavours(memory: Where) -> None:
    class Ear(Observer):
        def __init__(self) -> None:
            self.heard: list[bool] = []

        def decided(self, event: Event) -> None:
            self.heard.append(event.result.limited)

    ear = Ear()
    limit = rate_limit("2/m", scope="both")
    urls = [path("s", limit(view("sync"))), path("a", limit(view("async")))]
    with site(*urls, middleware=[], THROTTLED=memory.said):
        call = Caller("asgi")
        call("/s")
        limit.observe(ear)
        for target in ("/s", "/a", "/s"):
            call(target)
    assert ear.heard == [False, True, True]


# -- at once, and on real servers -----------------------------------------------------------------


@STACKS
@VIEWS
def test_requests_at_once_on_a_real_server_admit_exactly_the_quota(
    stack: str, kind: str, where: Where
) -> None:
    limited = rate_limit("20/h")(view(kind))
    said = {**where.said, "RULES": {"/b": "30/h"}}
    urls = [path("a", limited), path("b", view(kind))]
    with site(*urls, THROTTLED=said), Serving(stack) as url:
        for target, quota in (("/a", 20), ("/b", 30)):
            responses = answers(url + target, 60)
            assert sorted({r.status_code for r in responses}) == [200, 429]
            assert sum(r.status_code == 200 for r in responses) == quota
            for response in responses:
                assert "ratelimit" in response.headers
                if response.status_code == 429:
                    assert int(response.headers["retry-after"]) == math.ceil(3600 / quota)
                    assert response.json()["status"] == 429


@STACKS
@VIEWS
def test_failures_at_once_do_not_slip_through_count_when(
    stack: str, kind: str, where: Where
) -> None:
    tried: list[None] = []
    limited = rate_limit("10/h", count_when=lambda response: response.status_code == 403)(
        view(kind, lambda request: (tried.append(None), HttpResponseForbidden())[1])
    )
    with site(path("a", limited), THROTTLED=where.said), Serving(stack) as url:
        statuses = [response.status_code for response in answers(f"{url}/a", 60)]
    assert sorted(statuses) == [403] * 10 + [429] * 50
    assert len(tried) == 10


async def test_tasks_at_once_admit_exactly_the_quota(memory: Where) -> None:
    with site(path("a", rate_limit("20/h")(view("async"))), THROTTLED=memory.said):
        statuses = await Caller("asgi").at_once(60, "/a")
    assert sorted(statuses) == [200] * 20 + [429] * 40


async def beats_until(asked: asyncio.Task[Any]) -> int:
    """How often the event loop went round, at most a hundred times a second, until it was done."""
    beats = 0
    while not asked.done():
        await asyncio.sleep(0.01)
        beats += 1
    return beats


@pytest.mark.server
async def test_a_hung_server_does_not_block_the_event_loop() -> None:
    with Server() as server:
        store = {"server": server.url, "options": {"SOCKET_TIMEOUT": 1}}
        said = {"STORE": store, "LIMIT": "10/h"}
        with site(home("async"), THROTTLED=said):
            client = Caller("asgi").client
            await client.get("/")
            with server.hung():
                asked = asyncio.create_task(client.get("/"))
                assert await beats_until(asked) > 20
            assert (await asked).status_code == 503


@pytest.mark.server
async def test_nor_does_it_where_a_task_gives_back_what_a_thread_has_taken() -> None:
    with Server() as server:
        store = {"server": server.url, "options": {"SOCKET_TIMEOUT": 1}}

        def hangs(request: Any) -> str:
            server.hang()
            return "all"

        with site(THROTTLED={}):
            own = AsyncThrottled(quota="1/h", store=MemoryStore())
            await own.limit("all")
            urls = [path("a", rate_limit(own, key=hangs)(view("async")))]
        middleware = [MIDDLEWARE, f"{__name__}.only_sync"]
        with site(*urls, middleware=middleware, THROTTLED={"STORE": store, "LIMIT": "10/h"}):
            try:
                asked = asyncio.create_task(Caller("asgi").client.get("/a"))
                assert await beats_until(asked) > 20
            finally:
                server.resume()
            assert (await asked).status_code == 429


def test_rate_limit_is_the_limit() -> None:
    assert rate_limit is RateLimit
    assert repr(rate_limit("1/m")) == "RateLimit('1/m')"
