"""Scenes: made-up traffic, and what the algorithms make of it while one looks on.

A scene has a clock of its own, which moves with the time that somebody watches, and decides by
the library itself, in memory. The same settings make the same calls and the same decisions; only
what is sent by hand is extra.

There are so many scenes at most, and so many calls a second in each. One that nobody watches
stands still, and goes when it has stood for a while or when room is needed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from math import inf
from secrets import token_urlsafe
from time import monotonic
from typing import Any, Final

from throttled._text import plain, shown
from throttled.algorithms.plan import make_plan
from throttled.arguments import check_cost
from throttled.dashboard.stored import fields_of
from throttled.exceptions import BaseThrottledError, DataError
from throttled.quota import Quota, RateLimiterType, algorithm_name
from throttled.simulation import KINDS, Traffic
from throttled.store.memory import MemoryStore
from throttled.testing import FakeClock
from throttled.throttled import Throttled

#: Scenes at once.
MOST_SCENES: Final = 16
#: Seconds for which one is kept that nobody watches.
KEPT: Final = 300.0
#: Calls a second, as the watch of the viewer goes.
MOST_CALLS: Final = 200.0
#: Calls that a viewer may send at once.
MOST_SENT: Final = 100
#: The most seconds of a scene that one step takes, as the watch of the viewer goes.
LONGEST_STEP: Final = 0.5
#: No calls but those that are sent by hand.
NONE: Final = "none"
TRAFFICS: Final = (*KINDS, NONE)

#: Seconds after which the traffic begins anew with other dice, and calls that it has by then.
_CYCLE, _CALLS = 20.0, 20
#: The most seconds of a cycle.
_LONGEST_CYCLE: Final = 86_400.0
_SECOND: Final = 1_000_000
_KEY: Final = "scene"
#: Of each step, calls that are told one by one.
_TOLD: Final = 120
#: Calls that are remembered: those that wait to be told, and those that rates are of.
_MOST_REMEMBERED: Final = 2_000


class ScenesFullError(BaseThrottledError):
    """All scenes that there may be are being watched."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What a scene shows. `DataError` for what cannot be."""

    quota: str = "10/s"
    #: None: that of the quota.
    burst: int | None = 20
    using: tuple[str, ...] = tuple(RateLimiterType.choice())
    traffic: str = "bursty"
    #: Calls a second.
    rate: float = 12.0
    cost: int = 1
    seed: int = 0
    #: Seconds of the scene in one of the viewer.
    speed: float = 1.0

    def __post_init__(self) -> None:
        if self.traffic not in TRAFFICS:
            raise DataError(
                f"Invalid traffic: {shown(self.traffic)}, must be one of {', '.join(TRAFFICS)}."
            )
        if not 0.01 <= self.speed <= 100:
            raise DataError(f"Invalid speed: {self.speed:.12g}, must be from 0.01 to 100.")
        if not 0.001 <= self.rate <= 100_000:
            raise DataError(
                f"Invalid rate: {self.rate:.12g}, must be from 0.001 to 100,000 calls a second."
            )
        if self.traffic != NONE and self.rate * self.speed > MOST_CALLS:
            raise DataError(
                f"Invalid rate: {plain(self.rate)} at a speed of {plain(self.speed)}, must be at "
                f"most {plain(MOST_CALLS / self.speed)}: a scene shows up to {MOST_CALLS:.0f} "
                f"calls a second. Slow it down for more."
            )
        if check_cost(self.cost) == 0:
            raise DataError("Invalid cost: 0, must be at least 1: what costs nothing always fits.")
        if not self.using:
            raise DataError("Invalid using: nothing, must name at least one algorithm.")

    def limit(self) -> Quota:
        """The quota with its burst."""
        if any(each in self.quota for each in ";,"):
            raise DataError(
                f"Invalid quota: {shown(self.quota)}, must be one such as 10/s: a scene shows one."
            )
        text = self.quota if self.burst is None else f"{self.quota} burst {self.burst}"
        return Quota.parse(text)

    @classmethod
    def of(cls, asked: Mapping[str, str]) -> Setting:
        """The setting that a query asks for; what it does not say is as by default."""
        given: dict[str, Any] = {}
        readers: dict[str, Any] = {"burst": _whole, "cost": _whole, "seed": _whole}
        readers |= {"rate": _number, "speed": _number, "using": _names}
        for name in [each.name for each in fields(cls)]:
            if name in asked:
                read = readers.get(name)
                given[name] = asked[name] if read is None else read(name, asked[name])
        if "quota" in asked and "burst" not in asked:
            given["burst"] = None
        return cls(**given)


def _whole(name: str, text: str) -> int | None:
    if name == "burst" and not text:
        return None
    if not text.isascii() or not text.isdecimal() or len(text) > 15:
        raise DataError(f"Invalid {name}: {shown(text)}, must be a whole number of 0 or more.")
    return int(text)


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = inf
    if not -inf < value < inf:
        raise DataError(f"Invalid {name}: {shown(text)}, must be a number.")
    return value


def _names(name: str, text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys([algorithm_name(each) for each in text.split(",") if each]))


class Scene:
    """One scene: `advance` moves it on, and says what became of the calls."""

    def __init__(self, setting: Setting) -> None:
        self.id = token_urlsafe(12)
        self.setting = setting
        quota = setting.limit()
        self._clock = FakeClock()
        store = MemoryStore(clock=self._clock)
        self._runs = [_Run(name, quota, store, setting.speed) for name in setting.using]
        # Windows begin with the scene.
        period = quota.period_us
        self._start = -(-int(self._clock.now_us()) // period) * period
        self._now = 0.0  # µs since the beginning, as all instants here
        self._calls = _calls(setting)
        self._next = next(self._calls, inf)
        self._offered = 0
        self._told: list[tuple[float, int, int]] = []
        #: When somebody last watched, by the monotonic clock; None: somebody does.
        self.left_at: float | None = monotonic()
        #: Counts those who watch, of whom the last one sees it move.
        self.viewer = 0

    def about(self) -> dict[str, Any]:
        """What does not change."""
        quota = self.setting.limit()
        return {
            "id": self.id,
            "quota": str(quota),
            "period": quota.period_us / _SECOND,
            "limit": quota.limit,
            "speed": self.setting.speed,
            "runs": [
                {"using": run.using, "kind": run.plan.kind, "capacity": run.plan.capacity}
                for run in self._runs
            ],
        }

    def advance(self, seconds: float) -> dict[str, Any]:
        """Let so many seconds of the viewer pass: what there is to draw then."""
        until = self._now + min(seconds, LONGEST_STEP) * self.setting.speed * _SECOND
        while self._next <= until:
            self._call(self._next, self.setting.cost)
            self._next = next(self._calls, inf)
        self._now = until
        self._clock.set((self._start + until) / _SECOND)
        told, self._told = self._told, []
        # With more, nobody sees each of them.
        step = -(-len(told) // _TOLD) or 1
        return {
            "now": self._now / _SECOND,
            "offered": self._offered,
            "calls": told[::step],
            "runs": [run.told(self._start, self._now) for run in self._runs],
        }

    def send(self, number: int, cost: int) -> None:
        """Send calls now, all at once."""
        for _ in range(number):
            self._call(self._now, cost)

    def _call(self, at: float, cost: int) -> None:
        self._clock.set((self._start + at) / _SECOND)
        admitted = 0
        for place, run in enumerate(self._runs):
            admitted |= run.decide(at, cost) << place
        self._offered += 1
        if len(self._told) < _MOST_REMEMBERED:
            self._told.append((round(at / _SECOND, 4), cost, admitted))


def _calls(setting: Setting) -> Iterator[float]:
    """The instants of all calls, without an end."""
    if setting.traffic == NONE:
        return
    length = min(max(_CYCLE, _CALLS / setting.rate), _LONGEST_CYCLE)
    cycle = 0
    while True:
        traffic = Traffic(setting.traffic, setting.rate, length, setting.seed + cycle)  # type: ignore[arg-type]
        for instant in traffic.instants():
            yield cycle * length * _SECOND + instant
        cycle += 1


class _Run:
    """What one algorithm makes of the calls."""

    def __init__(self, using: str, quota: Quota, store: MemoryStore, speed: float) -> None:
        self._store = store
        #: Seconds that rates are of: one, as the watch of the viewer goes or that of the scene.
        self._span = max(speed, 1.0)
        self._throttle = Throttled(using=using, quota=quota, store=store)
        self.plan = make_plan(using, quota)
        self.using = using
        self._admitted = self._refused = 0
        #: The instants of as many seconds, and what became of their calls.
        self._recent: deque[tuple[float, int]] = deque(maxlen=_MOST_REMEMBERED)

    def decide(self, at: float, cost: int) -> int:
        """Ask for a call: 1 if it is admitted, else 0."""
        admitted = int(self._throttle.limit(_KEY, cost).allowed)
        self._admitted += admitted
        self._refused += 1 - admitted
        self._recent.append((at, admitted))
        return admitted

    def told(self, start: float, now: float) -> dict[str, Any]:
        """The counts, the state of the key, and what its picture is drawn of."""
        state = self._throttle.peek(_KEY)
        while self._recent and self._recent[0][0] <= now - self._span * _SECOND:
            self._recent.popleft()
        admitted = sum([each for _, each in self._recent])
        return {
            "admitted": self._admitted,
            "refused": self._refused,
            "per_second": {
                "admitted": admitted / self._span,
                "refused": (len(self._recent) - admitted) / self._span,
            },
            "remaining": state.remaining,
            "retry_after": None if state.retry_after == inf else round(state.retry_after, 4),
            "reset_after": round(state.reset_after, 4),
            **self._picture(start + now, state.remaining),
        }

    def _picture(self, now: float, remaining: int) -> dict[str, float]:
        plan = self.plan
        used = plan.capacity - remaining
        held = None
        if plan.kind != "sliding_window_log":
            held = self._store.dump(plan, _KEY)
        is_bucket = plan.kind == "bucket"
        if not held:
            return {"level": plan.capacity} if is_bucket else {"current": used, "previous": 0}
        state = fields_of(plan.kind, held[0])
        if is_bucket:
            credit = state["credit"] + (now - state["at"]) * plan.limit
            return {"level": round(min(credit / plan.period, plan.capacity), 3)}
        start = state["start"] if plan.kind == "fixed_window" else state["last"]
        periods = now // plan.period - start // plan.period
        if plan.kind == "fixed_window":
            return {"current": 0 if periods else state["count"], "previous": 0}
        current, previous = state["current"], state["previous"]
        if periods:
            current, previous = 0.0, current if periods == 1 else 0.0
        return {"current": current, "previous": previous}


class Scenes:
    """The scenes of all viewers."""

    def __init__(self) -> None:
        self._scenes: dict[str, Scene] = {}

    def __len__(self) -> int:
        return len(self._scenes)

    def begin(self, setting: Setting) -> Scene:
        """A new scene. Raises `ScenesFullError` if all that there may be are watched."""
        scene = Scene(setting)
        self._make_room()
        self._scenes[scene.id] = scene
        return scene

    def __getitem__(self, id: str) -> Scene:  # noqa: A002
        return self._scenes[id]

    def end(self, id: str) -> None:  # noqa: A002
        """Forget a scene."""
        self._scenes.pop(id, None)

    def _make_room(self) -> None:
        now = monotonic()
        left = [scene for scene in self._scenes.values() if scene.left_at is not None]
        for scene in sorted(left, key=lambda each: each.left_at or 0.0):
            if now - (scene.left_at or 0.0) > KEPT or len(self._scenes) >= MOST_SCENES:
                del self._scenes[scene.id]
        if len(self._scenes) >= MOST_SCENES:
            raise ScenesFullError(
                f"All {MOST_SCENES} scenes are being watched. Try again when somebody has left."
            )
