"""A picture of measurements: decisions a second over concurrency, a panel a store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from throttled.cli.endings import CommandError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from throttled.cli.measuring import Cell

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


def check(path: str) -> None:
    """Make sure, before anything is measured, that a picture can be drawn there."""
    if Path(path).suffix.lower() not in SUFFIXES:
        raise CommandError(f"Invalid chart: {path!r}, must be a file that ends in .svg or .png.")
    import matplotlib  # noqa: F401  # pyright: ignore[reportUnusedImport] - only whether it is there


def draw(cells: Sequence[Cell], path: str) -> None:
    """Draw the measurements to a file."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import EngFormatter, FixedLocator, NullLocator

    stores = list(dict.fromkeys([cell.store for cell in cells]))
    counts = sorted({cell.concurrency for cell in cells})
    workers = "threads" if cells[0].flavour == "sync" else "tasks"
    figure: Any
    figure, rows = pyplot.subplots(
        1, len(stores), figsize=(6.0 * len(stores) + 1.8, 4.6), layout="constrained", squeeze=False
    )
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
        axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    rows[0][0].set_ylabel("decisions per second")
    handles, labels = rows[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False)
    try:
        figure.savefig(path, dpi=130)
    finally:
        pyplot.close(figure)
