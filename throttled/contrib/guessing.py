"""How much a service allows that does not say: found out from what it refuses.

The guess is a limit per period, the period being that of the limit the user has set. It is none
until the service refuses. Then

- it becomes what the service has let pass within the last period, which for a first refusal is
  about what it allows. Requests that were under way when it refused are part of that count until
  they are refused as well;
- it climbs by a twentieth a period while it is used up and nothing is refused, up to just below
  the level that was refused last;
- at that level it knocks only every 32 periods, after each refusal half as often, down to every
  256: a service's limits seldom change. A knock is answered when the service has let that much pass
  for four periods: once may be luck, where a burst falls into two of its windows;
- a refusal of a steady guess lowers it by a twentieth.

Where nothing passes between two refusals, the number is not what is wrong: the service's window is
longer than the period. Then the guess stays, and the pauses double.
"""

from __future__ import annotations

from math import inf
from typing import Final

__all__ = ["Guess"]

_STEP: Final = 20
_FIRST_PAUSE: Final = 32
_LAST_PAUSE: Final = 256
#: Periods after which a knock has been answered.
_ANSWERED: Final = 4
#: Periods after a refusal for which the next one still says that the guess was far off.
_SOON: Final = 3
#: Doublings of a pause, at most.
_DOUBLINGS: Final = 30


class Guess:
    """What may be asked of one service per period, as far as it has shown.

    Instants and `period` are in seconds, all by one clock. Not for several threads at once.
    """

    __slots__ = (
        "_base",
        "_before",
        "_changed_at",
        "_count",
        "_excess",
        "_lowered_at",
        "_pause",
        "_refusals",
        "_refused",
        "_since",
        "_slack",
        "limit",
        "most",
        "period",
    )

    def __init__(self, most: int, period: float) -> None:
        #: What the user allows per period; the guess is never more.
        self.most = most
        self.period = period
        #: What the service seems to allow per period; None: as much as the user does.
        self.limit: int | None = None
        # The lowest level that was refused, and the periods between two knocks at it.
        self._refused = inf
        self._pause = _FIRST_PAUSE
        self._changed_at = self._lowered_at = -inf
        # What has passed in the running period and in the one before.
        self._since = -inf
        self._count = self._before = 0
        # What the guess was lowered to, and what of the same flight was refused since.
        self._base = self._slack = self._excess = 0
        # Refusals with nothing passed in between.
        self._refusals = 0

    def sent(self, now: float, cost: int, used_up: bool) -> None:
        """A request goes out; `used_up`: the guess has no room for another one now."""
        self._turn(now)
        self._count += cost
        if self.limit is None or not used_up:
            return
        pause = 1
        if self.limit + 1 == self._refused:
            pause = self._pause
        elif self.limit >= self._refused:
            pause = _ANSWERED
        if now - self._changed_at < pause * self.period:
            return
        if self.limit >= self._refused:
            self._refused, self._pause = inf, _FIRST_PAUSE
        raised = self.limit + self._step(self.limit)
        if self.limit + 1 < self._refused <= raised:
            raised = int(self._refused) - 1
        elif self.limit + 1 == self._refused:
            raised = self.limit + 1
        self.limit = raised if raised < self.most else None
        self._changed_at = now

    def passed(self, sent_at: float) -> None:
        """A request was not refused."""
        if sent_at > self._lowered_at:
            self._refusals = 0

    def refused(self, sent_at: float, now: float, cost: int) -> float:
        """A request was refused. Seconds to stay away, if the service does not say."""
        self._turn(now)
        self._count = max(self._count - cost, 0)
        if sent_at <= self._lowered_at:
            if self.limit is not None and self._refusals == 1:
                self._excess += cost
                self.limit = max(self._base - max(self._excess - self._slack, 0), 1)
            return 0.0
        soon = now - self._lowered_at < _SOON * self.period
        self._lowered_at = self._changed_at = now
        self._refusals += 1
        if self._refusals > 1:
            doublings = min(self._refusals - 2, _DOUBLINGS)
            return float(self.period * 2**doublings)
        level = self.most if self.limit is None else self.limit
        step = self._step(level)
        if level == self._refused:
            self._pause = min(self._pause * 2, _LAST_PAUSE)
        self._refused, self._excess = level, cost
        if self.limit is None:
            self._base, self._slack = min(level - step, self._seen(now)), cost
        elif soon:
            self._base, self._slack = min(level - step, max(self._seen(now), level // 2)), cost
        else:
            self._base, self._slack = level - step, step
        self._base = max(self._base, 1)
        self.limit = self._base
        return 0.0

    @staticmethod
    def _step(level: int) -> int:
        return max(level // _STEP, 1)

    def _turn(self, now: float) -> None:
        """Begin a period if the running one is over."""
        passed = now - self._since
        if passed >= self.period:
            begins_now = passed >= 2 * self.period
            self._before = 0 if begins_now else self._count
            self._since = now if begins_now else self._since + self.period
            self._count = 0

    def _seen(self, now: float) -> int:
        """What has passed within the last period, as if the one before had been even."""
        share = 1.0 - (now - self._since) / self.period
        return round(self._before * share) + self._count
