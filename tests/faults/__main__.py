"""Prints the tables of docs/reliability.md: `python -m tests.faults`, or `make faults`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Sequence

from tests.faults.failovers import FAILOVERS as TWO_SERVERS
from tests.faults.fleet import FAILOVERS, QUOTA, hammer
from tests.faults.load import ERRORS, FLAVOURS, Figures
from tests.faults.space import growth
from tests.faults.stages import FEW, SCENES, Report, hang, kill, watch
from tests.servers import Server, binaries

#: How often each fault strikes, for how many seconds where that is for us to say.
TIMES, SECONDS = 3, 2.0
LOCAL_SHARE = 4
KEYS = 1_000_000


def table(rows: Iterable[Sequence[object]]) -> None:
    """Print a table in Markdown, the first row being its head."""
    cells = [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width for width in widths])
    for row in cells:
        padded = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("|", " | ".join(padded), "|")
    print(flush=True)


def heading(text: str) -> None:
    print(f"### {text}\n", flush=True)


def seen(figures: Figures) -> list[int]:
    return [figures.calls[kind] for kind in ("server", *ERRORS)]


def admitted(report: Report) -> str:
    if report.losses:
        return f"{report.admitted:,} ≤ {report.bound:,}"
    most = report.admitted + report.figures.unknown
    return f"{report.admitted:,} ≤ {report.counted:,} ≤ {most:,}"


def ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f}"


def faults(binary: str) -> None:
    rows: list[Sequence[object]] = [
        ["fault", "by", "server", *ERRORS, "longest, ms", "admitted", "back after, s"]
    ]
    for name, scene in {**SCENES, **TWO_SERVERS}.items():
        with scene(binary) as stage:
            for report in watch(stage, seconds=SECONDS, times=TIMES):
                figures = report.figures
                rows.append(
                    [
                        name,
                        report.flavour,
                        *seen(figures),
                        ms(figures.longest),
                        admitted(report),
                        f"{max(report.recoveries):.1f}",
                    ]
                )
    table(rows)


def policies(binary: str) -> None:
    columns = ["server", "errors", "allowed-by-policy", "denied-by-policy", "fallback"]
    rows: list[Sequence[object]] = [["fault", "policy", "by", *columns, "longest, ms"]]
    for name, scene in (("`kill -9`", kill), ("`SIGSTOP`", hang)):
        with scene(binary) as stage:
            for report in watch(
                stage,
                policies=["raise", "allow", "deny", "local"],
                quota=FEW,
                options={"LOCAL_SHARE": LOCAL_SHARE},
            ):
                calls, passed = report.figures.calls, report.figures.admitted
                cells = [f"{calls[kind]:,} ({passed[kind]:,})" for kind in columns]
                cells[1] = f"{sum(calls[kind] for kind in ERRORS):,}"
                rows.append(
                    [
                        name,
                        f'`"{report.policy}"`',
                        report.flavour,
                        *cells,
                        ms(report.figures.longest),
                    ]
                )
    table(rows)


def fleet(binary: str) -> None:
    members = hammer(binary=binary)
    rows: list[Sequence[object]] = [
        ["process", "server", *ERRORS, "longest, ms", "longest without the server, s", "admitted"]
    ]
    for number, figures in enumerate([*members, sum(members, Figures())]):
        by = FLAVOURS[number % len(FLAVOURS)].flavour
        rows.append(
            [
                f"{number + 1} ({by})" if number < len(members) else "together",
                *seen(figures),
                ms(figures.longest),
                f"{figures.gap:.1f}",
                figures.admitted["server"],
            ]
        )
    table(rows)
    print(f"Quota {QUOTA:,}; bound {QUOTA * (1 + FAILOVERS):,}.\n")


def space(binary: str) -> None:
    with Server(binary) as server:
        grown = [growth(server.url, kind.asynchronous, KEYS) for kind in FLAVOURS]
    table([["keys", *(f"{kind.flavour}, bytes more" for kind in FLAVOURS)], [KEYS, *grown]])


def main(name: str = "valkey") -> None:
    # That a server is left alone is logged each time, and is what the tables are about.
    logging.getLogger("throttled").setLevel(logging.ERROR)
    binary = binaries()[name]
    heading("Faults")
    faults(binary)
    heading("Policies")
    policies(binary)
    heading("Four processes, two failovers")
    fleet(binary)
    heading("Space")
    space(binary)


if __name__ == "__main__":
    main(*sys.argv[1:])
