"""Dashboards that run for real, and what the tests ask them by."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from time import monotonic, sleep
from typing import Any

import httpx
import uvicorn

from tests.servers import HOST
from throttled.dashboard.guard import HEADER

PATIENCE = 20.0
#: The only token of the tests.
TOKEN = "open-sesame"


class Site:
    """A dashboard, and a client of it that says what the page would say."""

    def __init__(self, port: int, path: str = "") -> None:
        self.url = f"http://{HOST}:{port}{path}/"
        self.client = httpx.Client(base_url=self.url, timeout=PATIENCE, headers={HEADER: "test"})

    def get(self, path: str, **more: Any) -> httpx.Response:
        return self.client.get(path, **more)

    def post(self, path: str, body: Any = None, **more: Any) -> httpx.Response:
        return self.client.post(path, json=body, **more)

    def told(self, path: str, number: int = 1) -> list[Any]:
        """The first so many events of a stream."""
        with self.client.stream("GET", path) as answer:
            assert answer.status_code == 200, answer.read()
            return take(answer.iter_lines(), number)

    def scene(self, **setting: Any) -> dict[str, Any]:
        answer = self.post("api/scenes", params=setting)
        assert answer.status_code == 200, answer.text
        about: dict[str, Any] = answer.json()
        return about

    def reset(self, body: Any, token: str | None = TOKEN, **headers: str) -> httpx.Response:
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        return self.post("api/reset", body, headers=headers)


def take(lines: Iterator[str], number: int) -> list[Any]:
    """So many events of a stream that goes on."""
    told: list[Any] = []
    for line in lines:
        if line.startswith("data: "):
            told.append(json.loads(line.removeprefix("data: ")))
            if len(told) == number:
                break
    return told


@contextmanager
def site(app: Any, path: str = "") -> Iterator[Site]:
    """A server of an application, for as long as the block runs."""
    listening = socket.create_server((HOST, 0))
    config = uvicorn.Config(
        app, ws="none", lifespan="off", log_config=None, timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = Thread(target=asyncio.run, args=(server.serve([listening]),), daemon=True)
    thread.start()
    made = Site(listening.getsockname()[1], path)
    try:
        until(lambda: server.started)
        yield made
    finally:
        made.client.close()
        server.should_exit = True
        thread.join(PATIENCE)
        listening.close()
        assert not thread.is_alive()


def until(fine: Any) -> Any:
    """Wait until something is true, and give it."""
    deadline = monotonic() + PATIENCE
    while monotonic() < deadline:
        found = fine()
        if found:
            return found
        sleep(0.02)
    raise TimeoutError("it did not come true")
