"""Tests that wait in real time, on a machine that now and then stands still.

Such a test (marked `realtime`, or `server`, for decisions have a timeout) that fails is run again,
up to four times, if meanwhile even a sleep of some milliseconds took many times as long: then it
has measured the machine. A test that fails where time went on fails. The summary names those that
were run again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread

#: How often a test may be run again.
RERUNS = 4
#: In seconds: how often to look, and how late a look is where time does not go on.
STEP, STILL = 0.005, 0.04


class Watch:
    """How long nothing went on, at most, while it watched."""

    def __init__(self) -> None:
        self.longest = 0.0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        self.longest = 0.0
        over = Event()
        thread = Thread(target=self._look, args=(over,), name="watch", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _look(self, over: Event) -> None:
        before = time.monotonic()
        while not over.wait(STEP):
            now = time.monotonic()
            self.longest = max(self.longest, now - before - STEP)
            before = now

    def stood_still(self) -> bool:
        return self.longest > STILL


WATCH = Watch()
