"""Cancelling a call from outside."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio
import pytest


async def cancelled(call: Callable[[], Awaitable[object]]) -> None:
    """Make a call and cancel it while it waits. Of a deadline it would have known beforehand."""
    async with anyio.create_task_group() as group:

        async def cancel() -> None:
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()

        group.start_soon(cancel)
        await call()
        pytest.fail("it did not wait")
