"""How a client with a wrong guess settles: `python -m tests.contrib.settling`, in three minutes.

Eight tasks of an httpx client that believes in 100 requests a second ask, as fast as they may, a
local server that allows 20. Every kind of count meets every kind of headers.
"""

from __future__ import annotations

import asyncio
import time
from typing import get_args

import httpx

from tests.contrib.enforcing import Enforcing, Kind, Tells
from throttled import MemoryStore
from throttled.contrib.httpx import AsyncRateLimitTransport

SECONDS, SETTLED, TASKS = 50.0, 4.0, 8


async def measure(kind: Kind, tells: Tells) -> str:
    """One row of the table."""
    with Enforcing(kind, 20, 1.0, tells) as server:
        transport = AsyncRateLimitTransport("100/s", store=MemoryStore())
        async with httpx.AsyncClient(transport=transport) as http:
            until = time.monotonic() + SECONDS

            async def work() -> None:
                while time.monotonic() < until:
                    await http.get(server.url)

            await asyncio.gather(*[work() for _ in range(TASKS)])
        share, most, per_window = server.figures(SETTLED, SECONDS)
        first = sum(each.status == 429 for each in server.seen) - round(
            per_window * (SECONDS - SETTLED)
        )
    return f"| {kind:6} | {tells:7} | {share:7.1%} | {most} | {per_window:.2f} | {first} |"


async def main() -> None:
    print("| Count | Headers | Used | Most 429s in a window | 429s per window | While settling |")
    for kind in get_args(Kind):
        for row in await asyncio.gather(*[measure(kind, tells) for tells in get_args(Tells)]):
            print(row, flush=True)


if __name__ == "__main__":
    asyncio.run(main())
