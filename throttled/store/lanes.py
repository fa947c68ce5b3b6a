"""Connections of redis-py, and the ways over them to one server or to many."""

from __future__ import annotations

import select
from collections.abc import Generator
from typing import Any, ClassVar, TypeVar

T = TypeVar("T")
#: A generator that yields the result of each step that may touch the network: see `exchange.py`.
Flow = Generator[Any, Any, T]


class Line:
    """A connection of a pool, checked out by one call at a time."""

    __slots__ = ("conn", "poll", "sock", "unread")

    #: The pool's own look at an idle connection may miss that the server has closed it.
    doubtful: ClassVar[bool] = False

    def __init__(self, conn: Any) -> None:
        self.conn = conn
        #: A reply may be under way on it: it must not be used again.
        self.unread = False
        self.sock: Any = None
        self.poll: Any = None

    def watch(self) -> bool:
        """Get ready for `quiet`; False if that cannot be told of this kind of connection."""
        if self.poll is None:
            sock = self.socket()
            if sock is None or not hasattr(select, "poll"):
                return False
            poll = select.poll()
            poll.register(sock.fileno(), select.POLLIN)
            self.sock, self.poll = sock, poll.poll
        return True

    def quiet(self) -> bool:
        """Nothing waits to be read, not even the end: fit for a new request."""
        return self.socket() is self.sock and not self.poll(0)

    def socket(self) -> Any:
        """The socket, or None where it is hidden, as by TLS: readable says nothing there."""
        raise NotImplementedError

    def send(self, request: bytes) -> Any:
        """Write a request. A step of a flow, as are those below."""
        raise NotImplementedError

    def read(self) -> Any:
        """Read a reply, its strings as bytes. An error leaves the connection open."""
        raise NotImplementedError

    def read_soon(self) -> Any:
        """The same within `GRACE` seconds."""
        raise NotImplementedError

    def disconnect(self) -> Any:
        """Close the connection; its pool opens it again."""
        raise NotImplementedError

    def abandon(self) -> None:
        """Close the connection without waiting: nobody will drive this flow any more."""
        raise NotImplementedError


class Lane:
    """Where lines come from and go back to: here a redis-py pool, asked every time."""

    def __init__(self, pool: Any, line: type[Line]) -> None:
        self.pool = pool
        self.line = line
        #: Lines at hand: none but in a `HeldLane`.
        self.idle: list[Line] = []

    def take(self) -> Flow[Line]:
        """A line that is fit for a request."""
        conn = yield self.pool.get_connection()
        line = self.line(conn)
        if line.doubtful and line.watch() and not line.quiet():
            line = yield from self._again(line)
        return line

    def _again(self, line: Line) -> Flow[Line]:
        """The same connection, made anew."""
        conn = line.conn
        try:
            yield line.disconnect()
            yield conn.connect()
        except BaseException:
            line.unread = True
            yield from self.give(line)
            raise
        return self.line(conn)

    def give(self, line: Line) -> Flow[None]:
        """Take a line back."""
        if line.unread:
            yield line.disconnect()
        yield self.pool.release(line.conn)

    def close(self) -> Flow[None]:
        yield from ()


class HeldLane(Lane):
    """A lane that keeps idle lines at hand, which saves a third of the time of a call.

    They stay checked out of the pool, so this is only for pools that nobody else uses. All use of
    the list is one operation at a time: several threads need no lock.
    """

    def take(self) -> Flow[Line]:
        while self.idle:
            try:
                line = self.idle.pop()
            except IndexError:  # Another thread was faster.
                break
            if line.quiet():
                return line
            line.unread = True
            yield from super().give(line)
        line = yield from super().take()
        return line

    def give(self, line: Line) -> Flow[None]:
        if not line.unread and line.watch():
            self.idle.append(line)
        else:
            yield from super().give(line)

    def close(self) -> Flow[None]:
        while self.idle:
            line = self.idle.pop()
            line.unread = True
            yield from super().give(line)


class NodeLane(Lane):
    """A node of redis-py's asyncio cluster client, which is its own pool."""

    def take(self) -> Flow[Line]:
        conn = self.pool.acquire_connection()
        line = self.line(conn)
        if not (conn.is_connected and line.watch() and line.quiet()):
            line = yield from self._again(line)
        return line

    def give(self, line: Line) -> Flow[None]:
        if line.unread:
            yield line.disconnect()
        # Older redis-py has no method for it.
        release = getattr(self.pool, "release", None) or self.pool._free.append
        release(line.conn)


class Road:
    """To the one server there is."""

    #: The idle lines, where they are held.
    idle: list[Line]

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self.idle = lane.idle

    def lane(self, key: bytes) -> Flow[Lane]:
        """The lane for a key."""
        yield from ()
        return self._lane

    def redirected(self, error: Any) -> Flow[Lane | None]:
        """The lane that a MOVED or ASK points to, if this road knows any other."""
        yield from ()
        return None

    def failed(self) -> bool:
        """A server was out of reach, or no master. True if the next try may go to another one."""
        return False

    def split(self, keys: list[bytes]) -> Flow[list[list[int]]]:
        """The positions of the keys, in groups that one request may hold."""
        yield from ()
        return [list(range(len(keys)))]

    def close(self) -> Flow[None]:
        yield from self._lane.close()


class ClusterRoad(Road):
    """To the node that serves a key's slot. The client is asked for its map, and for no more."""

    def __init__(self, client: Any, line: type[Line], asynchronous: bool) -> None:
        self._client = client
        self._line = line
        self.idle = []
        self._asynchronous = asynchronous
        self._outdated = False

    def _to(self, node: Any) -> Lane:
        if self._asynchronous:
            return NodeLane(node, self._line)
        return Lane(self._client.get_redis_connection(node).connection_pool, self._line)

    def _refreshed(self) -> Flow[None]:
        if self._asynchronous:
            yield self._client.initialize()
        if self._outdated:
            self._outdated = False
            try:
                yield self._client.nodes_manager.initialize()
            except BaseException:
                self._outdated = True
                raise

    def lane(self, key: bytes) -> Flow[Lane]:
        yield from self._refreshed()
        return self._to(self._client.get_node_from_key(key))

    def redirected(self, error: Any) -> Flow[Lane | None]:
        if type(error).__name__ == "MovedError":
            self._outdated = True
            yield from self._refreshed()
        node = self._client.get_node(error.host, error.port)
        if node is None:  # An ASK to a node that is new to the client.
            self._outdated = True
            yield from self._refreshed()
            node = self._client.get_node(error.host, error.port)
        return None if node is None else self._to(node)

    def failed(self) -> bool:
        self._outdated = True
        return True

    def split(self, keys: list[bytes]) -> Flow[list[list[int]]]:
        yield from self._refreshed()
        slots: dict[int, list[int]] = {}
        for position, key in enumerate(keys):
            slots.setdefault(self._client.keyslot(key), []).append(position)
        return list(slots.values())

    def close(self) -> Flow[None]:
        yield from ()
