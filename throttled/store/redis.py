"""The store of many processes: decisions taken by a script on a Redis or Valkey server."""

from __future__ import annotations

import os
import socket
import struct
from typing import TYPE_CHECKING, Any, Self

from throttled.store.base import Call, Reply, Store, Ticket
from throttled.store.calls import RedisCalls
from throttled.store.exchange import GRACE, Attempt
from throttled.store.lanes import Flow, Line, Road
from throttled.store.shared import Shared

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from throttled.algorithms.plan import Plan

__all__ = ["RedisStore"]


class SyncLine(Line):
    """A connection of redis-py's sync flavour."""

    __slots__ = ("buffer", "parser", "reader")

    def watch(self) -> bool:
        # What redis-py does around the socket and the parser is bookkeeping of retries, which have
        # no place here.
        self.parser: Any = getattr(self.conn, "_parser", None)
        # hiredis, where it is installed. A new connection has a new one, and is a new line.
        self.buffer: Any = getattr(self.parser, "_buffer", None)
        reader = getattr(self.parser, "_reader", None)
        plain = isinstance(self.buffer, bytearray) and hasattr(reader, "gets")
        self.reader: Any = reader if plain else None
        if self.poll is not None:
            return True
        if self.parser is None or not super().watch():
            return False
        _leave_timeout_to_the_kernel(self.sock)
        return True

    def socket(self) -> Any:
        sock = getattr(self.conn, "_sock", None)
        return sock if type(sock) is _socket else None

    def reply(self) -> Any:
        """The reply to a request, in as few steps as can be; the parser does whatever is rarer."""
        reader = self.reader
        if reader is not None:
            size = self.sock.recv_into(self.buffer)
            if size:
                reader.feed(self.buffer, 0, size)
                reply = reader.gets(False)
                if reply.__class__ is list or isinstance(reply, BaseException):
                    return reply
                # Not all of it has come yet: the parser goes on from here.
        return self.parser.read_response(disable_decoding=True)

    def send(self, request: bytes) -> Any:
        self.conn.send_packed_command((request,))

    def read(self) -> Any:
        return self.conn.read_response(disable_decoding=True, disconnect_on_error=False)

    def read_soon(self) -> Any:
        if not self.conn.can_read(timeout=GRACE):
            raise TimeoutError
        return self.read()

    def disconnect(self) -> Any:
        self.conn.disconnect()

    def abandon(self) -> None:
        self.conn.disconnect()


def _leave_timeout_to_the_kernel(sock: Any) -> None:
    """The same timeout, without the poll() that Python makes before each send and receive.

    For connections that stay with us: a tenth of the time of a call.
    """
    timeout = sock.gettimeout()
    if not timeout or os.name != "posix":
        return
    seconds, part = divmod(timeout, 1.0)
    packed = struct.pack("@ll", int(seconds), int(part * 1e6))
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, packed)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, packed)
    except OSError:
        return  # not on this system: Python goes on polling
    sock.settimeout(None)


_socket: type = socket.socket


def _driven(flow: Flow[Any]) -> Any:
    """Run a flow to its end: its steps have done their work when they are yielded."""
    value = None
    send: Callable[[Any], Any] = flow.send
    try:
        while True:
            value = send(value)
    except StopIteration as stop:
        return stop.value


class RedisStore(RedisCalls, Store):
    """Keeps limits on a Redis or Valkey server, shared by all processes that use it.

    Most callers write `RedisStore(server="redis://localhost:6379/0")`. Takes `redis://`,
    `rediss://`, `unix://`, `redis+sentinel://host:26379,host:26379/service` and
    `redis+cluster://host,host`; `options` as documented; or `client=`, a redis-py client of yours,
    which is used as it is and never closed. `clock` is for tests: see
    `throttled.testing.FakeClock`; without one, the server's time counts.

    Never connects when it is made. Stores of equal server and options share their connections.
    Threads may share a store; a forked child makes its own connections.

    Raises `SetUpError` for a URL or options that cannot work; its calls raise
    `StoreUnavailableError` when the server cannot be asked, and `StateError` for a key that holds
    something else.
    """

    asynchronous = False
    line = SyncLine
    _shared = Shared()

    def forget(self) -> None:
        self._road: Road | None = None
        #: The idle lines of the road, if they are held. See `run`.
        self._idle: list[Any] = []

    def _ready(self) -> Road:
        road = self._road
        if road is None:
            road = self._road = self._open(None)
            self._idle = road.idle
        return road

    def run(self, plan: Plan, key: str, cost: int, patience: float) -> Reply:
        """Decide one call; `patience` in µs, `LOOK` to change nothing."""
        # The flow of `_run` for a connection at hand and a reply that is in order, written out:
        # driving it costs as much time as the rest. Everything else is left to it.
        attempt: Attempt | None = None
        try:
            line = self._idle.pop()
        except IndexError:
            pass
        else:
            if self._clock is None and line.conn._sock is line.sock and not line.poll(0):
                wording = self._wordings.get(plan) or self._wording(plan)
                request = wording.asking(key, cost, patience)
                sent = False
                line.unread = True
                try:
                    line.sock.sendall(request)
                    sent = True
                    reply: Any = line.reply()
                except BaseException as error:
                    attempt = Attempt(line, error, sent)
                else:
                    line.unread = False
                    # Not `type(...)`, by which type checkers forget what a reply is.
                    if reply.__class__ is list and reply and reply[0].__class__ is list:
                        self._idle.append(line)
                        return self._admitted(plan, key, cost, reply[0])
                    attempt = Attempt(line, reply, sent)
            else:
                self._idle.append(line)  # The flow knows what to do with it.
        decided: Reply = _driven(self._run(plan, key, cost, patience, attempt))
        return decided

    def run_many(self, calls: Sequence[Call]) -> list[Any]:
        """Decide several calls in one round trip; an error stands in the place of its call."""
        replies: list[Any] = _driven(self._run_many(calls))
        return replies

    def adjust(self, plan: Plan, key: str, delta: int, slot: float | None = None) -> bool:
        """Charge (`delta > 0`) or give back; says whether anything was changed."""
        return bool(_driven(self._adjust(plan, key, delta, slot)))

    def undo(self, ticket: Ticket) -> bool:
        """Put back the state before a promise, if nobody came after; says whether it did."""
        return bool(_driven(self._undo(ticket)))

    def withdraw(self, ticket: Ticket) -> None:
        """Give back a promised slot, as if it had never been asked for where that is possible."""
        _driven(self._withdraw(ticket))

    def arrived(self, ticket: Ticket) -> None:
        """A promised slot was used: return what those gave up who stood before it."""
        _driven(self._arrived(ticket))

    def reset(self, plan: Plan, key: str) -> None:
        """Forget a key."""
        _driven(self._reset(plan, key))

    def close(self) -> None:
        """Close the connections, if no other store uses them. A later call opens new ones."""
        self.forget()
        _driven(self._leave(None))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
