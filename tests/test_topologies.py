"""The servers, clusters, Sentinels and proxies of the other tests do what their names say."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import redis
from redis.cluster import ClusterNode
from redis.exceptions import AskError, ClusterDownError, MovedError, TryAgainError

from tests.servers import (
    HOST,
    Cluster,
    Proxy,
    Server,
    binaries,
    cluster,
    free_port,
    trio,
    wait_until,
)

pytestmark = [pytest.mark.server, pytest.mark.realtime]

BINARIES = pytest.mark.parametrize("binary", list(binaries().values()), ids=list(binaries()))


def write_twice(master: Server, key: str, value: str) -> None:
    """Write to a master, and wait until its replica has it too."""
    # The server waits for the writes of the same connection, no others.
    with master.client(single_connection_client=True) as client:
        client.set(key, value)
        assert client.wait(1, 5000) == 1


# --- one server ----------------------------------------------------------------------------------


@BINARIES
@pytest.mark.parametrize("persistent", [False, True])
def test_only_a_persistent_server_remembers_after_a_kill(binary: str, persistent: bool) -> None:
    with Server(binary, persistent=persistent) as server:
        server.ask("SET", "key", "value")
        server.kill()
        assert not server.running
        with pytest.raises(redis.ConnectionError):
            server.ask("PING")
        server.start()
        assert server.ask("GET", "key") == (b"value" if persistent else None)


@BINARIES
def test_a_hung_server_takes_connections_and_answers_when_it_goes_on(binary: str) -> None:
    with Server(binary) as server:
        with server.client(socket_timeout=0.2) as client:
            client.ping()  # or it would be the handshake that times out
            server.hang()
            assert server.running
            with pytest.raises(redis.TimeoutError):
                client.incr("key")
            server.resume()
        # What it was asked while it hung, it does when it goes on.
        assert server.ask("GET", "key") == b"1"


@pytest.mark.parametrize("end", [Server.stop, Server.kill, Server.restart])
def test_a_hung_server_can_be_ended(end: Callable[[Server], None]) -> None:
    with Server() as server:
        server.hang()
        started = time.monotonic()
        end(server)
        assert time.monotonic() - started < 5
        assert server.running == (end is Server.restart)


def test_a_server_that_cannot_start_says_why() -> None:
    with pytest.raises(RuntimeError, match="no-such-option"), Server(None, "--no-such-option", "1"):
        pass


def test_a_free_port_is_never_one_of_an_outgoing_connection() -> None:
    with socket.create_server((HOST, 0)) as listener, socket.socket() as client:
        client.connect(listener.getsockname())
        given = client.getsockname()[1]
    assert all(free_port() < 32_000 for _ in range(100))
    assert given >= 32_000


# --- a cluster -----------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=list(binaries()))
def masters(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Three masters, of every kind of server."""
    with cluster(3, binary=binaries()[request.param]) as nodes:
        yield nodes


def client_of(nodes: Cluster) -> redis.RedisCluster:
    return redis.RedisCluster(startup_nodes=[ClusterNode(HOST, node.port) for node in nodes])


def test_every_master_serves_its_part(masters: Cluster) -> None:
    keys = [f"key-{number}" for number in range(60)]
    with client_of(masters) as client:
        for key in keys:
            client.set(key, key)
    owners = [masters.owner(key) for key in keys]
    assert set(owners) == set(masters)
    for key, owner in zip(keys, owners, strict=True):
        assert owner.ask("GET", key) == key.encode()
        stranger = next(node for node in masters if node is not owner)
        with pytest.raises(MovedError) as moved:
            stranger.ask("GET", key)
        assert moved.value.port == owner.port


def test_a_slot_moves_and_takes_its_keys_along(masters: Cluster) -> None:
    source = masters.owner("{moves}")
    target = next(node for node in masters if node is not source)
    with client_of(masters) as client:
        for number in range(250):  # more than are carried at once
            client.set(f"{{moves}}{number}", number)
        masters.move("{moves}", target)
        assert masters.owner("{moves}") is target
        # The client has not heard of it, and follows.
        assert client.get("{moves}249") == b"249"
        assert target.ask("CLUSTER", "COUNTKEYSINSLOT", client.keyslot("{moves}")) == 250
        with pytest.raises(MovedError):
            source.ask("GET", "{moves}1")
    masters.move("{moves}", source)
    assert source.ask("GET", "{moves}1") == b"1"


def test_half_way_a_slot_answers_ask_and_tryagain(masters: Cluster) -> None:
    source = masters.owner("{half}")
    target = next(node for node in masters if node is not source)
    source.ask("MSET", "{half}1", "1", "{half}2", "2")
    with masters.moving("{half}", target) as move:
        move.carry("{half}1")
        assert move.waiting() == [b"{half}2"]
        assert source.ask("GET", "{half}2") == b"2"
        with pytest.raises(AskError) as asked:
            source.ask("GET", "{half}1")
        assert asked.value.port == target.port
        with pytest.raises(TryAgainError):
            source.ask("MGET", "{half}1", "{half}2")
        with pytest.raises(MovedError):  # it is not the target's yet, but for who was sent by ASK
            target.ask("GET", "{half}1")
        with client_of(masters) as client:
            assert client.get("{half}1") == b"1"
    assert target.ask("MGET", "{half}1", "{half}2") == [b"1", b"2"]


@BINARIES
@pytest.mark.slow
def test_a_replica_takes_the_place_of_its_master(binary: str) -> None:
    with cluster(3, 1, binary=binary, timeout=1000) as nodes:
        first = nodes.owner("key")
        first.ask("SET", "key", "value")
        second = nodes.fail_over(first)
        assert nodes.owner("key") is second
        assert nodes.replica_of(second) is first
        assert second.ask("GET", "key") == b"value"

        write_twice(second, "key", "more")
        assert nodes.kill(second) is first
        assert nodes.owner("key") is first
        assert first.ask("GET", "key") == b"more"

        # The one that was killed comes back empty, as a replica, and copies.
        nodes.revive(second)
        assert nodes.replica_of(first) is second
        with second.client() as client:
            client.readonly()
            assert client.get("key") == b"more"


@pytest.mark.slow
def test_a_cluster_that_lost_a_part_is_down_until_the_part_is_back() -> None:
    with cluster(3, timeout=500, persistent=True) as nodes:
        lost = nodes.owner("key")
        other = next(node for node in nodes if node is not lost)
        lost.ask("SET", "key", "value")
        lost.kill()
        wait_until(lambda: not other.is_up, "the end of the cluster")
        with pytest.raises(ClusterDownError):
            other.ask("GET", "key")
        nodes.revive(lost)
        assert lost.ask("GET", "key") == b"value"


# --- Sentinels -----------------------------------------------------------------------------------


@BINARIES
@pytest.mark.slow
def test_sentinels_promote_the_replica_twice(binary: str) -> None:
    with trio(binary=binary) as servers:
        first, second = servers.master, servers.replica
        write_twice(first, "key", "value")
        with pytest.raises(redis.ReadOnlyError):
            second.ask("SET", "key", "other")

        assert servers.kill_master() is first
        assert servers.master is second
        assert second.ask("GET", "key") == b"value"

        # The old master comes back empty and believing itself master; it is put in its place.
        servers.revive(first)
        assert servers.replica is first
        assert first.ask("GET", "key") == b"value"

        assert servers.fail_over() is first
        assert servers.master is first
        first.ask("SET", "key", "more")


@pytest.mark.slow
def test_sentinels_replace_a_master_that_hangs() -> None:
    with trio() as servers:
        hung, heir = servers.master, servers.replica
        with hung.hung():
            wait_until(lambda: servers.master is heir, "the failover")
        servers.ready()
        assert hung.follows(heir)


# --- a bad network -------------------------------------------------------------------------------


@pytest.fixture
def proxy(valkey: Server) -> Iterator[Proxy]:
    with Proxy(valkey) as proxy:
        yield proxy


@contextmanager
def connected(proxy: Proxy) -> Iterator[socket.socket]:
    """A connection through the proxy, all the way to the server."""
    with socket.create_connection((HOST, proxy.port), timeout=5) as sock:
        sock.sendall(b"PING\r\n")
        assert sock.recv(100) == b"+PONG\r\n"
        yield sock


def test_a_reply_is_cut_in_the_middle(proxy: Proxy) -> None:
    with connected(proxy) as sock:
        proxy.mode = "half"
        sock.sendall(b"ECHO 0123456789\r\n")
        received = sock.makefile("rb").read()  # to the end of the connection
        assert received == b"$10\r\n0123456789\r\n"[:8]
        assert proxy.caught.is_set()


def test_a_reply_is_cut_off(proxy: Proxy) -> None:
    with connected(proxy) as sock:
        proxy.mode = "cut"
        sock.sendall(b"PING\r\n")
        assert sock.recv(100) == b""


def test_a_reply_is_held_and_then_passed_on(proxy: Proxy) -> None:
    with connected(proxy) as sock:
        proxy.mode = "hold"
        sock.sendall(b"PING\r\n")
        assert proxy.caught.wait(5)
        sock.settimeout(0.1)
        with pytest.raises(TimeoutError):
            sock.recv(100)
        proxy.mode = "pass"
        sock.settimeout(5)
        assert sock.recv(100) == b"+PONG\r\n"


def test_a_reply_is_swallowed(proxy: Proxy) -> None:
    with connected(proxy) as sock:
        proxy.mode = "swallow"
        sock.sendall(b"PING\r\n")
        assert proxy.caught.wait(5)
        proxy.mode = "pass"
        sock.sendall(b"ECHO next\r\n")
        assert sock.recv(100) == b"$4\r\nnext\r\n"


def test_every_reply_is_late(proxy: Proxy) -> None:
    with connected(proxy) as sock:
        proxy.delay = 0.1
        for _ in range(2):
            started = time.monotonic()
            sock.sendall(b"PING\r\n")
            assert sock.recv(100) == b"+PONG\r\n"
            assert time.monotonic() - started >= 0.1


def test_new_connections_are_refused_and_old_ones_live(proxy: Proxy) -> None:
    with connected(proxy) as old:
        proxy.mode = "refuse"
        # On connecting, or on the first use.
        with pytest.raises(ConnectionError), connected(proxy):
            pass
        old.sendall(b"PING\r\n")
        assert old.recv(100) == b"+PONG\r\n"


def test_a_new_connection_waits_for_a_silent_server(proxy: Proxy) -> None:
    with connected(proxy) as old:
        proxy.mode = "silent"
        with socket.create_connection((HOST, proxy.port), timeout=0.2) as new:
            new.sendall(b"PING\r\n")
            with pytest.raises(TimeoutError):
                new.recv(100)
            old.sendall(b"PING\r\n")
            assert old.recv(100) == b"+PONG\r\n"
            proxy.mode = "pass"
            new.settimeout(5)
            assert new.recv(100) == b"+PONG\r\n"


def test_all_connections_are_cut_at_once(proxy: Proxy) -> None:
    with connected(proxy) as one, connected(proxy) as two:
        proxy.cut_all()
        assert one.recv(100) == b""
        assert two.recv(100) == b""
    with connected(proxy):
        assert proxy.connections == 3


def test_a_proxy_of_a_dead_server_ends_connections() -> None:
    with Server() as server, Proxy(server) as proxy:
        server.kill()
        with socket.create_connection((HOST, proxy.port), timeout=5) as sock:
            assert sock.recv(100) == b""
        server.start()
        with connected(proxy):
            assert proxy.connections == 2
