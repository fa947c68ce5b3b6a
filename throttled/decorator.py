"""What decorating a function with a `Throttled` makes of it.

What it asks for is read from each call (see `throttled.templates`) and taken before the function
runs. A generator takes it when its iteration starts or, with `per="item"`, once for every item:
after the item was produced and before it is handed out, so that who is refused has paid for
exactly the items that he has.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import aclosing, closing
from functools import wraps
from typing import Any, ParamSpec, Protocol, TypeVar, cast

from throttled._callables import is_async, name_of
from throttled._text import shown
from throttled.exceptions import DataError
from throttled.templates import Reader, reader

P = ParamSpec("P")
R = TypeVar("R")


class Limit(Protocol):
    """What decorators need of a `Throttled`, of either flavour."""

    @property
    def key(self) -> str | Callable[..., Any] | None: ...
    @property
    def cost(self) -> int | Callable[..., Any]: ...
    @property
    def per(self) -> str: ...

    def _pass(self, key: str, cost: int) -> Any:
        """Take the cost or raise `LimitedError`; to be awaited in async code."""


def limited(throttle: Limit, func: Callable[P, R]) -> Callable[P, R]:
    """The function, limited by a sync `Throttled`.

    Raises `DataError` for a `key`, `cost` or `per` that does not suit the function, and
    `TypeError` for what is no function, or async.
    """
    if isinstance(func, staticmethod | classmethod):
        method: Any = func
        return cast("Callable[P, R]", type(method)(limited(throttle, method.__func__)))
    if is_async(func):
        raise TypeError(
            f"{name_of(func)} is async and throttled.Throttled is not: "
            f"decorate it with throttled.asyncio.Throttled."
        )
    if not callable(func):
        raise TypeError(f"Throttled decorates functions, not {shown(func)}.")
    generates = _is_of(func, inspect.isgeneratorfunction)
    read = _reader(throttle, func, generates, asynchronous=False)
    if not generates:

        @wraps(func)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            key, cost = read(args, kwargs)
            throttle._pass(key, cost)
            return func(*args, **kwargs)

        return call

    generate = cast("Callable[P, Generator[Any, Any, Any]]", func)

    @wraps(func)
    def iterate(*args: P.args, **kwargs: P.kwargs) -> Generator[Any, Any, Any]:
        items = generate(*args, **kwargs)
        key, cost = read(args, kwargs)
        if throttle.per == "call":
            throttle._pass(key, cost)
            return (yield from items)
        # `yield from`, as PEP 380 spells it out, with something to do for each item.
        with closing(items):
            resume: Callable[[Any], Any] = items.send
            given: Any = None
            while True:
                try:
                    item = resume(given)
                except StopIteration as end:
                    return end.value
                throttle._pass(key, cost)
                try:
                    given = yield item
                    resume = items.send
                except GeneratorExit:
                    raise
                except BaseException as error:
                    resume, given = items.throw, error

    return cast("Callable[P, R]", iterate)


def alimited(throttle: Limit, func: Callable[P, R]) -> Callable[P, R]:
    """The coroutine function or async generator function, limited by an async `Throttled`.

    Raises `DataError` for a `key`, `cost` or `per` that does not suit the function, and
    `TypeError` for what is not async.
    """
    if isinstance(func, staticmethod | classmethod):
        method: Any = func
        return cast("Callable[P, R]", type(method)(alimited(throttle, method.__func__)))
    if not is_async(func):
        raise TypeError(
            f"{name_of(func)} is not async and throttled.asyncio.Throttled is: "
            f"decorate it with throttled.Throttled."
        )
    generates = _is_of(func, inspect.isasyncgenfunction)
    read = _reader(throttle, func, generates, asynchronous=True)
    if not generates:

        @wraps(func)
        async def call(*args: P.args, **kwargs: P.kwargs) -> Any:
            asked = read(args, kwargs)
            key, cost = asked if type(asked) is tuple else await asked
            await throttle._pass(key, cost)
            return await cast("Any", func)(*args, **kwargs)

        return cast("Callable[P, R]", call)

    generate = cast("Callable[P, AsyncGenerator[Any, Any]]", func)

    @wraps(func)
    async def iterate(*args: P.args, **kwargs: P.kwargs) -> AsyncGenerator[Any, Any]:
        async with aclosing(generate(*args, **kwargs)) as items:
            asked = read(args, kwargs)
            key, cost = asked if type(asked) is tuple else await asked
            if throttle.per == "call":
                await throttle._pass(key, cost)
            resume: Callable[[Any], Any] = items.asend
            given: Any = None
            while True:
                try:
                    item = await resume(given)
                except StopAsyncIteration:
                    return
                if throttle.per == "item":
                    await throttle._pass(key, cost)
                try:
                    given = yield item
                    resume = items.asend
                except GeneratorExit:
                    raise
                except BaseException as error:
                    resume, given = items.athrow, error

    return cast("Callable[P, R]", iterate)


def _reader(
    throttle: Limit, func: Callable[..., Any], generates: bool, asynchronous: bool
) -> Reader:
    if throttle.key is None:
        raise DataError(
            f"Invalid key: None, must be a string or a callable: pass key= to Throttled(...) to "
            f"decorate {name_of(func)}."
        )
    if throttle.per == "item" and not generates:
        raise DataError(
            f"Invalid per: 'item', {name_of(func)} is no {'async ' * asynchronous}generator "
            f"function: it takes per='call'."
        )
    return reader(throttle.key, throttle.cost, func, asynchronous)


def _is_of(func: Any, kind: Callable[[Any], bool]) -> bool:
    """Whether a callable is of that kind of function, or has a `__call__` that is."""
    return kind(func) or (not inspect.isroutine(func) and kind(type(func).__call__))
