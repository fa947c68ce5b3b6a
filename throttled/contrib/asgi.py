"""Limits in front of any ASGI application: Starlette, FastAPI, Litestar, Quart or a plain one.

    app = RateLimitMiddleware(
        app,
        "100/minute",                                         # every request, by client address
        rules={"POST /login": "5/minute", "/admin/*": RateLimit("1/s", key=by_user())},
        exclude=["/health"],
    )

Requests and responses are passed on message by message, so streams stay streams.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping, Sequence
from typing import Any, ClassVar, Final
from urllib.parse import urlsplit

from throttled.contrib.headers import FIELDS, Reset, Response, Style, merge
from throttled.contrib.inbound import Passage, Refusal, Replies
from throttled.contrib.keys import Incoming
from throttled.contrib.limit import BaseRateLimit
from throttled.contrib.rules import Scoped, with_messages
from throttled.store.policy import afinished

__all__ = ["RateLimit", "RateLimitMiddleware", "Request", "Response"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

#: Where in the ASGI scope the `Passage` of a request is.
PASSAGE: Final = "throttled.passage"

_FIELDS: Final = frozenset([name.encode() for name in FIELDS])

# The path template, where Litestar has routed the request.
_TEMPLATE: Final = "path_template"

# What begins a response, and its status where the message does not say it.
_STATUSES: Final = {
    "http.response.start": 200,
    "websocket.http.response.start": 200,
    "websocket.accept": 101,
    "websocket.close": 403,
}

# Close codes of WebSockets: RFC 6455, section 7.4.1, and 1013 of its registry.
_CLOSE_CODES: Final = {429: 1008, 503: 1013, 500: 1011}


class RateLimit(BaseRateLimit):
    """A limit of `RateLimitMiddleware`, where a quota alone does not say enough."""


class Request(Incoming):
    """A request or a WebSocket connection, as functions of `RateLimitMiddleware` are given it."""

    __slots__ = ("scope",)

    def __init__(self, scope: Scope) -> None:
        self.scope = scope

    @property
    def peer(self) -> str | None:
        client = self.scope.get("client")
        return client[0] if client else None

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        found: list[tuple[bytes, bytes]] = self.scope["headers"]
        return found

    @property
    def method(self) -> str:
        # Some servers hand over the method as it came.
        return "WEBSOCKET" if self.scope["type"] == "websocket" else self.scope["method"].upper()

    @property
    def path(self) -> str:
        path: str = self.scope["path"]
        if not path.startswith("/"):
            path = _path_of(path)
        root: str = self.scope.get("root_path", "")
        # With servers of today the path begins with the root path; of older ones, and where
        # Litestar has routed by it, it does not.
        if root and f"{path}/".startswith(f"{root}/") and _TEMPLATE not in self.scope:
            path = path[len(root) :] or "/"
        return path

    @property
    def route(self) -> str:
        return self.scope.get(_TEMPLATE) or super().route

    @property
    def user(self) -> str | None:
        # As Starlette's AuthenticationMiddleware leaves it, if that stands before this one.
        user = self.scope.get("user")
        if user is None or not getattr(user, "is_authenticated", True):
            return None
        if isinstance(user, str):
            return user or None
        for name in ("identity", "id", "username"):
            try:
                found = getattr(user, name, None)
            except NotImplementedError:  # a Starlette user without an identity
                continue
            if found is not None:
                return str(found)
        return None


def _path_of(target: str) -> str:
    """The path of a request target that is a whole URL, or that lacks its first slash: servers let
    both through, and Quart routes them."""
    try:
        return "/" + urlsplit(target).path.lstrip("/")
    except ValueError:
        return target


class RateLimitMiddleware:
    """Limits requests and WebSocket connections; see the top of this module."""

    #: What functions of the application are given, by its `native`.
    _incoming: ClassVar[type[Request]] = Request

    def __init__(
        self,
        app: App,
        limit: Any = None,
        *,
        rules: Mapping[str, Any] | None = None,
        exclude: Iterable[str] = (),
        exempt: Callable[[Request], Any] | None = None,
        messages: Any = None,
        headers: Style | None = "ietf",
        reset: Reset = "delta",
        problem: Callable[[Request, dict[str, Any]], Any] | None = None,
        **defaults: Any,
    ) -> None:
        """
        :param limit: what every request has to pass: a quota ("100/minute"), a `RateLimit`, a
            `throttled.asyncio.Throttled`, or a list of those; None for nothing.
        :param rules: by pattern (`throttled.contrib.rules`), what matching requests have to pass.
        :param exclude: patterns of requests that pass uncounted.
        :param exempt: called with the `Request`, which passes uncounted if it returns true.
        :param messages: what every inbound message of a WebSocket has to pass. One that waits
            (`timeout=`) keeps the client waiting; one that refuses closes the connection.
        :param headers: "ietf", "legacy", "x" or None: see `throttled.contrib.headers`.
        :param reset: for "x": "delta" or "epoch".
        :param problem: called with the `Request` and the problem body; returns what to send.
        :param defaults: what limits made of quotas take besides: `key`, `cost`, `count_when`,
            `store`, `using`, ...; see `RateLimit`. `scope` is that of `limit`.
        :raises DataError: for a wrong argument; the message names it.
        """
        self.app = app
        self._rules, self._messages = with_messages(
            RateLimit, limit, rules, messages, exclude, exempt, defaults
        )
        self._replies = Replies(headers, reset, problem)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        passage: Passage | None = scope.get(PASSAGE)
        if passage is not None:
            await self._pass(scope, receive, send, passage)
            return
        passage = scope[PASSAGE] = Passage()
        send = _telling(send, passage, self._replies)
        rules = self._rules
        try:
            if kind == "http" and rules.exempt is None:
                request = self._incoming(scope)
                if passage.enter_at_once(rules.of(request), request):
                    await self.app(scope, receive, send)
                    return
            await self._pass(scope, receive, send, passage)
        except Exception:
            # Whoever stands outside makes it a 500.
            if passage.pending:
                await afinished(passage.leave(Response(500, ())))
            raise
        finally:
            scope.pop(PASSAGE, None)  # callers may use a scope again, as tests do

    async def _pass(self, scope: Scope, receive: Receive, send: Send, passage: Passage) -> None:
        request = self._incoming(scope)
        limits = self._rules.of(request)
        if limits:
            refusal = await afinished(passage.enter(limits, request, self._rules.exempt))
            if refusal is not None:
                await self._refuse(request, send, refusal)
                return
        if scope["type"] == "websocket":
            limits = self._messages.of(request)
            if limits:
                receive, send = _metered(receive, send, request, limits, self._messages.exempt)
        await self.app(scope, receive, send)

    async def _refuse(self, request: Request, send: Send, refusal: Refusal) -> None:
        kind, body = await afinished(self._replies.body(refusal, request))
        start: dict[str, Any] = {
            "type": "http.response.start",
            "status": refusal.status,
            "headers": [
                (b"content-type", kind.encode("latin-1")),
                (b"content-length", str(len(body)).encode()),
            ],
        }
        answer: list[Message] = [
            start,
            {"type": "http.response.body", "body": body, "more_body": False},
        ]
        if request.scope["type"] == "websocket":
            if "websocket.http.response" in (request.scope.get("extensions") or ()):
                answer = [{**each, "type": f"websocket.{each['type']}"} for each in answer]
            else:
                answer = [_closing(refusal)]
        for message in answer:
            await send(message)


def _telling(send: Send, passage: Passage, replies: Replies) -> Send:
    """A `send` that adds what the response tells of the limits, once it is known what counts."""

    # Most messages go on as they are, without a coroutine of their own.
    def tell(message: Message) -> Awaitable[None]:
        status = _STATUSES.get(message["type"])
        if status is None:
            return send(message)
        if passage.pending:
            return settled(message, status)
        return send(_told(message, passage, replies))

    async def settled(message: Message, status: int) -> None:
        response = Response(message.get("status", status), message.get("headers") or ())
        await afinished(passage.leave(response))
        await send(_told(message, passage, replies))

    return tell


def _told(message: Message, passage: Passage, replies: Replies) -> Message:
    """What begins a response, with the headers of the limits."""
    if message["type"] == "websocket.close":
        return message
    headers = message.get("headers") or ()
    added = passage.encoded(replies)
    for name, _ in headers:
        if name.lower() in _FIELDS:
            added = None  # to be merged
    if added is None:
        told = passage.headers(replies)
        if not told:
            return message
        old = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]
        headers = ()
        added = [
            (name.lower().encode("latin-1"), value.encode("latin-1"))
            for name, value in merge(old, told)
        ]
    return {**message, "headers": [*headers, *added]}


def _metered(
    receive: Receive,
    send: Send,
    request: Request,
    limits: Sequence[Scoped],
    exempt: Callable[[Any], Any] | None,
) -> tuple[Receive, Send]:
    """What receives only messages within the limits, and closes the connection at one beyond."""
    closed: Message | None = None

    async def take() -> Message:
        nonlocal closed
        message = await receive()
        if message["type"] != "websocket.receive":
            return message
        if closed is None:
            refusal = await afinished(Passage().enter(limits, request, exempt))
            if refusal is None:
                return message
            closing = _closing(refusal)
            closed = {"type": "websocket.disconnect", "code": closing["code"], "reason": ""}
            await send(closing)
        return closed

    async def give(message: Message) -> None:
        if closed is None:
            await send(message)
        elif message["type"] != "websocket.close":
            # As from a server whose client has gone; else who only sends would never end.
            raise OSError("The connection is closed: it went beyond its limit.")

    return take, give


def _closing(refusal: Refusal) -> Message:
    # A reason has at most 123 bytes: RFC 6455, section 5.5.
    reason = str(refusal.problem["detail"])[:120]
    return {"type": "websocket.close", "code": _CLOSE_CODES[refusal.status], "reason": reason}
