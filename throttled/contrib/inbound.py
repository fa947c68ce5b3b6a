"""In front of an application: what every framework's adapter does with a request.

An adapter finds the limits that a request has to pass, makes an `Incoming` of it, and lets a
`Passage` decide:

    passage = Passage()
    refusal = finished(passage.enter(limits, request))      # afinished in async code
    ... the response is to be `replies.refuse(refusal, request)`, or the application's ...
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
from inspect import signature
from math import inf
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple
from urllib.parse import quote

from throttled._callables import checked_callable, name_of
from throttled._text import shown
from throttled.algorithms.plan import DEFAULT_PREFIX, LOOK, NOW
from throttled.arguments import check_cost
from throttled.asyncio.throttled import Throttled as AsyncThrottled
from throttled.base import BaseThrottled
from throttled.contrib.headers import (
    PROBLEM_TYPE,
    Header,
    Reset,
    Style,
    check_style,
    merge,
    problem,
    rendered,
    unavailable,
)
from throttled.contrib.identity import ClientIP, client_ip
from throttled.contrib.keys import By, Incoming, Key, reader, repr_of
from throttled.contrib.misuse import Alike, warn_of_workers
from throttled.exceptions import DataError, LimitedError
from throttled.outcomes import unheard
from throttled.quota import check_name
from throttled.result import RateLimitResult
from throttled.store.base import AsyncStore, Store, unable
from throttled.store.policy import FAILURES, Flow
from throttled.throttled import Throttled

if TYPE_CHECKING:
    from throttled.base import Quotas

__all__ = ["BaseRateLimit", "Passage", "Refusal", "Replies"]

logger = logging.getLogger("throttled")

# Nothing was taken where one of these answered.
_NOTHING_TAKEN: Final = frozenset({"exempt", "disabled", "allowed-by-policy"})
# A store has decided what binds the caller.
_DECIDED: Final = frozenset({"memory", "server", "fallback"})


class BaseRateLimit:
    """A limit in front of an application: how much, whom it counts, what a request costs.

    Made of a `Throttled`, which counts under its own prefix wherever it is used, or of a quota, in
    which case each `scope` (a route, a pattern) has counts of its own.
    """

    #: Whether it is for async code.
    _asynchronous: ClassVar[bool] = True

    def __init__(
        self,
        limit: BaseThrottled[Any] | Quotas | Callable[[str], Any],
        *,
        key: Key | None = None,
        cost: int | Callable[[Any], Any] = 1,
        count_when: Callable[[Any], Any] | None = None,
        exempt: Callable[[Any], Any] | None = None,
        scope: str | None = None,
        key_prefix: str = DEFAULT_PREFIX,
        **options: Any,
    ) -> None:
        """
        :param limit: a `Throttled`, or what its `quota` may be: "100/minute", a list of rules, or
            a callable that returns any of that for a key.
        :param key: whom it counts, by default `client_ip()`: what `throttled.contrib.keys` makes,
            or a callable that is given the request and returns a text.
        :param cost: what a request takes, or a callable that is given the request.
        :param count_when: called with the response; a request counts if it returns true.
        :param exempt: called with the request, which passes uncounted if it returns true.
        :param scope: limits of one scope, quota and prefix share their counts; by default each
            route or pattern is one.
        :param options: what else `Throttled` takes, such as `store`, `using`, `on_store_error`.
        :raises DataError: for a bad argument; the message names it.
        :raises SetUpError: for a store that cannot do what is asked.
        """
        asynchronous = self._asynchronous
        check_options(options)
        self.key: Key = client_ip() if key is None else key
        self._read = reader(self.key, asynchronous)
        if callable(cost):
            self.cost: int | Callable[[Any], Any] = checked_callable("cost", cost, asynchronous)
        else:
            self.cost = check_cost(cost)
        self.count_when = _optional("count_when", count_when, asynchronous)
        self.exempt = _optional("exempt", exempt, asynchronous)
        if scope is not None:
            check_name("scope", scope)
        self.scope = scope
        self._observers: list[Any] = []
        self._throttles: dict[str, BaseThrottled[Any]] = {}
        self._given: BaseThrottled[Any] | None = None
        if isinstance(limit, BaseThrottled):
            self._given = self._checked(limit, scope, key_prefix, options)
        else:
            self._quota: Any = limit
            self._prefix = key_prefix
            self._options = options
        first = self._given or self._made(key_prefix)
        self._amount = _amount(first)
        #: Where it counts.
        self.store: Any = first.store
        #: What is done when the store fails.
        self.on_store_error: Any = first.on_store_error
        # Whether the store may decide it together with others.
        single = type(self.store).admit_all in (Store.admit_all, AsyncStore.admit_all)
        if single and self.count_when is not None:
            raise unable(self.store)
        plain = not first.hooks and first.exempt is None
        self._joins = plain and not single and self.count_when is None
        # Whether a request says at once what is asked for it: see `at_hand`.
        self._plain = exempt is None and not callable(cost) and isinstance(self.key, ClientIP)
        warn_of_workers(self.store)
        # What stands for all callers on purpose, or warns by itself, is not watched.
        self._alike = None if isinstance(self.key, By | ClientIP) else Alike(repr_of(self.key))

    def _checked(
        self, given: BaseThrottled[Any], scope: str | None, prefix: str, options: dict[str, Any]
    ) -> BaseThrottled[Any]:
        if given._asynchronous is not self._asynchronous:
            wanted = f"throttled{'.asyncio' * self._asynchronous}"
            raise DataError(f"Invalid limit: {shown(given)}, must be a Throttled of {wanted}.")
        more = [*options, *["scope"] * (scope is not None)]
        if more or prefix != DEFAULT_PREFIX:
            raise DataError(
                f"Invalid {', '.join(more or ['key_prefix'])}: a Throttled brings its own; say it "
                f"there, or give a quota instead."
            )
        return given

    def _made(self, prefix: str) -> BaseThrottled[Any]:
        kind: Any = AsyncThrottled if self._asynchronous else Throttled
        made: BaseThrottled[Any] = kind(quota=self._quota, key_prefix=prefix, **self._options)
        for observer in self._observers:
            made.observe(observer)
        return made

    def __repr__(self) -> str:
        limit = repr(self._given) if self._given else shown(self._quota)
        return f"{type(self).__name__}({limit}, key={repr_of(self.key)})"

    def throttle(self, scope: str = "all") -> Any:
        """The `Throttled` that counts for a scope, such as "GET /items/{id}": to reset a key, say.

        Its own `scope`, if it has one, comes before.
        """
        if self._given is not None:
            return self._given
        scope = scope if self.scope is None else self.scope
        found = self._throttles.get(scope)
        if found is None:
            # With the quota, as the layers of an application often limit one scope: those of one
            # period would share their keys. Braces would mark what a cluster hashes of a key.
            named = quote(f"{scope}:{self._amount}", safe="/:*|")
            made = self._made(f"{self._prefix}:{named}")
            found = self._throttles.setdefault(scope, made)
        return found

    def observe(self, observer: Any) -> None:
        """Let an observer hear of its decisions, in every scope: see `Throttled.observe`."""
        self._observers.append(observer)
        for throttle in [self._given, *self._throttles.values()]:
            if throttle is not None:
                throttle.observe(observer)

    # -- what is read from a request --------------------------------------------------------------

    def at_hand(self, request: Incoming, scope: str) -> Ask | None:
        """What to ask for a request, of a limit as most are; None where `ask` has to find out."""
        if not self._plain:
            return None
        key: str = self._read(request)
        cost: Any = self.cost
        return self, self.throttle(scope), key, cost

    def ask(self, request: Incoming, scope: str) -> Flow[Ask | None]:
        """What to ask for a request; None for one that is exempt."""
        if self.exempt is not None and (yield from called("exempt", self.exempt, request)):
            return None
        key: Any
        try:
            key = yield self._read(request)
        except Exception as error:
            raise FaultError("Key", self.key, "raised", error) from error
        if not isinstance(key, str) or not key:
            raise FaultError("Key", self.key, f"returned {shown(key)}, must be a non-empty string")
        if self._alike is not None and self._alike.over(key, request):
            self._alike = None
        cost: Any = self.cost
        if not isinstance(cost, int):
            function = cost
            cost = yield from called("cost", function, request)
            try:
                cost = check_cost(cost)
            except DataError:
                why = f"returned {shown(cost)}, must be an integer of 0 or more"
                raise FaultError("Cost", function, why) from None
        return self, self.throttle(scope), key, cost


#: What `Throttled` takes that makes sense for requests, and is not an argument by itself.
_OPTIONS: Final = frozenset(signature(AsyncThrottled).parameters) - {"cost", "key", "per", "quota"}


def check_options(options: Iterable[str]) -> None:
    """`DataError` names an option that there is not."""
    own = signature(BaseRateLimit).parameters
    known = sorted({*_OPTIONS, *own} - {"limit", "options"})
    for name in options:
        if name not in known:
            raise DataError(f"Invalid option: {name}, must be one of {', '.join(known)}.")


def _amount(throttle: BaseThrottled[Any]) -> str:
    """How much a limit admits, as its keys say it: the same in every process."""
    if throttle._terms is None:
        resolve = throttle._quota
        return str(getattr(resolve, "__qualname__", type(resolve).__qualname__))
    return "; ".join([str(rule.quota) for rule in throttle.rules])


def _optional(what: str, function: Any, asynchronous: bool) -> Any:
    return None if function is None else checked_callable(what, function, asynchronous)


def called(what: str, function: Any, request: Incoming) -> Flow[Any]:
    """What a function of the application says of a request; raises `FaultError` if it fails."""
    try:
        return (yield function(request.native))
    except Exception as error:
        raise FaultError(what.capitalize(), function, "raised", error) from error


class FaultError(Exception):
    """A function of the application failed to say what it is there to say."""

    def __init__(
        self, what: str, function: object, why: str, error: Exception | None = None
    ) -> None:
        super().__init__(f"{what} function {repr_of(function)} {why}")
        self.error = error


#: What is asked for one request: the limit, the `Throttled` that counts, the key and the cost.
Ask = tuple[BaseRateLimit, Any, str, int]


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
        result = decide(key, cost, NOW)
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
                if act.result.source in _DECIDED:
                    # Not a call, which observers would hear of.
                    act.result = yield throttle._ask(key, 0, LOOK)

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
        self._problem = _optional("problem", problem, asynchronous)

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
