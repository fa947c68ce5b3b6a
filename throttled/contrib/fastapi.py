"""Limits in FastAPI: dependencies of routes, routers and the application, and a decorator.

    app = FastAPI()
    install(app, "1000/hour")                               # every request, by client address


    @app.get("/items/{id}", dependencies=[Depends(RateLimit("10/minute"))])
    async def item(id: int) -> Item: ...


    @app.post("/login")
    @RateLimit("5/minute", count_when=lambda response: response.status_code == 401)
    def login(form: Form) -> Token: ...

The decorator adds the dependency, so it stands below that of the route. `install` is needed for
`count_when`, for headers on responses that a route makes itself, and for the problem body; limits
hold without it.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import re
import sys
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextlib import aclosing
from functools import wraps
from typing import Annotated, Any, ClassVar, Final, TypeVar, overload
from weakref import WeakKeyDictionary, WeakSet, finalize

from anyio import from_thread, get_current_task
from fastapi import Depends, FastAPI, HTTPException, WebSocketException
from starlette.requests import HTTPConnection
from starlette.requests import Request as StarletteRequest
from starlette.responses import Response
from starlette.routing import compile_path

from throttled._callables import name_of
from throttled._text import shown
from throttled.contrib import asgi
from throttled.contrib._fastapi import document, routes_of
from throttled.contrib.asgi import PASSAGE, RateLimitMiddleware
from throttled.contrib.headers import Reset, Style
from throttled.contrib.inbound import Passage, Refusal, Replies
from throttled.contrib.limit import BaseRateLimit, FaultError
from throttled.exceptions import DataError
from throttled.result import RateLimitResult
from throttled.store.policy import afinished

__all__ = ["RateLimit", "RateLimitedError", "install"]

F = TypeVar("F", bound=Callable[..., Any])

logger = logging.getLogger("throttled")


class RateLimitedError(HTTPException):
    """What a `RateLimit` raises for a request that goes no further; `install` answers it."""

    def __init__(self, refusal: Refusal, headers: dict[str, str] | None = None) -> None:
        super().__init__(refusal.status, refusal.problem, headers)
        #: Why: its `status`, `problem`, `retry_after` and `result`.
        self.refusal = refusal


class Request(asgi.Request):
    """A request or a WebSocket connection; functions of the application are given Starlette's."""

    __slots__ = ("_connection",)

    def __init__(self, scope: asgi.Scope, connection: HTTPConnection | None = None) -> None:
        super().__init__(scope)
        self._connection = connection

    @property
    def native(self) -> HTTPConnection:
        if self._connection is None:
            kind = StarletteRequest if self.scope["type"] == "http" else HTTPConnection
            self._connection = kind(self.scope)
        return self._connection

    @property
    def route(self) -> str:
        route = _route(self.scope)
        return super().route if route is None else _mounted(self.scope) + route.path_format

    @property
    def counted(self) -> str:
        """The scope in which a limit counts that has none of its own: methods and template."""
        route = _route(self.scope)
        if route is None:  # static files, which may have any path
            return _mounted(self.scope) + "/*"
        methods = getattr(route, "methods", None) or ["WEBSOCKET"]
        return f"{'|'.join(sorted(methods))} {self.route}"


def _route(scope: asgi.Scope) -> Any:
    """The route that a request has come to, by its whole path; None if that is not known."""
    route = scope.get("route")
    # What a router includes knows the path that it has there; the rest is in its context.
    context = scope.get("fastapi", {}).get("effective_route_context")
    if context is not None and context.original_route is route:
        return context
    return route


def _mounted(scope: asgi.Scope) -> str:
    """The path template under which the application is mounted in another one.

    The path itself would not do: what stands in it for a parameter is the caller's to choose.
    """
    outer = scope.get("app_root_path")
    if outer is None:
        return ""
    path = scope.get("root_path", "").removeprefix(outer)
    router = scope["router"]  # the outermost one
    found = _matching(path, _mounts.get(id(router), []))
    if found is None:  # it may have come since the last time
        found = _matching(path, _mounts_of(router))
    return "/*" if found is None else found


_Mounts = list[tuple[str, re.Pattern[str]]]
# What is mounted below a router, by the router's id: it has no hash.
_mounts: Final[dict[int, _Mounts]] = {}


def _matching(path: str, mounts: _Mounts) -> str | None:
    return next((template for template, pattern in mounts if pattern.match(path)), None)


def _mounts_of(router: Any) -> _Mounts:
    """The templates of all that is mounted below a router, and what they match."""
    found: _Mounts = []

    def collect(routes: Any, prefix: str, expression: str) -> None:
        for route in routes_of(routes):
            below = getattr(route, "routes", None)
            if below is None:
                continue
            pattern, template, _ = compile_path(getattr(route, "path", ""))
            # Without the names of groups: several parts of a path may have a parameter of one name.
            whole = expression + re.sub(r"\?P<\w+>", "", pattern.pattern[1:-1])
            found.append((prefix + template, re.compile(whole + r"\Z")))
            collect(below, prefix + template, whole)

    collect(router.routes, "", "")
    if id(router) not in _mounts:
        finalize(router, _mounts.pop, id(router), None)
    _mounts[id(router)] = found
    return found


# The passages of requests that no middleware watches, by Starlette's request.
_alone: Final[WeakKeyDictionary[HTTPConnection, Passage]] = WeakKeyDictionary()

_REPLIES: Final = Replies()


def _seen_as(model: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[[F], F]:
    """Let a method be taken for an async one by who looks before he calls it, as FastAPI does."""

    def mark(function: F) -> F:
        marked: Any = function
        marked.__signature__ = inspect.signature(model, eval_str=True)
        if sys.version_info >= (3, 12):
            inspect.markcoroutinefunction(marked)
        else:
            marked._is_coroutine = getattr(asyncio.coroutines, "_is_coroutine")  # noqa: B009
        return function

    return mark


class RateLimit(BaseRateLimit):
    """A limit: `Depends(RateLimit("10/minute"))`, or a decorator of a path function.

    As a dependency of a router or the application it counts each route by itself; with a `scope`
    they count together. A request counts once, however many layers name the same limit. It is what
    `app.dependency_overrides` knows it by. The dependency's value is the `RateLimitResult`, or None
    for a request that is exempt or was counted already.
    """

    async def _passed(
        self, connection: HTTPConnection, response: Response
    ) -> RateLimitResult | None:
        scope = connection.scope
        passage: Passage | None = scope.get(PASSAGE)
        watched = passage is not None
        if passage is None:
            passage = _alone.setdefault(connection, Passage())
        request = Request(scope, connection)
        before = len(passage.acts)
        limits = [(self, request.counted)]
        refusal = None
        if not passage.enter_at_once(limits, request):
            refusal = await afinished(passage.enter(limits, request))
        told = {} if watched else dict(passage.headers(_REPLIES))
        if refusal is None:
            response.headers.update(told)
            return passage.acts[-1].result if len(passage.acts) > before else None
        if scope["type"] == "websocket" and not _answerable(scope):
            closing = asgi._closing(refusal)
            raise WebSocketException(closing["code"], closing["reason"])
        raise RateLimitedError(refusal, told or None)

    @overload
    def __call__(
        self, connection: HTTPConnection, response: Response, /
    ) -> Coroutine[Any, Any, RateLimitResult | None]: ...
    @overload
    def __call__(self, function: F, /) -> F: ...

    @_seen_as(_passed)
    def __call__(self, connection: Any, response: Any = None) -> Any:
        if not isinstance(connection, HTTPConnection):
            return _limited(connection, self)
        if _in_a_thread():  # there are FastAPIs that do not see the mark
            return from_thread.run(self._passed, connection, response)
        return self._passed(connection, response)

    def at_hand(self, request: Any, scope: str) -> Any:
        if self.count_when is not None and PASSAGE not in request.scope:
            raise FaultError(
                "count_when",
                self.count_when,
                "would never be called: say throttled.contrib.fastapi.install(app)",
            )
        return super().at_hand(request, scope)


def _in_a_thread() -> bool:
    """Whether no event loop runs here."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        try:
            get_current_task()  # trio's, which takes longer to ask for
        except RuntimeError:
            return True
    return False


def _answerable(scope: asgi.Scope) -> bool:
    """Whether a WebSocket connection can be refused by an HTTP response."""
    return "websocket.http.response" in (scope.get("extensions") or ())


# -- the decorator --------------------------------------------------------------------------------


_ABOVE: Final = (
    "TH007: the route %s calls %s without the RateLimit that decorates it: the decorator has to "
    "stand below that of the route."
)
# What was decorated, without the limit.
_decorated: Final[WeakSet[Any]] = WeakSet()


def _limited(function: Any, limit: RateLimit) -> Any:
    """The path function with one dependency more, in a parameter that it is not given itself."""
    if not callable(function) or inspect.isclass(function):
        raise DataError(f"Invalid use of RateLimit: it decorates functions, not {shown(function)}.")
    try:
        signature = inspect.signature(function, eval_str=True)
    except NameError:  # names for type checkers alone, which FastAPI does not need
        signature = inspect.signature(function)
    parameters = list(signature.parameters.values())
    name = f"_throttled_{sum(each.name.startswith('_throttled_') for each in parameters)}"
    hidden = inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[Any, Depends(limit)]
    )
    rest = [each for each in parameters if each.kind is inspect.Parameter.VAR_KEYWORD]
    if inspect.isfunction(function):
        _decorated.add(function)
    wrapper = _without(name, function)
    wrapper.__signature__ = signature.replace(
        parameters=[*parameters[: len(parameters) - len(rest)], hidden, *rest]
    )
    return wrapper


def _without(name: str, function: Any) -> Any:
    """The function, of the same kind, called without a parameter."""
    if inspect.isasyncgenfunction(function):

        @wraps(function)
        async def aiterate(*args: Any, **kwargs: Any) -> Any:
            kwargs.pop(name, None)
            async with aclosing(function(*args, **kwargs)) as items:
                async for item in items:
                    yield item

        return aiterate
    if inspect.iscoroutinefunction(function):

        @wraps(function)
        async def acall(*args: Any, **kwargs: Any) -> Any:
            kwargs.pop(name, None)
            return await function(*args, **kwargs)

        return acall
    if inspect.isgeneratorfunction(function):

        @wraps(function)
        def iterate(*args: Any, **kwargs: Any) -> Any:
            kwargs.pop(name, None)
            return (yield from function(*args, **kwargs))

        return iterate

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        kwargs.pop(name, None)
        return function(*args, **kwargs)

    return call


# -- the application ------------------------------------------------------------------------------


class _Middleware(RateLimitMiddleware):
    """The middleware of `install`."""

    _incoming: ClassVar[type[asgi.Request]] = Request


def install(
    app: FastAPI,
    limit: Any = None,
    *,
    rules: Mapping[str, Any] | None = None,
    exclude: Iterable[str] = (),
    exempt: Callable[[Any], Any] | None = None,
    messages: Any = None,
    headers: Style | None = "ietf",
    reset: Reset = "delta",
    problem: Callable[[Any, dict[str, Any]], Any] | None = None,
    **defaults: Any,
) -> None:
    """Put a `RateLimitMiddleware` before an application, answer refusals, document them.

    The parameters are those of `throttled.contrib.asgi.RateLimitMiddleware`; functions are given
    Starlette's request. Where the application has a handler for `RateLimitedError`, or gets one, it
    stays in its place. An `app.openapi` of the application's own has to be set before.

    :raises DataError: for a wrong argument; the message names it.
    """
    middleware = _Middleware(
        app,
        limit,
        rules={} if rules is None else rules,  # those of routes may be all the limits there are
        exclude=exclude,
        exempt=exempt,
        messages=messages,
        headers=headers,
        reset=reset,
        problem=problem,
        **defaults,
    )
    app.add_middleware(_placed, middleware=middleware, owner=app)
    app.exception_handlers.setdefault(RateLimitedError, _answering(middleware._replies))
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        schema = describe()
        document(app, schema, middleware)
        return schema

    app.openapi = openapi  # type: ignore[method-assign]


def _placed(app: Any, middleware: _Middleware, owner: FastAPI) -> _Middleware:
    """The middleware, which was made before so that what is wrong was said at once."""
    middleware.app = app
    for route in routes_of(owner.routes):
        endpoint = getattr(route, "endpoint", None)
        if inspect.isfunction(endpoint) and endpoint in _decorated:
            logger.warning(_ABOVE, route.path, name_of(endpoint))
    return middleware


def _answering(replies: Replies) -> Callable[[Any, Any], Coroutine[Any, Any, Response]]:
    """The handler of what limits raise."""

    async def answer(connection: HTTPConnection, error: RateLimitedError) -> Response:
        scope = connection.scope
        kind, body = await afinished(replies.body(error.refusal, Request(scope, connection)))
        return Response(body, error.status_code, {"content-type": kind})

    return answer
