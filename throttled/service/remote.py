"""What both clients of the service share: what a policy of the service is to a `Throttled`.

Theory of operation
-------------------
* The service is a store that knows its quotas itself. A `Service` stands for one policy of
  it; what it binds needs no plan, and where one is wanted, a `ServicePlan` says so little.
* With `quota=` there are real plans, for the stores that stand in when the service fails.
* The service waits for slots: an answer is a result, never a promise to wait for.
* What cannot be known counts as taken: nothing that counts is sent twice but a settlement, which
  the service does once however often it is asked to.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, Final, NoReturn, cast

from throttled._text import plain, shown
from throttled.algorithms.plan import NOW
from throttled.exceptions import (
    BaseThrottledError,
    DataError,
    OperationNotSupportedError,
    PolicyNotFoundError,
    ServiceUnavailableError,
    SetUpError,
    StateError,
)
from throttled.quota import MAX_LIMIT, Rule
from throttled.result import (
    Forecast,
    FrozenResult,
    RateLimitResult,
    RateLimitState,
    View,
)
from throttled.service import agreed
from throttled.service.flights import parted
from throttled.store.base import Health, Outcome, Reply, Ticket
from throttled.store.policy import Flow

#: Seconds that no wait outlasts: more than gRPC can say of a deadline.
_EVER: Final = 1e9
#: How often a settlement is sent, and the seconds between.
_SETTLINGS: Final = 3
_PAUSE: Final = 0.05

#: By status code, what is not for `on_store_error`: a wrong token must not let everybody pass.
_ERRORS: Final[dict[int, type[BaseThrottledError]]] = {
    agreed.INVALID_ARGUMENT: DataError,
    agreed.NOT_FOUND: PolicyNotFoundError,
    agreed.PERMISSION_DENIED: SetUpError,
    agreed.UNIMPLEMENTED: OperationNotSupportedError,
    agreed.DATA_LOSS: StateError,
    agreed.UNAUTHENTICATED: SetUpError,
}
#: Status codes of gRPC that are left, for messages.
_NAMES: Final = {1: "CANCELLED", 2: "UNKNOWN", 8: "RESOURCE_EXHAUSTED", 13: "INTERNAL"}

#: Sources of results for which nothing was taken.
_NOTHING: Final = frozenset({"exempt", "disabled", "allowed-by-policy"})


def error_of(code: int, said: str, target: str, timeout: float) -> BaseThrottledError:
    """The error that a status of gRPC, or an `Error` in the place of a decision, comes to."""
    where = f"The service at {target}"
    kind = _ERRORS.get(code)
    if kind is not None:
        return kind(f"{where} says: {said}")
    if code == agreed.UNAVAILABLE:
        return ServiceUnavailableError(f"{where} is not available: {said}")
    if code == agreed.DEADLINE_EXCEEDED:
        late = ServiceUnavailableError(
            f"{where} did not answer within {plain(timeout)} s; whether it was counted is not known"
        )
        late.unanswered = True
        return late
    return ServiceUnavailableError(f"{where} failed with {_NAMES.get(code, code)}: {said}")


def result_of(decision: Any) -> RateLimitResult:
    """A `Decision` of the protocol as a result.

    Raises `DataError` for rules that this version does not know.
    """
    states = tuple(
        [
            RateLimitState(each.limit, each.remaining, each.reset_after, each.retry_after)
            for each in decision.states
        ]
    )
    binding = decision.binding
    if not 0 <= binding < len(states):
        raise DataError(f"Invalid decision: binding={binding} of {len(states)} states.")
    rules = tuple(
        [
            _rule(
                each.quota, each.algorithm, each.cost if each.HasField("cost") else None, each.name
            )
            for each in decision.rules
        ]
    )
    limited, would = not decision.allowed, decision.would_limit
    # A number of a later version is the service's as well.
    source = agreed.SOURCES.get(decision.source, "server")
    view = View(rules, states, binding, decision.held)
    return FrozenResult.told(limited, source, view, None if would is limited else would)


@lru_cache(maxsize=1024)
def _rule(quota: str, algorithm: str, cost: int | None, name: str) -> Rule:
    return Rule(quota, algorithm or None, cost, name or None)


class ServicePlan:
    """What stands for the rules of a policy that only the service knows."""

    kind: Final = "service"
    #: No cost is known never to fit but one above all limits.
    capacity: Final = MAX_LIMIT
    rules: Final[tuple[Rule, ...]] = ()
    holds: Final[tuple[Any, ...]] = ()

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.joint = self
        self.plans = self.members = (self,)

    def keys(self, key: str) -> tuple[str, ...]:
        return (key,)

    def costs(self, cost: int) -> tuple[int, ...]:
        return (cost,)

    def __repr__(self) -> str:
        return f"ServicePlan({self.prefix!r})"


class ServiceTicket(Ticket):
    """A reservation as the service knows it: by a text that says nothing here."""

    __slots__ = ("text",)

    text: str


class BaseService:
    """One policy of a service, as a store. What both flavours share; see `Client.policy`.

    What has to be asked comes out of `_call`, as it is or to be awaited.
    """

    apart: str | None = (
        "limit_all() cannot decide limits of a service at once; it takes limits on a MemoryStore "
        "or a RedisStore. Call limit() of each, and refund() if one refuses."
    )

    def __init__(self, client: Any, policy: str) -> None:
        self._client = client
        #: The name of the policy.
        self.policy = policy
        self.on_store_error: Any = client.on_store_error
        self._v1 = client._v1
        self._health = Health()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._client.target!r}, policy={self.policy!r})"

    def health(self) -> Health:
        """How the last calls of this policy went, and whether the service is left alone."""
        seen = self._client.breaker.health(time.monotonic())
        return replace(self._health, state=seen.state, retry_after=seen.retry_after)

    def _asking(self) -> float:
        """The instant at which a call is made.

        Raises `ServiceUnavailableError` while the service is left alone. That is for want of
        answers only: without a connection, calls fail at once by themselves.
        """
        now, breaker = time.monotonic(), self._client.breaker
        if breaker.opened and not breaker.admits(now, self._client.decision_timeout):
            raise ServiceUnavailableError(breaker.refusal(now))
        return now

    def _heard(self, error: BaseException | None, asked_at: float) -> None:
        """A call that was made at an instant went well, or failed."""
        before, breaker = self._health, self._client.breaker
        if isinstance(error, ServiceUnavailableError):
            if error.unanswered:
                breaker.failed(asked_at, time.monotonic(), error)
        elif breaker.troubled:
            breaker.worked()
        if not isinstance(error, ServiceUnavailableError):
            if before.failures:
                self._health = Health(
                    last_error=before.last_error, last_error_at=before.last_error_at
                )
            return
        self._health = Health(
            failures=before.failures + 1, last_error=str(error), last_error_at=time.time()
        )

    # -- requests ---------------------------------------------------------------------------------

    def _request(self, kind: Any, key: str, **fields: Any) -> Any:
        """A message about a key; `DataError` for a key that no service would take."""
        if len(key) > agreed.LONGEST_KEY:
            raise DataError(
                f"Invalid key: {shown(key)}, must be at most {agreed.LONGEST_KEY} characters for a "
                f"service."
            )
        try:
            return kind(policy=self.policy, key=key, **fields)
        except UnicodeEncodeError:
            raise DataError(
                f"Invalid key: {shown(key)}, must be text that UTF-8 can say."
            ) from None

    def _check(self, key: str, cost: int) -> Any:
        return self._request(self._v1.CheckRequest, key, cost=cost)

    def _checks(self, calls: Sequence[tuple[str, int]]) -> list[Sequence[Any]]:
        return parted([self._check(key, cost) for key, cost in calls])

    def _told(self, outcome: Outcome, asked_at: float) -> RateLimitResult:
        """The result of a check that was made at an instant, or its error."""
        if isinstance(outcome, BaseThrottledError):
            self._heard(outcome, asked_at)
            raise outcome
        if self._health.failures or self._client.breaker.troubled:
            self._heard(None, asked_at)
        return cast("RateLimitResult", outcome)

    def _heard_all(self, outcomes: Sequence[Outcome], asked_at: float) -> None:
        """What came of checks that were made together."""
        errors = [each for each in outcomes if isinstance(each, BaseThrottledError)]
        self._heard(errors[0] if errors else None, asked_at)

    def _call(
        self,
        method: str,
        request: Any,
        wait: float = 0.0,
        *,
        within: float | None = None,
        ready: bool = False,
        undo: Callable[[Any], tuple[str, Any] | None] | None = None,
    ) -> Any:
        """What the service answers, which may wait for so many seconds first.

        It has `within` seconds more, by default those of the client. `ready`: wait for a connection
        instead of failing without one. `undo`: of an answer, the method and request that give back
        what was taken, for a caller who is gone when it comes.
        """
        raise NotImplementedError

    def _pause(self, seconds: float) -> Any:
        raise NotImplementedError

    # -- what is asked ----------------------------------------------------------------------------

    def _look(self, key: str, cost: int) -> Flow[RateLimitResult]:
        request = self._request(self._v1.PeekRequest, key, cost=cost)
        return self._read((yield self._call("Peek", request)))

    def _wait_for(self, key: str, cost: int, patience: float) -> Flow[RateLimitResult]:
        """The answer of a call that waits, which the service does."""
        wait = min(patience / 1e6, _EVER)
        request = self._request(self._v1.CheckRequest, key, cost=cost, timeout=wait)

        def undo(decision: Any) -> Any:
            if taken(request, self._read(decision)):
                return "Refund", refund_of(self._v1, request)
            return None

        return self._read((yield self._call("Check", request, wait, undo=undo)))

    def _reserve(
        self, key: str, cost: int, patience: float
    ) -> Flow[tuple[RateLimitResult, Ticket | None]]:
        wait = min(max(patience, NOW) / 1e6, _EVER)
        request = self._request(self._v1.ReserveRequest, key, cost=cost, timeout=wait)

        def undo(response: Any) -> Any:
            if response.ticket:
                return "Settle", self._v1.SettleRequest(ticket=response.ticket)
            return None

        response = yield self._call("Reserve", request, wait, undo=undo)
        result = self._read(response.decision)
        if not response.ticket:
            return result, None
        ticket = ServiceTicket(None, key, cost, 0.0, 0.0, None, None, self)
        ticket.text = response.ticket
        return result, ticket

    def _settle(self, ticket: Ticket, actual: int | None) -> Flow[None]:
        if not isinstance(ticket, ServiceTicket):
            # Nothing was taken, and the service knows of nothing.
            if actual:
                yield from self._change(ticket.key, actual)
            return
        request = self._v1.SettleRequest(ticket=ticket.text, actual=actual)
        until = time.monotonic() + self._client.decision_timeout
        for again in range(_SETTLINGS):
            left = until - time.monotonic()
            try:
                # Only the first settling counts, so this one may be sent again.
                yield self._call("Settle", request, within=left, ready=again > 0)
                return
            except ServiceUnavailableError:
                if again == _SETTLINGS - 1 or until - time.monotonic() <= 2 * _PAUSE:
                    raise
            yield self._pause(_PAUSE)

    def _change(self, key: str, delta: int) -> Flow[bool]:
        """Charge (more than 0) or give back; whether anything came of it, as far as it is said."""
        if delta > 0:
            yield self._call("Debit", self._request(self._v1.DebitRequest, key, amount=delta))
            return True
        request = self._request(self._v1.RefundRequest, key, amount=-delta)
        return bool((yield self._call("Refund", request)).changed)

    def _reset(self, key: str) -> Flow[None]:
        yield self._call("Reset", self._request(self._v1.ResetRequest, key))

    def _forecast(self, key: str) -> Flow[Forecast]:
        told = yield self._call("Forecast", self._request(self._v1.ForecastRequest, key))
        at = told.next_replenish_at if told.HasField("next_replenish_at") else None
        return Forecast(told.spendable_now, at, told.full_at)

    def _read(self, decision: Any) -> RateLimitResult:
        try:
            return result_of(decision)
        except DataError as error:
            raise unreadable(self._client.target, error) from error

    def _joins_not(self) -> NoReturn:
        raise OperationNotSupportedError(self.apart)


def unreadable(target: str, error: DataError) -> ServiceUnavailableError:
    """The error for an answer of a service that is ahead of this version."""
    return ServiceUnavailableError(
        f"The service at {target} answered what this version cannot read: {error}"
    )


def taken(request: Any, outcome: Outcome) -> bool:
    """Whether a check has taken something that could be given back."""
    return (
        isinstance(outcome, RateLimitResult)
        and not outcome.limited
        and not outcome.would_limit
        and outcome.source not in _NOTHING
        and request.cost > 0
    )


def refund_of(v1: Any, request: Any) -> Any:
    """The request that gives back what a check took."""
    return v1.RefundRequest(policy=request.policy, key=request.key, amount=request.cost)


def reply_of(result: RateLimitResult) -> Reply:
    """A result as the reply of a store."""
    state = result.state
    return None, state.retry_after * 1e6, state.remaining, state.reset_after * 1e6
