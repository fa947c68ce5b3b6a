"""Limits with traffic of their own: something to see where there is nothing to watch yet."""

from __future__ import annotations

import asyncio
import random
from math import exp
from typing import Final

from throttled.asyncio.throttled import Throttled
from throttled.store.memory import MemoryStore

#: Seconds between two handfuls of calls.
_EVERY: Final = 0.05
#: Calls that wait at once.
_MOST_WAITING: Final = 100
_CALLERS: Final = 60


class Demo:
    """Four limits in memory, and callers that use them."""

    def __init__(self, seed: int = 0) -> None:
        store = MemoryStore()
        #: By name, as a dashboard takes them.
        self.limits: dict[str, Throttled] = {
            "api": Throttled(quota="4/s burst 12", using="gcra", store=store),
            "login": Throttled(quota="5/m", using="sliding_window_log", store=store),
            "search": Throttled(quota="10/s; 200/m", using="sliding_window", store=store),
            "reports": Throttled(quota="6/s burst 2", timeout=3, store=store),
        }
        #: Calls a second, by limit.
        self._rates = {"api": 45.0, "login": 3.0, "search": 25.0, "reports": 6.5}
        self._dice = random.Random(seed)
        self._waiting: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Call until cancelled."""
        try:
            while True:
                for name, rate in self._rates.items():
                    for _ in range(self._number(rate * _EVERY)):
                        await self._call(name)
                await asyncio.sleep(_EVERY)
        finally:
            for task in self._waiting:
                task.cancel()
            await asyncio.gather(*self._waiting, return_exceptions=True)

    def _number(self, mean: float) -> int:
        """How many calls come by chance, where so many come on average (Knuth's way)."""
        floor, product, number = exp(-mean), self._dice.random(), 0
        while product > floor:
            product *= self._dice.random()
            number += 1
        return number

    async def _call(self, name: str) -> None:
        if name != "reports":
            # A few callers make most of the calls.
            caller = int(self._dice.paretovariate(0.7)) % _CALLERS + 1
            await self.limits[name].limit(f"user:{caller}")
        elif len(self._waiting) < _MOST_WAITING:
            task = asyncio.ensure_future(self._wait(name))
            self._waiting.add(task)
            task.add_done_callback(self._waiting.discard)

    async def _wait(self, name: str) -> None:
        await self.limits[name].limit("nightly")
