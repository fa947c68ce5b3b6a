"""The aiohttp client middleware, against a server that enforces its limit."""

from __future__ import annotations

import asyncio
import io
import pickle
import time
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest

from tests.contract import PATIENT
from tests.contrib.enforcing import Enforcing
from tests.servers import Server
from throttled.asyncio import MemoryStore, RedisStore
from throttled.contrib.aiohttp import RateLimitMiddleware, RefusedError
from throttled.exceptions import DataError, LimitedError

pytestmark = pytest.mark.realtime


@pytest.fixture
def server() -> Iterator[Enforcing]:
    with Enforcing(limit=1000) as server:
        yield server


def session(limit: Any = "100/s", **arguments: Any) -> aiohttp.ClientSession:
    arguments.setdefault("store", MemoryStore())
    return aiohttp.ClientSession(middlewares=[RateLimitMiddleware(limit, **arguments)])


async def status(http: aiohttp.ClientSession, url: str, **arguments: Any) -> int:
    async with http.get(url, **arguments) as response:
        await response.read()
        return response.status


async def test_requests_wait_for_their_host(server: Enforcing) -> None:
    with Enforcing(limit=1000) as other:
        async with session("2/500ms") as http:
            begun = time.monotonic()
            for _ in range(2):
                await status(http, server.url)
                await status(http, other.url)
            quick = time.monotonic() - begun
            await status(http, server.url)
            slow = time.monotonic() - begun

    assert quick < 0.5 <= slow


async def test_a_wrong_guess_of_many_tasks_settles() -> None:
    with Enforcing("log", 20, 1.0, "nothing") as server:
        async with session("100/s") as http:
            # As many as the guess allows leave before there is any answer to learn from.
            await asyncio.gather(*[status(http, server.url) for _ in range(220)])
        share, most, _ = server.figures(after=3.0, until=60.0)

    assert share >= 0.8
    assert most <= 1


async def test_a_request_without_room_is_refused_before_it_is_sent(server: Enforcing) -> None:
    async with session("1/m", timeout=-1) as http:
        await status(http, server.url)
        with pytest.raises(aiohttp.ClientError) as caught:
            await status(http, server.url)

    error = caught.value
    assert isinstance(error, RefusedError)
    assert isinstance(error, LimitedError)
    assert error.rate_limit_result is not None
    assert 50 < error.rate_limit_result.state.retry_after <= 60
    assert isinstance(pickle.loads(pickle.dumps(error)), RefusedError)
    assert len(server.seen) == 1


async def test_the_timeout_of_the_session_gives_the_slot_back(server: Enforcing) -> None:
    async with session("1/s") as http:
        await status(http, server.url)
        with pytest.raises(asyncio.TimeoutError):
            await status(http, server.url, timeout=aiohttp.ClientTimeout(total=0.1))
        begun = time.monotonic()
        await status(http, server.url)

    assert time.monotonic() - begun < 1.5


async def test_key_and_cost_may_be_said_by_async_functions(server: Enforcing) -> None:
    async def key(request: aiohttp.ClientRequest) -> str:
        return request.url.path

    async with session("10/m", key=key, cost=lambda request: 6, timeout=-1) as http:
        await status(http, f"{server.url}/a")
        await status(http, f"{server.url}/b")
        with pytest.raises(RefusedError):
            await status(http, f"{server.url}/a")


async def test_a_key_that_is_none_is_an_error_before_anything_is_sent(server: Enforcing) -> None:
    def nobody(request: aiohttp.ClientRequest) -> Any:
        return None

    async with session(key=nobody) as http:
        with pytest.raises(DataError, match="nobody returned it"):
            await status(http, server.url)
    assert not server.seen


@pytest.mark.parametrize("body", [{"data": b"body"}, {"json": {"a": 1}}, {"data": {"a": "1"}}, {}])
async def test_a_refused_request_is_sent_again(body: dict[str, Any]) -> None:
    def answer(number: int) -> tuple[int, dict[str, str]]:
        return (429, {"Retry-After": "1"}) if number == 0 else (200, {})

    with Enforcing(answer=answer) as server:
        async with session(retries=1) as http, http.post(server.url, **body) as response:
            assert await response.text() == "ok"

    assert len(server.seen) == 2
    assert server.seen[0].body == server.seen[1].body
    assert server.seen[1].at - server.seen[0].at >= 1.0


async def test_a_body_that_may_be_used_up_is_not_sent_again() -> None:
    with Enforcing(answer=lambda number: (429, {"Retry-After": "0"})) as server:
        body = io.BytesIO(b"body")
        async with session(retries=3) as http, http.post(server.url, data=body) as response:
            assert response.status == 429
        assert len(server.seen) == 1


async def test_every_hop_of_a_redirect_is_counted(server: Enforcing) -> None:
    async with session("3/m", timeout=-1) as http:
        assert await status(http, f"{server.url}/redirect") == 200
        await status(http, server.url)
        with pytest.raises(RefusedError):
            await status(http, server.url)


@pytest.mark.server
async def test_sessions_share_a_limit_on_a_server(server: Enforcing, valkey: Server) -> None:
    store = RedisStore(valkey.url, options=PATIENT)
    arguments: dict[str, Any] = {"key_prefix": "aiohttp", "key": "service", "timeout": -1}
    async with session("3/m", store=store, **arguments) as http:
        await status(http, server.url)
        await status(http, server.url)
    async with session("3/m", store=store, **arguments) as http:
        await status(http, server.url)
        with pytest.raises(RefusedError):
            await status(http, server.url)
    await store.close()
