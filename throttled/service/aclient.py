"""The client of the service for async code."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import suppress
from copy import copy
from typing import Any, ClassVar, Final

from throttled._closing import AsyncClosing
from throttled.algorithms.plan import LOOK, NOW
from throttled.asyncio.throttled import Throttled
from throttled.exceptions import BaseThrottledError, SetUpError
from throttled.result import Forecast, RateLimitResult
from throttled.service.connecting import BaseClient, log_kept
from throttled.service.flights import LoopFlights
from throttled.service.policy import OfService
from throttled.service.remote import BaseService, reply_of
from throttled.store.base import Answer, AsyncStore, Call, Change, Outcome, Reply, Ticket
from throttled.store.policy import afinished

__all__ = ["Client", "Policy", "Service"]

#: Seconds that a loop which ends leaves to what gives something back.
_GRACE: Final = 1.0


class Policy(OfService, Throttled):
    """A policy of a service: a `Throttled` whose rules and counts are the service's.

    See `throttled.service.client.Policy`.
    """

    __slots__ = ()

    async def forecast(self, key: str | None = None) -> Forecast:
        """What a key can spend, and when it can spend more: see `Throttled.forecast`."""
        return await afinished(self._forecasting(self, key))

    async def penalize(self, key: str, seconds: float) -> None:
        """Raises `OperationNotSupportedError`."""
        self._no_penalty()


class Service(BaseService, AsyncStore):
    """A policy of a service as a store, which needs no plan to decide by."""

    async def _call(
        self,
        method: str,
        request: Any,
        wait: float = 0.0,
        *,
        within: float | None = None,
        ready: bool = False,
        undo: Any = None,
    ) -> Any:
        client: Client = self._client
        timeout = (client.decision_timeout if within is None else within) + wait
        asked_at = self._asking()
        try:
            answer = await client._reached().ask(method, request, timeout, ready, undo)
        except BaseThrottledError as error:
            self._heard(error, asked_at)
            raise
        self._heard(None, asked_at)
        return answer

    def _pause(self, seconds: float) -> Awaitable[None]:
        return asyncio.sleep(seconds)

    def bind(self, plan: Any) -> Callable[[str, int, float], Awaitable[Answer]]:
        """`(key, cost, patience)` -> the result, to be awaited; the plan is not needed."""
        check, told, asking, client = self._check, self._told, self._asking, self._client

        async def decide(key: str, cost: int, patience: float) -> Answer:
            if patience > NOW:
                return await afinished(self._wait_for(key, cost, patience))
            if patience == LOOK and cost:
                return await afinished(self._look(key, cost))
            flights, asked_at = client._reached().flights, asking()
            outcomes = await flights.ask((check(key, cost),), client.decision_timeout)
            return told(outcomes[0], asked_at)

        return decide

    async def decide_many(self, plan: Any, calls: Sequence[tuple[str, int]]) -> list[Outcome]:
        client: Client = self._client
        reach = client._reached()
        outcomes: list[Outcome] = []
        parts, asked_at = self._checks(calls), self._asking()
        try:
            for part in parts:
                outcomes += await reach.flights.ask(part, client.decision_timeout)
        except BaseException:
            requests = [request for part in parts for request in part]
            reach.give_back(requests[: len(outcomes)], outcomes)
            raise
        self._heard_all(outcomes, asked_at)
        return outcomes

    async def reserve(
        self, key: str, cost: int, patience: float
    ) -> tuple[RateLimitResult, Ticket | None]:
        return await afinished(self._reserve(key, cost, patience))

    async def settle(self, ticket: Ticket, actual: int | None) -> None:
        await afinished(self._settle(ticket, actual))

    async def change(self, joint: Any, key: str, delta: int) -> list[bool]:
        return [await afinished(self._change(key, delta))]

    async def forecast(self, key: str) -> Forecast:
        return await afinished(self._forecast(key))

    # -- what else a store offers -----------------------------------------------------------------

    async def run(self, plan: Any, key: str, cost: int, patience: float) -> Reply:
        result: Any = await self.bind(plan)(key, cost, patience)
        return reply_of(result)

    async def run_many(self, calls: Sequence[Call]) -> list[Any]:
        outcomes = await self.decide_many(None, [(key, cost) for _, key, cost, _ in calls])
        return [reply_of(each) if isinstance(each, RateLimitResult) else each for each in outcomes]

    async def adjust(self, plan: Any, key: str, delta: int, slot: float | None = None) -> bool:
        return await afinished(self._change(key, delta))

    async def adjust_all(self, changes: Sequence[Change]) -> list[bool]:
        # One for each rule, where the service has rules of its own.
        asked = dict.fromkeys([(key, delta) for _, key, delta, _ in changes])
        return [await afinished(self._change(key, delta)) for key, delta in asked]

    async def admit_all(self, joint: Any, keys: Any, cost: int, patience: float) -> Any:
        self._joins_not()

    async def reset(self, plan: Any, key: str) -> None:
        await afinished(self._reset(key))

    async def reset_all(self, names: Sequence[tuple[Any, str]]) -> None:
        for key in dict.fromkeys([key for _, key in names]):
            await self.reset(None, key)

    async def undo(self, ticket: Ticket) -> bool:
        return False

    async def withdraw(self, ticket: Ticket) -> None:
        await self.settle(ticket, None)

    async def arrived(self, ticket: Ticket) -> None:
        """The service has waited."""

    async def close(self) -> None:
        """Nothing to release: the connection is the client's."""


class _Reach:
    """The way to the service within one event loop, where a channel of gRPC belongs."""

    def __init__(self, client: Client, loop: asyncio.AbstractEventLoop) -> None:
        self._client = client
        self._loop = loop
        self._channel: Any = client._new_channel(client._grpc.aio)
        self._stub: Any = client._stub_of(self._channel)
        self.flights = LoopFlights(loop, self._fly, self.give_back, client._lost)
        # What gives something back for callers who are gone.
        self._leftovers: set[asyncio.Task[None]] = set()
        self._closed = False
        # A loop that ends closes its asynchronous generators: the one hook it has. This one is
        # started by hand, for it has nothing to wait for.
        self._end = self._until_end()
        with suppress(StopIteration):
            anext(self._end).__await__().send(None)

    async def _until_end(self) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            self._client._reaches.pop(self._loop, None)
            # What is in the air may have to be given back, which takes a while as well.
            for late in (self.flights.flying, self._leftovers):
                if late:
                    await asyncio.wait([*late], timeout=_GRACE)
            self._closed = True
            await self._channel.close()

    async def close(self) -> None:
        await self._end.aclose()

    async def ask(
        self, method: str, request: Any, timeout: float, ready: bool = False, undo: Any = None
    ) -> Any:
        """The answer of the service. Who is cancelled gives back what was just taken."""
        client = self._client
        try:
            call = getattr(self._stub, method)(
                request,
                timeout=max(timeout, 0.0),
                metadata=client._metadata,
                wait_for_ready=ready,
            )
        except client._grpc.aio.UsageError as error:  # the channel was closed meanwhile
            raise client._closed() from error
        try:
            return await call
        except client._grpc.RpcError as error:
            raise client._error(error) from None
        except asyncio.CancelledError:
            if self._closed:
                raise client._closed() from None  # It was the call that was cancelled.
            # What is under way the service gives back when it is cancelled.
            if undo is not None and call.done() and not call.cancelled():
                again = None if await call.code() is not client._ok else undo(await call)
                if again is not None:
                    self._meanwhile(*again)
            raise

    def _meanwhile(self, method: str, request: Any) -> None:
        """Give something back without waiting for it."""
        task = self._loop.create_task(self._undo(method, request))
        self._leftovers.add(task)
        task.add_done_callback(self._leftovers.discard)

    async def _undo(self, method: str, request: Any) -> None:
        try:
            await self.ask(method, request, self._client.decision_timeout)
        except BaseThrottledError as error:
            log_kept(error)

    async def _fly(self, requests: Sequence[Any], timeout: float) -> list[Outcome]:
        client = self._client
        try:
            answer = await self.ask(*client._sent(requests), timeout)
        except BaseThrottledError as error:
            return [error, *[copy(error) for _ in requests[1:]]]
        return client._outcomes(requests, answer)

    def give_back(self, requests: Sequence[Any], outcomes: Sequence[Outcome]) -> None:
        """Give back what was admitted for a caller who is gone."""
        for refund in self._client._refunds(requests, outcomes):
            self._meanwhile("Refund", refund)


class Client(BaseClient[Policy], AsyncClosing):
    """A service that decides: `await Client("localhost:50051").policy("api").limit("user:1")`.

    Any number of tasks may share one, and their checks share messages. It connects when it is
    first asked, in each event loop anew, and again by itself. Needs asyncio: gRPC has no trio.
    """

    _asynchronous = True
    _store: ClassVar[Any] = Service

    def _policy(self, *args: Any, **options: Any) -> Policy:
        return Policy(*args, **options)

    def _forget(self) -> None:
        self._reaches: dict[asyncio.AbstractEventLoop, _Reach] = {}

    def _reached(self) -> _Reach:
        """The way to the service within the running event loop."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError as error:
            raise SetUpError("The client of a service needs asyncio: gRPC has no trio.") from error
        reach = self._reaches.get(loop)
        if reach is None:
            for ended in [each for each in self._reaches if each.is_closed()]:
                del self._reaches[ended]
            self._reaches[loop] = reach = _Reach(self, loop)
        return reach

    async def close(self) -> None:
        """Close the connection of this event loop. A later call opens a new one."""
        reach = self._reaches.get(asyncio.get_running_loop())
        if reach is not None:
            await reach.close()
