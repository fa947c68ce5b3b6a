"""The Redis store for asyncio: the same calls, awaited."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Self
from weakref import WeakKeyDictionary

from throttled.exceptions import SetUpError
from throttled.store.base import AsyncStore, Call, Reply, Ticket
from throttled.store.calls import RedisCalls
from throttled.store.exchange import GRACE, Attempt
from throttled.store.lanes import Flow, Line, Road
from throttled.store.shared import Shared

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Coroutine, Sequence
    from types import TracebackType

    from throttled.algorithms.plan import Plan

__all__ = ["RedisStore"]

#: Calls that are seen to their end although those who made them may have been cancelled.
_leftovers: set[asyncio.Task[Any]] = set()


class AsyncLine(Line):
    """A connection of redis-py's asyncio flavour."""

    __slots__ = ("writer",)

    doubtful = True  # It knows what the loop has read so far.

    def socket(self) -> Any:
        writer = getattr(self.conn, "_writer", None)
        if not isinstance(writer, asyncio.StreamWriter) or writer.is_closing():
            return None
        if writer.get_extra_info("ssl_object"):
            return None
        return writer.get_extra_info("socket")

    def watch(self) -> bool:
        self.writer: Any = getattr(self.conn, "_writer", None)
        return super().watch()

    def quiet(self) -> bool:
        # The loop may have read something already, or not have looked at the socket for long.
        writer = self.writer
        return (
            self.conn._writer is writer
            and not writer.is_closing()
            and not self.conn._reader._buffer
            and not self.poll(0)
        )

    def send(self, request: bytes) -> Any:
        writer = getattr(self.conn, "_writer", None)
        if writer is None or self.conn.health_check_interval:
            return self.conn.send_packed_command([request])
        # Not by way of redis-py, which makes a task for it and awaits that: a call that is
        # cancelled there cannot tell whether its request went out. Nothing is awaited here.
        writer.writelines([request])
        return None

    def read(self) -> Any:
        return self.conn.read_response(disable_decoding=True, disconnect_on_error=False)

    def read_soon(self) -> Any:
        return asyncio.wait_for(self.read(), GRACE)

    def disconnect(self) -> Any:
        return self.conn.disconnect(nowait=True)

    def abandon(self) -> None:
        self.conn._close()


def _kept(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    task = asyncio.create_task(work)
    _leftovers.add(task)
    task.add_done_callback(_leftovers.discard)
    # A look at its error: without one, asyncio would complain if nobody is left to hear of it.
    task.add_done_callback(lambda task: task.cancelled() or task.exception())
    return task


async def _driven(flow: Flow[Any], thrown: BaseException | None = None) -> Any:
    """Run a flow to its end, awaiting its steps.

    When the caller is cancelled, the rest of the flow goes on in a task of its own: it reads the
    reply that is under way and gives back what was taken, while the caller leaves at once.
    """
    try:
        step = flow.send(None) if thrown is None else flow.throw(thrown)
        while True:
            if not hasattr(step, "__await__"):
                step = flow.send(step)
                continue
            try:
                value = await step
            except asyncio.CancelledError as cancelled:
                if thrown is None:
                    _kept(_finished(flow, cancelled))
                    raise
                step = flow.throw(cancelled)
            except BaseException as error:
                step = flow.throw(error)
            else:
                step = flow.send(value)
    except StopIteration as stop:
        return stop.value


async def _finished(flow: Flow[Any], cancelled: BaseException | None = None) -> None:
    try:
        await _driven(flow, cancelled)
    except BaseException:
        # The caller was told of the cancellation, which comes out again here, and nobody is left
        # to be told of anything else.
        return


def _running_loop() -> asyncio.AbstractEventLoop:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise SetUpError(
            "This RedisStore works in a running asyncio event loop, for redis-py knows no other; "
            "under trio use a MemoryStore."
        ) from None


async def _acquired(turn: asyncio.Lock) -> bool:
    """Whether it is our turn; False when that takes too long, for a server may hang."""
    if not turn.locked():
        return await turn.acquire()
    try:
        async with asyncio.timeout(GRACE):
            return await turn.acquire()
    except TimeoutError:
        return False


class RedisStore(RedisCalls, AsyncStore):
    """Keeps limits on a Redis or Valkey server, for asyncio: see `throttled.store.RedisStore`.

    One store may serve several event loops, one after the other or at once: each gets its own
    connections, which are closed when the loop ends. `client=` must be a `redis.asyncio` client.

    A task that is cancelled while its call is under way leaves at once; the reply is read in the
    background, and what was taken is given back.
    """

    asynchronous = True
    line = AsyncLine
    _shared = Shared()

    def _ready(self) -> Road:
        loop = _running_loop()
        road = self._roads.get(loop)
        if road is None:
            self._forget_closed()
            road = self._roads[loop] = self._open(loop)
        return road

    def forget(self) -> None:
        self._roads: dict[asyncio.AbstractEventLoop, Road] = {}
        self._ends: dict[asyncio.AbstractEventLoop, AsyncGenerator[None]] = {}
        self._turns: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = (
            WeakKeyDictionary()
        )

    def _forget_closed(self) -> None:
        for loop in [loop for loop in self._roads if loop.is_closed()]:
            del self._roads[loop]
            self._ends.pop(loop, None)
            self._shared.leave(self._key(loop), self)

    async def _called(self, flow: Flow[Any]) -> Any:
        loop = _running_loop()
        if loop not in self._ends:
            # A loop that ends closes its asynchronous generators: the one hook it has.
            self._ends[loop] = end = self._until_end(loop)
            await anext(end)
        return await _driven(flow)

    async def _seen_through(self, flow: Flow[Any]) -> None:
        """The same, to its end even if the caller is cancelled: it gives back what others need."""
        await asyncio.shield(_kept(self._called(flow)))

    async def _until_end(self, loop: asyncio.AbstractEventLoop) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            await self._closed(loop)

    async def _closed(self, loop: asyncio.AbstractEventLoop) -> None:
        # A loop that ends waits for the tasks that it cancels, and not for what they leave behind.
        late = [task for task in _leftovers if task.get_loop() is loop]
        if late:
            await asyncio.wait(late, timeout=2 * GRACE)
        self._roads.pop(loop, None)
        self._ends.pop(loop, None)
        await _driven(self._leave(loop))

    async def run(self, plan: Plan, key: str, cost: int, patience: float) -> Reply:
        """Decide one call; `patience` in µs, `LOOK` to change nothing."""
        if patience <= 0.0:
            return await self._ask(plan, key, cost, patience)
        # Who waits is served in the order of asking; over several connections that would be the
        # order of arrival, and a crowd would open a connection each.
        turn = self._turns.setdefault(_running_loop(), asyncio.Lock())
        mine = await _acquired(turn)
        try:
            return await self._ask(plan, key, cost, patience)
        finally:
            if mine:
                turn.release()

    async def _ask(self, plan: Plan, key: str, cost: int, patience: float) -> Reply:
        # The flow of `_run` for a connection at hand and a reply that is in order, written out as
        # in the sync store. Everything else is left to it.
        attempt: Attempt | None = None
        road = self._roads.get(_running_loop())
        if road is not None and road.idle and self._clock is None:
            line: Any = road.idle.pop()
            if line.quiet():
                line.unread = True
                request = self._wording(plan).asking(key, cost, patience)
                try:
                    line.writer.writelines([request])
                    reply = await line.conn.read_response(
                        disable_decoding=True, disconnect_on_error=False
                    )
                except asyncio.CancelledError as cancelled:
                    attempt = Attempt(line, cancelled, True)
                    _kept(_finished(self._run(plan, key, cost, patience, attempt)))
                    raise
                except BaseException as error:
                    attempt = Attempt(line, error, True)
                else:
                    line.unread = False
                    if reply.__class__ is list and reply and reply[0].__class__ is list:
                        road.idle.append(line)
                        return self._admitted(plan, key, cost, reply[0])
                    attempt = Attempt(line, reply, True)
            else:
                road.idle.append(line)  # The flow knows what to do with it.
        decided: Reply = await self._called(self._run(plan, key, cost, patience, attempt))
        return decided

    async def run_many(self, calls: Sequence[Call]) -> list[Any]:
        """Decide several calls in one round trip; an error stands in the place of its call."""
        replies: list[Any] = await self._called(self._run_many(calls))
        return replies

    async def adjust(self, plan: Plan, key: str, delta: int, slot: float | None = None) -> bool:
        """Charge (`delta > 0`) or give back; says whether anything was changed."""
        return bool(await self._called(self._adjust(plan, key, delta, slot)))

    async def undo(self, ticket: Ticket) -> bool:
        """Put back the state before a promise, if nobody came after; says whether it did."""
        return bool(await self._called(self._undo(ticket)))

    async def withdraw(self, ticket: Ticket) -> None:
        """Give back a promised slot, as if it had never been asked for where that is possible."""
        await self._seen_through(self._withdraw(ticket))

    async def arrived(self, ticket: Ticket) -> None:
        """A promised slot was used: return what those gave up who stood before it."""
        await self._called(self._arrived(ticket))

    async def reset(self, plan: Plan, key: str) -> None:
        """Forget a key."""
        await self._called(self._reset(plan, key))

    async def close(self) -> None:
        """Close the connections of this event loop, if no other store uses them there."""
        loop = _running_loop()
        end = self._ends.get(loop)
        if end is None:
            await self._closed(loop)
        else:
            await end.aclose()

    aclose = close

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()
