"""A timeline: what is done to one key at which instants, and every answer and state that follows.

A joint timeline is the same for several rules of one key, and for its penalties. It is recorded
once on a `MemoryStore` and replayed on every store. Numbers stand as text, printed
with `%.17g` as the script prints them, so that equal text means equal to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import inf
from typing import Any

from throttled.algorithms.plan import (
    LOOK,
    NOW,
    Joint,
    Plan,
    hold_plan,
    make_joint,
    make_plan,
)
from throttled.quota import Quota, Rule
from throttled.result import RateLimitResult
from throttled.store import MemoryStore
from throttled.testing import FakeClock

KEY = "key"
#: Neither on a boundary of a second nor of an hour: 2023-11-14 22:13:20.123457 UTC.
START = 1_700_000_000_123_457
#: µs; patience is never infinite, for what never fits waits infinitely.
FOREVER = 2**62
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


class JointReplay:
    """Performs steps on several rules of one key; `wait` awaits what has to be."""

    def __init__(
        self,
        store: Any,
        clock: FakeClock,
        dump: Callable[[Plan, str], tuple[str, ...] | None],
        wait: Callable[[Any], Any],
        prefix: str,
        rules: Sequence[Sequence[Any]],
    ) -> None:
        """`rules`: algorithm, quota and fixed cost of each."""
        self._store = store
        self._clock = clock
        self._dump = dump
        self._wait = wait
        self._tickets: list[Any] = []
        self.plans = [
            make_plan(algorithm, Quota.parse(quota), prefix, f"rule{place}")
            for place, (algorithm, quota, _) in enumerate(rules)
        ]
        self.rules = [
            Rule(plan.quota, plan.algorithm, cost, f"rule{place}")
            for place, (plan, (_, _, cost)) in enumerate(zip(self.plans, rules, strict=True))
        ]
        self.hold = hold_plan(prefix)

    def joint(self, by: Sequence[int]) -> Joint:
        """The joint of the rules in these places, and of the hold."""
        plans, rules = ([each[place] for place in by] for each in (self.plans, self.rules))
        return make_joint(plans, rules, [self.hold])

    def do(self, step: Step) -> Step:
        """Perform one step; returns its answer and the states that it leaves."""
        self._clock.set(step["now"] / 1_000_000)
        assert self._clock.now_us() == step["now"]
        answer: Step = {}
        match step["do"]:
            case "admit" | "look":
                joint = self.joint(step["by"])
                patience = float(step["patience"]) if step["do"] == "admit" else LOOK
                answer = self._told(
                    *self._wait(
                        self._store.admit_all(joint, joint.keys(KEY), step["cost"], patience)
                    )
                )
            case "call":
                decide = self._store.bind(self.joint(step["by"]))
                answer = self._told(self._wait(decide(KEY, step["cost"], NOW)), None)
            case "adjust":
                slot = None if step["slot"] is None else float(step["slot"])
                plan = self.plans[step["rule"]]
                answer["changed"] = self._wait(self._store.adjust(plan, KEY, step["delta"], slot))
            case "penalty":
                answer["changed"] = self._wait(
                    self._store.adjust(self.hold, KEY, step["length"], None)
                )
            case "withdraw":
                self._wait(self._store.withdraw(self._tickets[step["promise"]]))
            case other:
                raise AssertionError(other)
        found = [self._dump(plan, KEY) or None for plan in (*self.plans, self.hold)]
        answer["states"] = [None if state is None else list(state) for state in found]
        return answer

    def _told(self, told: Any, ticket: Any) -> Step:
        answer: Step = {}
        if isinstance(told, RateLimitResult):
            answer["limited"], answer["held"] = told.limited, told.held
            answer["told"] = [
                f"{each.remaining} {text(each.reset_after)} {text(each.retry_after)}"
                for each in told.states
            ]
        else:
            answer["promise"] = len(self._tickets)
            answer["wait"] = text(told[1])
            answer["told"] = [" ".join(map(text, look)) for look in told[2]]
            self._tickets.append(ticket)
        if ticket is not None:
            answer["slots"] = [text(part.slot) for part in ticket.parts]
        return answer


class JointTimeline:
    """Records steps on several rules of one key."""

    def __init__(self, name: str, rules: Sequence[Sequence[Any]], start: int) -> None:
        self.name = name
        self.quota = [list(rule) for rule in rules]
        self.now = start
        self.steps: list[Step] = []
        self.all = list(range(len(rules)))
        clock = FakeClock()
        store = MemoryStore(clock=clock)
        self._replay = JointReplay(
            store, clock, store.dump, lambda value: value, "vectors", self.quota
        )

    def _do(self, what: str, **arguments: Any) -> Step:
        step: Step = {"now": self.now, "do": what, **arguments}
        step.update(self._replay.do(step))
        self.steps.append(step)
        return step

    def after(self, microseconds: float) -> None:
        self.now += int(microseconds)

    def capacity(self, by: Sequence[int] | None = None) -> int:
        return self._replay.joint(self.all if by is None else by).capacity

    def look(self, cost: int = 1, by: Sequence[int] | None = None) -> Step:
        return self._do("look", by=self.all if by is None else by, cost=cost)

    def admit(self, cost: int = 1, patience: float = 0, by: Sequence[int] | None = None) -> Step:
        by = self.all if by is None else by
        return self._do("admit", by=by, cost=cost, patience=text(patience))

    def call(self, cost: int = 1, by: Sequence[int] | None = None) -> Step:
        return self._do("call", by=self.all if by is None else by, cost=cost)

    def adjust(self, rule: int, delta: int, slot: str | None = None) -> Step:
        return self._do("adjust", rule=rule, delta=delta, slot=slot)

    def penalize(self, length: int) -> Step:
        return self._do("penalty", length=length)

    def withdraw(self, promise: int) -> Step:
        return self._do("withdraw", promise=promise)


def document(
    algorithm: str, script: str, timelines: Iterable[Timeline] | Iterable[JointTimeline]
) -> str:
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
