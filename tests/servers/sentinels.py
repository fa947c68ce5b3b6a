"""Sentinels, and the pair of servers that three of them watch."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

import redis

from tests.servers.process import HOST, Server, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

# Sentinels look around at their ease: a replica is asked every ten seconds who it is, and a master
# that comes back is turned into a replica after eight. Tests do not have that long; but there are
# bounds to the hurry, and below them Sentinels undo or repeat each other's failovers.
# - A master that comes back is turned after four publish periods; by then the news of the failover
#   must have reached all, and the news takes over a second.
# - A new master is first pinged after a ping period, and is down if silent for `down_after`, so the
#   one must be well below the other.
# - A replica is promoted if it was heard of within five ping periods; while the master is down, it
#   is asked once a second.
HURRY = ("info-period", "200", "publish-period", "750", "ping-period", "400", "ask-period", "200")


class SentinelServer(Server):
    """A Sentinel that watches one master under a name.

    The master is down when silent for `down_after` ms, and so many of them (`quorum`) say so.
    """

    def __init__(
        self,
        master: Server,
        name: str = "throttled-master",
        *,
        quorum: int = 1,
        down_after: int = 1000,
        failover_timeout: int = 2000,
    ) -> None:
        super().__init__(master.binary)
        self.name = name
        # A Sentinel rewrites its configuration, so it needs a file of its own.
        self._config = self.directory / "sentinel.conf"
        self._config.write_text(
            f"port {self.port}\nbind {HOST}\ndir {self.directory}\n"
            f"sentinel monitor {name} {HOST} {master.port} {quorum}\n"
            f"sentinel down-after-milliseconds {name} {down_after}\n"
            f"sentinel failover-timeout {name} {failover_timeout}\n"
        )

    def start(self) -> Server:
        self._launch([str(self._config), "--sentinel"])
        # Redis before 7 cannot be hurried.
        with suppress(redis.ResponseError):
            self.ask("SENTINEL", "DEBUG", *HURRY)
        return self

    def master_port(self) -> int:
        """The port of the server that it takes for the master."""
        return int(self.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.name)[1])

    def replicas(self) -> list[int]:
        """The ports of the replicas that it knows and finds in order."""
        found = []
        for reply in self.ask("SENTINEL", "REPLICAS", self.name):
            fields = dict(zip(reply[::2], reply[1::2], strict=True))
            if fields[b"flags"] == b"slave" and fields[b"master-link-status"] == b"ok":
                found.append(int(fields[b"port"]))
        return found


class Trio:
    """Two servers, one the other's replica, and the three Sentinels that decide which.

    What changes roles returns when all three agree, and the new master takes writes.
    """

    def __init__(self, servers: list[Server], sentinels: list[SentinelServer]) -> None:
        self.servers = servers
        self.sentinels = sentinels

    @property
    def url(self) -> str:
        """The URL that finds the master by asking the Sentinels."""
        hosts = ",".join(f"{HOST}:{each.port}" for each in self.sentinels)
        return f"redis+sentinel://{hosts}/{self.sentinels[0].name}"

    @property
    def master(self) -> Server:
        """The server that the Sentinels take for the master."""
        ports = [each.master_port() for each in self.sentinels if each.running]
        port = max(ports, key=ports.count)
        return next(each for each in self.servers if each.port == port)

    @property
    def replica(self) -> Server:
        """The other one."""
        master = self.master
        return next(each for each in self.servers if each is not master)

    def ready(self) -> None:
        """Wait until another failover is possible: the replica is known, caught up, and in line."""

        def fine() -> bool:
            master, replica = self.master, self.replica
            return replica.follows(master) and all(
                each.master_port() == master.port
                and each.replicas() == [replica.port]
                and each.ask("SENTINEL", "CKQUORUM", each.name).startswith(b"OK 3")
                for each in self.sentinels
            )

        wait_until(fine, "the agreement of the Sentinels")

    def kill_master(self) -> Server:
        """Kill the master, and wait until its replica has its place. The dead one is returned."""
        dead, heir = self.master, self.replica
        dead.kill()
        self._switched(heir)
        return dead

    def fail_over(self) -> Server:
        """Have the Sentinels promote the replica while the master is well: the new master."""
        heir = self.replica
        self.sentinels[0].ask("SENTINEL", "FAILOVER", self.sentinels[0].name)
        self._switched(heir)
        self.ready()
        return heir

    def _switched(self, heir: Server) -> None:
        wait_until(
            lambda: (
                all(each.master_port() == heir.port for each in self.sentinels)
                and heir.ask("ROLE")[0] == b"master"
            ),
            "the failover",
        )

    def revive(self, server: Server) -> None:
        """Start a server that was killed, and wait until it is the other one's replica."""
        server.start()
        self.ready()


@contextmanager
def trio(
    *,
    binary: str | None = None,
    down_after: int = 1000,
    failover_timeout: int = 1000,
    persistent: bool = False,
) -> Iterator[Trio]:
    """One master, one replica, three Sentinels of which two must agree. Times are milliseconds."""
    with ExitStack() as stack:
        servers: list[Server] = []
        for _ in range(2):
            # Without a delay for further replicas to join in, a replica has its copy at once.
            extra = ["--repl-diskless-sync-delay", "0"]
            if servers:
                extra += ["--replicaof", HOST, str(servers[0].port)]
            server = Server(binary, *extra, persistent=persistent)
            servers.append(stack.enter_context(server))
        # Sentinels take to a replica that they find at the start, later ones may take a while.
        wait_until(lambda: servers[1].follows(servers[0]), "the first copy")
        sentinels = [
            stack.enter_context(
                SentinelServer(
                    servers[0], quorum=2, down_after=down_after, failover_timeout=failover_timeout
                )
            )
            for _ in range(3)
        ]
        made = Trio(servers, sentinels)
        made.ready()
        yield made
