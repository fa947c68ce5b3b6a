"""What is new, sent as it comes: server-sent events.

A stream ends after a while and the browser takes it up again, so that a server which is about to
stop does not wait for viewers. There are so many streams at most.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

from starlette.responses import Response, StreamingResponse

from throttled.dashboard.guard import problem
from throttled.exceptions import BaseThrottledError

logger = logging.getLogger("throttled")

#: Streams at once.
MOST_STREAMS: Final = 64
#: Seconds that a stream lasts.
LASTING: Final = 20.0
#: Seconds after which one is given up whose other end has stopped reading.
_GRACE: Final = 10.0
#: Milliseconds after which a browser takes it up again.
_RETRY: Final = 250


def event(value: object) -> bytes:
    """An event that carries a value."""
    return b"data: %b\n\n" % json.dumps(value, allow_nan=False, separators=(",", ":")).encode()


class Streams:
    """The streams of all viewers."""

    def __init__(self) -> None:
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def answer(self, events: AsyncGenerator[bytes]) -> Response:
        """The answer that sends events for as long as they come, and no longer than it may."""
        if self._count >= MOST_STREAMS:
            return problem(503, "Too many are watching already.", retry_after="10")
        self._count += 1
        return _Stream(self._sent(events), self)

    async def _sent(self, events: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
        yield b"retry: %d\n\n" % _RETRY
        ends = time.monotonic() + LASTING
        async for each in events:
            yield each
            if time.monotonic() > ends:
                return

    def over(self) -> None:
        """A stream has ended."""
        self._count -= 1


class _Stream(StreamingResponse):
    def __init__(self, events: AsyncGenerator[bytes], streams: Streams) -> None:
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        super().__init__(events, headers=headers, media_type="text/event-stream")
        self._events = events
        self._streams = streams

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            # Where nobody reads, it waits to be read, and would be one of those few for ever.
            async with asyncio.timeout(LASTING + _GRACE):
                await super().__call__(scope, receive, send)
        except TimeoutError:
            pass
        finally:
            self._streams.over()
            sent: Any = self.body_iterator
            await sent.aclose()
            await self._events.aclose()


class Feed:
    """Looks once a second while anybody watches, and tells all of them."""

    def __init__(self, look: Callable[[], Awaitable[dict[str, Any]]], every: float = 1.0) -> None:
        self._look = look
        self._every = every
        self._viewers = 0
        self._task: asyncio.Task[None] | None = None
        self._latest: bytes | None = None
        self._news = asyncio.Event()

    async def events(self) -> AsyncGenerator[bytes]:
        """What is known, and then whatever is new."""
        self._join()
        try:
            while True:
                news = self._news
                if self._latest is not None:
                    yield self._latest
                await news.wait()
        finally:
            self._leave()

    def _join(self) -> None:
        self._viewers += 1
        if self._task is None or self._task.done():
            self._latest, self._news = None, asyncio.Event()
            self._task = asyncio.ensure_future(self._looking())

    def _leave(self) -> None:
        self._viewers -= 1
        if not self._viewers and self._task is not None:
            self._task.cancel()
            self._task = None

    async def _looking(self) -> None:
        while True:
            began = time.monotonic()
            told: dict[str, Any]
            try:
                told = {"stats": await self._look(), "error": None}
            except BaseThrottledError as error:
                told = {"stats": None, "error": str(error)}
            except Exception as error:
                logger.error("The dashboard could not look at its limits", exc_info=error)
                told = {"stats": None, "error": "Something failed, see the log."}
            self._latest = event({"at": time.time(), **told})
            news, self._news = self._news, asyncio.Event()
            news.set()
            await asyncio.sleep(max(began + self._every - time.monotonic(), self._every / 10))


async def ticks(every: float) -> AsyncIterator[float]:
    """The seconds since the last tick, so often."""
    last = time.monotonic()
    while True:
        await asyncio.sleep(every)
        now = time.monotonic()
        yield now - last
        last = now


async def ended(task: asyncio.Task[Any]) -> None:
    """Cancel a task, and wait for its end."""
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
