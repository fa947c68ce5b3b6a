"""The side port: what it shows, to whom, and that nobody can hold it up."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from contextlib import suppress
from typing import Any

import httpx
import pytest

from tests.servers import Server, free_port
from tests.service.sites import HOST, connected, prefix, until
from tests.service.test_serving import check, running
from throttled import MemoryStore, Rule
from throttled.asyncio import RedisStore, Throttled
from throttled.service import side

pytestmark = pytest.mark.realtime

HTTP = f"{HOST}:0"


async def get(service: Any, path: str, **arguments: Any) -> httpx.Response:
    method = arguments.pop("method", "GET")
    async with httpx.AsyncClient() as client:
        url = f"http://{service.http_address}{path}"
        return await client.request(method, url, **arguments)


async def test_health_and_what_there_is_not() -> None:
    async with running(http=HTTP) as service:
        answer = await get(service, "/healthz")
        assert (answer.status_code, answer.text) == (200, "ok\n")
        assert answer.headers["cache-control"] == "no-store"
        for path in ("/", "/stat", "/metrics/", "/healthz/../x", "/%00"):
            assert (await get(service, path)).status_code == 404
        for method in ("POST", "PUT", "DELETE", "OPTIONS"):
            answer = await get(service, "/stats", method=method)
            assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")
        whole = await get(service, "/healthz")
        head = await get(service, "/healthz", method="HEAD")
        assert (head.status_code, head.text) == (200, "")
        assert head.headers["content-length"] == whole.headers["content-length"]


async def test_metrics_of_every_policy() -> None:
    policies = {
        name: Throttled(quota="1/h", store=MemoryStore(), key_prefix=name) for name in ("a", "b")
    }
    async with running(policies, http=HTTP) as service, connected(service.address) as channel:
        for _ in range(3):
            await check(channel, "a")
        answer = await get(service, "/metrics")
        assert answer.headers["content-type"].startswith("text/plain; version=")
        lines = answer.text.splitlines()
        for outcome, number in (("allowed", 1), ("refused", 2)):
            labels = f'{{limit="a",outcome="{outcome}",source="memory"}}'
            assert f"throttled_decisions_total{labels} {number}.0" in lines
        assert any(line.startswith('throttled_store_keys{store="memory"} 1') for line in lines)
        assert any(line.startswith("process_resident_memory_bytes ") for line in lines)
        # Those that nobody has asked are there as well.
        assert 'throttled_near_limit_total{limit="b"} 0.0' in lines


async def test_stats_are_as_documented() -> None:
    first, second = MemoryStore(), MemoryStore()
    dead = RedisStore(f"redis://{HOST}:{free_port()}/0")
    rules = [Rule("3/h"), Rule("100/d", "gcra", cost=2, name="calls")]
    policies = {
        "api": Throttled(quota=rules, store=first),
        "other": Throttled(quota="1/h", store=second),
        "down": Throttled(quota="1/h", store=dead, on_store_error=second),
        "by key": Throttled(quota=lambda key: "9/h", store=first, key_prefix="key"),
    }
    async with running(policies, http=HTTP) as service, connected(service.address) as channel:
        for key in ("ann", "ann", "bob", "ann", "ann"):
            await check(channel, "api", key)
        await check(channel, "other")
        waiting = check(channel, "other", wait=7200)
        task = asyncio.ensure_future(waiting.code())
        await check(channel, "down")
        await until(lambda: service.servicer._waiting)
        answer = await get(service, "/stats")
        assert answer.headers["content-type"] == "application/json"
        told = answer.json()
        waiting.cancel()
        await task
    await dead.close()
    names = "version uptime draining under_way policies stores policy_file tickets"
    assert sorted(told) == sorted(names.split())
    assert (told["draining"], told["under_way"], told["policy_file"]) == (False, 1, None)
    assert told["tickets"] == {"issued": 0, "settled": 0}
    assert 0 < told["uptime"] < 60
    api = told["policies"]["api"]
    assert api["rules"] == [
        {"quota": "3/h", "algorithm": "token_bucket", "cost": None, "name": None},
        {"quota": "100/d", "algorithm": "gcra", "cost": 2, "name": "calls"},
    ]
    assert (api["allowed"], api["refused"], api["errors"], api["waiting"]) == (4, 1, 0, 0)
    assert (api["store"], api["on_store_error"], api["enforce"]) == ("memory", "raise", True)
    assert (api["by_key"], api["tiers"], api["overrides"]) == (False, [], [])
    assert (api["key_prefix"], api["hides_keys"]) == ("throttled", False)
    assert api["decision_seconds"]["p50"] > 0
    assert api["per_second"] > 0
    assert api["keys"]["busiest"]["top"][0] == {"key": "ann", "calls": 4}
    assert api["keys"]["most_refused"]["top"] == [{"key": "ann", "refused": 1}]
    assert told["policies"]["other"]["waiting"] == 1
    down = told["policies"]["down"]
    assert (down["store"], down["on_store_error"], down["errors"]) == ("redis", "memory-2", 1)
    assert (told["policies"]["by key"]["by_key"], told["policies"]["by key"]["rules"]) == (True, [])
    stores = told["stores"]
    assert sorted(stores) == ["memory", "memory-2", "redis"]
    assert stores["memory"]["state"] == "closed"
    assert stores["memory"]["keys"] == 4
    assert stores["redis"]["kind"] == "redis"
    assert stores["redis"]["failures"] == 1
    assert "Connect" in stores["redis"]["last_error"]


@pytest.mark.server
async def test_keys_that_the_store_hides_are_hidden(valkey: Server) -> None:
    store = RedisStore(valkey.url, hash_keys=True)
    policies = {"api": Throttled(quota="3/h", store=store, key_prefix=prefix())}
    async with running(policies, http=HTTP) as service, connected(service.address) as channel:
        await check(channel, "api", "ann@example.org")
        text = (await get(service, "/stats")).text
    await store.close()
    assert "ann" not in text
    assert '"key": "sha256:' in text


async def test_stats_want_the_token_as_well(caplog: pytest.LogCaptureFixture) -> None:
    async with running(http=HTTP, tokens=["t"]) as service:
        for path in ("/metrics", "/healthz"):
            assert (await get(service, path)).status_code == 200
        for headers in ({}, {"Authorization": "Bearer x"}, {"Authorization": "Basic t"}):
            answer = await get(service, "/stats", headers=headers)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
            assert "api" not in answer.text
        answer = await get(service, "/stats", headers={"Authorization": "Bearer t"})
        assert json.loads(answer.text)["policies"].keys() == {"api"}
    assert caplog.text.count("Refused /stats from 127.0.0.1") == 3


async def test_garbage(caplog: pytest.LogCaptureFixture) -> None:
    async with running(http=HTTP) as service:
        assert service.http_address is not None
        host, _, port = service.http_address.rpartition(":")
        for content in (b"\x00\xff\r\n\r\n", b"GET / HTTP/9\r\n\r\n", b"GET " + b"x" * 100_000):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(content + b"\r\n\r\n")
            answer = b""
            with suppress(ConnectionError):
                answer = await reader.read()
            assert answer[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 404", b"")
            writer.close()
        assert (await get(service, "/healthz")).status_code == 200
    assert "Traceback" not in caplog.text


async def test_who_does_not_read_is_broken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(side, "_LONGEST", 1.0)
    monkeypatch.setattr(side, "_MOST", 8)
    policies = {
        f"p{number}": Throttled(quota="1/h", store=MemoryStore(), key_prefix=f"p{number}")
        for number in range(100)
    }
    async with running(policies, http=HTTP) as service, connected(service.address) as channel:
        assert service.http_address is not None
        host, _, port = service.http_address.rpartition(":")
        open_now: Any = service._side._server.server_state.connections  # type: ignore[union-attr]
        there = host, int(port)
        slow = [socket.create_connection(there) for _ in range(4)]
        try:
            for each in slow:
                each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
                each.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            await until(lambda: len(open_now) == 4)
            slow += [socket.create_connection(there) for _ in range(5)]
            # Too many, for the moment; limits are decided all the same.
            await until(lambda: len(open_now) == 9)
            assert (await get(service, "/healthz")).status_code == 503
            assert (await check(channel, "p1")).allowed
            slow += [socket.create_connection(there) for _ in range(20)]
            await until(lambda: len(open_now) >= 16)
            await asyncio.sleep(0.05)
            assert len(open_now) <= 16
            await until(lambda: not open_now)
            assert (await get(service, "/healthz")).status_code == 200
        finally:
            for each in slow:
                each.close()


async def test_asking_often_does_not_take_more_time(monkeypatch: pytest.MonkeyPatch) -> None:
    made = 0

    def slow(registry: Any) -> bytes:
        nonlocal made
        made += 1
        time.sleep(0.05)
        return b"metrics"

    monkeypatch.setattr(side, "generate_latest", slow)
    async with running(http=HTTP) as service:
        answers = await asyncio.gather(*[get(service, "/metrics") for _ in range(20)])
        assert {each.text for each in answers} == {"metrics"}
        assert made <= 3
        began = made
        await asyncio.sleep(0.6)
        await get(service, "/metrics")
        assert made == began + 1


async def test_it_is_not_there_where_it_is_not_wanted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with running() as service:
        assert service.http_address is None
        assert len(service.told_addresses()) == 1
