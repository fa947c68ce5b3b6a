"""What tests of FastAPI share: limits on a clock of their own, and clients with an address."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import anyio
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient

from tests.flavours import faults
from tests.servers import free_port, wait_until
from throttled import MemoryStore
from throttled.asyncio import RedisStore
from throttled.contrib.fastapi import RateLimit
from throttled.testing import FakeClock

if TYPE_CHECKING:
    import pytest

#: Addresses of two callers.
ANN = ("203.0.113.5", 50001)
BOB = ("203.0.113.6", 50002)


def limit(quota: Any, **options: Any) -> RateLimit:
    """A limit in a memory of its own, where time stands still."""
    options.setdefault("store", MemoryStore(clock=FakeClock()))
    return RateLimit(quota, **options)


def client(app: FastAPI, address: tuple[str, int] = ANN, **options: Any) -> TestClient:
    return TestClient(app, client=address, **options)


@asynccontextmanager
async def own_store(store: RedisStore) -> AsyncIterator[RedisStore]:
    """A store that is closed afterwards."""
    try:
        yield store
    finally:
        await store.close()


@contextmanager
def dead_store(policy: Any = None) -> Iterator[RedisStore]:
    """A store on a port where nothing listens."""
    store = RedisStore(f"redis://127.0.0.1:{free_port()}/0", on_store_error=policy or "raise")
    yield store
    anyio.run(store.close)


def logged(caplog: pytest.LogCaptureFixture) -> str:
    """What the library logged."""
    return "\n".join([record.getMessage() for record in faults(caplog)])


@contextmanager
def served(app: Any) -> Iterator[str]:
    """The address of a real server with an application."""
    port = free_port()
    config = uvicorn.Config(
        app, port=port, ws="websockets-sansio", log_level="warning", timeout_graceful_shutdown=5
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started, "the server is up")
        yield f"127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()
