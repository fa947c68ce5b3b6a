"""The throttles for Django REST framework, in real views, next to DRF's own."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
from django.core.cache.backends.locmem import LocMemCache
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings
from django.urls import path
from django.utils.decorators import method_decorator

from tests.contrib.django_site import (
    MIDDLEWARE,
    SESSIONS,
    USERS,
    Caller,
    Where,
    problem,
    remaining,
    site,
    with_users,
)
from tests.contrib.django_site.serving import Serving, answers
from tests.servers import Server, free_port
from throttled.contrib import drf
from throttled.contrib.django import rate_limit
from throttled.contrib.keys import by_header
from throttled.testing import disabled

from rest_framework import exceptions, throttling  # isort: skip
from rest_framework.decorators import api_view, throttle_classes  # isort: skip
from rest_framework.settings import api_settings  # isort: skip
from rest_framework.response import Response  # isort: skip
from rest_framework.test import APIRequestFactory  # isort: skip
from rest_framework.views import APIView  # isort: skip

pytestmark = pytest.mark.realtime

_prefixes = (f"drf-{n}" for n in count())

HANDLER = {"EXCEPTION_HANDLER": "throttled.contrib.drf.exception_handler"}


@pytest.fixture(params=["memory", pytest.param("server", marks=pytest.mark.server)])
def where(request: pytest.FixtureRequest) -> Where:
    if request.param == "memory":
        return Where()
    return Where(request.getfixturevalue("server_named")("valkey").url)


@pytest.fixture
def memory() -> Where:
    return Where()


@pytest.fixture(params=[[], [MIDDLEWARE]], ids=["alone", "middleware"])
def middleware(request: pytest.FixtureRequest) -> list[str]:
    found: list[str] = request.param
    return found


def url(
    target: str,
    *throttles: Any,
    answer: Callable[[], Any] = lambda: Response("fine"),
    **attributes: Any,
) -> Any:
    """The URL of a view with these throttles."""

    class Answering(APIView):
        throttle_classes = throttles

        def get(self, request: Any) -> Any:
            return answer()

    for name, value in attributes.items():
        setattr(Answering, name, value)
    return path(target, Answering.as_view())


def throttle(rate: Any = None, **attributes: Any) -> type[drf.Throttle]:
    """A throttle of its own name."""
    return type(f"Throttle{next(_names)}", (drf.Throttle,), {"rate": rate, **attributes})


_names = count()


def rates(**by_scope: Any) -> dict[str, Any]:
    return {"DEFAULT_THROTTLE_RATES": by_scope}


@pytest.mark.parametrize("stack", ["wsgi", "asgi"])
def test_a_throttle_admits_the_rate_and_says_exactly_when_more_fits(
    stack: str, middleware: list[str], where: Where
) -> None:
    urls = [url("", throttle("2/min"))]
    with site(*urls, middleware=middleware, THROTTLED=where.said):
        call = Caller(stack)
        first = call()
        assert (first.status_code, first.json()) == (200, "fine")
        assert first["RateLimit-Policy"] == '"2/m";q=2;w=60'
        assert remaining(first) == 1
        call()
        refused = call()
        assert refused.status_code == 429
        assert refused["Retry-After"] == "30"
        assert refused["RateLimit"] == '"2/m";r=0;t=30'
        assert refused.json() == {
            "detail": "Request was throttled. Expected available in 30 seconds."
        }
        where.clock.advance(29.999)
        assert call()["Retry-After"] == "1"
        where.clock.advance(0.001)
        assert call().status_code == 200


@pytest.mark.parametrize(
    ("rate", "admitted"),
    [
        ("3/s", 3),
        ("3/sec", 3),
        ("3/m", 3),
        ("3/min", 3),
        ("3/minute", 3),
        ("3/h", 3),
        ("3/hour", 3),
        ("3/d", 3),
        ("3/day", 3),
        ("3 per 10 minutes", 3),
        ("1/s burst 4; 100/d", 4),
        (["5/s", "2/m"], 2),
        (None, 6),
    ],
)
def test_rates_are_written_as_drf_writes_them_or_as_quotas_are(
    rate: Any, admitted: int, memory: Where
) -> None:
    urls = [url("", throttle(scope="own"))]
    with site(*urls, middleware=[], THROTTLED=memory.said, REST_FRAMEWORK=rates(own=rate)):
        assert Caller("wsgi").statuses(6).count(200) == admitted


def test_default_classes_and_rates_come_from_the_settings_and_follow_them(memory: Where) -> None:
    said = {
        "DEFAULT_THROTTLE_CLASSES": [
            "throttled.contrib.drf.AnonRateThrottle",
            "throttled.contrib.drf.UserRateThrottle",
        ],
        **rates(anon="1/h", user="3/h"),
    }
    ann, bob = with_users()
    with override_settings(REST_FRAMEWORK=said):
        defaults = api_settings.DEFAULT_THROTTLE_CLASSES
    assert defaults == [drf.AnonRateThrottle, drf.UserRateThrottle]
    urls = [url("", *defaults)]
    settings = {"THROTTLED": memory.said, "middleware": [SESSIONS, USERS]}
    with site(*urls, **settings, REST_FRAMEWORK=said):
        assert Caller("wsgi").statuses(2) == [200, 429]
        for user in (ann, bob):
            assert Caller("wsgi", user).statuses(4) == [200, 200, 200, 429]
    with site(*urls, **settings, REST_FRAMEWORK={**said, **rates(anon="2/h", user="4/h")}):
        assert Caller("wsgi").statuses(3) == [200, 200, 429]


def test_a_scope_of_the_view_names_its_rate_and_is_shared_by_views(memory: Where) -> None:
    urls = [
        url("a", drf.ScopedRateThrottle, throttle_scope="uploads"),
        url("b", drf.ScopedRateThrottle, throttle_scope="uploads"),
        url("c", drf.Throttle, throttle_scope="searches"),
        url("d", drf.ScopedRateThrottle),
    ]
    said = rates(uploads="2/h", searches="1/h")
    with site(*urls, middleware=[], THROTTLED=memory.said, REST_FRAMEWORK=said):
        call = Caller("wsgi")
        assert [call(each).status_code for each in ("/a", "/b", "/a")] == [200, 200, 429]
        assert call.statuses(2, "/c") == [200, 429]
        free = call("/d")
        assert free.status_code == 200
        assert "RateLimit" not in free


def test_classes_without_a_scope_do_not_share_their_counts(memory: Where) -> None:
    """DRF keeps all of them under `throttle_None_...`."""
    urls = [url("a", throttle("1/h")), url("b", throttle("1/h"))]
    with site(*urls, middleware=[], THROTTLED=memory.said):
        call = Caller("wsgi")
        assert call.statuses(2, "/a") == [200, 429]
        assert call.statuses(2, "/b") == [200, 429]


def test_a_throttle_says_whom_it_counts_what_it_costs_and_whom_it_exempts(memory: Where) -> None:
    made = throttle(
        "4/h",
        key=by_header("X-API-Key"),
        cost=lambda request: int(request.query_params.get("n", 1)),
        exempt=lambda request: request.query_params.get("staff") == "yes",
        options={"using": "fixed_window"},
    )
    with site(url("", made), middleware=[], THROTTLED=memory.said):
        call = Caller("wsgi")
        for name in ("one", "two"):
            headers = {"X-API-Key": name}
            assert remaining(call("/?n=3", headers=headers)) == 1
            assert call("/?n=2", headers=headers).status_code == 429
            assert call("/?n=2&staff=yes", headers=headers).status_code == 200
        assert call("/?n=5").status_code == 429
        assert call("/?n=-1").status_code == 500


@pytest.mark.parametrize("order", [1, -1])
def test_throttles_of_a_view_are_all_taken_or_none(
    order: int, middleware: list[str], where: Where
) -> None:
    """DRF's own count the request in the first although the second refuses it."""
    tight, loose, slow = throttle("1/m"), throttle("10/h"), throttle("3/d")
    urls = [
        url("", *[tight, loose, slow][::order]),
        url("loose", loose),
        url("slow", slow),
    ]
    with site(*urls, middleware=middleware, THROTTLED=where.said):
        call = Caller("wsgi")
        assert call.statuses(6) == [200, *[429] * 5]
        assert call()["Retry-After"] == "60"
        assert remaining(call("/loose")) == 8
        assert remaining(call("/slow")) == 1
        assert remaining(call("/slow")) == 0
        # Now two refuse, and it is said when both would not.
        refused = call()
        assert refused["Retry-After"] == "28800"
        assert "28800 seconds" in refused.json()["detail"]
        where.clock.advance(28_799)
        assert call().status_code == 429
        where.clock.advance(1)
        assert call().status_code == 200


def test_the_own_throttles_of_drf_charge_the_first_although_the_second_refuses() -> None:
    """What the test above would show of them."""
    tight = type("Tight", (throttling.AnonRateThrottle,), {"rate": "1/m", "scope": next(_prefixes)})
    loose = type("Loose", (throttling.AnonRateThrottle,), {"rate": "5/h", "scope": next(_prefixes)})
    with site(url("", loose, tight), url("loose", loose), middleware=[]):
        call = Caller("wsgi")
        assert call.statuses(5) == [200, *[429] * 4]
        assert call.statuses(1, "/loose") == [429]


@pytest.mark.parametrize("stack", ["wsgi", "asgi"])
def test_a_refusal_gives_back_what_middleware_and_decorator_took(stack: str, where: Where) -> None:
    answering = url("", throttle("1/m"))
    limited = rate_limit("20/h")(answering.callback)
    said = {**where.said, "LIMIT": "10/h"}
    with site(path("", limited), THROTTLED=said):
        call = Caller(stack)
        assert call()["RateLimit-Policy"].count(";q=") == 3
        assert call.statuses(4) == [429] * 4
        where.clock.advance(60)
        answered = call()
        policies, left = (_items(answered, name) for name in ("RateLimit-Policy", "RateLimit"))
    found = dict(zip(policies, left, strict=True))
    # Two requests, a minute apart: 10/h has regained a sixth of one, 20/h a third.
    assert found['"10/h";q=10;w=3600'].split(";")[1] == "r=8"
    assert found['"20/h";q=20;w=3600'].split(";")[1] == "r=18"


def _items(response: Any, name: str) -> list[str]:
    return [each.strip() for each in response[name].split(",")]


def test_a_handler_may_be_limited_within_a_throttled_view(where: Where) -> None:
    class Both(APIView):
        throttle_classes = [throttle("5/h")]  # noqa: RUF012

        @method_decorator(rate_limit("1/m"))
        def get(self, request: Any) -> Response:
            return Response("fine")

    with site(path("", Both.as_view()), middleware=[], THROTTLED=where.said):
        call = Caller("wsgi")
        assert call()["RateLimit-Policy"].count(";q=") == 2
        refused = call()
        assert problem(refused)["violated-policies"] == ["1/m"]
        assert call.statuses(9) == [429] * 9
        where.clock.advance(60)
        assert '"5/h";r=3' in call()["RateLimit"]


def test_views_of_functions_take_throttles_too(memory: Where) -> None:
    @api_view(["GET"])
    @throttle_classes([throttle("1/h")])
    def throttled_view(request: Any) -> Response:
        return Response("fine")

    @api_view(["GET"])
    @rate_limit("1/h")
    def limited_view(request: Any) -> Response:
        return Response("fine")

    urls = [path("a", throttled_view), path("b", limited_view)]
    with site(*urls, middleware=[], THROTTLED=memory.said):
        call = Caller("wsgi")
        assert call.statuses(2, "/a") == [200, 429]
        assert call.statuses(2, "/b") == [200, 429]


def test_only_what_count_when_says_counts(middleware: list[str], where: Where) -> None:
    def fail() -> Any:
        raise exceptions.AuthenticationFailed

    failed = throttle("2/h", scope="login", count_when=lambda answer: answer.status_code == 403)
    urls = [url("right", failed), url("wrong", failed, answer=fail)]
    with site(*urls, middleware=middleware, THROTTLED=where.said):
        call = Caller("wsgi")
        assert call.statuses(4, "/right") == [200] * 4
        assert remaining(call("/right")) == 2
        assert call.statuses(3, "/wrong") == [403, 403, 429]
        assert call("/right").status_code == 429


def test_what_can_never_pass_is_429_without_a_time(memory: Where) -> None:
    with site(
        url("", throttle("2/h", cost=lambda request: 3)), middleware=[], THROTTLED=memory.said
    ):
        refused = Caller("wsgi")()
    assert refused.status_code == 429
    assert "Retry-After" not in refused
    assert refused.json() == {"detail": "Request was throttled."}


@pytest.mark.parametrize("handler", [{}, HANDLER])
@pytest.mark.parametrize(
    ("policy", "status"), [("raise", 503), ("deny", 503), ("allow", 200), ("local", 200)]
)
def test_a_dead_store_is_503_or_what_the_policy_says_and_never_429(
    policy: str, status: int, handler: dict[str, Any], middleware: list[str]
) -> None:
    said = {"STORE": f"redis://127.0.0.1:{free_port()}/0", "ON_STORE_ERROR": policy}
    urls = [url("", throttle("1/h"), throttle("2/h"))]
    with site(*urls, middleware=middleware, THROTTLED=said, REST_FRAMEWORK=handler, DEBUG=True):
        response = Caller("wsgi")()
    assert response.status_code == status
    if status == 503:
        assert "Traceback" not in response.content.decode()
        assert response.json()["detail"].startswith("The service cannot answer right now.")
        assert ("Retry-After" in response) == (policy == "deny")


def nobody(request: Any) -> None:
    return None


@pytest.mark.parametrize("handler", [{}, HANDLER])
def test_a_function_that_fails_is_500_and_named_in_the_log(
    handler: dict[str, Any], memory: Where, caplog: pytest.LogCaptureFixture
) -> None:
    urls = [url("", throttle("1/h", key=nobody))]
    with (
        caplog.at_level(logging.ERROR, "throttled"),
        site(*urls, middleware=[], THROTTLED=memory.said, REST_FRAMEWORK=handler, DEBUG=True),
    ):
        response = Caller("wsgi")()
    assert response.status_code == 500
    assert response.json()["detail"] == "The service cannot answer this request."
    assert "Key function nobody returned None" in caplog.text


def sorry(request: Any, body: dict[str, Any]) -> dict[str, Any]:
    return {**body, "detail": "Sorry."}


@pytest.mark.parametrize("more", [{}, {"PROBLEM": sorry}])
def test_the_exception_handler_answers_with_a_problem_body(
    more: dict[str, Any], middleware: list[str], memory: Where
) -> None:
    def fail() -> Any:
        raise exceptions.ValidationError("bad")

    urls = [
        url("", throttle("1/h")),
        url("bad", answer=fail),
        url("theirs", answer=lambda: (_ for _ in ()).throw(exceptions.Throttled(7))),
    ]
    said = {**memory.said, **more}
    with site(*urls, middleware=middleware, THROTTLED=said, REST_FRAMEWORK=HANDLER):
        call = Caller("wsgi")
        call()
        refused = call()
        body = problem(refused)
        # What others raise is left to DRF.
        assert call("/bad").json() == ["bad"]
        theirs = call("/theirs")
    assert body["retry_after"] == 3600
    assert (body["detail"] == "Sorry.") == bool(more)
    assert refused["Retry-After"] == "3600"
    assert "RateLimit" in refused
    assert (theirs.status_code, theirs["Retry-After"]) == (429, "7")
    assert theirs["Content-Type"] == "application/json"


@pytest.mark.parametrize(
    ("attributes", "said", "message"),
    [
        (
            {"scope": "nowhere"},
            {},
            "Invalid scope of .*'nowhere', is not in DEFAULT_THROTTLE_RATES",
        ),
        ({}, {}, "has no rate and no scope, and the view has no throttle_scope"),
        ({"rate": "often"}, {}, "Invalid throttle Throttle.*often"),
        ({"scope": "own"}, {"own": "10/fortnight"}, "Invalid throttle Throttle.*fortnight"),
        ({"rate": "1/h", "cost": -1}, {}, "Invalid cost: -1"),
        ({"rate": "1/h", "key": 7}, {}, "Invalid key: 7"),
        ({"rate": "1/h", "scope": "{"}, {}, "Invalid scope"),
    ],
)
def test_a_wrong_throttle_is_no_silent_pass(
    attributes: dict[str, Any], said: dict[str, str], message: str, memory: Where
) -> None:
    urls = [url("", throttle(**attributes))]
    with site(*urls, middleware=[], THROTTLED=memory.said, REST_FRAMEWORK=rates(**said)):
        call = Caller("wsgi")
        assert call().status_code == 500
        call.client.raise_request_exception = True
        with pytest.raises(ImproperlyConfigured, match=message):
            call()


def test_a_throttle_that_says_more_itself_is_asked(where: Where) -> None:
    class Reads(drf.Throttle):
        rate = "1/h"

        def allow_request(self, request: Any, view: Any) -> bool:
            return "free" in request.query_params or super().allow_request(request, view)

    loose = throttle("10/h")
    for order in ([Reads, loose], [loose, Reads]):
        said = {**where.said, "KEY_PREFIX": next(_prefixes)}
        with site(url("", *order), url("loose", loose), middleware=[], THROTTLED=said):
            call = Caller("wsgi")
            assert call.statuses(2, "/?free") == [200, 200]
            assert call.statuses(3) == [200, 429, 429]
            assert remaining(call("/loose")) == 6


def test_what_is_asked_after_a_refusal_takes_nothing(where: Where) -> None:
    class Asked(drf.Throttle):
        def allow_request(self, request: Any, view: Any) -> bool:
            return super().allow_request(request, view)

    tight, loose = (type(f"A{rate}", (Asked,), {"rate": rate}) for rate in ("1/m", "10/h"))
    urls = [url("", tight, loose), url("loose", loose)]
    with site(*urls, middleware=[], THROTTLED=where.said):
        call = Caller("wsgi")
        assert call.statuses(3) == [200, 429, 429]
        assert remaining(call("/loose")) == 8


def test_a_view_that_hands_a_request_on_to_another_one_is_one_visit(where: Where) -> None:
    inner, loose = url("", throttle("1/m")).callback, throttle("5/h")

    class Outer(APIView):
        throttle_classes = [loose]  # noqa: RUF012

        def get(self, request: Any) -> Any:
            return inner(request._request)

    urls = [path("", Outer.as_view()), url("loose", loose)]
    with site(*urls, middleware=[], THROTTLED=where.said):
        call = Caller("wsgi")
        assert call()["RateLimit-Policy"] == '"1/m";q=1;w=60, "5/h";q=5;w=3600'
        assert call.statuses(3) == [429] * 3
        assert remaining(call("/loose")) == 3


def test_throttles_of_drf_may_stand_beside(memory: Where) -> None:
    theirs = type("Theirs", (throttling.AnonRateThrottle,), {"rate": "3/h", "scope": "beside"})
    with site(url("", throttle("1/m"), theirs), middleware=[], THROTTLED=memory.said):
        assert Caller("wsgi").statuses(2) == [200, 429]


def test_a_throttle_may_be_asked_without_a_view(memory: Where) -> None:
    with site(THROTTLED=memory.said):
        made = throttle("1/m")
        found = []
        for _ in range(2):
            one = made()
            request = APIView().initialize_request(APIRequestFactory().get("/"))
            found.append((one.allow_request(request, None), one.wait()))
    assert found == [(True, None), (False, 60.0)]


def test_limits_can_be_switched_off_in_tests(memory: Where) -> None:
    with site(url("", throttle("1/m")), middleware=[], THROTTLED=memory.said):
        call = Caller("wsgi")
        with disabled():
            assert call.statuses(3) == [200] * 3
        assert call.statuses(2) == [200, 429]


class SlowCache(LocMemCache):
    """A cache that takes a while to answer, as one does over a network."""

    def get(self, *args: Any, **kwargs: Any) -> Any:
        found = super().get(*args, **kwargs)
        time.sleep(0.005)
        return found


def test_threads_at_once_admit_exactly_the_rate(middleware: list[str], where: Where) -> None:
    urls = [url("", throttle("20/h"), throttle("30/h"))]
    with site(*urls, middleware=middleware, THROTTLED=where.said), Serving("wsgi") as where_to:
        responses = answers(f"{where_to}/", 60)
    assert sum(each.status_code == 200 for each in responses) == 20
    for refused in responses:
        if refused.status_code == 429:
            assert refused.headers["retry-after"] == str(math.ceil(3600 / 20))
    assert len(responses) == 60


def test_the_own_throttle_of_drf_is_not_exact() -> None:
    """What the test above would show of it."""
    theirs = type("Their", (throttling.AnonRateThrottle,), {"rate": "20/h", "scope": "at-once"})
    cache = {"default": {"BACKEND": f"{__name__}.SlowCache"}}
    with site(url("", theirs), middleware=[], CACHES=cache), Serving("wsgi") as where_to:
        responses = answers(f"{where_to}/", 60)
    assert sum(each.status_code == 200 for each in responses) > 20


@pytest.mark.server
def test_a_server_that_goes_away_is_503_and_comes_back(valkey: Server) -> None:
    with Server() as server:
        said = {"STORE": server.url, "KEY_PREFIX": next(_prefixes)}
        with site(url("", throttle("2/h")), middleware=[], THROTTLED=said):
            call = Caller("wsgi")
            assert call().status_code == 200
            server.kill()
            assert call().status_code == 503
            server.start()
            deadline = time.monotonic() + 20
            while (status := call().status_code) == 503 and time.monotonic() < deadline:
                time.sleep(0.05)
            assert status == 200
