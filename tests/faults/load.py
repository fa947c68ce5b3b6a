"""Callers that hammer a limit while something befalls its server, and what they saw."""

from __future__ import annotations

import asyncio
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

from tests.servers import wait_until
from throttled import Throttled
from throttled.asyncio import Throttled as AsyncThrottled
from throttled.asyncio import store as astore
from throttled.exceptions import StoreUnavailableError
from throttled.store import RedisStore

Flavour = Literal["threads", "tasks"]

#: Without refusals that the server is not asked for.
OPTIONS = {"LOCAL_DENY_SECONDS": 0}

#: What an error of a store says of the call, by words of its text; without any, it was not sent.
_KINDS = {
    "may have been counted": "unknown",
    "is left alone": "left alone",
    "refused the call": "refused",
    "script failed": "refused",
}
#: In the order of the tables. Only the first may have been counted; the last was not even tried.
ERRORS = ("unknown", "refused", "not sent", "left alone")


def kind_of(error: StoreUnavailableError) -> str:
    """What an error says of the call: one of `ERRORS`."""
    return next((kind for words, kind in _KINDS.items() if words in str(error)), "not sent")


def store_of(url: str, asynchronous: bool, **options: Any) -> Any:
    """A store for threads or for tasks, each call of which reaches the server, refused ones too."""
    kind = astore.RedisStore if asynchronous else RedisStore
    return kind(url, {**OPTIONS, **options})


class Seen(NamedTuple):
    """How one call went."""

    at: float  # when it ended, by time.monotonic
    took: float
    kind: str  # the result's source, or what the error says
    admitted: bool


@dataclass
class Figures:
    """What the callers of one limit saw."""

    #: Calls, and those admitted, by source or kind of error.
    calls: Counter[str] = field(default_factory=Counter)
    admitted: Counter[str] = field(default_factory=Counter)
    #: Seconds: the longest call, and the longest time without a decision of the server.
    longest: float = 0.0
    gap: float = 0.0

    @classmethod
    def of(cls, seen: Iterable[Seen]) -> Figures:
        figures = cls()
        last: float | None = None
        for call in sorted(seen):
            figures.calls[call.kind] += 1
            figures.admitted[call.kind] += call.admitted
            figures.longest = max(figures.longest, call.took)
            if call.kind == "server":
                figures.gap = max(figures.gap, 0.0 if last is None else call.at - last)
                last = call.at
        return figures

    @property
    def unknown(self) -> int:
        return self.calls["unknown"]

    def __add__(self, other: Figures) -> Figures:
        return Figures(
            self.calls + other.calls,
            self.admitted + other.admitted,
            max(self.longest, other.longest),
            max(self.gap, other.gap),
        )


class Load(ABC):
    """So many workers, each of which calls, notes what comes of it, pauses, and calls again.

    The quota is a number of calls that as good as never comes back, on each of the keys, of which
    the workers take turns. The load closes the store.
    """

    flavour: ClassVar[Flavour]
    asynchronous: ClassVar[bool]
    throttled: ClassVar[Any]

    def __init__(
        self,
        store: Any,
        quota: int,
        keys: Sequence[str],
        *,
        policy: str = "raise",
        key_prefix: str = "throttled",
        workers: int = 8,
        pause: float = 0.004,
    ) -> None:
        self.quota = quota
        self.keys = keys
        self.policy = policy
        self.store = store
        self.limiter = self.throttled(
            quota=f"1/d burst {quota}",
            store=store,
            key_prefix=key_prefix,
            on_store_error=policy,
        )
        self.seen: list[Seen] = []
        self.left_behind: list[str] = []
        #: What the server has counted at the end.
        self.counted = 0
        self._workers = workers
        self._pause = pause
        self._errors: list[BaseException] = []
        self._served_at = 0.0

    def start(self) -> None:
        self._ending = False
        self._begin()

    def stop(self) -> None:
        """Let the workers end, look at the server's count, and close the store.

        Raises what ended a worker before its time.
        """
        self._ending = True
        self._end()
        if self._errors:
            raise self._errors[0]

    @abstractmethod
    def _begin(self) -> None: ...

    @abstractmethod
    def _end(self) -> None: ...

    def _thread(self, work: Callable[..., None], *args: Any) -> threading.Thread:
        """A thread that has started, and whose error is kept."""

        def run() -> None:
            try:
                work(*args)
            except BaseException as error:
                self._errors.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    def served(self, since: float) -> bool:
        """Whether the server has decided a call that ended after an instant."""
        return self._served_at > since

    def await_service(self, since: float) -> float:
        """Wait until the server decides again: that took so many seconds since an instant."""
        wait_until(lambda: self.served(since), "a decision of the server")
        seen = self.seen.copy()
        return min(each.at for each in seen if each.kind == "server" and each.at > since) - since

    def figures(self) -> Figures:
        return Figures.of(self.seen.copy())

    def _note(self, started: float, outcome: Any) -> None:
        now = time.monotonic()
        if isinstance(outcome, StoreUnavailableError):
            self.seen.append(Seen(now, now - started, kind_of(outcome), False))
            return
        self.seen.append(Seen(now, now - started, outcome.source, outcome.allowed))
        if outcome.source == "server":
            self._served_at = now

    def _spent(self, states: Iterable[Any]) -> None:
        self.counted = sum(self.quota - state.remaining for state in states)


class Threads(Load):
    """Threads that share a store."""

    flavour = "threads"
    asynchronous = False
    throttled = Throttled

    def _begin(self) -> None:
        self._threads = [self._thread(self._work, number) for number in range(self._workers)]

    def _work(self, number: int) -> None:
        limiter, keys = self.limiter, self.keys
        while not self._ending:
            number += 1
            started = time.monotonic()
            try:
                outcome: Any = limiter.limit(keys[number % len(keys)])
            except StoreUnavailableError as error:
                outcome = error
            self._note(started, outcome)
            time.sleep(self._pause)

    def _end(self) -> None:
        for thread in self._threads:
            thread.join()
        self._spent([self.limiter.peek(key) for key in self.keys])
        self.store.close()


class Tasks(Load):
    """Tasks of an event loop, which has a thread to itself."""

    flavour = "tasks"
    asynchronous = True
    throttled = AsyncThrottled

    def _begin(self) -> None:
        self._started = threading.Event()
        self._carrier = self._thread(lambda: asyncio.run(self._run()))
        self._started.wait()

    def _end(self) -> None:
        self._carrier.join()

    def within(self, work: Coroutine[Any, Any, Any]) -> Any:
        """What a coroutine comes to on the event loop of the load."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._started.set()
        async with asyncio.TaskGroup() as workers:
            for number in range(self._workers):
                workers.create_task(self._work(number))
        self._spent([await self.limiter.peek(key) for key in self.keys])
        await self.store.close()
        await asyncio.sleep(0)
        mine = asyncio.current_task()
        self.left_behind = [repr(task) for task in asyncio.all_tasks() if task is not mine]

    async def _work(self, number: int) -> None:
        limiter, keys = self.limiter, self.keys
        while not self._ending:
            number += 1
            started = time.monotonic()
            try:
                outcome: Any = await limiter.limit(keys[number % len(keys)])
            except StoreUnavailableError as error:
                outcome = error
            self._note(started, outcome)
            await asyncio.sleep(self._pause)


FLAVOURS: tuple[type[Load], ...] = (Threads, Tasks)
