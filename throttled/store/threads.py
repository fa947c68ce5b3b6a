"""Many threads, one connection: whoever finds it free carries the calls of the others.

A thread puts its asks into the queue and tries to get the lane. If it does, it sends what has
gathered and reads the replies, for itself and for all who came meanwhile, until it has its own
answers; then it hands the lane over to the next who waits (flat combining: Hendler, Incze, Shavit,
Tzafrir, SPAA 2010). So a thread on its own does just what it would do anyway, and nobody carries
others for longer than its own call takes.

The lane is held by holding `free`. It is passed on while held: to a waiter, by way of its `lead`,
or to the thread that connects. Connecting has a thread for as long as it takes, so that callers can
leave when their time is up without spoiling it for the next.
"""

from __future__ import annotations

import os
import socket
import struct
from math import ceil
from threading import Lock, Thread
from time import monotonic
from typing import TYPE_CHECKING, Any

from throttled.store.base import new_lock
from throttled.store.failure import failures
from throttled.store.flight import BATCH, UNANSWERED, Ask, Lane
from throttled.store.lines import Flow, Line

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: Seconds that an interrupted call waits for the reply that is under way.
GRACE = 1.0

_socket: type = socket.socket


class Late(Exception):  # noqa: N818 - a signal, not an error
    """No reply within the time. What was read of it so far is kept."""


class SyncLine(Line):
    """A connection of redis-py's sync flavour.

    What redis-py does around the socket and its parser is bookkeeping of retries, which have no
    place here, and costs as much as the rest of a call. So where the parser is hiredis and the
    socket a plain one, both are used directly.
    """

    def __init__(self, conn: Any, timeout: float, hold: bool) -> None:
        super().__init__(conn, timeout, hold)
        parser: Any = getattr(conn, "_parser", None)
        reader = getattr(parser, "_reader", None)
        buffer = getattr(parser, "_buffer", None)
        self.sent = False
        self._asked_at = 0.0
        #: hiredis. A connection that is made anew has another, and is another line.
        self.reader: Any = None
        if not hold:
            return
        resp3 = str(getattr(conn, "protocol", 2)) == "3"
        busy = getattr(conn, "health_check_interval", 0)
        if self.poll is not None and not resp3 and not busy and hasattr(reader, "gets"):
            self.reader = reader
            self.buffer: Any = buffer if isinstance(buffer, bytearray) else bytearray(65536)
            _leave_timeout_to_the_kernel(self.sock, timeout)
        elif hasattr(getattr(conn, "_sock", None), "settimeout"):
            conn._sock.settimeout(timeout)

    def socket(self) -> Any:
        sock = getattr(self.conn, "_sock", None)
        return sock if type(sock) is _socket else None

    def ask(self, request: bytes, now: float) -> Any:
        """The reply to a request, in as few steps as can be. `sent` tells how far it came."""
        self.sent = False
        # A connection that was in order a moment ago is not looked at.
        if now - self._asked_at > 0.001 and self.poll(0):
            raise ConnectionError("the server closed the connection")
        self._asked_at = now
        sock = self.sock
        sock.sendall(request)
        self.sent = True
        size = sock.recv_into(self.buffer)
        reader = self.reader
        if size:
            reader.feed(self.buffer, 0, size)
            reply = reader.gets(False)
            if reply.__class__ is list:
                return reply
        else:
            raise ConnectionError("the server closed the connection")
        # An error, or not all of it yet.
        return reply if _whole(reply) else self.receive(monotonic() + self.timeout)

    def send(self, request: bytes) -> None:
        """Write a request out in full."""
        if self.reader is not None:
            self.sock.sendall(request)
        else:
            self.conn.send_packed_command((request,))

    def receive(self, until: float) -> Any:
        """The next reply or error, its strings as bytes; `Late` if there is none by then."""
        reader = self.reader
        if reader is None:
            return self._receive(until)
        reply = reader.gets(False)
        while not _whole(reply):
            # Also when it is late: the reply may be there, and we were held up.
            if not self.poll(max(ceil((until - monotonic()) * 1e3), 0)):
                raise Late
            size = self.sock.recv_into(self.buffer)
            if not size:
                raise ConnectionError("the server closed the connection")
            reader.feed(self.buffer, 0, size)
            reply = reader.gets(False)
        return reply

    def _receive(self, until: float) -> Any:
        if not self.conn.can_read(timeout=max(until - monotonic(), 0)):
            raise Late
        try:
            return self.conn.read_response(disable_decoding=True, disconnect_on_error=False)
        except _answers() as error:
            return error

    def disconnect(self) -> Any:
        self.conn.disconnect()

    abandon = disconnect


def _whole(reply: Any) -> bool:
    """Whether hiredis had a reply in full: what says that it had not is False or an object()."""
    return reply is not False and reply.__class__ is not object


def _answers() -> tuple[type[Exception], ...]:
    from redis.exceptions import (
        AuthenticationError,
        BusyLoadingError,
        ReadOnlyError,
        ResponseError,
    )

    return (ResponseError, AuthenticationError, BusyLoadingError, ReadOnlyError)


def _leave_timeout_to_the_kernel(sock: Any, timeout: float) -> None:
    """A timeout without the poll() that Python makes before each send and receive.

    For connections that stay with us: a tenth of the time of a call.
    """
    seconds, part = divmod(timeout, 1.0)
    packed = struct.pack("@ll", int(seconds), max(int(part * 1e6), 1))
    try:
        if os.name != "posix":
            raise OSError
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, packed)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, packed)
    except OSError:
        sock.settimeout(timeout)  # not on this system: Python polls
    else:
        sock.settimeout(None)


class SyncAsk(Ask):
    """An ask of a thread, by itself or with others."""

    __slots__ = ("waiter",)

    waiter: SyncWaiter

    @property
    def gone(self) -> bool:
        return self.waiter.departed

    @property
    def asked_at(self) -> float:  # type: ignore[override]
        return self.waiter.asked_at

    @property
    def until(self) -> float:  # type: ignore[override]
        return self.waiter.until

    def settle(self, answer: Any) -> None:
        waiter = self.waiter
        if len(waiter.asks) == 1:  # Nobody else counts down at the same time.
            if self.answer is UNANSWERED:
                self.answer = answer
                waiter.left = 0
                waiter.rouse()
            return
        with waiter.lock:
            if self.answer is UNANSWERED:
                self.answer = answer
                waiter.left -= 1
                if not waiter.left:
                    waiter.rouse()


class SyncWaiter:
    """A thread that waits for the answers to its asks."""

    __slots__ = ("_wake", "asked_at", "asks", "departed", "lead", "left", "lock", "until")

    def __init__(self, asks: Sequence[SyncAsk], timeout: float) -> None:
        self.asks = asks
        self.left = len(asks)
        self.asked_at = now = monotonic()
        self.until = now + timeout
        for ask in asks:
            ask.waiter = self
        self.lock = Lock()
        self._wake = wake = Lock()
        wake.acquire()
        self.departed = False
        #: Lanes that were handed over to it. It may not leave before it has seen to them.
        self.lead: list[SyncLane] = []

    def takes_over(self, lane: SyncLane) -> bool:
        """Hand it a lane, if it is still there to take it."""
        with self.lock:
            if self.departed or monotonic() >= self.until:
                return False
            self.lead.append(lane)
            self.rouse()
            return True

    def rouse(self) -> None:
        try:  # noqa: SIM105 - suppress() costs as much as the rest
            self._wake.release()
        except RuntimeError:
            pass  # awake already

    def wait(self) -> None:
        """Until everything is answered or the time is up; carries others meanwhile, if asked to."""
        asks = self.asks
        if len(asks) == 1:
            ask = asks[0]
            if ask.answer is UNANSWERED and ask.lane.acquire(False):
                self.lead.append(ask.lane)
        else:
            for lane in {ask.lane for ask in asks if ask.answer is UNANSWERED}:
                if lane.acquire(False):
                    self.lead.append(lane)
        while True:
            while self.lead:
                self._carry()
            left = self.until - monotonic()
            if not self.left or left <= 0:
                with self.lock:
                    if not self.lead:
                        self.departed = True
                        break
            else:
                self._wake.acquire(timeout=left)
        if self.left:
            self._give_up()

    def _carry(self) -> None:
        with self.lock:
            lanes, self.lead = self.lead, []
        try:
            if len(lanes) > 1:  # Several nodes can work at the same time.
                lanes[:] = [lane for lane in lanes if lane.set_off()]
            while lanes:
                lanes.pop().carry(self)
        except BaseException:
            for lane in lanes:
                lane.hand_over()
            raise

    def interrupted(self) -> None:
        """Send no more, and wait a little for what is under way."""
        with self.lock:
            self.departed = False
        for ask in self.asks:
            if ask.answer is UNANSWERED and _unqueued(ask):
                ask.settle(None)
        self.until = monotonic() + GRACE
        self.wait()

    def _give_up(self) -> None:
        for ask in self.asks:
            if ask.answer is UNANSWERED:
                lane: SyncLane = ask.lane
                sent = not _unqueued(ask) and lane.sent(ask)
                lane.late(ask, sent)
                if not sent:
                    lane.suspect()


class SyncLane(Lane):
    """A lane that threads take turns in working on."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.free = new_lock()
        self.acquire = self.free.acquire
        self.release = self.free.release
        self._connecting = False
        self._turns = 0  # how often it was handed over
        self._stuck: tuple[int, float] = (-1, 0.0)

    def set_off(self) -> bool:
        """Send what there is, with `free` held; False if that was passed on."""
        return bool(self.air) or self._depart()

    def sent(self, ask: Ask) -> bool:
        """Whether an ask that has left the queue may have been sent, or may be just now."""
        return not any(ask in part.asks for part in self.again.copy())

    def carry(self, waiter: SyncWaiter) -> None:
        """Work on the lane, with `free` held, until the waiter has what it came for."""
        sending = False
        try:
            while self._rides(waiter):
                if self.air:
                    self._receive(waiter.until)
                    continue
                if monotonic() >= waiter.until:
                    break
                sending = True
                if not self._depart():
                    return  # It was passed on to the thread that connects.
                sending = False
        except Late:
            pass
        except BaseException as interrupt:
            if sending and self.air:
                self.lost(interrupt, True)
            self.hand_over()
            raise
        self.hand_over()

    def _receive(self, until: float) -> None:
        line: Any = self.line
        try:
            reply = line.receive(until)
        except failures() as error:
            self.lost(error, True)
        else:
            self.landed(reply)

    def _rides(self, waiter: SyncWaiter) -> bool:
        if not waiter.left:
            return False
        if len(waiter.asks) == 1:
            return waiter.asks[0].lane is self
        return any(ask.lane is self and ask.answer is UNANSWERED for ask in waiter.asks)

    def _depart(self) -> bool:
        """Send the next flight; False if there is no line, and somebody gets one."""
        if self.spoilt:
            self.drop()
        line: Any = self.line
        if line is not None and not line.quiet():
            self.drop()
            line = None
        if line is None:
            self._connecting = True
            try:
                Thread(target=self._connect, name="throttled-connect", daemon=True).start()
            except RuntimeError:  # There are to be no more threads, as at the end of a process.
                self._connect()
            return False
        request = self.load(8 * BATCH)
        if request:
            try:
                line.send(request)
            except failures() as error:
                self.lost(error, False)
        return True

    def _connect(self) -> None:
        """Get a line, with `free` held, and hand the lane over."""
        try:
            driven(self.reopened())
        finally:
            self._connecting = False
            self.hand_over()

    def hand_over(self) -> None:
        """Pass the lane on to the next who waits, or leave it free."""
        self._turns += 1
        while True:
            ask: Any
            for ask in self.waiting():
                if ask.answer is UNANSWERED and ask.waiter.takes_over(self):
                    return
            if self.air:
                # Replies that nobody has the time to wait for.
                self.abandon(self.air, True)
                self.spoil()
            self.abandon(self.again, False)
            if self.spoilt:
                self.drop()
            if not self.source.hold and self.line is not None:
                line, self.line, self.ready = self.line, None, None
                driven(self.source.give(line, spoilt=False))
            self.free.release()
            while self.queue and self.queue[0].gone:
                try:
                    self.queue.popleft()
                except IndexError:
                    break
            if not self.queue or not self.free.acquire(False):
                return

    def suspect(self) -> None:
        """A caller's time has run out in the queue. See that somebody works on the lane.

        An interrupt may have hit a thread between two steps, with the lane in hand. Whoever holds
        it without connecting and without a flight under way is done within its own time.
        """
        now = monotonic()
        busy = any(not ask.gone for part in self.air.copy() for ask in part.asks)
        if not self.free.locked() or busy or self._connecting:
            self._stuck = (-1, 0.0)
        elif self._stuck[0] != self._turns:
            self._stuck = (self._turns, now)
        elif now - self._stuck[1] > self.timeout + GRACE:
            self._stuck = (-1, 0.0)
            self.spoil()
            self.hand_over()

    def kick(self) -> None:
        """See that somebody works on the lane, now that asks were put in line from elsewhere."""
        if self.free.acquire(False):
            self.hand_over()

    def retire(self) -> None:
        """Close the line, if nobody uses it."""
        if self.free.acquire(False):
            self.drop()
            self.hand_over()

    def close(self) -> Flow[None]:
        """Close the line, as soon as nobody uses it, or else in the middle of what it does."""
        held = self.free.acquire(timeout=GRACE)
        line, self.line, self.ready = self.line, None, None
        spent, self.spent = self.spent, []
        if held:
            self.hand_over()
        for each in spent if line is None else [*spent, line]:
            yield from self.source.give(each, spoilt=True)


def _unqueued(ask: SyncAsk) -> bool:
    """Take an ask out of its queue, if it still is there."""
    try:
        ask.lane.queue.remove(ask)
    except ValueError:
        return False
    return True


def driven(flow: Flow[Any]) -> Any:
    """Run a flow to its end: its steps have done their work when they are yielded."""
    value = None
    send: Callable[[Any], Any] = flow.send
    try:
        while True:
            value = send(value)
    except StopIteration as stop:
        return stop.value
