"""Several rules of one key, on histories that nobody thought of: by all or by none, never too many,
each in its turn, and the same in every store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.contract import FOREVER, Kind, Rig
from tests.joints import (
    KEY,
    Crowd,
    admit,
    algorithms,
    dumps,
    histories,
    joint_of,
    look_of,
    numbers,
    pauses,
    plans_of,
    quotas,
    several_rules,
    states,
)
from tests.servers import Server, binaries
from throttled.algorithms.plan import LOOK
from throttled.result import RateLimitResult

#: What part of the examples each kind of store gets; what follows compares them all.
PARTS = {Kind("memory"): 0.25, Kind("memory", True): 2, Kind("fakeredis"): 6}


def on_rigs(kind: Kind, check: Callable[..., None], *strategies: Any) -> None:
    """Run a check with hypothesis, each example on a fresh rig."""

    @settings(max_examples=max(int(settings().max_examples / PARTS[kind]), 1))
    @given(st.tuples(*strategies))
    def run(values: tuple[Any, ...]) -> None:
        rig = Rig(kind)
        try:
            check(rig, *values)
        finally:
            rig.close()

    run()


each_kind = pytest.mark.parametrize("kind", PARTS, ids=str)


@each_kind
def test_never_too_many_by_any_rule_and_each_in_its_turn(kind: Kind) -> None:
    """Calls, waits, cancellations and refunds of some that keep one rule and some that keep more.

    `Crowd.ask` checks each call: it is admitted if each rule alone would, has to wait for the
    slowest, gets the same slot by all, and stands behind those who asked before it.
    """

    def check(rig: Rig, rules: Sequence[tuple[str, str]], history: Any) -> None:
        crowd = Crowd(rig, rules)
        crowd.live(history)
        crowd.empty()
        crowd.within_bounds()

    on_rigs(kind, check, several_rules, histories)


@each_kind
def test_sleeping_until_it_fits_is_enough_and_one_microsecond_less_is_not(kind: Kind) -> None:
    def check(rig: Rig, rules: Sequence[tuple[str, str]], history: Any, cost: int) -> None:
        crowd = Crowd(rig, rules)
        crowd.live(history)
        joint = joint_of(rig, crowd.plans)
        cost = 1 + cost % joint.capacity
        result, _ = admit(rig, joint, cost)
        if not result.limited:
            return
        wait = round(result.state.retry_after * 1e6)
        assert wait > 0
        rig.after(wait - 1)
        assert admit(rig, joint, cost)[0].state.retry_after == 1e-6
        rig.after(1)
        assert admit(rig, joint, cost)[0].allowed

    on_rigs(kind, check, several_rules, histories, numbers)


@each_kind
def test_a_crowd_that_gives_up_in_any_order_leaves_no_trace(kind: Kind) -> None:
    def check(
        rig: Rig,
        rules: Sequence[tuple[str, str]],
        history: Any,
        asking: list[tuple[int, int]],
        leaving: list[int],
    ) -> None:
        crowd = Crowd(rig, rules)
        crowd.live(history)
        found = states(rig, crowd.plans)
        tickets: list[Any] = []
        for which, cost in asking:
            joint = crowd.choices[which % len(crowd.choices)]
            cost = 1 + cost % joint.capacity
            if look_of(rig, joint, cost).state.retry_after:
                tickets.append(admit(rig, joint, cost, FOREVER)[1])
        for number in leaving:
            if tickets:
                rig.withdraw(tickets.pop(number % len(tickets)))
        while tickets:
            rig.withdraw(tickets.pop())
        assert states(rig, crowd.plans) == found

    asking = st.lists(st.tuples(numbers, numbers), min_size=1, max_size=7)
    on_rigs(kind, check, several_rules, histories, asking, st.lists(numbers, max_size=7))


@settings(max_examples=150)
@given(
    several_rules,
    st.lists(st.tuples(pauses, st.booleans(), numbers, numbers), max_size=25),
)
def test_it_admits_what_copies_of_its_rules_admit_alone(
    rules: list[tuple[str, str]], calls: list[tuple[int, bool, int, int]]
) -> None:
    """Each rule has a copy in a store of its own. What all copies would admit they take."""
    rig = Rig(Kind("memory"))
    plans = plans_of(rig, rules)
    joint = joint_of(rig, plans)
    copies = [Rig(Kind("memory")) for _ in plans]
    for pause, single, which, cost in calls:
        rig.after(pause)
        cost %= joint.capacity + 2
        chosen = [which % len(plans)] if single else [*range(len(plans))]
        for copy in copies:
            copy.clock.set(rig.clock.now)
        waits = [copies[place].look(plans[place], KEY, cost)[0] for place in chosen]
        asked = joint_of(rig, [plans[place] for place in chosen])
        assert admit(rig, asked, cost)[0].allowed == (max(waits) == 0)
        if max(waits) == 0 and cost:
            for place in chosen:
                copies[place].run(plans[place], KEY, cost)
        for plan, copy in zip(plans, copies, strict=True):
            assert rig.dump(plan, KEY) == copy.dump(plan, KEY)


# -- the same everywhere --------------------------------------------------------------------------

#: µs by which the clock steps back, by less or more than a period.
BACK = (10, 1_000, 50_000, 400_000, 1_500_000, 20_000_000, 7_200_000_000, 100_000_000_000)

steps = st.tuples(
    pauses,
    st.sampled_from(
        ["ask", "ask", "wait", "wait", "single", "queue", "look", "adjust", "penalty", "bind"]
    ),
    numbers,
    numbers,
)
going_on = st.tuples(
    pauses, st.sampled_from(["wait", "cancel", "cancel", "undo", "arrive"]), numbers, numbers
)
#: What was promised before a clock steps back is put back as it was then, or as it is now.
stepping = st.tuples(st.sampled_from([-pause for pause in BACK]), st.just("look"), numbers, numbers)


class World:
    """One store of those that are compared."""

    def __init__(self, rig: Rig, prefix: str, rules: Any, fixed: Any, hold: bool) -> None:
        self.rig = rig
        rig.prefix = prefix
        rig.clock.set(1_700_000_000.123457)
        if not rig.kind.memory:
            rig.store._denials.seconds = 0.0  # it is the server that is to be heard
        self.plans = plans_of(rig, rules)
        self.joint = joint_of(rig, self.plans, fixed[: len(self.plans)], hold)
        self.tickets: list[Any] = []

    def do(self, pause: int, what: str, which: int, number: int) -> Any:
        """Take a step: what it answers, and all that is stored then."""
        rig, joint, plan = self.rig, self.joint, self.plans[which % len(self.plans)]
        rig.clock.set((rig.now + pause) / 1e6)
        cost = number % (min(joint.capacity, 5) + 2)
        answer: Any = None
        match what:
            case "ask" | "wait" | "look":
                patience = {"ask": 0.0, "look": LOOK}.get(what, (FOREVER, 1e6, 1e8)[which % 3])
                answer = self.told(*admit(rig, joint, cost, patience))
            case "single" | "queue":
                patience = 0.0 if what == "single" else FOREVER
                cost = number % (plan.capacity + 2)
                answer = self.told(*admit(rig, joint_of(rig, [plan]), cost, patience))
            case "bind":
                result = rig.wait(rig.store.bind(joint)(KEY, cost, 0.0 if cost else LOOK))
                answer = result.limited, result.states, result.binding, result.held
            case "adjust":
                slot = self.tickets[-1].slot if self.tickets and number % 3 else None
                answer = rig.adjust(plan, KEY, number % 9 - 4, slot)
            case "penalty" if joint.holds:
                answer = rig.adjust(
                    joint.holds[0], KEY, (1, 10**5, 5 * 10**6, 9 * 10**9)[which % 4]
                )
            case "cancel" if self.tickets:
                rig.withdraw(self.tickets.pop(-1 if number % 2 else which % len(self.tickets)))
            case "undo" if self.tickets:
                answer = [rig.undo(part) for part in self.tickets.pop().parts]
            case "arrive" if self.tickets:
                rig.arrived(self.tickets.pop(0))
        return answer, [text or None for text in dumps(rig, joint.members)]

    def told(self, answer: Any, ticket: Any) -> Any:
        parts = ticket and [(part.slot, part.cost, part.wait) for part in ticket.parts]
        if isinstance(answer, RateLimitResult):
            return answer.limited, answer.states, answer.binding, answer.held, parts
        self.tickets.append(ticket)
        looks = [tuple(number + 0.0 for number in look) for look in answer[2]]
        return answer[1], looks, parts


@pytest.fixture(scope="module")
def rigs(valkey: Server) -> Any:
    """Memory, fakeredis and a real server, sync and async."""
    kinds = [Kind("memory"), Kind("fakeredis", True), Kind("valkey")]
    made = [Rig(kind, "", valkey.url, valkey.client() if kind.real else None) for kind in kinds]
    yield made
    for rig in made:
        rig.close()
        if rig.kind.real:
            rig.raw.close()


counter = count()
fixed_costs = st.lists(st.sampled_from([None, None, None, 1]), min_size=3, max_size=3)


@pytest.mark.server
@pytest.mark.parametrize("back", [False, True], ids=["waiting", "clock steps back"])
def test_memory_and_servers_agree_bit_for_bit(rigs: list[Rig], back: bool) -> None:
    assert "valkey" in binaries()

    @settings(max_examples=250)
    @given(
        st.lists(st.tuples(algorithms, quotas), min_size=1, max_size=3),
        fixed_costs,
        st.booleans(),
        st.lists(st.one_of(steps, stepping if back else going_on), min_size=4, max_size=20),
    )
    def run(rules: Any, fixed: Any, hold: bool, history: Any) -> None:
        prefix = f"throttled:agree{next(counter)}"
        worlds = [World(rig, prefix, rules, fixed, hold) for rig in rigs]
        for step in history:
            ours, *others = [world.do(*step) for world in worlds]
            for world, theirs in zip(worlds[1:], others, strict=True):
                assert theirs == ours, (str(world.rig.kind), step)

    run()
