"""What the headers of a response say of the service's limits; no framework needed.

    lesson = read(response.headers.items())
    lesson.retry_after, lesson.policies

Understood are `Retry-After` (seconds or a date), `RateLimit-Policy` and `RateLimit` of
draft-ietf-httpapi-ratelimit-headers-11 and of its forerunners, `RateLimit-*`, `X-RateLimit-*` and
`X-Rate-Limit-*` (the reset as seconds, or as an instant), and `X-RateLimit-*-Requests` and
`-Tokens`. Whoever writes headers is not to be trusted to write them well: what cannot be read is
as if it were not there.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from math import ceil
from typing import Final

__all__ = ["Lesson", "Policy", "read"]


@dataclass(frozen=True, slots=True)
class Policy:
    """One limit of a service; None where it does not say.

    `limit` per `window` seconds, of which `remaining` are left for the next `reset` seconds.
    """

    limit: int | None = None
    window: float | None = None
    remaining: int | None = None
    reset: float | None = None

    @property
    def exhausted(self) -> bool:
        """Whether nothing is left."""
        return self.remaining == 0


@dataclass(frozen=True, slots=True)
class Lesson:
    """What one response says: seconds to stay away, and the policies that hold."""

    retry_after: float | None = None
    policies: tuple[Policy, ...] = ()


# Of a field no more is read than this, and of a list no more items.
_LONGEST: Final = 4096
_MOST_ITEMS: Final = 8

#: What `X-RateLimit-Reset` holds is told by its size: no wait is as long as an instant is late.
_INSTANT: Final = 1e9 / 2
_INSTANT_MS: Final = 1e11

_NUMBER: Final = re.compile(r"[0-9]{1,15}(?:\.[0-9]{1,9})?")
_DURATION: Final = re.compile(r"(?:[0-9]{1,9}(?:\.[0-9]{1,9})?(?:ms|[dhms]))+")
_PART: Final = re.compile(r"([0-9.]+)(ms|[dhms])")
_SECONDS: Final = {"d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0, "ms": 0.001}

_STRING: Final = r'"(?:[^"\\]|\\.)*"'
_VALUE: Final = rf"(?:{_STRING}|[^\s;,\"=]*)"
# A parameter's may be bytes, `:cHNzdA==:`. None has blanks in it: with those, what is wrong would
# take quadratic time to be found so.
_ARGUMENT: Final = rf"(?:{_STRING}|[^\s;,\"]*)"
# An item: a string, token or number, perhaps with a value (`limit=100`), and its parameters.
_ITEM: Final = re.compile(
    rf"\s*+(?P<name>{_STRING}|[^\s;,\"=]++)\s*+(?:=\s*+(?P<value>{_VALUE}))?"
    rf"(?P<parameters>(?:\s*+;\s*+[^\s;,\"=]++(?:={_ARGUMENT})?)*+)\s*+(?:,|$)"
)
_PARAMETER: Final = re.compile(rf";\s*+([^\s;,\"=]++)=({_ARGUMENT})")

_PREFIXES: Final = ("ratelimit-", "x-ratelimit-", "x-rate-limit-")


def read(headers: Iterable[tuple[str, str]], now: Callable[[], float] = time.time) -> Lesson:
    """What a response's headers say; names in any case.

    Instants count from the response's own `Date` if it has one, so that a clock that is wrong,
    here or there, does no harm; else from `now`, in seconds since the epoch.
    """
    fields: dict[str, str] = {}
    for name, value in headers:
        key = name.lower()
        if key in ("retry-after", "date") or "limit" in key:
            # The lines of a field make one list. Of what is cut nothing is half read.
            joined = f"{fields[key]}, {value}" if key in fields else value
            fields[key] = joined if len(joined) <= _LONGEST else ""
    if not fields.keys() - {"date"}:
        return Lesson()
    date = _date(fields.get("date", ""))
    # A date is cut to whole seconds.
    at = now() if date is None else min(max(now(), date), date + 1.0)
    policies = _structured(fields)
    for prefix in _PREFIXES:
        policies = policies or _numbers(fields, prefix, "", at)
    policies = policies or [
        *_numbers(fields, "x-ratelimit-", "-requests", at),
        # In a unit of their own: they matter only where none is left.
        *[
            Policy(None, None, each.remaining, each.reset)
            for each in _numbers(fields, "x-ratelimit-", "-tokens", at)
        ],
    ]
    return Lesson(_delay(fields.get("retry-after", ""), at), tuple(policies))


def _structured(fields: dict[str, str]) -> list[Policy]:
    """The policies of `RateLimit-Policy` and `RateLimit`, an item each, matched by name."""
    policies: dict[str, Policy] = {}
    for name, _, parameters in _items(fields.get("ratelimit-policy", "")):
        # In early drafts the limit is the item itself: `100;w=60`.
        limit = _count(parameters.get("q", name))
        # A quota of bytes or of concurrent requests is not one of requests.
        if limit and parameters.get("qu", "requests") == "requests":
            policies[name] = Policy(limit, _positive(parameters.get("w")))
    pairs: dict[str, str] = {}
    for name, value, parameters in _items(fields.get("ratelimit", "")):
        if value is not None:
            pairs[name] = value
        elif name in policies or "ratelimit-policy" not in fields:
            told, remaining = policies.get(name, Policy()), _count(parameters.get("r"))
            reset = _seconds(parameters.get("t"))
            policies[name] = Policy(told.limit, told.window, remaining, reset)
    if pairs:  # draft 7: `limit=100, remaining=50, reset=30`
        return _bound(policies, pairs.get("limit"), pairs.get("remaining"), pairs.get("reset"), 0.0)
    if not policies or "ratelimit-limit" not in fields:
        return list(policies.values())
    # Early drafts: what is left is told by single numbers.
    most, left, until = [
        fields.get(f"ratelimit-{each}") for each in ("limit", "remaining", "reset")
    ]
    return _bound(policies, most, left, until, 0.0)


def _numbers(fields: dict[str, str], prefix: str, suffix: str, at: float) -> list[Policy]:
    """The policy of three single numbers, and those that stand beside the limit."""
    limit, remaining, reset = [
        fields.get(f"{prefix}{each}{suffix}") for each in ("limit", "remaining", "reset")
    ]
    policies: dict[str, Policy] = {}
    for name, _, parameters in _items(limit or "")[1:]:  # `100, 100;w=60`
        if quota := _count(name):
            policies[name] = Policy(quota, _positive(parameters.get("w")))
    return _bound(policies, limit, remaining, reset, at)


def _bound(
    policies: dict[str, Policy],
    limit: str | None,
    remaining: str | None,
    reset: str | None,
    at: float,
) -> list[Policy]:
    """Policies of which the one with that limit has so much left, for so long."""
    first = _items(limit or "")[:1]
    most = _count(first[0][0]) if first else None
    left, until = _count(remaining), _until(reset, at)
    for name, told in policies.items():
        if told.limit == most:
            policies[name] = Policy(most, told.window, left, until)
            return list(policies.values())
    if not most and left is None:
        return list(policies.values())
    window = _positive(first[0][2].get("w")) if first else None
    return [Policy(most or None, window, left, until), *policies.values()]


def _items(text: str) -> list[tuple[str, str | None, dict[str, str]]]:
    """The items of a list or dictionary: name, value, parameters. Of what is none, none."""
    items: list[tuple[str, str | None, dict[str, str]]] = []
    place = 0
    while place < len(text) and len(items) < _MOST_ITEMS:
        match = _ITEM.match(text, place)
        if match is None:
            return []
        value = match["value"]
        parameters = {
            name.lower(): _bare(each) for name, each in _PARAMETER.findall(match["parameters"])
        }
        items.append((_bare(match["name"]), None if value is None else _bare(value), parameters))
        place = match.end()
    return items


def _bare(text: str) -> str:
    """A string without its quotes."""
    text = text.strip()
    return re.sub(r"\\(.)", r"\1", text[1:-1]) if text.startswith('"') else text


def _seconds(text: str | None) -> float | None:
    """A number, or a duration such as `6m0s`, in seconds."""
    text = (text or "").strip()
    if _NUMBER.fullmatch(text):
        return float(text)
    if len(text) <= 40 and _DURATION.fullmatch(text):
        return sum([float(number) * _SECONDS[unit] for number, unit in _PART.findall(text)])
    return None


def _positive(text: str | None) -> float | None:
    return _seconds(text) or None


def _count(text: str | None) -> int | None:
    number = (text or "").strip()
    return int(float(number)) if _NUMBER.fullmatch(number) else None


def _until(text: str | None, at: float) -> float | None:
    """Seconds until a reset, which may be given as an instant."""
    seconds = _seconds(text)
    if seconds is None or not at or seconds < _INSTANT:
        return seconds
    return max((seconds / 1000 if seconds > _INSTANT_MS else seconds) - at, 0.0)


def _delay(text: str, at: float) -> float | None:
    """What `Retry-After` says, in whole seconds or as a date."""
    numbers = [each.strip() for each in text.split(",")]
    if all(_NUMBER.fullmatch(each) for each in numbers):
        return max(map(float, numbers))  # two lines of it: the longer
    date = _date(text)
    return None if date is None else float(max(ceil(date - at), 0))


def _date(text: str) -> float | None:
    """An HTTP date in seconds since the epoch."""
    try:
        date = parsedate_to_datetime(text)
        # Without a zone it would be taken for local time.
        return date.timestamp() if date.tzinfo is not None else None
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
