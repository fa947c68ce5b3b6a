"""`Throttled`: limits as a call, a decorator, a context manager, with or without waiting."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from math import inf
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from throttled import adjusting, switch
from throttled.algorithms.plan import LOOK, NOW
from throttled.arguments import checked_calls, wait_of
from throttled.base import BaseThrottled
from throttled.decorator import limited
from throttled.exceptions import LimitedError
from throttled.hooks import Stopwatch, run_hooks
from throttled.outcomes import results_of, unheard
from throttled.pacing import Paced
from throttled.quota import MAX_LIMIT
from throttled.reservation import OnError, Reservation, Taken, check_on_error
from throttled.result import Forecast, RateLimitResult, RateLimitState
from throttled.settings import Terms
from throttled.store.base import Store, Ticket
from throttled.store.policy import finished
from throttled.together import all_pairs, limit_all

if TYPE_CHECKING:
    from throttled.tiers import Tiers

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


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
        self,
        key: str | None = None,
        cost: int = 1,
        timeout: float | None = None,
        deadline: float | None = None,
    ) -> RateLimitResult:
        """Take `cost` from the key's limit and say whether the call may go on.

        `cost`: an integer of 0 or more; 0 is always allowed and changes nothing. `timeout`: seconds
        to wait at most, up to `math.inf`, in place of the instance's; -1, like 0: do not wait.
        `deadline`: an instant of `time.monotonic()` that no wait outlasts; given alone, it is also
        the timeout. Raises `DataError` for a bad argument, and `StoreUnavailableError` or
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
            # The common case, in as few steps as can be.
            decide = self._decide
            answer = decide(key, cost, self._patience)
            if type(answer) is not tuple:
                result: RateLimitResult = answer
                return result
            patience = self._patience
        else:
            key, cost, patience = self._call(key, cost, timeout, deadline)
            answer = self._decide(key, cost, patience)
            if isinstance(answer, RateLimitResult):
                return answer
        return finished(self._served(key, cost, patience, answer))

    def limit_many(self, calls: Iterable[str | tuple[str, int]]) -> list[RateLimitResult]:
        """Decide several calls at once, each by itself, and without waiting for any slot.

        `calls`: keys, each for a cost of 1, or pairs of key and cost. All are checked before
        anything is taken: `DataError` names the bad one. The results are in the order of the
        calls. An error of the store that is to be raised is the first one; its `outcomes` say
        what became of each call.
        """
        asked = checked_calls(calls)
        return results_of(finished(self._many(asked))) if asked else []

    @staticmethod
    def limit_all(
        pairs: Iterable[tuple[Throttled, str] | tuple[Throttled, str, int]],
        cost: int = 1,
        timeout: float | None = None,
        deadline: float | None = None,
        *,
        slot: str | None = None,
    ) -> RateLimitResult:
        """Take from several limits at once, of several keys: from all of them, or from none.

            Throttled.limit_all([(per_user, "u42"), (per_org, "acme")], cost=3)

        `pairs`: (throttle, key) or (throttle, key, cost), all on one store. It does not wait by
        default; with a timeout or deadline it sleeps until the slowest limit lets it try again, as
        long as that lies within, and stands in no line meanwhile. The result has all rules, in the
        order of the pairs. Costs, timeout and deadline are those of `limit`, and so is what it
        raises; limits that cannot be asked together are a `DataError` too.

        On a Redis Cluster the keys must share a slot: `slot="acme"` gives them one, by which the
        same keys are found elsewhere as `Key("u42", slot="acme")`.
        """
        checked = all_pairs(pairs, cost, slot, Throttled)
        patience = wait_of(timeout, deadline, NOW, time.monotonic)
        return finished(limit_all(checked, patience))

    def peek(self, key: str | None = None, cost: int = 1) -> RateLimitState:
        """The state of a key, changing nothing.

        `retry_after` says in how many seconds a call of `cost` (an integer of 0 or more) would fit.
        Raises what `limit` does.
        """
        key, cost, _ = self._call(key, cost, None)
        decide = self._ask if switch.enabled() else self._off
        state: RateLimitState = decide(key, cost, LOOK).state
        return state

    def forecast(self, key: str | None = None) -> Forecast:
        """What a key can spend now, when it can spend more, and when it is full, changing nothing.

        Instants are seconds since the epoch, by this machine's clock. Raises what `limit` does.
        """
        return finished(adjusting.forecast(self, key))

    def reserve(
        self,
        key: str | None = None,
        cost: int | None = None,
        timeout: float | None = None,
        deadline: float | None = None,
        *,
        on_error: OnError = "refund",
    ) -> Reservation:
        """Take an estimate now, and settle it when the cost is known.

            with throttle.reserve("api", cost=4_000) as reservation:
                reservation.settle(call().tokens)

        `cost` is the instance's by default; timeout and deadline as for `limit`. `on_error`:
        whether a block that fails gives the estimate back ("refund") or keeps it ("keep"). Raises
        `LimitedError` when refused, else what `limit` does.
        """
        check_on_error(on_error)
        wanted = self._own_cost() if cost is None else cost
        key, wanted, patience = self._call(key, wanted, timeout, deadline)
        reservation = Reservation(wanted, on_error, self.on_store_error == "raise")
        if not switch.enabled():
            return finished(reservation._made(lambda _: self._free("disabled")))
        return finished(
            reservation._made(lambda taken: self._watched(key, wanted, patience, taken))
        )

    def debit(self, key: str, n: int) -> None:
        """Charge `n`, even past the limit: what was used without asking. Later calls feel it.

        Rules with a fixed cost are left alone. Raises `DataError` for anything but an integer from
        0 to 1,000,000,000.
        """
        finished(adjusting.change(self, key, "n", n, 1))

    def refund(self, key: str, n: int) -> bool:
        """Give back up to `n` of what was used, the newest first; whether anything came of it.

        Never more than is outstanding, and never what others who wait count on. Raises `DataError`
        for anything but an integer from 0 to 1,000,000,000.
        """
        return finished(adjusting.change(self, key, "n", n, -1))

    def reset(self, key: str) -> None:
        """Forget a key, penalties included: it is as if it had never been seen."""
        finished(adjusting.reset(self, key))

    def penalize(self, key: str, seconds: float) -> None:
        """Let nobody pass before so many seconds are over: another service has said so.

        Needs `hold=True`, here and wherever it is to be heeded; limits of one `key_prefix` share
        the penalties of a key. Callers of this process who wait for a slot look again when they
        wake; what other processes were promised stands. A shorter penalty does not end a longer
        one; `reset` does. Raises `SetUpError` without `hold=True`, and `DataError` for seconds
        outside of 0 to 31,622,400, which is 366 days.
        """
        finished(adjusting.penalize(self, key, seconds))

    def wrap(
        self,
        iterable: Iterable[T],
        *,
        key: str | None = None,
        cost: int | Callable[[T], int] = 1,
        timeout: float = inf,
    ) -> Paced[T]:
        """Hand out the items of an iterable at the pace of the limit.

        Each item is taken from it, waits for its turn, and is handed out. `cost` may be a callable
        of the item. One whose turn lies beyond the timeout (seconds for each item; as long as it
        takes by default, whatever the instance says) raises `LimitedError` and is kept: the next
        `next()` tries it again. Raises `DataError` for a bad argument, at once.
        """
        return Paced(self, iterable, key, cost, timeout)

    # -- steps of flows ---------------------------------------------------------------------------

    def _asking(self, tiers: Tiers[Terms]) -> Callable[[str, int, float], Any]:
        def ask(key: str, cost: int, patience: float) -> Any:
            terms: Any = tiers.of(key)
            return terms.ask(key, cost, patience)

        return ask

    def _watched(
        self, key: str, cost: int, patience: float, taken: Taken | None = None
    ) -> RateLimitResult:
        left = Taken() if taken is None else taken
        deciding = Stopwatch()

        def decide() -> RateLimitResult:
            return finished(self._watch(key, cost, patience, left, deciding))

        if self.hooks:
            result = run_hooks(self.hooks, decide, self._context(key, cost))
        else:
            result = decide()
        self._told(key, cost, result, left, deciding)
        return result

    def _wait(self, ticket: Ticket) -> None:
        store: Store = ticket.store
        try:
            sleeper = store.sleeper
            if sleeper is None:
                time.sleep(ticket.wait / 1e6)
            else:
                sleeper.sleep_until(ticket.slot)
        except BaseException:
            self._give_back(ticket)
            raise
        with unheard("Calls cancelled earlier could not give back their slots"):
            store.arrived(ticket)

    def _give_back(self, ticket: Ticket) -> None:
        with unheard("A cancelled call could not give back its slot"):
            ticket.store.withdraw(ticket)

    def _sleep(self, store: Store, microseconds: float) -> None:
        sleeper = store.sleeper
        if sleeper is None:
            time.sleep(microseconds / 1e6)
        else:
            sleeper.sleep_until(round(sleeper() * 1e6) + microseconds)

    def _pass(self, key: str, cost: int) -> RateLimitResult:
        result = self.limit(key, cost)
        if result.limited:
            raise LimitedError(result)
        return result

    def __enter__(self) -> RateLimitResult:
        """Take the instance's cost from its key, or raise `LimitedError`."""
        return self._pass(self._key(), self._own_cost())

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        return None

    def __call__(self, func: Callable[P, R]) -> Callable[P, R]:
        """Limit every call of a function; a refused call raises `LimitedError`.

        The key may be a template of the function's parameters, key and cost may be callables that
        are given the call's arguments. A generator function is charged when its iteration starts,
        or with `per="item"` for each item. Raises `DataError` for a key, cost or `per` that does
        not suit the function, and `TypeError` for an async one: those take `throttled.asyncio`.
        """
        if self.key is None:
            self._key()
        return limited(self, func)
