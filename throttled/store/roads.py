"""Which lane an ask takes: the only one there is, or in a cluster that of the slot's node."""

from __future__ import annotations

from functools import lru_cache
from time import monotonic
from typing import TYPE_CHECKING, Any

from throttled.exceptions import StoreUnavailableError
from throttled.store.base import new_lock
from throttled.store.failure import ASK, MOVED, Failure
from throttled.store.flight import HOPS, Ask, Lane
from throttled.store.lines import Flow, Line, NodeSource, Source

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from throttled.store.base import Health


class Road:
    """To the one server there is."""

    def __init__(self, source: Source, where: str, timeout: float, lane: type[Lane]) -> None:
        self._timeout = timeout
        self._lane = lane
        #: Where all asks go; None in a cluster.
        self.only: Lane | None = lane(source, where, self, timeout)

    def lane_of(self, ask: Ask) -> Lane:
        """The lane for an ask."""
        assert self.only is not None
        return self.only

    def lanes(self) -> list[Lane]:
        """All lanes that were used so far."""
        return [] if self.only is None else [self.only]

    def redirected(self, lane: Lane, asks: Sequence[Ask], failure: Failure) -> bool:
        """Send asks on to where a MOVED or ASK points, if this road knows any other lane."""
        return False

    def failed(self) -> None:
        """A server was out of reach, or is no master: the map may be outdated."""

    def opened(self) -> None:
        """What was opened for the lane had no line: see `ClusterRoad`."""

    def health(self, now: float) -> Health:
        """The health of the server that is worst off."""
        rank = ("closed", "half-open", "open")
        found = [lane.breaker.health(now) for lane in self.lanes()]
        return max(found, key=lambda health: (rank.index(health.state), health.failures))


class _Map(Source):
    """What the lobby opens instead of a line: the cluster's client, with its map."""

    def __init__(self, road: ClusterRoad) -> None:
        super().__init__(None, Line)
        self._road = road

    def take(self, timeout: float) -> Flow[Any]:
        yield from self._road.refreshed()


class ClusterRoad(Road):
    """To the node that serves a key's slot.

    redis-py's client is asked for its map, and for no more. While there is none, and for nodes that
    failed while it is being renewed, asks gather in the lobby.
    """

    def __init__(
        self,
        connect: Callable[[], Any],
        line: type[Line],
        asynchronous: bool,
        where: str,
        timeout: float,
        lane: type[Lane],
    ) -> None:
        super().__init__(_Map(self), where, timeout, lane)
        lobby, self.only = self.only, None
        assert lobby is not None
        self._lobby: Lane = lobby
        self._where = where
        self._connect = connect
        self._line = line
        self._asynchronous = asynchronous
        self._lanes: dict[tuple[str, int], Lane] = {}
        self.client: Any = None
        self._outdated = False
        #: Slots that were found elsewhere than where the map says.
        self._moved: dict[int, Lane] = {}
        self._lock = new_lock()

    def lanes(self) -> list[Lane]:
        return [self._lobby, *self._lanes.values()]

    def lane_of(self, ask: Ask) -> Lane:
        client = self.client
        if client is None:
            return self._lobby
        try:
            ask.slot = client.keyslot(ask.name)
            moved = self._moved.get(ask.slot)
            lane = self._lane_to(client.get_node_from_key(ask.name)) if moved is None else moved
        except _lost_slots():
            self._outdated = True
            return self._lobby
        # A node that fails may have been replaced. The others go on by the old map meanwhile.
        if self._outdated and lane.breaker.troubled and lane.breaker.admits(monotonic(), 0.0):
            return self._lobby
        return lane

    def _lane_to(self, node: Any) -> Lane:
        name = (str(node.host), int(node.port))
        lane = self._lanes.get(name)
        if lane is None:
            if self._asynchronous:
                source: Source = NodeSource(node, self._line)
            else:
                source = _NodePool(self.client, node, self._line)
            with self._lock:
                lane = self._lanes.get(name)
                if lane is None:
                    where = f"{name[0]}:{name[1]}"
                    lane = self._lanes[name] = self._lane(source, where, self, self._timeout)
        return lane

    def redirected(self, lane: Lane, asks: Sequence[Ask], failure: Failure) -> bool:
        host, port = str(failure.error.host), int(failure.error.port)  # type: ignore[attr-defined]
        node = self.client.get_node(host or lane.where.rpartition(":")[0], port)
        if asks[0].hops >= HOPS:
            return False
        if node is None:  # new to the client
            self._outdated = True
            to = self._lobby
        else:
            to = self._lane_to(node)
            if failure.code == MOVED:
                self._moved[asks[0].slot] = to
        for ask in asks:
            ask.hops += 1
            ask.asking = failure.code == ASK and node is not None
            ask.lane = to
        to.queue.extendleft(reversed(asks))
        to.kick()
        return True

    def failed(self) -> None:
        self._outdated = True

    def opened(self) -> None:
        """The lobby has its map: everybody on to their lanes."""
        queue = self._lobby.queue
        while queue:
            ask = queue.popleft()
            ask.lane = lane = self.lane_of(ask)
            if lane is self._lobby:
                error = f"The cluster {self._where} has no node for a slot that was asked for."
                ask.settle(StoreUnavailableError(error))
            else:
                lane.queue.append(ask)
                lane.kick()

    def refreshed(self) -> Flow[None]:
        """Get the map, or get it anew."""
        if self.client is None:
            client = self._connect()
            if self._asynchronous:
                yield client.initialize()
            self.client = client
        elif self._outdated:
            yield self.client.nodes_manager.initialize()
        self._outdated = False
        self._moved = {}
        for name, lane in list(self._lanes.items()):
            node = self.client.get_node(*name)
            if node is None or node.server_type != "primary":
                del self._lanes[name]
                lane.retire()


class _NodePool(Source):
    """The pool of a node of redis-py's sync cluster client, which makes it on first use."""

    def __init__(self, client: Any, node: Any, line: type[Line]) -> None:
        super().__init__(None, line)
        self._client = client
        self._node = node

    def take(self, timeout: float) -> Flow[Line]:
        self.pool = self._client.get_redis_connection(self._node).connection_pool
        return (yield from super().take(timeout))


@lru_cache(maxsize=1)
def _lost_slots() -> tuple[type[Exception], ...]:
    """What redis-py raises for a slot that no node serves by its map."""
    from redis.exceptions import RedisClusterException, RedisError

    return (RedisClusterException, RedisError, KeyError, IndexError)
