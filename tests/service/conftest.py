"""Fixtures that tests of the service share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from tests.contract import PATIENT
from tests.servers import Server
from tests.service.sites import prefix
from throttled import MemoryStore
from throttled.asyncio import RedisStore, Throttled
from throttled.testing import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(clock: FakeClock) -> MemoryStore:
    """Counts in memory, by a clock that the test moves."""
    return MemoryStore(clock=clock)


MakeLimit = Callable[..., Throttled]


@pytest.fixture(params=["memory", pytest.param("valkey", marks=pytest.mark.server)])
async def make(request: pytest.FixtureRequest) -> AsyncIterator[MakeLimit]:
    """Makes limits that share their keys, in memory and on a real server, in real time.

    On a server each has a store of its own, as in as many processes.
    """
    memory, shared = MemoryStore(), prefix()
    async with AsyncExitStack() as stack:

        def make(quota: Any, **arguments: Any) -> Throttled:
            if request.param == "memory":
                store: Any = memory
            else:
                server: Server = request.getfixturevalue("valkey")
                store = RedisStore(server.url, PATIENT)
                stack.push_async_callback(store.close)
            arguments.setdefault("key_prefix", shared)
            return Throttled(quota=quota, store=store, **arguments)

        yield make
