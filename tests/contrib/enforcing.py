"""A local HTTP server that enforces a limit by a count of its own, and remembers what it saw.

The count is a few plain lines that share nothing with the library, so that neither can be wrong in
the other's favour.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import ceil
from threading import Lock, Thread
from typing import Any, Literal, NamedTuple, Self

Kind = Literal["fixed", "log", "bucket"]
Tells = Literal["ietf", "legacy", "epoch", "retry", "date", "nothing"]


class Count:
    """So many within a window, counted as services do."""

    def __init__(self, kind: Kind, limit: int, window: float) -> None:
        self.kind = kind
        self.limit = limit
        self.window = window
        self._taken: deque[float] = deque()
        self._tokens = float(limit)
        self._at = 0.0

    def take(self, now: float) -> tuple[bool, int, float]:
        """Whether it passes, how many are left, and the seconds until there is more."""
        if self.kind == "bucket":
            rate = self.limit / self.window
            self._tokens = min(self._tokens + (now - self._at) * rate, self.limit)
            self._at = now
            passed = self._tokens >= 1.0
            self._tokens -= passed
            return passed, int(self._tokens), max(1.0 - self._tokens, 0.0) / rate
        begins = now - self.window if self.kind == "log" else now // self.window * self.window
        while self._taken and self._taken[0] <= begins:
            self._taken.popleft()
        passed = len(self._taken) < self.limit
        if passed:
            self._taken.append(now)
        first = self._taken[0] if self.kind == "log" else begins
        return passed, self.limit - len(self._taken), first + self.window - now


class Seen(NamedTuple):
    """A request as the server saw it."""

    at: float
    status: int
    body: bytes
    path: str


class Enforcing(ThreadingHTTPServer):
    """Answers 200, or 429 to what is too much. Use it in a `with` statement.

    `tells`: what its headers say; "retry": `Retry-After` on a 429 and nothing else.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        kind: Kind = "log",
        limit: int = 20,
        window: float = 1.0,
        tells: Tells = "nothing",
        answer: Callable[[int], tuple[int, dict[str, str]]] | None = None,
    ) -> None:
        """`answer`: in place of a count, status and headers of the n-th request, from 0."""
        super().__init__(("127.0.0.1", 0), _Handler)
        self.count = Count(kind, limit, window)
        self.tells = tells
        self.answer = answer
        self.seen: list[Seen] = []
        self.connections = 0
        self._lock = Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> Self:
        self._thread = Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def decide(self, path: str, body: bytes) -> tuple[int, dict[str, str]]:
        with self._lock:
            now = time.time()
            if self.answer is not None:
                status, headers = self.answer(len(self.seen))
            else:
                passed, left, wait = self.count.take(now)
                status = 200 if passed else 429
                headers = self._headers(passed, left, wait, now)
            self.seen.append(Seen(now, status, body, path))
        return status, headers

    def _headers(self, passed: bool, left: int, wait: float, now: float) -> dict[str, str]:
        limit, window, seconds = self.count.limit, ceil(self.count.window), max(ceil(wait), 1)
        told = {
            "ietf": {
                "RateLimit-Policy": f'"burst";q={limit};w={window}',
                "RateLimit": f'"burst";r={left};t={seconds}',
            },
            "legacy": {
                "RateLimit-Limit": str(limit),
                "RateLimit-Remaining": str(left),
                "RateLimit-Reset": str(seconds),
            },
            "epoch": {
                "X-RateLimit-Limit": str(limit),
                "X-RateLimit-Remaining": str(left),
                "X-RateLimit-Reset": str(ceil(now + wait)),
            },
        }.get(self.tells, {})
        if not passed and self.tells == "date":
            after = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(now + wait + 1))
            return {"Retry-After": after}
        return told if passed or self.tells == "nothing" else {**told, "Retry-After": str(seconds)}

    # -- what was seen ----------------------------------------------------------------------------

    def steady(self, after: float) -> list[Seen]:
        """What came later than so many seconds after the first request."""
        return [each for each in self.seen if each.at >= self.seen[0].at + after]

    def figures(self, after: float, until: float) -> tuple[float, int, float]:
        """Between so many seconds after the first request: the share of the allowed rate that was
        used, the most refusals within any window, and the refusals per window."""
        seen = [each for each in self.steady(after) if each.at < self.seen[0].at + until]
        refused = [each.at for each in seen if each.status == 429]
        window = self.count.window
        most = max([sum(at <= each < at + window for each in refused) for at in refused], default=0)
        # Requests come in bursts, so between two fixed instants there may be one more or less than
        # the rate has. So measure how long whole windows' worth of requests took, and do it from
        # each request of a window's worth: any one may have its place elsewhere in a burst.
        passed, limit = [each.at for each in seen if each.status == 200], self.count.limit
        worth = max(len(passed) // limit - 1, 0)
        took = [passed[at + worth * limit] - passed[at] for at in range(limit if worth else 0)]
        share = worth * window * limit / sum(took) if worth else 0.0
        return share, most, len(refused) * window / (until - after)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body leave in one packet
    disable_nagle_algorithm = True
    server: Enforcing

    def setup(self) -> None:
        self.server.connections += 1
        super().setup()

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path.startswith("/redirect"):
            status, headers = 302, {"Location": "/landed"}
            self.server.seen.append(Seen(time.time(), status, body, self.path))
        else:
            status, headers = self.server.decide(self.path, body)
        text = b"ok" if status < 400 else b"too much"
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_POST = do_PUT = do_GET  # noqa: N815

    def log_message(self, *args: Any) -> None:
        """Say nothing."""
