"""Code of users around decisions: hooks, which wrap them; events and observers, which hear of them.

Hooks: the rules
----------------
* The first hook is the outermost: A before, B before, the decision, B after, A after.
* A hook cannot break a call. What it raises is logged; what `call_next` gave it stands, and if it
  had not called `call_next` yet, the call goes on as if the hook were not there.
* A decision is taken once. `call_next` gives the same result, or raises the same error, however
  often it is called.
* A result that a hook returns is the result of the call, whether or not it came of `call_next`.
  Whatever else it returns is logged, and what `call_next` gives stands.
* Errors of the decision reach hooks, which may let them pass or return a result instead.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from inspect import isawaitable
from time import perf_counter
from typing import Any, ClassVar

from throttled._callables import checked_callable, is_async, name_of
from throttled._text import shown
from throttled.exceptions import DataError
from throttled.once import Once
from throttled.result import RateLimitResult

__all__ = ["Event", "Hook", "HookContext", "Observer"]

logger = logging.getLogger("throttled")

_STORE_TYPES = {"MemoryStore": "memory", "RedisStore": "redis"}


def store_type_of(store: object) -> str:
    """What `HookContext.store_type` says of a store."""
    kind: Any = type(store)
    return _store_type(kind)


@lru_cache(maxsize=64)
def _store_type(kind: type) -> str:
    # By name: the class of a RedisStore is not loaded before it is used.
    names = [each.__name__ for each in kind.__mro__]
    known = (_STORE_TYPES[name] for name in names if name in _STORE_TYPES)
    return next(known, names[0].lower())


@dataclass(frozen=True, slots=True)
class HookContext:
    """What a hook is told of the call."""

    key: str
    cost: int
    #: The name of the algorithm, such as `"token_bucket"`.
    algorithm: str
    #: `"memory"`, `"redis"`, or the class name of another store in lower case.
    store_type: str


class AnyHook(ABC):
    """What hooks of both flavours are."""

    _asynchronous: ClassVar[bool]

    @abstractmethod
    def on_limit(self, call_next: Any, context: HookContext) -> Any: ...


class Hook(AnyHook):
    """Wraps every decision of a `Throttled(hooks=[...])`.

        class Timing(Hook):
            def on_limit(self, call_next, context):
                start = time.perf_counter()
                result = call_next()
                print(f"{context.key}: {result.limited} in {time.perf_counter() - start:.6f} s")
                return result

    A hook that raises is logged and passed over; see the rules at the top of this module. In a
    `Throttled` that waits, `call_next` returns when the wait is over. For async code there is
    `throttled.asyncio.Hook`.
    """

    _asynchronous = False

    @abstractmethod
    def on_limit(
        self, call_next: Callable[[], RateLimitResult], context: HookContext
    ) -> RateLimitResult:
        """Return what `call_next()` gives, or another result in its place."""


def run_hooks(
    hooks: Sequence[Hook], decide: Callable[[], RateLimitResult], context: HookContext
) -> RateLimitResult:
    """The result of a decision with hooks around it."""
    for hook in reversed(hooks):
        decide = partial(_passed, hook, Once(decide), context)
    return decide()


def _passed(hook: Hook, call_next: Once[RateLimitResult], context: HookContext) -> RateLimitResult:
    try:
        result: object = hook.on_limit(call_next, context)
    except Exception as error:
        if error is call_next.error:
            raise
        log_raised(hook, error)
    else:
        if isinstance(result, RateLimitResult):
            return result
        log_returned(hook, result)
    return call_next()


def log_raised(hook: AnyHook, error: Exception) -> None:
    """Log that a hook failed. Its call goes on."""
    logger.error("Hook %s failed and was passed over", name_of(type(hook)), exc_info=error)


def log_returned(hook: AnyHook, returned: object) -> None:
    """Log that a hook returned no result. Its call goes on."""
    logger.error(
        "Hook %s returned %s instead of a RateLimitResult and was passed over",
        name_of(type(hook)),
        shown(returned),
    )


def checked_hooks(hooks: object, asynchronous: bool) -> tuple[Any, ...]:
    """`hooks=` as a tuple; `DataError` names what is no hook for code of that flavour."""
    if hooks is None:
        return ()
    if isinstance(hooks, AnyHook | str | bytes) or not isinstance(hooks, Iterable):
        raise DataError(f"Invalid hooks: {shown(hooks)}, must be a list such as [MyHook()].")
    checked = tuple(hooks)
    for hook in checked:
        _check_hook(hook, asynchronous)
    return checked


def _check_hook(hook: object, asynchronous: bool) -> None:
    here = "throttled.asyncio" if asynchronous else "throttled"
    if isinstance(hook, type):
        why = f"is a class, must be an instance of {here}.Hook"
    elif not isinstance(hook, AnyHook):
        why = f"must be an instance of {here}.Hook"
    elif hook._asynchronous is not asynchronous:
        there = "throttled" if asynchronous else "throttled.asyncio"
        why = f"is a hook of {there}, must be an instance of {here}.Hook"
    elif not asynchronous and is_async(hook.on_limit):
        why = "has an async on_limit, must be an instance of throttled.Hook with a plain one"
    else:
        return
    raise DataError(f"Invalid hook: {shown(hook)} {why}.")


@dataclass(frozen=True, slots=True)
class Event:
    """What `on_allow`, `on_deny`, `on_error`, `on_wait` and observers are called with."""

    key: str
    cost: int
    #: The result of the call; None with `on_error` and `on_wait`, which have none.
    result: RateLimitResult | None
    #: Seconds: with `on_wait` how long the call is going to wait, else how long it has waited.
    wait: float
    #: With `on_error`, how the store failed; else None.
    error: Exception | None
    #: The `Throttled` that was called.
    throttle: Any
    #: Seconds that the stores took to decide, waiting not included; of calls decided at once, all
    #: of them together. 0 where nothing was decided: with `on_error` and `on_wait`, and of exempt
    #: keys.
    took: float = field(default=0.0, compare=False)


class Observer:
    """Hears of all calls of a `Throttled` of either flavour: `throttle.observe(observer)`.

        class Refusals(Observer):
            count = 0

            def decided(self, event):
                self.count += event.result.limited

    Override what is wanted. The methods are plain, in async code too. They are called in the path
    of the call, by any thread, and must not block. One that raises is logged, and changes nothing.
    """

    def decided(self, event: Event) -> None:
        """A call was admitted or refused: `on_allow` and `on_deny`. `event.result` says which."""

    def waits(self, event: Event) -> None:
        """A call is going to wait: `on_wait`."""

    def failed(self, event: Event) -> None:
        """A store could not decide a call, whatever is done instead: `on_error`."""


def checked_observer(observer: Any) -> Observer:
    """An observer; `DataError` for a class, for what is none, and for one with async methods."""
    if isinstance(observer, type) or not isinstance(observer, Observer):
        raise DataError(
            f"Invalid observer: {shown(observer)}, must be an instance of throttled.hooks.Observer."
        )
    for method in (observer.decided, observer.waits, observer.failed):
        if is_async(method):
            raise DataError(
                f"Invalid observer: {name_of(method)} is async, must be plain, in async code too."
            )
    return observer


class Stopwatch:
    """Adds up the seconds that its `with` blocks take."""

    __slots__ = ("_began", "seconds")

    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> None:
        self._began = perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds += perf_counter() - self._began


#: What an event is told to; in async code it may be a coroutine function.
Callback = Callable[[Event], Any]


class Events:
    """The callbacks of a `Throttled`, made by `checked_events`, and its observers.

    Each method tells of one event, the observers first. One that fails is logged, and changes
    nothing. What a method returns is None, or in async code what there is to await.
    """

    __slots__ = ("_asynchronous", "observers", "on_allow", "on_deny", "on_error", "on_wait")

    def __init__(
        self,
        asynchronous: bool,
        on_allow: Callback | None = None,
        on_deny: Callback | None = None,
        on_error: Callback | None = None,
        on_wait: Callback | None = None,
        observers: tuple[Observer, ...] = (),
    ) -> None:
        self._asynchronous = asynchronous
        self.on_allow = on_allow
        self.on_deny = on_deny
        self.on_error = on_error
        self.on_wait = on_wait
        self.observers = observers

    def heard_by(self, observer: Observer) -> Events:
        """The same with one more observer, if it is not among them."""
        if any(observer is each for each in self.observers):
            return self
        callbacks = self.on_allow, self.on_deny, self.on_error, self.on_wait
        return Events(self._asynchronous, *callbacks, (*self.observers, observer))

    @property
    def hear_errors(self) -> bool:
        """Whether anybody listens to `failed`."""
        return self.on_error is not None or bool(self.observers)

    def decided(
        self,
        throttle: Any,
        key: str,
        cost: int,
        result: RateLimitResult,
        waited: float = 0.0,
        took: float = 0.0,
    ) -> Awaitable[None] | None:
        """A call was admitted or refused, after waiting and after deciding for so many seconds."""
        callback = self.on_deny if result.limited else self.on_allow
        if callback is None and not self.observers:
            return None
        event = Event(key, cost, result, waited, None, throttle, took)
        for observer in self.observers:
            _observe(observer.decided, event)
        return self._tell(callback, event)

    def failed(
        self, throttle: Any, key: str, cost: int, error: Exception, waited: float = 0.0
    ) -> Awaitable[None] | None:
        """A store could not decide a call, whatever is done instead."""
        event = Event(key, cost, None, waited, error, throttle)
        for observer in self.observers:
            _observe(observer.failed, event)
        return self._tell(self.on_error, event)

    def waits(self, throttle: Any, key: str, cost: int, wait: float) -> Awaitable[None] | None:
        """A call is going to wait for so many seconds."""
        event = Event(key, cost, None, wait, None, throttle)
        for observer in self.observers:
            _observe(observer.waits, event)
        return self._tell(self.on_wait, event)

    def _tell(self, callback: Callback | None, event: Event) -> Awaitable[None] | None:
        if callback is None:
            return None
        try:
            said = callback(event)
        except Exception as error:
            _log_callback(callback, error)
            return None
        return _heard(callback, said) if self._asynchronous and isawaitable(said) else None


def _observe(method: Callable[[Event], None], event: Event) -> None:
    try:
        method(event)
    except Exception as error:
        logger.error("Observer %s failed", name_of(method), exc_info=error)


async def _heard(callback: Callback, said: Awaitable[Any]) -> None:
    try:
        await said
    except Exception as error:
        _log_callback(callback, error)


def _log_callback(callback: Callback, error: Exception) -> None:
    logger.error("Event callback %s failed", name_of(callback), exc_info=error)


def checked_events(
    asynchronous: bool,
    *,
    on_allow: object = None,
    on_deny: object = None,
    on_error: object = None,
    on_wait: object = None,
) -> Events | None:
    """The callbacks given; None if there are none, so that nothing has to be done for them.

    Raises `DataError` for what cannot be called, and for a coroutine function in sync code.
    """
    given = {"on_allow": on_allow, "on_deny": on_deny, "on_error": on_error, "on_wait": on_wait}
    callbacks: dict[str, Any] = {name: each for name, each in given.items() if each is not None}
    for name, callback in callbacks.items():
        checked_callable(name, callback, asynchronous)
    return Events(asynchronous, **callbacks) if callbacks else None
