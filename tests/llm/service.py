"""A service that holds its callers to so many requests and tokens in any period, exactly.

    python -m tests.llm.service REQUESTS TOKENS PERIOD

prints its port, serves until its standard input ends, then prints all that arrived. The standard
library only, and a clock of its own: it is to judge a limiter, so it must not share its mistakes.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any, NamedTuple
from zlib import crc32

#: Tokens of an answer in a second of a real minute.
SPEED = 200


class Arrival(NamedTuple):
    """A request, as the service saw it."""

    at: int  # ns, by the service's monotonic clock
    tokens: int
    admitted: bool


class Log:
    """At most so many requests and tokens within any `period` ns."""

    def __init__(self, requests: int, tokens: int, period: int) -> None:
        self.requests = requests
        self.tokens = tokens
        self.period = period
        self._admitted: deque[tuple[int, int]] = deque()  # instant, tokens; of the last period
        self._used = 0

    def arrive(self, now: int, tokens: int) -> float:
        """Admit a request and return 0, or say in how many ns it would fit; inf is never."""
        admitted = self._admitted
        while admitted and admitted[0][0] <= now - self.period:
            self._used -= admitted.popleft()[1]
        if len(admitted) < self.requests and self._used + tokens <= self.tokens:
            admitted.append((now, tokens))
            self._used += tokens
            return 0
        if tokens > self.tokens:
            return math.inf
        # Of the oldest, those have to go that stand in the way of either limit.
        count, used = len(admitted), self._used
        for at, each in admitted:
            count, used = count - 1, used - each
            if count < self.requests and used + tokens <= self.tokens:
                return at + self.period - now
        raise AssertionError("without the others it fits")


class Service(ThreadingHTTPServer):
    """Serves on a free port of localhost; the log is asked in the order of the arrivals."""

    daemon_threads = True
    # Whoever does not get into the line is late by the second after which it is tried again.
    request_queue_size = 128

    def __init__(self, log: Log) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.arrivals: list[Arrival] = []
        self._log = log
        self._lock = Lock()
        #: Seconds that each token of an answer takes, in a minute that is as short as the period.
        self.pace = log.period / 60e9 / SPEED

    def arrive(self, tokens: int) -> float:
        with self._lock:
            now = time.monotonic_ns()
            wait = self._log.arrive(now, tokens)
            self.arrivals.append(Arrival(now, tokens, not wait))
        return wait

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say what went wrong, but that callers hang up when their process ends is right."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """Charges a request when it arrives, for the answer too, whose length the prompt decides."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body leave in one packet
    server: Service

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt, answer = tokens_of(**asked)
        wait = self.server.arrive(prompt + answer)
        if not wait:
            time.sleep(answer * self.server.pace)
        usage = {"prompt_tokens": prompt, "total_tokens": prompt + answer}
        body = json.dumps({} if wait else {"usage": usage}).encode()
        self.send_response(429 if wait else 200)
        if 0 < wait < math.inf:
            self.send_header("Retry-After", str(math.ceil(wait / 1e9)))
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


def tokens_of(prompt: str, max_tokens: int) -> tuple[int, int]:
    """The tokens of a prompt, and of its answer: from 40 to 100 % of the most that it may have."""
    return len(prompt.split()), max_tokens * (40 + crc32(prompt.encode()) % 61) // 100


def main(requests: str, tokens: str, period: str) -> None:
    log = Log(int(requests), int(tokens), round(float(period) * 1e9))
    with Service(log) as service:
        Thread(target=service.serve_forever, daemon=True).start()
        print(service.server_port, flush=True)
        sys.stdin.read()
        service.shutdown()
        print(json.dumps(service.arrivals))


if __name__ == "__main__":
    main(*sys.argv[1:])
