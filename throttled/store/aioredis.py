"""The Redis store for asyncio: the same calls, awaited."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any

from throttled._closing import AsyncClosing
from throttled.exceptions import BaseThrottledError, SetUpError
from throttled.store.base import Answer, AsyncStore, Call, Health, Outcome, Reply, Ticket
from throttled.store.calls import RedisCalls
from throttled.store.denials import again
from throttled.store.flight import UNANSWERED
from throttled.store.loops import AsyncAsk, AsyncLane, AsyncLine, driven, kept, leftovers
from throttled.store.shared import Shared
from throttled.store.waiting import Steps

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

    from throttled.algorithms.plan import Joint, Plan
    from throttled.store.base import Change
    from throttled.store.roads import Road

__all__ = ["RedisStore"]

#: Seconds that a loop which ends waits for what is given back, and for connections to close.
GRACE = 2.0


def _running_loop() -> asyncio.AbstractEventLoop:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise SetUpError(
            "This RedisStore works in a running asyncio event loop, for redis-py knows no other; "
            "under trio use a MemoryStore."
        ) from None


class RedisStore(RedisCalls[AsyncAsk], AsyncClosing, AsyncStore):
    """Keeps limits on a Redis or Valkey server, for asyncio: see `throttled.store.RedisStore`.

    What tasks ask at the same time shares a round trip. One store may serve several event loops,
    one after the other or at once: each gets its own connection, which is closed when the loop
    ends. `client=` must be a `redis.asyncio` client.

    A task that is cancelled while its call is under way leaves at once, and what it was admitted
    is given back.
    """

    asynchronous = True
    line = AsyncLine
    lane = AsyncLane
    ask = AsyncAsk
    _shared = Shared()

    def forget(self) -> None:
        self._roads: dict[asyncio.AbstractEventLoop, Road] = {}
        self._ends: dict[asyncio.AbstractEventLoop, AsyncGenerator[None]] = {}

    async def _until_end(self, loop: asyncio.AbstractEventLoop) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            await self._closed(loop)

    async def _closed(self, loop: asyncio.AbstractEventLoop) -> None:
        # A loop that ends waits for the tasks that it cancels, and not for what they leave behind.
        road = self._roads.get(loop)
        if road is not None:
            await asyncio.gather(*(lane.landing(GRACE) for lane in road.lanes()))  # type: ignore[attr-defined]
        late = [task for task in leftovers if task.get_loop() is loop]
        if late:
            await asyncio.wait(late, timeout=GRACE)
        self._roads.pop(loop, None)
        self._ends.pop(loop, None)
        await driven(self._leave(loop))

    # -- decisions --------------------------------------------------------------------------------

    def bind(self, plan: Plan | Joint) -> Callable[[str, int, float], Awaitable[Answer]]:
        """`(key, cost, patience)` -> the answer by one plan or a joint, to be awaited."""
        prefix, denials = plan.prefix, self._denials
        at_hand, tick, send, detach = denials.at_hand, denials.tick, self._send, self._detach
        to_admit, decided = self._to_admit, self._decided

        async def decide(key: str, cost: int, patience: float) -> Answer:
            sent_at = tick()
            denial = at_hand.get(prefix + key)
            if denial is not None:
                refusal: Answer | None = again(denial, plan, cost, patience, sent_at)
                if refusal is not None:
                    return refusal
            seen = denials.taken_back
            call: Any = plan, key, cost, patience
            ask = to_admit(call, sent_at)
            ask.call = call
            future = send(ask)
            try:
                await future
            except asyncio.CancelledError:
                detach(ask)
                raise
            return decided(ask, call, sent_at, seen)

        return decide

    async def run(self, plan: Plan, key: str, cost: int, patience: float) -> Reply:
        """Decide one call; `patience` in µs, `LOOK` to change nothing."""
        ask = self._to_admit((plan, key, cost, patience))
        ask.call = plan, key, cost, patience
        try:
            await self._send(ask)
        except asyncio.CancelledError:
            self._detach(ask)
            raise
        return self._replied(ask, ask.call)

    async def run_many(self, calls: Sequence[Call]) -> list[Any]:
        """Decide several calls in one round trip; an error stands in the place of its call."""
        return [self._outcome(ask, ask.call) for ask in await self._sent(calls)]

    async def _sent(self, calls: Sequence[Call], at: float | None = None) -> list[AsyncAsk]:
        """Asks to admit the calls, answered."""
        asks = self._to_admit_all(calls, at)
        for ask, call in zip(asks, calls, strict=True):
            ask.call = call
        waits = [self._send(ask, together=True) for ask in asks]
        for lane in {ask.lane for ask in asks if ask.answer is UNANSWERED}:
            lane.together = True
            lane.kick()
        try:
            for wait in waits:
                await wait
        except asyncio.CancelledError:
            for ask in asks:
                self._detach(ask)
            raise
        return asks

    async def decide_many(self, plan: Plan, calls: Sequence[tuple[str, int]]) -> list[Outcome]:
        """Answers to several calls that do not wait; an error stands in the place of its call."""
        sent_at, seen = self._denials.tick(), self._denials.taken_back
        answers, asked = self._recalled(plan, calls, sent_at)
        return self._filled(answers, await self._sent(asked, sent_at), asked, sent_at, seen)

    def _send(self, ask: AsyncAsk, together: bool = False) -> Awaitable[None]:
        """Put an ask in line; what is returned waits for the answer.

        `together`: more follow, and whoever puts them in line will kick the lane.
        """
        loop = _running_loop()
        ask.store = self
        ask.asked_at = now = monotonic()
        ask.until = now + self._timeout
        ask.future = future = loop.create_future()
        road = self._roads.get(loop)
        if road is None:
            road = self._arrive_at(loop)
        lane: Any = road.only
        if lane is None or lane.breaker.opened:
            self._submit(road, ask)
        else:
            ask.lane = lane
            lane.queue.append(ask)
        if not together:
            ask.lane.kick()
        return future

    def _detach(self, ask: AsyncAsk) -> None:
        """The task of an ask is cancelled."""
        if not ask.future.cancel() and not ask.future.cancelled():
            self._orphaned(ask)  # The answer was just there.

    def _arrive_at(self, loop: asyncio.AbstractEventLoop) -> Road:
        """The road within an event loop that is new here."""
        for closed in [each for each in self._roads if each.is_closed()]:
            del self._roads[closed]
            self._ends.pop(closed, None)
            self._shared.leave(self._key(closed), self)
        self._roads[loop] = road = self._open(loop)
        if loop not in self._ends:
            # A loop that ends closes its asynchronous generators: the one hook it has. This one is
            # started by hand, for it has nothing to wait for.
            self._ends[loop] = end = self._until_end(loop)
            with suppress(StopIteration):
                anext(end).__await__().send(None)
        return road

    def _orphaned(self, ask: AsyncAsk) -> None:
        """Give back what was admitted to a task that is gone."""
        if ask.call is None:
            return
        try:
            ticket, changes = self._undone(ask, ask.call)
        except BaseThrottledError:
            return
        if ticket is not None:
            kept(self.withdraw(ticket))
        if changes:
            kept(self.adjust_all(changes))

    # -- everything else --------------------------------------------------------------------------

    async def adjust(self, plan: Plan, key: str, delta: int, slot: float | None = None) -> bool:
        """Charge (`delta > 0`) or give back; says whether anything was changed."""
        ask = self._to_adjust(plan, key, delta, slot)
        await self._send(ask)
        return self._changed(ask, plan, key)

    async def adjust_all(self, changes: Sequence[Change]) -> list[bool]:
        """Charge or give back several in one round trip; says of each whether it changed."""
        return await self._heard(self._to_adjust_all(changes), changes)

    async def adjust_once(
        self, plan: Plan, key: str, mark: str, seconds: float, changes: Sequence[Change]
    ) -> list[bool] | None:
        """The same, unless it was done before: see `Store.adjust_once`."""
        ask = self._to_adjust_once(plan, key, mark, seconds, changes)
        await asyncio.shield(self._send(ask))
        return self._changed_once(ask, changes)

    async def reset_all(self, names: Sequence[tuple[Plan, str]]) -> None:
        """Forget several in one round trip."""
        await self._heard(self._to_reset_all(names), names)

    async def _heard(
        self, asks: Sequence[AsyncAsk], named: Sequence[tuple[Any, ...]]
    ) -> list[bool]:
        """What came of asks that belong together: all are sent, even if the caller is cancelled."""
        for wait in [self._send(ask) for ask in asks]:
            await asyncio.shield(wait)
        return self._changed_all(asks, named)

    async def admit_all(
        self, joint: Joint, keys: Sequence[str], cost: int, patience: float
    ) -> tuple[Answer, Ticket | None]:
        """Decide a call that has to keep several plans at once: see `Store.admit_all`."""
        ask = self._to_ticket(joint, keys, cost, patience)
        ask.call = joint, keys, cost, patience
        future = self._send(ask)
        try:
            await future
        except asyncio.CancelledError:
            self._detach(ask)
            raise
        return self._joint_answer(ask.groups, ask.name, ask.call)

    async def undo(self, ticket: Ticket) -> bool:
        """Put back the state before a promise, if nobody came after; says whether it did."""
        ask = self._to_undo(ticket)
        await self._send(ask)
        return self._changed(ask, ticket.plan, ticket.key)

    async def reset(self, plan: Plan, key: str) -> None:
        """Forget a key."""
        ask = self._to_reset(plan, key)
        await self._send(ask)
        self._changed(ask, plan, key)

    async def withdraw(self, ticket: Ticket) -> None:
        """Give back a promised slot, as if it had never been asked for where that is possible.

        Is seen to its end even if the caller is cancelled: it gives back what others need.
        """
        await asyncio.shield(kept(self._go(self._waiting.leave(ticket))))

    async def arrived(self, ticket: Ticket) -> None:
        """A promised slot was used: return what those gave up who stood before it."""
        await self._go(self._waiting.arrive(ticket))

    async def _go(self, steps: Steps) -> None:
        try:
            undo, ticket = next(steps)
            while True:
                undo, ticket = steps.send(
                    await self.undo(ticket)
                    if undo
                    else await self.adjust(ticket.plan, ticket.key, -ticket.cost, ticket.slot)
                )
        except StopIteration:
            return

    def health(self) -> Health:
        """How the store gets on with its server, without asking it: that of this event loop."""
        try:
            road = self._roads.get(asyncio.get_running_loop())
        except RuntimeError:
            road = next(iter(self._roads.values()), None)
        return self._health(road)

    async def close(self) -> None:
        """Close the connection of this event loop, if no other store uses it there."""
        loop = _running_loop()
        end = self._ends.get(loop)
        if end is None:
            await self._closed(loop)
        else:
            await end.aclose()
