"""An HTTP server that limits each client, standard library only.

`python -m docs.examples.http_server` makes a few requests to itself;
`python -m docs.examples.http_server 8000` serves on that port until interrupted.
"""

from __future__ import annotations

import math
import sys
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from throttled import Throttled


class Handler(BaseHTTPRequestHandler):
    """Answers 200, or 429 with `Retry-After` when the client's limit is reached."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body leave in one packet
    server: LimitedServer

    def do_GET(self) -> None:
        # Name clients by what has been verified; a header that anybody can set is for show.
        client = self.headers.get("X-Client") or self.client_address[0]
        result = self.server.throttle.limit(client)
        self.send_response(429 if result.limited else 200)
        if result.limited:
            # Retry-After is in whole seconds: rounded up, or the client comes back too soon.
            self.send_header("Retry-After", str(math.ceil(result.state.retry_after)))
        body = b"slow down\n" if result.limited else b"hello\n"
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


class LimitedServer(ThreadingHTTPServer):
    """Serves on localhost in as many threads as there are connections; port 0 is any free one."""

    daemon_threads = True

    def __init__(self, throttle: Any, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.throttle = throttle


def get(connection: HTTPConnection, client: str) -> tuple[int, int]:
    """One request: the status, and the seconds of `Retry-After` (0 if it is not sent)."""
    connection.request("GET", "/", headers={"X-Client": client})
    response = connection.getresponse()
    response.read()
    return response.status, int(response.headers.get("Retry-After", 0))


def main() -> None:
    throttle = Throttled(quota="3/m")
    with LimitedServer(throttle, int(sys.argv[1]) if len(sys.argv) > 1 else 0) as server:
        if len(sys.argv) > 1:
            server.serve_forever()
        Thread(target=server.serve_forever, daemon=True).start()
        connection = HTTPConnection("127.0.0.1", server.server_port)
        for client in ("ann", "ann", "ann", "ann", "bob"):
            status, retry_after = get(connection, client)
            print(client, status, f"Retry-After: {retry_after}" if retry_after else "")
        connection.close()
        server.shutdown()


if __name__ == "__main__":
    main()
