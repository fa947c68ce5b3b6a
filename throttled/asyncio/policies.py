"""Limits that a file says, for async code: the names of `throttled.policies`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import anyio

from throttled._closing import AsyncClosing
from throttled.asyncio.store import RedisStore
from throttled.asyncio.throttled import Throttled
from throttled.exceptions import SetUpError
from throttled.policies import OPERATIONS, Override, PolicySpec, Tier, described
from throttled.policies.base import BasePolicies
from throttled.policies.watching import SETTLED, checked_every
from throttled.store.base import AsyncStore, Store

__all__ = ["OPERATIONS", "Override", "Policies", "PolicySpec", "Tier", "described", "load"]


class Policies(BasePolicies[Throttled], AsyncClosing):
    """The policies of a file: `policies["api"]` is a `throttled.asyncio.Throttled`.

    See `throttled.policies.Policies`. A program that has an event loop may run `watching()` as a
    task, in place of the thread of `watch()`. `close()` is awaited; `async with` does it.
    """

    _kind = Throttled
    _redis = RedisStore

    def __init__(
        self, path: str | os.PathLike[str], *, store: Store | AsyncStore | None = None
    ) -> None:
        #: What wakes those who run `watching`.
        self._wakers: dict[object, Callable[[], object]] = {}
        super().__init__(path, store=store)

    async def watching(self, every: float = 1.0) -> None:
        """Reload when the file changes, looking at it every so many seconds, until cancelled.

            loop.add_signal_handler(signal.SIGHUP, policies.touch)
            async with asyncio.TaskGroup() as group:
                group.create_task(policies.watching())

        The file is read in a thread, and calls go on meanwhile. See `watch`.
        """
        every = checked_every(every)
        in_loop = _from_anywhere()
        me = object()
        wait = every
        try:
            while True:
                touched = anyio.Event()

                def wake(touched: anyio.Event = touched) -> None:
                    in_loop(touched.set)

                self._wakers[me] = wake
                with anyio.move_on_after(wait):
                    await touched.wait()
                soon = await anyio.to_thread.run_sync(self._look, touched.is_set())
                wait = min(every, SETTLED) if soon else every
                for store in self._due():
                    await _close(store)
        finally:
            self._wakers.pop(me, None)

    def touch(self) -> None:
        super().touch()
        for wake in list(self._wakers.values()):
            with suppress(RuntimeError):  # its loop has ended
                wake()

    async def close(self) -> None:
        """Stop watching, and close the stores of the file. A later call opens them anew."""
        for store in self._ended():
            await _close(store)


async def _close(store: Any) -> None:
    if isinstance(store, Store):
        store.close()
    else:
        with suppress(SetUpError):  # under trio, where it cannot have been used
            await store.close()


def _from_anywhere() -> Callable[[Callable[[], Any]], object]:
    """What lets this event loop call a function, whoever asks: other threads, signal handlers."""
    try:
        return asyncio.get_running_loop().call_soon_threadsafe
    except RuntimeError:
        from trio.lowlevel import current_trio_token

        return current_trio_token().run_sync_soon


def load(
    path: str | os.PathLike[str],
    *,
    store: Store | AsyncStore | None = None,
    watch: float | None = None,
) -> Policies:
    """The policies of a .toml or .json file: `await load("policies.toml")["api"].limit(key)`.

    Not awaited itself, so that decorators may use it. See `throttled.load`.
    """
    policies = Policies(path, store=store)
    if watch is not None:
        policies.watch(watch)
    return policies
