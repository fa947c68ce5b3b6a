"""Stores as users write them, which fail when told to, for both flavours of `Throttled`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any

import pytest

from throttled import MemoryStore, Throttled
from throttled.asyncio import Throttled as AsyncThrottled
from throttled.exceptions import StoreUnavailableError
from throttled.store import AsyncStore, Store
from throttled.testing import FakeClock

#: `(policy, **arguments)` -> a store that fails, and a limiter on it.
Make = Callable[..., tuple[Any, Any]]

DOWN = "The store at example:1 did not answer"


class _Failing:
    """Counts in a memory of its own, behind what may fail."""

    def __init__(self, clock: Any = None) -> None:
        self.memory = MemoryStore(clock=clock)
        self.sleeper = self.memory.sleeper
        #: What every call raises.
        self.error: Exception | None = None
        #: What calls of a key come to.
        self.bad_keys: dict[str, Exception] = {}
        #: The methods that were called.
        self.asked: list[str] = []

    def fail(self, error: Exception | None = None) -> None:
        self.error = StoreUnavailableError(DOWN) if error is None else error

    def recover(self) -> None:
        self.error = None
        self.bad_keys = {}

    def _ask(self, name: str, *args: Any) -> Any:
        self.asked.append(name)
        if self.error is not None:
            raise self.error
        if name == "run_many":
            return [self._reply(*call) for call in args[0]]
        if name == "run":
            reply = self._reply(*args)
            if isinstance(reply, Exception):
                raise reply
            return reply
        return getattr(self.memory, name)(*args)

    def _reply(self, plan: Any, key: str, cost: int, patience: float) -> Any:
        if key in self.bad_keys:
            return self.bad_keys[key]
        reply = self.memory.run(plan, key, cost, patience)
        if reply[0] is not None:
            reply[0].store = self
            reply[0].source = "server"
        return reply


class FailingStore(_Failing, Store):
    def run(self, *args: Any) -> Any:
        return self._ask("run", *args)

    def run_many(self, calls: Sequence[Any]) -> list[Any]:
        replies: list[Any] = self._ask("run_many", calls)
        return replies

    def adjust(self, *args: Any) -> bool:
        return bool(self._ask("adjust", *args))

    def undo(self, *args: Any) -> bool:
        return bool(self._ask("undo", *args))

    def withdraw(self, *args: Any) -> None:
        self._ask("withdraw", *args)

    def arrived(self, *args: Any) -> None:
        self._ask("arrived", *args)

    def reset(self, *args: Any) -> None:
        self._ask("reset", *args)

    def close(self) -> None:
        self._ask("close")


class LocalFailingStore(FailingStore):
    """One that async code may call as well."""

    local = True


class AsyncFailingStore(_Failing, AsyncStore):
    async def run(self, *args: Any) -> Any:
        await asyncio.sleep(0)
        return self._ask("run", *args)

    async def run_many(self, calls: Sequence[Any]) -> list[Any]:
        await asyncio.sleep(0)
        replies: list[Any] = self._ask("run_many", calls)
        return replies

    async def adjust(self, *args: Any) -> bool:
        return bool(self._ask("adjust", *args))

    async def undo(self, *args: Any) -> bool:
        return bool(self._ask("undo", *args))

    async def withdraw(self, *args: Any) -> None:
        await asyncio.sleep(0)
        self._ask("withdraw", *args)

    async def arrived(self, *args: Any) -> None:
        self._ask("arrived", *args)

    async def reset(self, *args: Any) -> None:
        self._ask("reset", *args)

    async def close(self) -> None:
        self._ask("close")


class Flavour:
    """One flavour of `Throttled` and a kind of store for it, without `await`."""

    def __init__(self, made: Any, store: Any) -> None:
        self.made = made
        self._store = store
        self._runner = asyncio.Runner()

    def __str__(self) -> str:
        return f"{'async' if self.asynchronous else 'sync'}-{self._store.__name__}"

    @property
    def asynchronous(self) -> bool:
        return bool(self.made is AsyncThrottled)

    def store(self, clock: Any = None) -> Any:
        return self._store(clock)

    def limiter(self, store: Any, quota: str = "2/m", **arguments: Any) -> Any:
        return self.made(quota=quota, store=store, **arguments)

    def wait(self, value: Any) -> Any:
        """The value, awaited if it has to be."""
        return self._runner.run(value) if isinstance(value, Coroutine) else value

    def enter(self, throttle: Any) -> Any:
        """What `with throttle as result` gives."""
        if not self.asynchronous:
            with throttle as result:
                return result

        async def enter() -> Any:
            async with throttle as result:
                return result

        return self.wait(enter())

    def decorated(self, throttle: Any) -> Any:
        """Call a decorated function that returns "ran"."""
        if not self.asynchronous:
            return throttle(lambda: "ran")()

        async def function() -> str:
            return "ran"

        return self.wait(throttle(function)())

    def close(self) -> None:
        self._runner.close()


#: Flavour by name: the flavour and the store it is tried with.
FLAVOURS: dict[str, tuple[Any, Any]] = {
    "sync": (Throttled, FailingStore),
    "async": (AsyncThrottled, AsyncFailingStore),
    "async on a local store": (AsyncThrottled, LocalFailingStore),
}


@pytest.fixture(params=FLAVOURS)
def flavour(request: pytest.FixtureRequest) -> Iterator[Flavour]:
    flavour = Flavour(*FLAVOURS[request.param])
    yield flavour
    flavour.close()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def failing(flavour: Flavour, clock: FakeClock) -> Make:
    """Makes a store that fails already, and a limiter on it: two a minute."""

    def make(policy: Any, **arguments: Any) -> tuple[Any, Any]:
        store = flavour.store(clock)
        store.fail()
        return store, flavour.limiter(store, key="key", on_store_error=policy, **arguments)

    return make
