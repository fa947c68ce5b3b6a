"""The site on real servers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import uvicorn
from django.core.asgi import get_asgi_application
from django.core.handlers.wsgi import WSGIHandler
from django.core.servers.basehttp import ThreadedWSGIServer, WSGIRequestHandler

from tests.servers import free_port


class QuietHandler(WSGIRequestHandler):
    def log_message(self, *args: Any) -> None:
        """Say nothing."""


class Serving:
    """The site on a real server: wsgiref in threads as `runserver` has it, or uvicorn."""

    def __init__(self, stack: str) -> None:
        self.port = free_port()
        self.stack = stack

    def __enter__(self) -> str:
        if self.stack == "wsgi":
            wsgi = ThreadedWSGIServer(("127.0.0.1", self.port), QuietHandler)
            wsgi.set_app(WSGIHandler())
            self._run, self._stop = wsgi.serve_forever, wsgi.shutdown
            self._close: Callable[[], Any] = wsgi.server_close
        else:
            config = uvicorn.Config(
                get_asgi_application(), port=self.port, lifespan="off", log_config=None
            )
            asgi = uvicorn.Server(config)
            self._run = asgi.run
            self._stop = lambda: setattr(asgi, "should_exit", True)
            self._close = lambda: None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        url = f"http://127.0.0.1:{self.port}"
        with httpx.Client(transport=httpx.HTTPTransport(retries=8)) as client:
            client.get(f"{url}/no/such/page")
        return url

    def __exit__(self, *_: object) -> None:
        self._stop()
        self._thread.join(10)
        self._close()


def answers(url: str, number: int) -> list[httpx.Response]:
    """The responses to requests by sixteen threads."""
    with (
        httpx.Client(limits=httpx.Limits(max_connections=16), timeout=30) as client,
        ThreadPoolExecutor(16) as pool,
    ):
        return list(pool.map(lambda _: client.get(url), range(number)))
