"""Writes the golden vectors anew: `python -m tests.vectors.make`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from random import Random

import throttled
from tests.vectors.joints import joint_timelines
from tests.vectors.timeline import FOREVER, START, Timeline, document
from throttled.algorithms.plan import ALGORITHMS, RULES

#: They are part of the contract: see `throttled.contract`.
HERE = Path(throttled.__file__).parent / "contract" / "vectors"
#: The name of the file of several rules.
JOINTS = "joints"


def plain(t: Timeline) -> None:
    """Calls that fit or not, at uneven intervals, up to a reset."""
    t.look(0)
    t.look(t.capacity)
    for cost in (1, 1, 3, 0, t.capacity, 2):
        t.admit(cost)
        t.look()
        t.after(t.period // 37)
    t.drain()
    for divisor in (97, 10, 3, 2, 1):
        t.admit()
        t.after(t.period // divisor)
    t.drain()
    t.admit()
    wait = float(t.look()["wait"])
    t.after(wait - 1)
    t.admit()
    t.after(1)
    t.admit()
    t.settle()
    t.after(10 * t.period)
    t.admit(t.capacity)
    t.admit()


def never(t: Timeline) -> None:
    """Costs above the capacity never fit, and change nothing."""
    for cost in (t.capacity + 1, 2 * t.capacity + 7, 10**9 + 1):
        t.look(cost)
        t.admit(cost)
        t.admit(cost, FOREVER)
    t.admit(1)
    t.admit(t.capacity + 1, FOREVER)
    t.admit(t.capacity)
    t.look(t.capacity)


def looking(t: Timeline) -> None:
    """Looks, refusals and cost 0 change nothing, at any patience."""
    t.drain()
    for _ in range(3):
        t.look(0)
        t.look(t.capacity)
        t.admit(0)
        t.admit(0, FOREVER)
        t.admit(1)
        t.admit(t.capacity, 1)
        t.after(t.period // 11)


def waiting(t: Timeline) -> None:
    """Promises queue behind each other; patience decides which are made."""
    t.drain()
    wait = float(t.look()["wait"])
    t.admit(1, wait - 1)
    t.admit(1, wait)
    for cost in (1, 2, 1, t.capacity, 1):
        wait = min(float(t.look(cost)["wait"]), FOREVER)
        t.admit(cost, wait - 1)
        t.admit(cost, wait)
        t.admit()
        t.after(t.period // 29)
    for _ in range(6):
        t.after(t.period // 2)
        t.admit(1)
        t.admit(1, t.period)
        t.look(t.capacity)
    t.settle()
    t.admit()


def giving_up(t: Timeline) -> None:
    """Undone promises, last first and out of order, with time passing in between."""
    t.drain()
    for _ in range(5):
        t.admit(1, FOREVER)
    for promise in (4, 2, 3, 2, 1):
        t.undo(promise)
        t.look()
    t.after(t.period // 5)
    behind = t.admit(min(2, t.capacity), FOREVER)
    t.undo(0)
    if "promise" in behind:
        t.undo(behind["promise"])
    t.undo(0)
    t.look(t.capacity)
    t.settle()
    t.drain()
    late = t.admit(1, FOREVER)
    t.after(20 * t.period)
    t.undo(late["promise"])
    t.look(t.capacity)


def settling(t: Timeline) -> None:
    """Charges and refunds: unconditional, past the limit, back, and more than was taken."""
    t.adjust(-1)
    t.adjust(0)
    t.adjust(2)
    t.look(t.capacity)
    t.adjust(-1)
    t.adjust(-5)
    t.look(t.capacity)
    t.drain()
    t.adjust(-1)
    t.admit()
    t.adjust(3)
    t.look()
    t.adjust(t.capacity)
    t.look()
    t.after(t.period // 3)
    t.adjust(-2, START + t.period)
    t.adjust(-2, START)
    t.look()
    t.after(t.period)
    t.look()
    t.adjust(-1, t.now - 2 * t.period)
    t.adjust(-1, t.now - t.period // 4)
    t.settle()


def returning(t: Timeline) -> None:
    """Giving back at a slot while others are promised later ones."""
    t.drain()
    slots = [t.admit(min(cost, t.capacity), FOREVER)["slot"] for cost in (1, 2, 1, 3)]
    for slot in (slots[1], slots[0], slots[1]):
        t.adjust(-1, slot)
        t.look()
    t.after(t.period // 7)
    t.adjust(-3, slots[3])
    t.look()
    t.admit(1, FOREVER)
    t.adjust(2, slots[2])
    t.adjust(-1)
    t.look(t.capacity)
    t.settle()


def lowering(t: Timeline) -> None:
    """A quota that is lowered and raised while it is in use."""
    first, unit = t.quota.split(" ")[0].split("/")
    t.admit(max(t.capacity // 2, 1))
    t.requota(f"{max(int(first) // 3, 1)}/{unit}")
    t.look()
    t.admit()
    t.admit(1, FOREVER)
    t.after(t.period // 4)
    t.look()
    t.requota(f"{int(first) * 2}/{unit}")
    t.look()
    t.drain()
    t.admit(1, FOREVER)
    t.requota(f"1/{unit}")
    t.look()
    t.admit(1, FOREVER)
    t.requota(t.quota)
    t.look(t.capacity)
    t.settle()


def stepping(t: Timeline) -> None:
    """A clock that steps back by less, and by more, than the period."""
    t.drain()
    t.back(t.period // 3)
    t.look()
    t.admit()
    t.after(t.period // 3 + t.period // 5)
    t.look()
    t.back(3 * t.period)
    t.look()
    t.admit()
    t.admit(1, 2 * t.period)
    t.look(t.capacity)
    t.after(2 * t.period)
    t.admit()
    t.back(100 * t.period)
    t.look()
    t.admit(1, 100 * t.period)
    t.settle()


def boundaries(t: Timeline) -> None:
    """Calls around the boundaries of the windows, and after idle ones."""
    t.boundary(-2)
    for _ in range(4):
        t.drain()
        t.admit()
        t.look(t.capacity)
        t.after(1)
    t.boundary()
    t.drain()
    t.boundary(-1)
    t.drain()
    t.after(1)
    t.look()
    t.drain()
    t.admit(t.capacity, FOREVER)
    t.boundary()
    t.look()
    t.boundary(1)
    t.admit()
    t.after(2 * t.period)
    t.look()
    t.admit()
    t.boundary(t.period // 2)
    t.drain()


def wandering(seed: int) -> Callable[[Timeline], None]:
    """Any of it in any order. Only `random()` is used: its numbers never change."""

    def wander(t: Timeline) -> None:
        dice = Random(seed)

        def below(n: int) -> int:
            return int(dice.random() * n)

        promises: list[tuple[int, str]] = []
        for _ in range(60):
            if below(3):
                t.after((0, 1, t.period // 10, t.period // 3, t.period, 5 * t.period)[below(6)])
            what = below(10)
            if what < 6:
                cost = (0, 1, 1, 2, t.capacity, max(t.capacity // 3, 1), t.capacity + 1)[below(7)]
                patience = (0, 0, t.period, 7 * t.period, FOREVER)[below(5)]
                step = t.admit(cost, patience)
                if "promise" in step:
                    promises.append((step["promise"], step["slot"]))
            elif what < 8 and promises:
                promise, slot = promises.pop(-1 if below(2) else below(len(promises)))
                if below(4):
                    t.undo(promise)
                else:
                    t.adjust(-1, slot)
            elif what == 8:
                t.look(1 + below(t.capacity))
            else:
                t.adjust((1, 2, -1, -3)[below(4)], (None, t.now, t.now - t.period // 2)[below(3)])
        t.settle()

    return wander


#: What is recorded for every algorithm: name, quota, script. Bursts mean nothing to windows.
TIMELINES: tuple[tuple[str, str, Callable[[Timeline], None]], ...] = (
    ("plain", "10/s", plain),
    ("plain, burst above the limit", "10/s burst 25", plain),
    ("plain, a rate that does not divide", "7/s burst 5", plain),
    ("one", "1/s", plain),
    ("one at a time", "100/s burst 1", plain),
    ("never fits", "5/m", never),
    ("looking", "6/m", looking),
    ("waiting", "10/s", waiting),
    ("waiting, one at a time", "100/s burst 1", waiting),
    ("waiting, thirds of a µs", "3/10ms burst 2", waiting),
    ("giving up", "4/s", giving_up),
    ("giving up, one at a time", "3/s burst 1", giving_up),
    ("settling", "8/m", settling),
    ("returning", "6/s", returning),
    ("returning, one at a time", "9/s burst 1", returning),
    ("lowering", "30/m", lowering),
    ("stepping", "5/s", stepping),
    ("stepping, longer period", "3/h burst 2", stepping),
    ("boundaries", "10/s", boundaries),
    ("boundaries, one", "1/250ms", boundaries),
    ("one a week", "1/w", plain),
    ("one a week, waiting", "1/w", waiting),
    ("shortest period", "3/ms", plain),
    ("shortest period, waiting", "3/ms", waiting),
    ("shortest period, giving up", "2/ms", giving_up),
    ("longest period", "1000/366d", plain),
    ("longest period, waiting", "1000/366d burst 10", waiting),
    ("a million a second", "1000000/s", plain),
    ("a million a second, waiting", "1000000/s", waiting),
    *(
        (f"wandering {n}", quota, wandering(n))
        for n, quota in enumerate(
            ("5/s", "10/m burst 3", "1/s", "100/s burst 1", "3/7ms burst 4", "1000/h", "17/366d")
        )
    ),
)

#: Beyond what a log remembers.
LARGE: tuple[tuple[str, str, Callable[[Timeline], None]], ...] = (
    ("a thousand million a second", "1000000000/s", plain),
    ("a thousand million a second, waiting", "1000000000/s", waiting),
    ("a thousand million a second, settling", "1000000000/s", settling),
    # limit x period is 3e22, and 2**53 about 9e15: a double no longer holds every whole number.
    ("beyond 2**53", "999999937/366d", plain),
    ("beyond 2**53, waiting", "999999937/366d", waiting),
    ("beyond 2**53, giving up", "10000000/d burst 999999937", giving_up),
    ("beyond 2**53, settling", "999999937/w", settling),
    ("beyond 2**53, boundaries", "999999937/d", boundaries),
    ("beyond 2**53, stepping", "999999937/w", stepping),
    ("beyond 2**53, wandering", "999999937/30d burst 7919", wandering(53)),
)


def script_of(algorithm: str) -> str:
    """A short digest of all the Lua that decides for an algorithm."""
    package = Path(throttled.__file__).parent
    rules = RULES if algorithm == JOINTS else [ALGORITHMS[algorithm].__name__.rpartition(".")[2]]
    files = ("store/prelude.lua", *(f"algorithms/{rule}.lua" for rule in rules), "store/decide.lua")
    return sha256(b"".join((package / file).read_bytes() for file in files)).hexdigest()[:16]


def timelines(algorithm: str) -> Iterator[Timeline]:
    """The recorded timelines of one algorithm."""
    for name, quota, script in TIMELINES + (() if algorithm == "sliding_window_log" else LARGE):
        timeline = Timeline(algorithm, name, quota, START)
        script(timeline)
        yield timeline


def make(algorithm: str) -> str:
    """The vectors of one algorithm, or of joints, as the text of their file."""
    if algorithm == JOINTS:
        return document(algorithm, script_of(algorithm), joint_timelines())
    return document(algorithm, script_of(algorithm), timelines(algorithm))


if __name__ == "__main__":
    for algorithm in (*ALGORITHMS, JOINTS):
        (HERE / f"{algorithm}.json").write_text(make(algorithm), "utf-8")
        print(f"throttled/contract/vectors/{algorithm}.json")
