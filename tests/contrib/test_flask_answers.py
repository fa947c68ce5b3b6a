"""What Flask answers where limits refuse or fail, and what counts by its outcome."""

from __future__ import annotations

import json
from queue import Queue
from threading import Event
from typing import Any

import flask
import pytest
from flask import Blueprint, Flask, abort, jsonify
from werkzeug.exceptions import HTTPException, TooManyRequests

from tests.contrib.serving import (
    any_store,
    at_once,
    dead_store,
    ok,
    said,
    serving,
    statuses,
    three_of_ten,
)
from throttled import MemoryStore, Throttled
from throttled.contrib.flask import RateLimiter, RateLimitError
from throttled.testing import FakeClock

__all__ = ["any_store", "dead_store"]

ME = "127.0.0.1"


@pytest.fixture
def app() -> Flask:
    return Flask(__name__)


@pytest.fixture
def limiter(app: Flask, store: MemoryStore) -> RateLimiter:
    return RateLimiter(app, store=store)


# -- refusals and error handlers -------------------------------------------------------------------


def test_an_error_handler_may_answer_in_the_place_of_the_problem(
    app: Flask, limiter: RateLimiter
) -> None:
    @app.errorhandler(429)
    def too_many(error: RateLimitError) -> Any:
        assert error.refusal.result is not None
        return {"again": error.retry_after, "why": error.description}, 429

    app.add_url_rule("/", "in", limiter.limit("1/m")(ok))
    statuses(app, 1)
    refused = app.test_client().get("/")
    assert refused.json == {"again": 60, "why": "Too many requests. Try again in 60 seconds."}
    assert refused.status_code == 429
    assert refused.headers["Retry-After"] == "60"
    assert refused.headers["RateLimit"].startswith('"1/m";r=0;')


def test_a_handler_of_all_http_errors_may_change_the_answer(
    app: Flask, limiter: RateLimiter
) -> None:
    @app.errorhandler(HTTPException)
    def any_error(error: HTTPException) -> Any:
        response: Any = error.get_response()
        response.data = json.dumps({"code": error.code, "name": error.name})
        response.content_type = "application/json"
        return response

    app.add_url_rule("/", "in", limiter.limit("1/m")(ok))
    statuses(app, 1)
    refused = app.test_client().get("/")
    assert refused.json == {"code": 429, "name": "Too Many Requests"}
    assert refused.headers["Retry-After"] == "60"


def test_a_blueprint_answers_for_its_own_views(app: Flask, limiter: RateLimiter) -> None:
    blueprint = Blueprint("api", __name__, url_prefix="/api")
    blueprint.register_error_handler(TooManyRequests, lambda error: ("calm down", 429))
    blueprint.add_url_rule("/", "in", limiter.limit("1/m")(ok))
    app.register_blueprint(blueprint)
    app.add_url_rule("/", "in", limiter.limit("1/m")(ok))
    statuses(app, 1, "/api/")
    statuses(app, 1)
    assert app.test_client().get("/api/").text == "calm down"
    assert app.test_client().get("/").json["status"] == 429  # type: ignore[index]


def test_the_problem_body_can_be_replaced(app: Flask, store: MemoryStore) -> None:
    def problem(request: flask.Request, body: dict[str, Any]) -> dict[str, Any]:
        return {**body, "instance": request.full_path}

    RateLimiter(app, "1/m", problem=problem, store=store)
    statuses(app, 1, "/a?b=c")
    assert app.test_client().get("/a?b=c").json["instance"] == "/a?b=c"  # type: ignore[index]


@pytest.mark.parametrize(
    ("policy", "status"), [("raise", 503), ("deny", 503), ("allow", 200), ("local", 200)]
)
def test_a_dead_store_is_no_429(
    policy: Any, status: int, app: Flask, dead_store: Any, caplog: pytest.LogCaptureFixture
) -> None:
    app.testing = True
    limiter = RateLimiter(app, store=dead_store, on_store_error=policy)
    app.add_url_rule("/", "in", limiter.limit("1/m", count_when=lambda response: True)(ok))
    answer = app.test_client().get("/")
    assert answer.status_code == status
    if status == 503:
        assert answer.json["title"] == "Service Unavailable"  # type: ignore[index]
        assert "RateLimit" not in answer.headers
    assert (policy == "raise") == any("answered with 503" in each for each in said(caplog))


def test_a_handler_may_answer_for_a_dead_store(app: Flask, dead_store: Any) -> None:
    RateLimiter(app, "1/m", store=dead_store)
    app.register_error_handler(503, lambda error: (f"later: {error.retry_after}", 503))
    assert app.test_client().get("/").text == "later: None"


def broken(request: flask.Request) -> Any:
    raise ZeroDivisionError


def nothing(request: flask.Request) -> Any:
    return None


@pytest.mark.parametrize(
    "options",
    [{"key": broken}, {"key": nothing}, {"cost": broken}, {"cost": nothing}, {"exempt": broken}],
)
def test_a_function_that_fails_is_a_500_that_the_log_names(
    options: dict[str, Any], app: Flask, limiter: RateLimiter, caplog: pytest.LogCaptureFixture
) -> None:
    app.testing = True  # errors of views are raised, but this is an answer
    app.add_url_rule("/", "in", limiter.limit("9/m", **options)(ok))
    answer = app.test_client().get("/")
    assert answer.status_code == 500
    assert answer.content_type == "application/problem+json"
    (line,) = said(caplog)
    [function] = options.values()
    assert function.__qualname__ in line


# -- what counts by its outcome --------------------------------------------------------------------


def test_a_login_counts_failures_only(app: Flask, any_store: Any, clock: FakeClock) -> None:
    limiter = RateLimiter(app, store=any_store)

    @app.post("/login")
    @limiter.limit("2/m", count_when=lambda response: response.get_json() == {"in": False})
    def login() -> Any:
        good = flask.request.form["password"] == "good"
        return jsonify({"in": good}), 200 if good else 401

    def tried(password: str) -> int:
        return statuses(app, 1, "/login", "POST", data={"password": password})[0]

    assert [tried("good") for _ in range(5)] == [200] * 5
    assert [tried("bad") for _ in range(3)] == [401, 401, 429]
    assert tried("good") == 429
    clock.advance(30)
    assert tried("good") == 200
    response = app.test_client().post("/login", data={"password": "good"})
    assert response.headers["RateLimit"].startswith('"2/m";r=1;')


def test_it_decides_by_the_response_as_handlers_have_left_it(
    app: Flask, store: MemoryStore
) -> None:
    limiter = RateLimiter(app, store=store)

    @app.after_request
    def hide(response: flask.Response) -> flask.Response:
        response.status_code = 404 if response.status_code == 403 else response.status_code
        return response

    @app.get("/")
    @limiter.limit("1/m", count_when=lambda response: response.status_code == 404)
    def view() -> str:
        abort(403)

    assert statuses(app, 2) == [404, 429]


@pytest.mark.parametrize("propagates", [False, True])
@pytest.mark.parametrize("counted", [200, 500])
def test_a_view_that_raises_counts_as_a_500(
    propagates: bool, counted: int, app: Flask, store: MemoryStore
) -> None:
    limiter = RateLimiter(app, store=store)
    app.config["PROPAGATE_EXCEPTIONS"] = propagates
    throttle = Throttled(quota="2/m", store=store)

    @app.get("/")
    @limiter.limit(throttle, count_when=lambda response: response.status_code == counted)
    def view() -> str:
        raise ZeroDivisionError

    if propagates:
        with pytest.raises(ZeroDivisionError):
            app.test_client().get("/")
    else:
        response = app.test_client().get("/")
        assert response.status_code == 500
        assert response.headers["RateLimit"].startswith(f'"2/m";r={2 - (counted == 500)};')
    assert throttle.peek(ME).remaining == 2 - (counted == 500)


@pytest.mark.parametrize("counted", [200, 500])
def test_a_function_after_the_request_that_raises_makes_it_a_500(
    counted: int, app: Flask, store: MemoryStore
) -> None:
    limiter = RateLimiter(app, store=store)
    throttle = Throttled(quota="2/m", store=store)

    @app.after_request
    def fail(response: flask.Response) -> flask.Response:
        raise ZeroDivisionError

    @app.get("/")
    @limiter.limit(throttle, count_when=lambda response: response.status_code == counted)
    def view() -> str:
        return "fine"

    assert app.test_client().get("/").status_code == 500
    assert throttle.peek(ME).remaining == 2 - (counted == 500)


def test_an_outcome_that_nobody_knows_stays_counted(app: Flask, store: MemoryStore) -> None:
    limiter = RateLimiter(app, store=store)
    throttle = Throttled(quota="2/m", store=store)

    @app.get("/")
    @limiter.limit(throttle, count_when=lambda response: False)
    def view() -> str:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        app.test_client().get("/")
    assert throttle.peek(ME).remaining == 1


def test_a_count_when_that_fails_counts(
    app: Flask, limiter: RateLimiter, caplog: pytest.LogCaptureFixture
) -> None:
    app.add_url_rule("/", "in", limiter.limit("1/m", count_when=broken)(ok))
    assert statuses(app, 2) == [200, 429]
    assert "broken" in said(caplog)[0]


def test_requests_at_once_do_not_slip_through_while_their_outcome_is_unknown(app: Flask) -> None:
    running: Queue[None] = Queue()
    go_on = Event()
    limiter = RateLimiter(app)

    @app.get("/")
    @limiter.limit("3/h", count_when=lambda response: response.status_code == 401)
    def view() -> Any:
        running.put(None)
        assert go_on.wait(20)
        return "no", 401

    with serving(app) as get:
        three_of_ten(get, go_on)
    assert running.qsize() == 3


def test_threads_of_a_real_server_admit_exactly_the_quota(app: Flask, any_store: Any) -> None:
    limiter = RateLimiter(app, "9/h", store=any_store)
    app.add_url_rule("/", "in", limiter.limit("7/h", key=lambda request: "all")(ok))
    with serving(app) as get:
        answers = at_once(20, lambda: get()[0].status)
    assert sorted(answers) == [200] * 7 + [429] * 13
