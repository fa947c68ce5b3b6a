"""What the tests of WSGI applications and of Flask share: stores, and a real server of threads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPResponse
from queue import Queue
from socketserver import ThreadingMixIn
from threading import Barrier, Event, Thread
from typing import Any, NamedTuple
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import pytest

from tests.contract import PATIENT
from tests.servers import HOST, Server, free_port
from throttled import MemoryStore, RedisStore
from throttled.testing import FakeClock

__all__ = [
    "any_store",
    "ask",
    "asked",
    "at_once",
    "dead_store",
    "environ_of",
    "hello",
    "ok",
    "said",
    "serving",
    "statuses",
    "three_of_ten",
    "warned_anew",
]


SERVERS = [pytest.param(name, marks=pytest.mark.server) for name in ("valkey", "redis")]


@pytest.fixture(params=["memory", *SERVERS])
def any_store(request: pytest.FixtureRequest, clock: FakeClock) -> Iterator[Any]:
    """In memory and on real servers whose keys nobody else uses, by the clock of the test."""
    if request.param == "memory":
        yield MemoryStore(clock=clock)
        return
    try:
        server: Server = request.getfixturevalue("server_named")(request.param)
    except KeyError:
        pytest.skip(f"there is no {request.param}-server here")
    with server.client() as client:
        client.flushall()
    made = RedisStore(server=server.url, options=PATIENT, clock=clock)
    yield made
    made.close()


@pytest.fixture
def dead_store() -> Iterator[RedisStore]:
    """A server that nobody has started."""
    made = RedisStore(server=f"redis://{HOST}:{free_port()}/0")
    yield made
    made.close()


@pytest.fixture
def warned_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has not warned of anything yet."""
    monkeypatch.setattr("throttled.contrib.misuse._said", set())


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the library logged."""
    return [each.getMessage() for each in caplog.records if each.name == "throttled"]


class _Threads(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 64


class _Quiet(WSGIRequestHandler):
    def log_message(self, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def serving(app: Any) -> Iterator[Callable[..., tuple[HTTPResponse, bytes]]]:
    """What asks a real server, of a thread a connection, that runs the application."""
    server = make_server(HOST, 0, app, server_class=_Threads, handler_class=_Quiet)
    thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()

    def ask(
        path: str = "/", method: str = "GET", headers: dict[str, str] | None = None
    ) -> tuple[HTTPResponse, bytes]:
        connection = HTTPConnection(HOST, server.server_port, timeout=20)
        try:
            connection.request(method, path, headers=headers or {})
            response = connection.getresponse()
            return response, response.read()
        finally:
            connection.close()

    try:
        yield ask
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def at_once(number: int, call: Callable[[], Any]) -> list[Any]:
    """What so many calls come to that begin together, each in a thread."""
    barrier = Barrier(number)

    def begin() -> Any:
        barrier.wait(20)
        return call()

    with ThreadPoolExecutor(number) as pool:
        return [each.result(30) for each in [pool.submit(begin) for _ in range(number)]]


def ok(**values: Any) -> str:
    """A view of Flask."""
    return "fine"


def statuses(app: Any, number: int, path: str = "/", method: str = "GET", **more: Any) -> list[int]:
    """What the test client of Flask gets to so many requests."""
    client = app.test_client()
    return [client.open(path, method=method, **more).status_code for _ in range(number)]


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


def hello(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Answers with the status that the path names, 200 by default."""
    status = environ["PATH_INFO"].rsplit("/", 1)[-1]
    status = status if status.isdecimal() else "200"
    start_response(f"{status} As asked", [("Content-Type", "text/plain")])
    return [b"hello"]


def environ_of(path: str = "/", method: str = "GET", peer: str = "203.0.113.5", **more: Any) -> Any:
    environ = {"REQUEST_METHOD": method, "PATH_INFO": path, "REMOTE_ADDR": peer, **more}
    environ.setdefault("QUERY_STRING", "")
    setup_testing_defaults(environ)
    environ["SCRIPT_NAME"] = ""
    return environ


def ask(app: Any, path: str = "/", method: str = "GET", **more: Any) -> Answer:
    """What a server gets that keeps to PEP 3333, and looks whether the application does."""
    started: list[Any] = []

    def start_response(status: str, headers: Any, exc_info: Any = None) -> Any:
        assert not started or exc_info, "started twice"
        started[:] = [status, headers]
        return lambda data: None

    body = validator(app)(environ_of(path, method, **more), start_response)
    try:
        content = b"".join(list(body))
    finally:
        body.close()
    status, headers = started
    assert len({name.lower() for name, _ in headers}) == len(headers)
    return Answer(int(status[:3]), {name.lower(): value for name, value in headers}, content)


def asked(app: Any, number: int, *args: Any, **more: Any) -> list[int]:
    """The statuses of so many answers."""
    return [ask(app, *args, **more).status for _ in range(number)]


def three_of_ten(get: Callable[[], tuple[Any, Any]], go_on: Event) -> None:
    """Ask ten times at once what three may run, and fails with 401 when it may go on."""
    answers: Queue[int] = Queue()
    threads = [Thread(target=lambda: answers.put(get()[0].status)) for _ in range(10)]
    for thread in threads:
        thread.start()
    # Three are running, and none has ended.
    assert [answers.get(timeout=20) for _ in range(7)] == [429] * 7
    go_on.set()
    assert [answers.get(timeout=20) for _ in range(3)] == [401] * 3
    for thread in threads:
        thread.join(20)
