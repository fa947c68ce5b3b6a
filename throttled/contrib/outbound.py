"""Requests to someone else's service, kept to a limit; what the adapters of all clients share.

A request asks in this order: its key and cost, its turn, its slot. Turns are given here and not by
the limiter, which would book the slots of all who wait, by what was known when they asked. So only
the first of a line has a slot, and whatever is learned holds for everybody behind.
"""

from __future__ import annotations

import copy
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from math import inf
from typing import Any, NamedTuple

import anyio
from anyio.lowlevel import current_token

from throttled._callables import name_of
from throttled._text import shown
from throttled.arguments import check_cost, check_key, check_seconds, patience_of
from throttled.base import BaseThrottled
from throttled.contrib.learned import REFUSED, UNAVAILABLE, Deeds, Learned
from throttled.contrib.learning import Lesson, read
from throttled.exceptions import DataError, LimitedError, SetUpError
from throttled.outcomes import unheard
from throttled.quota import Rule
from throttled.result import RateLimitResult
from throttled.store.base import new_lock
from throttled.store.policy import Flow, afinished, finished
from throttled.templates import Asked

__all__ = ["AT_MOST", "Client", "Outbound", "host_key"]

#: Seconds for which anything that a service says holds, at most.
AT_MOST = 3600.0

#: Who decides nothing, so that there is nothing to learn.
_UNLIMITED = ("exempt", "disabled")


class Client(NamedTuple):
    """What is asked of an HTTP client's requests and responses."""

    #: The key of a request where the user names none.
    host: Callable[[Any], str]
    #: Status and headers of a response.
    read: Callable[[Any], tuple[int, Iterable[tuple[str, str]]]]
    #: Let go of a response; to be awaited in async code.
    close: Callable[[Any], Any]
    #: Whether the body of a request can be sent again.
    repeatable: Callable[[Any], bool]
    #: The error of a refusal, one that users of the client catch.
    refusal: Callable[[RateLimitResult], LimitedError]


def host_key(scheme: str, host: str, port: int | None) -> str:
    """The key of a host: lower case, with the port unless it is the scheme's own."""
    host = f"[{host}]" if ":" in host else host
    usual = {"http": 80, "https": 443}.get(scheme)
    return host.lower() if port in (None, usual) else f"{host.lower()}:{port}"


class Outbound:
    """A limit in front of someone else's service, for the adapter of one client.

    `exchanged` is what the adapter wants: the flow of one request.
    """

    def __init__(
        self,
        client: Client,
        made: Callable[..., Any],
        limit: Any,
        *,
        key: str | Callable[[Any], Any] | None,
        cost: int | Callable[[Any], Any],
        timeout: float,
        retries: int,
        learn: bool,
        at_most: float,
        options: dict[str, Any],
    ) -> None:
        """`made`: the `Throttled` of the flavour. The rest is what the user said.

        Raises `DataError` or `SetUpError` for a bad argument; the message names it.
        """
        self._client = client
        asked = _limiter(made, limit, options)
        self._asked = asked
        self._key = _checked("key", client.host if key is None else key, asked._asynchronous)
        self._cost = _checked("cost", cost, asked._asynchronous)
        self._waits = patience_of(timeout) > 0.0
        self._timeout = timeout
        if not isinstance(retries, int) or isinstance(retries, bool) or retries < 0:
            raise DataError(f"Invalid retries: {shown(retries)}, must be an integer of 0 or more.")
        if not isinstance(learn, bool):
            raise DataError(f"Invalid learn: {shown(learn)}, must be True or False.")
        if retries and not learn:
            raise DataError("Invalid retries: with learn=False nobody knows when to try again.")
        self._retries = retries
        if not check_seconds("at_most", at_most):
            raise DataError("Invalid at_most: 0, must be more.")
        self._clock: Callable[[], float] = getattr(asked.store, "_clock", None) or time.monotonic
        self._learned = Learned(at_most, self._clock) if learn else None
        self._throttle = asked if self._learned is None else _learning(asked, self._learned)
        self._turns = Turns(asked._asynchronous)

    def exchanged(self, request: Any, send: Callable[[], Any]) -> Flow[Any]:
        """The response to a request, sent when its limit lets it."""
        key = yield from _said(self._key, request)
        cost = yield from _said(self._cost, request)
        learned, start, tries = self._learned, self._clock(), self._retries
        while True:
            if learned is not None:
                terms = yield from self._asked._terms_of(key)
                learned.asking(key, cost, terms.plan.rules)
            result = yield from self._admitted(key, cost, start)
            if learned is None or result.source in _UNLIMITED or not cost:
                return (yield send())
            sent = learned.sent(key, cost, result)
            response = yield send()
            try:
                status, headers = self._client.read(response)
                lesson = read(headers)
                deeds = learned.heard(key, sent, status, lesson)
                # The answer is here and paid for, so no store's failure may lose it.
                with unheard("What a response has taught could not be stored"):
                    yield from self._done(key, deeds)
                again = tries and _again(status, lesson) and self._client.repeatable(request)
                if not again or not (yield from self._fits(key, cost, start)):
                    return response
            except GeneratorExit:
                raise
            except BaseException:
                yield self._client.close(response)
                raise
            tries -= 1
            yield self._client.close(response)

    def _admitted(self, key: str, cost: int, start: float) -> Flow[RateLimitResult]:
        """The result of a request that may go; else the error of its client is raised."""
        throttle = self._throttle
        if not self._waits:
            result = yield throttle.limit(key, cost, -1)
        else:
            turn = self._turns.join(key)
            try:
                if not turn.come and (yield from self._fits(key, cost, start)):
                    yield turn.wait(self._left(start))
                # Whose turn has not come in time is refused here, as the first one has a slot.
                result = yield throttle.limit(key, cost, self._left(start))
            finally:
                self._turns.leave(turn)
        if result.limited:
            raise self._client.refusal(result)
        return result  # type: ignore[no-any-return]

    def _left(self, start: float) -> float:
        """The seconds that a request which began then may still wait."""
        return max(self._timeout - (self._clock() - start), 0.0) if self._waits else 0.0

    def _fits(self, key: str, cost: int, start: float) -> Flow[bool]:
        """Whether there may be a slot in the time that is left."""
        left = self._left(start)
        if left == inf:
            return True
        look = yield self._throttle.peek(key, cost)
        return look.retry_after <= left  # type: ignore[no-any-return]

    def _done(self, key: str, deeds: Deeds) -> Flow[None]:
        """Do what a response asks for."""
        if deeds.pause:
            yield self._throttle.penalize(key, deeds.pause)
        if not deeds.left:
            return
        assert self._learned is not None
        try:
            for rule, left in deeds.left:
                counter = self._counter(rule)
                excess = (yield counter.peek(key)).remaining - left
                if excess > 0:
                    yield counter.debit(key, excess)
        finally:
            self._learned.aligned(key)

    def _counter(self, rule: Rule) -> Any:
        """A limit of that rule alone, which counts what the rule counts, by any amount."""
        asked = self._asked
        return type(asked)(
            quota=Rule(rule.quota, rule.using, name=rule.name),
            store=asked.store,
            key_prefix=asked._prefix,
            on_store_error=asked.on_store_error,
        )


class Turn:
    """A place in a line."""

    __slots__ = ("_event", "come", "place")

    def __init__(self, place: Any, event: Any, come: bool) -> None:
        self.place = place
        self._event = event
        #: Whether it is the first one's.
        self.come = come

    def call(self) -> None:
        """It is the first one's now."""
        self.come = True
        self._event.set()

    def wait(self, seconds: float) -> Any:
        """Wait until it has come, or for so many seconds; to be awaited in async code."""
        limit = None if seconds == inf else min(seconds, threading.TIMEOUT_MAX)
        if isinstance(self._event, threading.Event):
            return self._event.wait(limit)
        return self._awaited(limit)

    async def _awaited(self, limit: float | None) -> None:
        with anyio.move_on_after(limit):
            await self._event.wait()


class Turns:
    """Lines of those who wait for a key, each served in the order of asking.

    Threads stand in one line, and so do the tasks of one event loop.
    """

    def __init__(self, asynchronous: bool) -> None:
        self._asynchronous = asynchronous
        self._lines: dict[Any, deque[Turn]] = {}
        self._lock = new_lock()
        self._process = os.getpid()

    def join(self, key: str) -> Turn:
        """The last place of a key's line; whoever has it must `leave`."""
        place: Any = (current_token(), key) if self._asynchronous else key
        event = anyio.Event() if self._asynchronous else threading.Event()
        with self._lock:
            if self._process != os.getpid():
                # Those who stood in line are threads of the parent.
                self._process, self._lines = os.getpid(), {}
            line = self._lines.setdefault(place, deque())
            turn = Turn(place, event, not line)
            line.append(turn)
        return turn

    def leave(self, turn: Turn) -> None:
        """Give up a place, served or not."""
        with self._lock:
            line = self._lines.get(turn.place)
            if line is None or turn not in line:
                return
            line.remove(turn)
            if not line:
                del self._lines[turn.place]
            elif not line[0].come:
                line[0].call()


def _limiter(made: Callable[..., Any], limit: Any, options: dict[str, Any]) -> Any:
    """The limit that the user means."""
    if not isinstance(limit, BaseThrottled):
        # The exact one: a bucket that is full lets twice its limit through within a period.
        return made(quota=limit, **{"using": "sliding_window_log", **options})
    if options:
        raise DataError(
            f"Invalid option: {', '.join(options)}; {shown(limit)} has its own, and takes no more."
        )
    if not isinstance(limit, made):  # type: ignore[arg-type]
        raise SetUpError(
            f"Invalid limit: {shown(limit)}, must be of {made.__module__.rpartition('.')[0]}: "
            f"async clients take the one of throttled.asyncio, the others that of throttled."
        )
    return limit


def _learning(asked: Any, learned: Learned) -> Any:
    """A limit that shares all with the user's, and has the rules that were learned as well."""

    def all_of(key: str) -> Flow[tuple[Rule, ...]]:
        terms = yield from asked._terms_of(key)
        return (*terms.plan.rules, *learned.rules(key))

    def quota(key: str) -> Any:
        if asked._asynchronous and asked._terms is None:
            return afinished(all_of(key))
        return finished(all_of(key))

    throttle = copy.copy(asked)
    throttle.hold = True
    if asked._terms is not None:
        throttle._made(asked.rules)  # so that a store which cannot do it says so now
    throttle._quota_ttl = 0
    throttle.quota = quota
    return throttle


def _checked(what: Any, given: Any, asynchronous: bool) -> Any:
    """A key or cost, or what asks for it."""
    if callable(given) and not isinstance(given, str):
        return _Asked(what, given, asynchronous)
    return check_key(given) if what == "key" else check_cost(given)


class _Asked:
    """A function of the user's that says the key or the cost of a request."""

    def __init__(self, what: Any, function: Callable[[Any], Any], asynchronous: bool) -> None:
        asked = Asked(what, function, asynchronous)
        self.ask = asked.awaited if asynchronous else asked
        self.what = what
        self.name = name_of(function)


def _said(given: Any, request: Any) -> Flow[Any]:
    """The key or cost of a request."""
    if not isinstance(given, _Asked):
        return given
    try:
        return (yield given.ask(request))
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"Invalid {given.what}: {given.name} raised {type(error).__name__}: {error}"
        ) from error


def _again(status: int, lesson: Lesson) -> bool:
    """Whether the service asks to come back."""
    return status == REFUSED or (status == UNAVAILABLE and lesson.retry_after is not None)
