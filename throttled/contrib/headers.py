"""A decision as HTTP response headers, and a refusal as a problem body; no framework needed.

    headers = merge(response_headers, render(result))
    body = problem(result)  # of a refusal; its "status" is that of the response

The fields are those of draft-ietf-httpapi-ratelimit-headers-11, structured by RFC 9651; the body is
that of RFC 9457. What is not known, or does not bind the caller, is not told.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from http import HTTPStatus
from itertools import count
from math import ceil, inf
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, get_args
from urllib.parse import quote

from throttled._text import shown
from throttled.contrib.identity import text_of
from throttled.exceptions import DataError
from throttled.result import Source

if TYPE_CHECKING:
    from throttled.quota import Rule
    from throttled.result import RateLimitResult, RateLimitState

__all__ = [
    "FIELDS",
    "PROBLEM_TYPE",
    "Header",
    "Reset",
    "Response",
    "Style",
    "check_style",
    "merge",
    "problem",
    "render",
    "unavailable",
]

Header = tuple[str, str]
Style = Literal["ietf", "legacy", "x"]
Reset = Literal["delta", "epoch"]

#: The media type of `problem` and `unavailable`.
PROBLEM_TYPE: Final = "application/problem+json"

_STYLES: Final = get_args(Style)
_RESETS: Final = get_args(Reset)

_QUOTA_EXCEEDED: Final = "https://iana.org/assignments/http-problem-types#quota-exceeded"

# What the policy of a result without rules is called.
_NAMELESS: Final = "default"

# The widest integer that a structured field holds.
_MOST: Final = 10**15 - 1

# A limit that only watches, or that does not hold for the caller, is none to keep to: a client
# that heeds these fields would be slowed by a limit that nobody enforces.
_UNTOLD: Final = frozenset({"shadow", "exempt", "disabled"})
# Of these the state is not known but for its limit.
_UNDECIDED: Final = frozenset({"allowed-by-policy", "denied-by-policy"})
#: The others: a store has decided what binds the caller.
DECIDED: Final = frozenset(get_args(Source)) - _UNTOLD - _UNDECIDED

_PREFIX: Final = {"legacy": "RateLimit-", "x": "X-RateLimit-"}
_LISTS: Final = ("ratelimit-policy", "ratelimit")
_WAIT: Final = ("retry-after",)
# Fields of which only those of one limiter can stand.
_CONTESTED: Final = [
    *[
        tuple([f"{prefix.lower()}{field}" for field in ("limit", "remaining", "reset")])
        for prefix in _PREFIX.values()
    ],
    _WAIT,
]
#: The fields that `render` may write, in lower case.
FIELDS: Final = frozenset({*_LISTS, *[name for names in _CONTESTED for name in names]})

_STRING: Final = r'"(?:[^"\\]|\\.)*"'
_PARAMETER: Final = rf';\ *[a-z*][a-z0-9_.*-]*(?:=(?:{_STRING}|[^;,"]*))?'
# What the first policy of a RateLimit field leaves.
_FIRST_LEFT: Final = re.compile(rf"\s*{_STRING}(?:{_PARAMETER})*?;\ *r=([0-9]{{1,15}})(?![0-9.])")


class Response:
    """The beginning of a response, as `count_when` is given it where no framework has its own."""

    __slots__ = ("headers", "status_code")

    def __init__(
        self, status_code: int, headers: Iterable[tuple[str, str] | tuple[bytes, bytes]]
    ) -> None:
        self.status_code = status_code
        #: By name in lower case; the last of several.
        self.headers = {text_of(name).lower(): text_of(value) for name, value in headers}


def render(
    result: RateLimitResult,
    style: Style = "ietf",
    *,
    reset: Reset = "delta",
    now: Callable[[], float] = time.time,
) -> list[Header]:
    """The headers that tell a client of a decision, admitted or refused.

    With 60 per minute, token bucket, after 10 calls at once:

    - `"ietf"`: `RateLimit-Policy: "60/m";q=60;w=60` and `RateLimit: "60/m";r=50;t=10`, an item a
      rule, the binding one first. A policy is called by its rule's name, else by its quota. `q` is
      the limit per period, so with a burst above it `r` may be more; a period below one second is
      told as one.
    - `"legacy"`: `RateLimit-Limit: 60`, `RateLimit-Remaining: 50`, `RateLimit-Reset: 10`, of the
      binding rule.
    - `"x"`: the same as `X-RateLimit-*`; with `reset="epoch"` the reset is an instant in seconds
      since the epoch by `now`.

    Durations are whole seconds, rounded up. `t` and the reset are until a refused call fits, else
    until the key is as if it had never been seen. A refusal that can pass later has `Retry-After`
    too, at least 1. Where the store failed and nobody could decide, what is left is not told; of
    limits that do not bind the caller (shadow, exempt, disabled) nothing is.

    Raises:
        DataError: the style or the reset is unknown, or they do not go together.
    """
    check_style(style, reset)
    return rendered(result, style, reset, now)


def rendered(
    result: RateLimitResult,
    style: Style,
    reset: Reset = "delta",
    now: Callable[[], float] = time.time,
) -> list[Header]:
    """As `render`, of a style that has been checked."""
    source = result.source
    if source in _UNTOLD:
        return []
    known = source not in _UNDECIDED
    if style == "ietf":
        headers = _lists(result, known)
    else:
        prefix, state = _PREFIX[style], result.state
        headers = [(f"{prefix}Limit", str(_whole(state.limit)))]
        if known:
            seconds = _window(state) + (now() if reset == "epoch" else 0)
            headers.append((f"{prefix}Remaining", str(_whole(state.remaining))))
            headers.append((f"{prefix}Reset", str(_whole(seconds))))
    if result.limited and (delay := _delay(result.state.retry_after)) is not None:
        headers.append(("Retry-After", str(delay)))
    return headers


def encoded(result: RateLimitResult) -> list[tuple[bytes, bytes]] | None:
    """What `render` says in the style "ietf", as ASGI has headers, of what most decisions are:
    admitted by one rule. None of all others."""
    plan = getattr(result, "_plan", None)
    if (
        result.limited
        or plan is None
        or plan.kind == "joint"
        or getattr(result, "_source", "memory") not in DECIDED
    ):
        return None
    _, _, remaining, reset_after = result.reply()
    field = _policy_field(plan.rules, 0)
    item = f"{field.first};r={int(remaining)};t={int(-(-reset_after // 1e6))}"
    return [(b"ratelimit-policy", field.encoded), (b"ratelimit", item.encode("ascii"))]


def check_style(style: object, reset: object = "delta") -> None:
    """`DataError` unless `render` knows the style, and the reset goes with it; for start-up."""
    if style not in _STYLES:
        raise DataError(
            f"Invalid header style: {shown(style)}, must be 'ietf' (RateLimit-Policy and "
            f"RateLimit), 'legacy' (RateLimit-Limit, ...) or 'x' (X-RateLimit-Limit, ...)."
        )
    if reset not in _RESETS:
        raise DataError(
            f"Invalid reset: {shown(reset)}, must be 'delta' (seconds from now) or 'epoch' "
            f"(seconds since the epoch)."
        )
    if reset == "epoch" and style != "x":
        raise DataError(
            f"Invalid reset: 'epoch' with header style {shown(style)}, whose reset is seconds "
            f"from now; must be 'delta', or the style 'x'."
        )


def merge(existing: Iterable[Header], new: Iterable[Header]) -> list[Header]:
    """The headers of a response that two limiters have acted on; names in any case.

    Lists (`RateLimit-Policy`, `RateLimit`) are joined, each in its own order, the one whose first
    policy leaves less before the other. Of the single numbers (`RateLimit-*`, `X-RateLimit-*`) the
    set that leaves less stays, or resets later if both leave the same; of two `Retry-After` the
    longer. Everything else is kept as it is. Policies of two limiters that share a name stay two
    items: name the rules to tell them apart.
    """
    old, added = _named(existing), _named(new)
    if not _has(old, FIELDS):
        return [header for _, header in (*old, *added)]
    for names in _CONTESTED:
        if _has(old, names) and _has(added, names):
            _drop(old if _beats(added, old, names) else added, names)
    added_first = _left(added) < _left(old)
    for name in _LISTS:
        if _has(old, [name]) and _has(added, [name]):
            place = next(at for at, (key, _) in enumerate(old) if key == name)
            lists = [_joined(old, name), _joined(added, name)]
            if added_first:
                lists.reverse()
            header = (old[place][1][0], ", ".join(filter(None, lists)))
            _drop(old, [name])
            _drop(added, [name])
            old.insert(place, (name, header))
    return [header for _, header in (*old, *added)]


def problem(result: RateLimitResult) -> dict[str, Any]:
    """The problem body of a refusal, ready for JSON: `type`, `title`, `status`, `detail`,
    `retry_after` in whole seconds as in `Retry-After` (not there if the call can never pass) and
    `violated-policies`, the names as in `RateLimit-Policy`.

    Status 429; where nobody could decide and the policy is to deny, it is that of `unavailable`.

    Raises:
        DataError: the call was admitted.
    """
    if not result.limited:
        raise DataError(f"Invalid result: {shown(result)}, must be a refusal.")
    retry_after = result.state.retry_after
    if result.source == "denied-by-policy":
        return unavailable(retry_after)
    delay = _delay(retry_after)
    body: dict[str, Any] = {
        "type": _QUOTA_EXCEEDED,
        "title": "Quota Exceeded",
        "status": int(HTTPStatus.TOO_MANY_REQUESTS),
        "detail": "This request costs more than its quota can ever hold."
        if delay is None
        else f"Too many requests. {_again(delay)}",
    }
    if delay is not None:
        body["retry_after"] = delay
    # A penalty refuses by every rule, exceeded or not.
    if not result.held:
        body["violated-policies"] = [
            name
            for name, state in zip(_names(result.rules), result.states, strict=True)
            if state.retry_after > 0
        ]
    return body


def unavailable(retry_after: float = inf) -> dict[str, Any]:
    """The problem body, status 503, where the limit could not be decided: not the caller's fault.

    `retry_after`: seconds until a call may pass; infinite: not known, and not told.
    """
    delay = _delay(retry_after)
    body: dict[str, Any] = {
        # The one type that says no more than the status does; its title is the status's own.
        "type": "about:blank",
        "title": HTTPStatus.SERVICE_UNAVAILABLE.phrase,
        "status": int(HTTPStatus.SERVICE_UNAVAILABLE),
        "detail": "The service cannot answer right now."
        + ("" if delay is None else f" {_again(delay)}"),
    }
    if delay is not None:
        body["retry_after"] = delay
    return body


# -- rendering ------------------------------------------------------------------------------------


def _lists(result: RateLimitResult, known: bool) -> list[Header]:
    if result.rules:
        field, order, *_ = _policy_field(result.rules, result.binding)
    else:
        # A result that was not made by a limiter: how much is known, over which period is not.
        order = [(0, f'"{_NAMELESS}"')]
        field = f"{order[0][1]};q={_whole(result.state.limit)}"
    headers = [("RateLimit-Policy", field)]
    if known:
        states = result.states
        items: list[str] = []
        for at, name in order:
            state = states[at]
            items.append(f"{name};r={_whole(state.remaining)};t={_whole(_window(state))}")
        headers.append(("RateLimit", ", ".join(items)))
    return headers


class _Field(NamedTuple):
    """A RateLimit-Policy field."""

    text: str
    #: Each rule's place and its name as a structured string, the binding one first.
    order: list[tuple[int, str]]
    #: The name of the binding rule.
    first: str
    #: The field as bytes.
    encoded: bytes


# The same few rules decide call after call; to hash them would take longer than all the rest.
_FIELD_OF: Final[dict[tuple[int, int], tuple[tuple[Rule, ...], _Field]]] = {}
_MOST_FIELDS: Final = 1024


def _policy_field(rules: tuple[Rule, ...], first: int) -> _Field:
    """The RateLimit-Policy field with the binding rule first."""
    known = _FIELD_OF.get((id(rules), first))
    if known is not None and known[0] is rules:
        return known[1]
    field = _new_field(rules, first)
    if len(_FIELD_OF) >= _MOST_FIELDS:
        _FIELD_OF.clear()
    _FIELD_OF[id(rules), first] = rules, field
    return field


def _new_field(rules: tuple[Rule, ...], first: int) -> _Field:
    names = [_sf_string(name) for name in _names(rules)]
    order = [first, *[at for at in range(len(rules)) if at != first]]
    items = [
        # Whole seconds, rounded up.
        f"{names[at]};q={rules[at].quota.limit};w={-(-rules[at].quota.period_us // 10**6)}"
        for at in order
    ]
    field = ", ".join(items)
    places = [(at, names[at]) for at in order]
    return _Field(field, places, places[0][1], field.encode("ascii"))


def _names(rules: tuple[Rule, ...]) -> list[str]:
    """What each policy is called. Names that agree are numbered, in the order of the rules and
    not of the field, so that a policy keeps its name when another one binds."""
    names: list[str] = []
    for rule in rules:
        plainly = _ascii(str(rule.quota) if rule.name is None else rule.name)
        numbered = (f"{plainly} {n}" for n in count(2))
        name = plainly
        while name in names:
            name = next(numbered)
        names.append(name)
    return names or [_NAMELESS]


def _ascii(text: str) -> str:
    """The text with what a structured string cannot hold (also line breaks) percent-encoded."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        [each if " " <= each <= "~" else quote(each, errors="surrogatepass") for each in text]
    )


def _sf_string(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _window(state: RateLimitState) -> float:
    """Seconds for which what is left is all there is: not longer than `Retry-After` says, as both
    stand in one response."""
    return state.retry_after if 0 < state.retry_after < inf else state.reset_after


def _whole(number: float) -> int:
    """A number as fields hold it: whole, rounded up, never negative."""
    if 0 < number <= _MOST:
        return ceil(number)
    return _MOST if number > 0 else 0


def _delay(retry_after: float) -> int | None:
    """The value of `Retry-After`; None if there is no time to name."""
    return None if retry_after == inf else max(_whole(retry_after), 1)


def _again(delay: int) -> str:
    return f"Try again in {delay} second{'' if delay == 1 else 's'}."


# -- merging --------------------------------------------------------------------------------------

# A header by its name in lower case.
_Named = list[tuple[str, Header]]


def _named(headers: Iterable[Header]) -> _Named:
    return [(name.lower(), (name, value)) for name, value in headers]


def _has(headers: _Named, names: Collection[str]) -> bool:
    return any(key in names for key, _ in headers)


def _drop(headers: _Named, names: Collection[str]) -> None:
    headers[:] = [each for each in headers if each[0] not in names]


def _joined(headers: _Named, name: str) -> str:
    """The list that all lines of a field make together."""
    return ", ".join([value for key, (_, value) in headers if key == name and value.strip()])


def _beats(added: _Named, old: _Named, names: Sequence[str]) -> bool:
    """Whether the added fields stand rather than the old ones."""
    if names is _WAIT:
        standing, asked = _number(old, *_WAIT), _number(added, *_WAIT)
        # A date, which the application may have set, stands.
        return standing is not None and asked is not None and asked > standing
    return _tightness(added, names) < _tightness(old, names)


def _tightness(headers: _Named, names: Sequence[str]) -> tuple[float, float]:
    """Sorts the tighter set first: less left, then later reset."""
    _, remaining, reset = names
    left = _number(headers, remaining)
    return inf if left is None else left, -(_number(headers, reset) or 0)


def _number(headers: _Named, name: str) -> int | None:
    text = next((value.strip() for key, (_, value) in headers if key == name), "")
    return int(text) if re.fullmatch("[0-9]{1,15}", text) else None


def _left(headers: _Named) -> float:
    """What the first policy of the `RateLimit` field leaves; infinite if it does not say."""
    match = _FIRST_LEFT.match(_joined(headers, "ratelimit"))
    return int(match[1]) if match else inf
