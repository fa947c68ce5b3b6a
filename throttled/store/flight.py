"""How calls share a round trip: asks, parts, lanes. The I/O is in `threads.py` and `loops.py`.

A call puts its `Ask` into the queue of a `Lane`, of which there is one to each server. The lane has
one connection, and while a *flight* is under way on it the asks of the next gather, to leave as one
write when it has landed. Nothing waits for company: a queue that finds the connection free leaves
at once, if only with a single ask.

A flight consists of parts, a part being one run of the script: at most `BATCH` asks of one slot
and of one clock. Replies come in the order of the parts. What a reply or an error means for the
asks of a part is decided here, once for both flavours:

1. A decision is sent once. redis-py's retries never come near it.
2. It is sent again only where the first one cannot have run: the server did not know the script,
   it was a replica, the slot lives elsewhere, or the request could not be written out in full.
3. Where that cannot be known, `StoreUnavailableError` says so; the call may have been counted.
4. An error reaches the asks that it concerns, and no others.
5. A connection with an unread reply is closed, never used again.
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from throttled.exceptions import BaseThrottledError, SetUpError, StoreUnavailableError
from throttled.store.breaker import Breaker
from throttled.store.failure import (
    ASK,
    MOVED,
    NOPERM,
    NOSCRIPT,
    READONLY,
    TRYAGAIN,
    UNSENT,
    Failure,
    failures,
    is_list,
    read_only,
)
from throttled.store.wire import ASKING, many, one, with_source

if TYPE_CHECKING:
    from collections.abc import Iterator

    from throttled.store.lines import Flow, Line, Source
    from throttled.store.roads import Road

#: Decisions in one run of the script, so that a server is never held for long.
BATCH = 128
#: How often an ask follows a cluster that is moving slots about.
HOPS = 5

#: What stands for an answer until there is one.
UNANSWERED: Final[Any] = object()


class Ask:
    """One group for the script, on its way to a server and back.

    Instants are of `time.monotonic`.
    """

    __slots__ = ("answer", "asking", "group", "hops", "key", "lane", "now", "slot", "width")

    lane: Any  # where it stands in line
    asked_at: float
    until: float  # when its time has run out

    def __init__(self, key: bytes, group: bytes, now: bytes) -> None:
        self.key = key  # the key in Redis, as Redis reads it; several keys for a joint
        self.group = group
        self.now = now
        self.width = 1  # how many keys, groups and replies
        self.slot = 0  # in a cluster
        self.answer: Any = UNANSWERED
        self.asking = False  # the next request has to say that an ASK told us to come
        self.hops = 0

    @property
    def name(self) -> bytes:
        """The key in Redis, of several the first."""
        if self.width == 1:
            return self.key[self.key.index(b"\n") + 1 : -2]
        return self.names[0]

    @property
    def names(self) -> list[bytes]:
        """The keys in Redis."""
        names: list[bytes] = []
        start = 0
        for _ in range(self.width):
            head = self.key.index(b"\n", start) + 1
            start = head + int(self.key[start + 1 : head - 2])
            names.append(self.key[head:start])
            start += 2
        return names

    @property
    def groups(self) -> Any:
        """The answer with a list of replies, however many there are."""
        return self.answer if self.width > 1 else [self.answer]

    @property
    def gone(self) -> bool:
        """Whether nobody waits any more. What is not sent yet then never will be."""
        raise NotImplementedError

    def settle(self, answer: Any) -> None:
        """An answer has come: a group's reply, or an error."""
        raise NotImplementedError


class Part:
    """Asks that one run of the script answers."""

    __slots__ = ("asks", "request", "skips", "tried", "width")

    def __init__(self, asks: list[Ask]) -> None:
        self.asks = asks
        self.skips = 0  # replies that come before the one of interest
        self.tried: tuple[str, ...] = ()  # what was tried again already
        self.request = b""
        self.width = sum([ask.width for ask in asks])  # how many replies it gets

    def compose(self) -> None:
        """Put the request together."""
        asks = self.asks
        first = asks[0]
        self.width = sum([ask.width for ask in asks])
        if self.width > 1:
            keys = [ask.key for ask in asks]
            self.request = many(keys, [ask.group for ask in asks], first.now, self.width)
        else:
            self.request = one(first.key, first.group, first.now)
        if NOSCRIPT in self.tried:
            self.request = with_source(self.request)
        self.skips = 0
        if first.asking:
            self.request = ASKING + self.request
            self.skips = 1


class Lane:
    """Calls on their way to one server. One thread, or one event loop, works on it at a time; only
    the queue takes asks from any thread."""

    def __init__(self, source: Source, where: str, road: Road, timeout: float) -> None:
        self.source = source
        self.where = where  # what errors call the server
        self.road = road
        self.timeout = timeout
        self.breaker = Breaker(f"Redis at {where}")
        self.queue: deque[Ask] = deque()
        self.air: deque[Part] = deque()  # sent, and not answered yet
        self.again: list[Part] = []  # to be sent before anything else
        self.line: Line | None = None
        #: The line, if the last thing heard on it was in order: then a caller may use it as it is.
        self.ready: Any = None
        self.spoilt = False  # the line must not be used again
        self.spent: list[Line] = []  # lines whose connections are closed, to go back to their pool

    # -- the line ---------------------------------------------------------------------------------

    def spoil(self) -> None:
        """The line is of no use any more."""
        self.spoilt = True
        self.ready = None

    def drop(self) -> None:
        """Close the line."""
        line, self.line, self.ready, self.spoilt = self.line, None, None, False
        if line is not None:
            line.abandon()
            self.spent.append(line)

    def reopened(self) -> Flow[None]:
        """Get a line. If there is none to be had, tell those who wait."""
        began = monotonic()
        try:
            while self.spent:
                yield from self.source.give(self.spent.pop(), spoilt=True)
            line: Any = yield from self.source.take(self.timeout)
        except TypeError as error:
            what = f"Invalid connection options for {self.where}: {error}"
            self.unreachable(SetUpError(what), began)
        except BaseException as error:
            self.unreachable(error, began)
            if not isinstance(error, (*failures(), BaseThrottledError)):
                raise
        else:
            self.line = line
            self.breaker.reachable()
            if line is not None:
                self.opened(line)
            else:
                self.breaker.worked()
                self.road.opened()
        finally:
            self.spoilt = False

    def opened(self, line: Any) -> None:
        """There is a new line."""

    # -- leaving ----------------------------------------------------------------------------------

    def load(self, room: int) -> bytes:
        """The next flight of so many asks, as one request; empty if nobody wants to go."""
        parts: list[Part] = []
        for part in self.again:
            part.asks = [ask for ask in part.asks if ask.answer is UNANSWERED and not ask.gone]
            if part.asks:
                parts.append(part)
        self.again = []
        queue = self.queue
        filling: dict[Any, Part] = {}
        while queue and room > 0:
            ask = queue.popleft()
            if ask.gone or ask.answer is not UNANSWERED:
                continue
            room -= 1
            kind = (ask.slot, ask.now)
            filled = filling.get(kind)
            if filled is not None and len(filled.asks) < BATCH and not ask.asking:
                filled.asks.append(ask)
            else:
                part = Part([ask])
                parts.append(part)
                if not ask.asking:
                    filling[kind] = part
        for part in parts:
            part.compose()
        self.air.extend(parts)
        return parts[0].request if len(parts) == 1 else b"".join(part.request for part in parts)

    def waiting(self) -> Iterator[Ask]:
        """All asks that are not answered yet, in the order in which they will be."""
        for part in (*self.air, *self.again):
            yield from part.asks
        yield from self.queue.copy()

    # -- coming back ------------------------------------------------------------------------------

    def landed(self, reply: Any) -> None:
        """The next reply has come, or a server's error in its place."""
        part = self.air[0]
        if part.skips:
            part.skips -= 1
            return
        self.air.popleft()
        try:
            self._read(part, reply)
        except BaseException as error:  # An interrupt, or a fault of ours: nobody is left waiting.
            for ask in part.asks:
                ask.settle(Failure(error, True).as_error(self.where))
            raise

    def _read(self, part: Part, reply: Any) -> None:
        if is_list(reply) and len(reply) == part.width and not read_only(reply):
            if self.ready is None and not self.spoilt:
                self.breaker.worked()
                # One that does not stay with us is not at hand for the next caller.
                self.ready = self.line if self.source.hold else None
            if part.width == len(part.asks):
                for ask, found in zip(part.asks, reply, strict=True):
                    ask.settle(found)
                return
            replies = iter(reply)
            for ask in part.asks:
                found = next(replies)
                ask.settle(found if ask.width == 1 else [found, *islice(replies, ask.width - 1)])
            return
        if is_list(reply):
            reply = next((each for each in reply if isinstance(each, bytes)), repr(reply)[:200])
            reply = RuntimeError(reply.decode("utf-8", "replace"))
        elif not isinstance(reply, BaseException):
            reply = RuntimeError(f"unexpected reply: {reply!r}"[:200])
        self._failed(part, Failure(reply, True))

    def lost(self, error: BaseException, sent: bool) -> None:
        """The connection is gone with replies outstanding; `sent`: all was written to it."""
        self.spoil()
        parts = list(self.air)
        self.air.clear()
        for part in parts:
            # Of what was written in part, only the last one certainly lacks its end.
            self._failed(part, Failure(error, sent or part is not parts[-1]))

    def unreachable(self, error: BaseException, asked_at: float) -> None:
        """No connection can be had: nobody who waits for one has been sent."""
        failure = error if isinstance(error, BaseThrottledError) else Failure(error, False)
        self._count(asked_at, failure.text if isinstance(failure, Failure) else failure)
        asks = list(self.waiting())
        self.again.clear()
        self.queue.clear()
        for ask in asks:
            ask.settle(failure.as_error(self.where) if isinstance(failure, Failure) else failure)

    def late(self, ask: Ask, sent: bool) -> None:
        """The time of an ask has run out."""
        within = f"within {self.timeout:g} s"
        if sent:
            text = (
                f"did not answer {within}; the call may have been counted and was not sent again."
            )
        else:
            text = f"could not be asked {within}; the call was not sent."
        self._count(ask.asked_at, f"{'no answer' if sent else 'not asked'} {within}")
        ask.settle(StoreUnavailableError(f"Redis at {self.where} {text}"))

    def abandon(self, parts: deque[Part] | list[Part], sent: bool) -> None:
        """Give up on parts that nobody has the time to wait for."""
        for part in parts:
            for ask in part.asks:
                if ask.answer is UNANSWERED:
                    self.late(ask, sent)
        parts.clear()

    def kick(self) -> None:
        """See that somebody works on the lane, now that asks were put in line from elsewhere."""
        raise NotImplementedError

    def retire(self) -> None:
        """The server is no longer one of ours: close the line, unless it is in use."""
        raise NotImplementedError

    def close(self) -> Flow[None]:
        """Close the line."""
        raise NotImplementedError

    def _count(self, asked_at: float, error: object) -> None:
        self.ready = None
        self.breaker.failed(asked_at, monotonic(), error)
        self.road.failed()

    def _failed(self, part: Part, failure: Failure) -> None:
        """What is done about the failure of one run."""
        code, asks = failure.code, part.asks
        again = code not in part.tried
        part.tried += (code,)
        if code == NOSCRIPT and again:
            self.again.append(part)
        elif code in (READONLY, UNSENT) and again:
            self.spoil()
            self.road.failed()
            self.again.append(part)
        elif code in (TRYAGAIN, NOPERM) and len(asks) > 1:
            # One key at a time is never told the first, and the second only if it is that key's.
            self.again.extend(Part([ask]) for ask in asks)
        elif code in (MOVED, ASK) and self.road.redirected(self, asks, failure):
            pass
        elif code == NOPERM:
            # The server is well, and so is the connection: other keys may be open to this user.
            self.breaker.worked()
            asks[0].settle(failure.as_error(self.where))
        else:
            self.spoil()
            if code in (MOVED, ASK):
                failure.lost = asks[0].hops > 0
            else:
                self._count(asks[-1].asked_at, failure.text)
            for ask in asks:
                ask.settle(failure.as_error(self.where))
