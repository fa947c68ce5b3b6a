"""`Throttled`: a limit as a call, a decorator, a context manager, with or without waiting."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import lru_cache, partial, wraps
from math import isnan
from types import TracebackType
from typing import Any, Generic, ParamSpec, TypeVar, cast

from throttled._text import shown
from throttled.algorithms.plan import DEFAULT_PREFIX, LOOK, NOW, Plan, make_plan
from throttled.exceptions import BaseThrottledError, DataError, LimitedError, SetUpError
from throttled.quota import MAX_LIMIT, Quota, per_min
from throttled.result import RateLimitResult, RateLimitState, state_of
from throttled.store.base import AsyncStore, Reply, Store, Ticket
from throttled.store.memory import MemoryStore

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


class BaseThrottled(Generic[StoreT]):
    """What both flavours share: arguments, plan and results. No I/O, no sleeping."""

    __slots__ = (
        "__weakref__",
        "_decide",
        "_patience",
        "_plan",
        "cost",
        "key",
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
    ) -> None:
        """
        :param key: the key of the decorator and of `with`; `limit` uses it when called without.
        :param timeout: seconds a call may wait for its slot; -1 (default): do not wait.
        :param using: the algorithm: a `RateLimiterType` or its name; token bucket by default.
        :param quota: a `Quota` or a string such as "100/s burst 200"; 60 per minute by default.
        :param store: where counts live; a MemoryStore shared by the whole process by default.
        :param cost: what one call of the decorated function or of `with` takes.
        :param key_prefix: what the keys in the store begin with; limits of one prefix share keys.
        :raises DataError: for a bad argument; the message names it.
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
        self.store: StoreT = self._check_store(store)
        run: Any = self.store.run  # type: ignore[attr-defined]
        bind: Any = getattr(self.store, "bind", None)
        #: `(key, cost, patience)` -> the store's reply, or from a local store the result at once.
        self._decide: Callable[..., Any] = (
            partial(run, self._plan) if bind is None else bind(self._plan)
        )

    def _check_store(self, store: StoreT | None) -> StoreT:
        raise NotImplementedError

    def __repr__(self) -> str:
        key = "" if self.key is None else f"key={self.key!r}, "
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

    def _result(self, reply: Reply, cost: int, patience: float) -> RateLimitResult:
        wait = reply[1]
        if 0.0 < wait <= patience:
            # It has waited for its slot: the state as of the slot.
            reply = (None, 0.0, reply[2], reply[3] - wait)
        return RateLimitResult.of(wait > patience and cost > 0, reply, self._plan)


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

    def _check_store(self, store: Store | None) -> Store:
        if store is None:
            return default_store()
        given: object = store
        if isinstance(given, AsyncStore):
            raise SetUpError(
                f"Invalid store: {shown(store)} is for throttled.asyncio; "
                f"use its namesake in throttled.store here."
            )
        if not isinstance(store, Store):
            raise SetUpError(
                f"Invalid store: {shown(store)}, must be a store such as MemoryStore() "
                f"or RedisStore(server=...)."
            )
        return store

    def limit(
        self, key: str | None = None, cost: int = 1, timeout: float | None = None
    ) -> RateLimitResult:
        """Take `cost` from the key's limit and say whether the call may go on.

        `timeout`: seconds to wait at most, in place of the instance's; -1: do not wait. A cost of
        0 is always allowed and changes nothing. Raises `DataError` for a bad argument and
        `StoreUnavailableError` when the store's server does not answer.
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
        reply = decide(key, cost, patience)
        if type(reply) is RateLimitResult:
            return reply
        if 0.0 < reply[1] <= patience:
            self._wait(reply[0])
        return self._result(reply, cost, patience)

    def peek(self, key: str | None = None, cost: int = 1) -> RateLimitState:
        """The state of a key, changing nothing; `retry_after` says when `cost` would fit."""
        key, cost, _ = self._call(key, cost, None)
        return state_of(self._decide(key, cost, LOOK), self._plan)

    def _wait(self, ticket: Ticket) -> None:
        try:
            sleeper = self.store.sleeper
            if sleeper is None:
                time.sleep(ticket.wait / 1e6)
            else:
                sleeper.sleep_until(ticket.slot)
        except BaseException:
            with unheard("A cancelled call could not give back its slot"):
                self.store.withdraw(ticket)
            raise
        with unheard("Calls cancelled earlier could not give back their slots"):
            self.store.arrived(ticket)

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
