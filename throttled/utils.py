"""Measure how fast a call is: `Benchmark`."""

from __future__ import annotations

import sys
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from operator import itemgetter
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from throttled._text import shown
from throttled.exceptions import DataError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

__all__ = ["Benchmark"]

R = TypeVar("R")

_BAR_AFTER: Final = 1.0  # seconds of running before a progress bar appears
_BAR_EVERY: Final = 0.1  # seconds between two looks at the progress


class Benchmark:
    """Call a function many times, print what it took, and return the results in call order.

    `serial` and `concurrent` (threads) take a function, `async_serial` and `async_concurrent`
    (tasks) a coroutine function. Latency is the mean time of one call in milliseconds,
    throughput counts calls per second of the whole run. An exception of the function ends the
    run and is raised. A run of more than a second shows a progress bar when rich is installed
    and stdout is a terminal.
    """

    def serial(self, task: Callable[..., R], batch: int, *args: Any, **kwargs: Any) -> list[R]:
        """Call `task(*args, **kwargs)` `batch` times, one after the other.

        Raises:
            DataError: `batch` is not a whole number of at least 1.
        """
        run = _Run[R](batch)
        with run.measured():
            while (index := run.take()) is not None:
                begin = perf_counter_ns()
                result = task(*args, **kwargs)
                run.note(index, begin, result)
        return run.results()

    def concurrent(
        self, task: Callable[..., R], batch: int, workers: int = 32, *args: Any, **kwargs: Any
    ) -> list[R]:
        """Call `task(*args, **kwargs)` `batch` times from `workers` threads.

        Raises:
            DataError: `batch` or `workers` is not a whole number of at least 1.
        """
        run = _Run[R](batch, workers)

        def work() -> None:
            while (index := run.take()) is not None:
                begin = perf_counter_ns()
                try:
                    result = task(*args, **kwargs)
                except BaseException:
                    run.stop()  # so that the other workers end as well
                    raise
                run.note(index, begin, result)

        with run.measured(), ThreadPoolExecutor(workers) as pool:
            futures = [pool.submit(work) for _ in range(min(workers, batch))]
            try:
                for future in futures:
                    future.result()
            finally:
                run.stop()  # interrupted: leaving the pool waits for its threads
        return run.results()

    async def async_serial(
        self, task: Callable[..., Awaitable[R]], batch: int, *args: Any, **kwargs: Any
    ) -> list[R]:
        """Await `task(*args, **kwargs)` `batch` times, one after the other.

        Raises:
            DataError: `batch` is not a whole number of at least 1.
        """
        run = _Run[R](batch)
        with run.measured():
            while (index := run.take()) is not None:
                begin = perf_counter_ns()
                result = await task(*args, **kwargs)
                run.note(index, begin, result)
        return run.results()

    async def async_concurrent(
        self,
        task: Callable[..., Awaitable[R]],
        batch: int,
        workers: int = 32,
        *args: Any,
        **kwargs: Any,
    ) -> list[R]:
        """Await `task(*args, **kwargs)` `batch` times from `workers` tasks, on asyncio or trio.

        Raises:
            DataError: `batch` or `workers` is not a whole number of at least 1.
        """
        import anyio  # late: `import throttled` should stay quick

        run = _Run[R](batch, workers)
        failures: list[Exception] = []

        async def work() -> None:
            while (index := run.take()) is not None:
                begin = perf_counter_ns()
                try:
                    result = await task(*args, **kwargs)
                except Exception as error:  # kept, for the group would raise it wrapped
                    failures.append(error)
                    group.cancel_scope.cancel()
                    return
                run.note(index, begin, result)

        with run.measured():
            async with anyio.create_task_group() as group:
                for _ in range(min(workers, batch)):
                    group.start_soon(work)
            if failures:
                raise failures[0]
        return run.results()


class _Run(Generic[R]):
    """One run: the calls still to make, what came of those made, and the clock around them."""

    def __init__(self, batch: int, workers: int = 1) -> None:
        _check_count("batch", batch)
        _check_count("workers", workers)
        self._batch = batch
        # Shared by threads without a lock: taking from a deque and appending to a list are whole.
        self._todo = deque(range(batch))
        self._done: list[tuple[int, int, R]] = []

    def take(self) -> int | None:
        """The number of the next call to make, None when there is none."""
        try:
            return self._todo.popleft()
        except IndexError:
            return None

    def note(self, index: int, begin: int, result: R) -> None:
        self._done.append((index, perf_counter_ns() - begin, result))

    def stop(self) -> None:
        """Let no further call be made."""
        self._todo.clear()

    def results(self) -> list[R]:
        return [result for _, _, result in sorted(self._done, key=itemgetter(0))]

    @contextmanager
    def measured(self) -> Generator[None, None, None]:
        with self._progress():
            begin = perf_counter_ns()
            yield
            wall = max(perf_counter_ns() - begin, 1)
        latency = sum(elapsed for _, elapsed, _ in self._done) / self._batch / 1e6
        print(
            f"✅ Total: {self._batch}, 🕒 Latency: {latency:.4f} ms/op, "
            f"🚀 Throughput: {self._batch / wall * 1e9:.0f} req/s"
        )

    @contextmanager
    def _progress(self) -> Generator[None, None, None]:
        if not sys.stdout.isatty() or find_spec("rich") is None:
            yield
            return
        over = threading.Event()
        # A thread that only looks on costs the measured calls nothing.
        bar = threading.Thread(target=self._draw, args=(over,), daemon=True)
        bar.start()
        try:
            yield
        finally:
            over.set()
            bar.join()

    def _draw(self, over: threading.Event) -> None:
        if over.wait(_BAR_AFTER):
            return
        from rich.progress import Progress  # optional, and slow to load

        with Progress(transient=True) as progress:
            bar = progress.add_task("", total=self._batch)
            while not over.wait(_BAR_EVERY):
                progress.update(bar, completed=len(self._done))


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise DataError(f"Invalid {name}: {shown(value)}, must be a whole number of at least 1.")
