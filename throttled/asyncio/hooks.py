"""Hooks of async code. Their rules are those of `throttled.hooks`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from throttled.hooks import AnyHook, Event, HookContext, Observer, log_raised, log_returned
from throttled.once import AsyncOnce
from throttled.result import RateLimitResult

__all__ = ["Event", "Hook", "HookContext", "Observer"]


class Hook(AnyHook):
    """Wraps every decision of an async `Throttled(hooks=[...])`.

        class Timing(Hook):
            async def on_limit(self, call_next, context):
                start = time.perf_counter()
                result = await call_next()
                print(f"{context.key}: {result.limited} in {time.perf_counter() - start:.6f} s")
                return result

    What `throttled.Hook` says holds here too. A decision that was cancelled, such as by a timeout
    that the hook has set, gave back what it took: `call_next` may be called again.
    """

    _asynchronous = True

    @abstractmethod
    async def on_limit(
        self, call_next: Callable[[], Awaitable[RateLimitResult]], context: HookContext
    ) -> RateLimitResult:
        """Return what `await call_next()` gives, or another result in its place."""


async def run_hooks(
    hooks: Sequence[Hook], decide: Callable[[], Awaitable[RateLimitResult]], context: HookContext
) -> RateLimitResult:
    """The result of a decision with hooks around it."""
    for hook in reversed(hooks):
        decide = partial(_passed, hook, AsyncOnce(decide), context)
    return await decide()


async def _passed(
    hook: Hook, call_next: AsyncOnce[RateLimitResult], context: HookContext
) -> RateLimitResult:
    try:
        result: object = await hook.on_limit(call_next, context)
    except Exception as error:
        if error is call_next.error:
            raise
        log_raised(hook, error)
    else:
        if isinstance(result, RateLimitResult):
            return result
        log_returned(hook, result)
    return await call_next()
