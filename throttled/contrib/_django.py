"""What the adapters of Django and DRF share: the request, the settings, the way through the layers.

Theory of operation
-------------------
* Sync code asks a `throttled.Throttled`, async code one of `throttled.asyncio`, so that no event
  loop waits for a socket. Given a quota, a limit is made for either when it is needed, and both
  share their counts: those of the same MemoryStore, or of the same server.
* The layers of a site (middleware, decorators, throttles of DRF) may be of both flavours. Each
  flavour has its `Passage` through them, and what one layer undoes or settles for the other is run
  the way Django does it: sync code in a thread, async code in the event loop.
* The outermost layer sees the response last: it settles what counts by its outcome, and tells the
  headers of all.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Final, cast

from asgiref.sync import async_to_sync, sync_to_async
from django.conf import settings
from django.core.exceptions import (
    BadRequest,
    ImproperlyConfigured,
    PermissionDenied,
    SuspiciousOperation,
)
from django.core.signals import setting_changed
from django.http import Http404, HttpResponse
from django.utils.functional import LazyObject, empty
from django.utils.module_loading import import_string

from throttled import store as sync_stores
from throttled._text import shown
from throttled.asyncio import store as async_stores
from throttled.contrib.headers import FIELDS, merge
from throttled.contrib.identity import client_ip
from throttled.contrib.inbound import Passage, Refusal, Replies
from throttled.contrib.keys import Incoming, Key, by_route, by_user
from throttled.contrib.limit import BaseRateLimit
from throttled.contrib.rules import Scoped
from throttled.exceptions import DataError, SetUpError
from throttled.quota import MAX_LIMIT, per_sec
from throttled.store.base import new_lock
from throttled.store.policy import Flow, afinished, finished

__all__ = ["KINDS", "Request", "Site", "Visit", "naming", "served", "site"]

# Where a request keeps its `Visit`.
_VISIT: Final = "_throttled_visit"


class Request(Incoming):
    """A request of Django or of DRF; `native` is the very one that the view is given."""

    __slots__ = ("_asynchronous", "_native")

    def __init__(self, native: Any, asynchronous: bool) -> None:
        self._native = native
        self._asynchronous = asynchronous

    @property
    def native(self) -> Any:
        return self._native

    @property
    def peer(self) -> str | None:
        # Servers behind a Unix socket leave it empty.
        return self._native.META.get("REMOTE_ADDR") or None

    @property
    def headers(self) -> Mapping[str, str]:
        headers: Mapping[str, str] = self._native.headers
        return headers

    @property
    def method(self) -> str:
        return self._native.method or ""

    @property
    def path(self) -> str:
        path: str = self._native.path_info
        return path

    @property
    def route(self) -> str:
        match = self._native.resolver_match
        return self.path if match is None else f"/{match.route}"

    @property
    def user(self) -> str | Awaitable[str | None] | None:
        user = getattr(self._native, "user", None)
        if self._asynchronous and isinstance(user, LazyObject):
            auser = getattr(self._native, "auser", None)
            # Not looked up yet: that may ask the database, for which async code waits elsewhere.
            if auser is not None and cast("Any", user)._wrapped is empty:
                return _named(auser)
        return _name_of(user)


async def _named(auser: Callable[[], Awaitable[Any]]) -> str | None:
    return _name_of(await auser())


def _name_of(user: Any) -> str | None:
    """The primary key of who is logged in."""
    if user is None or not getattr(user, "is_authenticated", False):
        return None
    return None if user.pk is None else str(user.pk)


# -- the settings ---------------------------------------------------------------------------------


class _SyncRateLimit(BaseRateLimit):
    """What a `RateLimit` is in sync code."""

    _asynchronous = False


class _AsyncRateLimit(BaseRateLimit):
    """What a `RateLimit` is in async code."""


#: What limits are made of, by flavour.
KINDS: Final[dict[bool, type[BaseRateLimit]]] = {False: _SyncRateLimit, True: _AsyncRateLimit}


# What a name of the setting is called where limits are made.
_DEFAULTS: Final = {
    "STORE": "store",
    "KEY": "key",
    "USING": "using",
    "KEY_PREFIX": "key_prefix",
    "ON_STORE_ERROR": "on_store_error",
    "ENFORCE": "enforce",
}
OUTCOMES: Final = {"COST": "cost", "COUNT_WHEN": "count_when"}
_REPLIES: Final = {"HEADERS": "headers", "RESET": "reset", "PROBLEM": "problem"}
_RULES: Final = ("LIMIT", "RULES", "EXCLUDE", "EXEMPT")
_NAMES: Final = (*_RULES, *_DEFAULTS, *OUTCOMES, *_REPLIES)
# A quota for which every cost is good, to try the rest with.
_ANY: Final = per_sec(MAX_LIMIT)
# These may be dotted paths.
_DOTTED: Final = ("KEY", "COST", "COUNT_WHEN", "EXEMPT", "PROBLEM", "STORE")


class Site:
    """What `settings.THROTTLED` says, for both flavours."""

    def __init__(self, said: Any) -> None:
        """Raises `ImproperlyConfigured`, which names the setting."""
        if not isinstance(said, Mapping):
            raise ImproperlyConfigured(
                f"Invalid THROTTLED: {shown(said)}, must be a dictionary such as "
                f"{{'LIMIT': '100/minute'}}."
            )
        for name in said:
            if name not in _NAMES:
                raise ImproperlyConfigured(
                    f"Unknown THROTTLED[{name!r}], must be one of {', '.join(_NAMES)}."
                )
        #: By name, dotted paths resolved.
        self.said: dict[str, Any] = dict(said)
        for name in _DOTTED:
            found = self.said.get(name)
            if isinstance(found, str) and "://" not in found:
                with naming(name):
                    self.said[name] = _imported(found)
        style, reset = self.said.get("HEADERS", "ietf"), self.said.get("RESET", "delta")
        with naming("HEADERS"):
            Replies(style)
        with naming("RESET"):
            Replies(style, reset)
        # One for all limits, so that misuse is said once.
        self._key: Key = client_ip()
        self._defaults: dict[bool, dict[str, Any]] = {}
        self._replies: dict[bool, Replies] = {}

    def replies(self, asynchronous: bool) -> Replies:
        """How code of a flavour answers."""
        if asynchronous not in self._replies:
            said = {word: self.said[name] for name, word in _REPLIES.items() if name in self.said}
            with naming("PROBLEM"):
                self._replies[asynchronous] = Replies(**said, asynchronous=asynchronous)
        return self._replies[asynchronous]

    def defaults(self, asynchronous: bool) -> dict[str, Any]:
        """What limits of a flavour take that do not say otherwise."""
        found = self._defaults.get(asynchronous)
        if found is None:
            found = self._defaults.setdefault(asynchronous, self.checked(_DEFAULTS, asynchronous))
        return found

    def checked(self, names: Mapping[str, str], asynchronous: bool, **made: Any) -> dict[str, Any]:
        """The arguments that names of the setting stand for, each of them tried."""
        made.setdefault("key", self._key)
        for name, word in names.items():
            if name in self.said:
                with naming(name):
                    value = self.said[name]
                    made[word] = _store(value, asynchronous) if name == "STORE" else value
                    KINDS[asynchronous](_ANY, **made)
        return made


@contextmanager
def naming(name: str) -> Generator[None]:
    """Say of an error which setting it is about."""
    try:
        yield
    except ImproperlyConfigured:
        raise
    except (DataError, SetUpError, ImportError, TypeError) as error:
        raise ImproperlyConfigured(f"Invalid THROTTLED[{name!r}]: {error}") from error


def _imported(path: str) -> Any:
    found = import_string(path)
    # What makes a key is meant to be called, and so is a class.
    return found() if isinstance(found, type) or found in (by_user, by_route, client_ip) else found


def _store(said: Any, asynchronous: bool) -> Any:
    """The store of a flavour. Those of one server share their counts."""
    if isinstance(said, str):
        said = {"server": said}
    if not isinstance(said, Mapping):
        return said
    stores: Any = async_stores if asynchronous else sync_stores
    return stores.RedisStore(**said)


_making = new_lock()


def site() -> Site:
    """What the settings say, until a test changes them."""
    with _making:  # two of them could have two stores in memory
        return _site()


@lru_cache(maxsize=1)
def _site() -> Site:
    return Site(getattr(settings, "THROTTLED", {}))


def _changed(*, setting: str, **_: Any) -> None:
    if setting == "THROTTLED":
        _site.cache_clear()


setting_changed.connect(_changed)


# -- a request's way through the layers -----------------------------------------------------------

# How code of a flavour runs what is there for the other one.
_ACROSS: Final[dict[bool, Callable[[Flow[Any]], Any]]] = {
    False: async_to_sync(cast("Any", afinished)),
    True: sync_to_async(cast("Any", finished)),
}


class Visit:
    """A request's way through all layers, of both flavours; all or nothing."""

    __slots__ = ("_passages",)

    def __init__(self) -> None:
        self._passages = {False: Passage(), True: Passage()}

    @classmethod
    def of(cls, native: Any) -> tuple[Visit, bool]:
        """The visit of a request, and whether it is a new one: whose response it is to finish."""
        plain = getattr(native, "_request", native)  # DRF's has Django's inside
        visit = getattr(plain, _VISIT, None)
        if visit is not None:
            return visit, False
        visit = cls()
        setattr(plain, _VISIT, visit)
        return visit, True

    @property
    def refusal(self) -> Refusal | None:
        """Why the request goes no further, if so."""
        return self._passages[False].refusal or self._passages[True].refusal

    def enter(
        self,
        asynchronous: bool,
        limits: Sequence[Scoped],
        request: Request,
        exempt: Callable[[Any], Any] | None = None,
    ) -> Flow[Refusal | None]:
        """Take from each limit; else give back what layers of either flavour have taken."""
        refusal = yield from self._passages[asynchronous].enter(limits, request, exempt)
        other = self._passages[not asynchronous]
        if refusal is not None and other.acts:
            yield _ACROSS[asynchronous](other._undone())
        return refusal

    def leave(self, asynchronous: bool, response: Any) -> Flow[None]:
        """Give back what does not count."""
        mine, other = self._passages[asynchronous], self._passages[not asynchronous]
        if mine.pending:
            yield from mine.leave(response)
        if other.pending:
            yield _ACROSS[asynchronous](other.leave(response))

    def tell(self, response: Any, replies: Replies) -> None:
        """Put the headers of all limits on the response."""
        for passage in self._passages.values():
            told = passage.headers(replies)
            if told:
                found = [each for each in response.items() if each[0].lower() in FIELDS]
                for name, _ in found:
                    del response[name]
                for name, value in merge(found, told):
                    response[name] = value


def served(
    asynchronous: bool,
    native: Any,
    limits: Sequence[Scoped],
    exempt: Callable[[Any], Any] | None,
    replies: Replies,
    proceed: Callable[[], Any],
) -> Flow[Any]:
    """The response to a request that has to pass a layer."""
    visit, outermost = Visit.of(native)
    request = Request(native, asynchronous)
    refusal = None
    if limits:
        refusal = yield from visit.enter(asynchronous, limits, request, exempt)
    if refusal is None:
        try:
            response = yield proceed()
        except Exception as error:
            if outermost:
                yield from visit.leave(asynchronous, HttpResponse(status=_status_of(error)))
            raise
    else:
        kind, body = yield from replies.body(refusal, request)
        response = HttpResponse(body, content_type=kind, status=refusal.status)
    if outermost:
        yield from visit.leave(asynchronous, response)
        visit.tell(response, replies)
    return response


def _status_of(error: Exception) -> int:
    """What Django answers to an exception."""
    if isinstance(error, Http404):
        return 404
    if isinstance(error, PermissionDenied):
        return 403
    if isinstance(error, BadRequest | SuspiciousOperation):
        return 400
    status = getattr(error, "status_code", None)  # of DRF's
    return status if isinstance(status, int) else 500
