"""What the algorithms make of a stream of traffic, worked out on a clock of its own: `simulate`.

    result = simulate("100/s burst 20", Traffic("bursty", rate=150, duration=60))
    for run in result.runs:
        print(run.using, run.admitted, run.refused)

Nothing sleeps and nothing is shared: a minute of traffic takes as long as its decisions take.
"""

from __future__ import annotations

import random
from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, product
from math import ceil, inf
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from throttled._text import shown
from throttled.arguments import check_cost, patience_of
from throttled.exceptions import DataError
from throttled.quota import MAX_PERIOD, RateLimiterType, Rule, algorithm_name, rules_of
from throttled.result import RateLimitResult
from throttled.store.memory import MemoryStore
from throttled.testing import FakeClock
from throttled.throttled import Throttled

if TYPE_CHECKING:
    from throttled.settings import Quotas

__all__ = ["KINDS", "Kind", "Run", "Simulation", "Timeline", "Traffic", "simulate"]

#: How the calls of a stream are spread: see `Traffic`.
Kind = Literal["steady", "bursty", "spike", "poisson"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

#: The most calls of one stream.
MAX_CALLS: Final = 1_000_000

_SECOND: Final = 1_000_000  # in µs
_KEY: Final = "simulated"
#: Bursts in a stream, how many times the rate they have, and for which share of their turn.
_BURSTS, _BURST_RATE, _BURST_SHARE = 10, 5.0, 0.2
#: How many times the rate a spike has; it takes the tenth of the time from the middle of it on.
_SPIKE_RATE, _SPIKE_FROM, _SPIKE_TO = 10.0, 0.45, 0.55


@dataclass(frozen=True, slots=True)
class Traffic:
    """Calls on one key, `rate` a second for `duration` seconds.

    `kind` says how they are spread:

    - `"steady"`: evenly.
    - `"bursty"`: ten bursts at five times the rate, one somewhere in each tenth of the time, and
      nothing in between.
    - `"spike"`: evenly, and ten times as many in the tenth of the time in the middle.
    - `"poisson"`: each call comes by itself, as those of many independent callers do.

    The same `seed` gives the same stream. At most 1,000,000 calls; `DataError` for more, and for
    any argument that is out of range.
    """

    kind: Kind = "steady"
    rate: float = 100.0
    duration: float = 60.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise DataError(
                f"Invalid traffic: {shown(self.kind)}, must be one of {', '.join(KINDS)}."
            )
        _check_positive("rate", self.rate, inf, "calls per second above 0")
        longest = MAX_PERIOD.total_seconds()
        _check_positive("duration", self.duration, longest, "seconds above 0, at most 366 days")
        seed: object = self.seed
        if not isinstance(seed, int) or isinstance(seed, bool):
            raise DataError(f"Invalid seed: {shown(seed)}, must be a whole number.")
        calls = self.rate * self.duration * (1.9 if self.kind == "spike" else 1.0)
        if calls > MAX_CALLS:
            raise DataError(
                f"Invalid duration: {shown(self.duration)} at a rate of {shown(self.rate)} makes "
                f"{calls:,.0f} calls, must be at most {MAX_CALLS:,}."
            )

    def instants(self) -> array[int]:
        """When the calls come, in whole µs since the beginning, in order."""
        if self.kind == "poisson":
            seconds = self._by_themselves()
        else:
            seconds = self._evenly(self._stretches())
        end = self.duration * _SECOND
        return array("q", [us for each in seconds if (us := round(each * _SECOND)) < end])

    def _stretches(self) -> Iterator[tuple[float, float, float]]:
        """From when to when there are how many calls a second."""
        length = self.duration
        if self.kind == "steady":
            yield 0.0, length, self.rate
        elif self.kind == "spike":
            yield 0.0, length * _SPIKE_FROM, self.rate
            yield length * _SPIKE_FROM, length * _SPIKE_TO, self.rate * _SPIKE_RATE
            yield length * _SPIKE_TO, length, self.rate
        else:
            dice = random.Random(self.seed)
            turn = length / _BURSTS
            for number in range(_BURSTS):
                begin = turn * (number + dice.uniform(0.0, 1.0 - _BURST_SHARE))
                yield begin, begin + turn * _BURST_SHARE, self.rate * _BURST_RATE

    @staticmethod
    def _evenly(stretches: Iterable[tuple[float, float, float]]) -> Iterator[float]:
        owed = 0.0  # the fraction of a call that the stretches before left
        for begin, end, rate in stretches:
            due = owed + (end - begin) * rate
            for number in range(ceil(due - 1e-9)):
                yield begin + max(number - owed, 0.0) / rate
            owed = due - ceil(due - 1e-9)

    def _by_themselves(self) -> Iterator[float]:
        dice = random.Random(self.seed)
        now = dice.expovariate(self.rate)
        # Chance may bring a few more than the rate says, but no end of them.
        for _ in range(MAX_CALLS * 2):
            if now >= self.duration:
                return
            yield now
            now += dice.expovariate(self.rate)


@dataclass(frozen=True, slots=True)
class Run:
    """What one algorithm made of the traffic. Counts are of calls; instants in µs since its begin.

    `most` is about cost: with 5 calls of cost 2 admitted within a second, it is 10 for a rule per
    second.
    """

    #: The algorithm.
    using: str
    offered: int
    admitted: int
    refused: int
    #: The longest that a call waited for its slot, in seconds; 0 where nobody waits.
    longest_wait: float
    #: For each rule, the most that was admitted within any stretch as long as its period.
    most: tuple[int, ...]
    #: When the admitted calls went on, in order.
    served: Sequence[int] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Timeline:
    """How many calls there were in each of equal stretches of time."""

    #: How long each is, in seconds.
    bin: float
    #: The calls that came.
    offered: tuple[int, ...]
    #: By algorithm, the calls that went on.
    admitted: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Simulation:
    """What became of a stream of traffic under each algorithm."""

    rules: tuple[Rule, ...]
    traffic: Traffic
    cost: int
    #: Seconds that a call would wait, -1: none did.
    timeout: float
    runs: tuple[Run, ...]
    #: When the calls came, in µs since the beginning, in order.
    instants: Sequence[int] = field(repr=False)

    def timeline(self, bins: int | None = 60) -> Timeline:
        """The calls by time, in so many bins, which reach to the last call that went on.

        None: as many as a picture has use for. At most 60, fewer where the calls are few, and each
        is a round part or multiple of the shortest period, so that windows are cut where they end.
        """
        last = max([run.served[-1] + 1 for run in self.runs if run.served], default=0)
        end = max(self.traffic.duration * _SECOND, last)
        if bins is None:
            width = self._round_width(end)
            bins = ceil(end / width - 1e-9)
        elif not isinstance(bins, int) or isinstance(bins, bool) or not 1 <= bins <= 10_000:
            raise DataError(f"Invalid bins: {shown(bins)}, must be a whole number from 1 to 10000.")
        else:
            width = end / bins
        return Timeline(
            width / _SECOND,
            _counted(self.instants, width, bins),
            {run.using: _counted(run.served, width, bins) for run in self.runs},
        )

    def _round_width(self, end: float) -> float:
        """Of bins, in µs: 1, 2 or 5 times a power of ten of the shortest period, or of a second."""
        period = min([rule.quota.period_us for rule in self.rules])
        unit = period if period <= end else _SECOND
        width = end
        for digit, power in product((1, 2, 5), range(-18, 12)):
            each = unit * digit * 10.0**power
            bins = end / each
            # With few calls in a bin, one more or less would look like a change of the rate.
            if bins <= 60 and (bins <= 12 or len(self.instants) / bins >= 15):
                width = min(width, each)
        return width


def simulate(
    quota: Quotas,
    traffic: Traffic,
    *,
    using: Iterable[RateLimiterType | str] | None = None,
    cost: int = 1,
    timeout: float | None = None,
    told: Callable[[Run], object] = lambda _: None,
) -> Simulation:
    """Run traffic through algorithms, by default all six, and say what became of it.

    `quota`, `cost` and `timeout` as a `Throttled` takes them; with a timeout, calls that do not
    fit wait in line for their slots. `told` is called with each run when it is over. The windows
    that are aligned to the epoch begin with the traffic.

    Raises `DataError` for a bad argument.
    """
    rules = rules_of(quota)
    names = RateLimiterType.choice() if using is None else [algorithm_name(each) for each in using]
    if not names:
        raise DataError("Invalid using: [], must name at least one algorithm.")
    cost, patience = check_cost(cost), patience_of(-1 if timeout is None else timeout)
    # All of them are made before the first one runs: a bad one is said at once.
    plays = [_Play(rules, name) for name in dict.fromkeys(names)]
    instants = traffic.instants()
    runs: list[Run] = []
    for play in plays:
        runs.append(play.run(instants, cost, patience))
        told(runs[-1])
    waits = -1 if timeout is None else timeout
    return Simulation(rules, traffic, cost, waits, tuple(runs), instants)


class _Play:
    """One algorithm, a clock and a store."""

    def __init__(self, rules: tuple[Rule, ...], using: str) -> None:
        self._clock = FakeClock()
        self._store = MemoryStore(clock=self._clock)
        self._throttle = Throttled(using=using, quota=rules, store=self._store)
        self._using = using
        longest = max([rule.quota.period_us for rule in rules])
        # The next instant at which a window of the longest period begins.
        self._start = -(-int(self._clock.now_us()) // longest) * longest

    def run(self, instants: Sequence[int], cost: int, patience: float) -> Run:
        ask: Callable[[str, int, float], Any] = self._throttle._ask
        store, start, move = self._store, self._start, self._clock.set
        served = array("q")
        # Who waits does not sleep, or the clock would run ahead of those who come next.
        waiting: deque[tuple[float, Any]] = deque()
        longest = 0.0
        for instant in instants:
            while waiting and waiting[0][0] <= instant:
                store.arrived(waiting.popleft()[1])
            move((start + instant) / _SECOND)
            answer = ask(_KEY, cost, patience)
            if not isinstance(answer, RateLimitResult):
                ticket, wait = answer[:2]
                waiting.append((instant + wait, ticket))
                longest = max(longest, wait)
                served.append(int(instant + wait))
            elif answer.allowed:
                served.append(instant)
        periods = [rule.quota.period_us for rule in self._throttle.rules]
        costs = [cost if rule.cost is None else rule.cost for rule in self._throttle.rules]
        return Run(
            self._using,
            len(instants),
            len(served),
            len(instants) - len(served),
            longest / _SECOND,
            tuple(
                [
                    _most_within(served, period) * each
                    for period, each in zip(periods, costs, strict=True)
                ]
            ),
            served,
        )


def _most_within(instants: Sequence[int], period: int) -> int:
    """The most of them within any stretch of a period, of which one end counts."""
    most = first = 0
    for last, instant in enumerate(instants):
        while instants[first] <= instant - period:
            first += 1
        most = max(most, last - first + 1)
    return most


def _counted(instants: Sequence[int], width: float, bins: int) -> tuple[int, ...]:
    edges = [bisect_right(instants, ceil(width * each) - 1) for each in range(1, bins)]
    edges = [0, *edges, len(instants)]
    return tuple([after - before for before, after in pairwise(edges)])


def _check_positive(what: str, value: object, most: float, meant: str) -> None:
    if (
        not isinstance(value, int | float)
        or isinstance(value, bool)
        or not 0 < value <= most
        or value == inf
    ):
        raise DataError(f"Invalid {what}: {shown(value)}, must be {meant}.")
