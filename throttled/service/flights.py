"""Checks that travel together: whoever comes while some are under way leaves when they land.

Rules
-----
* Nobody waits for company: who finds nothing in the air leaves at once, alone.
* Those who come meanwhile gather, and leave together when it lands, as many as one message holds.
* Who has gathered for a quarter of its time does not wait for a flight that is late: all who have
  gathered leave.
* A flight lasts as long as the eldest aboard has time. What is not answered by then is not known,
  and is never sent again.
* What was admitted for a caller who is gone is given back.

The first of the threads that gathered carries the others (see `throttled.store.threads`); of tasks,
a flight is a task of its own, so that any of them may be cancelled.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from threading import Lock
from time import monotonic
from typing import Any, Final

from throttled.store.base import Outcome, new_lock

__all__ = ["MOST", "LoopFlights", "ThreadFlights", "parted"]

#: Checks in one message.
MOST: Final = 500
#: Characters of keys in one message, which has to be shorter than 4 MB whatever they are.
MOST_TEXT: Final = 500_000
#: Of its time, what a caller waits for a flight that is late.
LATE: Final = 0.25


class Ask:
    """What one caller wants to know: one check or several, in their order."""

    __slots__ = ("aboard", "future", "gone", "outcomes", "requests", "text", "until", "wake")

    #: What its caller waits for: a lock in a thread, a future in a task.
    wake: Lock
    future: asyncio.Future[None]

    def __init__(self, requests: Sequence[Any], until: float) -> None:
        self.requests = requests
        #: The characters of its keys.
        self.text = sum([len(each.key) for each in requests])
        #: When its time is up, on the monotonic clock.
        self.until = until
        self.aboard = False
        #: Whether its caller does not wait any more.
        self.gone = False
        self.outcomes: Sequence[Outcome] | None = None


def parted(requests: Sequence[Any]) -> list[Sequence[Any]]:
    """Requests in messages, each as long as it may be."""
    if len(requests) <= MOST and sum([len(each.key) for each in requests]) <= MOST_TEXT:
        return [requests]
    parts: list[Sequence[Any]] = []
    part: list[Any] = []
    text = 0
    for request in requests:
        if len(part) == MOST or (part and text + len(request.key) > MOST_TEXT):
            parts.append(part)
            part, text = [], 0
        part.append(request)
        text += len(request.key)
    return [*parts, part]


def _boarding(queue: deque[Ask]) -> list[Ask]:
    """Those who leave next, taken out of the queue."""
    asks: list[Ask] = []
    checks = text = 0
    while queue:
        ask = queue[0]
        checks += len(ask.requests)
        text += ask.text
        if asks and (checks > MOST or text > MOST_TEXT):
            break
        ask.aboard = True
        asks.append(queue.popleft())
    return asks


def _requests(asks: Sequence[Ask]) -> Sequence[Any]:
    if len(asks) == 1:
        return asks[0].requests
    return [request for ask in asks for request in ask.requests]


class ThreadFlights:
    """Flights of threads.

    `send(requests, timeout)` begins a call, `arrive(call)` waits for its outcomes, and after an
    interrupt `overdue(call)` a little longer; of what neither gets, both say why not.
    `give_back(requests, outcomes)` begins to give back what was admitted, and waits for nothing.
    """

    def __init__(
        self,
        send: Callable[[Sequence[Any], float], Any],
        arrive: Callable[[Any], list[Outcome]],
        overdue: Callable[[Any], list[Outcome]],
        give_back: Callable[[Sequence[Any], Sequence[Outcome]], None],
        lost: Callable[[int], list[Outcome]],
    ) -> None:
        self._send = send
        self._arrive = arrive
        self._overdue = overdue
        self._give_back = give_back
        self._lost = lost
        self._lock = new_lock()
        self._queue: deque[Ask] = deque()
        # The flight that the queue waits for, and who is to lead the next.
        self._air: object = None
        self._lead: Ask | None = None

    def ask(self, requests: Sequence[Any], timeout: float) -> Sequence[Outcome]:
        """What becomes of the requests, which one message can hold, within so many seconds."""
        ask = Ask(requests, monotonic() + timeout)
        flight: object = None
        with self._lock:
            if self._air is None:
                self._air = flight = object()
                ask.aboard = True
            else:
                ask.wake = Lock()
                ask.wake.acquire()
                self._queue.append(ask)
        if flight is not None:
            self._carry([ask], ask, flight)
        else:
            try:
                self._ride(ask, timeout)
            except BaseException:
                self._depart_without(ask)
                raise
        assert ask.outcomes is not None
        return ask.outcomes

    def _ride(self, ask: Ask, timeout: float) -> None:
        """Wait to be taken along, or to lead."""
        ask.wake.acquire(timeout=timeout * LATE)
        while ask.outcomes is None:
            asks: list[Ask] = []
            flight = object()
            with self._lock:
                # Not aboard: it is to lead, or the flight before is late.
                if not ask.aboard:
                    asks = _boarding(self._queue)
                    self._air, self._lead = flight, None
            if asks:
                self._carry(asks, ask, flight)
            elif not ask.wake.acquire(timeout=max(ask.until + LATE - monotonic(), 0.0)):
                # Its carrier was stopped between two steps.
                with self._lock:
                    ask.outcomes = ask.outcomes or self._lost(len(ask.requests))

    def _carry(self, asks: Sequence[Ask], own: Ask, flight: object) -> None:
        """Fly, and tell everybody aboard what became of it."""
        outcomes: Sequence[Outcome] | None = None
        try:
            call = self._send(_requests(asks), asks[0].until - monotonic())
            try:
                outcomes = self._arrive(call)
            except BaseException:
                own.gone = True
                outcomes = self._overdue(call)
                raise
        finally:
            self._land(asks, own, outcomes, flight)

    def _land(
        self, asks: Sequence[Ask], own: Ask, outcomes: Sequence[Outcome] | None, flight: object
    ) -> None:
        if outcomes is None:
            outcomes = self._lost(sum([len(ask.requests) for ask in asks]))
        place = 0
        left: list[Ask] = []
        with self._lock:
            for ask in asks:
                ask.outcomes = outcomes[place : place + len(ask.requests)]
                place += len(ask.requests)
                if ask.gone:
                    left.append(ask)
                elif ask is not own:
                    _rouse(ask)
            if self._air is flight:
                self._hand_over()
        for ask in left:
            assert ask.outcomes is not None
            self._give_back(ask.requests, ask.outcomes)

    def _hand_over(self) -> None:
        """Let the first who waits lead the next flight, if anybody does."""
        self._lead = self._queue[0] if self._queue else None
        if self._lead is None:
            self._air = None
        else:
            _rouse(self._lead)

    def _depart_without(self, ask: Ask) -> None:
        """An interrupted thread waits no more."""
        with self._lock:
            seen_to, ask.gone = ask.gone, True  # by itself, if it carried others
            if not ask.aboard:
                self._queue.remove(ask)
                if self._lead is ask:
                    self._hand_over()
        if ask.outcomes is not None and not seen_to:
            self._give_back(ask.requests, ask.outcomes)


def _rouse(ask: Ask) -> None:
    if ask.wake.locked():
        ask.wake.release()


class LoopFlights:
    """Flights of the tasks of one event loop.

    `send(requests, timeout)` comes to the outcomes, or to why there are none; `lost(number)` says
    that of what was stopped. `give_back` is as of `ThreadFlights`.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        send: Callable[[Sequence[Any], float], Coroutine[Any, Any, list[Outcome]]],
        give_back: Callable[[Sequence[Any], Sequence[Outcome]], None],
        lost: Callable[[int], list[Outcome]],
    ) -> None:
        self._loop = loop
        self._send = send
        self._give_back = give_back
        self._lost = lost
        self._queue: deque[Ask] = deque()
        # The flight that the queue waits for.
        self._air: asyncio.Task[None] | None = None
        self._alarm: asyncio.TimerHandle | None = None
        #: All that are under way.
        self.flying: set[asyncio.Task[None]] = set()

    async def ask(self, requests: Sequence[Any], timeout: float) -> Sequence[Outcome]:
        """What becomes of the requests, which one message can hold, within so many seconds."""
        ask = Ask(requests, monotonic() + timeout)
        ask.future = self._loop.create_future()
        self._queue.append(ask)
        if self._air is None:
            self._depart()
        elif self._alarm is None:
            self._alarm = self._loop.call_later(timeout * LATE, self._ring, timeout * LATE)
        try:
            await ask.future
        except asyncio.CancelledError:
            self._depart_without(ask)
            raise
        assert ask.outcomes is not None
        return ask.outcomes

    def _depart(self) -> None:
        """Let those leave who have gathered."""
        asks = _boarding(self._queue)
        self._air = task = self._loop.create_task(self._fly(asks))
        self.flying.add(task)
        task.add_done_callback(self.flying.discard)

    def _ring(self, late: float) -> None:
        """The first in the queue may have waited for long enough."""
        self._alarm = None
        while self._queue:
            left = self._queue[0].until - late * (1 / LATE - 1) - monotonic()
            if left > 0:
                self._alarm = self._loop.call_later(left, self._ring, late)
                return
            self._depart()

    async def _fly(self, asks: Sequence[Ask]) -> None:
        outcomes: Sequence[Outcome] | None = None
        try:
            outcomes = await self._send(_requests(asks), asks[0].until - monotonic())
        finally:
            if outcomes is None:
                outcomes = self._lost(sum([len(ask.requests) for ask in asks]))
            self._land(asks, outcomes)

    def _land(self, asks: Sequence[Ask], outcomes: Sequence[Outcome]) -> None:
        place = 0
        for ask in asks:
            ask.outcomes = outcomes[place : place + len(ask.requests)]
            place += len(ask.requests)
            if ask.future.done():
                self._give_back(ask.requests, ask.outcomes)
            else:
                ask.future.set_result(None)
        if asyncio.current_task(self._loop) is self._air:
            self._air = None
            if self._queue:
                self._depart()

    def _depart_without(self, ask: Ask) -> None:
        """A cancelled task waits no more."""
        if not ask.aboard:
            self._queue.remove(ask)
        elif ask.outcomes is not None and not ask.future.cancelled():
            # The answer was just there.
            self._give_back(ask.requests, ask.outcomes)
