"""What may happen how often: a rate, its burst, the text form of both, and rules made of them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from typing import Any, Final, cast

from throttled._text import shown
from throttled.exceptions import DataError

__all__ = [
    "Quota",
    "Rate",
    "RateLimiterType",
    "Rule",
    "per_day",
    "per_duration",
    "per_hour",
    "per_min",
    "per_sec",
    "per_week",
]

MAX_LIMIT: Final = 10**9
MIN_PERIOD: Final = timedelta(milliseconds=1)
MAX_PERIOD: Final = timedelta(days=366)

_MICROSECOND: Final = timedelta(microseconds=1)
_EXAMPLES: Final = "'100/s', '100/s burst 200', '100 per second', '5 per 10 minutes', '30/500ms'"

# Microseconds in each unit and its names, longest first. The first name is the one printed.
_UNITS: Final[tuple[tuple[int, tuple[str, ...]], ...]] = (
    (604_800_000_000, ("w", "week", "weeks")),
    (86_400_000_000, ("d", "day", "days")),
    (3_600_000_000, ("h", "hr", "hrs", "hour", "hours")),
    (60_000_000, ("m", "min", "mins", "minute", "minutes")),
    (1_000_000, ("s", "sec", "secs", "second", "seconds")),
    (1_000, ("ms", "millisecond", "milliseconds")),
    (1, ("us", "microsecond", "microseconds")),
)
_UNIT_OF_NAME: Final = {name: unit for unit, names in _UNITS for name in names}

_NUMBER: Final = r"[0-9]+(?:_[0-9]+)*"
_QUOTA: Final = re.compile(
    rf"\s*(?P<limit>{_NUMBER})\s*(?:/|\bper\b)\s*(?P<count>{_NUMBER})?\s*(?P<unit>[a-z]+)"
    rf"(?:\s+burst\s+(?P<burst>{_NUMBER}))?\s*",
    re.IGNORECASE | re.ASCII,
)
# Longer than any quota needs to be; also keeps the digits within what int() reads.
_MAX_TEXT: Final = 200


@dataclass(frozen=True, slots=True)
class Rate:
    """So many per period.

    `period` is from 1 millisecond to 366 days, `limit` from 1 to 1,000,000,000.

    Raises:
        DataError: the period or the limit is of another type or out of range.
    """

    period: timedelta
    limit: int

    def __post_init__(self) -> None:
        period: object = self.period
        if not isinstance(period, timedelta) or not MIN_PERIOD <= period <= MAX_PERIOD:
            raise DataError(
                f"Invalid period: {shown(period)}, must be a datetime.timedelta from "
                "1 millisecond to 366 days, such as timedelta(minutes=10)."
            )
        _check_count("limit", self.limit)


@dataclass(frozen=True, slots=True, init=False)
class Quota:
    """A rate and the burst allowed on top of an idle start.

    Most callers want `per_sec` ... `per_week`, `per_duration` or a string ("100/s burst 200").

    `burst` is how much the bucket algorithms (token bucket, leaking bucket, GCRA) admit at once
    after idling, from 1 to 1,000,000,000; it is the rate's limit when not given. The window
    algorithms do not use it.

    Raises:
        DataError: the rate or the burst is of another type or out of range.
    """

    rate: Rate
    burst: int

    def __init__(self, rate: Rate, burst: int | None = None) -> None:
        given: object = rate
        if not isinstance(given, Rate):
            raise DataError(
                f"Invalid rate: {shown(given)}, must be a Rate, such as "
                "Rate(timedelta(seconds=1), 100)."
            )
        if burst is None:
            burst = rate.limit
        _check_count("burst", burst)
        object.__setattr__(self, "rate", rate)
        object.__setattr__(self, "burst", burst)

    @property
    def limit(self) -> int:
        """How many per period."""
        return self.rate.limit

    @property
    def period_us(self) -> int:
        """The period in whole microseconds."""
        return self.rate.period // _MICROSECOND

    @classmethod
    def parse(cls, text: str) -> Quota:
        """Read a quota such as "100/s", "100/s burst 200", "100 per second" or "5 per 10 minutes".

        Units are ms, s, m, h, d, w, or their names in full ("sec", "minutes", ...). Case and
        spaces do not matter, and underscores may group digits ("1_000/s"). `str(quota)` prints
        the shortest such text.

        Raises:
            DataError: the text is not a quota, or one of its numbers is out of range.
        """
        given: object = text
        if not isinstance(given, str):
            raise DataError(f"Invalid quota: {shown(given)}, must be text such as {_EXAMPLES}.")
        if ";" in text or "," in text:
            raise DataError(
                f"Invalid quota: {shown(text)}, must hold one rule, such as '100/s'; "
                "large numbers are written without commas: '1000/s' or '1_000/s'."
            )
        match = _QUOTA.fullmatch(text) if len(text) <= _MAX_TEXT else None
        if match is None:
            raise DataError(f"Invalid quota: {shown(text)}, must look like {_EXAMPLES}.")
        unit = _UNIT_OF_NAME.get(match["unit"].lower())
        if unit is None:
            raise DataError(
                f"Invalid quota: {shown(text)}, unknown unit {match['unit']!r}, must be one of "
                "ms, s, m, h, d, w, or second, minute, hour, day, week."
            )
        count = int(match["count"] or 1)
        # Compared as integers: a timedelta cannot even hold every number that can be written.
        if not MIN_PERIOD // _MICROSECOND <= count * unit <= MAX_PERIOD // _MICROSECOND:
            raise DataError(
                f"Invalid quota: {shown(text)}, its period must be from 1 millisecond to "
                "366 days, such as '1/ms', '5/10m' or '1/366d'."
            )
        rate = Rate(timedelta(microseconds=count * unit), int(match["limit"]))
        return cls(rate, None if match["burst"] is None else int(match["burst"]))

    def __str__(self) -> str:
        period = self.period_us
        unit, names = next(row for row in _UNITS if period % row[0] == 0)
        count = "" if period == unit else str(period // unit)
        burst = "" if self.burst == self.limit else f" burst {self.burst}"
        return f"{self.limit}/{count}{names[0]}{burst}"


class RateLimiterType(Enum):
    """The algorithms. Their `.value`, the member itself or the plain string serve as `using=`."""

    FIXED_WINDOW = "fixed_window"
    SLIDING_WINDOW = "sliding_window"
    SLIDING_WINDOW_LOG = "sliding_window_log"
    TOKEN_BUCKET = "token_bucket"
    LEAKING_BUCKET = "leaking_bucket"
    GCRA = "gcra"

    @classmethod
    def choice(cls) -> list[str]:
        """The names that `using=` takes."""
        return [member.value for member in cls]


@dataclass(frozen=True, slots=True, init=False)
class Rule:
    """One of several quotas that a call has to keep at once.

        Throttled(quota=[Rule("500/m", cost=1), Rule("200_000/m", name="tokens")])

    `quota` is a `Quota` or its text. `using` is the algorithm, by default that of the `Throttled`.
    `cost` is what each call costs under this rule, from 1 up; by default the call's own cost.
    `name` becomes part of the keys: rules of the same algorithm and period need it, or they would
    count into one another.

    Raises:
        DataError: one of them is of another type or out of range.
    """

    quota: Quota
    using: str | None
    cost: int | None
    name: str | None

    def __init__(
        self,
        quota: Quota | str,
        using: RateLimiterType | str | None = None,
        cost: int | None = None,
        name: str | None = None,
    ) -> None:
        given: object = quota
        if not isinstance(given, Quota):
            quota = Quota.parse(cast("Any", given))
        if using is not None:
            using = algorithm_name(using)
        if cost is not None:
            _check_count("cost", cost)
        if name is not None:
            check_name("rule name", name)
        object.__setattr__(self, "quota", quota)
        object.__setattr__(self, "using", using)
        object.__setattr__(self, "cost", cost)
        object.__setattr__(self, "name", name)

    def __repr__(self) -> str:
        given = [
            f"{what}={value!r}"
            for what in ("using", "cost", "name")
            if (value := getattr(self, what)) is not None
        ]
        return f"Rule({', '.join([repr(str(self.quota)), *given])})"


def rules_of(quota: object) -> tuple[Rule, ...]:
    """The rules that `quota=` means: text of one or several quotas, a `Quota`, a `Rule`, or an
    iterable of those.

    In text, quotas are parted by ";" or ",": "10/s; 1000/h". Raises `DataError` for anything else.
    """
    if isinstance(quota, Rule):
        return (quota,)
    if isinstance(quota, Quota):
        return (Rule(quota),)
    if isinstance(quota, str):
        parts = re.split("[;,]", quota) if len(quota) <= _MAX_TEXT * 16 else [quota]
        if len(parts) == 1:
            return (Rule(quota),)
        try:
            return tuple([Rule(part) for part in parts if part.strip() or Quota.parse(part)])
        except DataError as error:
            raise DataError(
                f"{error} (In {shown(quota)}, ';' and ',' part several quotas; "
                f"large numbers are written without commas: '1_000/s'.)"
            ) from None
    if isinstance(quota, Iterable) and not isinstance(quota, bytes):
        rules = tuple([rule for each in quota for rule in rules_of(each)])
        if rules:
            return rules
    raise DataError(
        f"Invalid quota: {shown(quota)}, must be a Quota such as per_min(60), text such as "
        f'"60/m" or "10/s; 1000/h", a Rule, or a list of those.'
    )


def algorithm_name(using: object) -> str:
    """The name of the algorithm meant by `using=`: a string or a `RateLimiterType`."""
    name = using.value if isinstance(using, RateLimiterType) else using
    names = RateLimiterType.choice()
    if not isinstance(name, str) or name not in names:
        raise DataError(f"Invalid algorithm: {shown(using)}, must be one of {', '.join(names)}.")
    return name


def check_name(what: str, text: object) -> None:
    """`DataError` unless a part of the keys in a store is text that cannot confuse them."""
    if not isinstance(text, str) or not text or any(brace in text for brace in "{}"):
        raise DataError(
            f"Invalid {what}: {shown(text)}, must be a non-empty string without braces "
            f"(they mark the part of a key that Redis Cluster hashes)."
        )


def per_duration(duration: timedelta, limit: int, burst: int | None = None) -> Quota:
    """Allow `limit` per `duration` (1 millisecond to 366 days); `burst` is `limit` by default."""
    return Quota(Rate(duration, limit), burst)


def per_sec(limit: int, burst: int | None = None) -> Quota:
    """Allow `limit` per second; `burst` is `limit` by default."""
    return per_duration(timedelta(seconds=1), limit, burst)


def per_min(limit: int, burst: int | None = None) -> Quota:
    """Allow `limit` per minute; `burst` is `limit` by default."""
    return per_duration(timedelta(minutes=1), limit, burst)


def per_hour(limit: int, burst: int | None = None) -> Quota:
    """Allow `limit` per hour; `burst` is `limit` by default."""
    return per_duration(timedelta(hours=1), limit, burst)


def per_day(limit: int, burst: int | None = None) -> Quota:
    """Allow `limit` per day of 24 hours; `burst` is `limit` by default."""
    return per_duration(timedelta(days=1), limit, burst)


def per_week(limit: int, burst: int | None = None) -> Quota:
    """Allow `limit` per week of 7 days; `burst` is `limit` by default."""
    return per_duration(timedelta(weeks=1), limit, burst)


def _check_count(name: str, value: object) -> None:
    # bool is an int to Python, but `limit=True` is never what was meant.
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_LIMIT:
        raise DataError(
            f"Invalid {name}: {shown(value)}, must be a whole number from 1 to {MAX_LIMIT}."
        )
