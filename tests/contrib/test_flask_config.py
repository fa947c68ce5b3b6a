"""The Flask extension in factories, what configures it, and what is wrong with it."""

from __future__ import annotations

import gc
import weakref
from functools import partial
from typing import Any

import pytest
from flask import Blueprint, Flask
from flask.views import MethodView

from tests.contrib.serving import ok, said, statuses, warned_anew
from tests.servers import Server
from throttled import MemoryStore, Throttled
from throttled.asyncio import Throttled as AsyncThrottled
from throttled.contrib.asgi import RateLimit as AsyncRateLimit
from throttled.contrib.flask import RateLimit, RateLimiter
from throttled.exceptions import DataError, SetUpError

__all__ = ["warned_anew"]


@pytest.fixture
def app() -> Flask:
    return Flask(__name__)


def test_one_extension_serves_apps_that_count_for_themselves() -> None:
    limiter = RateLimiter(limit="9/m")
    blueprint = Blueprint("api", __name__)
    blueprint.add_url_rule("/", "in", limiter.limit("1/m")(ok))

    def create_app(**config: Any) -> Flask:
        app = Flask(__name__)
        app.config.update(config)
        limiter.init_app(app)
        app.register_blueprint(blueprint)
        return app

    one, two = create_app(), create_app(THROTTLED_LIMIT="5/m", THROTTLED_HEADERS="x")
    off = create_app(THROTTLED_ENABLED=False)
    none = create_app(THROTTLED_LIMIT=None)
    assert statuses(one, 2) == [200, 429]
    response = two.test_client().get("/")
    assert response.headers["X-RateLimit-Limit"] == "1"
    assert "RateLimit" not in response.headers
    assert two.test_client().get("/none").headers["X-RateLimit-Limit"] == "5"
    assert statuses(off, 3) == [200] * 3
    assert "RateLimit" not in none.test_client().get("/none").headers
    assert statuses(none, 2) == [200, 429]


@pytest.mark.server
def test_apps_of_one_store_url_share_their_counts(valkey: Server) -> None:
    with valkey.client() as client:
        client.flushall()
    limiter = RateLimiter(limit="9/m")
    apps = [Flask(__name__) for _ in range(2)]
    view = limiter.limit("1/m")(ok)
    for app in apps:
        app.config["THROTTLED_STORE_URL"] = valkey.url
        limiter.init_app(app)
        app.add_url_rule("/", "in", view)
    assert [statuses(app, 1) for app in apps] == [[200], [429]]
    with valkey.client() as client:
        assert len(client.keys("throttled:*")) == 2
        client.flushall()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"THROTTLED_LIMIT": "ten"}, "ten.*THROTTLED_LIMIT"),
        ({"THROTTLED_LIMIT": AsyncThrottled(quota="1/m")}, "Throttled.*THROTTLED_LIMIT"),
        ({"THROTTLED_HEADERS": "rfc"}, "rfc.*THROTTLED_HEADERS"),
        ({"THROTTLED_STORE_URL": "http://localhost"}, "http.*THROTTLED_STORE_URL"),
        ({"THROTTLED_STORE_URL": 6380}, "6380.*THROTTLED_STORE_URL"),
        ({"THROTTLED_ENABLED": "off"}, "THROTTLED_ENABLED.*off"),
    ],
)
def test_a_wrong_configuration_is_said_at_start_up(
    config: dict[str, Any], message: str, app: Flask
) -> None:
    app.config.update(config)
    with pytest.raises((DataError, SetUpError), match=message):
        RateLimiter(app)
    assert app.extensions == {}


async def awaited(request: Any) -> str:
    return "a"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"limit": "ten a minute"}, "ten a minute"),
        ({"exclude": "/health"}, "exclude"),
        ({"exclude": ["health"]}, "health"),
        ({"headers": "rfc"}, "rfc"),
        ({"reset": "epoch"}, "epoch"),
        ({"problem": 1}, "problem"),
        ({"exempt": awaited}, "async"),
        ({"burts": 2}, "burts"),
        ({"limit": AsyncRateLimit("1/m")}, "RateLimit"),
    ],
)
def test_what_is_wrong_with_an_extension_is_said_when_it_is_made(
    arguments: dict[str, Any], message: str, app: Flask
) -> None:
    with pytest.raises(DataError, match=message):
        RateLimiter(app, **arguments)


@pytest.mark.parametrize(
    ("limit", "options", "message"),
    [
        ("ten a minute", {}, "ten a minute"),
        (None, {}, "None"),
        ("1/m", {"key": "ip"}, "key"),
        ("1/m", {"key": awaited}, "async"),
        ("1/m", {"count_when": awaited}, "async"),
        ("1/m", {"cost": -1}, "cost"),
        ("1/m", {"scope": "{a}"}, "scope"),
        ("1/m", {"burts": 2}, "burts"),
        (RateLimit("1/m"), {"cost": 2}, "cost"),
        (AsyncRateLimit("1/m"), {}, "RateLimit"),
        (Throttled(quota="1/m"), {"scope": "a"}, "scope"),
        (AsyncThrottled(quota="1/m"), {}, "Throttled"),
    ],
)
def test_what_is_wrong_with_a_decorator_is_said_at_start_up(
    limit: Any, options: dict[str, Any], message: str, app: Flask
) -> None:
    bound = RateLimiter(app)
    with pytest.raises(DataError, match=message):
        bound.limit(limit, **options)(ok)

    def unbound() -> None:
        limiter = RateLimiter()
        limiter.limit(limit, **options)(ok)
        limiter.init_app(Flask(__name__))

    with pytest.raises(DataError, match=message):
        unbound()


def test_a_wrong_limit_is_said_with_the_name_of_its_function() -> None:
    limiter = RateLimiter()
    limiter.limit("ten")(ok)
    with pytest.raises(DataError, match=r"ten.*tests\.contrib\.serving\.ok"):
        limiter.init_app(Flask(__name__))


def test_what_cannot_be_limited_is_said(app: Flask) -> None:
    limiter = RateLimiter(app)

    class Parts(MethodView):
        pass

    for target in (app, Parts, "view"):
        for decorate in (limiter.limit("1/m"), limiter.exempt):
            with pytest.raises(DataError, match="view"):
                decorate(target)  # type: ignore[arg-type]


def test_what_a_factory_decorates_goes_with_its_app() -> None:
    limiter = RateLimiter()

    def create_app() -> Flask:
        app = Flask(__name__)
        limiter.init_app(app)

        @limiter.limit("1/m")
        @app.get("/")
        def view() -> str:
            return "fine"

        return app

    apps = [create_app() for _ in range(3)]
    gc.collect()
    for app in apps:
        assert statuses(app, 2) == [200, 429]
    views = [weakref.ref(app.view_functions["view"]) for app in apps]
    del app, apps
    gc.collect()
    assert [view() for view in views] == [None] * 3
    assert limiter.all_said() == []


def test_an_app_is_limited_once(app: Flask) -> None:
    limiter = RateLimiter(app)
    for another in (limiter, RateLimiter()):
        with pytest.raises(DataError, match="already"):
            another.init_app(app)


def test_a_view_whose_app_the_extension_does_not_know_does_not_pass_silently(app: Flask) -> None:
    app.testing = True
    app.add_url_rule("/", "in", RateLimiter().limit("1/m")(ok))
    with pytest.raises(SetUpError, match="init_app"):
        app.test_client().get("/")
    RateLimiter(app2 := Flask(__name__))
    app2.add_url_rule("/", "in", RateLimiter().limit("1/m")(ok))
    assert statuses(app2, 1) == [500]


def test_a_limit_that_comes_late_holds(app: Flask, store: MemoryStore) -> None:
    limiter = RateLimiter(app, store=store)
    blueprint = Blueprint("api", __name__)
    blueprint.add_url_rule("/", "in", ok)
    app.register_blueprint(blueprint)
    assert statuses(app, 2) == [200, 200]
    limiter.limit("1/m")(blueprint)
    assert statuses(app, 2) == [200, 429]


@pytest.mark.usefixtures("warned_anew")
def test_counts_of_several_processes_in_memory_are_warned_of_once(
    app: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    RateLimiter(app, "9/m")
    assert said(caplog) == []
    statuses(app, 2, multiprocess=True)
    assert [text[:5] for text in said(caplog)] == ["TH005"]


def test_callables_of_all_kinds_can_be_limited(app: Flask, store: MemoryStore) -> None:
    limiter = RateLimiter(app, store=store)

    class Spare:
        __slots__ = ()

        def __call__(self) -> str:
            return "fine"

    class Site:
        def view(self) -> str:
            return "fine"

    for name, view in (("a", partial(ok, a=1)), ("b", Spare()), ("c", Site().view)):
        app.add_url_rule(f"/{name}", name, limiter.limit("1/m")(view))
        app.add_url_rule(f"/{name}/free", f"{name}free", view)
    for name in "abc":
        assert statuses(app, 2, f"/{name}/free") == [200, 200]
        assert statuses(app, 2, f"/{name}") == [200, 429]
