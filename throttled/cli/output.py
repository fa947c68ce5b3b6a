"""What commands print: JSON, lines of a name and a value, tables."""

from __future__ import annotations

import json
import os
import sys
from contextlib import contextmanager
from math import ceil, inf, isinf
from typing import TYPE_CHECKING, Any

import click

from throttled._text import plain
from throttled.cli.endings import at_terminal

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Sequence

    from throttled.quota import Rule

_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))


def coloured() -> bool:
    """Whether stdout is a terminal that shows colours, and whose user wants them."""
    return (
        at_terminal(sys.stdout)
        and not os.environ.get("NO_COLOR")
        and os.environ.get("TERM", "") != "dumb"
    )


def paint(text: str, colour: str | None = None, *, bold: bool = False) -> str:
    """The text in a colour, where there are any."""
    return click.style(text, fg=colour, bold=bold or None) if coloured() else text


def visible(text: str) -> str:
    """Text that somebody else wrote, with what could steer a terminal spelled out."""
    return text if text.isprintable() else repr(text)[1:-1]


def show(text: str) -> None:
    """Print to stdout; who has wanted colours has them in the text by now."""
    click.echo(text, color=True)


def show_json(value: object) -> None:
    """Print one JSON object, on one line."""
    show(json.dumps(value, allow_nan=False))


def show_pairs(pairs: Iterable[tuple[str, str]]) -> None:
    """Print names and values, one a line, the values below one another."""
    rows = list(pairs)
    width = max([len(name) for name, _ in rows], default=0)
    for name, value in rows:
        show(f"{name.ljust(width)}  {value}")


def show_table(head: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> None:
    """Print a table, of which the first `left` columns are text and the others numbers.

    Rows longer than the terminal is wide are broken there by the terminal: nothing is cut.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold" if coloured() else "")
    for place, name in enumerate(head):
        table.add_column(Text(name), justify="left" if place < left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*[Text.from_ansi(cell) for cell in row])
    console = Console(
        file=sys.stdout,
        width=10_000,
        no_color=not coloured(),
        force_terminal=coloured(),
        highlight=False,
    )
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():
        show(line.rstrip())


def duration(seconds: float) -> str:
    """A wait as a person would say it, rounded up: who waits that long has waited enough."""
    if isinf(seconds):
        return "never"
    if seconds <= 0:
        return "now"
    if seconds < 1e-3:
        return f"{ceil(seconds * 1e6 - 1e-6)} µs"
    if seconds < 1:
        return f"{plain(ceil(seconds * 1e6 - 1e-6) / 1e3)} ms"
    if seconds < 60:
        return f"{plain(ceil(seconds * 1e3 - 1e-6) / 1e3)} s"
    left = ceil(seconds - 1e-6)
    parts: list[str] = []
    for size, unit in _UNITS:
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count} {unit}")
    return " ".join(parts)


def finite(seconds: float | None) -> float | None:
    """A number for JSON, which has no infinity: null."""
    return None if seconds is None or seconds == inf else seconds


def rule_of(rule: Rule) -> dict[str, Any]:
    """A rule for JSON."""
    return {
        "quota": str(rule.quota),
        "algorithm": rule.using,
        "name": rule.name,
        "cost": rule.cost,
    }


@contextmanager
def progress(what: str, total: int) -> Generator[Callable[[str], None]]:
    """A bar on stderr, if that is a terminal: call what it gives after each step, with its name.

    It is drawn at these calls only, so that nothing runs beside what is measured in between.
    """
    if not at_terminal(sys.stderr) or os.environ.get("TERM", "") == "dumb":
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(file=sys.stderr), transient=True, auto_refresh=False) as bar:
        task = bar.add_task(what, total=total)
        bar.refresh()

        def step(name: str) -> None:
            bar.update(task, advance=1, description=f"{what} {name}", refresh=True)

        yield step
