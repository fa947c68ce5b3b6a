"""Contexts of gRPC handlers in `grpc.aio` that tell of limits; needs no gRPC itself.

An abort in `grpc.aio` is sent from within, with what trailing metadata there is then. So handlers
are given a context that first lets the call leave its limits, and adds what is told of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from throttled.contrib.headers import FIELDS, Header, merge
from throttled.store.policy import Flow, afinished

Metadata = tuple[tuple[str, str | bytes], ...]


class Passing(Protocol):
    """A call on its way through its limits."""

    def leave(self, context: Any, code: Any = None) -> Flow[None]:
        """Settle what counts by the code, and set the trailing metadata."""
        ...

    async def read(self, message: Any, context: Any) -> None:
        """Take what a message costs that was read, or abort."""
        ...


def merged(existing: Iterable[tuple[str, Any]], told: list[Header]) -> Metadata:
    """Trailing metadata with the headers of limits, which are merged with those that are there."""
    fields: list[Header] = []
    others: list[tuple[str, Any]] = []
    for name, value in existing:
        (fields if name in FIELDS else others).append((name, value))
    return (*others, *[(name.lower(), value) for name, value in merge(fields, told)])


class Context:
    """The context of a handler of `grpc.aio`, whose abort tells of the limits."""

    def __init__(self, context: Any, passing: Passing) -> None:
        self._context = context
        self._passing = passing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


class AsyncContext(Context):
    async def abort(self, code: Any, details: str = "", trailing_metadata: Any = ()) -> None:
        if trailing_metadata:
            self._context.set_trailing_metadata(trailing_metadata)
        await afinished(self._passing.leave(self._context, code))
        await self._context.abort(code, details)

    async def abort_with_status(self, status: Any) -> None:
        await self.abort(status.code, status.details, status.trailing_metadata)

    async def read(self) -> Any:
        message = await self._context.read()
        await self._passing.read(message, self)
        return message


class ThreadContext(Context):
    """That of a plain handler, which does not tell what it was told."""

    def __init__(self, context: Any, passing: Passing, drive: Callable[[Flow[None]], None]) -> None:
        super().__init__(context, passing)
        self._drive = drive
        self._code: Any = None
        self._trailing: Any = ()

    def abort(self, code: Any, details: str = "", trailing_metadata: Any = ()) -> None:
        if trailing_metadata:
            self.set_trailing_metadata(trailing_metadata)
        self._drive(self._passing.leave(self, code))
        self._context.abort(code, details)

    def code(self) -> Any:
        return self._code

    def set_code(self, code: Any) -> None:
        self._code = code
        self._context.set_code(code)

    def trailing_metadata(self) -> Any:
        return self._trailing

    def set_trailing_metadata(self, trailing_metadata: Any) -> None:
        self._trailing = trailing_metadata
        self._context.set_trailing_metadata(trailing_metadata)
