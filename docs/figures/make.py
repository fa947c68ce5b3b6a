"""Draws the figures of the documents anew: `make figures`.

Each is worked out by the library on a clock of its own, so none shows what it does not do.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from throttled import MemoryStore, Throttled
from throttled.cli import chart
from throttled.simulation import Traffic, simulate
from throttled.testing import FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

HERE: Final = Path(__file__).parent
MS: Final = 1_000  # in µs
#: The begin of a window, in µs since the Unix epoch.
BEGIN: Final = 1_700_000_000_000_000


@dataclass(frozen=True)
class Bursts(Traffic):
    """Twice the rate half of the time: from 0.6 s, and again 5 s later, and so on."""

    def instants(self) -> array[int]:
        """As those of any traffic, in µs."""
        gap = 500_000 / self.rate
        turns = range(600 * MS, int(self.duration * 1e6), 5_000 * MS)
        return array(
            "q", [turn + int(call * gap) for turn in turns for call in range(int(2.5e6 / gap))]
        )


def algorithms(path: str) -> None:
    """All six on the same bursts, of half as much again as the limit allows."""
    result = simulate("100/s burst 200", Bursts("bursty", rate=150, duration=10))
    chart.draw_traffic(result, path)


def waiting(path: str) -> None:
    """Bursts that calls wait to get through."""
    result = simulate(
        "100/s burst 1",
        Bursts("bursty", rate=90, duration=10),
        using=["fixed_window", "sliding_window_log", "gcra"],
        timeout=3,
    )
    chart.draw_traffic(result, path)


def fixed_window(path: str) -> None:
    """N at the end of a window, N at the start of the next."""
    worst = Worst("fixed_window", "10/s", range(800 * MS, 1_400 * MS, 20 * MS), until=2_400 * MS)
    said = "Calls around the end of a window of 1 s: 10 are admitted before it and 10 after."
    draw_worst(path, worst, "count of the window", (20, "2 N"), said)


def sliding_window(path: str) -> None:
    """N at the end of a window that was empty before, then as many as the estimate allows."""
    calls = [*range(980 * MS, 1_000 * MS, MS), *range(1_000 * MS, 2_000 * MS, 10 * MS)]
    worst = Worst("sliding_window", "20/s", calls, until=2_900 * MS)
    said = "20 calls at the end of a window of 1 s, and more than can be admitted in the next."
    draw_worst(path, worst, "estimate", (40, "2 N"), said)


def bucket(path: str) -> None:
    """A full credit spent at once, the rate behind it, and a pause that saves for the next."""
    calls = [*range(1_000 * MS, 4_000 * MS, 20 * MS), *range(6_000 * MS, 7_500 * MS, 20 * MS)]
    worst = Worst("token_bucket", "10/s burst 30", calls, until=9_000 * MS)
    said = "50 calls per second, twice: the credit is spent, then calls pass at its rate of refill."
    draw_worst(path, worst, "credit", (40, "B + N"), said)


#: Name of the file -> what draws it. All of them are in the documents, and no others.
FIGURES: Final[dict[str, Callable[[str], None]]] = {
    "algorithms.svg": algorithms,
    "fixed-window.svg": fixed_window,
    "sliding-window.svg": sliding_window,
    "bucket.svg": bucket,
    "waiting.svg": waiting,
}


class Worst:
    """One algorithm with the calls that bring the most out of it.

    `calls` and `until` in µs from the begin of a window.
    """

    def __init__(self, using: str, quota: str, calls: Iterable[int], until: int) -> None:
        self.using = using
        self.quota = quota
        self.until = until
        self.admitted: list[int] = []
        self.refused: list[int] = []
        #: What remained after each ms, and after each of the calls.
        self.remaining: dict[int, int] = {}
        clock = FakeClock()
        throttle = Throttled(using=using, quota=quota, store=MemoryStore(clock=clock))
        (rule,) = throttle.rules
        self.limit = rule.quota.limit
        self.period = rule.quota.period_us
        due = set(calls)
        for time in sorted({*due, *range(0, until + 1, MS)}):
            clock.set((BEGIN + time) / 1e6)
            if time in due:
                allowed = throttle.limit("key").allowed
                (self.admitted if allowed else self.refused).append(time)
            self.remaining[time] = throttle.peek("key").remaining

    def trailing(self) -> dict[int, int]:
        """How many were admitted within the period up to each of these times."""
        return {
            time: sum(time - self.period < each <= time for each in self.admitted)
            for time in self.remaining
        }


def steps(values: dict[int, int]) -> tuple[list[float], list[int]]:
    """The times, in seconds, at which values change, and those values; and the last of both."""
    last = max(values)
    kept: dict[int, int] = {}
    for time, value in values.items():
        if time == last or not kept or value != kept[max(kept)]:
            kept[time] = value
    return [time / 1e6 for time in kept], list(kept.values())


def draw_worst(path: str, worst: Worst, counted: str, bound: tuple[int, str], said: str) -> None:
    """The calls as ticks; below, what was admitted in any period, and what the algorithm counts."""
    with chart.look():
        _draw_worst(path, worst, counted, bound, said)


def _draw_worst(path: str, worst: Worst, counted: str, bound: tuple[int, str], said: str) -> None:
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=(7.2, 3.4), layout="constrained")
    ticks, axes = figure.subplots(2, 1, sharex=True, height_ratios=[1, 5])
    for row, (colour, calls) in enumerate(
        [("#888888", worst.refused), ("#0072B2", worst.admitted)]
    ):
        times = [each / 1e6 for each in calls]
        ticks.plot(times, [row] * len(times), "|", color=colour, markersize=9, markeredgewidth=0.9)
    ticks.set_yticks([0, 1], ["refused", "admitted"])
    ticks.set_ylim(-0.5, 1.5)
    ticks.tick_params(left=False, bottom=False)
    ticks.spines[:].set_visible(False)

    trailing = worst.trailing()
    times, values = steps(trailing)
    axes.stairs(
        values[:-1],
        times,
        fill=True,
        label="admitted within the last second",
        facecolor="#9ECAE9",
        edgecolor="#0072B2",
        linewidth=0.8,
    )
    spent = counted != "credit"
    times, values = steps(
        {time: worst.limit - left if spent else left for time, left in worst.remaining.items()}
    )
    axes.step(times, values, where="post", color="black", linewidth=1.5, label=counted)
    for height, label in ((worst.limit, "N"), bound):
        axes.axhline(height, color="black", linewidth=0.8, linestyle=(0, (5, 3)))
        axes.annotate(
            label,
            (1, height),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
        )
    if "window" in worst.using:
        for each in (ticks, axes):
            for end in range(worst.period, worst.until, worst.period):
                each.axvline(end / 1e6, color="#666666", linewidth=0.9, linestyle=":", zorder=0.5)
    axes.set_xlim(0, worst.until / 1e6)
    axes.set_ylim(0, bound[0] * 1.1)
    axes.set_xlabel("time (s)")
    axes.set_ylabel("calls")
    heading = f"{worst.using}, {worst.quota}"
    figure.suptitle(heading, fontsize=10.5)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    most = f"Within one second, at most {max(trailing.values())} are admitted."
    chart.save(figure, path, heading, f"{said} {most}")


def make(directory: Path = HERE) -> None:
    """Draw all of them into a directory."""
    for name, figure in FIGURES.items():
        figure(str(directory / name))


if __name__ == "__main__":
    make()
