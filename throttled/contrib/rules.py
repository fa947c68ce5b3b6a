"""Which limits a request has to pass: those for all, and those by patterns of method and path.

    "/items/{id}"           one segment in place of {id}
    "POST /login"           of one method; "GET|HEAD /items" of several
    "/admin/*"              /admin and everything below
    "WEBSOCKET /chat"       WebSocket connections; a pattern without a method is for these as well

So that nobody gets around a limit, it matches all that some framework routes alike: slashes that
are doubled or stand at the end and a line break at the end make no difference, and GET means HEAD
too. What is excluded from limits is taken at its word.

All that match hold at once: a request is taken by all of them, or by none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from throttled._callables import checked_callable
from throttled._text import shown
from throttled.base import BaseThrottled
from throttled.contrib.limit import BaseRateLimit, check_options
from throttled.exceptions import DataError
from throttled.quota import check_name

if TYPE_CHECKING:
    from throttled.contrib.keys import Incoming

#: A limit, and the scope in which it counts.
Scoped = tuple[BaseRateLimit, str]

_PATTERN: Final = re.compile(r"(?:(?P<methods>[A-Z]+(?:\|[A-Z]+)*) +)?(?P<path>/\S*)")
_SEGMENT: Final = re.compile(r"\{[A-Za-z_][A-Za-z0-9_]*\}|(?:(?!%[0-9A-Fa-f]{2})[^{}*?#])+")
_METHODS: Final = {
    "CONNECT",
    "DELETE",
    "GET",
    "HEAD",
    "OPTIONS",
    "PATCH",
    "POST",
    "PUT",
    "QUERY",
    "TRACE",
    "WEBSOCKET",
}


class Pattern:
    """A pattern of method and path; see the top of this module."""

    __slots__ = ("_methods", "_path", "text")

    def __init__(self, text: str, exact: bool = False) -> None:
        """`exact`: slashes make a difference.

        Raises `DataError` for what is no pattern; the message says what is wrong.
        """
        match = _PATTERN.fullmatch(text.strip()) if isinstance(text, str) else None
        if match is None:
            raise DataError(
                f"Invalid pattern: {shown(text)}, must be a path such as '/items/{{id}}' or "
                f"'/admin/*', with methods before it if it is for some: 'GET|HEAD /items'."
            )
        methods = sorted(set(match["methods"].split("|"))) if match["methods"] else []
        for method in methods:
            if method not in _METHODS:
                raise DataError(
                    f"Invalid pattern: {shown(text)}, has the unknown method {method}; must be of "
                    f"{', '.join(sorted(_METHODS))}."
                )
        path = match["path"].rstrip("/")
        #: The pattern in its one way of writing.
        self.text = " ".join([*["|".join(methods)] * bool(methods), path or "/"])
        self._methods = frozenset([*methods, *["HEAD"] * ("GET" in methods)])
        slash, end = ("/", match["path"][len(path) :]) if exact else ("/+", "/*\n?")
        self._path = re.compile(self._expression(text, path, slash) + end, re.DOTALL)

    @staticmethod
    def _expression(text: str, path: str, slash: str) -> str:
        segments = path.split("/")[1:]
        rest = segments[-1:] == ["*"]
        parts: list[str] = []
        for segment in segments[:-1] if rest else segments:
            if not _SEGMENT.fullmatch(segment):
                raise DataError(
                    f"Invalid pattern: {shown(text)}, has the segment {shown(segment)}; must be "
                    f"text as it is decoded, one {{name}}, or * at the end for all that is below."
                )
            parts.append(slash + ("[^/]+" if segment[0] == "{" else re.escape(segment)))
        return "".join(parts) + ("(?:/.*)?" if rest else "")

    def __repr__(self) -> str:
        return f"Pattern({self.text!r})"

    def matches(self, method: str, path: str) -> bool:
        """Whether a request is meant."""
        return (not self._methods or method in self._methods) and (
            self._path.fullmatch(path) is not None
        )


def checked_patterns(what: str, texts: object) -> tuple[Pattern, ...]:
    """A list of exact patterns; `DataError` names the wrong one."""
    if isinstance(texts, str | bytes) or not isinstance(texts, Iterable):
        raise DataError(f"Invalid {what}: {shown(texts)}, must be a list such as ['/health'].")
    return tuple([Pattern(text, exact=True) for text in texts])


class Rules:
    """The limits of an application."""

    __slots__ = ("_all", "_by_pattern", "_exclude", "exempt", "used")

    def __init__(
        self,
        kind: type[BaseRateLimit],
        limit: Any = None,
        rules: Mapping[str, Any] | None = None,
        exclude: Iterable[str] = (),
        exempt: Callable[[Any], Any] | None = None,
        *,
        scope: str = "all",
        **defaults: Any,
    ) -> None:
        """
        :param kind: what limits are made of quotas, with the defaults as arguments.
        :param limit: the limit, or a list of limits, that every request has to pass.
        :param rules: by pattern, the limit or the list of limits of requests that match.
        :param exclude: patterns of requests that pass uncounted.
        :param exempt: called with the request, which passes uncounted if it returns true.
        :param scope: in which the limits for all count.
        :raises DataError: for a wrong pattern or limit, and for two that would share their counts.
        """
        if rules is not None and not isinstance(rules, Mapping):
            raise DataError(
                f"Invalid rules: {shown(rules)}, must be limits by pattern, such as "
                f"{{'POST /login': '5/minute'}}."
            )
        check_name("scope", scope)
        check_options(defaults)  # also where nothing is made with them
        #: The names of the defaults that a limit was made with.
        self.used: set[str] = set()
        self._all = [(each, scope) for each in self._limits(kind, limit, defaults)]
        self._by_pattern = [
            (pattern, [(each, pattern.text) for each in self._limits(kind, found, defaults)])
            for pattern, found in [(Pattern(text), found) for text, found in (rules or {}).items()]
        ]
        check_apart([*self._all, *[each for _, found in self._by_pattern for each in found]])
        self._exclude = checked_patterns("exclude", exclude)
        #: What says whether a request passes uncounted; None: none does.
        self.exempt = (
            None if exempt is None else checked_callable("exempt", exempt, kind._asynchronous)
        )

    def _limits(
        self, kind: type[BaseRateLimit], found: Any, defaults: dict[str, Any]
    ) -> list[BaseRateLimit]:
        """One limit or a list of them; a list of quotas is one limit, of several rules."""
        if found is None:
            return []
        limits = isinstance(found, list | tuple) and any(
            isinstance(each, BaseRateLimit | BaseThrottled) for each in found
        )
        return [self._limit(kind, each, defaults) for each in (found if limits else [found])]

    def _limit(
        self, kind: type[BaseRateLimit], found: Any, defaults: dict[str, Any]
    ) -> BaseRateLimit:
        if isinstance(found, BaseRateLimit):
            if found._asynchronous is not kind._asynchronous:
                raise DataError(f"Invalid limit: {found!r}, must be a {kind.__module__}.RateLimit.")
            return found
        if isinstance(found, BaseThrottled):
            # It brings its own store and policy.
            names = ("key", "cost", "count_when")
            defaults = {name: defaults[name] for name in names if name in defaults}
        self.used.update(defaults)
        return kind(found, **defaults)

    @property
    def limits(self) -> list[BaseRateLimit]:
        """All of them."""
        scoped = [*self._all, *[each for _, found in self._by_pattern for each in found]]
        return [limit for limit, _ in scoped]

    def of(self, request: Incoming) -> Sequence[Scoped]:
        """The limits that a request has to pass."""
        if not self._by_pattern and not self._exclude:
            return self._all
        method, path = request.method, request.path
        if any(pattern.matches(method, path) for pattern in self._exclude):
            return ()
        found = list(self._all)
        for pattern, limits in self._by_pattern:
            if pattern.matches(method, path):
                found += limits
        return found


def with_messages(
    kind: type[BaseRateLimit],
    limit: Any,
    rules: Mapping[str, Any] | None,
    messages: Any,
    exclude: Iterable[str],
    exempt: Callable[[Any], Any] | None,
    defaults: Mapping[str, Any],
) -> tuple[Rules, Rules]:
    """The limits of requests, and those of the messages that come in on them."""
    if limit is None and rules is None and messages is None:
        raise DataError("Invalid limit: None, must be a limit unless rules= or messages= are.")
    made = Rules(kind, limit, rules, exclude, exempt, **defaults)
    options = {name: each for name, each in defaults.items() if name != "scope"}
    metered = {name: each for name, each in options.items() if name != "count_when"}
    metering = Rules(kind, messages, None, exclude, exempt, scope="messages", **metered)
    check_used(options, made, metering)
    if any(each.count_when is not None for each in metering.limits):
        raise DataError("Invalid messages: count_when= is for what has a response.")
    return made, metering


def check_used(defaults: Iterable[str], *made: Rules) -> None:
    """`DataError` names what was said and nothing was made with: it would be without effect."""
    unused = sorted(set(defaults).difference(*[rules.used for rules in made]))
    if unused:
        raise DataError(
            f"Invalid {', '.join(unused)}: no limit was made with it. A RateLimit or a Throttled "
            f"brings its own; say it there, or give a quota instead."
        )


def check_apart(limits: Sequence[Scoped]) -> None:
    """`DataError` if two limits that may hold at once would count under the same keys.

    A `Throttled` may stand in several places, to be shared by them.
    """
    seen: dict[tuple[int, str], tuple[BaseRateLimit, Any]] = {}
    for limit, scope in limits:
        throttle = limit.throttle(scope)
        plans = [] if throttle._terms is None else throttle._terms.plan.joint.plans
        for plan in plans:
            other, counting = seen.setdefault((id(limit.store), plan.prefix), (limit, throttle))
            if counting is not throttle:
                raise DataError(
                    f"Invalid limits: {other!r} and {limit!r} would count under the same keys "
                    f"({plan.prefix}...); give one of them another scope= or key_prefix=, or use "
                    f"one limit in both places."
                )
