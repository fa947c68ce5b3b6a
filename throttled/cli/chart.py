"""Pictures: of measurements, a panel a store, and of simulated traffic, a panel an algorithm.

The same input gives the same bytes with the same version of matplotlib, whatever the user's own
settings of it are: so pictures can be kept under version control, and checked to be current.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from math import ceil
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any, Final
from xml.sax.saxutils import escape

from throttled._text import plain
from throttled.cli.endings import CommandError
from throttled.cli.output import duration

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from throttled.cli.measuring import Cell
    from throttled.quota import Rule
    from throttled.simulation import Run, Simulation

#: The kinds of file that are drawn.
SUFFIXES: Final = (".svg", ".png")

#: Told apart by people who do not see all colours (after Okabe and Ito), and by their marks: the
#: buckets are as fast as one another, and their lines lie close together.
_STYLES: Final = {
    "fixed_window": ("#0072B2", "o", "-"),
    "sliding_window": ("#56B4E9", "s", "-"),
    "sliding_window_log": ("#D55E00", "^", "-"),
    "token_bucket": ("#009E73", "D", "-"),
    "leaking_bucket": ("#CC79A7", "v", "--"),
    "gcra": ("#000000", "x", ":"),
}

#: Light and dark, so that they are told apart in black and white as well.
_OFFERED: Final = {"facecolor": "#DDDDDD", "edgecolor": "#777777", "linewidth": 0.7}
_ADMITTED: Final = {"color": "#0072B2", "linewidth": 0}
#: Of the lines that stand for limits, in turn; no picture has many.
_DASHES: Final = ((0, (5, 2)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))

_STEPS: Final = (1, 2, 5, 10)  # between the numbers of an axis

_LOOK: Final = {
    # Text stays text: it can be searched, read aloud, and is a tenth of the size of its outlines.
    # Verdana is as wide as DejaVu Sans, which not everybody has.
    "svg.fonttype": "none",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "sans-serif"],
    "svg.hashsalt": "throttled",  # or the ids within would differ each time
    "text.parse_math": False,  # a dollar in a name is a dollar
    "font.size": 9,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
}

#: Periods in seconds, as a quota writes them and in words.
_PERIODS: Final = (
    (1, "s", "second"),
    (60, "m", "minute"),
    (3_600, "h", "hour"),
    (86_400, "d", "day"),
)
#: Up to how many seconds a time is told in which unit.
_CLOCKS: Final = ((0.5, 1e-3, "ms"), (300, 1, "s"), (3 * 3_600, 60, "min"), (259_200, 3_600, "h"))


def check(path: str, what: str = "chart") -> None:
    """Make sure, before anything is worked out, that a picture can be drawn there."""
    if Path(path).suffix.lower() not in SUFFIXES:
        raise CommandError(f"Invalid {what}: {path!r}, must be a file that ends in .svg or .png.")
    if not Path(path).parent.is_dir():
        raise CommandError(f"{path}: there is no such directory to write it to.")
    import matplotlib  # noqa: F401  # pyright: ignore[reportUnusedImport] - only whether it is there


@contextmanager
def look() -> Generator[None]:
    """How all pictures look, whatever the settings of the user are."""
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.rcdefaults()
        settings: Any = mpl.rcParams
        settings.update(_LOOK)
        yield


def save(figure: Any, path: str, title: str, description: str) -> None:
    """Write a figure, with words for those who do not see it."""
    if Path(path).suffix.lower() == ".png":
        metadata = {"Title": title, "Description": description}
        figure.savefig(path, format="png", dpi=150, metadata=metadata)
        return
    drawn = StringIO()
    # Without the date: or no two pictures would be the same.
    figure.savefig(drawn, format="svg", metadata={"Title": title, "Date": None})
    text = drawn.getvalue()
    # matplotlib has no place for a description that screen readers would look at.
    text = text.replace("</title>", f"</title>\n <desc>{escape(description)}</desc>", 1)
    text = text.replace("<svg ", '<svg role="img" ', 1)
    Path(path).write_text(text, "utf-8", newline="\n")


def draw(cells: Sequence[Cell], path: str) -> None:
    """Draw measurements to a file: decisions a second over concurrency."""
    with look():
        _draw(cells, path)


def _draw(cells: Sequence[Cell], path: str) -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, FixedLocator, NullLocator

    stores = list(dict.fromkeys([cell.store for cell in cells]))
    counts = sorted({cell.concurrency for cell in cells})
    workers = "threads" if cells[0].flavour == "sync" else "tasks"
    figure: Any = Figure(figsize=(6.0 * len(stores) + 1.8, 4.6), layout="constrained")
    rows = figure.subplots(1, len(stores), squeeze=False)
    for axes, store in zip(rows[0], stores, strict=True):
        for using in dict.fromkeys([cell.using for cell in cells]):
            line = sorted(
                [cell for cell in cells if (cell.store, cell.using) == (store, using)],
                key=lambda cell: cell.concurrency,
            )
            colour, mark, dash = _STYLES[using]
            axes.plot(
                [cell.concurrency for cell in line],
                [cell.ops_per_s for cell in line],
                color=colour,
                marker=mark,
                linestyle=dash,
                markersize=5,
                label=using,
            )
        axes.set_title(store, fontsize=11)
        axes.set_xlabel(f"concurrency ({workers})")
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(counts))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticklabels([str(count) for count in counts])
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
        axes.grid(axis="y")
    rows[0][0].set_ylabel("decisions per second")
    handles, labels = rows[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False)
    best = max(cells, key=lambda cell: cell.ops_per_s)
    save(
        figure,
        path,
        f"Decisions per second, of {', '.join(stores)}",
        f"A panel a store, a line an algorithm, over the number of {workers} that call at once. "
        f"The most is {best.ops_per_s:,.0f}: {best.using} at {best.concurrency}, {best.store}.",
    )


def draw_traffic(result: Simulation, path: str, bins: int | None = None) -> None:
    """Draw a simulation to a file: what was offered and what was admitted, over time.

    With `bins` as `Simulation.timeline` takes them.
    """
    with look():
        _draw_traffic(result, path, bins)


def _draw_traffic(result: Simulation, path: str, bins: int | None) -> None:
    from matplotlib.figure import Figure

    areas = _areas(result, bins)
    heading = _heading(result)
    panels = len(result.runs)
    columns = 2 if panels in (2, 4) else min(panels, 3)
    lines = ceil(panels / columns)
    width = {1: 6.4, 2: 8.0, 3: 9.6}[columns]
    figure: Any = Figure(figsize=(width, 1.9 * lines + 1.2), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.06)
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    for place, axes in enumerate(grid.flat):
        if place >= panels:
            axes.set_axis_off()
            continue
        _draw_panel(axes, result.runs[place], areas, _done(result))
        axes.tick_params(labelbottom=place >= panels - columns)
        if place // columns == lines - 1:
            axes.set_xlabel(f"time ({areas.clock})")
    figure.supylabel(f"calls per {areas.period}", fontsize=9)
    figure.suptitle(fill(heading, int(width * 12)), fontsize=10.5)
    handles, labels = grid.flat[0].get_legend_handles_labels()
    rows = {"ncols": min(len(labels), 5), "frameon": False}
    figure.legend(handles, labels, loc="outside lower center", **rows)
    save(figure, path, heading, _description(result))


def _draw_panel(axes: Any, run: Run, areas: _Areas, done: str) -> None:
    from matplotlib.patheffects import withStroke
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    axes.stairs(areas.offered, areas.edges, fill=True, label="offered", **_OFFERED)
    axes.stairs(areas.admitted[run.using], areas.edges, fill=True, label=done, **_ADMITTED)
    # Once more its outline: where all is admitted, it shows that all was.
    axes.stairs(areas.offered, areas.edges, color="#777777", linewidth=0.7)
    for number, (label, height) in enumerate(areas.limits):
        axes.axhline(
            height,
            color="black",
            linewidth=1.0,
            linestyle=_DASHES[number % len(_DASHES)],
            path_effects=[withStroke(linewidth=2.2, foreground="white")],
            label=label if height <= areas.top else f"{label} (above)",
        )
    axes.set_title(run.using, loc="left", fontsize=10, fontweight="bold")
    share = f"{run.admitted:,} of {run.offered:,}"
    if run.offered >= 100_000:  # there is no room beside the name
        share = f"{100 * run.admitted / run.offered:.3g}%"
    axes.set_title(share, loc="right", fontsize=8)
    axes.set_xlim(0, areas.edges[-1])
    axes.set_ylim(0, areas.top * 1.06)
    axes.xaxis.set_major_locator(MaxNLocator(7, steps=_STEPS))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=_STEPS))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.10g}"))


@dataclass(frozen=True)
class _Areas:
    """What is drawn of a simulation, in the units of the axes."""

    #: The unit of times, and the period that rates are told by.
    clock: str
    period: str
    #: Where the bins begin and end.
    edges: list[float]
    offered: list[float]
    #: By algorithm.
    admitted: dict[str, list[float]]
    #: The limits with their names.
    limits: list[tuple[str, float]]
    #: The highest that has to be seen.
    top: float


def _areas(result: Simulation, bins: int | None) -> _Areas:
    timeline = result.timeline(bins)
    count = len(timeline.offered)
    end = timeline.bin * count
    second, clock = next((row[1:] for row in _CLOCKS if end <= row[0]), (86_400, "days"))
    peak = max([*timeline.offered, *[max(each) for each in timeline.admitted.values()]])
    shortest = min(result.rules, key=lambda rule: rule.quota.period_us)
    per, period = _per(shortest, peak / timeline.bin)
    scale = per / timeline.bin
    limits = [
        (
            f"limit {rule.quota}" if len(result.rules) > 1 else "limit",
            rule.quota.limit / cost * per / (rule.quota.period_us / 1e6),
        )
        for rule in result.rules
        if (cost := result.cost if rule.cost is None else rule.cost)
    ]
    # A limit far above the traffic would leave nothing to be seen of it.
    heights = [height for _, height in limits if height <= 2 * peak * scale]
    return _Areas(
        clock,
        period,
        [number * timeline.bin / second for number in range(count + 1)],
        [each * scale for each in timeline.offered],
        {using: [each * scale for each in row] for using, row in timeline.admitted.items()},
        limits,
        max([peak * scale, *heights]) or 1.0,
    )


def _done(result: Simulation) -> str:
    """What becomes of calls that are let through: with a timeout, some are later than they came."""
    return "admitted" if result.timeout <= 0 else "served"


def _heading(result: Simulation) -> str:
    parts = [
        "; ".join([str(rule.quota) for rule in result.rules]),
        f"{result.traffic.kind} traffic at {_rate(result.traffic.rate)}",
    ]
    if result.cost != 1:
        parts.append(f"cost {result.cost}")
    if result.timeout > 0:
        most = duration(result.timeout)
        parts.append("any wait" if most == "never" else f"waits of up to {most}")
    return ", ".join(parts)


def _description(result: Simulation) -> str:
    """The picture in words, with its numbers."""
    done = _done(result)
    runs = [
        f"{run.using} {done} {run.admitted:,}"
        + (f", longest wait {duration(run.longest_wait)}" if run.longest_wait else "")
        for run in result.runs
    ]
    return (
        f"Calls offered and {done} over time, a panel an algorithm. "
        f"Of {len(result.instants):,} calls in {duration(result.traffic.duration)}, "
        f"{'; '.join(runs)}."
    )


def _per(rule: Rule, rate: float) -> tuple[float, str]:
    """The seconds that rates are told by, and their name.

    They are the period of the rule, whose line is then at the number in its quota; or another one,
    if that would make odd numbers of so many calls per second.
    """
    per = rule.quota.period_us / 1e6
    if rate and not 1 <= rate * per <= 100_000:
        fitting = [each for each in _PERIODS if rate * each[0] >= 10] or _PERIODS[-1:]
        return fitting[0][0], fitting[0][2]
    text = str(rule.quota).split()[0].partition("/")[2]
    return per, next((words for _, short, words in _PERIODS if short == text), duration(per))


def _rate(rate: float) -> str:
    """A rate as a person would say it: 150/s, 90/h."""
    per, short, _ = next((each for each in _PERIODS if rate * each[0] >= 1), _PERIODS[-1])
    return f"{plain(rate * per)}/{short}"
