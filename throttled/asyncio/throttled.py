"""The async `Throttled`: the same object, awaited."""

from __future__ import annotations

import inspect
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from functools import wraps
from importlib import import_module
from types import TracebackType
from typing import Any, ParamSpec, TypeVar, cast

import anyio

from throttled._text import shown
from throttled.algorithms.plan import LOOK
from throttled.exceptions import LimitedError, SetUpError
from throttled.quota import MAX_LIMIT
from throttled.result import RateLimitResult, RateLimitState, state_of
from throttled.store.base import AsyncStore, Store, Ticket
from throttled.throttled import BaseThrottled, default_store, is_async, name_of, unheard

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

    __slots__ = ("_local",)

    def _check_store(self, store: Store | AsyncStore | None) -> Store | AsyncStore:
        if store is None:
            store = default_store()
        if isinstance(store, Store):
            if not store.local:
                raise SetUpError(
                    f"Invalid store: {shown(store)} would block the event loop; "
                    f"use its namesake in throttled.asyncio.store."
                )
        elif not isinstance(store, AsyncStore):
            raise SetUpError(
                f"Invalid store: {shown(store)}, must be a store such as MemoryStore() "
                f"or RedisStore(server=...) from throttled.asyncio."
            )
        self._local = store.local
        return store

    async def limit(
        self, key: str | None = None, cost: int = 1, timeout: float | None = None
    ) -> RateLimitResult:
        """Take `cost` from the key's limit and say whether the call may go on.

        `timeout`: seconds to wait at most, in place of the instance's; -1: do not wait. A cost of
        0 is always allowed and changes nothing. A cancelled call gives back what it was promised.
        Raises `DataError` for a bad argument and `StoreUnavailableError` when the store's server
        does not answer.
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
        if not self._local:
            reply = await reply
        if 0.0 < reply[1] <= patience:
            await self._wait(reply[0])
        return self._result(reply, cost, patience)

    async def peek(self, key: str | None = None, cost: int = 1) -> RateLimitState:
        """The state of a key, changing nothing; `retry_after` says when `cost` would fit."""
        key, cost, _ = self._call(key, cost, None)
        reply = self._decide(key, cost, LOOK)
        return state_of(reply if self._local else await reply, self._plan)

    async def _wait(self, ticket: Ticket) -> None:
        store: Any = self.store
        try:
            if store.sleeper is None:
                await anyio.sleep(ticket.wait / 1e6)
            else:
                await store.sleeper.asleep_until(ticket.slot)
        except BaseException:
            if self._local:
                store.withdraw(ticket)
            else:
                await self._give_back(ticket)
            raise
        if self._local:
            store.arrived(ticket)
        else:
            with unheard("Calls cancelled earlier could not give back their slots"):
                await store.arrived(ticket)

    async def _give_back(self, ticket: Ticket) -> None:
        store: Any = self.store
        what = "A cancelled call could not give back its slot"
        with anyio.move_on_after(_GIVE_BACK, shield=True) as scope, unheard(what):
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
