"""What can be known of a user's callable before it is called."""

from __future__ import annotations

import inspect
from typing import Any

from throttled._text import shown
from throttled.exceptions import DataError


def is_async(func: Any) -> bool:
    """Whether calling it gives something to await or to iterate with `async for`."""
    target = func if inspect.isroutine(func) else type(func).__call__
    return any(
        inspect.iscoroutinefunction(each) or inspect.isasyncgenfunction(each)
        for each in (func, target)
    )


def name_of(func: object) -> str:
    """A function's name for a message."""
    return getattr(func, "__qualname__", None) or shown(func)


def checked_callable(what: str, func: Any, asynchronous: bool) -> Any:
    """A callable that code of that flavour can use; `DataError` names what is none."""
    if not callable(func):
        raise DataError(f"Invalid {what}: {shown(func)}, must be a callable.")
    if not asynchronous and is_async(func):
        raise DataError(
            f"Invalid {what}: {name_of(func)} is async, must be a plain callable; "
            f"throttled.asyncio takes both."
        )
    return func
