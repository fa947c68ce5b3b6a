"""An LLM client that keeps to 500 requests and 200,000 tokens a minute.

`python -m docs.examples.llm_client` calls a service of its own for ten seconds, in which a minute
lasts three. What to copy is `limiter` and `Client`.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain, islice
from threading import Thread
from typing import Any

from throttled import MemoryStore, Rule, Throttled, per_duration

#: What the service states: so many within any `PERIOD` seconds.
REQUESTS, TOKENS, PERIOD = 500, 200_000, 60.0
#: Seconds by which one request may take longer to arrive than another.
HEADROOM = 3.0


def limiter(store: Any, period: float = PERIOD, headroom: float = HEADROOM) -> Throttled:
    """Both limits in one: a call takes from both or from neither, and waits for the later.

    What arrives within a period was let go within a period and the headroom, so that is how long
    a period has to be here. Give a `RedisStore` to share the limits between processes.
    """
    longer = timedelta(seconds=period + headroom)
    return Throttled(
        using="sliding_window_log",
        quota=[
            Rule(per_duration(longer, REQUESTS), cost=1, name="requests"),
            Rule(per_duration(longer, TOKENS), name="tokens"),
        ],
        store=store,
        timeout=2 * period,
    )


class RefusedError(Exception):
    """The service refused a request: the headroom is too small, or somebody else uses the key."""


class Client:
    """Calls the service over one connection. A thread has its own; they share the limiter."""

    def __init__(self, port: int, throttle: Throttled, account: str = "acme") -> None:
        self._connection = HTTPConnection("127.0.0.1", port)
        self._throttle = throttle
        self._account = account

    def complete(self, prompt: str, max_tokens: int) -> dict[str, Any]:
        """The answer to a prompt, once it may be asked for.

        Raises `LimitedError` if that is later than the limiter's timeout.
        """
        most = len(prompt.split()) + max_tokens
        # A request that fails on its way may have been counted, so it keeps what it took.
        with self._throttle.reserve(self._account, cost=most, on_error="keep") as reservation:
            status, answer = self._post({"prompt": prompt, "max_tokens": max_tokens})
            if status == 429:
                reservation.cancel()
                raise RefusedError
            reservation.settle(answer["usage"]["total_tokens"])
        return answer

    def _post(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        headers = {"Content-Type": "application/json"}
        self._connection.request("POST", "/v1/complete", json.dumps(body), headers)
        response = self._connection.getresponse()
        return response.status, json.load(response)

    def close(self) -> None:
        self._connection.close()


class Service(ThreadingHTTPServer):
    """Stands in for the real one, and holds its callers to the limits, without any headroom."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, period: float) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.throttle = limiter(MemoryStore(), period, headroom=0.0)
        self.pace = period / 60 / 200  # seconds per token of an answer: 200 a second


class Handler(BaseHTTPRequestHandler):
    """Answers with 40 to 100 % of the tokens that it may, or refuses."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body leave in one packet
    server: Service

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer = int(asked["max_tokens"] * random.uniform(0.4, 1))
        total = len(asked["prompt"].split()) + answer
        refused = self.server.throttle.limit("any", cost=total, timeout=-1).limited
        if not refused:
            time.sleep(answer * self.server.pace)
        body = json.dumps({} if refused else {"usage": {"total_tokens": total}}).encode()
        self.send_response(429 if refused else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


def prompts(seed: int) -> Iterator[tuple[str, int]]:
    """Prompts of many sizes, each with the most tokens that its answer may have; no end."""
    sizes = random.Random(seed)
    while True:
        yield "word " * sizes.randint(150, 350), sizes.randint(200, 500)


def main(workers: int = 16, each: int = 75) -> None:
    throttle = limiter(MemoryStore(), PERIOD / 20, HEADROOM / 20)
    with Service(PERIOD / 20) as service:
        Thread(target=service.serve_forever, daemon=True).start()

        def work(number: int) -> list[int]:
            client, tokens = Client(service.server_port, throttle), []
            for prompt, max_tokens in islice(prompts(number), each):
                with suppress(RefusedError):
                    tokens.append(client.complete(prompt, max_tokens)["usage"]["total_tokens"])
            client.close()
            return tokens

        start = time.monotonic()
        with ThreadPoolExecutor(workers) as pool:
            answers = list(chain.from_iterable(pool.map(work, range(workers))))
        took = (time.monotonic() - start) * 20 / PERIOD
        service.shutdown()
    print(f"answers: {len(answers):,}, refused: {workers * each - len(answers):,}")
    print(f"tokens: {sum(answers):,} in {took:.2f} minutes of 3 s, at most {TOKENS:,} in any")


if __name__ == "__main__":
    main()
