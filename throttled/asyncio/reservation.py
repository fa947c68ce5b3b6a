"""Reservations of async code."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Generator
from types import TracebackType
from typing import Any

import anyio

from throttled.reservation import BaseReservation
from throttled.store.policy import afinished

logger = logging.getLogger("throttled")

#: Seconds that giving back may take when the caller was cancelled.
_GIVE_BACK = 5.0


async def seen_through(work: Awaitable[Any], what: str) -> None:
    """Give something back though the caller is cancelled; `what` is logged if it takes too long."""
    with anyio.move_on_after(_GIVE_BACK, shield=True) as scope:
        await work
    if scope.cancelled_caught:
        logger.warning("%s within %g s", what, _GIVE_BACK)


class Reservation(BaseReservation):
    """A cost that was taken before it was known: see `throttled.Throttled.reserve`.

    `await reservation.settle(actual)` when it is known. A block that ends without that keeps the
    estimate; one that fails or is cancelled gives it back (`on_error="keep"`: keeps it).
    """

    __slots__ = ()

    async def settle(self, actual: int) -> None:
        """Say what was really used: see `throttled.reservation.Reservation.settle`."""
        await afinished(self._settle(actual))

    async def cancel(self) -> None:
        """Give all of it back, by every rule."""
        await afinished(self._cancel())

    async def _left(self, error: BaseException | None) -> None:
        leaving = afinished(self._leave(error is not None))
        await seen_through(leaving, "A reservation could not be given back")


class Reserving:
    """What `reserve` returns in async code: `async with` it, or await it for the `Reservation`."""

    __slots__ = ("_made", "_reserve")

    def __init__(self, reserve: Callable[[], Awaitable[Reservation]]) -> None:
        self._reserve = reserve
        self._made: Reservation | None = None

    def __await__(self) -> Generator[Any, Any, Reservation]:
        return self._reserve().__await__()

    async def __aenter__(self) -> Reservation:
        self._made = await self._reserve()
        return self._made

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._made is not None:
            await self._made._left(error)
