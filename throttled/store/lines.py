"""Connections of redis-py, and where they come from.

Connecting (TCP, TLS, AUTH, asking Sentinels) is redis-py's business, written here as *flows*:
generators that yield the result of each step that may touch the network. Under sync code that is
the result itself, under asyncio an awaitable, which whoever drives the flow awaits and sends back
in, so that there is one copy of both. Decisions take a shorter way: see `SyncLine` and `AsyncLine`.
"""

from __future__ import annotations

import select
from collections.abc import Generator
from typing import Any, ClassVar, TypeVar

T = TypeVar("T")
Flow = Generator[Any, Any, T]


class Line:
    """A connection, checked out of its pool for as long as it serves a lane."""

    #: The pool's own look at an idle connection may miss that the server has closed it.
    doubtful: ClassVar[bool] = False

    def __init__(self, conn: Any, timeout: float, hold: bool) -> None:
        self.conn = conn
        self.timeout = timeout
        #: Whether it stays with us. If not, it goes back as it came.
        self.hold = hold
        #: The socket, where it is plain: of one that speaks TLS, readable says nothing.
        self.sock: Any = self.socket()
        self.poll: Any = None
        if self.sock is not None and hasattr(select, "poll"):
            poll = select.poll()
            poll.register(self.sock.fileno(), select.POLLIN)
            self.poll = poll.poll

    def quiet(self) -> bool:
        """Whether nothing waits to be read, not even the end: fit for a new request."""
        return self.poll is None or (self.socket() is self.sock and not self.poll(0))

    def socket(self) -> Any:
        """The socket of the connection, or None where it is hidden."""
        raise NotImplementedError

    def disconnect(self) -> Any:
        """Close the connection, as a step of a flow; its pool opens it again."""
        raise NotImplementedError

    def abandon(self) -> None:
        """Close the connection without waiting for anything."""
        raise NotImplementedError


class Source:
    """Where a lane's line comes from: a redis-py pool."""

    def __init__(self, pool: Any, line: type[Line], hold: bool = True) -> None:
        self.pool = pool
        self.line = line
        #: Whether a line may stay checked out between calls.
        self.hold = hold

    def take(self, timeout: float) -> Flow[Line]:
        """A line that is fit for a request."""
        conn = yield self.pool.get_connection()
        line = self.line(conn, timeout, self.hold)
        if line.doubtful and not line.quiet():
            line = yield from self._again(line)
        return line

    def _again(self, line: Line) -> Flow[Line]:
        """The same connection, made anew."""
        conn = line.conn
        try:
            yield line.disconnect()
            yield conn.connect()
        except BaseException:
            yield from self.give(line, spoilt=True)
            raise
        return self.line(conn, line.timeout, self.hold)

    def give(self, line: Line, spoilt: bool) -> Flow[None]:
        """Take a line back."""
        if spoilt:
            yield line.disconnect()
        yield self.pool.release(line.conn)


class NodeSource(Source):
    """A node of redis-py's asyncio cluster client, which is its own pool."""

    def take(self, timeout: float) -> Flow[Line]:
        conn = self.pool.acquire_connection()
        if not conn.is_connected:
            try:
                yield conn.connect()
            except BaseException:
                self._release(conn)
                raise
        line = self.line(conn, timeout, self.hold)
        if not line.quiet():
            line = yield from self._again(line)
        return line

    def give(self, line: Line, spoilt: bool) -> Flow[None]:
        if spoilt:
            yield line.disconnect()
        self._release(line.conn)

    def _release(self, conn: Any) -> None:
        # Older redis-py has no method for it.
        release = getattr(self.pool, "release", None) or self.pool._free.append
        release(conn)
