"""The users of docs/security.md can do all that a store does, and have no right for nothing.

The contract suite runs as the first of them; here is what it cannot show.
"""

from __future__ import annotations

import asyncio
from inspect import isawaitable
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest

from tests import servers
from tests.acl import NODE, SENTINEL, SERVER, User
from tests.contract import FOREVER, STORES, Kind, MakeRig
from tests.servers import PATIENCE, SentinelServer, Server, cluster
from throttled.algorithms.plan import ALGORITHMS, make_plan
from throttled.exceptions import StoreUnavailableError
from throttled.quota import Quota
from throttled.store.aioredis import RedisStore as AsyncRedisStore
from throttled.store.redis import RedisStore

if TYPE_CHECKING:
    from collections.abc import Sequence

server = servers.server
pytestmark = pytest.mark.server

FLAVOURS = pytest.mark.parametrize("made", [RedisStore, AsyncRedisStore], ids=["sync", "async"])
BINARIES = pytest.mark.parametrize("binary", servers.binaries().values(), ids=servers.binaries())
#: What redis-py tells of itself, and does without when it is refused.
OPTIONAL = "client|setinfo"

_numbers = count(1)


def use(
    made: Any,
    url: str,
    options: Any = None,
    keys: Sequence[str] = ("key",),
    several: bool = True,
) -> None:
    """Do all that a store does, so that every command is called at least once.

    `several`: also what takes several keys in one step, which no slot allows while it moves.
    """
    prefix = f"throttled:acl{next(_numbers)}"  # refused half way, it leaves keys behind

    async def value(reply: Any) -> Any:
        return await reply if isawaitable(reply) else reply

    async def everything() -> None:
        # The rights are the subject, not how fast a first connection is made.
        store = made(url, {"DECISION_TIMEOUT": PATIENCE, **(options or {})})
        try:
            for name in ALGORITHMS:
                plan = make_plan(name, Quota.parse("2/h"), prefix)
                for key in keys:
                    waits = [(await value(store.run(plan, key, 1, 0.0)))[1] for _ in range(3)]
                    assert waits[:2] == [0, 0] < waits[2:]
                    first = (await value(store.run(plan, key, 1, FOREVER)))[0]
                    second = (await value(store.run(plan, key, 1, FOREVER)))[0]
                    assert await value(store.undo(second))
                    assert await value(store.undo(first))
                    assert await value(store.adjust(plan, key, 2))
                    assert await value(store.adjust(plan, key, -1))
                    if several:
                        done = store.adjust_once(plan, key, "m", 0.001, [(plan, key, 1, None)])
                        assert await value(done) == [True]
                    await value(store.reset(plan, key))
        finally:
            await value(store.close())

    asyncio.run(everything())


def refused(server: Server) -> set[str]:
    """What the server refused since it was asked last, but for what is optional."""
    with server.client() as client:
        found = {entry["object"].lower() for entry in client.acl_log()}
        client.acl_log_reset()
    return found - {OPTIONAL}


def assert_refused(
    right: str, nodes: Sequence[Server], made: Any, url: str, options: Any = None
) -> None:
    """Without that right it does not go, and the right is the reason."""
    with pytest.raises(StoreUnavailableError):
        use(made, url, options)
    assert set().union(*map(refused, nodes)) == {right.removeprefix("+")}


# -- one server -----------------------------------------------------------------------------------


def fresh(server: Server, user: User) -> str:
    """The URL for a user that is new on a server that knows no script."""
    user.enter(server)
    server.ask("SCRIPT", "FLUSH")
    refused(server)
    return user.url(server.url)


@FLAVOURS
def test_the_documented_user_is_refused_nothing(server: Server, made: Any) -> None:
    use(made, fresh(server, SERVER))
    assert refused(server) == set()


@pytest.mark.parametrize("right", SERVER.commands)
def test_each_of_its_rights_is_needed(server: Server, right: str) -> None:
    assert_refused(right, [server], RedisStore, fresh(server, SERVER.without(right)))


@pytest.mark.parametrize("kind", [param for param in STORES if param.values[0].real])
def test_the_contract_suite_runs_as_that_user(make_rig: MakeRig, kind: Kind) -> None:
    rig = make_rig(kind)
    elsewhere = make_plan("token_bucket", Quota.parse("5/m"), "elsewhere")
    with pytest.raises(StoreUnavailableError, match="permission"):
        rig.run(elsewhere, "key")
    assert rig.run(rig.plan("5/m"), "key")[1] == 0


@pytest.mark.parametrize("kind", [param for param in STORES if param.values[0].real])
def test_a_key_out_of_reach_spoils_neither_a_batch_nor_the_store(
    make_rig: MakeRig, kind: Kind
) -> None:
    rig = make_rig(kind)
    plan, elsewhere = rig.plan("5/m"), make_plan("token_bucket", Quota.parse("5/m"), "elsewhere")
    calls = [(plan, "key", 1, 0.0), (elsewhere, "key", 1, 0.0), (plan, "key", 1, 0.0)]
    first, refused, last = rig.wait(rig.store.run_many(calls))
    assert (first[2], last[2]) == (4, 3)
    assert isinstance(refused, StoreUnavailableError)
    for _ in range(10):  # more failures than the breaker bears
        with pytest.raises(StoreUnavailableError, match="permission"):
            rig.run(elsewhere, "key")
    assert rig.store.health().ok
    assert rig.run(plan, "key")[2] == 2


@FLAVOURS
def test_only_another_database_needs_the_right_to_select_it(server: Server, made: Any) -> None:
    url = fresh(server, SERVER).removesuffix("/0") + "/3"
    assert_refused("+select", [server], made, url)
    server.ask("ACL", "SETUSER", SERVER.name, "+select")
    use(made, url)


@FLAVOURS
def test_a_refused_password_is_not_shown(server: Server, made: Any) -> None:
    url = fresh(server, SERVER).replace(f":{SERVER.password}@", ":hunter2@")
    with pytest.raises(StoreUnavailableError, match="refused the call: ") as error:
        use(made, url)
    assert "hunter2" not in f"{error.value} {error.value.__cause__} {made(url)}"


# -- clusters and Sentinels -----------------------------------------------------------------------


def test_a_node_needs_no_more_than_a_server_and_the_ways_of_a_cluster() -> None:
    assert set(NODE.words) - set(SERVER.words) == {"+cluster|slots", "+command", "+asking"}
    assert set(SERVER.words) < set(NODE.words)


@BINARIES
def test_users_of_a_cluster(binary: str) -> None:
    with cluster(3, binary=binary) as nodes:
        url = NODE.url(nodes.url())

        def enter(user: User) -> None:
            user.enter(*nodes)
            for node in nodes:
                node.ask("SCRIPT", "FLUSH")
                refused(node)

        for made in (RedisStore, AsyncRedisStore):
            enter(NODE)
            use(made, url, keys=[f"key{number}" for number in range(12)])
            for right in ("+cluster|slots", "+command"):
                enter(NODE.without(right))
                assert_refused(right, nodes, made, url)
        plan = make_plan("token_bucket", Quota.parse("2/h"))
        name = plan.prefix + "{key}"
        target = next(node for node in nodes if node is not nodes.owner(name))
        with nodes.moving(name, target):
            # A key that is new is the target's already, and has to be asked for.
            for made in (RedisStore, AsyncRedisStore):
                enter(NODE)
                use(made, url, several=False)
                enter(NODE.without("+asking"))
                assert_refused("+asking", nodes, made, url)


@BINARIES
def test_users_behind_a_sentinel(binary: str) -> None:
    with Server(binary) as master, SentinelServer(master) as sentinel:
        options = {"SENTINEL_KWARGS": {"username": SENTINEL.name, "password": SENTINEL.password}}
        url = SERVER.url(f"redis+sentinel://{servers.HOST}:{sentinel.port}/{sentinel.name}")
        for made in (RedisStore, AsyncRedisStore):
            SERVER.enter(master)
            SENTINEL.enter(sentinel)
            use(made, url, options)
            assert refused(master) | refused(sentinel) == set()
            for right in SENTINEL.commands:
                SENTINEL.without(right).enter(sentinel)
                assert_refused(right, [master, sentinel], made, url, options)


def test_no_user_may_do_everything() -> None:
    for user in (SERVER, NODE, SENTINEL):
        assert {"reset", "resetchannels"} < set(user.words)
        assert not [word for word in user.words if "@" in word or word in ("~*", "allkeys")]
