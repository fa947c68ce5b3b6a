"""Limits of Flask apps and blueprints, and of layers around each other."""

from __future__ import annotations

import os
import subprocess
import sys
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import flask
import pytest
from flask import Blueprint, Flask
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from tests.contrib.serving import (
    any_store,
    ok,
    statuses,
    warned_anew,
)
from tests.servers import HOST, free_port, wait_until
from throttled import MemoryStore
from throttled.contrib.flask import RateLimiter
from throttled.contrib.wsgi import RateLimitMiddleware

__all__ = ["any_store", "warned_anew"]

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def app() -> Flask:
    return Flask(__name__)


# -- the limit of an app ---------------------------------------------------------------------------


def test_the_limit_of_an_app_counts_every_request(app: Flask, any_store: Any) -> None:
    RateLimiter(app, "6/m", exclude=["/health", "/static/*"], store=any_store)
    app.add_url_rule("/", "in", ok)
    app.add_url_rule("/health", "health", ok)
    assert statuses(app, 3, "/health") == [200] * 3
    assert statuses(app, 1, "/static/none") == [404]
    assert statuses(app, 2) == [200] * 2
    assert statuses(app, 1, "/none") == [404]
    assert statuses(app, 1, "/", "POST") == [405]
    assert statuses(app, 1, "/", "OPTIONS") == [200]
    assert app.test_client().get("/none").headers["RateLimit"].startswith('"6/m";r=0;')
    assert statuses(app, 2, "/none") == [429] * 2


def test_a_redirect_that_is_followed_is_two_requests(app: Flask, store: MemoryStore) -> None:
    RateLimiter(app, "9/m", store=store)
    app.add_url_rule("/in/", "in", ok)
    response = app.test_client().get("/in", follow_redirects=True)
    assert response.text == "fine"
    assert response.headers["RateLimit"] == '"9/m";r=7;t=14'


def test_the_limits_of_app_and_view_both_hold_and_none_is_taken_without_the_other(
    app: Flask, any_store: Any
) -> None:
    limiter = RateLimiter(app, "4/m", store=any_store)
    app.add_url_rule("/a", "a", limiter.limit("1/m")(ok))
    app.add_url_rule("/b", "b", ok)
    first = app.test_client().get("/a")
    assert first.headers.getlist("RateLimit-Policy") == ['"1/m";q=1;w=60, "4/m";q=4;w=60']
    assert statuses(app, 5, "/a") == [429] * 5
    assert statuses(app, 4, "/b") == [200, 200, 200, 429]


def test_a_view_may_have_a_limit_in_place_of_that_of_the_app(
    app: Flask, store: MemoryStore
) -> None:
    limiter = RateLimiter(app, "1/m", store=store)
    app.add_url_rule("/a", "a", limiter.limit("3/m", override_defaults=True)(ok))
    app.add_url_rule("/b", "b", limiter.exempt(ok))

    @limiter.limit("3/m", override_defaults=True)
    @app.get("/c")
    def above() -> str:
        return "fine"

    assert statuses(app, 4, "/a") == [200, 200, 200, 429]
    assert statuses(app, 4, "/c") == [200, 200, 200, 429]
    assert statuses(app, 4, "/b") == [200] * 4
    assert statuses(app, 2, "/none") == [404, 429]


def test_exempt_requests_pass_all_limits(app: Flask, store: MemoryStore) -> None:
    limiter = RateLimiter(
        app, "1/m", exempt=lambda request: "X-Probe" in request.headers, store=store
    )
    app.add_url_rule("/", "in", limiter.limit("1/m", scope="in")(ok))
    assert statuses(app, 3, headers={"X-Probe": "1"}) == [200] * 3
    assert statuses(app, 2) == [200, 429]


def test_what_is_registered_before_runs_before(app: Flask, store: MemoryStore) -> None:
    @app.before_request
    def load_user() -> None:
        flask.g.user = flask.request.headers["X-User"]

    RateLimiter(app, "1/m", key=lambda request: str(flask.g.user), store=store)

    @app.before_request
    def stop() -> Any:
        return ("stopped", 403) if flask.request.path == "/stop" else None

    app.add_url_rule("/", "in", ok)
    assert statuses(app, 2, headers={"X-User": "ann"}) == [200, 429]
    assert statuses(app, 2, "/stop", headers={"X-User": "bob"}) == [403, 429]


def test_functions_before_and_after_requests_may_be_limited_themselves(
    app: Flask, store: MemoryStore
) -> None:
    limiter = RateLimiter(app, store=store)

    @app.before_request
    @limiter.limit("2/m")
    def before() -> None:
        pass

    app.add_url_rule("/", "in", ok)
    answers = [app.test_client().get(path) for path in ("/", "/none", "/")]
    assert [each.status_code for each in answers] == [200, 404, 429]
    assert answers[2].headers["Retry-After"] == "30"


# -- blueprints ------------------------------------------------------------------------------------


def test_a_blueprint_has_a_limit_beside_those_of_app_and_view(app: Flask, any_store: Any) -> None:
    limiter = RateLimiter(app, "9/m", store=any_store)
    api = limiter.limit("3/m")(Blueprint("api", __name__, url_prefix="/api"))
    api.add_url_rule("/a", "a", ok)
    api.add_url_rule("/b", "b", limiter.limit("1/m")(ok))
    app.register_blueprint(api)
    app.add_url_rule("/", "in", ok)
    assert statuses(app, 1, "/api/b") == [200]
    assert statuses(app, 3, "/api/b") == [429] * 3
    assert statuses(app, 3, "/api/a") == [200, 200, 429]
    last = app.test_client().get("/")
    assert last.headers["RateLimit"].startswith('"9/m";r=5;')


def test_nested_blueprints_hold_together_and_the_inner_one_may_override(
    app: Flask, store: MemoryStore
) -> None:
    limiter = RateLimiter(app, "9/m", store=store)
    outer = limiter.limit("2/m")(Blueprint("outer", __name__, url_prefix="/outer"))
    inner = limiter.limit("5/m")(Blueprint("inner", __name__, url_prefix="/inner"))
    alone = Blueprint("alone", __name__, url_prefix="/alone")
    limiter.limit("3/m", override_defaults=True)(alone)
    free = limiter.exempt(Blueprint("free", __name__, url_prefix="/free"))
    for blueprint in (inner, alone, free):
        blueprint.add_url_rule("/", "in", ok)
        outer.register_blueprint(blueprint)
    free.add_url_rule("/own", "own", limiter.limit("1/m")(ok))
    app.register_blueprint(outer)
    names = app.test_client().get("/outer/inner/").headers["RateLimit-Policy"]
    assert sorted(each.split(";")[0] for each in names.split(", ")) == ['"2/m"', '"5/m"', '"9/m"']
    assert statuses(app, 2, "/outer/inner/") == [200, 429]
    assert statuses(app, 4, "/outer/alone/") == [200, 200, 200, 429]
    assert statuses(app, 9, "/outer/free/") == [200] * 9
    assert statuses(app, 2, "/outer/free/own") == [200, 429]


def test_a_blueprint_that_is_registered_twice_counts_by_its_names(
    app: Flask, store: MemoryStore
) -> None:
    limiter = RateLimiter(app, store=store)
    blueprint = limiter.limit("1/m")(Blueprint("api", __name__))
    blueprint.add_url_rule("/", "in", ok)
    app.register_blueprint(blueprint, url_prefix="/one")
    app.register_blueprint(blueprint, url_prefix="/two", name="two")
    for path in ("/one/", "/two/"):
        assert statuses(app, 2, path) == [200, 429]


# -- layers ----------------------------------------------------------------------------------------


def test_the_middleware_around_an_app_and_its_views_are_all_or_nothing(
    app: Flask, any_store: Any
) -> None:
    limiter = RateLimiter(app, store=any_store)
    app.add_url_rule("/a", "a", limiter.limit("1/m", key=lambda request: "all")(ok))
    app.add_url_rule("/b", "b", ok)
    app.wsgi_app = RateLimitMiddleware(app.wsgi_app, "3/m", store=any_store)  # type: ignore[method-assign]
    first = app.test_client().get("/a")
    assert first.headers.getlist("RateLimit-Policy") == ['"1/m";q=1;w=60, "3/m";q=3;w=60']
    refused = app.test_client().get("/a")
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "60")
    assert statuses(app, 3, "/b") == [200, 200, 429]


def test_each_layer_decides_by_the_response_that_it_knows(app: Flask, store: MemoryStore) -> None:
    limiter = RateLimiter(app, store=store)
    seen: list[str] = []

    def note(response: Any) -> bool:
        seen.append(type(response).__module__)
        return False

    app.add_url_rule("/", "in", limiter.limit("2/m", count_when=note)(ok))
    app.wsgi_app = RateLimitMiddleware(  # type: ignore[method-assign]
        app.wsgi_app, "3/m", count_when=note, store=store
    )
    response = app.test_client().get("/")
    assert seen == ["flask.wrappers", "throttled.contrib.headers"]
    assert response.headers["RateLimit"] == '"2/m";r=2;t=0, "3/m";r=3;t=0'


def test_an_app_that_answers_for_a_view_of_another_is_a_layer_within(store: MemoryStore) -> None:
    outer, inner = Flask("outer"), Flask("inner")
    RateLimiter(outer, "9/m", store=store)
    RateLimiter(inner, "5/m", scope="inner", store=store)
    inner.add_url_rule("/", "in", ok)
    outer.add_url_rule("/", "in", lambda: inner)  # type: ignore[arg-type, return-value]
    response = outer.test_client().get("/")
    assert response.text == "fine"
    assert response.headers.getlist("RateLimit") == ['"5/m";r=4;t=12, "9/m";r=8;t=7']


def test_apps_side_by_side_are_limited_each(store: MemoryStore) -> None:
    one, two = Flask("one"), Flask("two")
    for app in (one, two):
        RateLimiter(app, "1/m", scope=app.name, store=store)
        app.add_url_rule("/", "in", ok)
    one.wsgi_app = DispatcherMiddleware(one.wsgi_app, {"/two": two})  # type: ignore[method-assign]
    assert statuses(one, 2) == [200, 429]
    assert statuses(one, 2, "/two/") == [200, 429]


def test_a_request_within_a_request_is_one_of_its_own(app: Flask, store: MemoryStore) -> None:
    RateLimiter(app, "9/m", store=store)
    app.add_url_rule("/inner", "inner", ok)

    @app.get("/outer")
    def outer() -> str:
        inner = app.test_client().get("/inner")
        with app.test_request_context("/inner", environ_base={"REMOTE_ADDR": "127.0.0.1"}):
            app.preprocess_request()
        return inner.headers["RateLimit"]

    response = app.test_client().get("/outer")
    assert response.text.startswith('"9/m";r=7;')
    assert response.headers["RateLimit"].startswith('"9/m";r=8;')
    assert app.test_client().get("/inner").headers["RateLimit"].startswith('"9/m";r=5;')


def test_headers_that_a_view_sets_are_merged_and_not_overwritten(
    app: Flask, store: MemoryStore
) -> None:
    RateLimiter(app, "9/m", store=store)

    @app.get("/")
    def view() -> flask.Response:
        response = flask.Response("fine")
        response.headers["RateLimit"] = '"own";r=1'
        response.set_cookie("a", "1")
        response.set_cookie("b", "2")
        return response

    response = app.test_client().get("/")
    assert response.headers["RateLimit"] == '"own";r=1, "9/m";r=8;t=7'
    assert len(response.headers.getlist("Set-Cookie")) == 2


def test_under_flask_run_and_its_reloader_the_quota_is_one(tmp_path: Path) -> None:
    (tmp_path / "site_app.py").write_text(
        "from flask import Flask\n"
        "from throttled.contrib.flask import RateLimiter\n"
        "app = Flask(__name__)\n"
        "RateLimiter(app, '3/h')\n",
        "utf-8",
    )
    port = free_port()
    command = [sys.executable, "-m", "flask", "--app", "site_app", "run", "--debug"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [*command, "--port", str(port)],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )

    def status() -> int:
        connection = HTTPConnection(HOST, port, timeout=10)
        try:
            connection.request("GET", "/")
            return connection.getresponse().status
        finally:
            connection.close()

    try:
        wait_until(status, "the start of flask run")
        assert [status() for _ in range(4)] == [404, 404, 429, 429]
    finally:
        os.killpg(process.pid, 15)  # the reloader's child too
        process.wait(10)
