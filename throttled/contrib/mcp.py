"""Limits in front of the tools of an MCP server: the `mcp` package, from version 2 on.

    server = MCPServer("shop")
    limit_tools(server, "30/minute", rules={"search": "5/minute"})    # every session

    @server.tool()
    @RateLimit("100/hour", cost=lambda call: call.arguments["pages"])
    async def crawl(url: str, pages: int) -> str: ...

A call beyond a limit is answered with a tool error, which models read: "Too many requests. Try
again in 12 seconds." Programs find the problem in `_meta["throttled/problem"]`. It is not
structured content: that has to be what the tool's output schema says, and clients check it.

Limits count by session unless told otherwise: see `by_session`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from functools import wraps
from typing import Any, Final, TypeVar, cast
from uuid import uuid4

import anyio.from_thread
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import principal_components
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.utilities.context_injection import find_context_parameter
from mcp_types import CallToolResult, TextContent
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from throttled._callables import is_async, name_of
from throttled._text import shown
from throttled.contrib import asgi
from throttled.contrib.identity import join
from throttled.contrib.inbound import Passage, Refusal
from throttled.contrib.keys import By, Incoming, Key, _Otherwise, by_user
from throttled.contrib.limit import BaseRateLimit
from throttled.contrib.rules import Rules, Scoped, check_apart, check_used
from throttled.exceptions import DataError
from throttled.store.policy import afinished

__all__ = ["Outcome", "RateLimit", "ToolCall", "by_session", "limit_tools"]

F = TypeVar("F", bound=Callable[..., Any])

#: Where in the `_meta` of a refused result its problem is.
PROBLEM: Final = "throttled/problem"

# The session of calls that come over a pipe, which has one client.
_PIPE: Final = "pipe"
_TOKEN: Final = "throttled.session"

# By what name a tool that does not ask for the context is given it.
_PARAMETER: Final = "throttled_context"

# The request that a middleware has let in, with its passage for the tool's own limits.
_sharing: ContextVar[tuple[Any, Passage] | None] = ContextVar("throttled_mcp", default=None)


class ToolCall(Incoming):
    """A call of a tool, as functions of limits are given it."""

    __slots__ = ("arguments", "context", "name")

    def __init__(self, name: str, arguments: Mapping[str, Any], context: Any) -> None:
        #: The name of the tool.
        self.name = name
        #: Its arguments: in a decorator as the function gets them, else as they came.
        self.arguments = arguments
        #: The `ServerRequestContext`.
        self.context: ServerRequestContext[Any, Any] = context

    def __repr__(self) -> str:
        return f"ToolCall({self.name!r})"

    @property
    def _http(self) -> asgi.Request | None:
        request: Any = self.context.request
        return None if request is None else asgi.Request(request.scope)

    @property
    def peer(self) -> str | None:
        return self._http.peer if self._http else None

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return self._http.headers if self._http else []

    @property
    def method(self) -> str:
        return "MCP"

    @property
    def path(self) -> str:
        return f"/{self.name}"

    @property
    def user(self) -> str | None:
        """Whom the access token names, or who is logged in to the HTTP application."""
        if self._http is None:
            return None
        user = self._http.scope.get("user")
        if isinstance(user, AuthenticatedUser):
            return join(*[part or "" for part in principal_components(user.access_token)])
        return self._http.user

    @property
    def session(self) -> str | None:
        """The session; None for HTTP without sessions, where each request stands alone."""
        connection = self.context.session._connection
        if connection.session_id is not None:
            return connection.session_id
        # Connections of these live as long as one request.
        if connection.protocol_version in MODERN_PROTOCOL_VERSIONS:
            return _PIPE if self.context.request is None else None
        if not connection.has_standalone_channel:
            return None
        token: str = connection.state.setdefault(_TOKEN, uuid4().hex)
        return token


class _Session(_Otherwise):
    __slots__ = ()

    def __repr__(self) -> str:
        return "by_session()"

    def _of(self, request: Incoming) -> str | None:
        return request.session if isinstance(request, ToolCall) else None


def by_session(*, otherwise: Key | None = None) -> By:
    """Count by session. What comes over a pipe, such as stdio, is one.

    HTTP without sessions (`stateless_http=True`, and the protocol from 2026-07-28 on) counts by
    `otherwise`, by default the user, or the client's address if nobody is logged in. Note that a
    client may open as many sessions as it likes, each with a limit of its own: where clients are
    not to be trusted, count by user or address.
    """
    return _Session(by_user() if otherwise is None else otherwise)


class Outcome:
    """How a call came out, as `count_when` is given it."""

    __slots__ = ("is_error", "result")

    def __init__(self, is_error: bool, result: Any = None) -> None:
        #: Whether it failed: the tool raised, or said so in its result.
        self.is_error = is_error
        #: What the tool returned; with `limit_tools` the result as it is sent.
        self.result = result


class RateLimit(BaseRateLimit):
    """A limit of tools; also a decorator of a tool's function, sync or async.

    It goes below `@server.tool()`. What the model sees of the tool stays as it is, and a call whose
    arguments are refused does not count. Called by other than a client's request, the function is
    not limited.
    """

    def __init__(self, limit: Any, *, key: Key | None = None, **options: Any) -> None:
        """
        :param limit: a quota ("10/minute"), or a `throttled.asyncio.Throttled`.
        :param key: whom it counts, by default `by_session()`.
        :param options: see `BaseRateLimit`. Functions are given a `ToolCall`, `count_when` an
            `Outcome`. The scope is by default the name of the function.
        :raises DataError: for a bad argument; the message names it.
        """
        super().__init__(limit, key=by_session() if key is None else key, **options)

    def __call__(self, function: F) -> F:
        """Limit a tool by this too; `DataError` for what is no function."""
        if not inspect.isroutine(function) or _generates(function):
            raise DataError(
                f"Invalid tool: {shown(function)}, must be a function; decorate it before "
                f"`@server.tool()` does, which stands above."
            )
        # Decorators one above the other are one, so that they take all or nothing.
        plain = getattr(function, "throttled_tool", function)
        scope = getattr(plain, "__name__", name_of(plain))
        limits: list[Scoped] = [(self, scope), *getattr(function, "throttled_limits", ())]
        check_apart(limits)
        made: Any = _limited(plain, limits, scope)
        made.throttled_tool, made.throttled_limits = plain, limits
        return cast("F", made)


def _generates(function: Any) -> bool:
    return inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)


def _limited(function: Any, limits: list[Scoped], name: str) -> Any:
    own = find_context_parameter(function)

    def begun(arguments: dict[str, Any]) -> _Entry | None:
        context = arguments.get(own) if own else arguments.pop(_PARAMETER, None)
        if not isinstance(context, Context) or context._request_context is None:
            return None
        rest = {key: value for key, value in arguments.items() if key != own}
        return _Entry(limits, ToolCall(name, rest, context.request_context))

    @wraps(function)
    async def acall(*args: Any, **kwargs: Any) -> Any:
        entry = begun(kwargs)
        if entry is None:
            return await function(*args, **kwargs)
        refused = await entry.enter()
        if refused is not None:
            return refused
        try:
            result = await function(*args, **kwargs)
        except Exception:
            await entry.leave(Outcome(True))
            raise
        await entry.leave(_outcome(result))
        return result

    # Servers run plain tools in a thread, from where decisions are awaited on their loop.
    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        entry = begun(kwargs)
        if entry is None:
            return function(*args, **kwargs)
        refused = anyio.from_thread.run(entry.enter)
        if refused is not None:
            return refused
        try:
            result = function(*args, **kwargs)
        except Exception:
            anyio.from_thread.run(entry.leave, Outcome(True))
            raise
        anyio.from_thread.run(entry.leave, _outcome(result))
        return result

    made: Any = acall if is_async(function) else call
    if own is None:
        # A parameter of this type is the server's to fill, and no part of the tool's schema.
        # With annotations as what they mean here: servers take those of this signature as they are.
        signature = inspect.signature(function, eval_str=True)
        parameters = [*signature.parameters.values()]
        hidden = inspect.Parameter(
            _PARAMETER, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Context
        )
        at = len(parameters) - (parameters[-1:] != [] and parameters[-1].kind == hidden.VAR_KEYWORD)
        parameters.insert(at, hidden)
        made.__signature__ = signature.replace(parameters=parameters)
        made.__annotations__ = {**function.__annotations__, _PARAMETER: Context}
    return made


class _Entry:
    """A call that is to pass limits of its tool."""

    def __init__(self, limits: list[Scoped], call: ToolCall) -> None:
        self._limits = limits
        self._call = call
        shared = _sharing.get()
        self._inner = shared is not None and shared[0] is call.context
        self._passage = shared[1] if shared is not None and self._inner else Passage()
        # Tools that this one calls are calls of their own.
        _sharing.set(None)

    async def enter(self) -> CallToolResult | None:
        refusal = await afinished(self._passage.enter(self._limits, self._call))
        return None if refusal is None else _refused(refusal)

    async def leave(self, outcome: Outcome) -> None:
        if not self._inner and self._passage.pending:
            await afinished(self._passage.leave(outcome))


def limit_tools(
    server: Any,
    limit: Any = None,
    *,
    rules: Mapping[str, Any] | None = None,
    exclude: Iterable[str] = (),
    exempt: Callable[[ToolCall], Any] | None = None,
    **defaults: Any,
) -> None:
    """Limit all tools of a server, those that are added later included.

    :param server: an `MCPServer`, or a low-level `Server`.
    :param limit: what every call has to pass: a quota ("30/minute"), a `RateLimit`, a
        `throttled.asyncio.Throttled`, or a list of those; None for nothing. It counts all tools
        together; with `key=combined(by_session(), by_route())` each by itself.
    :param rules: by the name of a tool, what calls of it have to pass besides; "admin/*" means all
        names that begin with "admin/".
    :param exclude: names of tools that pass uncounted.
    :param exempt: called with the `ToolCall`, which passes uncounted if it returns true.
    :param defaults: what limits made of quotas take besides: `key`, `cost`, `count_when`, `store`,
        `using`, ...; see `RateLimit`.
    :raises DataError: for a wrong argument; the message names it.
    """
    middleware = getattr(server, "middleware", None)
    if not isinstance(middleware, list):
        raise DataError(f"Invalid server: {shown(server)}, must be an MCPServer or a Server.")
    if isinstance(rules, Mapping):
        rules = dict(zip(_paths("rules", rules), rules.values(), strict=True))
    if not isinstance(exclude, str | bytes) and isinstance(exclude, Iterable):
        exclude = _paths("exclude", exclude)
    made = Rules(RateLimit, limit, rules, exclude, exempt, **defaults)
    check_used(set(defaults) - {"scope"}, made)

    async def limiting(context: ServerRequestContext[Any, Any], call_next: CallNext) -> Any:
        name = (context.params or {}).get("name")
        if context.method != "tools/call" or not isinstance(name, str):
            return await call_next(context)
        return await _through(made, name, context, call_next)

    middleware.append(limiting)


def _paths(what: str, names: Iterable[object]) -> list[str]:
    paths: list[str] = []
    for name in names:
        if not isinstance(name, str) or not name or name[0] == "/" or name.split() != [name]:
            raise DataError(f"Invalid {what}: {shown(name)}, must be the name of a tool.")
        paths.append(f"/{name}")
    return paths


async def _through(
    rules: Rules, name: str, context: ServerRequestContext[Any, Any], call_next: CallNext
) -> HandlerResult:
    arguments: Any = (context.params or {}).get("arguments")
    call = ToolCall(name, arguments if isinstance(arguments, Mapping) else {}, context)
    shared = _sharing.get()
    outermost = shared is None or shared[0] is not context
    passage = Passage() if shared is None or outermost else shared[1]
    refusal = await afinished(passage.enter(rules.of(call), call, rules.exempt))
    if refusal is not None:
        return _refused(refusal)
    before = _sharing.set((context, passage))
    try:
        result = await call_next(context)
    except Exception:
        if outermost and passage.pending:
            await afinished(passage.leave(Outcome(True)))
        raise
    finally:
        _sharing.reset(before)
    if outermost and passage.pending:
        await afinished(passage.leave(_outcome(result)))
    return result


def _outcome(result: Any) -> Outcome:
    if isinstance(result, CallToolResult):
        return Outcome(result.is_error, result)
    return Outcome(isinstance(result, dict) and result.get("isError") is True, result)


def _refused(refusal: Refusal) -> CallToolResult:
    """A tool error: what is no error of the protocol is shown to the model."""
    text = TextContent(type="text", text=refusal.problem["detail"])
    return CallToolResult(content=[text], is_error=True, _meta={PROBLEM: refusal.problem})
