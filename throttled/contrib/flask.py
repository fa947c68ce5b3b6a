"""Limits in a Flask application: for all of it, for blueprints and for single views.

    limiter = RateLimiter(app, "100/minute")     # every request, by client address

    @app.post("/login")
    @limiter.limit("5/minute", count_when=lambda response: response.status_code == 401)
    def login(): ...

With an application factory, make it without the app and call `limiter.init_app(app)`. Needs the
package `flask`.

Theory of operation
-------------------
* The limits of the app and of its blueprints are taken in a `before_request` function that
  `init_app` registers; what is registered earlier runs earlier. Those of a view are taken where
  their decorator stands, so that one under `@login_required` only counts who is logged in.
* All limits of a request hold, or none takes anything. A refusal is raised as an `HTTPException`,
  which error handlers of the application may answer; else the answer is a problem body.
* An `after_request` function gives back what does not count and writes the headers.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import wraps
from inspect import iscoroutinefunction
from typing import Any, Final, NamedTuple, TypeVar, cast
from weakref import WeakKeyDictionary, WeakSet

from flask import Blueprint, Flask, Response, current_app, has_request_context, request

from throttled._callables import name_of
from throttled._text import shown
from throttled.base import BaseThrottled
from throttled.contrib import wsgi
from throttled.contrib._flask import (
    ERRORS,
    RateLimitError,
    RateLimitFaultError,
    RateLimitUnavailableError,
    Request,
    automatic,
    chain,
    route_scope,
)
from throttled.contrib.headers import Reset, Style, merge
from throttled.contrib.inbound import Passage, Replies
from throttled.contrib.limit import BaseRateLimit, check_options
from throttled.contrib.rules import Rules, Scoped, checked_patterns
from throttled.exceptions import BaseThrottledError, DataError, SetUpError
from throttled.store.memory import MemoryStore
from throttled.store.policy import finished
from throttled.store.redis import RedisStore

__all__ = [
    "RateLimit",
    "RateLimitError",
    "RateLimitFaultError",
    "RateLimitUnavailableError",
    "RateLimiter",
]

T = TypeVar("T", bound="Callable[..., Any] | Blueprint")

#: Where an app keeps what an extension knows of it.
_EXTENSION: Final = "throttled"

#: Where a function keeps what it is decorated with.
_KEPT: Final = "__throttled__"

_ENABLED: Final = "THROTTLED_ENABLED"
_HEADERS: Final = "THROTTLED_HEADERS"
_LIMIT: Final = "THROTTLED_LIMIT"
_STORE_URL: Final = "THROTTLED_STORE_URL"

# What is said beside a `Throttled`, which brings the rest.
_READ: Final = ("key", "cost", "count_when")


class RateLimit(BaseRateLimit):
    """A limit that is used in several places, or whose counts are looked at or reset.

        login = RateLimit("5/minute", store=store, scope="login")
        login.throttle().reset("203.0.113.5")

    It brings its own store, which is not that of the app.
    """

    _asynchronous = False


class _Said:
    """What a decorator was told. Each app makes its own limit of it, which counts in its store."""

    __slots__ = ("__weakref__", "limit", "name", "options", "override")

    def __init__(self, target: Any, limit: Any, options: dict[str, Any], override: bool) -> None:
        if isinstance(target, Flask | type) or not (
            callable(target) or isinstance(target, Blueprint)
        ):
            raise DataError(
                f"Invalid view: {shown(target)}, must be a function or a blueprint. An app is "
                f"limited by its RateLimiter, a class-based view by its `decorators`."
            )
        #: None: none, which exempts from those around.
        self.limit = limit
        self.options = options
        self.override = override
        #: What is decorated.
        self.name = (
            shown(target)
            if isinstance(target, Blueprint)
            else f"{getattr(target, '__module__', '')}.{name_of(target)}"
        )

    def made(self, defaults: Mapping[str, Any]) -> BaseRateLimit:
        limit = self.limit
        if isinstance(limit, BaseRateLimit):
            return limit
        if isinstance(limit, BaseThrottled):
            defaults = {name: defaults[name] for name in _READ if name in defaults}
        return RateLimit(limit, **{**defaults, **self.options})


class RateLimiter:
    """The extension; see the top of this module.

    What `app.config` says comes before what is said here, so that one extension serves several
    apps, each with a store of its own:

    - `THROTTLED_LIMIT`: as `limit`.
    - `THROTTLED_STORE_URL`: the server where limits count, such as "redis://localhost:6379/0".
    - `THROTTLED_HEADERS`: as `headers`.
    - `THROTTLED_ENABLED`: False switches all limits off; it may be changed at any time.
    """

    def __init__(
        self,
        app: Flask | None = None,
        limit: Any = None,
        *,
        exclude: Sequence[str] = (),
        exempt: Callable[[Any], Any] | None = None,
        headers: Style | None = "ietf",
        reset: Reset = "delta",
        problem: Callable[[Any, dict[str, Any]], Any] | None = None,
        **defaults: Any,
    ) -> None:
        """
        :param app: the app, if it is there already; else say it to `init_app`.
        :param limit: what every request has to pass, also one that matches no route: a quota
            ("100/minute"), a `RateLimit`, a `throttled.Throttled`, or a list of those; None for
            nothing.
        :param exclude: patterns of requests that `limit` does not count, such as "/static/*": see
            `throttled.contrib.rules`.
        :param exempt: called with the request, which passes all limits uncounted if it returns
            true.
        :param headers: "ietf", "legacy", "x" or None: see `throttled.contrib.headers`.
        :param reset: for "x": "delta" or "epoch".
        :param problem: called with the request and the problem body; returns what to send.
        :param defaults: what limits made of quotas take besides: `key`, `cost`, `count_when`,
            `store`, `using`, ...; see `RateLimit`. Without a `store`, each app counts in a
            `MemoryStore` of its own.
        :raises DataError: for a wrong argument; the message names it. What needs the app's store
            is looked at by `init_app`.
        """
        Replies(headers, reset, problem, asynchronous=False)
        checked_patterns("exclude", exclude)
        check_options(defaults)
        self._limit = limit
        self._exclude = exclude
        self._exempt = exempt
        self._headers = headers
        self._reset: Reset = reset
        self._problem = problem
        self._defaults = defaults
        # By blueprint or function. A factory decorates functions of its own for each app: they go
        # when the app goes.
        self._said: WeakKeyDictionary[Any, list[_Said]] = WeakKeyDictionary()
        self._bound: WeakSet[_Bound] = WeakSet()
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Limit an app.

        Raises `DataError` for a wrong limit or configuration, and for an app that is limited
        already; `SetUpError` for a store that cannot be.
        """
        if _EXTENSION in app.extensions:
            raise DataError(f"Invalid app: {shown(app)} has a RateLimiter already.")
        bound = _Bound(self, app)
        for _, said in self.all_said():
            bound.limit(said)
        app.extensions[_EXTENSION] = bound
        self._bound.add(bound)
        app.before_request(bound.enter)
        app.after_request(bound.leave)
        app.teardown_request(bound.abandon)

    def limit(
        self, limit: Any, *, override_defaults: bool = False, **options: Any
    ) -> Callable[[T], T]:
        """Limit a view or a blueprint: a decorator.

            @app.get("/items/<int:item_id>")
            @limiter.limit("10/minute")
            def item(item_id): ...

            limiter.limit("100/hour", key=by_user())(blueprint)

        A view counts by methods and URL rule, a blueprint by its name. Decorators may be stacked,
        and stand in `decorators` of a class-based view. Around a function that is no view, such
        as a method of a `MethodView`, it limits requests that call it, wherever it is called from:
        once a request. Outside requests nothing is counted.

        :param limit: a quota, a `RateLimit`, or a `throttled.Throttled`.
        :param override_defaults: whether it holds in place of the limits of the app and of the
            blueprints around, not beside them.
        :param options: as of `RateLimit`, before those that the extension was given.
        :raises DataError: for a wrong argument; the message names it. Before there is an app, it
            is `init_app` that raises it.
        """
        if limit is None:
            raise DataError("Invalid limit: None, must be a quota such as '5/minute'.")
        if isinstance(limit, BaseRateLimit):
            if limit._asynchronous:
                raise DataError(f"Invalid limit: {limit!r}, must be a {__name__}.RateLimit.")
            if options:
                raise DataError(
                    f"Invalid {', '.join(options)}: a RateLimit brings its own; say it there."
                )
        check_options(options)

        def decorate(target: T) -> T:
            said = _Said(target, limit, options, override_defaults)
            decorated = target if isinstance(target, Blueprint) else self._limited(said, target)
            self._add(said, decorated)
            return cast("T", decorated)

        return decorate

    def exempt(self, target: T) -> T:
        """Let a view or a blueprint pass the limits of the app and of blueprints around uncounted:
        a decorator.

        A limit of its own holds.
        """
        self._add(_Said(target, None, {}, True), target)
        return target

    def _add(self, said: _Said, decorated: Any) -> None:
        for bound in self._bound:
            bound.limit(said)
            bound.forget()
        self._said.setdefault(decorated, []).append(said)
        # Where `@app.route` stands below and has registered what is decorated, nobody else may
        # keep the decoration.
        *_, innermost = chain(decorated)
        with suppress(TypeError):
            vars(innermost).setdefault(_KEPT, []).append(decorated)

    def said(self, decorated: Any) -> list[_Said]:
        """What the decorators of a blueprint or a function were told."""
        try:
            return self._said.get(decorated, [])
        except TypeError:  # of a kind that is not kept, so it is none of them
            return []

    def all_said(self) -> list[tuple[Any, _Said]]:
        """What is decorated, and what each decorator was told."""
        return [(each, said) for each, several in list(self._said.items()) for said in several]

    def _limited(self, said: _Said, target: Any) -> Any:
        if iscoroutinefunction(target):

            @wraps(target)
            async def acall(*args: Any, **kwargs: Any) -> Any:
                # Flask runs each async view in a loop of its own: nobody else is kept waiting.
                self._take(said)
                return await target(*args, **kwargs)

            return acall

        @wraps(target)
        def call(*args: Any, **kwargs: Any) -> Any:
            self._take(said)
            return target(*args, **kwargs)

        return call

    def _take(self, said: _Said) -> None:
        """Take from a limit, where its function is called."""
        if not has_request_context():
            return
        bound: _Bound | None = current_app.extensions.get(_EXTENSION)
        if bound is None or bound.limiter is not self:
            raise SetUpError(
                f"{said.name} is limited by a RateLimiter that {shown(current_app)} was not given: "
                f"say limiter.init_app(app)."
            )
        bound.take(said)


class _Endpoint(NamedTuple):
    """What holds for the requests of an endpoint."""

    #: Whether the limits of the app do not.
    override: bool
    #: Those of blueprints, and the scopes they count in.
    blueprints: list[Scoped]
    #: Of the registered function.
    own: list[_Said]
    #: Of decorators above `@app.route`, which has registered the function without them.
    above: list[_Said]


class _Way(NamedTuple):
    """A request's way through an app."""

    passage: Passage
    #: How much layers around the app have taken.
    since: int
    #: Whether it is the app that tells of the limits: no layer is around it.
    tells: bool


class _Bound:
    """What an extension is to one app."""

    def __init__(self, limiter: RateLimiter, app: Flask) -> None:
        self.limiter = limiter
        self._app = app
        config = app.config
        if config.setdefault(_ENABLED, True) not in (True, False):
            raise DataError(
                f"Invalid {_ENABLED}: {shown(config[_ENABLED])}, must be True or False."
            )
        headers: Any = config.get(_HEADERS, limiter._headers)
        with _named(_HEADERS, config):
            self._replies = Replies(headers, limiter._reset, limiter._problem, asynchronous=False)
        with _named(_STORE_URL, config):
            store = _store_of(config.get(_STORE_URL), limiter._defaults.get("store"))
        self._defaults = {**limiter._defaults, "store": store}
        limit: Any = config.get(_LIMIT, limiter._limit)
        with _named(_LIMIT, config):
            self._rules = Rules(
                RateLimit, limit, None, limiter._exclude, limiter._exempt, **self._defaults
            )
        self._limits: WeakKeyDictionary[_Said, BaseRateLimit] = WeakKeyDictionary()
        self._endpoints: dict[str | None, _Endpoint] = {}
        # An app that is called as a view of another shares its environment.
        self._way = f"throttled.flask.{id(self)}"

    # -- what holds where -------------------------------------------------------------------------

    def limit(self, said: _Said) -> BaseRateLimit | None:
        """The limit that a decorator is in this app; `DataError` if it cannot be one."""
        if said.limit is None:
            return None
        found = self._limits.get(said)
        if found is None:
            try:
                made = said.made(self._defaults)
            except BaseThrottledError as error:
                raise type(error)(f"{error} It is the limit of {said.name}.") from error
            found = self._limits.setdefault(said, made)
        return found

    def forget(self) -> None:
        """Look again at what holds where."""
        self._endpoints.clear()

    def _scoped(self, several: Iterable[_Said], scope: str) -> list[Scoped]:
        limits = [self.limit(said) for said in several]
        return [(limit, scope) for limit in limits if limit is not None]

    def _endpoint(self) -> _Endpoint:
        found = self._endpoints.get(request.endpoint)
        if found is None:
            found = self._endpoints[request.endpoint] = self._found(request.endpoint)
        return found

    def _found(self, endpoint: str | None) -> _Endpoint:
        override, limits = False, list[Scoped]()
        for name in reversed(request.blueprints):
            several = self.limiter.said(self._app.blueprints.get(name))
            if any(each.override for each in several):
                override, limits = True, []
            limits += self._scoped(several, f"{name}.*")
        view = self._app.view_functions.get(cast("str", endpoint))
        own = [said for each in chain(view) for said in self.limiter.said(each)]
        above = self._above(view)
        if any(said.override for said in (*own, *above)):
            override, limits = True, []
        return _Endpoint(override, limits, own, above)

    def _above(self, view: Any) -> list[_Said]:
        """What decorates a view, but was not what `@app.route` has registered.

        A function that is decorated for one route and registered as it is for another one is
        reached by the first, and stays unlimited for the second.
        """
        reached = {id(each) for known in self._app.view_functions.values() for each in chain(known)}
        return [
            said
            for decorated, said in self.limiter.all_said()
            if id(decorated) not in reached
            and any(each is view for each in chain(getattr(decorated, "__wrapped__", None)))
        ]

    # -- requests ---------------------------------------------------------------------------------

    @property
    def _enabled(self) -> bool:
        return bool(self._app.config[_ENABLED])

    def enter(self) -> None:
        """Take from the limits of the app and of its blueprints."""
        if not self._enabled:
            return
        endpoint, incoming = self._endpoint(), Request()
        limits = [] if endpoint.override else list(self._rules.of(incoming))
        limits += endpoint.blueprints
        if endpoint.above and not automatic():
            limits += self._scoped(endpoint.above, route_scope())
        self._enter(limits, incoming)

    def take(self, said: _Said) -> None:
        """Take from the limit of a function that is called."""
        if self._enabled:
            scope = route_scope() if said in self._endpoint().own else said.name
            self._enter(self._scoped([said], scope), Request())

    def _enter(self, limits: Sequence[Scoped], incoming: Request) -> None:
        if not limits:
            return
        environ = incoming.environ
        wsgi.warn_of_processes(environ, limits)
        way: _Way | None = environ.get(self._way)
        if way is None:
            passage: Passage | None = environ.get(wsgi.PASSAGE)
            tells = passage is None
            if passage is None:
                passage = environ[wsgi.PASSAGE] = Passage()
            way = environ[self._way] = _Way(passage, len(passage.acts), tells)
        refusal = finished(way.passage.enter(limits, incoming, self._rules.exempt))
        if refusal is not None:
            kind, body = finished(self._replies.body(refusal, incoming))
            response = self._app.response_class(body, refusal.status, content_type=kind)
            raise ERRORS[refusal.status](refusal, response)

    def leave(self, response: Response) -> Response:
        """Give back what does not count, and tell of the limits."""
        way: _Way | None = request.environ.get(self._way)
        if way is not None:
            if way.passage.pending:
                finished(way.passage.leave(response, way.since))
            told = way.passage.headers(self._replies) if way.tells else []
            if told:
                merged = merge(response.headers, told)
                response.headers.clear()
                response.headers.extend(merged)
        return response

    def abandon(self, error: BaseException | None) -> None:
        """The request is over, and there may have been no response to look at."""
        way: _Way | None = request.environ.get(self._way)
        # An interrupt is no outcome: it stays counted.
        if way is not None and way.passage.pending and isinstance(error, Exception):
            finished(way.passage.leave(self._app.response_class(status=500), way.since))


@contextmanager
def _named(name: str, config: Mapping[str, Any]) -> Generator[None]:
    """Let an error say which configuration it comes of."""
    try:
        yield
    except BaseThrottledError as error:
        if name not in config:
            raise
        raise type(error)(f"{error} It is app.config[{name!r}].") from error


def _store_of(url: object, given: Any) -> Any:
    if url is None:
        return MemoryStore() if given is None else given
    if not isinstance(url, str):
        raise DataError(f"Invalid URL: {shown(url)}, must be such as 'redis://localhost:6379/0'.")
    return RedisStore(server=url)
