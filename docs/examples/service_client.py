"""Limits of a service, as its clients use them: sync and async, one count for all.

`python -m docs.examples.service_client` starts a service of its own, in place of `throttled serve`.
What to copy is `Shop` and `summarise`.
"""

from __future__ import annotations

import asyncio
from typing import Any

import throttled.asyncio.service
import throttled.service
from throttled import Throttled
from throttled.asyncio import Throttled as AsyncThrottled
from throttled.exceptions import LimitedError
from throttled.service.serving import Running, Serving

#: What the service limits by; with `throttled serve`, this is the policy file.
POLICIES = {
    "orders": AsyncThrottled(quota="3/m", key_prefix="orders"),
    "tokens": AsyncThrottled(quota="10_000/m", key_prefix="tokens"),
}


class Shop:
    """Code that is not async. While the service is away, each process limits for itself."""

    def __init__(self, target: str) -> None:
        self._client = throttled.service.Client(target)
        self.orders: Throttled = self._client.policy(
            "orders", key="user:{user}", quota="3/m", on_store_error="local"
        )
        self.order = self.orders(self._order)

    def _order(self, user: int) -> str:
        return f"user {user} has ordered"

    def close(self) -> None:
        self._client.close()


async def summarise(tokens: Any, user: str) -> str:
    """Async code: what a model will use is estimated, and settled when it is known."""
    async with tokens.reserve(user, cost=4_000) as reservation:
        used = 1_250
        await reservation.settle(used)
    return f"{used} tokens, {(await tokens.peek(user)).remaining} left"


def shopping(target: str) -> None:
    shop = Shop(target)
    try:
        for _ in range(4):
            print(shop.order(user=7))
    except LimitedError as refused:
        result = refused.rate_limit_result
        assert result is not None
        print(f"refused by {result.rule}: again in {result.state.retry_after:.0f} s")
    finally:
        shop.close()


async def main() -> None:
    running = Running(Serving(POLICIES, listen="127.0.0.1:0", http=None, grace=1.0))
    await running.start()
    try:
        await asyncio.to_thread(shopping, running.address)
        async with throttled.asyncio.service.Client(running.address) as client:
            print(await summarise(client.policy("tokens"), "acme"))
            print((await client.policy("orders").limit("user:7")).limited)
    finally:
        await running.stop()


if __name__ == "__main__":
    asyncio.run(main())
