"""What is recorded of several rules of one key."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

from tests.vectors.timeline import FOREVER, START, JointTimeline

#: One of each kind, and quotas from short to long periods.
KINDS = ("gcra", "fixed_window", "sliding_window", "sliding_window_log")
QUOTAS = ("3/7ms burst 4", "1/100ms", "5/s", "2/s burst 1", "7/3s burst 3", "10/m", "2/d")


def together(t: JointTimeline) -> None:
    """By all or by none: used up by one, then by all, costs that never fit, and a promise far off
    into keys that nothing is stored of."""
    t.look(0)
    t.look(t.capacity())
    t.call(t.capacity() + 1)
    t.admit(t.capacity() + 1, FOREVER)
    t.admit()
    t.call()
    for place in t.all:
        free = int(t.look(1, [place])["told"][0].split()[0])
        if free:
            t.admit(free, 0, [place])
        t.call()
        t.admit()
        t.after(1_000)
    promise = t.admit(1, FOREVER)
    if "promise" in promise:
        t.withdraw(promise["promise"])
    t.call(0)


def put_off(t: JointTimeline) -> None:
    """The first rule is used up, and puts off the promises of the others, who take them back."""
    t.adjust(0, int(t.look(1, [0])["told"][0].split()[0]))
    promises = [t.admit(1, FOREVER)["promise"] for _ in range(3)]
    for place in t.all[1:]:
        t.look(1, [place])
        t.admit(1, FOREVER, [place])
    for promise in (promises[1], promises[2], promises[0]):
        t.withdraw(promise)
    t.look()
    alone = t.admit(1, FOREVER)
    t.after(float(alone["wait"]) - 1)
    t.look(1, t.all[1:])
    t.after(1)
    t.admit(1, FOREVER)
    t.look(1, t.all[1:])


def held(t: JointTimeline) -> None:
    """Penalties: a longer one, a shorter one, callers who wait for their end, and a clock that
    steps back."""
    t.admit()
    t.penalize(2_000_000)
    t.call()
    t.penalize(1_000_000)
    t.look()
    promise = t.admit(1, FOREVER)["promise"]
    t.withdraw(promise)
    t.after(1_999_999)
    t.call()
    t.after(1)
    t.call()
    t.penalize(500_000)
    t.after(-400_000)
    t.call()
    t.after(-3_000_000)
    t.call()
    t.admit(1, FOREVER)
    t.penalize(1)


def shortly_back(t: JointTimeline) -> None:
    """The clock steps back by less than a period, and a slot lies before what was written."""
    for _ in range(2):
        t.admit()
        t.after(-50_000)
        t.penalize(10_000)
        t.look()
        t.admit(1, FOREVER)
        t.after(10_000)
        t.call()
        t.after(100_000)
        t.call()


def wandering_together(seed: int) -> Callable[[JointTimeline], None]:
    """Any of it in any order; the clock steps back in every other one, and nothing is withdrawn."""

    def wander(t: JointTimeline) -> None:
        dice = Random(seed)

        def below(n: int) -> int:
            return int(dice.random() * n)

        promises: list[int] = []
        for _ in range(60):
            t.after((0, 0, 1, 3_000, 100_000, 333_333, 5_000_000, 61_000_000)[below(8)])
            if seed % 2 and not below(8):
                t.after(-(10, 50_000, 400_000, 20_000_000, 100_000_000_000)[below(5)])
            by = t.all if below(3) else [below(len(t.all))]
            cost = below(min(t.capacity(by), 5) + 2)
            what = below(10)
            if what < 2:
                t.admit(cost, 0, by)
            elif what < 4:
                t.call(max(cost, 1), by)
            elif what < 6:
                step = t.admit(cost, (FOREVER, 1_000_000)[below(2)], by)
                if "promise" in step:
                    promises.append(step["promise"])
            elif what < 8 and promises and seed % 2 == 0:
                t.withdraw(promises.pop(-1 if below(2) else below(len(promises))))
            elif what == 8:
                t.adjust(below(len(t.all)), (1, 2, -1, -3)[below(4)])
            elif not below(3):
                t.penalize((1, 10_000, 5_000_000, 90_000_000_000)[below(4)])
            else:
                t.look(cost, by)

    return wander


def joint_timelines() -> Iterator[JointTimeline]:
    """The recorded timelines of several rules."""
    scripts = (
        ("together", together),
        ("put off", put_off),
        ("held", held),
        ("shortly back", shortly_back),
    )
    for name, script in scripts:
        for first in KINDS:
            for second in KINDS:
                rules = [(first, "3/m burst 2", None), (second, "5/s", None)]
                t = JointTimeline(f"{name}: {first}, {second}", rules, START)
                script(t)
                yield t
    rules = [(kind, "4/s", None) for kind in KINDS]
    for name, script in scripts:
        t = JointTimeline(f"{name}: all", [("fixed_window", "2/d", 1), *rules], START)
        script(t)
        yield t
    for seed in range(24):
        dice = Random(seed)
        rules = [
            (
                KINDS[int(dice.random() * len(KINDS))],
                QUOTAS[int(dice.random() * len(QUOTAS))],
                None if dice.random() < 0.8 else 1,
            )
            for _ in range(2 + seed // 2 % 2)
        ]
        t = JointTimeline(f"wandering {seed}", rules, START)
        wandering_together(seed)(t)
        yield t
