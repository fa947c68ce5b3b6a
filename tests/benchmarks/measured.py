"""Ratios that a noisy machine cannot fake, and the tables of what was measured.

A time in microseconds says more about the machine than about the library. So every time is
compared with something else that is timed in the same run: batches of both alternate, each pair
gives a ratio, and the median of the ratios counts. A ceiling that is missed is measured up to twice
again, since other processes may have run; the best of the attempts is what is reported.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import repeat
from statistics import median
from time import perf_counter
from typing import Any, TypeAlias

#: Runs a batch of calls and returns the seconds that one of them took.
Batch: TypeAlias = Callable[[], float]

ATTEMPTS = 3

ALGORITHMS = [
    "token_bucket",
    "leaking_bucket",
    "gcra",
    "fixed_window",
    "sliding_window",
    "sliding_window_log",
]
#: For what has one implementation: the three buckets are one rule.
RULES = ["token_bucket", "fixed_window", "sliding_window", "sliding_window_log"]


def plenty(algorithm: str) -> str:
    """A quota that no benchmark uses up."""
    return "1000000/h" if algorithm == "sliding_window_log" else "1000000000/h"


def calls_of(
    call: Callable[[str], Any],
    key: str,
    number: int,
    clock: Callable[[], float] = perf_counter,
) -> Batch:
    """A batch of calls with one key."""

    def batch() -> float:
        start = clock()
        for _ in repeat(None, number):
            call(key)
        return (clock() - start) / number

    return batch


def threads_of(call: Callable[[str], Any], number: int, share: int) -> Batch:
    """A batch of calls with one key by so many threads at once, each making its share."""
    barrier = threading.Barrier(number + 1)

    def work() -> None:
        barrier.wait()
        for _ in repeat(None, share):
            call("key")
        barrier.wait()

    def batch() -> float:
        workers = [threading.Thread(target=work) for _ in range(number)]
        for worker in workers:
            worker.start()
        barrier.wait()
        start = perf_counter()
        barrier.wait()
        elapsed = perf_counter() - start
        for worker in workers:
            worker.join()
        return elapsed / (share * number)

    return batch


@dataclass
class Table:
    """What was measured, by row and column."""

    cells: dict[str, dict[str, str]] = field(default_factory=dict)
    #: By column: the seconds of what was compared with.
    bases: dict[str, list[float]] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """The table in Markdown; its last line says how long 1 is."""
        columns = list(dict.fromkeys(column for row in self.cells.values() for column in row))
        rows = [["", *columns]]
        rows += [
            [name, *(row.get(column, "") for column in columns)] for name, row in self.cells.items()
        ]
        if self.bases:
            rows.append(["*1 is*", *(_span(self.bases.get(column, [])) for column in columns)])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        rows.insert(1, ["-" * width for width in widths])
        return [
            "| "
            + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            + " |"
            for row in rows
        ]


@dataclass
class Measured:
    """Everything measured in this run, table by table."""

    tables: dict[str, Table] = field(default_factory=dict)

    def compare(
        self,
        benchmark: Any,
        table: str,
        row: str,
        column: str,
        *,
        ours: Batch,
        base: Batch,
        ceiling: float | None = None,
        floor: float | None = None,
        rounds: int = 20,
    ) -> None:
        """Record how many times as long as `base` a call of `ours` takes, and hold it below
        `ceiling`; with `floor`, how many of ours are done in the time of one of `base`."""
        if floor:
            ceiling = 1 / floor
        best: tuple[float, float, float] | None = None
        for attempt in range(ATTEMPTS):
            pairs = _alternate(ours, base, rounds, None if attempt else benchmark)
            ratio = median(own / other for own, other in pairs)
            if best is None or ratio < best[0]:
                best = ratio, median(own for own, _ in pairs), median(other for _, other in pairs)
            if ceiling is None or ratio <= ceiling:
                break
        assert best is not None
        ratio, own, other = best
        benchmark.group = f"{table}: {column}"
        benchmark.extra_info.update(ratio=ratio, ceiling=ceiling, ours=own, base=other)
        if floor is None:
            self.tables.setdefault(table, Table()).bases.setdefault(column, []).append(other)
        note = f"{_duration(own)} to {_duration(other)}"
        if floor is not None:
            self.reach(table, row, column, 1 / ratio, floor, note)
        else:
            self.hold(table, row, column, ratio, ceiling, note)

    def reach(
        self, table: str, row: str, column: str, value: float, floor: float, note: str
    ) -> None:
        """Record a number, and hold it above the floor; a floor of 0 holds nothing."""
        cell = f"{value:.2f}" if value < 10 else f"{value:.0f}"
        if floor:
            cell += f" {'≥' if value >= floor else '<'} {floor:g}"
        self.tables.setdefault(table, Table()).cells.setdefault(row, {})[column] = cell
        assert value >= floor, f"{table}, {row}, {column}: {cell} {note}"

    def hold(
        self,
        table: str,
        row: str,
        column: str,
        value: float,
        ceiling: float | None,
        note: str = "",
    ) -> None:
        """Record a number, and fail when it is above its ceiling."""
        cell = f"{value:.2f}" if value < 10 else f"{value:.0f}"
        if ceiling is not None:
            cell += f" {'≤' if value <= ceiling else '>'} {ceiling:g}"
        self.tables.setdefault(table, Table()).cells.setdefault(row, {})[column] = cell
        assert ceiling is None or value <= ceiling, f"{table}, {row}, {column}: {cell} {note}"

    def text(self) -> str:
        """The tables in Markdown."""
        parts = [f"### {name}\n\n" + "\n".join(self.tables[name].lines()) for name in self.tables]
        return "\n\n".join(parts)


def _alternate(
    ours: Batch, base: Batch, rounds: int, benchmark: Any | None
) -> list[tuple[float, float]]:
    """So many pairs of times, taken in turns."""
    owns: list[float] = []
    others: list[float] = []

    def before() -> None:
        others.append(base())

    def timed() -> None:
        owns.append(ours())

    base()
    ours()
    if benchmark is not None:
        # The baseline is timed where a round is set up, right before ours.
        benchmark.pedantic(timed, setup=before, rounds=rounds)
    for _ in range(rounds - len(owns)):  # pytest-benchmark runs one round where it is disabled
        before()
        timed()
    return list(zip(owns, others, strict=True))


def _span(durations: list[float]) -> str:
    least, most = (_duration(pick(durations)) if durations else "" for pick in (min, max))
    return least if least == most else f"{least} to {most}"


def _duration(seconds: float) -> str:
    return f"{seconds * 1e9:.0f} ns" if seconds < 1e-5 else f"{seconds * 1e6:.0f} µs"
