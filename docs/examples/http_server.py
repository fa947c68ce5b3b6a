"""An HTTP server that limits each client, with nothing but the standard library.

`python -m docs.examples.http_server` makes a few requests to itself;
`python -m docs.examples.http_server 8000` serves on that port until interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from http.client import HTTPConnection
from socketserver import ThreadingMixIn
from threading import Thread
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from throttled.contrib.wsgi import RateLimit, RateLimitMiddleware, Request


def hello(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """The application."""
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "6")])
    return [b"hello\n"]


def client(request: Request) -> str:
    # Name clients by what has been verified; a header that anybody can set is for show.
    return request.header("X-Client") or request.peer or "unknown"


class Handler(WSGIRequestHandler):
    def log_message(self, *args: Any) -> None:
        """Say nothing."""


class LimitedServer(ThreadingMixIn, WSGIServer):
    """Serves on localhost, a thread a request; port 0 is any free one."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, limit: Any, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.set_app(RateLimitMiddleware(hello, RateLimit(limit, key=client)))


def get(connection: HTTPConnection, name: str) -> tuple[int, int]:
    """One request: the status, and the seconds of `Retry-After` (0 if it is not sent)."""
    connection.request("GET", "/", headers={"X-Client": name})
    response = connection.getresponse()
    response.read()
    return response.status, int(response.headers.get("Retry-After", 0))


def main() -> None:
    with LimitedServer("3/m", int(sys.argv[1]) if len(sys.argv) > 1 else 0) as server:
        if len(sys.argv) > 1:
            server.serve_forever()
        Thread(target=server.serve_forever, daemon=True).start()
        connection = HTTPConnection("127.0.0.1", server.server_port)
        for name in ("ann", "ann", "ann", "ann", "bob"):
            status, retry_after = get(connection, name)
            print(name, status, f"Retry-After: {retry_after}" if retry_after else "")
        connection.request("GET", "/", headers={"X-Client": "ann"})
        response = connection.getresponse()
        print(response.headers["RateLimit-Policy"], response.headers["RateLimit"])
        print(response.read().decode())
        connection.close()
        server.shutdown()


if __name__ == "__main__":
    main()
