"""`throttled check`, `peek`, `debit`, `reset`: one key of one limit."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from time import perf_counter
from typing import TYPE_CHECKING, Any

import click

from throttled._text import plain
from throttled.cli.endings import ALLOWED, REFUSED, at_terminal, note, say
from throttled.cli.output import (
    duration,
    finite,
    paint,
    rule_of,
    show,
    show_json,
    show_pairs,
    show_table,
    visible,
)
from throttled.cli.targets import Target, json_option, target_options
from throttled.exceptions import OperationNotSupportedError

if TYPE_CHECKING:
    from throttled import Forecast, RateLimitResult, RateLimitState, Rule

__all__ = ["check", "debit", "peek", "reset"]


@click.command()
@click.argument("key")
@click.option("--cost", type=int, default=1, metavar="N", help="How much to take; 1 by default.")
@click.option(
    "--timeout", type=float, metavar="S", help="Seconds to wait for a slot; by default none."
)
@target_options
@json_option()
def check(key: str, cost: int, timeout: float | None, target: Target, as_json: bool) -> int:
    """Take from a limit, and say whether the call may go on.

    The exit code is 0 if it was allowed and 1 if it was refused.
    """
    with target.opened() as throttle:
        begin = perf_counter()
        result = throttle.limit(key, cost, timeout)
        took = perf_counter() - begin
    if as_json:
        show_json(_result_of(key, cost, result, took))
    else:
        show(_verdict(result.allowed, "allowed", "refused"))
        more: list[tuple[str, str]] = []
        if timeout is not None and timeout > 0:
            more.append(("took", duration(took)))
        if result.source not in ("memory", "server"):
            more.append(("decided by", result.source))
        _show_states(result, more)
        if result.would_limit != result.limited:
            note("note: this limit is not enforced, else the call would have been refused.")
    return REFUSED if result.limited else ALLOWED


@click.command()
@click.argument("key")
@click.option("--cost", type=int, default=1, metavar="N", help="What to ask about; 1 by default.")
@target_options
@json_option()
def peek(key: str, cost: int, target: Target, as_json: bool) -> int:
    """Show the state of a key, changing nothing.

    The exit code is 0 if the cost would be allowed now and 1 if it would be refused.
    """
    with target.opened() as throttle:
        state = throttle.peek(key, cost)
        try:
            forecast = throttle.forecast(key)
        except OperationNotSupportedError:  # a policy may permit the one without the other
            forecast = None
    fits = state.retry_after <= 0
    if as_json:
        show_json(
            {
                "key": key,
                "cost": cost,
                "fits": fits,
                **_state_of(state),
                "forecast": None if forecast is None else _forecast_of(forecast),
            }
        )
    else:
        show(_verdict(fits, "would be allowed", "would be refused"))
        pairs = _state_pairs(state)
        if forecast is not None:
            pairs.append(("spendable", str(forecast.spendable_now)))
            if forecast.next_replenish_at is not None:
                pairs.append(("more at", _instant(forecast.next_replenish_at)))
            pairs.append(("full at", _instant(forecast.full_at)))
        show_pairs(pairs)
    return ALLOWED if fits else REFUSED


@click.command()
@click.argument("key")
@click.argument("n", type=int)
@target_options
@json_option()
def debit(key: str, n: int, target: Target, as_json: bool) -> int:
    """Charge a key for what was used without asking.

    N is charged even past the limit: later calls feel it.
    """
    with target.opened() as throttle:
        throttle.debit(key, n)
    if as_json:
        show_json({"key": key, "debited": n})
    else:
        show(f"charged {n} to {visible(key)}")
    return ALLOWED


@click.command()
@click.argument("key")
@click.option("--yes", is_flag=True, help="Do not ask.")
@target_options
@json_option()
def reset(key: str, yes: bool, target: Target, as_json: bool) -> int:
    """Forget a key: it is as if it had never been seen.

    On a terminal it asks first.
    """
    with target.opened() as throttle:
        if (
            not yes
            and at_terminal(sys.stdin)
            and not click.confirm(f"Forget what {visible(key)} has used?", err=True)
        ):
            say("nothing was reset.")
            return REFUSED
        throttle.reset(key)
    if as_json:
        show_json({"key": key, "reset": True})
    else:
        show(f"reset {visible(key)}")
    return ALLOWED


def _verdict(fine: bool, yes: str, no: str) -> str:
    return paint(yes, "green", bold=True) if fine else paint(no, "red", bold=True)


def _show_states(result: RateLimitResult, more: list[tuple[str, str]]) -> None:
    if len(result.rules) > 1:
        show_table(
            ["", "rule", "remaining", "limit", "retry after", "reset after"],
            [
                [
                    ">" if place == result.binding else "",
                    _rule_text(rule),
                    str(state.remaining),
                    str(state.limit),
                    duration(state.retry_after),
                    duration(state.reset_after),
                ]
                for place, (rule, state) in enumerate(zip(result.rules, result.states, strict=True))
            ],
            left=2,
        )
        show_pairs(more)
    else:
        rules = [("rule", _rule_text(rule)) for rule in result.rules]
        show_pairs([*rules, *_state_pairs(result.state), *more])


def _rule_text(rule: Rule) -> str:
    name = f"{rule.name}: " if rule.name else ""
    cost = "" if rule.cost is None else f", {rule.cost} a call"
    return f"{name}{rule.quota} by {rule.using}{cost}"


def _state_pairs(state: RateLimitState) -> list[tuple[str, str]]:
    pairs = [("remaining", f"{state.remaining} of {state.limit}")]
    if state.retry_after > 0:
        pairs.append(("retry after", duration(state.retry_after)))
    pairs.append(("reset after", duration(state.reset_after)))
    return pairs


def _instant(seconds: float) -> str:
    """An instant in local time."""
    return datetime.fromtimestamp(seconds, UTC).astimezone().isoformat(" ", "milliseconds")


def _state_of(state: RateLimitState) -> dict[str, Any]:
    return {
        "limit": state.limit,
        "remaining": state.remaining,
        "retry_after": finite(state.retry_after),
        "never": finite(state.retry_after) is None,
        "reset_after": finite(state.reset_after),
    }


def _forecast_of(forecast: Forecast) -> dict[str, Any]:
    return {
        "spendable_now": forecast.spendable_now,
        "next_replenish_at": forecast.next_replenish_at,
        "full_at": finite(forecast.full_at),
    }


def _result_of(key: str, cost: int, result: RateLimitResult, took: float) -> dict[str, Any]:
    return {
        "allowed": result.allowed,
        "key": key,
        "cost": cost,
        **_state_of(result.state),
        "source": result.source,
        "would_limit": result.would_limit,
        "held": result.held,
        "took": float(plain(took)),
        "binding": result.binding if result.rules else None,
        "rules": [
            {**rule_of(rule), **_state_of(state)}
            for rule, state in zip(result.rules, result.states, strict=False)
        ],
    }
