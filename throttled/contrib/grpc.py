"""Limits in front of a gRPC server, sync or `grpc.aio`: all four kinds of calls.

    server = grpc.server(
        ThreadPoolExecutor(),
        interceptors=[
            RateLimitInterceptor(
                "100/minute",                             # every call, by the client's address
                rules={"/shop.Orders/Create": "5/minute", "/shop.Search/*": "20/second"},
                exclude=["/grpc.health.v1.Health/*"],
            )
        ],
    )

For a server of `grpc.aio`: `AsyncRateLimitInterceptor`. A call beyond a limit ends with
`RESOURCE_EXHAUSTED`, and with `RetryInfo` and `QuotaFailure` of `google.rpc` in its rich status. A
store that cannot decide is `UNAVAILABLE`, a failed function of yours `INTERNAL`.

Theory of operation
-------------------
* Who calls is for the context to say, which only the handler gets. So handlers are wrapped, and
  decide before the application's code runs; of a stream of requests nothing has been read then.
* The headers of limits are trailing metadata: initial metadata is the application's to send, once.
  A sync abort is sent after the handler has ended, so they can be added then. That of `grpc.aio`
  is sent from within, so there the context is one that adds them.
* Interceptors of one call share a `Passage`: a server runs them in a context (`contextvars`) that
  is the call's own. The outermost settles and tells.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import aclosing, asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from inspect import isasyncgenfunction
from math import inf
from typing import Any, ClassVar, Final
from urllib.parse import unquote

import grpc
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from throttled._callables import checked_callable, is_async, name_of
from throttled._text import shown
from throttled.contrib._grpc_contexts import AsyncContext, Metadata, ThreadContext, merged
from throttled.contrib.headers import Header, Reset, Style
from throttled.contrib.inbound import Passage, Refusal, Replies
from throttled.contrib.keys import Incoming
from throttled.contrib.limit import BaseRateLimit
from throttled.contrib.rules import Scoped, with_messages
from throttled.exceptions import DataError
from throttled.store.policy import Flow, afinished, finished

__all__ = [
    "AsyncRateLimit",
    "AsyncRateLimitInterceptor",
    "Call",
    "RateLimit",
    "RateLimitInterceptor",
]

logger = logging.getLogger("throttled")

#: Trailing metadata that holds a `google.rpc.Status`, serialized.
DETAILS: Final = "grpc-status-details-bin"

_CODES: Final = {
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    500: grpc.StatusCode.INTERNAL,
}
_BY_NUMBER: Final[dict[int, grpc.StatusCode]] = {code.value[0]: code for code in grpc.StatusCode}

_PEER: Final = re.compile(r"(?:ipv4:([^:\[\]]+)|ipv6:\[([^\[\]]+)\])(?::\d+)?")
_PART: Final = r"(?:[^/\s{}*]+|\{\w+\})"
_METHOD: Final = re.compile(rf"/\*|/{_PART}/(?:{_PART}|\*)")


# The passage of the call whose interceptors run, with the metadata of that call.
_sharing: ContextVar[tuple[Any, Passage] | None] = ContextVar("throttled_grpc", default=None)

# The code, the message and the trailing metadata with which a call ends.
_Refused = tuple[grpc.StatusCode, str, Metadata]
# What finishes a flow from where the handler runs.
_Drive = Callable[[Flow[Any]], Any]


class RateLimit(BaseRateLimit):
    """A limit of `RateLimitInterceptor`, where a quota alone does not say enough."""

    _asynchronous = False


class AsyncRateLimit(BaseRateLimit):
    """A limit of `AsyncRateLimitInterceptor`, where a quota alone does not say enough."""


class Call(Incoming):
    """A call, as functions of the interceptors are given it."""

    __slots__ = ("_path", "context", "request")

    def __init__(self, path: str, context: Any, request: Any = None) -> None:
        self._path = path
        #: The `ServicerContext`.
        self.context = context
        #: The request message. Of a stream of requests: None, or the message that is limited.
        self.request = request

    def __repr__(self) -> str:
        return f"Call({self._path!r})"

    @property
    def peer(self) -> str | None:
        """The address of the other end; None for one without, such as a Unix socket."""
        match = _PEER.fullmatch(unquote(self.context.peer()))
        return match and (match[1] or match[2])

    @property
    def headers(self) -> list[tuple[str, str | bytes]]:
        """The metadata that the client sent."""
        return [(name, value) for name, value in self.context.invocation_metadata() or ()]

    @property
    def method(self) -> str:
        return "GRPC"

    @property
    def path(self) -> str:
        """The method that is called: `/package.Service/Method`."""
        return self._path

    @property
    def user(self) -> str | None:
        """Whom the client's certificate names, where the server asks for one."""
        identities = [*(self.context.peer_identities() or ())]
        if not identities:
            return None
        first: bytes = identities[0]
        return first.decode("utf-8", "replace")


class _Interceptor:
    """What both flavours share."""

    _kind: ClassVar[type[BaseRateLimit]]

    def __init__(
        self,
        limit: Any = None,
        *,
        rules: Mapping[str, Any] | None = None,
        exclude: Iterable[str] = (),
        exempt: Callable[[Call], Any] | None = None,
        messages: Any = None,
        headers: Style | None = "ietf",
        reset: Reset = "delta",
        status: Callable[[Call, Any], Any] | None = None,
        **defaults: Any,
    ) -> None:
        """
        :param limit: what every call has to pass: a quota ("100/minute"), a `RateLimit` (in
            `grpc.aio` an `AsyncRateLimit`), a `Throttled` of that flavour, or a list of those;
            None for nothing.
        :param rules: what calls of some methods have to pass besides, by pattern:
            "/package.Service/Method" or "/package.Service/*".
        :param exclude: patterns of methods that pass uncounted.
        :param exempt: called with the `Call`, which passes uncounted if it returns true.
        :param messages: what every message of a stream of requests has to pass. One that waits
            (`timeout=`) holds the stream up; one that refuses ends the call.
        :param headers: "ietf", "legacy", "x" or None, as trailing metadata: see
            `throttled.contrib.headers`.
        :param reset: for "x": "delta" or "epoch".
        :param status: called with the `Call` and the `google.rpc.Status` of a refusal; returns the
            one to send.
        :param defaults: what limits made of quotas take besides: `key`, `cost`, `count_when`
            (which is called with the `grpc.StatusCode`), `store`, `using`, ...; see `RateLimit`.
        :raises DataError: for a wrong argument; the message names it.
        """
        kind = self._kind
        exclude = exclude if isinstance(exclude, str) else [*exclude]
        _check_methods(exclude, rules if isinstance(rules, Mapping) else ())
        self._rules, self._messages = with_messages(
            kind, limit, rules, messages, exclude, exempt, defaults
        )
        self._replies = Replies(headers, reset, asynchronous=kind._asynchronous)
        self._status: Any = None
        if status is not None:
            self._status = checked_callable("status", status, kind._asynchronous)

    def _passing(self, details: Any) -> _Passing | None:
        """What takes a call through; None if there is nothing to pass."""
        path: str = details.method
        call = Call(path, None)
        limits, messages = self._rules.of(call), self._messages.of(call)
        if not limits and not messages:
            return None
        metadata = details.invocation_metadata
        shared = _sharing.get()
        # Its metadata tells whose passage it is, should contexts ever be shared by calls.
        outermost = shared is None or shared[0] is not metadata
        if shared is None or outermost:
            shared = (metadata, Passage())
            _sharing.set(shared)
        return _Passing(self, call, shared[1], limits, messages, not outermost)


def _check_methods(*patterns: Iterable[object]) -> None:
    for text in [each for texts in patterns if not isinstance(texts, str) for each in texts]:
        if not isinstance(text, str) or not _METHOD.fullmatch(text.strip()):
            raise DataError(
                f"Invalid pattern: {shown(text)}, must be such as '/package.Service/Method' or "
                f"'/package.Service/*'."
            )


class RateLimitInterceptor(_Interceptor, grpc.ServerInterceptor):
    """Limits the calls of a `grpc.server`; see the top of this module."""

    _kind = RateLimit

    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """See `grpc.ServerInterceptor`."""
        passing = self._passing(handler_call_details)
        handler = continuation(handler_call_details)
        if passing is None or handler is None:
            return handler
        return _wrapped(
            handler,
            passing,
            lambda behavior, streams: passing.blocking(behavior, streams, finished),
        )


class AsyncRateLimitInterceptor(_Interceptor, grpc.aio.ServerInterceptor):
    """Limits the calls of a `grpc.aio.server`; see the top of this module."""

    _kind = AsyncRateLimit

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """See `grpc.aio.ServerInterceptor`."""
        passing = self._passing(handler_call_details)
        handler = await continuation(handler_call_details)
        if passing is None or handler is None:
            return handler
        loop = asyncio.get_running_loop()

        # Plain handlers run in a thread, from where decisions are awaited on the loop.
        def drive(flow: Flow[Any]) -> Any:
            return asyncio.run_coroutine_threadsafe(afinished(flow), loop).result()

        def wrap(behavior: Any, streams: bool) -> Any:
            if is_async(behavior):
                return passing.awaiting(behavior)
            return passing.blocking(behavior, streams, drive, ThreadContext)

        return _wrapped(handler, passing, wrap)


def _wrapped(handler: Any, passing: _Passing, wrap: Callable[[Any, bool], Any]) -> Any:
    """The handler with its one behavior wrapped."""
    passing.reads = handler.request_streaming
    kinds = (handler.request_streaming, handler.response_streaming)
    name = "_".join(["stream" if streams else "unary" for streams in kinds])
    make: Any = getattr(grpc, f"{name}_rpc_method_handler")
    return make(
        wrap(getattr(handler, name), handler.response_streaming),
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )


@dataclass(eq=False, slots=True)
class _Passing:
    """One call on its way through one interceptor."""

    _interceptor: _Interceptor
    _call: Call
    _passage: Passage
    _limits: Sequence[Scoped]
    _messages: Sequence[Scoped]
    # Who is not outermost leaves settling and telling to who is.
    _left: bool
    #: Whether requests are a stream.
    reads: bool = False

    def enter(self, request: Any, context: Any) -> Flow[_Refused | None]:
        """Take what the call costs, or say how it ends."""
        self._call = Call(self._call.path, context, None if self.reads else request)
        exempt = self._interceptor._rules.exempt
        refusal = yield from self._passage.enter(self._limits, self._call, exempt)
        return refusal and (yield from self._refused(refusal, []))

    def message(self, message: Any) -> Flow[_Refused | None]:
        """Take what a message of a stream costs, or say how the call ends."""
        passage = Passage()
        call = Call(self._call.path, self._call.context, message)
        exempt = self._interceptor._messages.exempt
        refusal = yield from passage.enter(self._messages, call, exempt)
        if refusal is None:
            return None
        return (yield from self._refused(refusal, passage.headers(self._interceptor._replies)))

    def _refused(self, refusal: Refusal, told: list[Header]) -> Flow[_Refused]:
        status = _status(refusal)
        function = self._interceptor._status
        if function is not None:
            try:
                replaced: Any = yield function(self._call, status)
                if not isinstance(replaced, status_pb2.Status) or not _BY_NUMBER.get(replaced.code):
                    raise TypeError(f"returned {shown(replaced)}")
                status = replaced
            except Exception as error:
                name = name_of(function)
                why = "Status function %s failed; it must return a google.rpc.Status"
                logger.error(why, name, exc_info=error)
        trailing = merged(((DETAILS, status.SerializeToString()),), told)
        return _BY_NUMBER[status.code], status.message, trailing

    def leave(self, context: Any, code: grpc.StatusCode | None = None) -> Flow[None]:
        """Give back what does not count by its code, and tell of the limits."""
        if self._left:
            return
        self._left = True
        if self._passage.pending and self._passage.refusal is None and not _gone(context):
            yield from self._passage.leave(code or _code_of(context) or grpc.StatusCode.OK)
        told = self._passage.headers(self._interceptor._replies)
        if told:
            context.set_trailing_metadata(merged(context.trailing_metadata() or (), told))

    def fail(self, context: Any) -> Flow[None]:
        """The same where the handler raised."""
        yield from self.leave(context, _code_of(context) or grpc.StatusCode.UNKNOWN)

    async def read(self, message: Any, context: Any) -> None:
        """Take what a message costs that a handler of `grpc.aio` has read, or abort."""
        if self._meters and message is not grpc.aio.EOF:
            await _aend(await afinished(self.message(message)), context)

    @property
    def _meters(self) -> bool:
        return self.reads and bool(self._messages)

    def blocking(self, behavior: Any, streams: bool, drive: _Drive, proxy: Any = None) -> Any:
        """A plain handler, which answers with an iterator if it `streams`."""

        def admitted(request: Any, context: Any) -> Any:
            _end(drive(self.enter(request, context)), context)
            return metered(request, context) if self._meters else request

        def metered(requests: Iterator[Any], context: Any) -> Iterator[Any]:
            for message in requests:
                _end(drive(self.message(message)), context)
                yield message

        @contextmanager
        def passing(context: Any) -> Generator[Any, None, None]:
            context = proxy(context, self, drive) if proxy else context
            try:
                yield context
            except Exception:
                drive(self.fail(context))
                raise
            drive(self.leave(context))

        @wraps(behavior)
        def unary(request: Any, context: Any) -> Any:
            with passing(context) as context:
                return behavior(admitted(request, context), context)

        # `grpc.aio` calls what answers with an iterator on its loop, where it must not wait, and
        # iterates in a thread; so all happens when it is iterated.
        @wraps(behavior)
        def stream(request: Any, context: Any) -> Iterator[Any]:
            with passing(context) as context:
                yield from behavior(admitted(request, context), context)

        return stream if streams else unary

    def awaiting(self, behavior: Any) -> Any:
        """A handler of `grpc.aio`, wrapped as what it is: an asynchronous generator or not."""

        async def admitted(request: Any, context: Any) -> Any:
            await _aend(await afinished(self.enter(request, context)), context)
            return metered(request, context) if self._meters else request

        async def metered(requests: AsyncIterator[Any], context: Any) -> Any:
            async for message in requests:
                await self.read(message, context)
                yield message

        @asynccontextmanager
        async def passing(context: Any) -> AsyncGenerator[Any, None]:
            context = AsyncContext(context, self)
            try:
                yield context
            except Exception:
                await afinished(self.fail(context))
                raise
            if self.reads and self._passage.pending:
                await asyncio.sleep(0)  # a stream that is cancelled ends first, then cancels this
            await afinished(self.leave(context))

        @wraps(behavior)
        async def call(request: Any, context: Any) -> Any:
            async with passing(context) as context:
                return await behavior(await admitted(request, context), context)

        @wraps(behavior)
        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            async with passing(context) as context:
                request = await admitted(request, context)
                async with aclosing(behavior(request, context)) as responses:
                    async for response in responses:
                        yield response

        return stream if isasyncgenfunction(behavior) else call


def _end(refused: _Refused | None, context: Any) -> None:
    if refused is not None:
        code, message, trailing = refused
        context.set_trailing_metadata(trailing)
        context.abort(code, message)


async def _aend(refused: _Refused | None, context: Any) -> None:
    if refused is not None:
        await context.abort(*refused)


def _code_of(context: Any) -> grpc.StatusCode | None:
    """What the application set; None if it has left that alone."""
    code = context.code()
    return _BY_NUMBER.get(code) if isinstance(code, int) and code else code or None


def _gone(context: Any) -> bool:
    """Whether the client has cancelled: what would have come of the call, nobody knows then."""
    # In `grpc.aio` the handler is cancelled instead.
    return hasattr(context, "is_active") and not context.is_active()


def _status(refusal: Refusal) -> Any:
    """The `google.rpc.Status` of a refusal."""
    code: int = _CODES[refusal.status].value[0]
    status = status_pb2.Status(code=code, message=refusal.problem["detail"])
    if refusal.retry_after < inf:
        retry = error_details_pb2.RetryInfo()
        # Decisions are whole microseconds: one less, and the call does not fit.
        seconds, rest = divmod(round(refusal.retry_after * 1e6), 10**6)
        retry.retry_delay.seconds, retry.retry_delay.nanos = seconds, rest * 1000
        status.details.add().Pack(retry)
    names = refusal.problem.get("violated-policies")
    if names and refusal.result is not None:
        failure = error_details_pb2.QuotaFailure()
        states = zip(refusal.result.rules, refusal.result.states, strict=True)
        rules = [rule for rule, state in states if state.retry_after > 0]
        for name, rule in zip(names, rules, strict=True):
            # The subject would be the caller's key, which is nobody's to see.
            failure.violations.add(
                quota_id=name, quota_value=rule.quota.limit, description=status.message
            )
        status.details.add().Pack(failure)
    return status
