"""`throttled bench`: how fast decisions are."""

from __future__ import annotations

import csv
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING

import click

from throttled import RateLimiterType
from throttled.cli import chart
from throttled.cli.endings import CommandError
from throttled.cli.measuring import MEMORY, PREFIX, Bench, Cell, measure
from throttled.cli.output import progress, show, show_json, show_table
from throttled.cli.targets import algorithms_option, json_option

if TYPE_CHECKING:
    from collections.abc import Sequence

    from throttled.cli.measuring import Flavour

__all__ = ["bench"]


def _counts(_: click.Context, __: click.Parameter, text: str) -> tuple[int, ...]:
    """Whole numbers with commas between them."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and 1 <= int(word[:9]) <= 10_000 for word in words):
        raise click.BadParameter(
            f"{text!r} is not a list of whole numbers from 1 to 10000, such as 1,10,50."
        )
    return tuple(dict.fromkeys([int(word) for word in words]))


@click.command()
@click.option(
    "--store",
    "stores",
    multiple=True,
    metavar="URL",
    help="Of Redis or Valkey, or the word memory; may be given again. By default memory.",
)
@algorithms_option()
@click.option(
    "--concurrency",
    callback=_counts,
    default="1,10,50,100,250",
    metavar="N,N",
    help="How many call at once; 1,10,50,100,250 by default.",
)
@click.option(
    "--flavour",
    type=click.Choice(["sync", "async"]),
    default="sync",
    help="Threads or asyncio tasks; sync by default.",
)
@click.option(
    "--calls",
    type=click.IntRange(1, 10_000_000),
    default=50_000,
    metavar="N",
    help="Of each measurement; 50000 by default.",
)
@click.option(
    "--keys",
    type=click.IntRange(1, 100_000),
    default=1,
    metavar="N",
    help="How many keys the calls go to, in turn; by default one, which is hot.",
)
@click.option(
    "--quota", default="1000000/s", metavar="TEXT", help="1000000/s by default: none is refused."
)
@click.option("--csv", "table", metavar="FILE", help="Write the measurements there as well.")
@click.option("--chart", "picture", metavar="FILE", help="Draw them, to a .svg or .png file.")
@json_option()
def bench(
    stores: tuple[str, ...],
    using: tuple[str, ...],
    concurrency: tuple[int, ...],
    flavour: Flavour,
    calls: int,
    keys: int,
    quota: str,
    table: str | None,
    picture: str | None,
    as_json: bool,
) -> None:
    """Measure how fast decisions are.

    For each store, algorithm and concurrency. Writes keys that begin with throttled-bench, and
    removes them again. THROTTLED_STORE is not heeded here: name the store that is to bear it.
    """
    plan = Bench(
        tuple(dict.fromkeys(stores)) or (MEMORY,),
        tuple(dict.fromkeys(using)) or tuple(RateLimiterType.choice()),
        concurrency,
        flavour,
        calls,
        keys,
        quota,
    )
    # What cannot be written afterwards is said before.
    if picture is not None:
        chart.check(picture)
    if table is not None and not Path(table).parent.is_dir():
        raise CommandError(f"{table}: there is no such directory to write it to.")
    total = len(plan.stores) * len(plan.using) * len(plan.concurrency)
    with progress("measuring", total) as step:
        try:
            cells = measure(plan, step)
        except RuntimeError as error:
            if "thread" not in str(error):
                raise
            raise CommandError(
                f"the system does not let us start that many threads ({error}); "
                f"use a lower --concurrency, or --flavour async."
            ) from None
    if table is not None:
        _write(cells, table)
    if picture is not None:
        chart.draw(cells, picture)
    if as_json:
        show_json({"prefix": PREFIX, "cells": [asdict(cell) for cell in cells]})
    else:
        _show(cells)


def _show(cells: Sequence[Cell]) -> None:
    for place, store in enumerate(dict.fromkeys([cell.store for cell in cells])):
        if place:
            show("")
        first = cells[0]
        keys = "one key" if first.keys == 1 else f"{first.keys:,} keys"
        show(f"{store}, {first.flavour}, {keys}, {first.calls:,} calls each; latency in µs")
        show("")
        show_table(
            ["algorithm", "concurrency", "ops/s", "p50", "p99", "p99.9", "refused"],
            [
                [
                    cell.using,
                    str(cell.concurrency),
                    f"{cell.ops_per_s:,.0f}",
                    *[f"{us:,.1f}" for us in (cell.p50_us, cell.p99_us, cell.p999_us)],
                    f"{cell.refused:,}",
                ]
                for cell in cells
                if cell.store == store
            ],
        )


def _write(cells: Sequence[Cell], path: str) -> None:
    with Path(path).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([field.name for field in fields(Cell)])
        writer.writerows([list(asdict(cell).values()) for cell in cells])
