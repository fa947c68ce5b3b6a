"""The Redis store's way to its server: options, URLs, connections, failures, interrupts.

What it decides is the contract suite's subject.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import anyio
import fakeredis
import pytest
import redis
import redis.asyncio as aredis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests import servers
from tests.servers import HOST, Proxy, SentinelServer, Server, cluster, free_port, wait_until
from throttled.algorithms.plan import LOOK, Plan, make_plan
from throttled.asyncio import Throttled as AsyncThrottled
from throttled.exceptions import SetUpError, StateError, StoreUnavailableError
from throttled.quota import Quota
from throttled.store.aioredis import RedisStore as AsyncRedisStore
from throttled.store.base import Ticket
from throttled.store.connection import (
    OPTIONS,
    ClusterConnectionFactory,
    ConnectionFactory,
    SentinelConnectionFactory,
    masked,
)
from throttled.store.loops import AsyncLane
from throttled.store.redis import RedisStore
from throttled.testing import FakeClock

pytestmark = pytest.mark.realtime

if TYPE_CHECKING:
    from collections.abc import Iterator

valkey, server = servers.valkey, servers.server
on_server = pytest.mark.server

PLAN = make_plan("token_bucket", Quota.parse("5/m"))
DECISIONS = ("evalsha", "eval")


@pytest.fixture
def key() -> str:
    """A key that no other test uses."""
    return f"user-{time.monotonic_ns()}"


@pytest.fixture
def proxy(valkey: Server) -> Iterator[Proxy]:
    with Proxy(valkey) as proxy:
        yield proxy


def left(store: RedisStore, key: str, plan: Plan = PLAN) -> int:
    return int(store.run(plan, key, 0, LOOK)[2])


def run(store: Any, *args: Any) -> Any:
    """A call of either flavour, run to its end."""
    reply = store.run(*args)
    return asyncio.run(reply) if asyncio.iscoroutine(reply) else reply


# --- options and URLs ----------------------------------------------------------------------------

FLAVOURS = pytest.mark.parametrize("make", [RedisStore, AsyncRedisStore])


@FLAVOURS
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"server": "http://localhost"}, "must begin with one of redis://, rediss://, unix://"),
        ({"server": "localhost:6379"}, "Invalid Redis URL"),
        ({"server": 6379}, "Invalid Redis URL: '6379'"),
        ({"server": "redis://localhost:port/0"}, "Invalid Redis URL"),
        ({"server": "redis://localhost/0?max_connections=many"}, "max_connections"),
        ({"server": "redis://localhost/0?nonsense=1"}, "nonsense"),
        ({"server": "redis+sentinel://h1:26379,h2"}, "host:26379/service"),
        ({"server": "redis+sentinel://h1/service/x"}, "Invalid Sentinel URL"),
        ({"server": "redis+sentinel://h1:99999/service"}, "'h1:99999' must be host or host:port"),
        ({"server": "redis+cluster://h1,h2/3"}, "no databases but 0"),
        ({"server": "redis+cluster://"}, "Invalid Cluster URL"),
        ({"options": {"POOL_KWARGS": {}}}, "Unknown option: 'POOL_KWARGS', must be one of CONN"),
        ({"options": {"PASSWORD": 5}}, "PASSWORD: got int, must be a string or None"),
        ({"options": {"SOCKET_TIMEOUT": "5"}}, "SOCKET_TIMEOUT: got str, must be seconds"),
        ({"options": {"SOCKET_TIMEOUT": -1}}, "SOCKET_TIMEOUT: -1, must be seconds above 0"),
        ({"options": {"SENTINELS": [("h", "1")]}}, "must be a .host, port. pair"),
        ({"options": {"CONNECTION_POOL_KWARGS": []}}, "got list, must be a dictionary"),
        ({"options": {"CONNECTION_POOL_KWARGS": {"nonsense": 1}}}, "nonsense"),
        ({"options": {"CONNECTION_POOL_CLASS": "no.such.Pool"}}, "cannot load 'no.such.Pool'"),
        ({"options": {"CONNECTION_POOL_CLASS": "os.getcwd"}}, "is not a class"),
        ({"options": ["PASSWORD"]}, "must be a dictionary"),
        ({"client": object()}, "Invalid client: builtins.object"),
        ({"clock": 5}, "Invalid clock: 5"),
    ],
)
def test_what_cannot_work_is_refused_when_the_store_is_made(
    make: Any, arguments: dict[str, Any], says: str
) -> None:
    with pytest.raises(SetUpError, match=says):
        make(**arguments)


def test_options_are_those_of_the_documentation() -> None:
    assert set(OPTIONS) == {
        "CONNECTION_FACTORY_CLASS",
        "CONNECTION_POOL_CLASS",
        "CONNECTION_POOL_KWARGS",
        "REDIS_CLIENT_CLASS",
        "REDIS_CLIENT_KWARGS",
        "PASSWORD",
        "SOCKET_TIMEOUT",
        "SOCKET_CONNECT_TIMEOUT",
        "SENTINELS",
        "SENTINEL_KWARGS",
        "CLUSTER_NODES",
        "PARSER_CLASS",
        "DECISION_TIMEOUT",
        "LOCAL_DENY_SECONDS",
        "LOCAL_SHARE",
    }


@FLAVOURS
def test_the_constructor_never_connects(make: Any) -> None:
    nobody = free_port()
    for server in (
        f"redis://{HOST}:{nobody}/0",
        f"redis+sentinel://{HOST}:{nobody}/service",
        f"redis+cluster://{HOST}:{nobody}",
        "unix:///no/such/socket",
    ):
        make(server)


@FLAVOURS
@pytest.mark.parametrize(
    ("server", "named"),
    [
        ("redis://:secret@{}/0", "{}"),
        ("redis+sentinel://:secret@{}/service", "service .Sentinels {}"),
        ("redis+cluster://:secret@{}", "cluster {}"),
        ("unix://:secret@/no/such/socket", "/no/such/socket"),
    ],
)
def test_an_unreachable_server_is_named(make: Any, server: str, named: str, key: str) -> None:
    nobody = f"{HOST}:{free_port()}"
    store = make(server.format(nobody))
    with pytest.raises(StoreUnavailableError, match=named.format(nobody)) as caught:
        run(store, PLAN, key, 1, 0.0)
    assert caught.value.__cause__ is not None
    assert "secret" not in str(caught.value)


def test_secrets_are_not_shown() -> None:
    urls = [
        "redis://user:secret@localhost:6379/0",
        "redis://:sec@ret@localhost/0",
        "redis://:secret/more@localhost/0",
        "unix:///socket?db=1&password=secret",
        "redis+sentinel://:secret@h1:1,h2:2/service?sentinel_password=secret",
    ]
    for url in urls:
        assert "secret" not in masked(url)
        assert "ret@" not in masked(url)
    store = RedisStore(urls[0], {"PASSWORD": "hidden", "SENTINEL_KWARGS": {"password": "hidden"}})
    assert repr(store) == "RedisStore('redis://user:***@localhost:6379/0')"
    for bad in (
        "redis://:secret@localhost/0?nonsense=1",
        "redis://:secret/more@localhost/0",
        "redis+sentinel://:secret/more@localhost/service",
    ):
        with pytest.raises(SetUpError) as caught:
            RedisStore(bad)
        assert "secret" not in str(caught.value)


def test_without_the_redis_package_the_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['redis'] = None\n"
        "from throttled.store.redis import RedisStore\n"
        "from throttled.exceptions import SetUpError\n"
        "try: RedisStore()\n"
        "except SetUpError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 'pip install "throttled-core[redis]"' in done.stdout


def test_importing_the_store_does_not_import_redis() -> None:
    code = (
        "import sys, throttled.store.redis, throttled.store.aioredis; print('redis' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_options_are_never_changed() -> None:
    options: dict[str, Any] = {
        "CONNECTION_POOL_KWARGS": {"max_connections": 3},
        "REDIS_CLIENT_KWARGS": {},
        "PASSWORD": "x",
    }
    before = {name: dict(v) if isinstance(v, dict) else v for name, v in options.items()}
    store = RedisStore("redis://localhost/0", options)
    store._ready()
    assert options == before
    options["PASSWORD"] = "y"
    assert store._options["PASSWORD"] == "x"


class OwnFactory(ConnectionFactory):
    """A user's factory: one overridden method."""

    def make_connection_params(self, url: str) -> dict[str, Any]:
        return {**super().make_connection_params(url), "client_name": "own-factory"}


class OwnPool(redis.ConnectionPool):
    """A user's pool."""


class OwnClient(redis.Redis):
    """A user's client."""


@pytest.mark.parametrize("by_path", [True, False])
def test_classes_are_taken_by_path_or_as_they_are(by_path: bool) -> None:
    def given(cls: type) -> Any:
        return f"{__name__}.{cls.__name__}" if by_path else cls

    store = RedisStore(
        options={
            "CONNECTION_FACTORY_CLASS": given(OwnFactory),
            "CONNECTION_POOL_CLASS": given(OwnPool),
            "REDIS_CLIENT_CLASS": given(OwnClient),
            "PARSER_CLASS": "redis._parsers._RESP2Parser",
        }
    )
    assert store._factory is not None
    client = store._factory.connect("redis://localhost:1/3")
    assert type(client) is OwnClient
    assert type(client.connection_pool) is OwnPool
    kwargs = client.connection_pool.connection_kwargs
    assert kwargs["client_name"] == "own-factory"
    assert kwargs["parser_class"].__name__ == "_RESP2Parser"
    assert kwargs["db"] == 3


def test_factories_load_by_their_public_path() -> None:
    for name in ("ConnectionFactory", "SentinelConnectionFactory", "ClusterConnectionFactory"):
        for module in ("throttled.store", "throttled.asyncio.store"):
            options = {"CONNECTION_FACTORY_CLASS": f"{module}.{name}"}
            if name.startswith("Sentinel"):
                options["SENTINELS"] = [("localhost", 26379)]  # type: ignore[assignment]
            store = RedisStore("redis://service/0", options)
            assert type(store._factory).__name__ == name


@pytest.mark.parametrize("asynchronous", [False, True])
def test_urls_and_options_become_the_arguments_of_connections(asynchronous: bool) -> None:
    def params(url: str, **options: Any) -> dict[str, Any]:
        return ConnectionFactory(options, asynchronous).make_connection_params(url)

    plain = params("redis://u:p%40w@h:7/2", SOCKET_TIMEOUT=0.5, SOCKET_CONNECT_TIMEOUT=2)
    assert (plain["host"], plain["port"]) == ("h", 7)
    assert (plain["username"], plain["password"], plain["db"]) == ("u", "p@w", 2)
    assert (plain["socket_timeout"], plain["socket_connect_timeout"]) == (0.5, 2)
    assert params("redis://h", PASSWORD="x")["password"] == "x"
    assert "password" not in params("redis://h", PASSWORD="")
    assert params("redis://:url@h", PASSWORD="option")["password"] == "url"
    assert params("redis://h")["socket_timeout"] == 5
    assert (
        params("redis://h", CONNECTION_POOL_KWARGS={"socket_timeout": None})["socket_timeout"]
        is None
    )
    assert int(params("redis://h?protocol=3")["protocol"]) == 3
    flavour = "redis.asyncio" if asynchronous else "redis."
    assert params("rediss://h")["connection_class"].__name__ == "SSLConnection"
    assert params("rediss://h")["connection_class"].__module__.startswith(flavour)
    assert params("unix:///s?db=4")["path"] == "/s"


def test_urls_of_sentinels_and_clusters() -> None:
    sentinel = SentinelConnectionFactory({"SENTINELS": [("other", 1)]})
    assert sentinel.service(
        "redis+sentinel://u:p%3A@h1:26380,[::1]:5,h2/name/3?max_connections=4"
    ) == (
        [("h1", 26380), ("::1", 5), ("h2", 26379)],
        "name",
        {"username": "u", "password": "p:", "db": 3, "max_connections": 4},
    )
    assert sentinel.service("redis://name/2") == ([("other", 1)], "name", {"db": 2})
    nodes = ClusterConnectionFactory({"CLUSTER_NODES": [("h3", 7003)]})
    assert nodes.nodes("redis+cluster://:p@h1,h2:7002") == (
        [("h1", 6379), ("h2", 7002), ("h3", 7003)],
        {"password": "p"},
    )
    assert nodes.nodes("redis://h1:7001") == ([("h1", 7001), ("h3", 7003)], {})


# --- shared connections --------------------------------------------------------------------------


def test_stores_share_a_pool_if_nothing_distinguishes_them() -> None:
    def road(server: str = "redis://localhost:1/0", **options: Any) -> Any:
        store = RedisStore(server, options)
        kept.append(store)
        return store._ready()

    kept: list[RedisStore] = []
    before = set(RedisStore._shared._things)
    first = road()
    assert road() is first
    assert road(SOCKET_TIMEOUT=1) is road(SOCKET_TIMEOUT=1)
    assert road(SOCKET_TIMEOUT=1) is not road(SOCKET_TIMEOUT=1.0)
    unhashable = [1]
    roads = [
        first,
        road("redis://localhost:1/1"),
        road("redis://:x@localhost:1/0"),
        road(PASSWORD="x"),
        road(CONNECTION_POOL_CLASS="redis.BlockingConnectionPool"),
        road(CONNECTION_POOL_KWARGS={"max_connections": 1}),
        road(CONNECTION_POOL_KWARGS={"max_connections": True}),
        road(CONNECTION_POOL_KWARGS={"client_name": "a"}),
        road(REDIS_CLIENT_CLASS=OwnClient),
        road(CONNECTION_FACTORY_CLASS=OwnFactory),
        road(CONNECTION_POOL_KWARGS={"credential_provider": unhashable}),
    ]
    assert len(set(map(id, roads))) == len(roads)
    for store in kept:
        store.close()
    assert set(RedisStore._shared._things) <= before


@on_server
def test_the_last_of_the_users_closes_the_pool(valkey: Server, key: str) -> None:
    with valkey.client() as client:
        before = len(client.client_list())
        one, two = RedisStore(valkey.url), RedisStore(valkey.url)
        one.run(PLAN, key, 1, 0.0)
        two.run(PLAN, key, 1, 0.0)
        assert len(client.client_list()) == before + 1
        one.close()
        one.close()
        assert left(two, key) == 3
        assert len(client.client_list()) == before + 1
        two.close()
        wait_until(lambda: len(client.client_list()) == before, "the end of the connection")
        assert left(one, key) == 3  # A closed store opens again when it is used.
        one.close()


@on_server
def test_the_only_connection_of_a_users_pool_is_left_to_the_user(valkey: Server, key: str) -> None:
    pool = redis.ConnectionPool.from_url(valkey.url, max_connections=1, retry=Retry(NoBackoff(), 0))
    with redis.Redis(connection_pool=pool) as client, RedisStore(client=client) as store:
        for _ in range(3):
            store.run(PLAN, key, 1, 0.0)
            client.ping()
        busy = pool.get_connection()
        with pytest.raises(StoreUnavailableError, match=r"[Tt]oo many connections"):
            store.run(PLAN, key, 1, 0.0)
        pool.release(busy)
        assert left(store, key) == 2
    pool.disconnect()


@on_server
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"CONNECTION_POOL_CLASS": "redis.BlockingConnectionPool"},
        {"CONNECTION_POOL_KWARGS": {"max_connections": 8, "protocol": 3}},
        {"CONNECTION_POOL_KWARGS": {"decode_responses": True, "health_check_interval": 1}},
        {"PARSER_CLASS": "redis._parsers._RESP2Parser"},
    ],
    ids=str,
)
def test_threads_share_a_store(server: Server, key: str, options: dict[str, Any]) -> None:
    plan = make_plan("token_bucket", Quota.parse("50/h"))
    admitted: list[bool] = []

    def work() -> None:
        for _ in range(20):
            admitted.append(store.run(plan, key, 1, 0.0)[1] == 0)  # noqa: PERF401 - one by one

    with RedisStore(server.url, options) as store:
        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert (len(admitted), sum(admitted)) == (160, 50)


# --- kinds of servers and clients ----------------------------------------------------------------


@on_server
@FLAVOURS
def test_keys_of_any_kind(server: Server, make: Any) -> None:
    keys = ["a", "a b\r\n$1", "{tag}", "%7Btag%7D", "é", "\U0001f600", "\udcff", "x" * 100_000]

    def remaining(store: Any) -> list[float]:
        return [run(store, PLAN, each, 1, 0.0)[2] for each in keys]

    store = make(server.url)
    assert remaining(store) == [4.0] * len(keys)
    assert remaining(store) == [3.0] * len(keys)
    with server.client() as client:
        assert client.exists("throttled:v1:token_bucket:60000000:{%7Btag%7D}")
        assert client.exists("throttled:v1:token_bucket:60000000:{%257Btag%257D}")
        client.flushall()


@on_server
@FLAVOURS
def test_a_unix_socket(valkey: Server, make: Any, key: str) -> None:
    assert run(make(f"unix://{valkey.unix_socket}?db=1"), PLAN, key, 1, 0.0)[2] == 4


@on_server
@FLAVOURS
def test_a_password(make: Any, key: str) -> None:
    with Server(password="open sesame") as server:
        with_url = make(f"redis://:open%20sesame@{HOST}:{server.port}/0")
        assert run(with_url, PLAN, key, 1, 0.0)[2] == 4
        with_option = make(server.url, {"PASSWORD": "open sesame"})
        assert run(with_option, PLAN, key, 1, 0.0)[2] == 3
        for wrong in (make(server.url), make(server.url, {"PASSWORD": "sesame street"})):
            with pytest.raises(StoreUnavailableError) as caught:
                run(wrong, PLAN, key, 1, 0.0)
            assert "sesame" not in str(caught.value)
        for store in (with_url, with_option):
            if make is RedisStore:
                store.close()


@on_server
@pytest.mark.parametrize(
    "kwargs",
    [{}, {"decode_responses": True}, {"protocol": 3}, {"single_connection_client": True}],
    ids=str,
)
def test_a_client_of_the_user(server: Server, key: str, kwargs: dict[str, Any]) -> None:
    plan = make_plan("fixed_window", Quota.parse("5/h"))
    with redis.Redis(host=HOST, port=server.port, **kwargs) as client:
        retry = client.connection_pool.connection_kwargs["retry"]
        store = RedisStore(client=client)
        assert f"{HOST}:{server.port}" in repr(store)
        assert [store.run(plan, key, 2, 0.0)[1] == 0 for _ in range(3)] == [True, True, False]
        ticket = store.run(plan, key, 5, 4e9)[0]
        assert isinstance(ticket, Ticket)
        assert store.undo(ticket)
        store.close()
        assert client.ping()
        assert client.connection_pool.connection_kwargs["retry"] == retry

    async def go() -> None:
        async with aredis.Redis(
            host=HOST, port=server.port, decode_responses="decode_responses" in kwargs
        ) as client:
            store = AsyncRedisStore(client=client)
            assert (await store.run(plan, key, 1, 0.0))[2] == 0
            ticket = (await store.run(plan, key, 5, 4e9))[0]
            assert await store.undo(ticket)
            await store.close()
            assert await client.ping()

    asyncio.run(go())


def test_a_fake_client(key: str) -> None:
    store = RedisStore(client=fakeredis.FakeRedis(server=fakeredis.FakeServer()))
    assert [store.run(PLAN, key, 2, 0.0)[1] == 0 for _ in range(3)] == [True, True, False]
    ticket = store.run(PLAN, key, 2, 6e7)[0]
    assert store.undo(ticket)

    async def go() -> None:
        client = fakeredis.FakeAsyncRedis(server=fakeredis.FakeServer())
        store = AsyncRedisStore(client=client)
        assert [(await store.run(PLAN, key, 2, 0.0))[1] == 0 for _ in range(3)] == [
            True,
            True,
            False,
        ]
        await client.aclose()

    asyncio.run(go())


def test_a_client_of_the_other_flavour_is_refused() -> None:
    with pytest.raises(SetUpError, match=r"redis\.asyncio belongs to a throttled\.asyncio\.store"):
        RedisStore(client=aredis.Redis())
    with pytest.raises(SetUpError, match=r"one of redis belongs to a throttled\.store"):
        AsyncRedisStore(client=redis.Redis())
    with pytest.raises(SetUpError, match="not both"):
        RedisStore("redis://elsewhere/0", client=redis.Redis())
    with pytest.raises(SetUpError, match="Cannot make a int"):
        RedisStore(options={"CONNECTION_POOL_CLASS": int})


@on_server
@FLAVOURS
def test_sentinels(make: Any, key: str) -> None:
    with Server() as master, SentinelServer(master) as sentinel:
        url = f"redis+sentinel://{HOST}:{free_port()},{HOST}:{sentinel.port}/throttled-master"
        assert run(make(url), PLAN, key, 1, 0.0)[2] == 4
        with_options = make(
            "redis://throttled-master/0",
            {
                "CONNECTION_FACTORY_CLASS": SentinelConnectionFactory,
                "SENTINELS": [(HOST, sentinel.port)],
                "SENTINEL_KWARGS": {"socket_timeout": 1},
            },
        )
        assert run(with_options, PLAN, key, 1, 0.0)[2] == 3
        unknown = make(f"redis+sentinel://{HOST}:{sentinel.port}/nobody")
        with pytest.raises(StoreUnavailableError, match="nobody"):
            run(unknown, PLAN, key, 1, 0.0)
        if make is RedisStore:
            pool = redis.Sentinel([(HOST, sentinel.port)])
            store = RedisStore(client=pool.master_for("throttled-master"))
            assert store.run(PLAN, key, 1, 0.0)[2] == 2


@on_server
def test_a_master_that_became_a_replica_is_left(key: str) -> None:
    with Server() as first, Server() as second, SentinelServer(first) as sentinel:
        store = RedisStore(f"redis+sentinel://{HOST}:{sentinel.port}/throttled-master")
        store.run(PLAN, key, 1, 0.0)
        with first.client() as client, sentinel.client() as control:
            client.replicaof(HOST, second.port)
            control.sentinel_remove("throttled-master")
            control.sentinel_monitor("throttled-master", HOST, second.port, 1)
        # The connection at hand still leads to the old master, which refuses to write.
        assert store.run(PLAN, key, 1, 0.0)[2] == 4
        with second.client() as client:
            assert client.dbsize() == 1
        plain = RedisStore(first.url)
        with pytest.raises(StoreUnavailableError, match="read only replica"):
            plain.run(PLAN, key, 1, 0.0)
        store.close()
        plain.close()


@on_server
def test_a_cluster() -> None:
    plan = make_plan("token_bucket", Quota.parse("5/h"))
    keys = [f"key-{n}" for n in range(12)]
    with cluster(2) as (first, second):
        url = f"redis+cluster://{HOST}:{free_port()},{HOST}:{first.port}"
        store = RedisStore(url)
        for expected in (4, 3):
            assert [store.run(plan, key, 1, 0.0)[2] for key in keys] == [expected] * 12
        replies = store.run_many([(plan, key, 1, 0.0) for key in keys])
        assert [reply[2] for reply in replies] == [2] * 12
        with first.client() as one, second.client() as two:
            assert one.dbsize() > 0
            assert two.dbsize() > 0

        with redis.RedisCluster(host=HOST, port=first.port) as client:
            own = RedisStore(client=client)
            assert [own.run(plan, key, 1, 0.0)[2] for key in keys] == [1] * 12
            _move_slot(client, first, second, "key-3")
            assert [store.run(plan, key, 0, LOOK)[2] for key in keys] == [1] * 12
            assert [own.run(plan, key, 1, 0.0)[2] for key in keys] == [0] * 12

        async def go() -> None:
            async with AsyncRedisStore(url) as store:
                assert [(await store.run(plan, key, 1, 0.0))[1] > 0 for key in keys] == [True] * 12
                ticket = (await store.run(plan, "key-5", 1, 4e9))[0]
                assert await store.undo(ticket)

        asyncio.run(go())
        # Nothing was counted twice along the way: 12 x 4 single runs, the looks, one for two.
        store.close()

        stray = RedisStore(first.url)
        with pytest.raises(SetUpError, match=r"redis\+cluster://"):
            [stray.run(plan, key, 1, 0.0) for key in keys]
        stray.close()


def _move_slot(client: Any, first: Server, second: Server, key: str) -> None:
    """Move a key's slot, so that the first call is answered by MOVED."""
    slot = client.keyslot(f"{{{key}}}")
    with first.client() as one, second.client() as two:
        ids = [node.execute_command("CLUSTER MYID") for node in (one, two)]
        ids = [each.decode() if isinstance(each, bytes) else each for each in ids]
        source, target = (
            (0, 1) if client.get_node_from_key(f"{{{key}}}").port == first.port else (1, 0)
        )
        nodes, ports = (one, two), (first.port, second.port)
        nodes[target].execute_command("CLUSTER SETSLOT", slot, "IMPORTING", ids[source])
        nodes[source].execute_command("CLUSTER SETSLOT", slot, "MIGRATING", ids[target])
        for name in nodes[source].execute_command("CLUSTER GETKEYSINSLOT", slot, 10):
            nodes[source].execute_command("MIGRATE", HOST, ports[target], name, 0, 5000)
        # While the slot is under way, a key that left is asked for by ASK.
        asking = RedisStore(f"redis+cluster://{HOST}:{first.port}?client_name=asking")
        plan = make_plan("token_bucket", Quota.parse("5/h"))
        assert asking.run(plan, key, 0, LOOK)[2] == 1
        asking.close()
        for node in nodes:
            node.execute_command("CLUSTER SETSLOT", slot, "NODE", ids[target])


# --- failures ------------------------------------------------------------------------------------


@on_server
@FLAVOURS
def test_a_forgotten_script_is_sent_again(server: Server, make: Any, key: str) -> None:
    with server.client() as client:
        store = make(server.url)

        async def go() -> None:
            for expected in (4, 3):
                client.script_flush()
                reply = store.run(PLAN, key, 1, 0.0)
                assert (await reply if make is AsyncRedisStore else reply)[2] == expected
            client.script_flush()
            many = store.run_many([(PLAN, key, 1, 0.0), (PLAN, key, 1, 0.0)])
            replies = await many if make is AsyncRedisStore else many
            assert [reply[2] for reply in replies] == [2, 1]

        asyncio.run(go())
        before = server.calls(*DECISIONS)
        run(store, PLAN, key, 1, 0.0)
        assert server.calls(*DECISIONS) == before + 1


@on_server
@pytest.mark.parametrize("mode", ["cut", "swallow"])
@pytest.mark.parametrize("own_client", [False, True])
def test_a_lost_reply_is_one_call_and_an_error(
    valkey: Server, proxy: Proxy, key: str, mode: Any, own_client: bool
) -> None:
    if own_client:  # redis-py's default: ten retries
        client = redis.Redis(host=HOST, port=proxy.port, socket_timeout=0.2)
        store = RedisStore(client=client)
    else:
        retry = {"CONNECTION_POOL_KWARGS": {"retry": Retry(NoBackoff(), 5)}, "SOCKET_TIMEOUT": 0.2}
        store = RedisStore(proxy.url, retry)
    store.run(PLAN, key, 1, 0.0)
    before = valkey.calls(*DECISIONS)
    proxy.mode = mode
    with pytest.raises(StoreUnavailableError, match="may have been counted") as caught:
        store.run(PLAN, key, 1, 0.0)
    assert f"{HOST}:{proxy.port}" in str(caught.value)
    proxy.mode = "pass"
    assert valkey.calls(*DECISIONS) == before + 1
    # The connection with the missing reply was closed, and the late reply is nobody's.
    assert left(store, key) == 3
    store.close()
    if own_client:
        client.close()


@on_server
def test_a_lost_reply_async(valkey: Server, proxy: Proxy, key: str) -> None:
    async def go() -> None:
        client = aredis.Redis(host=HOST, port=proxy.port, socket_timeout=0.2)
        for store in (
            AsyncRedisStore(proxy.url, {"SOCKET_TIMEOUT": 0.2}),
            AsyncRedisStore(client=client),
        ):
            proxy.mode = "pass"
            await store.run(PLAN, key, 1, 0.0)
            before = valkey.calls(*DECISIONS)
            proxy.mode = "swallow"
            with pytest.raises(StoreUnavailableError, match="may have been counted"):
                await store.run(PLAN, key, 1, 0.0)
            proxy.mode = "pass"
            assert valkey.calls(*DECISIONS) == before + 1
            await store.run(PLAN, key, 0, LOOK)
        await client.aclose()

    asyncio.run(go())


@on_server
@FLAVOURS
@pytest.mark.parametrize("own_client", [False, True])
def test_a_restarted_server_is_no_failure(make: Any, own_client: bool, key: str) -> None:
    async def go() -> None:
        flavour: Any = aredis if make is AsyncRedisStore else redis
        client = flavour.Redis(host=HOST, port=server.port)
        store = make(client=client) if own_client else make(server.url)
        for _ in range(2):
            reply = store.run(PLAN, key, 1, 0.0)
            assert (await reply if make is AsyncRedisStore else reply)[2] == 4
            server.restart()
        closing = store.close()
        if make is AsyncRedisStore:
            await closing
            await client.aclose()
        else:
            client.close()

    with Server() as server:
        asyncio.run(go())


@on_server
@FLAVOURS
def test_damaged_state_is_an_error_that_names_the_key(server: Server, make: Any, key: str) -> None:
    store = make(server.url)
    name = f"throttled:v1:token_bucket:60000000:{{{key}}}"
    with server.client() as client:
        for damage in (lambda: client.set(name, "garbage"), lambda: client.lpush(name, "garbage")):
            client.delete(name)
            damage()
            with pytest.raises(StateError, match=name.replace("{", "[{]")):
                run(store, PLAN, key, 1, 0.0)

            async def go() -> Any:
                many = store.run_many([(PLAN, key, 1, 0.0), (PLAN, key + "2", 0, 0.0)])
                return await many if make is AsyncRedisStore else many

            bad, good = asyncio.run(go())
            assert isinstance(bad, StateError)
            assert good[2] == 5
        client.delete(name)


@on_server
def test_a_server_that_refuses(key: str) -> None:
    with Server(None, "--maxmemory", "1") as full:
        store = RedisStore(full.url)
        with pytest.raises(StoreUnavailableError, match="maxmemory"):
            store.run(PLAN, key, 1, 0.0)
        store.close()


# --- interrupts ----------------------------------------------------------------------------------


@on_server
@pytest.mark.parametrize("patience", [0.0, 6e7])
def test_a_call_cancelled_before_its_reply_is_given_back(
    valkey: Server, proxy: Proxy, key: str, patience: float
) -> None:
    plan = make_plan("token_bucket", Quota.parse("5/h" if patience == 0 else "5/m"))
    look = RedisStore(valkey.url)

    async def go() -> None:
        store = AsyncRedisStore(proxy.url)
        await store.run(plan, key, 5 if patience else 3, 0.0)
        before = left(look, key, plan)
        waiting = look.run(plan, key, 1, LOOK)[1]
        proxy.mode = "hold"
        call = asyncio.create_task(store.run(plan, key, 1, patience))
        await asyncio.to_thread(proxy.caught.wait, 5)
        started = time.monotonic()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert time.monotonic() - started < 0.2
        assert look.run(plan, key, 1, LOOK)[1] > waiting or left(look, key, plan) < before
        proxy.mode = "pass"
        await _settled(store)
        assert left(look, key, plan) == before
        assert look.run(plan, key, 1, LOOK)[1] <= waiting
        # The connection is in order: the next reply is the next call's.
        assert (await store.run(plan, key, 0, LOOK))[2] == before

    asyncio.run(go())
    look.close()


async def _settled(store: AsyncRedisStore) -> None:
    """Wait until nothing is under way and all tasks but ours are done."""
    for lane in store._roads[asyncio.get_running_loop()].lanes():
        assert isinstance(lane, AsyncLane)
        await lane.landing(5)
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if others:
        await asyncio.wait(others, timeout=5)


@on_server
def test_a_loop_that_ends_gives_back_what_was_under_way(
    valkey: Server, proxy: Proxy, key: str
) -> None:
    async def go() -> None:
        store = AsyncRedisStore(proxy.url)
        await store.run(PLAN, key, 1, 0.0)
        proxy.mode = "hold"
        asyncio.create_task(store.run(PLAN, key, 1, 0.0))  # noqa: RUF006 - left behind on purpose
        await asyncio.to_thread(proxy.caught.wait, 5)
        threading.Timer(0.1, lambda: setattr(proxy, "mode", "pass")).start()

    asyncio.run(go())
    with RedisStore(valkey.url) as look:
        assert left(look, key) == 4


@on_server
def test_a_cancelled_call_whose_reply_never_comes(proxy: Proxy, key: str) -> None:
    async def go() -> None:
        store = AsyncRedisStore(proxy.url)
        await store.run(PLAN, key, 1, 0.0)
        proxy.mode = "swallow"
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await store.run(PLAN, key, 1, 0.0)
        await _settled(store)
        proxy.mode = "pass"
        # Unknown, so it counts as taken; and the connection was not used again.
        assert (await store.run(PLAN, key, 0, LOOK))[2] == 3

    asyncio.run(go())


@on_server
def test_many_cancelled_calls_leave_no_trace(valkey: Server, key: str) -> None:
    plan = make_plan("gcra", Quota.parse("1000/h"))

    async def go() -> None:
        store = AsyncRedisStore(valkey.url, {"CONNECTION_POOL_KWARGS": {"max_connections": 20}})
        await store.run(plan, key, 0, LOOK)
        for pause in range(40):
            calls = [asyncio.create_task(store.run(plan, key, 1, 0.0)) for _ in range(10)]
            for _ in range(pause % 8):
                await asyncio.sleep(0)
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            kept = sum(not call.cancelled() for call in calls)
            await _settled(store)
            if kept:
                await store.adjust(plan, key, -kept)
        assert (await store.run(plan, key, 0, LOOK))[2] == 1000

    asyncio.run(go())


@on_server
def test_an_interrupted_call_is_given_back(valkey: Server, proxy: Proxy, key: str) -> None:
    class Stop(Exception):  # noqa: N818 - what a signal raises is no error of the store
        pass

    def stop(*_: object) -> None:
        proxy.mode = "pass"
        raise Stop

    look = RedisStore(valkey.url)
    client = redis.Redis(host=HOST, port=proxy.port)
    before = signal.signal(signal.SIGALRM, stop)
    try:
        for store in (RedisStore(proxy.url), RedisStore(client=client)):
            store.run(PLAN, key, 1, 0.0)
            remaining = left(look, key)
            proxy.mode = "hold"
            signal.setitimer(signal.ITIMER_REAL, 0.15)
            with pytest.raises(Stop):
                store.run(PLAN, key, 1, 0.0)
            assert left(look, key) == remaining
            assert left(store, key) == remaining
            store.close()
    finally:
        signal.signal(signal.SIGALRM, before)
        client.close()
        look.close()


# --- loops and processes -------------------------------------------------------------------------


@on_server
def test_a_store_serves_one_loop_after_the_other(valkey: Server, key: str) -> None:
    store = AsyncRedisStore(valkey.url)
    with valkey.client() as client:
        before = len(client.client_list())
        for expected in (4, 3, 2):
            assert run(store, PLAN, key, 1, 0.0)[2] == expected
            assert not store._roads
            assert not store._ends
            wait_until(lambda: len(client.client_list()) == before, "the end of the connections")

    loop = asyncio.new_event_loop()
    assert loop.run_until_complete(store.run(PLAN, key, 1, 0.0))[2] == 1
    loop.run_until_complete(store.close())
    loop.close()


@on_server
def test_two_loops_at_once(valkey: Server, key: str) -> None:
    plan = make_plan("token_bucket", Quota.parse("50/h"))
    store = AsyncRedisStore(valkey.url)
    admitted: list[bool] = []

    async def go() -> None:
        replies = await asyncio.gather(*(store.run(plan, key, 1, 0.0) for _ in range(40)))
        admitted.extend(reply[1] == 0 for reply in replies)

    threads = [threading.Thread(target=asyncio.run, args=(go(),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(admitted), sum(admitted)) == (120, 50)


def _in_child(store: RedisStore, key: str, results: Any) -> None:
    results.put([store.run(PLAN, key, 1, 0.0)[2] for _ in range(2)])


@on_server
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_makes_its_own_connections(valkey: Server, key: str) -> None:
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    with RedisStore(valkey.url) as store:
        store.run(PLAN, key, 1, 0.0)
        child = context.Process(target=_in_child, args=(store, key, results))
        child.start()
        assert results.get(timeout=10) == [3, 2]
        child.join(10)
        assert child.exitcode == 0
        assert store.run(PLAN, key, 1, 0.0)[2] == 1


# --- the calls -----------------------------------------------------------------------------------


@on_server
def test_a_fixed_now_decides_instead_of_the_servers_time(server: Server, key: str) -> None:
    clock = FakeClock()
    plan = make_plan("token_bucket", Quota.parse("1/m"))
    with RedisStore(server.url, clock=clock) as store:
        assert store.run(plan, key, 1, 0.0)[1:] == (0.0, 0.0, 6e7)
        clock.advance(59.999999)
        assert store.run(plan, key, 1, 0.0)[1] == 1.0
        clock.advance(0.000001)
        assert store.run(plan, key, 1, 0.0)[1] == 0.0
        assert store.sleeper is clock


@on_server
def test_promises_are_withdrawn_in_any_order(server: Server, key: str) -> None:
    plan = make_plan("token_bucket", Quota.parse("1/m"))
    with RedisStore(server.url, clock=FakeClock()) as store:
        store.run(plan, key, 1, 0.0)
        waits = [store.run(plan, key, 1, 1e9) for _ in range(3)]
        assert [reply[1] for reply in waits] == [6e7, 12e7, 18e7]
        for number in (0, 2, 1):
            store.withdraw(waits[number][0])
        assert store.run(plan, key, 1, LOOK)[1] == 6e7


@on_server
def test_adjust_and_reset(server: Server, key: str) -> None:
    with RedisStore(server.url) as store:
        assert store.adjust(PLAN, key, 2)
        assert left(store, key) == 3
        assert store.adjust(PLAN, key, -1)
        assert left(store, key) == 4
        store.reset(PLAN, key)
        assert left(store, key) == 5
        assert not store.adjust(PLAN, key, -1)
        assert store.run_many([]) == []


def test_under_trio_it_says_what_would_work() -> None:
    store = AsyncRedisStore("redis://localhost:1")
    throttle = AsyncThrottled(store=store)
    with pytest.raises(SetUpError, match="under trio use a MemoryStore"):
        anyio.run(throttle.limit, "key", backend="trio")
