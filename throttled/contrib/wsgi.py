"""Limits in front of any WSGI application: Flask, Bottle, Pyramid, or a plain one.

    app = RateLimitMiddleware(
        app,
        "100/minute",                                         # every request, by client address
        rules={"POST /login": "5/minute", "/admin/*": RateLimit("1/s", key=by_user())},
        exclude=["/health"],
    )

What the application returns is passed on as it is, so streams and files of the server stay those.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from throttled.contrib.headers import Reset, Response, Style, merge
from throttled.contrib.inbound import Passage, Refusal, Replies
from throttled.contrib.keys import Incoming
from throttled.contrib.limit import BaseRateLimit
from throttled.contrib.misuse import warn_of_workers
from throttled.contrib.rules import Rules, Scoped, check_used
from throttled.exceptions import DataError
from throttled.store.policy import finished

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["RateLimit", "RateLimitMiddleware", "Request", "Response"]

#: Where in the WSGI environment the `Passage` of a request is.
PASSAGE: Final = "throttled.passage"

_REASONS: Final = {
    429: "Too Many Requests",
    500: "Internal Server Error",
    503: "Service Unavailable",
}

# Headers that stand in the environment under their plain names.
_PLAIN: Final = ("CONTENT_TYPE", "CONTENT_LENGTH")
_FORWARDED: Final = ("HTTP_X_FORWARDED_FOR", "HTTP_FORWARDED")
# Where Werkzeug's ProxyFix leaves what it has replaced.
_UNFIXED: Final = "werkzeug.proxy_fix.orig"


class RateLimit(BaseRateLimit):
    """A limit of `RateLimitMiddleware`, where a quota alone does not say enough."""

    _asynchronous = False


class Request(Incoming):
    """A request, as functions of `RateLimitMiddleware` are given it."""

    __slots__ = ("environ",)

    def __init__(self, environ: WSGIEnvironment) -> None:
        self.environ = environ

    @property
    def peer(self) -> str | None:
        # Empty over a Unix socket.
        return self.environ.get("REMOTE_ADDR") or None

    @property
    def headers(self) -> list[tuple[str, str]]:
        hidden = _FORWARDED if _fixed(self.environ) else ()
        return [
            (name.removeprefix("HTTP_").replace("_", "-"), value)
            for name, value in self.environ.items()
            if (name.startswith("HTTP_") or name in _PLAIN) and name not in hidden
        ]

    @property
    def method(self) -> str:
        # Frameworks take "post" for POST.
        return str(self.environ["REQUEST_METHOD"]).upper()

    @property
    def path(self) -> str:
        # Bytes of the path stand as characters of Latin-1: PEP 3333.
        path: str = self.environ.get("PATH_INFO") or "/"
        return path.encode("latin-1", "replace").decode("utf-8", "replace")

    @property
    def user(self) -> str | None:
        return self.environ.get("REMOTE_USER") or None


def _fixed(environ: WSGIEnvironment) -> bool:
    """Whether the peer's address is what ProxyFix has read from the forwarded headers.

    Then these are used up: read again, from the client on, they would be what the client wrote.
    """
    original: Any = environ.get(_UNFIXED)
    return bool(original) and original.get("REMOTE_ADDR") != environ.get("REMOTE_ADDR")


class RateLimitMiddleware:
    """Limits requests; see the top of this module."""

    def __init__(
        self,
        app: WSGIApplication,
        limit: Any = None,
        *,
        rules: Mapping[str, Any] | None = None,
        exclude: Iterable[str] = (),
        exempt: Callable[[Request], Any] | None = None,
        headers: Style | None = "ietf",
        reset: Reset = "delta",
        problem: Callable[[Request, dict[str, Any]], Any] | None = None,
        **defaults: Any,
    ) -> None:
        """
        :param limit: what every request has to pass: a quota ("100/minute"), a `RateLimit`, a
            `throttled.Throttled`, or a list of those; None for nothing.
        :param rules: by pattern (`throttled.contrib.rules`), what matching requests have to pass.
        :param exclude: patterns of requests that pass uncounted.
        :param exempt: called with the `Request`, which passes uncounted if it returns true.
        :param headers: "ietf", "legacy", "x" or None: see `throttled.contrib.headers`.
        :param reset: for "x": "delta" or "epoch".
        :param problem: called with the `Request` and the problem body; returns what to send.
        :param defaults: what limits made of quotas take besides: `key`, `cost`, `count_when`,
            `store`, `using`, ...; see `RateLimit`.
        :raises DataError: for a wrong argument; the message names it.
        """
        self.app = app
        if limit is None and rules is None:
            raise DataError("Invalid limit: None, must be a limit unless rules= are.")
        self._rules = Rules(RateLimit, limit, rules, exclude, exempt, **defaults)
        check_used(set(defaults) - {"scope"}, self._rules)
        self._replies = Replies(headers, reset, problem, asynchronous=False)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        request = Request(environ)
        passage: Passage | None = environ.get(PASSAGE)
        outermost = passage is None
        if passage is None:
            passage = environ[PASSAGE] = Passage()
            start_response = _telling(start_response, passage, self._replies)
        limits = self._rules.of(request)
        if limits:
            warn_of_processes(environ, limits)
            refusal = finished(passage.enter(limits, request, self._rules.exempt))
            if refusal is not None:
                return self._refuse(request, start_response, refusal)
        try:
            body = self.app(environ, start_response)
        except Exception:
            if outermost:
                _failed(passage)
            raise
        # Where nothing more is to be decided, the server gets the application's own object.
        return _Unstarted(body, passage) if outermost and passage.pending else body

    def _refuse(
        self, request: Request, start_response: StartResponse, refusal: Refusal
    ) -> Iterable[bytes]:
        kind, body = finished(self._replies.body(refusal, request))
        start_response(
            f"{refusal.status} {_REASONS[refusal.status]}",
            [("Content-Type", kind), ("Content-Length", str(len(body)))],
        )
        return [] if request.method == "HEAD" else [body]


def warn_of_processes(environ: WSGIEnvironment, limits: Sequence[Scoped]) -> None:
    """Say once that counts in memory are not shared, where the server says it has processes."""
    if environ.get("wsgi.multiprocess"):
        for limit, _ in limits:
            warn_of_workers(limit.store, "several")


def _telling(start_response: StartResponse, passage: Passage, replies: Replies) -> StartResponse:
    """A `start_response` that adds what the response tells of the limits."""

    def tell(status: str, headers: list[tuple[str, str]], *exc_info: Any) -> Any:
        # Some applications call it when their body is iterated: only now it is known what counts.
        if passage.pending:
            finished(passage.leave(Response(int(status[:3]), headers)))
        told = passage.headers(replies)
        return start_response(status, merge(headers, told) if told else headers, *exc_info)

    return tell


def _failed(passage: Passage) -> None:
    """The application raised before it had started a response: the server makes it a 500."""
    if passage.pending:
        finished(passage.leave(Response(500, ())))


class _Unstarted:
    """The body of an application that starts its response when iterated, and may fail before."""

    def __init__(self, body: Iterable[bytes], passage: Passage) -> None:
        self._body = body
        self._passage = passage
        self._iterator: Iterator[bytes] | None = None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            if self._iterator is None:
                self._iterator = iter(self._body)
            return next(self._iterator)
        except StopIteration:
            raise
        except Exception:
            _failed(self._passage)
            raise

    def close(self) -> None:
        """Let the application release what it holds."""
        close = getattr(self._body, "close", None)
        if close is not None:
            close()
