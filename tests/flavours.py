"""Sync and async code, on asyncio and on trio, behind one interface."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

import throttled.asyncio.hooks as async_hooks
from tests.failing import FailingStore, LocalFailingStore
from throttled import MemoryStore, RateLimitResult, RateLimitState, Throttled, hooks
from throttled.asyncio import Throttled as AsyncThrottled
from throttled.hooks import HookContext
from throttled.testing import FakeClock

#: What a hook does, written once for both flavours: `call_next` is awaited in either.
Body = Callable[[Callable[[], Awaitable[Any]], HookContext], Coroutine[Any, Any, Any]]


def driven(running: Coroutine[Any, Any, Any]) -> Any:
    """What a coroutine comes to that has nothing to wait for."""
    try:
        running.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("sync code cannot wait for that")


class PlainHook(hooks.Hook):
    def __init__(self, body: Body) -> None:
        self.body = body

    def on_limit(self, call_next: Callable[[], Any], context: HookContext) -> Any:
        async def call() -> Any:
            return call_next()

        return driven(self.body(call, context))


class AwaitedHook(async_hooks.Hook):
    def __init__(self, body: Body) -> None:
        self.body = body

    async def on_limit(
        self, call_next: Callable[[], Awaitable[Any]], context: HookContext
    ) -> RateLimitResult:
        answer: RateLimitResult = await self.body(call_next, context)
        return answer


class Flavour:
    """Sync, or async on one backend."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.asynchronous = name != "sync"

    def hook(self, body: Body) -> Any:
        return AwaitedHook(body) if self.asynchronous else PlainHook(body)

    def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not self.asynchronous:
            return function(*args, **kwargs)
        return anyio.run(partial(function, *args, **kwargs), backend=self.name)

    @property
    def made(self) -> Any:
        """The `Throttled` of this flavour."""
        return AsyncThrottled if self.asynchronous else Throttled

    def limiter(self, **arguments: Any) -> Any:
        """Two a minute, on a clock of its own."""
        arguments.setdefault("store", MemoryStore(clock=FakeClock()))
        arguments.setdefault("quota", "2/m")
        return self.made(**arguments)

    def failing_store(self) -> Any:
        """A store that fails when told to."""
        return LocalFailingStore() if self.asynchronous else FailingStore()


@pytest.fixture(params=["sync", "asyncio", "trio"])
def flavour(request: pytest.FixtureRequest) -> Flavour:
    return Flavour(request.param)


def faults(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """What the library logged."""
    return [record for record in caplog.records if record.name == "throttled"]


CONTEXT = HookContext("user:1", 2, "gcra", "memory")


def result(limited: bool = False) -> RateLimitResult:
    return RateLimitResult(limited, RateLimitState(10, 9, 1.0, 0.0))


def passed(flavour: Flavour, bodies: list[Body], decide: Callable[[], Any]) -> Any:
    """What a decision with hooks around it comes to."""
    made = [flavour.hook(body) for body in bodies]
    if not flavour.asynchronous:
        return hooks.run_hooks(made, decide, CONTEXT)

    async def adecide() -> Any:
        await checkpoint()
        return decide()

    return flavour.run(async_hooks.run_hooks, made, adecide, CONTEXT)


class Decision:
    """One that counts how often it is taken."""

    def __init__(self, answer: Any = None) -> None:
        self.answer = result() if answer is None else answer
        self.taken = 0

    def __call__(self) -> Any:
        self.taken += 1
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


async def raises_before(call_next: Any, context: HookContext) -> Any:
    raise ZeroDivisionError("before")


async def raises_after(call_next: Any, context: HookContext) -> Any:
    await call_next()
    raise ZeroDivisionError("after")


async def returns_nothing(call_next: Any, context: HookContext) -> Any:
    await call_next()


async def returns_nothing_at_once(call_next: Any, context: HookContext) -> Any:
    return "admitted"


async def passes(call_next: Any, context: HookContext) -> Any:
    return await call_next()


FAULTY = [raises_before, raises_after, returns_nothing, returns_nothing_at_once]
