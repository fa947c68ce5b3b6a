"""Calling an ASGI application message by message, as a server does."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from threading import Thread
from typing import TYPE_CHECKING, Any

import hypercorn
import hypercorn.asyncio
import pytest
import uvicorn

from tests.contract import PATIENT
from tests.servers import HOST, PATIENCE, free_port, wait_until
from throttled.asyncio import MemoryStore, RedisStore
from throttled.contrib.asgi import RateLimitMiddleware

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator

    from tests.servers import Server

#: A store that nobody listens for: a connection is refused at once.
NOBODY = "redis://127.0.0.1:1/0"


@pytest.fixture(params=["memory", pytest.param("server", marks=pytest.mark.server)])
async def any_store(request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    """In memory, and on a real server whose keys nobody else uses."""
    if request.param == "memory":
        yield MemoryStore()
        return
    server: Server = request.getfixturevalue("valkey")
    with server.client() as client:
        client.flushall()
    made = RedisStore(server.url, options=PATIENT)
    yield made
    await made.close()


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.name == "throttled"]


def dead_store(policy: Any = "raise") -> RedisStore:
    return RedisStore(NOBODY, on_store_error=policy)


@dataclass
class Answer:
    """What an application sent."""

    messages: list[Any] = field(default_factory=list)

    @property
    def start(self) -> Any:
        starts = [each for each in self.messages if each["type"].endswith("response.start")]
        assert len(starts) == 1, self.messages
        return starts[0]

    @property
    def status(self) -> int:
        status: int = self.start["status"]
        return status

    @property
    def headers(self) -> dict[str, str]:
        pairs = [(name.decode(), value.decode()) for name, value in self.start["headers"]]
        assert len(dict(pairs)) == len(pairs), pairs
        return dict(pairs)

    @property
    def body(self) -> bytes:
        return b"".join(
            [each.get("body", b"") for each in self.messages if each["type"].endswith("body")]
        )

    @property
    def problem(self) -> Any:
        assert self.headers["content-type"] == "application/problem+json"
        assert int(self.headers["content-length"]) == len(self.body)
        return json.loads(self.body)

    @property
    def left(self) -> int:
        """What the first policy of the RateLimit header leaves."""
        return int(self.headers["ratelimit"].split(";r=")[1].split(";")[0])


def scope_of(
    path: str = "/",
    method: str = "GET",
    headers: Iterable[tuple[str, str]] = (),
    peer: str | None = "203.0.113.5",
    **more: Any,
) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers],
        "client": (peer, 50000) if peer else None,
        "server": ("127.0.0.1", 80),
        **more,
    }


async def call(app: Any, path: str = "/", method: str = "GET", /, **scope: Any) -> Answer:
    """One request without a body, and all that comes of it."""
    return await exchange(app, scope_of(path, method, **scope))


async def exchange(app: Any, scope: Any, *messages: Any) -> Answer:
    answer = Answer()
    waiting = iter(messages or [{"type": "http.request", "body": b"", "more_body": False}])

    async def receive() -> Any:
        await asyncio.sleep(0)
        return next(waiting, {"type": "http.disconnect"})

    async def send(message: Any) -> None:
        await asyncio.sleep(0)
        answer.messages.append(message)

    await app(scope, receive, send)
    return answer


class App:
    """Answers every request with its status, and counts those that reach it."""

    def __init__(self, status: int = 200, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        self.status = status
        self.headers = list(headers)
        self.seen: list[Any] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.seen.append(scope)
        await asyncio.sleep(0)
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        await send({"type": "http.response.body", "body": b"ok"})


def limited(limit: Any = "2/m", app: Any = None, **options: Any) -> Any:
    """A middleware around an application of ours."""
    return RateLimitMiddleware(App() if app is None else app, limit, **options)


async def statuses(app: Any, n: int, path: str = "/", method: str = "GET", **scope: Any) -> Any:
    return [(await call(app, path, method, **scope)).status for _ in range(n)]


@contextmanager
def serving(app: Any, **config: Any) -> Iterator[int]:
    """A real server in a thread of its own, on the port that it is given."""
    server = uvicorn.Server(uvicorn.Config(app, HOST, 0, log_level="error", **config))
    thread = Thread(target=server.run, daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + PATIENCE
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            assert time.monotonic() < deadline, "the server did not start in time"
            time.sleep(0.01)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        assert not thread.is_alive()


@contextmanager
def serving_by_hypercorn(app: Any) -> Iterator[int]:
    """The same by another server."""
    port = free_port()
    config = hypercorn.Config()
    config.bind = [f"{HOST}:{port}"]
    config.errorlog = None
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()
    serve = hypercorn.asyncio.serve(app, config, shutdown_trigger=stop.wait)
    thread = Thread(target=loop.run_until_complete, args=[serve], daemon=True)
    thread.start()
    try:
        wait_until(lambda: socket.create_connection((HOST, port)).close() is None, "the start")
        yield port
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(PATIENCE)
        assert not thread.is_alive()
        loop.close()


def raw(port: int, *lines: str) -> int:
    """The status of the answer to a request as it is written, whatever a client would refuse."""
    request = "\r\n".join([*lines, "Host: localhost", "Connection: close", "", ""])
    with closing(socket.create_connection((HOST, port), PATIENCE)) as connection:
        connection.sendall(request.encode())
        return int(connection.makefile("rb").readline().split()[1])


__all__ = [
    "Answer",
    "App",
    "RateLimitMiddleware",
    "any_store",
    "call",
    "dead_store",
    "errors",
    "exchange",
    "limited",
    "raw",
    "scope_of",
    "serving",
    "serving_by_hypercorn",
    "statuses",
]
