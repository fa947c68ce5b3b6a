"""The methods of the service, on policies: see `v1/throttled.proto` for what they promise.

    server = grpc.aio.server()
    Servicer({"api": Throttled(quota="100/s")}).add_to(server)

`throttled.service.serving` makes a whole process of it. A policy is a limit of `throttled.asyncio`,
which decides; what is added here is what a call over a network needs:

- **No wait outlasts the call.** The deadline of a call bounds its timeout, so a slot beyond is
  refused at once. A call that is cancelled cancels its task, which gives the slot back.
- **What cannot be delivered is not kept**: a reservation whose call ended before its answer could
  be sent is given back.
- **Nothing is told of errors that are nobody's fault out there**: "internal error", and a log line.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from contextlib import suppress
from functools import partial, wraps
from secrets import token_hex
from typing import Any, Final
from weakref import WeakKeyDictionary

import grpc
import grpc.aio

from throttled import switch
from throttled._text import shown
from throttled.algorithms.plan import LOOK
from throttled.arguments import check_amount, check_cost, patience_of
from throttled.asyncio.throttled import Throttled
from throttled.exceptions import (
    BaseThrottledError,
    DataError,
    LimitedError,
    OperationNotSupportedError,
    PolicyNotFoundError,
)
from throttled.hooks import Event, Observer, Stopwatch
from throttled.reservation import Taken
from throttled.result import RateLimitResult
from throttled.service import agreed, messages
from throttled.service.asked import check_no_timeout, cost_of, key_of, reader
from throttled.service.stats import PolicyStats
from throttled.service.tickets import Issued, Tickets
from throttled.service.v1 import throttled_pb2 as v1
from throttled.service.v1.throttled_pb2_grpc import RateLimiterServicer
from throttled.store.base import Store
from throttled.store.policy import FAILURES, afinished

__all__ = ["OPERATIONS", "SERVICE", "Servicer"]

logger = logging.getLogger("throttled")

#: What a policy may permit.
OPERATIONS: Final = frozenset(
    ["check", "peek", "forecast", "debit", "reserve", "refund", "reset"],
)
#: The name of the service, for health checks too.
SERVICE: Final[str] = v1.DESCRIPTOR.services_by_name["RateLimiter"].full_name

#: Checks that one message may hold.
MOST_CHECKS: Final = 1_000

#: Seconds by which a wait ends before the deadline of its call, so that the answer still arrives.
_MARGIN: Final = 0.025

_LEAVING: Final = "The service is about to stop, and the slot would be too late: ask another one."
_CODES: Final[dict[int, grpc.StatusCode]] = {code.value[0]: code for code in grpc.StatusCode}

# Which process, and which of its memories: what was counted in one can be settled in no other.
_homes: WeakKeyDictionary[Any, str] = WeakKeyDictionary()

Watch = Callable[[str, Throttled], None]


def _answering(method: Callable[..., Coroutine[Any, Any, Any]]) -> Any:
    """A method whose errors end the call as the protocol says."""

    @wraps(method)
    async def answer(self: Servicer, request: Any, context: Any) -> Any:
        self.running += 1
        try:
            if request is None:
                raise DataError(f"Invalid message: the bytes are no {method.__name__} request.")
            return await method(self, request, context)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            assert task is not None
            if task not in self._sent_away:
                raise
            task.uncancel()
            code, text = agreed.UNAVAILABLE, _LEAVING
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            code, text = messages.problem_of(error)
            if code == agreed.INTERNAL:
                _log(method.__name__, error)
        finally:
            self.running -= 1
            if not self.running:
                self._quiet.set()
        return await context.abort(_CODES[code], text)

    return answer


def _log(method: str, error: Exception) -> None:
    extra = {"throttled_event": "internal_error", "throttled_method": method}
    logger.error("%s failed", method, exc_info=error, extra=extra)


class _Waits(Observer):
    """Hears who is going to wait, and until when."""

    def __init__(self, servicer: Servicer, policy: str) -> None:
        self._servicer = servicer
        self._policy = policy

    def waits(self, event: Event) -> None:
        self._servicer._waits(self._policy, event.wait)


class Servicer(RateLimiterServicer):
    """Answers the calls of the service.

    `policies`: limits of `throttled.asyncio` by name, such as `throttled.asyncio.load(...)`. If it
    has a method `spec`, `spec(name).operations` says what each permits. `tickets`: what issues and
    reads those of reservations. `watch` is called with the name and the limit of each policy before
    its first call.
    """

    def __init__(
        self,
        policies: Mapping[str, Throttled],
        *,
        tickets: Tickets | None = None,
        watch: Iterable[Watch] = (),
    ) -> None:
        self.policies = policies
        self.tickets = tickets or Tickets()
        #: What was counted, by policy.
        self.stats: dict[str, PolicyStats] = {}
        #: Calls under way.
        self.running = 0
        self._watch = tuple(watch)
        self._watched: dict[str, Throttled] = {}
        self._stats: WeakKeyDictionary[Throttled, PolicyStats] = WeakKeyDictionary()
        # Who waits: the policy, and the instant of the loop until which.
        self._waiting: dict[Any, tuple[str, float]] = {}
        self._sent_away: set[Any] = set()
        self._ends: float | None = None
        self._work: set[asyncio.Task[None]] = set()
        self._quiet = asyncio.Event()

    def add_to(self, server: Any) -> None:
        """Serve on a `grpc.aio.server`; garbage is answered with INVALID_ARGUMENT."""
        methods = v1.DESCRIPTOR.services_by_name["RateLimiter"].methods
        handlers = {
            method.name: grpc.unary_unary_rpc_method_handler(
                getattr(self, method.name),
                request_deserializer=reader(getattr(v1, method.input_type.name)),
                response_serializer=getattr(v1, method.output_type.name).SerializeToString,
            )
            for method in methods
        }
        # Those of registered methods are found faster, where this version of gRPC knows them.
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        server.add_registered_method_handlers(SERVICE, handlers)

    # -- what is asked ----------------------------------------------------------------------------

    @_answering
    async def Check(self, request: v1.CheckRequest, context: Any) -> v1.Decision:  # noqa: N802
        throttle = self._policy(request.policy, "check")
        key, cost = key_of(request.key), cost_of(request)
        timeout = request.timeout
        if not timeout:
            return messages.decision_of(await throttle.limit(key, cost, 0))
        try:
            timeout = self._patience(timeout, context)
            return messages.decision_of(await throttle.limit(key, cost, timeout))
        finally:
            self._waiting.pop(asyncio.current_task(), None)

    @_answering
    async def CheckMany(  # noqa: N802
        self, request: v1.CheckManyRequest, context: Any
    ) -> v1.CheckManyResponse:
        checks = request.checks
        if len(checks) > MOST_CHECKS:
            text = f"CheckMany takes at most {MOST_CHECKS:,} checks, not {len(checks):,}."
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, text)
        outcomes: list[RateLimitResult | Exception] = [_UNDECIDED] * len(checks)
        groups: dict[str, list[tuple[int, str, int]]] = {}
        for place, check in enumerate(checks):
            try:
                if check.timeout:
                    check_no_timeout(check.timeout)
                call = place, key_of(check.key), check_cost(cost_of(check))
            except DataError as error:
                outcomes[place] = error
            else:
                groups.setdefault(check.policy, []).append(call)
        deciding = [self._decide(name, calls, outcomes) for name, calls in groups.items()]
        if len(deciding) == 1:
            await deciding[0]
        else:
            await asyncio.gather(*deciding)
        response = v1.CheckManyResponse()
        add = response.results.add
        for outcome in outcomes:
            result = add()
            if isinstance(outcome, RateLimitResult):
                messages.tell(outcome, result.decision)
            else:
                result.error.code, result.error.message = messages.problem_of(outcome)
        return response

    async def _decide(
        self,
        name: str,
        calls: list[tuple[int, str, int]],
        outcomes: list[RateLimitResult | Exception],
    ) -> None:
        """Decide checks of one policy, and put what becomes of each in its place."""
        decided: Iterable[Any]
        try:
            throttle = self._policy(name, "check")
            decided = await throttle.limit_many([(key, cost) for _, key, cost in calls])
        except BaseThrottledError as error:
            decided = error.outcomes or [error] * len(calls)
        except Exception as error:
            _log("CheckMany", error)
            decided = [error] * len(calls)
        for (place, _, _), outcome in zip(calls, decided, strict=True):
            outcomes[place] = outcome

    @_answering
    async def Peek(self, request: v1.PeekRequest, context: Any) -> v1.Decision:  # noqa: N802
        throttle = self._policy(request.policy, "peek")
        key, cost = key_of(request.key), check_cost(cost_of(request))
        # All that a check would be told, exempt keys and shadow mode included, but nobody hears.
        if not switch.enabled():
            return messages.decision_of(throttle._free("disabled"))
        looking = throttle._watch(key, cost, LOOK, Taken(), Stopwatch())
        return messages.decision_of(await afinished(looking))

    @_answering
    async def Forecast(  # noqa: N802
        self, request: v1.ForecastRequest, context: Any
    ) -> v1.ForecastResponse:
        throttle = self._policy(request.policy, "forecast")
        forecast = await throttle.forecast(key_of(request.key))
        return v1.ForecastResponse(
            spendable_now=forecast.spendable_now,
            next_replenish_at=forecast.next_replenish_at,
            full_at=forecast.full_at,
        )

    @_answering
    async def Debit(self, request: v1.DebitRequest, context: Any) -> v1.DebitResponse:  # noqa: N802
        throttle = self._policy(request.policy, "debit")
        key, amount = key_of(request.key), check_amount("amount", request.amount)
        await _check_chargeable(throttle, key, request.policy, "debit")
        await throttle.debit(key, amount)
        return v1.DebitResponse()

    @_answering
    async def Refund(  # noqa: N802
        self, request: v1.RefundRequest, context: Any
    ) -> v1.RefundResponse:
        throttle = self._policy(request.policy, "refund")
        key, amount = key_of(request.key), check_amount("amount", request.amount)
        await _check_chargeable(throttle, key, request.policy, "refund")
        return v1.RefundResponse(changed=await throttle.refund(key, amount))

    @_answering
    async def Reset(self, request: v1.ResetRequest, context: Any) -> v1.ResetResponse:  # noqa: N802
        throttle = self._policy(request.policy, "reset")
        await throttle.reset(key_of(request.key))
        return v1.ResetResponse()

    # -- reservations -----------------------------------------------------------------------------

    @_answering
    async def Reserve(  # noqa: N802
        self, request: v1.ReserveRequest, context: Any
    ) -> v1.ReserveResponse:
        throttle = self._policy(request.policy, "reserve")
        key, cost = key_of(request.key), cost_of(request)
        timeout = request.timeout
        stores = await _stores_of(throttle, key)
        try:
            timeout = self._patience(timeout, context) if timeout else 0
            reservation = await throttle.reserve(key, cost, timeout)
        except LimitedError as refusal:
            refused: Any = refusal.rate_limit_result
            return v1.ReserveResponse(decision=messages.decision_of(refused))
        finally:
            self._waiting.pop(asyncio.current_task(), None)
        taken = reservation._taken.ticket
        # Nothing is awaited from here to the answer, or the estimate could be left behind.
        level, home = 0, ""
        if taken is not None:
            # It is not among them if the policy has got other stores meanwhile.
            known = [place for place, each in enumerate(stores) if each is taken.store]
            level, home = known[0] if known else 0, _home_of(taken.store)
        issued = self.tickets.issue(request.policy, key, reservation.cost, level, home, taken)
        context.add_done_callback(partial(self._ended, asyncio.current_task(), issued))
        response = v1.ReserveResponse(ticket=self.tickets.text(issued))
        messages.tell(reservation.result, response.decision)
        return response

    @_answering
    async def Settle(  # noqa: N802
        self, request: v1.SettleRequest, context: Any
    ) -> v1.SettleResponse:
        issued = self.tickets.read(request.ticket)
        actual = None
        if request.HasField("actual"):
            actual = check_amount("actual", request.actual)
        return v1.SettleResponse(settled=await self._settle(issued, actual))

    async def _settle(self, issued: Issued, actual: int | None) -> bool:
        """Settle a reservation, and say whether this was what settled it."""
        throttle = self._policy(issued.policy)
        if not issued.parts:
            return True  # nothing was taken, so there is nothing that could be done twice
        store = await _store_of(throttle, issued)
        if store is None:
            return False
        plan, changes = issued.changes(actual, store)
        lasting = self.tickets.mark_for(issued)
        asked = store.adjust_once(plan, issued.key, issued.id, lasting, changes)
        done = await asked if isinstance(asked, Awaitable) else asked
        self.tickets.settled += done is not None
        return done is not None

    def _ended(self, call: Any, issued: Issued, context: Any) -> None:
        """The call of a reservation is over: give it back if nobody has been told of it."""
        # `context` says that a call is done once its answer is on the way, cancelled or not.
        if call.cancelling() or not context.done():
            task = asyncio.ensure_future(self._given_back(issued))
            self._work.add(task)
            task.add_done_callback(self._work.discard)

    async def _given_back(self, issued: Issued) -> None:
        try:
            await self._settle(issued, None)
        except (*FAILURES, PolicyNotFoundError) as error:
            logger.warning("A reservation that nobody was told of keeps its estimate: %s", error)

    # -- what is shared ---------------------------------------------------------------------------

    def operations(self, name: str) -> frozenset[str]:
        """What a policy permits."""
        spec: Any = getattr(self.policies, "spec", None)
        if spec is None:
            return OPERATIONS
        permitted: frozenset[str] = spec(name).operations
        return permitted

    def _policy(self, name: str, operation: str | None = None) -> Throttled:
        """The limit of a policy that permits the operation."""
        try:
            throttle = self.policies[name]
            permitted = self.operations(name)
        except KeyError:
            # In words of our own: those of a policy file say where it lies.
            raise PolicyNotFoundError(f"There is no policy {shown(name)}.") from None
        if self._watched.get(name) is not throttle:
            self._begin(name, throttle)
        if operation is not None and operation not in permitted:
            known = ", ".join(sorted(permitted)) or "nothing"
            raise OperationNotSupportedError(
                f"The policy {shown(name)} does not permit {operation}, only {known}."
            )
        return throttle

    def _begin(self, name: str, throttle: Throttled) -> None:
        """Watch a policy that was not there before, or is there again."""
        self._watched[name] = throttle
        stats = self._stats.get(throttle)
        if stats is None:
            stats = self._stats[throttle] = PolicyStats()
            throttle.observe(stats)
            throttle.observe(_Waits(self, name))
            for watch in self._watch:
                watch(name, throttle)
        self.stats[name] = stats

    def begin(self) -> dict[str, Throttled]:
        """Watch all policies that there are, forget those that are gone, and say which there are.

        A reload may take place meanwhile.
        """
        for name in list(self.policies):
            with suppress(PolicyNotFoundError):
                self._policy(name)
        for name in [name for name in self._watched if name not in self.policies]:
            del self._watched[name], self.stats[name]
        return dict(self._watched)

    def _patience(self, timeout: float, context: Any) -> float:
        """The timeout that the deadline of the call leaves."""
        patience_of(timeout)
        left = context.time_remaining()
        if left is not None:
            timeout = min(timeout, max(left - _MARGIN, 0.0))
        if self._ends is not None:
            timeout = min(timeout, max(self._ends - asyncio.get_running_loop().time(), 0.0))
        return timeout

    def _waits(self, policy: str, wait: float) -> None:
        loop = asyncio.get_running_loop()
        self._waiting[asyncio.current_task()] = policy, loop.time() + wait

    def waiting(self) -> dict[str, int]:
        """How many calls wait for their slot, by policy."""
        counts: dict[str, int] = {}
        for policy, _ in self._waiting.values():
            counts[policy] = counts.get(policy, 0) + 1
        return counts

    def leave(self, seconds: float) -> None:
        """The service stops in so many seconds: send those away who would wait longer."""
        self._ends = asyncio.get_running_loop().time() + seconds
        for task, (_, slot) in list(self._waiting.items()):
            if slot > self._ends:
                self._sent_away.add(task)
                task.cancel()
                task.add_done_callback(self._sent_away.discard)

    async def idle(self) -> None:
        """Wait until no call is under way."""
        while self.running:
            self._quiet.clear()
            await self._quiet.wait()

    async def ended(self) -> None:
        """Wait until nothing is given back any more, either."""
        await self.idle()
        while self._work:
            await asyncio.wait(self._work)


#: What stands for a check before it is decided.
_UNDECIDED: Final = RuntimeError("not decided")


async def _check_chargeable(throttle: Throttled, key: str, policy: str, operation: str) -> None:
    """`OperationNotSupportedError` if there is no rule that an amount would apply to."""
    terms = await afinished(throttle._terms_of(key))
    if all(rule.cost is not None for rule in terms.plan.rules):
        raise OperationNotSupportedError(
            f"The policy {shown(policy)} cannot {operation}: every rule has a cost of its own."
        )


def _home_of(store: Any) -> str:
    """The name of a memory; none of a store that other processes can reach."""
    if not isinstance(store, Store):
        return ""
    return _homes.setdefault(store, token_hex(8))


async def _stores_of(throttle: Throttled, key: str) -> list[Any]:
    """The stores of a policy: its own, then those that stand in for it."""
    terms = await afinished(throttle._terms_of(key))
    return [level.store for level in terms.policy.levels]


async def _store_of(throttle: Throttled, issued: Issued) -> Any:
    """The store that a reservation was taken from; None if it is not to be found here."""
    stores = await _stores_of(throttle, issued.key)
    if issued.level >= len(stores):
        return None
    store = stores[issued.level]
    return store if _home_of(store) == issued.home else None
