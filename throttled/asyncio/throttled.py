"""The async `Throttled`: the same object, awaited."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterable, Callable, Iterable
from contextlib import suppress
from importlib import import_module
from math import inf
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import anyio

from throttled import adjusting, switch
from throttled.algorithms.plan import LOOK, NOW
from throttled.arguments import checked_calls, wait_of
from throttled.asyncio.hooks import run_hooks
from throttled.asyncio.reservation import Reservation, Reserving, seen_through
from throttled.base import BaseThrottled
from throttled.decorator import alimited
from throttled.exceptions import LimitedError
from throttled.hooks import Stopwatch
from throttled.outcomes import results_of, unheard
from throttled.pacing import AsyncPaced
from throttled.quota import MAX_LIMIT
from throttled.reservation import OnError, Taken, check_on_error
from throttled.result import Forecast, RateLimitResult, RateLimitState
from throttled.settings import Terms
from throttled.store.base import AsyncStore, Store, Ticket
from throttled.store.policy import afinished
from throttled.together import all_pairs, limit_all

if TYPE_CHECKING:
    from throttled.tiers import Tiers

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

logger = logging.getLogger("throttled")

# anyio loads its backend when it is first used, which would make the first wait late by 20 ms.
with suppress(ImportError):
    import_module("anyio._backends._asyncio")


def within_scopes(patience: float) -> float:
    """The patience that the cancel scopes around leave: nobody sleeps into their end."""
    deadline = anyio.current_effective_deadline()
    if deadline == inf:
        return patience
    left = deadline - anyio.current_time()
    # Of a scope that is cancelled already it is -inf, which cannot be rounded.
    return min(patience, left * 1e6 // 1.0) if left > 0.0 else NOW


class Throttled(BaseThrottled["Store | AsyncStore"]):
    """Limits calls in async code: `await throttle.limit(key)`, a decorator, `async with`.

    The same names and parameters as `throttled.Throttled`. Works in asyncio, and in trio with a
    `MemoryStore`. A `MemoryStore` may be shared with sync code; a `RedisStore` is the one of
    `throttled.asyncio`.

    No wait outlasts an anyio or trio cancel scope around it: a call whose slot lies beyond is
    refused at once. `asyncio.timeout` cannot be seen from inside; it cancels the wait, which gives
    the slot back.
    """

    __slots__ = ()

    _asynchronous = True

    async def limit(
        self,
        key: str | None = None,
        cost: int = 1,
        timeout: float | None = None,
        deadline: float | None = None,
    ) -> RateLimitResult:
        """Take `cost` from the key's limit and say whether the call may go on.

        `cost`: an integer of 0 or more; 0 is always allowed and changes nothing. `timeout`: seconds
        to wait at most, up to `math.inf`, in place of the instance's; -1, like 0: do not wait.
        `deadline`: an instant of `anyio.current_time()` (in asyncio, of `time.monotonic()`) that no
        wait outlasts; given alone, it is also the timeout. A cancelled call gives back what it was
        promised. Raises `DataError` for a bad argument, and `StoreUnavailableError` or
        `StateError` when the store cannot decide, unless `on_store_error` says what then.
        """
        if (
            timeout is None
            and deadline is None
            and type(cost) is int
            and type(key) is str
            and key
            and 0 < cost <= MAX_LIMIT
        ):
            patience = self._patience
        else:
            key, cost, patience = self._call(key, cost, timeout, deadline)
        if patience > 0.0:
            patience = within_scopes(patience)
        decide = self._decide
        answer = decide(key, cost, patience)
        if type(answer) is RateLimitResult:
            return answer
        if type(answer) is not tuple:
            answer = await answer
            if type(answer) is not tuple:
                result: RateLimitResult = answer
                return result
        return await afinished(self._served(key, cost, patience, answer))

    async def limit_many(self, calls: Iterable[str | tuple[str, int]]) -> list[RateLimitResult]:
        """Decide several calls at once, each by itself, and without waiting for any slot.

        `calls`: keys, each for a cost of 1, or pairs of key and cost. All are checked before
        anything is taken: `DataError` names the bad one. The results are in the order of the
        calls. An error of the store that is to be raised is the first one; its `outcomes` say
        what became of each call.
        """
        asked = checked_calls(calls)
        return results_of(await afinished(self._many(asked))) if asked else []

    @staticmethod
    async def limit_all(
        pairs: Iterable[tuple[Throttled, str] | tuple[Throttled, str, int]],
        cost: int = 1,
        timeout: float | None = None,
        deadline: float | None = None,
        *,
        slot: str | None = None,
    ) -> RateLimitResult:
        """Take from several limits at once: see `throttled.Throttled.limit_all`."""
        checked = all_pairs(pairs, cost, slot, Throttled)
        patience = wait_of(timeout, deadline, NOW, anyio.current_time)
        return await afinished(limit_all(checked, within_scopes(patience) if patience else NOW))

    async def peek(self, key: str | None = None, cost: int = 1) -> RateLimitState:
        """The state of a key, changing nothing: see `throttled.Throttled.peek`."""
        key, cost, _ = self._call(key, cost, None)
        if not switch.enabled():
            return self._off(key, cost, LOOK).state
        answer = self._ask(key, cost, LOOK)
        state: RateLimitState = (
            answer if isinstance(answer, RateLimitResult) else await answer
        ).state
        return state

    async def forecast(self, key: str | None = None) -> Forecast:
        """What a key can spend now, when it can spend more, and when it is full, changing nothing.

        Instants are seconds since the epoch.
        """
        return await afinished(adjusting.forecast(self, key))

    def reserve(
        self,
        key: str | None = None,
        cost: int | None = None,
        timeout: float | None = None,
        deadline: float | None = None,
        *,
        on_error: OnError = "refund",
    ) -> Reserving:
        """Take an estimate now, and settle it when the cost is known.

            async with throttle.reserve("api", cost=4_000) as reservation:
                await reservation.settle((await call()).tokens)

        Or `reservation = await throttle.reserve(...)`. See `throttled.Throttled.reserve`.
        """
        check_on_error(on_error)
        wanted = self._own_cost() if cost is None else cost
        name, wanted, _ = self._call(key, wanted, timeout)

        async def take() -> Reservation:
            patience = self._wait_of(timeout, deadline) if wanted else LOOK
            if patience > 0.0:
                patience = within_scopes(patience)
            reservation = Reservation(wanted, on_error, self.on_store_error == "raise")
            if not switch.enabled():
                return await afinished(reservation._made(lambda _: self._free("disabled")))
            return await afinished(
                reservation._made(lambda taken: self._watched(name, wanted, patience, taken))
            )

        return Reserving(take)

    async def debit(self, key: str, n: int) -> None:
        """Charge `n`, even past the limit: see `throttled.Throttled.debit`."""
        await afinished(adjusting.change(self, key, "n", n, 1))

    async def refund(self, key: str, n: int) -> bool:
        """Give back up to `n` of what was used: see `throttled.Throttled.refund`."""
        return await afinished(adjusting.change(self, key, "n", n, -1))

    async def reset(self, key: str) -> None:
        """Forget a key, penalties included: it is as if it had never been seen."""
        await afinished(adjusting.reset(self, key))

    async def penalize(self, key: str, seconds: float) -> None:
        """Let nobody pass before so many seconds are over: see `throttled.Throttled.penalize`."""
        await afinished(adjusting.penalize(self, key, seconds))

    def wrap(
        self,
        iterable: Iterable[T] | AsyncIterable[T],
        *,
        key: str | None = None,
        cost: int | Callable[[T], Any] = 1,
        timeout: float = inf,
    ) -> AsyncPaced[T]:
        """Hand out the items of an iterable, async or not: see `throttled.Throttled.wrap`."""
        return AsyncPaced(self, iterable, key, cost, timeout)

    # -- steps of flows ---------------------------------------------------------------------------

    def _asking(self, tiers: Tiers[Terms]) -> Callable[[str, int, float], Any]:
        async def ask(key: str, cost: int, patience: float) -> Any:
            found = tiers.of(key)
            terms = found if isinstance(found, Terms) else await found
            answer = terms.ask(key, cost, patience)
            return await answer if terms.policy.awaits else answer

        return ask

    async def _watched(
        self, key: str, cost: int, patience: float, taken: Taken | None = None
    ) -> RateLimitResult:
        left = Taken() if taken is None else taken
        deciding = Stopwatch()

        async def decide() -> RateLimitResult:
            return await afinished(self._watch(key, cost, patience, left, deciding))

        if self.hooks:
            result = await run_hooks(self.hooks, decide, self._context(key, cost))
        else:
            result = await decide()
        told = self._told(key, cost, result, left, deciding)
        if told is not None:
            await told
        return result

    @staticmethod
    def _monotonic() -> float:
        return anyio.current_time()

    async def _wait(self, ticket: Ticket) -> None:
        store: Store | AsyncStore = ticket.store
        try:
            if store.sleeper is None:
                await anyio.sleep(ticket.wait / 1e6)
            else:
                await store.sleeper.asleep_until(ticket.slot)
        except BaseException:
            await self._give_back(ticket)
            raise
        with unheard("Calls cancelled earlier could not give back their slots"):
            if isinstance(store, Store):
                store.arrived(ticket)
            else:
                await store.arrived(ticket)

    async def _give_back(self, ticket: Ticket) -> None:
        what = "A cancelled call could not give back its slot"
        store: Store | AsyncStore = ticket.store
        with unheard(what):
            if isinstance(store, Store):
                store.withdraw(ticket)
                return
            await seen_through(store.withdraw(ticket), what)

    async def _sleep(self, store: Any, microseconds: float) -> None:
        sleeper = store.sleeper
        if sleeper is None:
            await anyio.sleep(microseconds / 1e6)
        else:
            await sleeper.asleep_until(round(sleeper() * 1e6) + microseconds)

    async def _pass(self, key: str, cost: int) -> RateLimitResult:
        result = await self.limit(key, cost)
        if result.limited:
            raise LimitedError(result)
        return result

    async def __aenter__(self) -> RateLimitResult:
        """Take the instance's cost from its key, or raise `LimitedError`."""
        return await self._pass(self._key(), self._own_cost())

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        return None

    def __call__(self, func: Callable[P, R]) -> Callable[P, R]:
        """Limit every call of a coroutine function; a refused call raises `LimitedError`.

        The key may be a template of the function's parameters, key and cost may be callables that
        are given the call's arguments, async ones too. An async generator function is charged when
        its iteration starts, or with `per="item"` for each item. Raises `DataError` for a key, cost
        or `per` that does not suit the function, and `TypeError` for one that is not async: those
        take `throttled.Throttled`.
        """
        if self.key is None:
            self._key()
        return alimited(self, func)
