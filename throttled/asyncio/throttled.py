"""The async `Throttled`: the same object, awaited."""

from __future__ import annotations

import inspect
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import aclosing, suppress
from functools import wraps
from importlib import import_module
from types import TracebackType
from typing import Any, ParamSpec, TypeVar, cast

import anyio

from throttled.algorithms.plan import LOOK
from throttled.exceptions import LimitedError
from throttled.quota import MAX_LIMIT
from throttled.result import RateLimitResult, RateLimitState
from throttled.store.base import AsyncStore, Store, Ticket
from throttled.store.policy import afinished
from throttled.throttled import (
    BaseThrottled,
    checked_calls,
    is_async,
    name_of,
    results_of,
    served,
    unheard,
)

P = ParamSpec("P")
R = TypeVar("R")

logger = logging.getLogger("throttled")

# anyio loads its backend when it is first used, which would make the first wait late by 20 ms.
with suppress(ImportError):
    import_module("anyio._backends._asyncio")

#: Seconds that giving a cancelled promise back may take.
_GIVE_BACK = 5.0


class Throttled(BaseThrottled["Store | AsyncStore"]):
    """Limits calls in async code: `await throttle.limit(key)`, a decorator, `async with`.

    The same names and parameters as `throttled.Throttled`. Works in asyncio, and in trio with a
    `MemoryStore`. A `MemoryStore` may be shared with sync code; a `RedisStore` is the one of
    `throttled.asyncio`.
    """

    __slots__ = ()

    _asynchronous = True

    async def limit(
        self, key: str | None = None, cost: int = 1, timeout: float | None = None
    ) -> RateLimitResult:
        """Take `cost` from the key's limit and say whether the call may go on.

        `timeout`: seconds to wait at most, in place of the instance's; -1: do not wait. A cost of
        0 is always allowed and changes nothing. A cancelled call gives back what it was promised.
        Raises `DataError` for a bad argument, and `StoreUnavailableError` or `StateError` when the
        store cannot decide, unless `on_store_error` says what then.
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
        if self._policy.awaits:
            answer = await answer
            if type(answer) is RateLimitResult:
                return answer
        await self._wait(answer[0])
        return served(answer)

    async def limit_many(self, calls: Iterable[str | tuple[str, int]]) -> list[RateLimitResult]:
        """Decide several calls at once, each by itself, and without waiting for any slot.

        `calls`: keys, each for a cost of 1, or pairs of key and cost. All are checked before
        anything is taken: `DataError` names the bad one. The results are in the order of the
        calls. An error of the store that is to be raised is the first one; its `outcomes` say
        what became of each call.
        """
        asked = checked_calls(calls)
        return results_of(await afinished(self._policy.outcomes(asked))) if asked else []

    async def peek(self, key: str | None = None, cost: int = 1) -> RateLimitState:
        """The state of a key, changing nothing; `retry_after` says when `cost` would fit."""
        key, cost, _ = self._call(key, cost, None)
        answer = self._decide(key, cost, LOOK)
        state: RateLimitState = (await answer if self._policy.awaits else answer).state
        return state

    async def _wait(self, ticket: Ticket) -> None:
        store: Store | AsyncStore = ticket.store
        try:
            if store.sleeper is None:
                await anyio.sleep(ticket.wait / 1e6)
            else:
                await store.sleeper.asleep_until(ticket.slot)
        except BaseException:
            await self._give_back(store, ticket)
            raise
        with unheard("Calls cancelled earlier could not give back their slots"):
            if isinstance(store, Store):
                store.arrived(ticket)
            else:
                await store.arrived(ticket)

    async def _give_back(self, store: Store | AsyncStore, ticket: Ticket) -> None:
        what = "A cancelled call could not give back its slot"
        with unheard(what):
            if isinstance(store, Store):
                store.withdraw(ticket)
                return
            with anyio.move_on_after(_GIVE_BACK, shield=True) as scope:
                await store.withdraw(ticket)
            if scope.cancelled_caught:
                logger.warning("%s within %g s", what, _GIVE_BACK)

    async def _pass(self) -> RateLimitResult:
        result = await self.limit(self._key(), self.cost)
        if result.limited:
            raise LimitedError(result)
        return result

    async def __aenter__(self) -> RateLimitResult:
        """Take the instance's cost from its key, or raise `LimitedError`."""
        return await self._pass()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        return None

    def __call__(self, func: Callable[P, R]) -> Callable[P, R]:
        """Limit every call of a coroutine function; a refused call raises `LimitedError`.

        An async generator function is charged when its iteration starts. Raises `TypeError` for
        a function that is not async: those take `throttled.Throttled`.
        """
        self._key()
        if isinstance(func, staticmethod | classmethod):
            method: Any = func
            return cast("Callable[P, R]", type(method)(self(method.__func__)))
        if not is_async(func):
            raise TypeError(
                f"{name_of(func)} is not async and throttled.asyncio.Throttled is: "
                f"decorate it with throttled.Throttled."
            )
        if inspect.isasyncgenfunction(func):

            @wraps(func)
            async def iterate(*args: P.args, **kwargs: P.kwargs) -> AsyncGenerator[Any, Any]:
                await self._pass()
                async with aclosing(cast("Any", func)(*args, **kwargs)) as items:
                    async for item in items:
                        yield item

            return cast("Callable[P, R]", iterate)

        @wraps(func)
        async def call(*args: P.args, **kwargs: P.kwargs) -> Any:
            await self._pass()
            return await cast("Callable[P, Awaitable[Any]]", func)(*args, **kwargs)

        return cast("Callable[P, R]", call)
