"""For testing code that is limited: a clock that the test moves, and limits switched off."""

from __future__ import annotations

from math import inf
from threading import Lock

from anyio.lowlevel import checkpoint

from throttled.exceptions import DataError
from throttled.switch import disabled

__all__ = ["FakeClock", "disabled"]


class FakeClock:
    """A clock that moves only when told to: `MemoryStore(clock=FakeClock())`.

    `now` is in seconds since the Unix epoch and is kept in whole µs. A call that waits moves the
    clock to its slot instead of sleeping; several that wait at once move it to instants, so their
    waits do not add up. A `RedisStore(clock=...)` passes the fake instant to its script.

        clock = FakeClock()
        throttle = Throttled(quota="1/m", store=MemoryStore(clock=clock))
        assert throttle.limit("key").allowed
        assert throttle.limit("key").limited
        clock.advance(60)
        assert throttle.limit("key").allowed
    """

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        """`now`: seconds since the epoch, 0 or later."""
        self._us = _whole_us("now", now)
        self._lock = Lock()

    def __call__(self) -> float:
        return self._us / 1e6

    def __repr__(self) -> str:
        return f"FakeClock(now={self.now!r})"

    @property
    def now(self) -> float:
        """The instant it shows, in seconds since the epoch."""
        return self._us / 1e6

    def now_us(self) -> float:
        """The instant it shows, in whole µs since the epoch."""
        return float(self._us)

    def advance(self, seconds: float) -> None:
        """Move on by `seconds`, 0 or more; anything else is a `DataError`."""
        step = _whole_us("seconds", seconds)
        with self._lock:
            self._us += step

    def set(self, now: float) -> None:
        """Step to an instant in seconds since the epoch, also back, as a server's clock may."""
        with self._lock:
            self._us = _whole_us("now", now)

    def sleep_until(self, instant: float) -> None:
        """What a waiting call does instead of sleeping. `instant`: µs since the epoch."""
        with self._lock:
            self._us = max(self._us, int(instant))

    async def asleep_until(self, instant: float) -> None:
        """The same in async code, where others get their turn."""
        self.sleep_until(instant)
        await checkpoint()


def _whole_us(name: str, seconds: float) -> int:
    if (
        not isinstance(seconds, int | float)
        or isinstance(seconds, bool)
        or not 0 <= seconds < inf
        or seconds >= 4e9
    ):
        raise DataError(f"Invalid {name}: {seconds!r}, must be seconds from 0 up to 4e9.")
    return round(seconds * 1_000_000)
