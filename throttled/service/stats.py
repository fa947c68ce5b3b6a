"""What the service knows of its policies: counts, rates, times, and the keys that stand out.

All of it is bounded, whatever callers send. Keys are counted by sketches: a table of at most 1,024
counters which, when it is full, keeps the larger half less what the largest of the others had.
What is counted of a key is then too little by at most the sum of that (Misra and Gries, "Finding
repeated elements", 1982; the batched form of Agarwal et al., "Mergeable summaries", 2012). Of n
calls that is less than n/512, and 0 as long as there are no more keys than counters.

What is of "the last minute" is kept in two halves of 30 seconds, the present one and the one
before; so it is of the last 30 to 60 seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from hashlib import sha256
from heapq import nlargest
from math import log2
from typing import Any, Final

from throttled.hooks import Event, Observer

#: How many keys are told of each kind.
TOP: Final = 20
#: Counters of one sketch.
COUNTERS: Final = 1024
#: Seconds of which the rate is told.
RATE_OVER: Final = 10

_HALF: Final = 30.0
#: Longer keys are kept as their beginning and a digest.
_LONGEST: Final = 200

# Times of decisions are counted in steps of a fourth of a doubling, from 1 µs to 17 s.
_STEPS: Final = 4
_BUCKETS: Final = 24 * _STEPS


class Sketch:
    """Counts the keys that come often, in bounded memory."""

    __slots__ = ("_counts", "_most", "off_by")

    def __init__(self, most: int = COUNTERS) -> None:
        self._counts: dict[str, int] = {}
        self._most = most
        #: By how much a count may be too little, at most.
        self.off_by = 0

    def __len__(self) -> int:
        return len(self._counts)

    def add(self, key: str) -> None:
        """Count a key."""
        counts = self._counts
        if len(key) > _LONGEST:
            key = f"{key[: _LONGEST // 2]}... (SHA-256 {_digest(key)})"
        count = counts.get(key)
        if count is not None:
            counts[key] = count + 1
            return
        if len(counts) >= self._most:
            self._halve()
        self._counts[key] = 1

    def _halve(self) -> None:
        least = sorted(self._counts.values(), reverse=True)[self._most // 2]
        self._counts = {key: n - least for key, n in self._counts.items() if n > least}
        self.off_by += least

    def items(self) -> Iterable[tuple[str, int]]:
        """Keys and their counts, in no order."""
        return self._counts.items()


class _Half:
    """What is counted in half a minute."""

    __slots__ = ("busiest", "refused", "since", "took")

    def __init__(self, since: float) -> None:
        self.since = since
        self.busiest = Sketch()
        self.refused = Sketch()
        self.took = [0] * (_BUCKETS + 1)


class PolicyStats(Observer):
    """What is known of one policy; an observer of its limit."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.allowed = 0
        self.refused = 0
        #: Passed only because the policy is not enforced.
        self.would_refuse = 0
        #: Decisions that a store failed to make, whatever was done instead.
        self.errors = 0
        self._began = now = clock()
        self._halves = [_Half(now)]
        self._seconds = [0] * (RATE_OVER + 1)
        self._second = int(now)

    def decided(self, event: Event) -> None:
        """Count a call."""
        result: Any = event.result
        now = self._clock()
        half = self._halves[-1]
        if now - half.since >= _HALF:
            half = self._turn(now)
        if result.limited:
            self.refused += 1
            half.refused.add(event.key)
        elif result.would_limit:
            self.would_refuse += 1
        else:
            self.allowed += 1
        half.busiest.add(event.key)
        took = event.took * 1e6
        if took > 0.0:
            half.took[min(int(_STEPS * log2(took)), _BUCKETS) if took > 1.0 else 0] += 1
        second = int(now)
        if second != self._second:
            self._move(second)
        self._seconds[second % len(self._seconds)] += 1

    def failed(self, event: Event) -> None:
        """Count a failure of the store."""
        self.errors += 1

    def _turn(self, now: float) -> _Half:
        """Begin another half of a minute."""
        half = self._halves[-1]
        # After a longer silence the half before is over as well.
        since = half.since + _HALF if now - half.since < 2 * _HALF else now
        self._halves = [half, _Half(since)] if since is not now else [_Half(now)]
        return self._halves[-1]

    def _move(self, second: int) -> None:
        """Forget the seconds that are too long ago."""
        places = len(self._seconds)
        for passed in range(self._second + 1, min(second, self._second + places) + 1):
            self._seconds[passed % places] = 0
        self._second = second

    def told(self, digests: bool) -> dict[str, Any]:
        """All of it, for JSON; `digests`: keys are not to be shown."""
        now = self._clock()
        if now - self._halves[-1].since >= _HALF:
            self._turn(now)
        if int(now) != self._second:
            self._move(int(now))
        return {
            "allowed": self.allowed,
            "refused": self.refused,
            "would_refuse": self.would_refuse,
            "errors": self.errors,
            "per_second": self._rate(now),
            "decision_seconds": {"p50": self._took(0.5), "p99": self._took(0.99)},
            "keys": {
                "seconds": round(now - self._halves[0].since, 3),
                "approximate": True,
                "busiest": self._top("busiest", "calls", digests),
                "most_refused": self._top("refused", "refused", digests),
            },
        }

    def _rate(self, now: float) -> float:
        """Decisions a second, over the last seconds that are complete, or since it began."""
        passed = now - self._began
        if passed < RATE_OVER:
            return round(sum(self._seconds) / max(passed, 1.0), 3)
        present = self._seconds[self._second % len(self._seconds)]
        return round((sum(self._seconds) - present) / RATE_OVER, 3)

    def _took(self, share: float) -> float | None:
        """Seconds within which that share of the decisions was made, give or take a tenth."""
        counts = [sum(each) for each in zip(*[half.took for half in self._halves], strict=True)]
        wanted = share * sum(counts)
        if not wanted:
            return None
        reached = 0
        for place, count in enumerate(counts):
            reached += count
            if reached >= wanted:
                return float(f"{2 ** ((place + 0.5) / _STEPS) / 1e6:.2g}")
        raise AssertionError("the sum is reached at the end")  # pragma: no cover

    def _top(self, which: str, what: str, digests: bool) -> dict[str, Any]:
        counts: dict[str, int] = {}
        sketches: list[Sketch] = [getattr(half, which) for half in self._halves]
        for sketch in sketches:
            for key, count in sketch.items():
                counts[key] = counts.get(key, 0) + count
        top = nlargest(TOP, counts.items(), key=lambda item: item[1])
        return {
            "off_by_at_most": sum([sketch.off_by for sketch in sketches]),
            "top": [{"key": hidden(key) if digests else key, what: count} for key, count in top],
        }


def hidden(key: str) -> str:
    """What is shown of a key that a store hides."""
    return f"sha256:{_digest(key)}"


def _digest(key: str) -> str:
    """The beginning of the SHA-256 of a key: it tells keys apart, and does not show them."""
    return sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:16]
