"""Four processes of the service on one store, and a thousand clients."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from tests.cli.running import started
from tests.servers import HOST, Server
from tests.servers.process import free_port
from throttled import RedisStore, Throttled
from throttled.asyncio.service import Client
from throttled.exceptions import ServiceUnavailableError
from throttled.service.v1 import throttled_pb2 as v1
from throttled.service.v1.throttled_pb2_grpc import RateLimiterStub

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.realtime]

#: What is counted is the subject, not how fast a busy machine connects.
PATIENT: dict[str, Any] = {"decision_timeout": 20.0}
POLICIES = """
[stores.main]
url = "{url}"
options = {{ DECISION_TIMEOUT = 10.0 }}

[policies.api]
quota = "700/h"
using = "{using}"
key_prefix = "throttled:fleet:{using}"
store = "main"
"""


class Fleet:
    """Processes that decide by one file."""

    def __init__(self, path: Path, size: int = 4) -> None:
        self.path = path
        self.addresses = [f"{HOST}:{free_port()}" for _ in range(size)]
        self.processes = [self._start(address) for address in self.addresses]

    def _start(self, address: str) -> Any:
        process = started("serve", self.path, "--listen", address, "--http", "off")
        assert address in process.stdout.readline().decode()
        return process

    def kill(self, place: int) -> None:
        process = self.processes[place]
        process.send_signal(signal.SIGKILL)
        process.communicate()

    def restart(self, place: int) -> None:
        self.processes[place] = self._start(self.addresses[place])

    def close(self) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.communicate(timeout=30)
            assert process.returncode == 0


@pytest.fixture(params=["gcra", "sliding_window_log"])
def fleet(
    request: pytest.FixtureRequest, tmp_path: Path, valkey: Server
) -> Iterator[tuple[Fleet, Any]]:
    path = tmp_path / "policies.toml"
    path.write_text(POLICIES.format(url=valkey.url, using=request.param), "utf-8")
    prefix = f"throttled:fleet:{request.param}"
    fleet = Fleet(path)
    try:
        with RedisStore(valkey.url, {"DECISION_TIMEOUT": 10.0}) as store:
            direct = Throttled(using=request.param, quota="700/h", store=store, key_prefix=prefix)
            direct.reset("k")
            yield fleet, direct
            direct.reset("k")
    finally:
        fleet.close()


async def closed(clients: list[Client]) -> None:
    await asyncio.gather(*[client.close() for client in clients])


async def test_a_thousand_clients_admit_exactly_the_quota(fleet: tuple[Fleet, Any]) -> None:
    servers, direct = fleet
    clients = [Client(servers.addresses[n % 4], **PATIENT) for n in range(1000)]
    limits = [client.policy("api") for client in clients]
    results = await asyncio.gather(*[limit.limit("k") for limit in limits])
    assert len([each for each in results if each.allowed]) == 700
    # Nobody counts for themselves: a program that asks the store agrees.
    assert direct.peek("k").remaining == 0
    refused = [each for each in results if each.limited]
    assert all(each.state.retry_after > 0 for each in refused)
    await closed(clients)


async def test_one_is_killed_under_load_and_comes_back(fleet: tuple[Fleet, Any]) -> None:
    servers, direct = fleet
    clients = [Client(address, decision_timeout=5.0) for address in servers.addresses]
    limits = [client.policy("api") for client in clients]
    admitted, lost, sent = [0] * 4, [0] * 4, [0] * 4
    begun, gone, back = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def ask(place: int) -> None:
        while sum(admitted) < 500 or not back.is_set():
            if sum(sent) >= 1200:  # the quota would be used up before the end
                await asyncio.sleep(0.05)
            sent[place] += 1
            try:
                result = await limits[place].limit("k")
            except ServiceUnavailableError:
                lost[place] += 1
                gone.set()
                await asyncio.sleep(0.05)
            else:
                admitted[place] += result.allowed
                if sum(admitted) >= 100:
                    begun.set()
                if place == 2 and lost[2]:
                    back.set()

    async def happen() -> None:
        await begun.wait()
        servers.kill(2)
        await gone.wait()
        await asyncio.to_thread(servers.restart, 2)

    await asyncio.wait_for(asyncio.gather(happen(), *[ask(place) for place in range(4)]), 90)
    assert lost[2] > 0
    assert [lost[place] for place in (0, 1, 3)] == [0, 0, 0]
    # What was answered was counted; of what was not, one message may have been.
    used = 700 - direct.peek("k").remaining
    assert sum(admitted) <= used <= min(sum(admitted) + lost[2], 700)
    await closed(clients)


async def test_a_ticket_is_settled_once_by_whichever_process(fleet: tuple[Fleet, Any]) -> None:
    servers, direct = fleet
    channels = [grpc.aio.insecure_channel(address) for address in servers.addresses]
    stubs = [RateLimiterStub(channel) for channel in channels]
    reserved = await stubs[0].Reserve(v1.ReserveRequest(policy="api", key="k", cost=300))
    assert direct.peek("k").remaining == 400
    settling = [
        stubs[n % 4].Settle(v1.SettleRequest(ticket=reserved.ticket, actual=100 + n))
        for n in range(16)
    ]
    answers = await asyncio.gather(*settling)
    settled = [n for n, answer in enumerate(answers) if answer.settled]
    assert len(settled) == 1
    assert direct.peek("k").remaining == 700 - 100 - settled[0]
    # Also when the process that issued it is gone.
    again = await stubs[1].Reserve(v1.ReserveRequest(policy="api", key="k", cost=50))
    servers.kill(1)
    assert (await stubs[3].Settle(v1.SettleRequest(ticket=again.ticket))).settled
    assert direct.peek("k").remaining == 700 - 100 - settled[0]
    servers.restart(1)
    assert not (await stubs[0].Settle(v1.SettleRequest(ticket=again.ticket))).settled
    for channel in channels:
        await channel.close()
