"""The off switch: `THROTTLED_ENABLED=0`, and `disabled()` for tests of code that is limited.

Calls do not ask whether limiting is on, which each of them would pay for: every `Throttled` is
told when that changes.
"""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable
from contextlib import ContextDecorator
from functools import wraps
from typing import Any, ParamSpec, Protocol, TypeVar, cast
from weakref import WeakSet

from throttled._callables import is_async, name_of
from throttled._text import shown
from throttled.store.base import new_lock

P = ParamSpec("P")
R = TypeVar("R")

logger = logging.getLogger("throttled")

_VARIABLE = "THROTTLED_ENABLED"
_ON = ("", "1", "true", "yes", "on")
_OFF = ("0", "false", "no", "off")


class Switched(Protocol):
    """What the switch turns."""

    def _switch(self, enabled: bool) -> None: ...


def _by_environment() -> bool:
    """Whether the environment leaves limiting on."""
    value = os.environ.get(_VARIABLE, "")
    word = value.strip().lower()
    if word in _OFF:
        logger.warning("%s=%s: nothing is limited in this process", _VARIABLE, value)
        return False
    if word not in _ON:
        logger.warning(
            "Invalid %s: %s, must be one of %s; limits stay on",
            _VARIABLE,
            shown(value),
            ", ".join((*_OFF, *_ON[1:])),
        )
    return True


_lock = new_lock()
_throttles: WeakSet[Any] = WeakSet()
#: How many ask for limiting to be off.
_askers = 0 if _by_environment() else 1


def enabled() -> bool:
    """Whether calls are limited, as they are unless switched off."""
    return not _askers


def register(throttle: Switched) -> None:
    """Tell a `Throttled` how the switch stands, and from now on whenever it is turned."""
    with _lock:
        _throttles.add(throttle)
        throttle._switch(not _askers)


def _ask(more: int) -> None:
    global _askers
    # Told under the lock, or two threads that turn it at once could be heard in the wrong order.
    with _lock:
        was, _askers = _askers, _askers + more
        if bool(was) != bool(_askers):
            for throttle in list(_throttles):
                throttle._switch(not _askers)


def disabled() -> Disabled:
    """Switch all limits of this process off: a context manager and a decorator.

        with disabled():
            ...

        @disabled()
        async def test_the_endpoint(): ...

    Calls are admitted and count nothing, those of other threads and tasks included. May be nested;
    limits are on again after the outermost block.
    """
    return Disabled()


class Disabled(ContextDecorator):
    """What `disabled()` gives."""

    def __enter__(self) -> None:
        _ask(1)

    def __exit__(self, *_: object) -> None:
        _ask(-1)

    def __call__(self, func: Callable[P, R]) -> Callable[P, R]:  # type: ignore[override]
        """Switch limits off while a function or coroutine function runs; `TypeError` for others."""
        if inspect.iscoroutinefunction(func):

            @wraps(func)
            async def call(*args: P.args, **kwargs: P.kwargs) -> Any:
                with self:
                    return await func(*args, **kwargs)

            return cast("Callable[P, R]", call)
        if isinstance(func, type) or is_async(func) or inspect.isgeneratorfunction(func):
            # They would run, wholly or in part, when limits are on again.
            raise TypeError(
                f"disabled() decorates functions and coroutine functions, not {name_of(func)}; "
                f"use `with disabled():` inside."
            )
        return cast("Callable[P, R]", super().__call__(cast("Any", func)))
