"""The side port: `/metrics` for Prometheus, `/stats` for people and dashboards, `/healthz`.

An ASGI application by hand, on uvicorn, in the loop of the service. Nobody can hold up much of it:

- There are so many connections at most, each with one answer in memory, and none lives longer than
  a while, whether its other end reads or not.
- What takes long to put together is not put together anew before ten times as long has passed, so
  that it takes a tenth of the time of the loop at most, however often it is asked for.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable, Generator
from contextlib import contextmanager
from time import monotonic
from typing import Any, Final

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from uvicorn.protocols.http.h11_impl import H11Protocol

from throttled.service.tokens import Tokens

#: Connections at once: with more, requests are answered with 503; with twice as many, connections
#: are broken off.
_MOST: Final = 64
#: Seconds that a connection lives at most, and that it may be idle.
_LONGEST: Final = 30.0
_IDLE: Final = 5
#: How many times as long as it took an answer is kept.
_KEPT: Final = 10.0

_Answer = tuple[int, str, bytes]


class Side:
    """The application.

    `stats` returns what `/stats` shows, `healthy` whether the service takes calls.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        stats: Callable[[], dict[str, Any]],
        healthy: Callable[[], bool],
        tokens: Tokens,
    ) -> None:
        self._registry = registry
        self._stats = stats
        self._healthy = healthy
        self._tokens = tokens
        self._paths = {
            "/metrics": self._metrics,
            "/stats": self._told,
            "/healthz": self._health,
        }
        # What was put together, and until when it is as good as new.
        self._kept: dict[str, tuple[bytes, float]] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        answer = self._paths.get(scope["path"])
        more: list[tuple[bytes, bytes]] = []
        if answer is None:
            status, kind, body = _text(404, "There is /metrics, /stats and /healthz.")
        elif scope["method"] not in ("GET", "HEAD"):
            status, kind, body = _text(405, "Only GET and HEAD.")
            more = [(b"allow", b"GET, HEAD")]
        else:
            status, kind, body = answer(scope)
            if status == 401:
                more = [(b"www-authenticate", b"Bearer")]
        headers = [
            (b"content-type", kind.encode()),
            (b"content-length", str(len(body)).encode()),
            (b"cache-control", b"no-store"),
            *more,
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        sent = b"" if scope["method"] == "HEAD" else body
        await send({"type": "http.response.body", "body": sent})

    def _metrics(self, scope: Any) -> _Answer:
        return 200, CONTENT_TYPE_LATEST, self._put("/metrics", self._put_metrics)

    def _put_metrics(self) -> bytes:
        return generate_latest(self._registry)

    def _put_stats(self) -> bytes:
        return json.dumps(self._stats()).encode()

    def _put(self, path: str, make: Callable[[], bytes]) -> bytes:
        """What a path shows, put together anew if it is time."""
        began = monotonic()
        content, until = self._kept.get(path, (b"", began))
        if began >= until:
            content = make()
            ended = monotonic()
            self._kept[path] = content, ended + _KEPT * (ended - began)
        return content

    def _told(self, scope: Any) -> _Answer:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        if not self._tokens.accept(given[0] if given else None):
            client = scope.get("client") or ("?",)
            self._tokens.refused(str(client[0]), "/stats")
            return _text(401, "The bearer token is missing or wrong.")
        return 200, "application/json", self._put("/stats", self._put_stats)

    def _health(self, scope: Any) -> _Answer:
        return _text(200, "ok") if self._healthy() else _text(503, "stopping")


def _text(status: int, text: str) -> _Answer:
    return status, "text/plain; charset=utf-8", f"{text}\n".encode()


class _Brief(H11Protocol):
    """A connection that is broken off when its time is up."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        # Not closed: that would wait for the other end to read what was written.
        self._end = self.loop.call_later(_LONGEST, transport.abort)
        if len(self.connections) > 2 * _MOST:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end.cancel()
        super().connection_lost(exc)


class Server(uvicorn.Server):
    """Leaves signals to the service, and says when it answers."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        finally:
            self.ready.set()

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


class SideServer:
    """Serves the application on a socket that listens already."""

    def __init__(self, side: Side, listening: socket.socket) -> None:
        config = uvicorn.Config(
            side,
            http=_Brief,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            log_level="error",  # a connection too many is worth no line
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=_MOST,
            timeout_keep_alive=_IDLE,
            timeout_graceful_shutdown=1,
        )
        self._server = Server(config)
        self._listening = listening
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to answer."""
        self._task = asyncio.ensure_future(self._server.serve(sockets=[self._listening]))
        await self._server.ready.wait()

    async def stop(self) -> None:
        """Stop answering."""
        self._server.should_exit = True
        if self._task is not None:
            # It may have been cancelled, as all tasks are when a loop ends.
            await asyncio.wait([self._task])
        self._listening.close()
