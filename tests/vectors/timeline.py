"""A timeline: what is done to one key at which instants, and every answer and state that follows.

It is recorded once on a `MemoryStore` and replayed on every store. Numbers stand as text, printed
with `%.17g` as the script prints them, so that equal text means equal to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import inf
from typing import Any

from throttled.algorithms.plan import LOOK, Plan, make_plan
from throttled.quota import Quota
from throttled.store import MemoryStore
from throttled.testing import FakeClock

KEY = "key"
Step = dict[str, Any]


def text(value: float) -> str:
    """A number as the script prints it; -0.0 is 0."""
    return f"{value + 0.0:.17g}"


class Replay:
    """Performs steps on a store. `dump` gives the text that is stored, None when there is none."""

    def __init__(
        self,
        store: Any,
        clock: FakeClock,
        dump: Callable[[Plan, str], tuple[str, ...] | None],
        algorithm: str,
        prefix: str,
    ) -> None:
        self._store = store
        self._clock = clock
        self._dump = dump
        self._algorithm = algorithm
        self._prefix = prefix
        self._tickets: list[Any] = []
        self.plan: Plan

    def bind(self, quota: str) -> None:
        self.plan = make_plan(self._algorithm, Quota.parse(quota), self._prefix)

    def do(self, step: Step) -> Step:
        """Perform one step; returns its answer and the state that it leaves."""
        self._clock.set(step["now"] / 1_000_000)
        assert self._clock.now_us() == step["now"]
        answer: Step = {}
        match step["do"]:
            case "quota":
                self.bind(step["quota"])
            case "admit" | "look":
                patience = float(step["patience"]) if step["do"] == "admit" else LOOK
                reply = self._store.run(self.plan, KEY, step["cost"], patience)
                ticket, wait, remaining, reset_after = reply[:4]
                answer = {
                    "wait": text(wait),
                    "remaining": text(remaining),
                    "reset_after": text(reset_after),
                }
                promised = 0 < wait <= patience
                if promised:
                    answer["promise"] = len(self._tickets)
                    answer["slot"] = text(ticket.slot)
                    self._tickets.append(ticket)
            case "adjust":
                slot = None if step["slot"] is None else float(step["slot"])
                answer["changed"] = self._store.adjust(self.plan, KEY, step["delta"], slot)
            case "undo":
                answer["changed"] = self._store.undo(self._tickets[step["promise"]])
            case other:
                raise AssertionError(other)
        state = self._dump(self.plan, KEY)
        answer["state"] = None if state is None else list(state)
        return answer


class Timeline:
    """Records steps: move the clock with `after` and `back`, then act."""

    def __init__(self, algorithm: str, name: str, quota: str, start: int) -> None:
        self.algorithm = algorithm
        self.name = name
        self.quota = quota
        self.now = start
        self.steps: list[Step] = []
        clock = FakeClock()
        store = MemoryStore(clock=clock)
        self._replay = Replay(store, clock, store.dump, algorithm, "vectors")
        self._replay.bind(quota)

    @property
    def period(self) -> int:
        return self._replay.plan.period

    @property
    def capacity(self) -> int:
        return self._replay.plan.capacity

    def _do(self, what: str, **arguments: Any) -> Step:
        step: Step = {"now": self.now, "do": what, **arguments}
        step.update(self._replay.do(step))
        self.steps.append(step)
        return step

    def after(self, microseconds: float) -> None:
        self.now += int(microseconds)

    def back(self, microseconds: float) -> None:
        """The clock steps back, as after a failover."""
        self.now -= int(microseconds)

    def boundary(self, offset: int = 0) -> None:
        """Move on to the next multiple of the period, and an offset from it."""
        self.now += self.period - self.now % self.period + offset

    def look(self, cost: int = 1) -> Step:
        return self._do("look", cost=cost)

    def admit(self, cost: int = 1, patience: float = 0) -> Step:
        return self._do("admit", cost=cost, patience=text(patience))

    def adjust(self, delta: int, slot: str | float | None = None) -> Step:
        slot = slot if slot is None or isinstance(slot, str) else text(slot)
        return self._do("adjust", delta=delta, slot=slot)

    def undo(self, promise: int) -> Step:
        return self._do("undo", promise=promise)

    def requota(self, quota: str) -> None:
        self._do("quota", quota=quota)

    def drain(self) -> None:
        """Take all that is free."""
        free = int(self.look()["remaining"])
        if free:
            self.admit(free)

    def settle(self) -> None:
        """Wait for the reset, exactly and one µs before."""
        left = float(self.look()["reset_after"])
        if 0 < left < inf:
            self.after(left - 1)
            self.look()
            self.after(1)
            self.look(self.capacity)


def document(algorithm: str, script: str, timelines: Iterable[Timeline]) -> str:
    """The vectors of an algorithm as JSON, a line a step."""
    import json

    def line(value: object) -> str:
        return json.dumps(value, separators=(", ", ": "))

    parts = []
    for timeline in timelines:
        steps = ",\n".join(f"   {line(step)}" for step in timeline.steps)
        parts.append(
            f' {{"name": {line(timeline.name)}, "quota": {line(timeline.quota)}, "steps": [\n'
            f"{steps}\n  ]}}"
        )
    body = ",\n".join(parts)
    return (
        f'{{"algorithm": {line(algorithm)}, "script": {line(script)}, "timelines": [\n{body}\n]}}\n'
    )
