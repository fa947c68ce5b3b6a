"""The invariants, on histories that nobody thought of: calls, waits, cancellations, refunds."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import partial
from math import inf
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.contract import FOREVER, Kind, Rig
from throttled.algorithms.plan import ALGORITHMS

BUCKETS = ("token_bucket", "leaking_bucket", "gcra")
PERIOD = 1000  # ms

limits = st.sampled_from([1, 2, 3, 5, 8, 10])
bursts = st.sampled_from([1, 2, 3, 7, 12])
#: Parts of a period that pass, and then what is done, with a number for whatever needs one.
elapsed = st.one_of(
    st.just(0.0), st.sampled_from([0.01, 0.1, 1 / 3, 0.5, 1.0, 2.5]), st.floats(0, 1.2)
)
acts = st.tuples(
    elapsed,
    st.sampled_from(["ask", "ask", "wait", "wait", "wait", "cancel", "cancel", "refund", "step"]),
    st.integers(0, 1000),
)
histories = st.lists(acts, max_size=30)


class Line:
    """Callers of one key, as `Throttled` treats them: those promised a slot sleep, then go on."""

    def __init__(self, rig: Rig, quota: str) -> None:
        self.rig = rig
        self.plan = rig.plan(quota)
        self.waiting: list[Any] = []
        #: [slot, cost] of every call that went on, in the order of asking; a refund lowers it.
        self.served: list[list[float]] = []
        #: (instant, amount) of refunds to a bucket for calls of the past. A bucket does not know
        #: how much of that has dripped in since, so it returns all of it, up to the burst.
        self.returned: list[tuple[float, int]] = []
        #: Who waited when a bucket got something back: that is for whoever comes next, while their
        #: own slots stay.
        self.passed: list[Any] = []

    def pass_time(self, microseconds: float) -> None:
        end = self.rig.now + microseconds // 1
        while self.waiting and min(t.slot for t in self.waiting) <= end:
            ticket = min(self.waiting, key=lambda t: t.slot)
            self.waiting.remove(ticket)
            self.rig.clock.sleep_until(ticket.slot)
            self.served.append([ticket.slot, ticket.cost])
            self.rig.arrived(ticket)
        self.rig.clock.sleep_until(end)

    def ask(self, cost: int, patience: float) -> None:
        now = self.rig.now
        last = max((t.slot for t in self.waiting if t not in self.passed), default=0.0)
        ticket, wait, remaining, reset_after = self.rig.run(self.plan, "key", cost, patience)
        if cost > self.plan.capacity:
            assert wait == inf
        if cost and wait <= patience:
            assert now + wait >= last, "served before one who asked earlier"
            if wait:
                assert ticket.slot == now + wait
                self.waiting.append(ticket)
            else:
                self.served.append([now, cost])
        assert 0 <= remaining <= self.plan.capacity
        assert reset_after >= 0

    def act(self, what: str, number: int) -> None:
        capacity = self.plan.capacity
        match what:
            case "ask":
                self.ask(number % (capacity + 2), 0)
            case "wait":
                patience = (FOREVER, self.plan.period, 3 * self.plan.period)[number % 3]
                self.ask(1 + number // 3 % capacity, patience)
            case "cancel" if self.waiting:
                # The youngest most often, as in life; else any.
                place = -1 if number % 2 else number % len(self.waiting)
                self.rig.withdraw(self.waiting.pop(place))
            case "refund" if self.served:
                call = self.served[-1 - number % min(len(self.served), 4)]
                back = int(min(1 + number % 3, call[1]))
                if back and self.rig.adjust(self.plan, "key", -back, call[0]):
                    if self.plan.kind == "bucket":
                        self.passed = list(self.waiting)
                    if self.plan.kind == "bucket" and call[0] < self.rig.now:
                        self.returned.append((self.rig.now, back))
                    else:
                        call[1] -= back
            case "step":
                self.rig.look(self.plan, "key", 1 + number % capacity)

    def live(self, history: list[tuple[float, str, int]]) -> None:
        for part, what, number in history:
            self.pass_time(part * self.plan.period)
            self.act(what, number)

    def empty(self) -> None:
        """Let all who wait be served, and take what comes free for three periods more."""
        while self.waiting:
            self.pass_time(min(t.slot for t in self.waiting) - self.rig.now)
        for _ in range(12):
            self.ask(self.rig.free(self.plan, "key"), 0)
            self.pass_time(self.plan.period / 4)


def within_bounds(line: Line) -> None:
    plan = line.plan
    limit, period, burst = plan.limit, plan.period, plan.burst
    served = [(int(slot), int(cost)) for slot, cost in line.served]
    assert [slot for slot, _ in served] == sorted(slot for slot, _ in served)
    if plan.kind == "bucket":
        # Slots are whole µs, rounded up: where the rate does not divide, one counts in full.
        tick = 0 if period % limit == 0 else 1
        for i, (first, _) in enumerate(served):
            total = 0
            for last, cost in served[i:]:
                total += cost
                more = sum(back for instant, back in line.returned if first <= instant <= last)
                assert (total - more) * period <= burst * period + limit * (last - first + tick)
    elif plan.kind == "fixed_window":
        for start in {slot - slot % period for slot, _ in served}:
            assert sum(cost for slot, cost in served if start <= slot < start + period) <= limit
    elif plan.kind == "sliding_window_log":
        for end, _ in served:
            assert sum(cost for slot, cost in served if end - period < slot <= end) <= limit
    else:
        for i, (now, cost) in enumerate(served, 1):
            if cost == 0:
                continue
            start = now - now % period
            share = Fraction(start + period - now, period)
            before = sum(cost for slot, cost in served[:i] if start - period <= slot < start)
            current = sum(cost for slot, cost in served[:i] if slot >= start)
            assert before * share + current <= limit


def honest_times(line: Line) -> None:
    rig, plan = line.rig, line.plan
    remaining = rig.free(plan, "key")
    assert rig.look(plan, "key", remaining)[0] == 0
    assert rig.look(plan, "key", remaining + 1)[0] > 0
    began = rig.now
    for cost in {1, plan.capacity}:
        wait = rig.look(plan, "key", cost)[0]
        if wait:
            rig.after(wait - 1)
            assert rig.look(plan, "key", cost)[0] == 1
            rig.after(1)
            assert rig.look(plan, "key", cost)[0] == 0
        rig.clock.set(began / 1e6)
    reset_after = rig.look(plan, "key")[2]
    if reset_after:
        rig.after(reset_after - 1)
        assert rig.look(plan, "key", plan.capacity)[2] == 1
        rig.after(1)
    assert rig.look(plan, "key", plan.capacity) == (0, plan.capacity, 0)


#: What part of the examples each kind of store gets; the golden vectors compare them all.
KINDS = {Kind("memory"): 1, Kind("memory", True): 5, Kind("fakeredis"): 10}


def on_rigs(check: Callable[..., None], kind: Kind, algorithm: str, *strategies: Any) -> None:
    """Run a check with hypothesis, each example on a fresh rig."""

    @settings(max_examples=settings().max_examples // KINDS[kind])
    @given(limits, bursts, st.tuples(*strategies))
    def run(limit: int, burst: int, values: tuple[Any, ...]) -> None:
        rig = Rig(kind, algorithm)
        try:
            check(partial(Line, rig, f"{limit}/{PERIOD}ms burst {burst}"), *values)
        finally:
            rig.close()

    run()


parametrized = pytest.mark.parametrize("kind", KINDS, ids=str)
each_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS)


@each_algorithm
@parametrized
def test_never_too_many(kind: Kind, algorithm: str) -> None:
    def check(make: Callable[[], Line], history: list[tuple[float, str, int]]) -> None:
        line = make()
        line.live(history)
        line.empty()
        within_bounds(line)

    on_rigs(check, kind, algorithm, histories)


@each_algorithm
@parametrized
def test_times_and_remaining_are_honest(kind: Kind, algorithm: str) -> None:
    def check(make: Callable[[], Line], history: list[tuple[float, str, int]]) -> None:
        line = make()
        line.live(history)
        honest_times(line)

    on_rigs(check, kind, algorithm, histories)


@each_algorithm
@parametrized
def test_asking_without_taking_changes_nothing(kind: Kind, algorithm: str) -> None:
    def check(
        make: Callable[[], Line],
        history: list[tuple[float, str, int]],
        parts: list[float],
        cost: int,
    ) -> None:
        line = make()
        line.live(history)
        rig, plan = line.rig, line.plan
        slot = rig.now + rig.look(plan, "key", plan.capacity)[0]
        dumped = rig.dump(plan, "key")
        for part in parts:
            rig.after(min(part * plan.period, slot - rig.now) // 1)
            rig.look(plan, "key", cost)
            rig.run(plan, "key", 0, FOREVER)
            rig.run(plan, "key", plan.capacity + 1, FOREVER)
            if rig.look(plan, "key", cost)[0] > 0:
                rig.run(plan, "key", cost, 0)
            assert rig.now + rig.look(plan, "key", plan.capacity)[0] == slot
            assert rig.dump(plan, "key") == dumped

    on_rigs(check, kind, algorithm, histories, st.lists(elapsed, max_size=6), st.integers(1, 14))


@each_algorithm
@parametrized
def test_all_who_cancel_leave_no_trace(kind: Kind, algorithm: str) -> None:
    """Some ask and all of those cancel, in any order, while they wait: as if none had asked."""

    def check(
        make: Callable[[], Line],
        history: list[tuple[float, str, int]],
        asking: list[tuple[float, int]],
        leaving: list[tuple[float, int]],
    ) -> None:
        line, never_asked = make(), Line(Rig(Kind("memory"), algorithm), "1/s")
        never_asked.plan = line.plan
        # An equal line on a store of its own, to compare with.
        for each in (line, never_asked):
            each.live([act for act in history if act[1] != "cancel"])
        rig, other, plan = line.rig, never_asked.rig, line.plan
        tickets: list[Any] = []

        def pass_time(part: float) -> None:
            """Up to the first slot: whoever was there is served, and cancels nothing any more."""
            most = min((t.slot for t in tickets), default=inf) - rig.now - 1
            for each in (line, never_asked):
                each.pass_time(min(part * plan.period / 10, most))

        for part, cost in asking:
            pass_time(part)
            ticket, wait, *_ = rig.run(plan, "key", 1 + cost % plan.capacity, FOREVER)
            if wait == 0:
                other.run(plan, "key", 1 + cost % plan.capacity)
            else:
                tickets.append(ticket)
        for part, number in leaving:
            pass_time(part)
            if tickets:
                rig.withdraw(tickets.pop(number % len(tickets)))
        while tickets:
            rig.withdraw(tickets.pop())
        for cost in (1, plan.capacity):
            assert rig.look(plan, "key", cost) == other.look(plan, "key", cost)

    some = st.lists(
        st.tuples(st.sampled_from([0.0, 0.0, 0.1, 1.0]), st.integers(0, 50)), max_size=6
    )
    on_rigs(check, kind, algorithm, histories, some, some)


@each_algorithm
@parametrized
def test_refunds_never_overflow(kind: Kind, algorithm: str) -> None:
    def check(
        make: Callable[[], Line],
        history: list[tuple[float, str, int]],
        changes: list[tuple[int, float | None]],
    ) -> None:
        line = make()
        line.live(history)
        rig, plan = line.rig, line.plan
        for delta, back in changes:
            slot = None if back is None else rig.now - back * plan.period // 1
            rig.adjust(plan, "key", delta, slot)
            wait, remaining, reset_after = rig.look(plan, "key", plan.capacity + 1)
            assert wait == inf
            assert 0 <= remaining <= plan.capacity
            assert reset_after >= 0
        honest_times(line)

    changes = st.lists(
        st.tuples(st.integers(-20, 20), st.one_of(st.none(), st.floats(-1, 2))), max_size=8
    )
    on_rigs(check, kind, algorithm, histories, changes)


@each_algorithm
def test_those_who_stay_keep_their_slots_and_nothing_is_lost(algorithm: str) -> None:
    """Some of those in line cancel; once all are served, the key is never worse than if those who
    cancelled had been served as well."""

    def check(make: Callable[[], Line], costs: list[int], leaving: list[int], part: float) -> None:
        line, all_stay = make(), Line(Rig(Kind("memory"), algorithm), "1/s")
        all_stay.plan = line.plan
        plan = line.plan
        for each in (line, all_stay):
            each.ask(plan.capacity, 0)
            for cost in costs:
                each.ask(1 + cost % plan.capacity, FOREVER)
        for number in leaving:
            if line.waiting:
                line.rig.withdraw(line.waiting.pop(number % len(line.waiting)))
        last = max((t.slot for t in all_stay.waiting), default=all_stay.rig.now)
        for each in (line, all_stay):
            each.pass_time(last - each.rig.now + part * plan.period)
        within_bounds(line)
        for cost in (1, plan.capacity):
            stayed = all_stay.rig.look(plan, "key", cost)
            left = line.rig.look(plan, "key", cost)
            assert left[0] <= stayed[0]
            assert left[1] >= stayed[1]
        honest_times(line)

    on_rigs(
        check,
        Kind("memory"),
        algorithm,
        st.lists(st.integers(0, 20), max_size=8),
        st.lists(st.integers(0, 20), max_size=5),
        st.floats(0, 1),
    )
