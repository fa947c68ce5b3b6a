"""Work that is done once, however often and from wherever it is asked for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from math import inf
from threading import Lock
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Once(Generic[T]):
    """Call it for what a function returns: it runs at the first call, and is not run again.

    Further calls get the same value, or the same error. Calls from other threads wait meanwhile.
    """

    __slots__ = ("_done", "_lock", "_value", "_work", "error")

    _value: T

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._done = False
        self._lock = Lock()
        #: What the work raised.
        self.error: BaseException | None = None

    def __call__(self) -> T:
        with self._lock:
            if not self._done:
                self._done = True
                try:
                    self._value = self._work()
                except BaseException as error:
                    self.error = error
        if self.error is not None:
            raise self.error
        return self._value


class AsyncOnce(Generic[T]):
    """The same for async work and the tasks of one event loop: `await once()`.

    If the task that does the work is cancelled meanwhile, the work was not done: whoever asks
    next begins it anew, and those who wait already take it over.
    """

    __slots__ = ("_cut", "_end", "_running", "_value", "_work", "done", "error")

    _value: T

    def __init__(self, work: Callable[[], Awaitable[T]]) -> None:
        self._work = work
        self._running = False
        # Set at the end of the run that is under way; made when somebody waits for it.
        self._end: Any = None
        self._cut: BaseException | None = None  # the cancellation that ended the last run
        #: Whether it is known what the work comes to.
        self.done = False
        #: What the work raised.
        self.error: BaseException | None = None

    async def __call__(self) -> T:
        while self._running:
            await self._others()
        if not self.done:
            await self._run()
        if self.error is not None:
            raise self.error
        return self._value

    async def _others(self) -> None:
        from anyio import Event  # here, so that sync code does not load it

        if self._end is None:
            self._end = Event()
        await self._end.wait()

    async def _run(self) -> None:
        # Code that fails while it is being cancelled loses sight of that; the task must not.
        if self._cut is not None and _cancelling():
            raise self._cut
        self._running = True
        try:
            self._value = await self._work()
            self.done = True
        except (Exception, KeyboardInterrupt, SystemExit) as error:
            self.error = error
            self.done = True
        except BaseException as cut:
            self._cut = cut
            raise
        finally:
            self._running = False
            if self._end is not None:
                self._end.set()
                self._end = None


def _cancelling() -> bool:
    """Whether the task that asks is being cancelled, and not just was in a scope that it left."""
    import asyncio

    import anyio

    if anyio.current_effective_deadline() == -inf:
        return True
    if anyio.get_cancelled_exc_class() is not asyncio.CancelledError:
        return False
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
