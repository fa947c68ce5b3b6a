"""A circuit breaker: a server that keeps failing is left alone for a while.

Closed: calls go to the server. After `FAILURES` failures in a row it opens: for about `PAUSE`
seconds nobody asks, so a call costs microseconds instead of a timeout, and a server that comes back
is not met by everybody at once (the pause is jittered). Then it is half open: one call is let
through as a probe, and closes it or opens it again.
"""

from __future__ import annotations

import logging
import random
import time
from threading import Lock

from throttled.store.base import Health, new_lock

logger = logging.getLogger("throttled")

#: So many failures in a row open it.
FAILURES = 3
#: Seconds that a server is left alone, give or take half of it.
PAUSE = 1.0


class Breaker:
    """The state of one server, as its callers found it. Instants are those of a monotonic clock.

    `where`: what messages begin with, such as "Redis at localhost:6379".
    """

    __slots__ = (
        "_counted_at",
        "_error",
        "_error_at",
        "_failures",
        "_lock",
        "_probe_at",
        "_probe_until",
        "_where",
        "opened",
    )

    def __init__(self, where: str) -> None:
        self._where = where
        self._lock: Lock = new_lock()
        self._failures = 0
        self._error: str | None = None
        self._error_at: float | None = None
        self._counted_at = 0.0
        #: Whether calls are sent only as probes.
        self.opened = False
        self._probe_at = 0.0  # when the next probe may go
        self._probe_until = 0.0  # a probe is under way, and counts as lost after that

    def admits(self, now: float, patience: float) -> bool:
        """Whether a call may be sent. If it is a probe, the next has to wait for what becomes of
        it, or for `patience` seconds."""
        with self._lock:
            if not self.opened:
                return True
            if now < max(self._probe_at, self._probe_until):
                return False
            self._probe_until = now + patience
            return True

    def failed(self, asked_at: float, now: float, error: object) -> None:
        """A call that was made at `asked_at` failed.

        Those that were already made when the last failure was counted belong to it: what a hundred
        concurrent calls run into is one failure.
        """
        with self._lock:
            self._error = str(error)
            self._error_at = time.time()
            if asked_at < self._counted_at:
                return
            self._counted_at = now
            self._failures += 1
            if self._failures < FAILURES:
                return
            pause = PAUSE * random.uniform(0.5, 1.5)
            self._probe_at = now + pause
            self._probe_until = 0.0
            opens, self.opened = not self.opened, True
        if opens:
            logger.warning(
                "%s failed %d times in a row and is left alone for a while: %s",
                self._where,
                self._failures,
                error,
            )

    def worked(self) -> None:
        """The server answered."""
        with self._lock:
            closes, self.opened = self.opened, False
            self._failures = 0
        if closes:
            logger.info("%s works again", self._where)

    def reachable(self) -> None:
        """A connection was made after all: the next call may try it at once."""
        self._probe_at = self._probe_until = 0.0

    @property
    def troubled(self) -> bool:
        """Whether the last call failed."""
        return self._failures > 0

    def refusal(self, now: float) -> str:
        """Why a call is not sent."""
        return (
            f"{self._where} is left alone for another {self.retry_after(now):.2g} s after "
            f"{self._failures} failures in a row, the last: {self._error}"
        )

    def retry_after(self, now: float) -> float:
        """Seconds until a call may be sent."""
        return max(self._probe_at - now, 0.0) if self.opened else 0.0

    def health(self, now: float) -> Health:
        """What `store.health()` says."""
        with self._lock:
            pause = self.retry_after(now)
            return Health(
                "closed" if not self.opened else "open" if pause else "half-open",
                self._failures,
                self._error,
                self._error_at,
                pause,
            )
