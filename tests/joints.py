"""Several rules of one key: joints on a rig, and the histories of callers who share their keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from hypothesis import strategies as st

from tests.contract import FOREVER, Rig
from tests.test_properties import within_bounds
from throttled.algorithms.plan import LOOK, Joint, Plan, hold_plan, make_joint, make_plan
from throttled.quota import Quota, Rule
from throttled.result import RateLimitResult

KEY = "key"
#: One algorithm of each kind: the buckets are one rule.
ALGORITHMS = ("token_bucket", "fixed_window", "sliding_window", "sliding_window_log")
#: From short to long, so that one rule puts off the promises of another by far more than a period.
QUOTAS = ("3/7ms burst 4", "3/100ms burst 2", "1/100ms", "5/s", "2/s burst 1", "7/3s burst 3",
          "10/m", "4/h burst 2", "2/d")  # fmt: skip
#: µs that pass, mostly none or little.
PAUSES = (0, 0, 0, 1, 3_000, 10_000, 100_000, 333_333, 1_000_000, 5_000_000, 61_000_000,
          3_600_000_000, 86_400_000_000)  # fmt: skip

algorithms = st.sampled_from(ALGORITHMS)
quotas = st.sampled_from(QUOTAS)
pauses = st.sampled_from(PAUSES)
#: Two or three rules.
several_rules = st.lists(st.tuples(algorithms, quotas), min_size=2, max_size=3)
numbers = st.integers(0, 1000)


def plans_of(rig: Rig, rules: Sequence[tuple[str, str]]) -> list[Plan]:
    """A plan a rule: algorithm and quota. Each has a name, so that any may stand together."""
    return [
        make_plan(algorithm, Quota.parse(quota), rig.prefix, f"rule{place}")
        for place, (algorithm, quota) in enumerate(rules)
    ]


def joint_of(
    rig: Rig, plans: Sequence[Plan], costs: Sequence[int | None] = (), hold: bool = False
) -> Joint:
    """A joint of plans, with the fixed costs of those that have one."""
    fixed = [*costs, *[None] * (len(plans) - len(costs))]
    rules = [
        Rule(plan.quota, plan.algorithm, cost, f"rule{place}")
        for place, (plan, cost) in enumerate(zip(plans, fixed, strict=True))
    ]
    return make_joint(plans, rules, [hold_plan(rig.prefix)] if hold else [])


def admit(rig: Rig, joint: Joint, cost: int = 1, patience: float = 0.0) -> tuple[Any, Any]:
    """The answer to a call, and its ticket."""
    keys = joint.keys(KEY)
    answer: tuple[Any, Any] = rig.wait(rig.store.admit_all(joint, keys, cost, patience))
    return answer


def dumps(rig: Rig, plans: Sequence[Plan]) -> list[tuple[str, ...] | None]:
    """What is stored for each plan."""
    return [rig.dump(plan, KEY) for plan in plans]


def states(rig: Rig, plans: Sequence[Plan]) -> list[tuple[str, ...] | None]:
    """The same, of what still counts: a state that equals a fresh key's is as good as none."""
    return [rig.dump(plan, KEY) if rig.look(plan, KEY)[2] > 0 else None for plan in plans]


def drain(rig: Rig, plan: Plan) -> None:
    """Take all that is free by one rule."""
    rig.drain(plan, KEY)


@dataclass
class Call:
    """One that went on: `[instant, cost]` by each plan that it kept, and where it was booked."""

    parts: list[tuple[Plan, list[float], float]]


@dataclass
class Books:
    """What was taken by one plan, as in `test_properties.Line`."""

    served: list[list[float]] = field(default_factory=list)
    returned: list[tuple[float, int]] = field(default_factory=list)
    passed: list[Any] = field(default_factory=list)


class Crowd:
    """Callers of one key under any of several rules: some keep one of them, some two, some all.

    What is asked is checked against what each rule says alone.
    """

    def __init__(self, rig: Rig, rules: Sequence[tuple[str, str]]) -> None:
        self.rig = rig
        self.plans = plans_of(rig, rules)
        full = 2 ** len(self.plans) - 1
        #: By which rules they keep, as bits; all of them most often.
        self.joints = {
            bits: joint_of(rig, [p for place, p in enumerate(self.plans) if bits >> place & 1])
            for bits in range(1, full + 1)
        }
        self.choices = [*self.joints.values(), *[self.joints[full]] * 3]
        self.books = {plan: Books() for plan in self.plans}
        self.calls: list[Call] = []
        self.waiting: list[Any] = []

    def pass_time(self, microseconds: float) -> None:
        """Let time pass; those whose slots come meanwhile go on, each at its slot."""
        rig, end = self.rig, self.rig.now + microseconds // 1
        while self.waiting and min(ticket.slot for ticket in self.waiting) <= end:
            ticket = min(self.waiting, key=lambda ticket: ticket.slot)
            self.waiting.remove(ticket)
            rig.clock.sleep_until(ticket.slot)
            self._went_on(ticket)
            rig.arrived(ticket)
        rig.clock.sleep_until(end)

    def _went_on(self, ticket: Any) -> None:
        call = Call([(p.plan, [self.rig.now, p.cost], p.slot) for p in ticket.parts])
        for plan, entry, _ in call.parts:
            self.books[plan].served.append(entry)
        self.calls.append(call)

    def ask(self, joint: Joint, cost: int, patience: float) -> None:
        rig, now = self.rig, self.rig.now
        alone = [rig.look(plan, KEY, cost)[0] for plan in joint.plans]
        wait = max(alone)
        before = dumps(rig, self.plans)
        answer, ticket = admit(rig, joint, cost, patience)
        after = dumps(rig, self.plans)
        changed = {
            plan for plan, one, two in zip(self.plans, before, after, strict=True) if one != two
        }
        assert changed <= set(joint.plans)
        if isinstance(answer, RateLimitResult):
            assert answer.limited == (wait > patience and cost > 0)
            if answer.limited:
                assert answer.state.retry_after == wait / 1e6
                assert answer.rule == joint.rules[alone.index(wait)] or alone.count(wait) > 1
            if answer.limited or not cost:
                assert not changed
                assert ticket is None
            else:
                assert [part.plan for part in ticket.parts] == list(joint.plans)
                self._went_on(ticket)
            return
        assert changed == set(joint.plans)
        assert answer[1] == wait
        assert 0 < wait <= patience
        assert {part.slot for part in ticket.parts} == {ticket.slot} == {now + wait}
        for other in self.waiting:
            for part in other.parts:
                books = self.books[part.plan]
                if part.plan in joint.plans and other not in books.passed:
                    assert ticket.slot >= other.slot or _same_window(part, now)
        self.waiting.append(ticket)

    def cancel(self, number: int) -> None:
        """One gives up: the youngest most often, as in life; else any."""
        if self.waiting:
            place = -1 if number % 2 else number % len(self.waiting)
            self.rig.withdraw(self.waiting.pop(place))

    def refund(self, number: int) -> None:
        """One of the last calls gets back what it took, from every rule."""
        if not self.calls:
            return
        for plan, entry, slot in self.calls[-1 - number % min(len(self.calls), 4)].parts:
            back, books = int(entry[1]), self.books[plan]
            if not back or not self.rig.adjust(plan, KEY, -back, slot):
                continue
            if plan.kind == "bucket":
                # It is for whoever comes next, while those who wait keep their slots.
                books.passed = list(self.waiting)
            if plan.kind == "bucket" and entry[0] < self.rig.now:
                books.returned.append((self.rig.now, back))
            else:
                entry[1] -= back

    def act(self, what: str, which: int, number: int) -> None:
        joint = self.choices[which % len(self.choices)]
        match what:
            case "ask":
                self.ask(joint, number % (joint.capacity + 2), 0)
            case "wait":
                patience = (FOREVER, 1e6, 61e6, 90e9)[number % 4]
                self.ask(joint, 1 + number // 4 % joint.capacity, patience)
            case "cancel":
                self.cancel(number)
            case "refund":
                self.refund(number)
            case "near" if self.waiting:  # shortly before somebody's slot
                left = min(ticket.slot for ticket in self.waiting) - self.rig.now
                self.pass_time(left * (number % 10) / 10)

    def live(self, history: Sequence[tuple[int, str, int, int]]) -> None:
        for pause, what, which, number in history:
            self.pass_time(pause)
            self.act(what, which, number)

    def empty(self) -> None:
        """Let all who wait go on, and take what comes free by any rule for some time more."""
        while self.waiting:
            self.pass_time(min(ticket.slot for ticket in self.waiting) - self.rig.now)
        for place in range(12):
            for plan in self.plans:
                free = self.rig.free(plan, KEY)
                self.ask(joint_of(self.rig, [plan]), free, 0)
            self.pass_time(self.plans[place % len(self.plans)].period / 4)

    def within_bounds(self) -> None:
        """By no rule did too many go on, at the instants at which they did."""
        for plan, books in self.books.items():
            line: Any = SimpleNamespace(
                plan=plan, served=sorted(books.served), returned=books.returned
            )
            within_bounds(line)


def _same_window(part: Any, now: float) -> bool:
    """Within the window that runs, a fixed window does not care who goes on first."""
    period = part.plan.period
    return part.plan.kind == "fixed_window" and part.slot // period == now // period


acts = st.tuples(
    pauses,
    st.sampled_from(["ask", "wait", "wait", "wait", "cancel", "cancel", "refund", "near"]),
    numbers,
    numbers,
)
histories = st.lists(acts, min_size=4, max_size=25)


def look_of(rig: Rig, joint: Joint, cost: int = 1) -> RateLimitResult:
    """What a call would be told, changing nothing."""
    answer, ticket = admit(rig, joint, cost, LOOK)
    assert ticket is None
    result: RateLimitResult = answer
    return result
