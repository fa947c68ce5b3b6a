"""A cluster, the moves of its slots and its failovers."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from typing import TYPE_CHECKING

from redis.crc import key_slot

from tests.servers.process import HOST, Server, free_port, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

SLOTS = 16384


def slot_of(key: str | bytes) -> int:
    """The slot of a key, by its hash tag where it has one."""
    return key_slot(key.encode() if isinstance(key, str) else key)


class Node(Server):
    """A server that may be part of a cluster; `timeout` is how many ms of silence mean down."""

    def __init__(
        self, binary: str | None = None, *, timeout: int, persistent: bool = False
    ) -> None:
        self.bus = free_port()
        super().__init__(
            binary,
            *("--cluster-enabled", "yes", "--cluster-port", str(self.bus)),
            *("--cluster-node-timeout", str(timeout)),
            # A replica stands in however old its copy is, and stays with its master.
            *("--cluster-replica-validity-factor", "0", "--cluster-allow-replica-migration", "no"),
            *("--repl-diskless-sync-delay", "0"),
            persistent=persistent,
        )

    @cached_property
    def id(self) -> str:
        """What the other nodes know it by; it outlives a restart."""
        return str(self.ask("CLUSTER", "MYID").decode())

    @property
    def is_master(self) -> bool:
        return bool(self.ask("ROLE")[0] == b"master")

    def view(self) -> dict[str, tuple[str, str, tuple[str, ...]]]:
        """The cluster as this node sees it: id -> (flags, id of its master, ranges of slots)."""
        seen = {}
        for line in self.ask("CLUSTER", "NODES").decode().splitlines():
            name, _, flags, master, *_, link = line.split()[:8]
            flags = flags.removeprefix("myself,")
            # A slot on its way stands in brackets, and at the two nodes concerned only.
            slots = tuple(sorted(word for word in line.split()[8:] if word[0] != "["))
            if link != "connected" and "fail" not in flags:
                flags = "disconnected"
            seen[name] = flags, master, slots
        return seen

    def knows(self, ids: set[str]) -> bool:
        """Whether these are the nodes that it sees."""
        return set(self.view()) == ids

    @property
    def is_up(self) -> bool:
        """Whether this node finds the cluster in order."""
        return b"cluster_state:ok" in self.ask("CLUSTER", "INFO")


class Cluster(list[Node]):
    """The nodes of a cluster: first those that began as masters, then those that began as replicas.

    Which is which now, ask `owner` and `replica_of`. What changes the cluster returns when all
    nodes that run agree on the change.
    """

    def owner(self, key: str | bytes) -> Node:
        """The master that serves a key."""
        slot = slot_of(key)
        for node in self:
            if node.running:
                for name, (_, _, ranges) in node.view().items():
                    if any(_within(slot, each) for each in ranges):
                        return next(node for node in self if node.id == name)
        raise LookupError(f"nobody serves slot {slot}")

    def replica_of(self, master: Node) -> Node:
        """A replica that stands ready to take the master's place."""
        return next(node for node in self if node.running and node.follows(master))

    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"{HOST}:{node.port}" for node in self)

    def settled(self) -> bool:
        """Whether all nodes that run see one cluster, in order, with replicas that caught up."""
        running = [node for node in self if node.running]
        views = [node.view() for node in running]
        if any(view != views[0] for view in views) or len(views[0]) != len(self):
            return False
        if not all(node.is_up for node in running):
            return False
        by_id = {node.id: node for node in self}
        for node in running:
            flags, master, _ = views[0][node.id]
            if flags not in ("master", "slave"):
                return False
            if flags == "slave" and not node.follows(by_id[master]):
                return False
        return True

    def settle(self) -> None:
        """Wait until `settled`."""
        wait_until(self.settled, "the agreement of the cluster")

    @contextmanager
    def moving(self, key: str | bytes, target: Node) -> Iterator[Move]:
        """A key's slot under way to another master; at the end of the block it gets there."""
        move = Move(self, slot_of(key), self.owner(key), target)
        move.start()
        yield move
        move.finish()

    def move(self, key: str | bytes, target: Node) -> None:
        """Move a key's slot to another master, live."""
        with self.moving(key, target):
            pass

    def fail_over(self, master: Node) -> Node:
        """Let a replica take the master's place in good order, losing nothing: that is it."""
        heir = self.replica_of(master)
        heir.ask("CLUSTER", "FAILOVER")
        wait_until(lambda: heir.is_master and self.settled(), "the failover")
        return heir

    def kill(self, master: Node) -> Node:
        """Kill a master, and wait until a replica has taken its place: that is it."""
        heir = self.replica_of(master)
        master.kill()
        wait_until(lambda: heir.is_master and self.settled(), "the failover")
        return heir

    def revive(self, node: Node) -> None:
        """Start a node that was killed, and wait until it is a member again."""
        node.start()
        self.settle()


class Move:
    """A slot on its way from one master to another, by hand, so that it can stay half way.

    Meanwhile the source answers ASK for a key that is gone or new, and TRYAGAIN for several of
    which only some are.
    """

    def __init__(self, cluster: Cluster, slot: int, source: Node, target: Node) -> None:
        self._cluster = cluster
        self.slot = slot
        self.source = source
        self.target = target

    def start(self) -> None:
        # In this order: whom the source sends to the target must be welcome there.
        self.target.ask("CLUSTER", "SETSLOT", self.slot, "IMPORTING", self.source.id)
        self.source.ask("CLUSTER", "SETSLOT", self.slot, "MIGRATING", self.target.id)

    def waiting(self, count: int = 100) -> list[bytes]:
        """Keys of the slot that are at the source yet."""
        return list(self.source.ask("CLUSTER", "GETKEYSINSLOT", self.slot, count))

    def carry(self, *keys: str | bytes) -> None:
        """Take these keys over."""
        self.source.ask("MIGRATE", HOST, self.target.port, "", 0, 5000, "KEYS", *keys)

    def finish(self) -> None:
        """Take over all that is left, and tell everybody."""
        while keys := self.waiting():
            self.carry(*keys)
        # The target first, or for a moment nobody would own the slot.
        others = [node for node in self._cluster if node.running and node.is_master]
        for node in sorted(others, key=lambda node: node is not self.target):
            node.ask("CLUSTER", "SETSLOT", self.slot, "NODE", self.target.id)
        self._cluster.settle()


def _within(slot: int, between: str) -> bool:
    first, _, last = between.partition("-")
    return int(first) <= slot <= int(last or first)


@contextmanager
def cluster(
    nodes: int = 1,
    replicas: int = 0,
    *,
    binary: str | None = None,
    timeout: int = 2000,
    persistent: bool = False,
) -> Iterator[Cluster]:
    """A cluster of so many masters, each with an equal part of the slots and so many replicas.

    `timeout` is how many milliseconds of silence make a node count as down.
    """
    with ExitStack() as stack:
        made = Cluster(
            stack.enter_context(Node(binary, timeout=timeout, persistent=persistent))
            for _ in range(nodes * (1 + replicas))
        )
        for number, node in enumerate(made):
            if number < nodes:
                first, last = SLOTS * number // nodes, SLOTS * (number + 1) // nodes - 1
                node.ask("CLUSTER", "ADDSLOTSRANGE", first, last)
                node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            for other in made[:number]:
                node.ask("CLUSTER", "MEET", HOST, other.port, other.bus)
        known = {node.id for node in made}
        for number, node in enumerate(made):
            wait_until(partial(node.knows, known), "the meeting of the cluster")
            if number >= nodes:
                node.ask("CLUSTER", "REPLICATE", made[number % nodes].id)
        made.settle()
        yield made
