"""The client of the service for code that is not async."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Final

from throttled._closing import Closing
from throttled.algorithms.plan import LOOK, NOW
from throttled.exceptions import BaseThrottledError
from throttled.result import Forecast, RateLimitResult
from throttled.service.connecting import BaseClient, log_kept
from throttled.service.flights import ThreadFlights
from throttled.service.policy import OfService
from throttled.service.remote import BaseService, reply_of
from throttled.store.base import Answer, Call, Change, Outcome, Reply, Store, Ticket
from throttled.store.policy import finished
from throttled.throttled import Throttled

__all__ = ["Client", "Policy", "Service"]

#: Seconds that an interrupted call waits for the answer that is under way.
_GRACE: Final = 1.0


class Policy(OfService, Throttled):
    """A policy of a service: a `Throttled` whose rules and counts are the service's.

    `Client.policy` makes them. What the service cannot do is an error: `penalize`, `limit_all`,
    and asking for or setting `quota` and `rules`. The service waits in the place of the caller, so
    `on_wait` is told only of the waits for what stands in.
    """

    __slots__ = ()

    def forecast(self, key: str | None = None) -> Forecast:
        """What a key can spend, and when it can spend more: see `Throttled.forecast`."""
        return finished(self._forecasting(self, key))

    def penalize(self, key: str, seconds: float) -> None:
        """Raises `OperationNotSupportedError`."""
        self._no_penalty()


class Service(BaseService, Store):
    """A policy of a service as a store, which needs no plan to decide by."""

    def _call(
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
            answer = client._ask(method, request, timeout, ready, undo)
        except BaseThrottledError as error:
            self._heard(error, asked_at)
            raise
        self._heard(None, asked_at)
        return answer

    def _pause(self, seconds: float) -> None:
        time.sleep(seconds)

    def bind(self, plan: Any) -> Callable[[str, int, float], Answer]:
        """`(key, cost, patience)` -> the result; the plan is not needed."""
        check, told, asking, client = self._check, self._told, self._asking, self._client

        def decide(key: str, cost: int, patience: float) -> Answer:
            if patience > NOW:
                return finished(self._wait_for(key, cost, patience))
            if patience == LOOK and cost:
                return finished(self._look(key, cost))
            asked_at = asking()
            outcomes = client._flights.ask((check(key, cost),), client.decision_timeout)
            return told(outcomes[0], asked_at)

        return decide

    def decide_many(self, plan: Any, calls: Sequence[tuple[str, int]]) -> list[Outcome]:
        client: Client = self._client
        outcomes: list[Outcome] = []
        parts, asked_at = self._checks(calls), self._asking()
        try:
            for part in parts:
                outcomes += client._flights.ask(part, client.decision_timeout)
        except BaseException:
            requests = [request for part in parts for request in part]
            client._give_back(requests[: len(outcomes)], outcomes)
            raise
        self._heard_all(outcomes, asked_at)
        return outcomes

    def reserve(
        self, key: str, cost: int, patience: float
    ) -> tuple[RateLimitResult, Ticket | None]:
        return finished(self._reserve(key, cost, patience))

    def settle(self, ticket: Ticket, actual: int | None) -> None:
        finished(self._settle(ticket, actual))

    def change(self, joint: Any, key: str, delta: int) -> list[bool]:
        return [finished(self._change(key, delta))]

    def forecast(self, key: str) -> Forecast:
        return finished(self._forecast(key))

    # -- what else a store offers -----------------------------------------------------------------

    def run(self, plan: Any, key: str, cost: int, patience: float) -> Reply:
        result: Any = self.bind(plan)(key, cost, patience)
        return reply_of(result)

    def run_many(self, calls: Sequence[Call]) -> list[Any]:
        outcomes = self.decide_many(None, [(key, cost) for _, key, cost, _ in calls])
        return [reply_of(each) if isinstance(each, RateLimitResult) else each for each in outcomes]

    def adjust(self, plan: Any, key: str, delta: int, slot: float | None = None) -> bool:
        return finished(self._change(key, delta))

    def adjust_all(self, changes: Sequence[Change]) -> list[bool]:
        # One for each rule, where the service has rules of its own.
        asked = dict.fromkeys([(key, delta) for _, key, delta, _ in changes])
        return [finished(self._change(key, delta)) for key, delta in asked]

    def admit_all(self, joint: Any, keys: Any, cost: int, patience: float) -> Any:
        self._joins_not()

    def reset(self, plan: Any, key: str) -> None:
        finished(self._reset(key))

    def reset_all(self, names: Sequence[tuple[Any, str]]) -> None:
        for key in dict.fromkeys([key for _, key in names]):
            self.reset(None, key)

    def undo(self, ticket: Ticket) -> bool:
        return False

    def withdraw(self, ticket: Ticket) -> None:
        self.settle(ticket, None)

    def arrived(self, ticket: Ticket) -> None:
        """The service has waited."""

    def close(self) -> None:
        """Nothing to release: the connection is the client's."""


class Client(BaseClient[Policy], Closing):
    """A service that decides: `Client("localhost:50051").policy("api").limit("user:1")`.

    Any number of threads may share one, and their checks share messages. It connects when it is
    first asked, and again by itself; a forked child connects anew. For async code there is
    `throttled.asyncio.service.Client`.
    """

    _asynchronous = False
    _store: ClassVar[Any] = Service

    def _policy(self, *args: Any, **options: Any) -> Policy:
        return Policy(*args, **options)

    def _forget(self) -> None:
        self._channel: Any = None
        self._stub: Any = None
        self._flights = ThreadFlights(
            self._send, self._arrive, self._overdue, self._give_back, self._lost
        )

    def close(self) -> None:
        """Close the connection. What is under way fails; a later call opens a new one."""
        with self._lock:
            channel, self._channel, self._stub = self._channel, None, None
        if channel is not None:
            channel.close()

    # -- calls ------------------------------------------------------------------------------------

    def _connected(self) -> Any:
        """The stub of the service."""
        stub = self._stub
        if stub is None:
            with self._lock:
                if self._stub is None:
                    self._channel = self._new_channel(self._grpc)
                    self._stub = self._stub_of(self._channel)
                stub = self._stub
        return stub

    def _begin(self, method: str, request: Any, timeout: float, ready: bool = False) -> Any:
        """A call under way."""
        # As a future: so an interrupt can cancel it, or wait a little longer for its answer.
        try:
            call = getattr(self._connected(), method)
            return call.future(
                request,
                timeout=max(timeout, 0.0),
                metadata=self._metadata,
                wait_for_ready=ready,
            )
        except ValueError as error:  # so gRPC says that the channel was closed meanwhile
            raise self._closed() from error

    def _ask(
        self, method: str, request: Any, timeout: float, ready: bool = False, undo: Any = None
    ) -> Any:
        """The answer of the service. Who is interrupted gives back what was just taken."""
        call = self._begin(method, request, timeout, ready)
        try:
            return call.result()
        except self._grpc.RpcError as error:
            raise self._error(error) from None
        except self._grpc.FutureCancelledError:
            raise self._closed() from None
        except BaseException:
            # What is under way the service gives back when it is cancelled.
            if not call.cancel() and undo is not None and call.exception() is None:
                again = undo(call.result())
                if again is not None:
                    self._meanwhile(*again)
            raise

    def _meanwhile(self, method: str, request: Any) -> None:
        """Give something back without waiting for it."""
        try:
            call = self._begin(method, request, self.decision_timeout)
        except BaseThrottledError as error:
            log_kept(error)
            return

        def ended(call: Any) -> None:
            error = None if call.cancelled() else call.exception()
            if error is not None:
                log_kept(self._error(error))

        call.add_done_callback(ended)

    # -- flights ----------------------------------------------------------------------------------

    def _send(self, requests: Sequence[Any], timeout: float) -> Any:
        try:
            return self._begin(*self._sent(requests), timeout), requests
        except BaseThrottledError as error:
            return error, requests

    def _arrive(self, sent: Any, timeout: float | None = None) -> list[Outcome]:
        call, requests = sent
        if isinstance(call, BaseThrottledError):
            return [call for _ in requests]
        try:
            return self._outcomes(requests, call.result(timeout))
        except self._grpc.RpcError as error:
            return [self._error(error) for _ in requests]
        except self._grpc.FutureCancelledError:
            return [self._closed() for _ in requests]

    def _overdue(self, sent: Any) -> list[Outcome]:
        try:
            return self._arrive(sent, _GRACE)
        except self._grpc.FutureTimeoutError:
            sent[0].cancel()
            return self._lost(len(sent[1]))

    def _give_back(self, requests: Sequence[Any], outcomes: Sequence[Outcome]) -> None:
        for refund in self._refunds(requests, outcomes):
            self._meanwhile("Refund", refund)
