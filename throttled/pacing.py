"""Iterators that hand out their items at the pace of a limit: what `Throttled.wrap` returns.

An item is taken from the source first and waits for its turn then, so that an exhausted source
costs nothing. If its turn is refused, or the wait is cancelled, the iterator keeps the item and
the next caller tries it again: nothing is lost. Several threads or tasks may take items at once,
as far as the source allows it.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from throttled._text import shown
from throttled.exceptions import DataError, LimitedError
from throttled.templates import Asked

T = TypeVar("T")


class Limiter(Protocol):
    """What pacing needs of a `Throttled`, of either flavour."""

    def _call(self, key: object, cost: object, timeout: object) -> tuple[str, Any, Any]:
        """The arguments of a call, checked."""
        ...

    def limit(self, key: str, cost: int, timeout: float) -> Any:
        """The result of a call; to be awaited in async code."""
        ...


class _Pacing(Generic[T]):
    """What both flavours share: the arguments, and the items that are kept."""

    _asynchronous: ClassVar[bool]

    __slots__ = ("_cost", "_held", "_key", "_throttle", "_timeout")

    def __init__(
        self,
        throttle: Limiter,
        key: str | None,
        cost: int | Callable[[T], Any],
        timeout: float,
    ) -> None:
        ask = Asked("cost", cost, self._asynchronous) if callable(cost) else None
        self._throttle = throttle
        self._key, fixed, _ = throttle._call(key, cost if ask is None else 1, timeout)
        self._cost: int | Asked = fixed if ask is None else ask
        self._timeout = timeout
        #: Items whose turn was refused, the oldest first.
        self._held: deque[T] = deque()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._throttle!r}>"


class Paced(_Pacing[T], Iterator[T]):
    """The items of an iterable, each after it has waited for its turn.

    Raises `LimitedError` for an item that cannot have one within the timeout, and for one whose
    cost never fits; the next `next` tries the same item again.
    """

    _asynchronous = False

    __slots__ = ("_source",)

    def __init__(
        self,
        throttle: Limiter,
        iterable: Iterable[T],
        key: str | None,
        cost: int | Callable[[T], int],
        timeout: float,
    ) -> None:
        """Raises `DataError` for a bad argument, and takes nothing."""
        super().__init__(throttle, key, cost, timeout)
        try:
            self._source = iter(iterable)
        except TypeError as error:
            why = "; throttled.asyncio takes async ones" * isinstance(iterable, AsyncIterable)
            raise _not_iterable(iterable, f"an iterable{why}") from error

    def __next__(self) -> T:
        item = self._take()
        try:
            cost = self._cost if isinstance(self._cost, int) else self._cost(item)
            result = self._throttle.limit(self._key, cost, self._timeout)
            if result.limited:
                raise LimitedError(result)
        except BaseException:
            self._held.append(item)
            raise
        return item

    def _take(self) -> T:
        with suppress(IndexError):
            return self._held.popleft()
        return next(self._source)

    def close(self) -> None:
        """End the iteration, and close the source's iterator if it can be closed."""
        source, self._source = self._source, iter(())
        self._held.clear()
        close = getattr(source, "close", None)
        if close is not None:
            close()


class AsyncPaced(_Pacing[T], AsyncIterator[T]):
    """The items of an iterable or async iterable, each after it has waited for its turn.

    Raises `LimitedError` for an item that cannot have one within the timeout, and for one whose
    cost never fits; the next `anext` tries the same item again.
    """

    _asynchronous = True

    __slots__ = ("_source",)

    def __init__(
        self,
        throttle: Limiter,
        iterable: Iterable[T] | AsyncIterable[T],
        key: str | None,
        cost: int | Callable[[T], Any],
        timeout: float,
    ) -> None:
        """Raises `DataError` for a bad argument, and takes nothing."""
        super().__init__(throttle, key, cost, timeout)
        self._source: Iterator[T] | AsyncIterator[T]
        try:
            if isinstance(iterable, AsyncIterable):
                self._source = aiter(iterable)
            else:
                self._source = iter(iterable)
        except TypeError as error:
            raise _not_iterable(iterable, "an iterable or an async iterable") from error

    async def __anext__(self) -> T:
        item = await self._take()
        try:
            cost = self._cost if isinstance(self._cost, int) else await self._cost.awaited(item)
            result = await self._throttle.limit(self._key, cost, self._timeout)
            if result.limited:
                raise LimitedError(result)
        except BaseException:
            self._held.append(item)
            raise
        return item

    async def _take(self) -> T:
        with suppress(IndexError):
            return self._held.popleft()
        source = self._source
        if isinstance(source, AsyncIterator):
            return await anext(source)
        try:
            return next(source)
        except StopIteration:
            raise StopAsyncIteration from None

    async def aclose(self) -> None:
        """End the iteration, and close the source's iterator if it can be closed."""
        source, self._source = self._source, iter(())
        self._held.clear()
        close = getattr(source, "aclose", None) or getattr(source, "close", None)
        closing: Any = None if close is None else close()
        if inspect.isawaitable(closing):
            await closing


def _not_iterable(value: object, what: str) -> DataError:
    return DataError(f"Invalid iterable: {shown(value)}, must be {what}.")
