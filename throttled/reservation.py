"""Reserving before the cost is known, and settling when it is."""

from __future__ import annotations

import logging
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from throttled._text import shown
from throttled.arguments import check_amount
from throttled.exceptions import BaseThrottledError, DataError, LimitedError
from throttled.store.base import new_lock
from throttled.store.policy import FAILURES, Flow, finished

if TYPE_CHECKING:
    from collections.abc import Callable

    from throttled.result import RateLimitResult
    from throttled.store.base import Ticket

logger = logging.getLogger("throttled")

_settling = new_lock()

#: What becomes of a reservation when the block under it fails.
OnError = Literal["refund", "keep"]


def check_on_error(word: object) -> Any:
    """`DataError` unless it says what becomes of a reservation whose block fails."""
    if word not in ("refund", "keep"):
        raise DataError(f"Invalid on_error: {shown(word)}, must be 'refund' or 'keep'.")
    return word


class Taken:
    """What a decision leaves behind beside its result."""

    __slots__ = ("ticket", "ticketed", "waited")

    def __init__(self, ticketed: bool = False) -> None:
        #: Whether a ticket is wanted.
        self.ticketed = ticketed
        #: What gives back a call that was admitted, once it does not wait any more.
        self.ticket: Ticket | None = None
        #: For how many seconds the call has waited.
        self.waited = 0.0


class BaseReservation:
    """What both flavours share.

    A reservation is settled once: by `settle`, by `cancel`, or by leaving its block, whichever
    comes first; what comes later changes nothing.
    """

    __slots__ = ("_on_error", "_raises", "_settled", "_taken", "cost", "result")

    def __init__(self, cost: int, on_error: OnError, raises: bool) -> None:
        """`raises`: whether an error of the store on settling is the caller's to see."""
        #: The decision, as of when it was taken.
        self.result: RateLimitResult
        #: What was reserved.
        self.cost = cost
        self._taken = Taken(ticketed=True)
        self._on_error = on_error
        self._raises = raises
        self._settled = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}(cost={self.cost}, settled={self._settled})"

    def _made(self, decide: Callable[[Taken], Any]) -> Flow[Self]:
        """Itself, if the call is admitted. What is refused afterwards, by a hook or an interrupt,
        is given back."""
        admitted = False
        try:
            self.result = yield decide(self._taken)
            admitted = not self.result.limited
        finally:
            if not admitted:
                yield from self._given_back()
        if not admitted:
            raise LimitedError(self.result)
        return self

    @property
    def settled(self) -> bool:
        """Whether it is settled: nothing changes any more."""
        return self._settled

    def _settle(self, actual: object) -> Flow[None]:
        """Charge or give back the difference to what was used."""
        yield from self._close(check_amount("actual", actual))

    def _cancel(self) -> Flow[None]:
        """Give everything back."""
        yield from self._close(None)

    def _leave(self, failed: bool) -> Flow[None]:
        """The block is over."""
        if failed and self._on_error != "keep":
            yield from self._given_back()
        self._settled = True

    def _given_back(self) -> Flow[None]:
        """Cancel it, where the caller has to hear of something else."""
        try:
            yield from self._cancel()
        except BaseThrottledError as error:
            _log(error)

    def _close(self, actual: int | None) -> Flow[None]:
        """What was used is known; None: nothing, by any rule."""
        # Before it is sent: whether it was counted may never be known, and it must not be twice.
        with _settling:
            if self._settled:
                return
            self._settled = True
        ticket = self._taken.ticket
        if ticket is None:
            return
        try:
            yield ticket.store.settle(ticket, actual)
        except FAILURES as error:
            if self._raises:
                raise
            _log(error)


def _log(error: Exception) -> None:
    logger.warning("A reservation could not be settled and keeps its estimate: %s", error)


class Reservation(BaseReservation):
    """A cost that was taken before it was known: `with throttle.reserve(key, cost=...) as r`.

    `r.settle(actual)` when it is known. A block that ends without that keeps the estimate; one
    that fails gives it back (`on_error="keep"`: keeps it).
    """

    __slots__ = ()

    def settle(self, actual: int) -> None:
        """Say what was really used: the rest is given back, or the excess charged, even past the
        limit. Rules with a fixed cost keep it. Only the first settling counts.

        Raises `DataError` for anything but an integer from 0 to 1,000,000,000, and what the store
        raises if `on_store_error` is "raise"; the estimate then stays taken.
        """
        finished(self._settle(actual))

    def cancel(self) -> None:
        """Give all of it back, by every rule. Raises as `settle` does."""
        finished(self._cancel())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        finished(self._leave(error is not None))
