"""What befalls servers that stand in for one another."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from tests.faults.load import Load
from tests.faults.stages import SOME, Scene, Stage
from tests.servers import Cluster, Server, cluster, slot_of, trio


def _reviving(
    servers: Sequence[Server], revive: Callable[..., None]
) -> Callable[[Sequence[Load], float], None]:
    """Bring back those that were killed, as replicas."""

    def mend() -> None:
        for server in servers:
            if not server.running:
                revive(server)

    return mend


@contextmanager
def sentinel_kill(binary: str | None = None) -> Iterator[Stage]:
    """The master that Sentinels watch is killed, and its replica promoted."""
    with trio(binary=binary) as servers:
        yield Stage(
            servers.servers,
            servers.url,
            lambda _, __: servers.kill_master() and None,
            losses=1,
            quota=SOME,
            mend=_reviving(servers.servers, servers.revive),
        )


@contextmanager
def sentinel_switch(binary: str | None = None) -> Iterator[Stage]:
    """The Sentinels are asked to promote the replica, while all is well (READONLY)."""
    with trio(binary=binary) as servers:
        yield Stage(
            servers.servers,
            servers.url,
            lambda _, __: servers.fail_over() and None,
            losses=1,
            quota=SOME,
        )


@contextmanager
def cluster_kill(binary: str | None = None) -> Iterator[Stage]:
    """The master of a slot is killed, and its replica promoted."""
    with cluster(3, 1, binary=binary, timeout=1000) as nodes:
        yield Stage(
            nodes,
            nodes.url(),
            lambda _, __: nodes.kill(nodes.owner("{key}")) and None,
            losses=1,
            quota=SOME,
            mend=_reviving(nodes, nodes.revive),
        )


@contextmanager
def cluster_switch(binary: str | None = None) -> Iterator[Stage]:
    """A replica takes over from the master of a slot in good order, losing nothing."""
    with cluster(3, 1, binary=binary, timeout=1000) as nodes:
        yield Stage(
            nodes, nodes.url(), lambda _, __: nodes.fail_over(nodes.owner("{key}")) and None
        )


@contextmanager
def cluster_move(binary: str | None = None) -> Iterator[Stage]:
    """A slot moves to and fro between two masters, and rests half way (ASK, TRYAGAIN, MOVED)."""
    keys = _of_one_slot(3)
    with cluster(3, binary=binary, timeout=1000) as nodes:

        def strike(_: Sequence[Load], seconds: float) -> None:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                _move(nodes, keys[0])

        yield Stage(nodes, nodes.url(), strike, keys=keys)


def _of_one_slot(count: int) -> list[str]:
    """Keys that happen to share a slot."""
    slot, found, number = slot_of("key"), ["key"], 0
    while len(found) < count:
        number += 1
        if slot_of(f"key-{number}") == slot:
            found.append(f"key-{number}")
    return found


def _move(nodes: Cluster, key: str) -> None:
    source = nodes.owner(key)
    target = next(node for node in nodes if node is not source)
    with nodes.moving(key, target) as move:
        waiting = move.waiting()
        for part in (waiting[::2], waiting[1::2]):
            move.carry(*part)
            time.sleep(0.2)


#: By what they are called in the tables.
FAILOVERS: dict[str, Scene] = {
    "Sentinel: master killed": sentinel_kill,
    "Sentinel: ordered failover": sentinel_switch,
    "Cluster: master killed": cluster_kill,
    "Cluster: ordered failover": cluster_switch,
    "Cluster: slot moved to and fro": cluster_move,
}
