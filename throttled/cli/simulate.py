"""`throttled simulate`: a quota on made-up traffic, with each algorithm."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from throttled import Quota, RateLimiterType
from throttled.cli import chart
from throttled.cli.output import duration, paint, progress, rule_of, show, show_json, show_table
from throttled.cli.targets import algorithms_option, json_option
from throttled.exceptions import DataError
from throttled.simulation import KINDS, Traffic
from throttled.simulation import simulate as simulated

if TYPE_CHECKING:
    from throttled.simulation import Kind, Simulation

__all__ = ["simulate"]


def _rate(_: click.Context, __: click.Parameter, text: str) -> float:
    """Calls a second: "150/s", "90/m", or the bare number."""
    with suppress(ValueError):
        return float(text)
    try:
        rate = Quota.parse(text).rate
    except DataError:
        raise click.BadParameter(f"{text!r} is not a rate such as 150/s, 90/m or 0.5.") from None
    return rate.limit / rate.period.total_seconds()


@click.command()
@click.option(
    "--quota", required=True, metavar="TEXT", help='As "100/s burst 20", or "10/s; 1000/h".'
)
@algorithms_option()
@click.option(
    "--traffic",
    type=click.Choice(KINDS),
    default="steady",
    help="How the calls are spread; steady by default.",
)
@click.option(
    "--rate",
    callback=_rate,
    default="100/s",
    metavar="R",
    help="As 150/s or 90/m; 100/s by default.",
)
@click.option(
    "--duration", "length", type=float, default=60.0, metavar="S", help="Seconds; 60 by default."
)
@click.option("--cost", type=int, default=1, metavar="N", help="Of each call; 1 by default.")
@click.option(
    "--timeout", type=float, metavar="S", help="Seconds that calls wait in line; by default none."
)
@click.option("--seed", type=int, default=0, metavar="N", help="Other seeds give other traffic.")
@click.option(
    "--bins",
    type=click.IntRange(1, 10_000),
    metavar="N",
    help="Of the timeline in the JSON and the picture; 60 by default, in the picture as fit.",
)
@click.option("--plot", "picture", metavar="FILE", help="Draw it, to a .svg or .png file.")
@json_option()
def simulate(
    quota: str,
    using: tuple[str, ...],
    traffic: Kind,
    rate: float,
    length: float,
    cost: int,
    timeout: float | None,
    seed: int,
    bins: int | None,
    picture: str | None,
    as_json: bool,
) -> None:
    """Try a quota on made-up traffic, with each algorithm.

    No store is asked, and nobody sleeps. The last columns say the most that was admitted within
    any stretch of time as long as the period of the quota.
    """
    stream = Traffic(traffic, rate, length, seed)
    if picture is not None:
        chart.check(picture, "plot")
    with progress("simulating", len(using) or len(RateLimiterType.choice())) as step:
        result = simulated(
            quota,
            stream,
            using=using or None,
            cost=cost,
            timeout=timeout,
            told=lambda run: step(run.using),
        )
    if picture is not None:
        chart.draw_traffic(result, picture, bins)
    if as_json:
        show_json(_of(result, bins or 60))
        return
    calls = f"{len(result.instants):,} calls"
    show(f"{'; '.join([str(rule.quota) for rule in result.rules])}, {traffic} traffic, {calls}")
    show("")
    periods = [str(rule.quota).split()[0].partition("/")[2] for rule in result.rules]
    show_table(
        ["algorithm", "offered", "admitted", "refused", "longest wait"]
        + [f"most in any {_worded(period)}" for period in periods],
        [
            [
                run.using,
                f"{run.offered:,}",
                paint(f"{run.admitted:,}", "green"),
                paint(f"{run.refused:,}", "red" if run.refused else None),
                duration(run.longest_wait) if run.longest_wait else "-",
                *[f"{most:,}" for most in run.most],
            ]
            for run in result.runs
        ],
    )


def _worded(period: str) -> str:
    """A period as a quota writes it, with its number: 1s, 10m."""
    return period if period[0].isdigit() else f"1{period}"


def _of(result: Simulation, bins: int) -> dict[str, Any]:
    timeline = result.timeline(bins)
    return {
        "rules": [rule_of(rule) for rule in result.rules],
        "traffic": {
            "kind": result.traffic.kind,
            "rate": result.traffic.rate,
            "duration": result.traffic.duration,
            "seed": result.traffic.seed,
        },
        "cost": result.cost,
        "timeout": None if result.timeout == float("inf") else result.timeout,
        "runs": [
            {
                "using": run.using,
                "offered": run.offered,
                "admitted": run.admitted,
                "refused": run.refused,
                "longest_wait": run.longest_wait,
                "most": list(run.most),
            }
            for run in result.runs
        ],
        "timeline": {
            "bin": timeline.bin,
            "offered": list(timeline.offered),
            "admitted": {using: list(counts) for using, counts in timeline.admitted.items()},
        },
    }
