"""Limits of views inside Flask."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from inspect import iscoroutinefunction, signature
from io import BytesIO
from typing import Any

import flask
import flask_login
import pytest
from flask import Flask, abort, g
from flask.views import MethodView, View
from werkzeug.middleware.proxy_fix import ProxyFix

from tests.contrib.serving import any_store, ok, said, serving, statuses
from throttled import MemoryStore
from throttled.contrib.flask import RateLimit, RateLimiter
from throttled.contrib.keys import by_header, by_user
from throttled.testing import FakeClock, disabled

__all__ = ["any_store"]

ME = "127.0.0.1"


@pytest.fixture
def app() -> Flask:
    return Flask(__name__)


@pytest.fixture
def limiter(app: Flask, store: MemoryStore) -> RateLimiter:
    return RateLimiter(app, store=store)


# -- views -----------------------------------------------------------------------------------------


def test_a_view_is_limited_and_says_when_to_come_back(
    app: Flask, any_store: Any, clock: FakeClock
) -> None:
    limiter = RateLimiter(app, store=any_store)

    @app.get("/items/<int:item>")
    @limiter.limit("2/minute")
    def view(item: int) -> str:
        return f"item {item}"

    client = app.test_client()
    # One limit for the route, whatever the values.
    first, second, third = [client.get(f"/items/{item}") for item in (1, 2, 3)]
    assert [first.text, second.text] == ["item 1", "item 2"]
    assert first.headers["RateLimit"] == '"2/m";r=1;t=30'
    assert first.headers["RateLimit-Policy"] == '"2/m";q=2;w=60'
    assert third.status_code == 429
    assert third.headers["Retry-After"] == "30"
    assert third.headers["RateLimit"] == '"2/m";r=0;t=30'
    assert third.content_type == "application/problem+json"
    assert third.json == {
        "type": "https://iana.org/assignments/http-problem-types#quota-exceeded",
        "title": "Quota Exceeded",
        "status": 429,
        "detail": "Too many requests. Try again in 30 seconds.",
        "retry_after": 30,
        "violated-policies": ["2/m"],
    }
    assert client.get("/items/1", environ_base={"REMOTE_ADDR": "203.0.113.5"}).status_code == 200
    clock.advance(30)
    assert client.get("/items/1").status_code == 200


def unwrapped(view: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that does not say what it decorates."""
    return lambda **values: view(**values)


def noting(view: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(view)
    def call(**values: Any) -> Any:
        return view(**values)

    return call


def test_the_decorator_holds_above_the_route_as_well_as_below(
    app: Flask, limiter: RateLimiter
) -> None:
    limit = limiter.limit("1/m")
    orders: dict[str, list[Callable[..., Any]]] = {
        "below": [app.route("/below"), limit],
        "above": [limit, app.route("/above")],
        "far-below": [app.route("/far-below"), noting, limit, noting],
        "far-above": [limit, noting, app.route("/far-above"), noting],
        "hidden": [app.route("/hidden"), unwrapped, limit],
    }
    for name, decorators in orders.items():

        def view() -> str:
            return "fine"

        decorated: Any = view
        view.__name__ = view.__qualname__ = name
        for decorator in reversed(decorators):
            decorated = decorator(decorated)
            decorated.__name__ = name
    for name in orders:
        assert statuses(app, 2, f"/{name}") == [200, 429], name
    # Above the route it does not count what Flask answers by itself either.
    assert statuses(app, 1, "/above", "OPTIONS") == [200]


def test_a_function_that_is_decorated_for_one_route_is_not_limited_for_another(
    app: Flask, limiter: RateLimiter
) -> None:
    app.add_url_rule("/free", "free", ok)
    app.add_url_rule("/limited", "limited", limiter.limit("1/m")(ok))
    assert statuses(app, 3, "/free") == [200] * 3
    assert statuses(app, 2, "/limited") == [200, 429]


def test_under_another_decorator_only_what_gets_there_counts(
    app: Flask, limiter: RateLimiter
) -> None:
    def login_required(view: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(view)
        def call(**values: Any) -> Any:
            if "Authorization" not in flask.request.headers:
                abort(401)
            return view(**values)

        return call

    app.add_url_rule("/", "in", login_required(limiter.limit("1/m")(ok)))
    assert statuses(app, 3) == [401] * 3
    assert statuses(app, 2, headers={"Authorization": "me"}) == [200, 429]


def test_decorators_that_are_stacked_all_hold_or_none_takes(app: Flask, any_store: Any) -> None:
    limiter = RateLimiter(app, store=any_store)

    @app.route("/")
    @limiter.limit("3/m")
    @limiter.limit("1/m", key=by_header("X-API-Key"))
    def view() -> str:
        return "fine"

    client = app.test_client()
    for key, status in (("a", 200), ("a", 429), ("a", 429), ("b", 200), ("c", 200), ("d", 429)):
        assert client.get("/", headers={"X-API-Key": key}).status_code == status, key


def test_each_route_counts_for_itself_unless_a_scope_joins_them(
    app: Flask, limiter: RateLimiter
) -> None:
    def of(name: str, **options: Any) -> Callable[..., Any]:
        def view() -> str:  # all of one name
            return name

        return limiter.limit("1/m", **options)(view)

    twice = of("twice")
    app.add_url_rule("/a", "a", twice)
    app.add_url_rule("/b", "a", twice)
    app.add_url_rule("/c", "c", of("c"), methods=["GET"])
    app.add_url_rule("/c", "d", of("d"), methods=["POST"])
    app.add_url_rule("/e", "e", of("e", scope="both"))
    app.add_url_rule("/f", "f", of("f", scope="both"))
    for path, method in (("/a", "GET"), ("/b", "GET"), ("/c", "GET"), ("/c", "POST")):
        assert statuses(app, 2, path, method) == [200, 429]
    assert statuses(app, 1, "/e") == [200]
    assert statuses(app, 1, "/f") == [429]


def test_hosts_are_told_apart(limiter: RateLimiter, store: MemoryStore) -> None:
    app = Flask(__name__, host_matching=True, static_host="static.test")
    hosted = RateLimiter(app, store=store)
    for host in ("a.test", "b.test"):
        app.add_url_rule("/", host, hosted.limit("1/m")(ok), host=host)
    assert statuses(app, 2, headers={"Host": "a.test"}) == [200, 429]
    assert statuses(app, 2, headers={"Host": "b.test"}) == [200, 429]


def test_head_is_get_and_options_are_answered_uncounted(app: Flask, limiter: RateLimiter) -> None:
    app.add_url_rule("/", view_func=limiter.limit("2/m")(ok), methods=["GET", "POST"])
    assert statuses(app, 3, method="OPTIONS") == [200] * 3
    assert statuses(app, 1, method="HEAD") == [200]
    assert statuses(app, 1) == [200]
    refused = app.test_client().head("/")
    assert (refused.status_code, refused.data) == (429, b"")
    assert refused.headers["Retry-After"] == "30"


def test_a_class_based_view_is_decorated_whole_or_by_method(
    app: Flask, limiter: RateLimiter
) -> None:
    class Whole(View):
        decorators = [limiter.limit("1/m")]  # noqa: RUF012 - as Flask has it
        methods = ["GET", "POST"]  # noqa: RUF012

        def dispatch_request(self) -> str:
            return "fine"

    class Parts(MethodView):
        @limiter.limit("1/m")
        def get(self) -> str:
            return "fine"

        @limiter.limit("1/m")
        def post(self) -> str:
            return "fine"

        def put(self) -> str:
            return "fine"

    app.add_url_rule("/whole", view_func=Whole.as_view("whole"))
    app.add_url_rule("/parts", view_func=Parts.as_view("parts"))
    assert statuses(app, 1, "/whole") == [200]
    assert statuses(app, 1, "/whole", "POST") == [429]
    assert statuses(app, 2, "/parts") == [200, 429]
    assert statuses(app, 2, "/parts", "POST") == [200, 429]
    assert statuses(app, 2, "/parts", "PUT") == [200, 200]


def test_an_async_view_is_limited_and_stays_one(app: Flask, any_store: Any) -> None:
    limiter = RateLimiter(app, store=any_store)

    @app.get("/<int:number>")
    @limiter.limit("1/m")
    async def view(number: int) -> str:
        """Says it."""
        return f"fine {number}"

    assert iscoroutinefunction(view)
    assert list(signature(view).parameters) == ["number"]
    assert (view.__name__, view.__doc__) == ("view", "Says it.")
    assert app.test_client().get("/7").text == "fine 7"
    assert statuses(app, 1, "/7") == [429]


def test_a_function_called_by_views_counts_by_itself_once_a_request(
    app: Flask, limiter: RateLimiter
) -> None:
    sent: list[str] = []

    @limiter.limit("2/m")
    def send(text: str) -> None:
        sent.append(text)

    @app.get("/a")
    def a() -> str:
        send("a")
        send("again")
        return "fine"

    @app.get("/b")
    def b() -> str:
        send("b")
        return "fine"

    assert statuses(app, 1, "/a") + statuses(app, 2, "/b") == [200, 200, 429]
    assert sent == ["a", "again", "b"]
    send("nobody asks")  # outside requests there is nobody to limit
    assert sent[-1] == "nobody asks"


def test_a_stream_is_one_call_and_its_parts_leave_when_they_are_made(
    app: Flask, limiter: RateLimiter
) -> None:
    made: list[int] = []

    @app.get("/")
    @limiter.limit("1/m", count_when=lambda response: response.status_code == 200)
    def view() -> Iterator[str]:
        for number in range(3):
            made.append(number)
            yield str(number)

    response = app.test_client().get("/")
    parts = response.iter_encoded()
    assert response.headers["RateLimit"].startswith('"1/m";r=0;')
    assert next(iter(parts)) == b"0"
    assert made == [0]
    assert b"".join(parts) == b"12"
    response.close()
    assert statuses(app, 1) == [429]


def test_a_file_is_sent(app: Flask, limiter: RateLimiter) -> None:
    @app.get("/")
    @limiter.limit("1/m")
    def view() -> flask.Response:
        return flask.send_file(BytesIO(b"content"), "text/plain", etag="a")

    with serving(app) as get:
        response, body = get()
        assert (response.status, body) == (200, b"content")
        assert response.headers["RateLimit"].startswith('"1/m";r=0;')
        assert get()[0].status == 429


# -- whom it counts --------------------------------------------------------------------------------


def test_functions_are_given_the_request_of_flask(app: Flask, limiter: RateLimiter) -> None:
    seen: list[Any] = []

    def key(request: flask.Request) -> str:
        seen.append(request)
        return str(request.json["name"])

    @app.post("/<tenant>")
    @limiter.limit(
        "5/m",
        key=key,
        cost=lambda request: len(request.json["items"]),
        exempt=lambda request: request.view_args["tenant"] == "ours",
    )
    def view(tenant: str) -> str:
        return "fine"

    client = app.test_client()
    ann = {"name": "ann", "items": [1, 2, 3]}
    assert client.post("/x", json=ann).headers["RateLimit"].startswith('"5/m";r=2;')
    assert client.post("/x", json=ann).status_code == 429
    assert client.post("/x", json={**ann, "name": "bob"}).status_code == 200
    assert "RateLimit" not in client.post("/ours", json=ann).headers
    assert type(seen[0]) is app.request_class


def test_users_of_flask_login_are_told_apart(app: Flask, limiter: RateLimiter) -> None:
    app.secret_key = "secret"

    class User(flask_login.UserMixin):  # type: ignore[misc]
        def __init__(self, name: str) -> None:
            self.id = name

    manager = flask_login.LoginManager(app)
    manager.user_loader(User)

    @app.get("/login/<name>")
    def login(name: str) -> str:
        flask_login.login_user(User(name))
        return "in"

    app.add_url_rule("/", "in", limiter.limit("1/m", key=by_user())(ok))
    clients = [app.test_client() for _ in range(3)]
    for client, name in zip(clients, ("ann", "bob", "ann"), strict=True):
        client.get(f"/login/{name}")
    assert [client.get("/").status_code for client in clients] == [200, 200, 429]
    # Who is not logged in counts by address, whatever the server says of him.
    for name in ("ann", "eve"):
        assert statuses(app, 1, environ_base={"REMOTE_USER": name}) == [
            200 if name == "ann" else 429
        ]


def test_without_flask_login_the_server_says_who_it_is(app: Flask, limiter: RateLimiter) -> None:
    app.add_url_rule("/", "in", limiter.limit("1/m", key=by_user())(ok))
    for name in ("ann", "bob"):
        assert statuses(app, 2, environ_base={"REMOTE_USER": name}) == [200, 429]


def test_behind_proxy_fix_the_client_is_who_it_says(
    app: Flask, limiter: RateLimiter, caplog: pytest.LogCaptureFixture
) -> None:
    app.add_url_rule("/", "in", limiter.limit("1/m")(ok))
    app.wsgi_app = ProxyFix(app.wsgi_app)  # type: ignore[method-assign]
    for name in ("203.0.113.1", "203.0.113.2"):
        assert statuses(app, 2, headers={"X-Forwarded-For": name}) == [200, 429]
    assert said(caplog) == []


# -- switched off, and reset -----------------------------------------------------------------------


def test_limits_can_be_switched_off_for_an_app_and_for_all(
    app: Flask, limiter: RateLimiter
) -> None:
    app.add_url_rule("/", "in", limiter.limit("1/m")(ok))
    app.config["THROTTLED_ENABLED"] = False
    assert statuses(app, 3) == [200] * 3
    app.config["THROTTLED_ENABLED"] = True
    with disabled():
        assert statuses(app, 3) == [200] * 3
    assert statuses(app, 2) == [200, 429]


def test_a_key_can_be_reset_where_the_limit_is_at_hand(app: Flask, store: MemoryStore) -> None:
    limiter = RateLimiter(app, store=store)
    login = RateLimit("1/m", store=store)
    app.add_url_rule("/<name>", "in", limiter.limit(login)(ok))
    assert statuses(app, 2, "/a") == [200, 429]
    login.throttle("GET /<name>").reset(ME)
    assert statuses(app, 2, "/a") == [200, 429]


def test_a_value_of_g_that_outlives_a_request_is_no_matter(
    app: Flask, limiter: RateLimiter
) -> None:
    app.add_url_rule("/", "in", limiter.limit("2/m")(ok))
    with app.app_context():  # so that all requests share its g
        g.kept = True
        assert statuses(app, 3) == [200, 200, 429]
