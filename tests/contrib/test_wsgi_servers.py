"""The WSGI middleware passes on what the application does, and holds behind real servers."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from http.client import HTTPConnection
from queue import Queue
from threading import Event, Thread
from typing import Any
from wsgiref.util import FileWrapper
from wsgiref.validate import validator

import pytest
from werkzeug.serving import make_server

from tests.contrib.serving import (
    any_store,
    ask,
    at_once,
    environ_of,
    hello,
    serving,
    three_of_ten,
)
from throttled import MemoryStore, Throttled
from throttled.contrib.wsgi import RateLimitMiddleware

__all__ = ["any_store"]


# -- what comes of the application is passed on ----------------------------------------------------


class Body:
    """A body that knows what is done with it."""

    def __init__(self, *parts: bytes) -> None:
        self.parts = iter(parts)
        self.closed = 0

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return next(self.parts)

    def close(self) -> None:
        self.closed += 1


def test_the_server_gets_the_very_object_that_the_application_returns(store: MemoryStore) -> None:
    for body in (Body(b"a"), FileWrapper(Body(b"b")), [b"c"]):

        def app(environ: Any, start_response: Any, body: Any = body) -> Any:
            start_response("200 OK", [])
            return body

        middleware = RateLimitMiddleware(app, "9/m", store=store)
        assert middleware(environ_of(), lambda *args: None) is body  # type: ignore[arg-type]


def test_parts_of_a_stream_leave_when_they_are_made(store: MemoryStore) -> None:
    made: list[int] = []

    def stream(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        for number in range(3):
            made.append(number)
            yield b"%d" % number

    # It decides by the response, which starts when the body is iterated.
    app = RateLimitMiddleware(stream, "9/m", count_when=lambda response: True, store=store)
    started: list[Any] = []
    body = iter(app(environ_of(), lambda *args: started.append(args)))  # type: ignore[arg-type]
    assert started == []
    assert next(body) == b"0"
    assert made == [0]
    assert len(started) == 1
    assert dict(started[0][1])["RateLimit"].startswith('"9/m";r=8;')
    assert list(body) == [b"1", b"2"]


def test_a_body_is_closed_once_even_if_it_was_never_begun(store: MemoryStore) -> None:
    body = Body(b"a")

    def app(environ: Any, start_response: Any) -> Any:
        return body

    middleware = RateLimitMiddleware(app, "9/m", count_when=lambda response: True, store=store)
    answer: Any = middleware(environ_of(), lambda *args: None)  # type: ignore[arg-type]
    answer.close()
    assert body.closed == 1
    # The outcome is not known: it counts.
    assert (
        ask(RateLimitMiddleware(hello, "9/m", store=store))
        .headers["ratelimit"]
        .startswith('"9/m";r=7;')
    )


def test_write_writes(store: MemoryStore) -> None:
    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        write = start_response("200 OK", [("Content-Type", "text/plain")])
        write(b"one ")
        return [b"two"]

    with serving(RateLimitMiddleware(validator(app), "9/m", store=store)) as get:
        response, body = get()
    assert (response.status, body) == (200, b"one two")
    assert response.headers["RateLimit"].startswith('"9/m";r=8;')


def test_a_response_may_be_replaced_by_that_to_an_error(store: MemoryStore) -> None:
    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        try:
            raise ZeroDivisionError
        except ZeroDivisionError:
            start_response("500 Broken", [("Content-Type", "text/plain")], sys.exc_info())
        return [b"sorry"]

    answer = ask(RateLimitMiddleware(app, "9/m", store=store))
    assert (answer.status, answer.body) == (500, b"sorry")
    assert answer.headers["ratelimit"].startswith('"9/m";r=8;')


def test_the_request_body_is_the_applications(store: MemoryStore) -> None:
    def echo(environ: Any, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))]

    class Untouched:
        def read(self, size: int) -> bytes:
            return b"x" * size

    environ = environ_of(method="POST", **{"wsgi.input": Untouched(), "CONTENT_LENGTH": "3"})
    app = RateLimitMiddleware(echo, "9/m", store=store)
    assert list(app(environ, lambda *args: None)) == [b"xxx"]  # type: ignore[arg-type]


def test_requests_at_once_do_not_slip_through_while_their_outcome_is_unknown(
    store: MemoryStore,
) -> None:
    running: Queue[None] = Queue()
    go_on = Event()

    def slow(environ: Any, start_response: Any) -> Iterable[bytes]:
        running.put(None)
        assert go_on.wait(20)
        start_response("401 No", [("Content-Type", "text/plain")])
        return [b""]

    app = RateLimitMiddleware(
        slow, "3/h", count_when=lambda response: response.status_code == 401, store=store
    )
    with serving(app) as get:
        three_of_ten(get, go_on)
    assert running.qsize() == 3


# -- behind real servers ---------------------------------------------------------------------------


def test_threads_of_a_real_server_admit_exactly_the_quota(any_store: Any) -> None:
    app = RateLimitMiddleware(validator(hello), "7/h", store=any_store)
    with serving(app) as get:
        answers = at_once(20, lambda: get()[0].status)
    assert sorted(answers) == [200] * 7 + [429] * 13


def test_a_method_in_lower_case_is_no_way_around(store: MemoryStore) -> None:
    # Frameworks take it for POST.
    with serving(RateLimitMiddleware(hello, rules={"POST /login": "1/m"}, store=store)) as get:
        assert get("/login", "POST")[0].status == 200
        assert get("/login", "post")[0].status == 429
        assert get("/login", "GET")[0].status == 200


def test_keys_stay_the_callers(store: MemoryStore) -> None:
    throttle = Throttled(quota="1/m", store=store)
    with serving(RateLimitMiddleware(hello, throttle)) as get:
        assert get()[0].status == 200
        response, body = get()
        assert response.status == 429
        assert json.loads(body)["title"] == "Quota Exceeded"
        throttle.reset("127.0.0.1")
        assert get()[0].status == 200


def test_behind_the_server_of_werkzeug(store: MemoryStore, serve: Callable[[Any], str]) -> None:
    connection = HTTPConnection(serve(RateLimitMiddleware(hello, "1/m", store=store)))
    answers = []
    for _ in range(2):
        connection.request("GET", "/")
        response = connection.getresponse()
        response.read()
        answers.append((response.status, response.headers["Retry-After"]))
    connection.close()
    assert answers == [(200, None), (429, "60")]


@pytest.fixture
def serve() -> Iterator[Callable[[Any], str]]:
    """Starts the server of Werkzeug and says where."""
    servers: list[Any] = []

    def start(app: Any) -> str:
        server = make_server("127.0.0.1", 0, app, threaded=True)
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        servers.append((server, thread))
        return f"127.0.0.1:{server.server_port}"

    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join(10)
        server.server_close()
