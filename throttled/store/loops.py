"""Many tasks, one connection: what is asked in one turn of the event loop leaves together.

A task puts its asks into the queue and awaits a future. If the connection is free, the queue leaves
when the loop has run whatever else is ready in this turn; if a flight is under way, when that has
landed. Replies are read where the loop hands out what it received, so that there is no task for it
and nothing to wake up but those who asked.

The store owns the flight: tasks that are cancelled are only marked as gone. What they were admitted
meanwhile goes back.
"""

from __future__ import annotations

import asyncio
import logging
from time import monotonic
from typing import TYPE_CHECKING, Any

from throttled.exceptions import BaseThrottledError
from throttled.store.failure import failures
from throttled.store.flight import BATCH, UNANSWERED, Ask, Lane
from throttled.store.lines import Flow, Line

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from throttled.store.aioredis import RedisStore

logger = logging.getLogger("throttled")

#: So many asks make a flight of their own while another is under way.
COHORT = 24
#: Tasks that see to what nobody waits for any more.
leftovers: set[asyncio.Task[Any]] = set()


def kept(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """A task that is not dropped before its end."""
    task = asyncio.create_task(work)
    leftovers.add(task)
    task.add_done_callback(_dropped)
    return task


def _dropped(task: asyncio.Task[Any]) -> None:
    leftovers.discard(task)
    error = None if task.cancelled() else task.exception()
    if error is not None and not isinstance(error, BaseThrottledError):
        logger.error("What was left to do for Redis failed", exc_info=error)


async def driven(flow: Flow[Any]) -> Any:
    """Run a flow to its end, awaiting its steps."""
    value: Any = None
    error: BaseException | None = None
    try:
        while True:
            step = flow.send(value) if error is None else flow.throw(error)
            value, error = step, None
            if hasattr(step, "__await__"):
                try:
                    value = await step
                except BaseException as thrown:
                    error = thrown
    except StopIteration as stop:
        return stop.value


class _Ear(asyncio.Protocol):
    """Hears what comes over a connection, in place of redis-py's stream reader."""

    def __init__(self, line: AsyncLine, before: Any) -> None:
        self._line = line
        self._reader = line.reader
        self._before = before

    def data_received(self, data: bytes) -> None:
        reader, heard = self._reader, self._line.heard
        try:
            reader.feed(data)
            reply = reader.gets(False)
            while reply is not False and reply.__class__ is not object:
                heard(reply)
                reply = reader.gets(False)
        except Exception as error:  # what hiredis cannot read
            self._line.failed(error)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        # redis-py waits for its own protocol to hear of it when it closes.
        self._before.connection_lost(exc)
        self._line.failed(exc or ConnectionError("the server closed the connection"))


class AsyncLine(Line):
    """A connection of redis-py's asyncio flavour."""

    doubtful = True  # It knows what the loop has read so far.

    def __init__(self, conn: Any, timeout: float, hold: bool) -> None:
        super().__init__(conn, timeout, hold)
        #: Where replies go, and the end of the connection.
        self.heard: Callable[[Any], None] = _unheard
        self.failed: Callable[[BaseException], None] = _unheard
        self.writer: Any = getattr(conn, "_writer", None)
        self._task: asyncio.Task[Any] | None = None
        reader = getattr(getattr(conn, "_parser", None), "_reader", None)
        busy = getattr(conn, "health_check_interval", 0)
        resp3 = str(getattr(conn, "protocol", 2)) == "3"
        self.reader: Any = None
        self._before: Any = None
        if (
            hold
            and isinstance(self.writer, asyncio.StreamWriter)
            and hasattr(reader, "gets")
            and not (busy or resp3 or self.writer.is_closing() or conn._reader._buffer)
        ):
            self.reader = reader

    def socket(self) -> Any:
        writer = getattr(self.conn, "_writer", None)
        if not isinstance(writer, asyncio.StreamWriter) or writer.is_closing():
            return None
        if writer.get_extra_info("ssl_object"):
            return None
        return writer.get_extra_info("socket")

    def quiet(self) -> bool:
        conn = self.conn
        if not conn.is_connected or conn._writer is not self.writer:
            return False
        buffered = getattr(getattr(conn, "_reader", None), "_buffer", b"")
        return not buffered and super().quiet()

    def listen(self, heard: Callable[[Any], None], failed: Callable[[BaseException], None]) -> None:
        """From now on, hand replies to `heard`, and the end of the connection to `failed`."""
        self.heard, self.failed = heard, failed
        if self.reader is not None:
            transport = self.writer.transport
            self._before = transport.get_protocol()
            transport.set_protocol(_Ear(self, self._before))
            if not transport.is_reading():
                transport.resume_reading()

    def hush(self) -> None:
        """Leave the connection as redis-py made it."""
        self.heard = self.failed = _unheard
        if self._before is not None:
            self.writer.transport.set_protocol(self._before)
            self._before = None
        if self._task is not None:
            self._task.cancel()
            self._task = None

    def send(self, request: bytes, replies: int) -> None:
        """Write a request to which so many replies will come."""
        if self.reader is not None:
            self.writer.write(request)
        else:
            self._task = kept(self._exchange(request, replies))

    async def _exchange(self, request: bytes, replies: int) -> None:
        conn: Any = self.conn
        try:
            await conn.send_packed_command([request])
            while replies:
                try:
                    reply = await conn.read_response(
                        disable_decoding=True, disconnect_on_error=False
                    )
                except asyncio.CancelledError:
                    if self.heard is _unheard:
                        raise
                    continue  # The loop ends, and what is under way may have to be given back.
                except failures() as error:
                    if not _answered(error):
                        raise
                    reply = error
                replies -= 1
                self.heard(reply)
        except failures() as error:
            self.failed(error)

    def disconnect(self) -> Any:
        self.hush()
        if self.sock is None and isinstance(self.writer, asyncio.StreamWriter):
            # TLS would end with an exchange, for which a loop that ends does not wait.
            self.writer.transport.abort()
        return self.conn.disconnect(nowait=True)

    def abandon(self) -> None:
        self.hush()
        self.conn._close()


def _unheard(_: Any) -> None:
    """Nobody listens."""


def _answered(error: BaseException) -> bool:
    """Whether an error is what the server answered."""
    from redis import exceptions

    return isinstance(
        error,
        exceptions.ResponseError
        | exceptions.AuthenticationError
        | exceptions.BusyLoadingError
        | exceptions.ReadOnlyError,
    )


class AsyncAsk(Ask):
    """An ask of a task, which awaits its future."""

    __slots__ = ("asked_at", "call", "future", "store", "until")

    future: asyncio.Future[None]
    store: RedisStore
    #: The call to admit, if it is one; what was taken goes back when its task is gone.
    call: Any

    def __init__(self, key: bytes, group: bytes, now: bytes) -> None:
        self.key = key
        self.group = group
        self.now = now
        self.slot = self.hops = 0
        self.width = 1
        self.answer = UNANSWERED
        self.asking = False
        self.call = None

    @property
    def gone(self) -> bool:
        return self.future.cancelled()

    def settle(self, answer: Any) -> None:
        if self.answer is not UNANSWERED:
            return
        self.answer = answer
        future = self.future
        if future.cancelled():
            self.store._orphaned(self)
        else:
            future.set_result(None)


class AsyncLane(Lane):
    """A lane that belongs to one event loop."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._loop = asyncio.get_running_loop()
        #: What else will run in this turn of the loop: if nothing, nobody can join, and there is no
        #: reason to wait for the next turn. A loop that does not show it (uvloop) may have more.
        self._ready_to_run: Any = getattr(self._loop, "_ready", True)
        self._called = False  # the departure is
        self.together = False  # those in the queue belong together
        self._alarm: asyncio.TimerHandle | None = None
        self._landed: asyncio.Future[None] | None = None
        self._opening: asyncio.Task[Any] | None = None

    def kick(self) -> None:
        """Let the queue leave at the end of this turn of the loop, if it can."""
        if self._alarm is None:
            self._alarm = self._loop.call_later(self.timeout, self._ring)
        if not self._called and (not self.air or len(self.queue) >= COHORT):
            if self._ready_to_run:
                self._called = True
                self._loop.call_soon(self._depart)
            else:
                self._depart()

    def _depart(self) -> None:
        """Send the next flight, if there is one and the line is free."""
        self._called = False
        line: Any = self.line
        air, waiting = len(self.air), len(self.queue)
        if air and (air > 1 or waiting < COHORT or self.spoilt or line.reader is None):
            return  # It leaves when this one has landed.
        if line is not None and not air and (self.spoilt or not line.quiet()):
            self.drop()
            line = None
        if line is None:
            if self._opening is None and (waiting or self.again):
                self._opening = kept(self._open())
            return
        # A crowd goes in two halves: the server works on one while we do on the other.
        halves = not air and waiting >= 2 * COHORT and line.reader is not None
        halves, self.together = halves and not self.together, False
        request = self.load(min((waiting + 1) // 2 if halves else waiting, BATCH))
        if request:
            line.send(request, sum(1 + part.skips for part in self.air))
            if self.queue and not self._called and line.reader is not None:
                self._called = True
                self._loop.call_soon(self._depart)
        elif not air:
            self._rest()

    def _rest(self) -> None:
        """Nothing is under way, and nobody wants to go."""
        if not self.source.hold and self.line is not None:
            line: Any = self.line
            self.line = self.ready = None
            line.hush()
            kept(driven(self.source.give(line, spoilt=False)))

    def _heard(self, reply: Any) -> None:
        if not self.air:
            self._failed_line(ConnectionError("a reply came that nobody had asked for"))
            return
        self.landed(reply)
        self._go_on()

    async def landing(self, timeout: float) -> None:
        """Wait until nothing is under way any more, so long at most."""
        if self.air:
            self._landed = self._loop.create_future()
            await asyncio.wait([self._landed], timeout=timeout)

    def _go_on(self) -> None:
        if not self.air and self._landed is not None:
            if not self._landed.done():
                self._landed.set_result(None)
            self._landed = None
        if self.queue or self.again:
            self._depart()
        elif not self.air and self.spoilt:
            self.drop()
        elif not self.air:
            self._rest()

    def _failed_line(self, error: BaseException) -> None:
        self.lost(error, True)
        self.drop()
        self._go_on()

    async def _open(self) -> None:
        """Get a line, and let the queue leave over it."""
        try:
            await driven(self.reopened())
        finally:
            self._opening = None
            if not self._loop.is_closed():
                self._go_on()

    def opened(self, line: Any) -> None:
        line.listen(self._heard, self._failed_line)

    def _ring(self) -> None:
        """The time of the eldest may have run out. One alarm serves all who come after it."""
        now = monotonic()
        self._alarm = None
        for parts, sent in ((self.air, True), (self.again, False)):
            for part in parts:
                for ask in part.asks:
                    if ask.answer is UNANSWERED and ask.until <= now:
                        self.late(ask, sent)
        queue = self.queue
        while queue and (queue[0].answer is not UNANSWERED or queue[0].until <= now):
            ask = queue.popleft()
            if ask.answer is UNANSWERED:
                self.late(ask, False)
        waiting = [ask.until for ask in self.waiting() if ask.answer is UNANSWERED]
        if waiting:
            self._alarm = self._loop.call_later(min(waiting) - now, self._ring)
        if self.air and all(ask.answer is not UNANSWERED for part in self.air for ask in part.asks):
            # Replies that nobody waits for any more, and others may wait for the connection.
            self.air.clear()
            self.drop()
            self._go_on()

    def retire(self) -> None:
        if not self.air and self._opening is None:
            self.drop()

    def close(self) -> Flow[None]:
        """Close the line, and forget about whoever still uses it."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if self._opening is not None:
            self._opening.cancel()
        if self.air:
            self.lost(ConnectionError("the store was closed"), True)
        line: Any = self.line
        self.line = self.ready = None
        spent, self.spent = self.spent, []
        for each in spent if line is None else [*spent, line]:
            yield from self.source.give(each, spoilt=True)
