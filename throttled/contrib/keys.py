"""Whom a limit counts: what tells one caller of an application from another.

Most callers want `client_ip()`, which is what limits count by unless told otherwise, or
`by_header("X-API-Key")`, `by_user()` and `by_route()`, alone or `combined`. A key may be any
callable as well that is given the framework's own request and returns a text.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable
from inspect import isawaitable
from typing import Any, Final, TypeAlias

from throttled._callables import checked_callable, is_async, name_of
from throttled._text import shown
from throttled.contrib.identity import ClientIP, Headers, client_ip, hashed, join, text_of
from throttled.exceptions import DataError

__all__ = ["By", "Incoming", "Key", "by_header", "by_route", "by_user", "combined"]


class Incoming:
    """A request, whatever the framework, as what tells callers apart sees it.

    Each framework has its own, which reads a thing when it is asked for.
    """

    __slots__ = ()

    @property
    def native(self) -> Any:
        """The framework's own request, which callables of users are given."""
        return self

    @property
    def peer(self) -> str | None:
        """The address of the other end of the connection; None if there is none."""
        raise NotImplementedError

    @property
    def headers(self) -> Headers:
        """The headers as they came."""
        raise NotImplementedError

    @property
    def method(self) -> str:
        """In upper case; `WEBSOCKET` for a WebSocket, `GRPC` and `MCP` for calls of those."""
        raise NotImplementedError

    @property
    def path(self) -> str:
        """The path within the application, decoded."""
        raise NotImplementedError

    @property
    def route(self) -> str:
        """The path template that it was routed by; its path where that is not known.

        Of a path without the slashes that do not count, else each had a limit of its own.
        """
        return "/" + "/".join([each for each in self.path.rstrip("\n").split("/") if each])

    @property
    def user(self) -> str | Awaitable[str | None] | None:
        """Who is logged in, in async code also what to await for it; None for nobody."""
        return None

    def lines(self, name: str) -> list[str]:
        """The values of a header, one for each time that it came."""
        wanted = name.lower()
        pairs: Any = self.headers
        pairs = pairs.items() if hasattr(pairs, "items") else pairs
        return [text_of(value) for key, value in pairs if text_of(key).lower() == wanted]

    def header(self, name: str) -> str | None:
        """The value of a header, its lines joined; None if it did not come."""
        lines = self.lines(name)
        return ", ".join(lines) if lines else None


#: What a key is made of: see `reader`.
Key: TypeAlias = "By | ClientIP | Callable[[Any], str | Awaitable[str]]"
_Reader = Callable[[Incoming], Any]


class By(ABC):
    """A key by what every framework knows of a request."""

    __slots__ = ()

    #: Whether a part of it is an async callable.
    awaits = False

    @abstractmethod
    def __call__(self, request: Incoming) -> Any:
        """The key, or in async code what to await for it."""


def reader(key: object, asynchronous: bool) -> _Reader:
    """What reads a key from a request; `DataError` for what cannot be one."""
    if isinstance(key, By):
        if key.awaits and not asynchronous:
            raise DataError(f"Invalid key: {key!r}, has an async part, must be of plain callables.")
        return key
    if isinstance(key, ClientIP):
        return _address_by(key)
    if isinstance(key, str) or not callable(key):
        raise DataError(
            f"Invalid key: {shown(key)}, must be client_ip(), by_header(...), by_user(), "
            f"by_route(), combined(...) or a callable that is given the request."
        )
    function = checked_callable("key", key, asynchronous)
    return lambda request: function(request.native)


def _awaits(key: object) -> bool:
    return key.awaits if isinstance(key, By) else is_async(key)


def _address_by(address: ClientIP) -> _Reader:
    return lambda request: address(request.peer, request.headers)


_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


class _Otherwise(By):
    """By something that a request may lack."""

    __slots__ = ("_otherwise", "awaits")

    def __init__(self, otherwise: Key | None) -> None:
        self._otherwise = reader(client_ip() if otherwise is None else otherwise, True)
        self.awaits = otherwise is not None and _awaits(otherwise)

    @abstractmethod
    def _of(self, request: Incoming) -> str | Awaitable[str | None] | None:
        """The key, in async code also what to await for it; None if the request lacks it."""

    def __call__(self, request: Incoming) -> Any:
        found = self._of(request)
        if isawaitable(found):
            return self._later(found, request)
        return self._key(found, request)

    async def _later(self, found: Awaitable[str | None], request: Incoming) -> str:
        key = self._key(await found, request)
        text: str = await key if isawaitable(key) else key
        return text

    def _key(self, found: str | None, request: Incoming) -> Any:
        # The bar keeps the two kinds apart, whatever callers call themselves.
        if found:
            return join(found)
        return _joined([""], [self._otherwise], request)


class _Header(_Otherwise):
    __slots__ = ("_name", "_secret")

    def __init__(self, name: str, secret: str | bytes | None, otherwise: Key | None) -> None:
        if not isinstance(name, str) or not _TOKEN.fullmatch(name):
            raise DataError(f"Invalid header name: {shown(name)}, must be such as 'X-API-Key'.")
        super().__init__(otherwise)
        self._name = name
        self._secret = secret
        hashed("", secret)  # a bad secret is found now

    def __repr__(self) -> str:
        return f"by_header({self._name!r})"

    def _of(self, request: Incoming) -> str | None:
        # Of several, some frameworks take the first and some the last: whoever adds another would
        # have a new limit each time, and still be known to the application.
        lines = request.lines(self._name)
        return hashed(lines[0], self._secret) if len(lines) == 1 and lines[0] else None


class _User(_Otherwise):
    __slots__ = ()

    def __repr__(self) -> str:
        return "by_user()"

    def _of(self, request: Incoming) -> str | Awaitable[str | None] | None:
        return request.user


class _Route(By):
    __slots__ = ()

    def __repr__(self) -> str:
        return "by_route()"

    def __call__(self, request: Incoming) -> str:
        method = "GET" if request.method == "HEAD" else request.method
        return f"{method} {request.route}"


class _Combined(By):
    __slots__ = ("_parts", "_readers", "awaits")

    def __init__(self, parts: tuple[Any, ...]) -> None:
        if not parts:
            raise DataError("Invalid parts: got none, must be at least one part of a key.")
        self._parts = parts
        self._readers = [reader(part, True) for part in parts]
        self.awaits = any(map(_awaits, parts))

    def __repr__(self) -> str:
        return f"combined({', '.join([repr_of(part) for part in self._parts])})"

    def __call__(self, request: Incoming) -> Any:
        return _joined([], self._readers, request)


def _joined(before: list[str], reads: Iterable[_Reader], request: Incoming) -> Any:
    """The key of what is known and what is read, or what to await for it."""
    parts = list(before)
    rest = iter(reads)
    for read in rest:
        part = read(request)
        if isawaitable(part):
            # One after the other, so that a part that fails leaves none that nobody awaits.
            return _later(parts, part, rest, request)
        parts.append(_checked(part))
    return join(*parts)


async def _later(
    before: list[str], part: Awaitable[Any], rest: Iterable[_Reader], request: Incoming
) -> str:
    key = _joined([*before, _checked(await part)], rest, request)
    text: str = await key if isawaitable(key) else key
    return text


def _checked(part: object) -> str:
    if not isinstance(part, str) or not part:
        raise DataError(f"Invalid part: {shown(part)}, must be a non-empty string.")
    return part


def repr_of(key: object) -> str:
    """What a key is called in messages."""
    return repr(key) if isinstance(key, By | ClientIP) else name_of(key)


def by_header(name: str, secret: str | bytes | None = None, *, otherwise: Key | None = None) -> By:
    """Count by a header such as an API key: by its digest, so that it is seen nowhere.

    With a `secret` it is an HMAC: take one where values could be guessed. A request without the
    header, or with more than one, counts by `otherwise`, by default the client's address; else
    leaving it out would be a way around the limit. Note that whoever invents a new value has a new
    limit: check the value, or limit by address as well.
    """
    return _Header(name, secret, otherwise)


def by_user(*, otherwise: Key | None = None) -> By:
    """Count by who is logged in, as the framework knows it; nobody by `otherwise`, by default the
    client's address."""
    return _User(otherwise)


def by_route() -> By:
    """Count by method and path template (`GET /items/{id}`): all callers together, HEAD as GET.

    Where the template is not known, as before routing, it is the path itself, which callers choose.
    """
    return _Route()


def combined(*parts: Key) -> By:
    """Count by several things at once: `combined(by_user(), by_route())`.

    Different parts make different keys, whatever callers write into them.
    """
    return _Combined(parts)
