"""`Throttled`: a limit as a call, a decorator, a context manager, with or without waiting."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache, wraps
from math import isnan
from types import TracebackType
from typing import Any, ClassVar, Generic, ParamSpec, TypeVar, cast

from throttled._text import shown
from throttled.algorithms.plan import DEFAULT_PREFIX, LOOK, NOW, Plan, make_plan
from throttled.exceptions import BaseThrottledError, DataError, LimitedError, SetUpError
from throttled.quota import MAX_LIMIT, Quota, per_min
from throttled.result import RateLimitResult, RateLimitState
from throttled.store.base import AsyncStore, Outcome, Reply, Store, Ticket, misplaced
from throttled.store.memory import MemoryStore
from throttled.store.policy import Policy, Word, finished

P = ParamSpec("P")
R = TypeVar("R")
StoreT = TypeVar("StoreT")

logger = logging.getLogger("throttled")

#: Longer than any wait: what `timeout=inf` means in µs.
_EVER = 2.0**62


@lru_cache(maxsize=1)
def default_store() -> MemoryStore:
    """The MemoryStore that every `Throttled` without `store=` shares, sync and async."""
    return MemoryStore()


def check_key(key: object) -> str:
    """A key as a plain string; `DataError` unless it is a non-empty string."""
    if not isinstance(key, str) or not key:
        raise DataError(f"Invalid key: {shown(key)}, must be a non-empty string.")
    return str(key)


def check_cost(cost: object) -> int:
    """A cost as an int; `DataError` unless it is an integer of 0 or more."""
    if not isinstance(cost, int) or isinstance(cost, bool) or cost < 0:
        raise DataError(f"Invalid cost: {shown(cost)}, must be an integer of 0 or more.")
    # No capacity is larger, so anything beyond never fits either.
    return min(int(cost), MAX_LIMIT + 1)


def patience_of(timeout: object) -> float:
    """The µs a caller is willing to wait; -1 and 0 both mean: now or not at all."""
    if isinstance(timeout, int | float) and not isinstance(timeout, bool) and not isnan(timeout):
        if timeout == -1:
            return NOW
        if timeout >= 0:
            return _EVER if timeout > _EVER / 1e6 else timeout * 1e6 // 1.0
    raise DataError(
        f"Invalid timeout: {shown(timeout)}, must be seconds of 0 or more, or -1 not to wait."
    )


def checked_calls(calls: object) -> list[tuple[str, int]]:
    """The calls of `limit_many` as pairs of key and cost; `DataError` names the first bad one."""
    if isinstance(calls, str | bytes | Mapping) or not isinstance(calls, Iterable):
        raise DataError(
            f"Invalid calls: {shown(calls)}, must be an iterable of keys or of (key, cost) pairs."
        )
    checked: list[tuple[str, int]] = []
    for place, call in enumerate(calls):
        if type(call) is tuple and len(call) == 2:
            key, cost = call
            if type(key) is str and key and type(cost) is int and 0 < cost <= MAX_LIMIT:
                checked.append(call)
                continue
        pair = (call, 1) if isinstance(call, str) else call
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise DataError(
                f"Invalid calls[{place}]: {shown(call)}, must be a key or a (key, cost) pair."
            )
        try:
            checked.append((check_key(pair[0]), check_cost(pair[1])))
        except DataError as error:
            raise DataError(f"Invalid calls[{place}]: {shown(call)}. {error}") from None
    return checked


def results_of(outcomes: Sequence[Outcome]) -> list[RateLimitResult]:
    """Outcomes without an error; else the first error is raised, with all of them."""
    if set(map(type, outcomes)) == {RateLimitResult}:
        return cast("list[RateLimitResult]", outcomes)
    for outcome in outcomes:
        if isinstance(outcome, BaseThrottledError):
            outcome.outcomes = cast("Any", tuple(outcomes))
            raise outcome
    return cast("list[RateLimitResult]", outcomes)


def served(reply: Reply) -> RateLimitResult:
    """The result of a call that has waited for its slot, as of the slot."""
    ticket, wait, remaining, reset_after = reply
    reply = None, 0.0, remaining, reset_after - wait
    return RateLimitResult.of(False, reply, ticket.plan, ticket.source)


class BaseThrottled(Generic[StoreT]):
    """What both flavours share: arguments, plan and results. No I/O, no sleeping."""

    #: Whether it is the flavour of async code.
    _asynchronous: ClassVar[bool]

    __slots__ = (
        "__weakref__",
        "_decide",
        "_patience",
        "_plan",
        "_policy",
        "cost",
        "key",
        "on_store_error",
        "quota",
        "store",
        "timeout",
    )

    def __init__(
        self,
        key: str | None = None,
        timeout: float | None = None,
        using: object = None,
        quota: Quota | str | None = None,
        store: StoreT | None = None,
        cost: int = 1,
        *,
        key_prefix: str = DEFAULT_PREFIX,
        on_store_error: Word | StoreT | None = None,
    ) -> None:
        """
        :param key: the key of the decorator and of `with`; `limit` uses it when called without.
        :param timeout: seconds a call may wait for its slot; -1 (default): do not wait.
        :param using: the algorithm: a `RateLimiterType` or its name; token bucket by default.
        :param quota: a `Quota` or a string such as "100/s burst 200"; 60 per minute by default.
        :param store: where counts live; a MemoryStore shared by the whole process by default.
        :param cost: what one call of the decorated function or of `with` takes.
        :param key_prefix: what the keys in the store begin with; limits of one prefix share keys.
        :param on_store_error: what to do when the store cannot decide: "raise", "allow", "deny",
            "local" (limit in this process) or a store to fall back to; the store's own by default.
        :raises DataError: for a bad argument; the message names it.
        :raises SetUpError: for a store that this flavour cannot use.
        """
        if callable(key):
            raise DataError(
                f"Invalid key: {shown(key)}, must be a string; decorate with "
                f"@Throttled(key=...), not with @Throttled alone."
            )
        self.key = None if key is None else check_key(key)
        self.cost = check_cost(cost)
        self._patience = NOW if timeout is None else patience_of(timeout)
        self.timeout = -1 if timeout is None else timeout
        if isinstance(quota, str):
            quota = Quota.parse(quota)
        elif quota is None:
            quota = per_min(60)
        elif not isinstance(quota, Quota):
            raise DataError(
                f"Invalid quota: {shown(quota)}, must be a Quota such as per_min(60) "
                f'or a string such as "60/m".'
            )
        self.quota = quota
        self._plan: Plan = make_plan("token_bucket" if using is None else using, quota, key_prefix)
        self.store = cast("StoreT", self._checked(store))
        #: What is done when the store fails.
        self.on_store_error: Word | StoreT = (
            cast("Any", self.store).on_store_error if on_store_error is None else on_store_error
        )
        self._policy = Policy(self.store, self._plan, self.on_store_error, self._asynchronous)
        #: `(key, cost, patience)` -> the answer, to be awaited if the policy `awaits`.
        self._decide: Callable[[str, int, float], Any] = self._policy.bind()

    def _checked(self, store: object) -> Store | AsyncStore:
        if store is None:
            return default_store()
        if not isinstance(store, Store | AsyncStore):
            raise SetUpError(
                f"Invalid store: {shown(store)}, must be a store such as MemoryStore() "
                f"or RedisStore(server=...){' from throttled.asyncio' * self._asynchronous}."
            )
        why = misplaced(store, self._asynchronous)
        if why:
            raise SetUpError(f"Invalid store: {shown(store)} {why}")
        return store

    def __repr__(self) -> str:
        hidden = self.key is None or cast("Any", self.store).hides_keys
        key = "" if hidden else f"key={self.key!r}, "
        return (
            f"{type(self).__name__}({key}using={self._plan.algorithm!r}, "
            f"quota={str(self.quota)!r}, store={self.store!r})"
        )

    def _call(self, key: object, cost: object, timeout: object) -> tuple[str, int, float]:
        """The checked key, cost and patience of a call; cost 0 only looks."""
        key = check_key(self.key if key is None else key)
        cost = check_cost(cost)
        patience = self._patience if timeout is None else patience_of(timeout)
        return key, cost, patience if cost else LOOK

    def _key(self) -> str:
        if self.key is None:
            raise DataError(
                "Invalid key: None, must be a non-empty string: pass key= to Throttled(...) to "
                "use it as a decorator or in a with statement."
            )
        return self.key


class Throttled(BaseThrottled[Store]):
    """Limits calls. Most callers want `throttle.limit(key)`, or the decorator.

    As a call: `throttle.limit("user:1").limited`. As a decorator: `@Throttled(key="/ping",
    quota="10/s")`. As a context manager: `with throttle:`, which raises `LimitedError` when
    refused. With `timeout=`, a call that does not fit now reserves its slot, sleeps once and is
    served in the order of asking; one whose slot is farther than that returns at once.

    An instance may be shared by any number of threads. For async code use
    `throttled.asyncio.Throttled`.
    """

    __slots__ = ()

    _asynchronous = False

    def limit(
        self, key: str | None = None, cost: int = 1, timeout: float | None = None
    ) -> RateLimitResult:
        """Take `cost` from the key's limit and say whether the call may go on.

        `timeout`: seconds to wait at most, in place of the instance's; -1: do not wait. A cost of
        0 is always allowed and changes nothing. Raises `DataError` for a bad argument, and
        `StoreUnavailableError` or `StateError` when the store cannot decide, unless
        `on_store_error` says what then.
        """
        if (
            timeout is None
            and type(cost) is int
            and type(key) is str
            and key
            and 0 < cost <= MAX_LIMIT
        ):
            patience = self._patience
        else:
            key, cost, patience = self._call(key, cost, timeout)
        decide = self._decide
        answer = decide(key, cost, patience)
        if type(answer) is RateLimitResult:
            return answer
        self._wait(answer[0])
        return served(answer)

    def limit_many(self, calls: Iterable[str | tuple[str, int]]) -> list[RateLimitResult]:
        """Decide several calls at once, each by itself, and without waiting for any slot.

        `calls`: keys, each for a cost of 1, or pairs of key and cost. All are checked before
        anything is taken: `DataError` names the bad one. The results are in the order of the
        calls. An error of the store that is to be raised is the first one; its `outcomes` say
        what became of each call.
        """
        asked = checked_calls(calls)
        return results_of(finished(self._policy.outcomes(asked))) if asked else []

    def peek(self, key: str | None = None, cost: int = 1) -> RateLimitState:
        """The state of a key, changing nothing; `retry_after` says when `cost` would fit."""
        key, cost, _ = self._call(key, cost, None)
        state: RateLimitState = self._decide(key, cost, LOOK).state
        return state

    def _wait(self, ticket: Ticket) -> None:
        store: Store = ticket.store
        try:
            sleeper = store.sleeper
            if sleeper is None:
                time.sleep(ticket.wait / 1e6)
            else:
                sleeper.sleep_until(ticket.slot)
        except BaseException:
            with unheard("A cancelled call could not give back its slot"):
                store.withdraw(ticket)
            raise
        with unheard("Calls cancelled earlier could not give back their slots"):
            store.arrived(ticket)

    def _pass(self) -> RateLimitResult:
        result = self.limit(self._key(), self.cost)
        if result.limited:
            raise LimitedError(result)
        return result

    def __enter__(self) -> RateLimitResult:
        """Take the instance's cost from its key, or raise `LimitedError`."""
        return self._pass()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        return None

    def __call__(self, func: Callable[P, R]) -> Callable[P, R]:
        """Limit every call of a function; a refused call raises `LimitedError`.

        A generator function is charged when its iteration starts. Raises `TypeError` for a
        coroutine function or an async generator function: those take `throttled.asyncio`.
        """
        self._key()
        if isinstance(func, staticmethod | classmethod):
            method: Any = func
            return cast("Callable[P, R]", type(method)(self(method.__func__)))
        if is_async(func):
            raise TypeError(
                f"{name_of(func)} is async and throttled.Throttled is not: "
                f"decorate it with throttled.asyncio.Throttled."
            )
        if not callable(func):
            raise TypeError(f"Throttled decorates functions, not {shown(func)}.")
        if inspect.isgeneratorfunction(func):

            @wraps(func)
            def iterate(*args: P.args, **kwargs: P.kwargs) -> Generator[Any, Any, Any]:
                self._pass()
                result: Any = yield from cast("Any", func)(*args, **kwargs)
                return result

            return cast("Callable[P, R]", iterate)

        @wraps(func)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            self._pass()
            return func(*args, **kwargs)

        return call


@contextmanager
def unheard(what: str) -> Generator[None]:
    """Log what a store cannot do any more, where the caller has to hear of something else.

    What could not be given back stays taken.
    """
    try:
        yield
    except BaseThrottledError as error:
        logger.warning("%s: %s", what, error)


def is_async(func: Any) -> bool:
    """Whether calling it gives something to await or to iterate with `async for`."""
    target = func if inspect.isroutine(func) else type(func).__call__
    return any(
        inspect.iscoroutinefunction(each) or inspect.isasyncgenfunction(each)
        for each in (func, target)
    )


def name_of(func: object) -> str:
    """A function's name for a message."""
    return getattr(func, "__qualname__", None) or shown(func)
