"""In front of an application: what every framework's adapter does with a request.

An adapter finds the limits that a request has to pass, makes an `Incoming` of it, and lets a
`Passage` decide:

    passage = Passage()
    refusal = finished(passage.enter(limits, request))      # afinished in async code
    ... the body of the response is `replies.body(refusal, request)`, or the application's ...
    finished(passage.leave(response))                       # what does not count goes back
    headers = merge(headers, passage.headers(replies))

Theory of operation
-------------------
* All limits of a request are taken, or none: those that are known together are decided together
  where the store can, and a limit that refuses later gives back what others have taken before. So
  the layers of an application (middleware, router, route) share one `Passage` a request.
* What counts by its outcome (`count_when=`) is taken before the outcome is known and given back
  after, so that requests at once cannot slip through. While they run, they count.
* What is not known counts: a response that never came, a `count_when` that failed.
* Faults are the server's: 500 and a log line that names the function. A store that cannot decide,
  where the policy is to raise, is 503.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from math import inf
from typing import Any, Final, NamedTuple

from throttled._callables import name_of
from throttled._text import shown
from throttled.algorithms.plan import LOOK, NOW
from throttled.contrib.headers import (
    DECIDED,
    PROBLEM_TYPE,
    Header,
    Reset,
    Style,
    check_style,
    encoded,
    merge,
    problem,
    rendered,
    unavailable,
)
from throttled.contrib.keys import Incoming
from throttled.contrib.limit import Ask, BaseRateLimit, FaultError, called, optional
from throttled.exceptions import DataError, LimitedError
from throttled.outcomes import unheard
from throttled.result import RateLimitResult
from throttled.store.policy import FAILURES, Flow

__all__ = ["Passage", "Refusal", "Replies"]

logger = logging.getLogger("throttled")

# Nothing was taken where one of these answered.
_NOTHING_TAKEN: Final = frozenset({"exempt", "disabled", "allowed-by-policy"})


class Act:
    """What limits took for a request."""

    __slots__ = ("asks", "reservation", "result")

    def __init__(
        self, asks: Sequence[Ask], result: RateLimitResult, reservation: Any = None
    ) -> None:
        self.asks = asks
        self.result = result
        self.reservation = reservation

    @property
    def pending(self) -> bool:
        """Whether the response decides if it counts."""
        return self.reservation is not None and not self.reservation.settled


class Refusal(NamedTuple):
    """Why a request goes no further."""

    #: 429: too many; 503: the store cannot decide; 500: a function of the application failed.
    status: int
    #: The problem body of RFC 9457.
    problem: dict[str, Any]
    #: Seconds until the same request fits; `math.inf`: never, or not known.
    retry_after: float
    #: The decision; None if there is none.
    result: RateLimitResult | None


class Passage:
    """A request's way through all its limits: what each took, and what the response tells."""

    __slots__ = ("acts", "pending", "refusal")

    def __init__(self) -> None:
        self.acts: list[Act] = []
        #: Whether the response decides what counts.
        self.pending = False
        self.refusal: Refusal | None = None

    def enter(
        self,
        limits: Iterable[tuple[BaseRateLimit, str]],
        request: Incoming,
        exempt: Callable[[Any], Any] | None = None,
    ) -> Flow[Refusal | None]:
        """Take from each (limit, scope), or from none and say why."""
        limit: Any = None
        try:
            if exempt is not None and (yield from called("exempt", exempt, request)):
                return None
            asks: list[Ask] = []
            for limit, scope in limits:
                ask = limit.at_hand(request, scope) or (yield from limit.ask(request, scope))
                if ask is not None and not ((self.acts or asks) and self._asked(ask, asks)):
                    asks.append(ask)
            if len(asks) > 1 and _joinable(asks):
                act = yield from _taken_together(asks)
                if act.result.limited:
                    return (yield from self._refused(act))
                self._passed(act)
                return None
            for ask in asks:
                limit, throttle, key, cost = ask
                if limit.count_when is None or not cost:
                    act = Act((ask,), (yield throttle.limit(key, cost)))
                else:
                    act = yield from _reserved(ask)
                if act.result.limited:
                    return (yield from self._refused(act))
                self._passed(act)
            return None
        except FAILURES as error:
            if limit.tells_of_failure():
                logger.error("A request was answered with 503: %s", error)
            refusal = Refusal(503, unavailable(), inf, None)
        except FaultError as fault:
            logger.error("A request was answered with 500: %s", fault, exc_info=fault.error)
            refusal = Refusal(500, _INTERNAL, inf, None)
        except Exception as error:
            names = ", ".join([shown(limit) for limit, _ in limits])
            logger.error("A request was answered with 500: %s failed", names, exc_info=error)
            refusal = Refusal(500, _INTERNAL, inf, None)
        yield from self._undone()
        self.refusal = refusal
        return refusal

    def enter_at_once(self, limits: Sequence[tuple[BaseRateLimit, str]], request: Incoming) -> bool:
        """Take from a limit that is the only one and in this process, if it has room.

        That is what most requests come to, and nothing has to be awaited for it. If not, nothing
        was taken, and `enter` says why.
        """
        if len(limits) != 1 or self.acts:
            return False
        limit, scope = limits[0]
        if not limit._plain or limit.count_when is not None:
            return False
        throttle = limit.throttle(scope)
        decide: Any = throttle._at_once
        cost: Any = limit.cost
        if decide is None or not cost:
            return False
        key = limit._read(request)
        try:
            result = decide(key, cost, NOW)
        except Exception:  # which `enter` meets again, and answers
            return False
        if result.limited:
            return False
        self.acts.append(Act(((limit, throttle, key, cost),), result))
        return True

    def _asked(self, ask: Ask, asks: Sequence[Ask]) -> bool:
        """Whether another layer has asked just that: once is meant, not twice."""
        asked = [*asks, *[each for act in self.acts for each in act.asks]]
        return any(_same(ask, other) for other in asked)

    def _passed(self, act: Act) -> None:
        self.acts.append(act)
        if act.reservation is not None:
            self.pending = True

    def _refused(self, act: Act) -> Flow[Refusal]:
        yield from self._undone()
        self.acts.append(act)
        body = problem(act.result)
        retry_after = act.result.state.retry_after
        self.refusal = Refusal(body["status"], body, retry_after, act.result)
        return self.refusal

    def _undone(self) -> Flow[None]:
        """Give back what was taken for a request that is refused."""
        acts, self.acts = self.acts, []
        self.pending = False
        for act in acts:
            if act.result.would_limit or act.result.source in _NOTHING_TAKEN:
                continue
            with unheard("What a refused request had taken could not be given back"):
                if act.reservation is not None:
                    yield act.reservation.cancel()
                    continue
                for _, throttle, key, cost in act.asks:
                    if cost:
                        yield throttle.refund(key, cost)

    def leave(self, response: Any, since: int = 0) -> Flow[None]:
        """Give back what does not count, by the application's response.

        `since`: how many acts are of layers around, which see a response of their own.
        """
        self.pending = any(act.pending for act in self.acts[:since])
        for act in self.acts[since:]:
            if not act.pending:
                continue
            limit, throttle, key, _ = act.asks[0]
            count_when: Any = limit.count_when
            try:
                counts: Any = yield count_when(response)
            except Exception as error:
                name = name_of(count_when)
                logger.error("count_when function %s raised; it counts", name, exc_info=error)
                counts = True
            if counts:
                continue
            with unheard("A request that does not count could not be given back"):
                yield act.reservation.cancel()
                if act.result.source in DECIDED:
                    # Not a call, which observers would hear of.
                    act.result = yield throttle._ask(key, 0, LOOK)

    def encoded(self, replies: Replies) -> list[tuple[bytes, bytes]] | None:
        """The same as ASGI has headers, where that is known at once; else None."""
        if len(self.acts) != 1 or replies._style != "ietf":
            return None
        return encoded(self.acts[0].result)

    def headers(self, replies: Replies) -> list[Header]:
        """What the response tells of all limits."""
        told: list[Header] = []
        for act in self.acts:
            fields = replies.told(act.result)
            told = merge(told, fields) if told else fields
        return told


_INTERNAL: Final = {
    "type": "about:blank",
    "title": "Internal Server Error",
    "status": 500,
    "detail": "The service cannot answer this request.",
}


def _same(one: Ask, other: Ask) -> bool:
    """Whether two layers ask the same of the same counts."""
    limit, throttle, *asked = one
    limit2, throttle2, *asked2 = other
    if asked != asked2 or limit.count_when != limit2.count_when:
        return False
    if throttle is throttle2:
        return True
    return (
        limit._given is None
        and limit2._given is None
        and limit.store is limit2.store
        # The prefix says the quota as well, but for a callable only its name.
        and throttle._prefix == throttle2._prefix
        and throttle._using == throttle2._using
        and (throttle._terms is not None or limit._quota is limit2._quota)
    )


def _joinable(asks: Sequence[Ask]) -> bool:
    """Whether the store can decide all at once, with nothing to be done for one alone."""
    first = asks[0][0]
    for limit, *_ in asks:
        if (
            not limit._joins
            or limit.store is not first.store
            or limit.on_store_error != first.on_store_error
        ):
            return False
    if len({(id(throttle), key) for _, throttle, key, _ in asks}) < len(asks):
        return False  # each takes its part of one count
    keys = {key for _, _, key, _ in asks}
    return len(keys) == 1 or not getattr(first.store, "_clustered", False)


def _taken_together(asks: Sequence[Ask]) -> Flow[Act]:
    pairs = [(throttle, key, cost) for _, throttle, key, cost in asks]
    timeout = min([throttle.timeout for _, throttle, _, _ in asks])
    return Act(asks, (yield asks[0][1].limit_all(pairs, timeout=timeout)))


def _reserved(ask: Ask) -> Flow[Act]:
    _, throttle, key, cost = ask
    try:
        reservation: Any = yield throttle.reserve(key, cost)
    except LimitedError as error:
        refused: Any = error.rate_limit_result
        return Act((ask,), refused)
    return Act((ask,), reservation.result, reservation)


class Replies:
    """How an adapter answers: which headers, and what a refusal says."""

    def __init__(
        self,
        headers: Style | None = "ietf",
        reset: Reset = "delta",
        problem: Callable[[Any, dict[str, Any]], Any] | None = None,
        asynchronous: bool = True,
    ) -> None:
        """
        :param headers: "ietf" (`RateLimit-Policy`, `RateLimit`), "legacy" (`RateLimit-Limit`, ...),
            "x" (`X-RateLimit-Limit`, ...), or None for `Retry-After` alone.
        :param reset: for "x": seconds from now ("delta") or since the epoch ("epoch").
        :param problem: called with the request and the problem body; it returns the body to send,
            as a dict for JSON, or a pair of content type and text.
        :raises DataError: for an unknown style.
        """
        if headers is not None or reset != "delta":
            check_style(headers, reset)
        self._style: Style | None = headers
        self._reset: Reset = reset
        self._problem = optional("problem", problem, asynchronous)

    def told(self, result: RateLimitResult) -> list[Header]:
        """The headers that tell of a decision."""
        if self._style is not None:
            return rendered(result, self._style, self._reset)
        return (
            [each for each in rendered(result, "ietf") if each[0] == "Retry-After"]
            if result.limited
            else []
        )

    def body(self, refusal: Refusal, request: Incoming) -> Flow[tuple[str, bytes]]:
        """The content type and body of the response to a refused request."""
        if self._problem is not None:
            try:
                content: Any = yield self._problem(request.native, dict(refusal.problem))
                if isinstance(content, dict):
                    return PROBLEM_TYPE, json.dumps(content).encode()
                kind, text = content
                if not isinstance(kind, str) or not (kind.isascii() and kind.isprintable()):
                    raise DataError(f"Invalid content type: {shown(kind)}.")
                return kind, text if isinstance(text, bytes) else text.encode()
            except Exception as error:
                logger.error(
                    "Problem function %s failed; it must return a dict, or a pair of content type "
                    "and text",
                    name_of(self._problem),
                    exc_info=error,
                )
        return PROBLEM_TYPE, json.dumps(refusal.problem).encode()
