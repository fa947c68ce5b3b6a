"""Where the dashboard has its numbers: limits of this process, or a service.

Both tell what `/stats` of a service shows: see docs/service.md.
"""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Mapping
from contextlib import suppress
from heapq import heappop, heappush
from http.client import HTTPException
from os import PathLike
from typing import Any, Final, Protocol
from urllib.error import HTTPError, URLError
from urllib.parse import SplitResult, urlsplit
from urllib.request import HTTPRedirectHandler, HTTPSHandler, Request, build_opener
from weakref import WeakKeyDictionary

from anyio import to_thread

from throttled import __version__
from throttled._text import shown
from throttled.base import BaseThrottled
from throttled.exceptions import PolicyNotFoundError, ServiceUnavailableError, SetUpError
from throttled.hooks import Event
from throttled.policies import OPERATIONS
from throttled.quota import Rule
from throttled.service.stats import PolicyStats
from throttled.service.told import Stores, file_says, policy_says
from throttled.store.base import new_lock

#: Bytes of the longest answer that is read.
_MOST_BYTES: Final = 8 * 1024 * 1024
#: Seconds that a service has to answer in.
_TIMEOUT: Final = 2.0
#: Of one policy, waits that are known at once.
_MOST_WAITS: Final = 10_000

Limits = Mapping[str, BaseThrottled[Any]]


class Source(Protocol):
    """Whatever knows what is counted."""

    #: Where that is, for people.
    name: str

    async def stats(self) -> dict[str, Any]:
        """All of it, as `/stats` of a service has it."""
        ...

    def operations(self, policy: str) -> frozenset[str] | None:
        """What a policy permits; None: it is not known here."""
        ...


class _Counted(PolicyStats):
    """What is known of a limit that threads may share, and how many calls wait."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = new_lock()
        self._until: list[float] = []

    def decided(self, event: Event) -> None:
        with self._lock:
            super().decided(event)

    def failed(self, event: Event) -> None:
        with self._lock:
            super().failed(event)

    def waits(self, event: Event) -> None:
        """Somebody waits; one who gives up counts until the slot that was promised."""
        with self._lock:
            if len(self._until) < _MOST_WAITS:
                heappush(self._until, self._clock() + event.wait)

    def told(self, digests: bool) -> dict[str, Any]:
        with self._lock:
            while self._until and self._until[0] <= self._clock():
                heappop(self._until)
            return {"waiting": len(self._until), **super().told(digests)}


class OwnLimits:
    """Counts what limits of this process decide, from now on."""

    def __init__(self, limits: Limits, *, made_up: bool = False) -> None:
        self.name = "this process"
        #: Whether nobody but the dashboard itself calls them.
        self.made_up = made_up
        if not isinstance(limits, Mapping):
            raise SetUpError(
                f"Invalid policies: {shown(limits)}, must be limits by name, such as "
                f'{{"api": throttle}}, or what throttled.load() gives.'
            )
        self.limits = limits
        self._began = time.monotonic()
        self._stats: WeakKeyDictionary[BaseThrottled[Any], _Counted] = WeakKeyDictionary()
        self._watched()

    def _watched(self) -> dict[str, tuple[BaseThrottled[Any], _Counted]]:
        """All limits there are, each with what is counted of it; a reload may bring new ones."""
        found: dict[str, tuple[BaseThrottled[Any], _Counted]] = {}
        for name in list(self.limits):
            with suppress(PolicyNotFoundError):  # a reload has just taken it away
                throttle: object = self.limits[name]
                if not isinstance(name, str) or not isinstance(throttle, BaseThrottled):
                    raise SetUpError(
                        f"Invalid policies[{shown(name)}]: {shown(throttle)}, must be a Throttled "
                        f"by its name."
                    )
                stats = self._stats.get(throttle)
                if stats is None:
                    stats = self._stats[throttle] = _Counted()
                    throttle.observe(stats)
                found[name] = throttle, stats
        return found

    def operations(self, policy: str) -> frozenset[str] | None:
        """What a policy permits, as its file says."""
        spec: Any = getattr(self.limits, "spec", None)
        permitted: frozenset[str] | None = None if spec is None else spec(policy).operations
        return permitted

    async def stats(self) -> dict[str, Any]:
        """What is counted."""
        stores = Stores()
        by_policy: dict[str, Any] = {}
        for name, (throttle, stats) in self._watched().items():
            with suppress(PolicyNotFoundError):
                limit: Any = throttle
                by_policy[name] = {
                    **policy_says(self.limits, name, limit, stores),
                    "operations": sorted(self.operations(name) or OPERATIONS),
                    **stats.told(limit.store.hides_keys),
                }
        return {
            "version": __version__,
            "uptime": round(time.monotonic() - self._began, 3),
            "draining": False,
            "under_way": None,
            "policies": by_policy,
            "stores": stores.told(),
            "policy_file": file_says(self.limits),
            "tickets": None,
        }


class _Straight(HTTPRedirectHandler):
    """Goes nowhere else: the token is for the service alone."""

    def redirect_request(self, *args: Any, **more: Any) -> None:
        return None


class ServiceStats:
    """Asks a service: `ServiceStats("http://127.0.0.1:9464/stats", token=...)`.

    `url` is that of `/stats` on its side port, `token` what it wants to be shown. Of an `https://`
    URL, for whoever has put TLS before it: `ca` is the file of the authorities to trust, `cert` and
    `key` are those of a certificate to show. Raises `SetUpError` for what is no such URL, and for
    files that cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        ca: str | PathLike[str] | None = None,
        cert: str | PathLike[str] | None = None,
        key: str | PathLike[str] | None = None,
    ) -> None:
        parts = _parts_of(url)
        self._url = url if parts.path not in ("", "/") else f"{url.rstrip('/')}/stats"
        self._token = token
        self._opener = build_opener(_Straight, HTTPSHandler(context=_trusting(ca, cert, key)))
        self.name = f"the service at {parts.netloc}"
        #: What it told of each policy when it was last asked; None: it was not asked yet.
        self._policies: Mapping[str, Mapping[str, Any]] | None = None

    def __repr__(self) -> str:
        return f"ServiceStats({self._url!r})"

    def operations(self, policy: str) -> frozenset[str] | None:
        """What a policy permitted when the service was last asked."""
        said = self._said(policy)
        return frozenset(said.get("operations", ())) if said else None

    def hides(self, policy: str) -> bool:
        """Whether keys of a policy are to be shown nowhere: so, unless it says that they may."""
        return self._said(policy).get("hides_keys") is not False

    def prefix(self, policy: str) -> str | None:
        """What the keys of a policy begin with in its store; None: it is not known."""
        prefix: str | None = self._said(policy).get("key_prefix")
        return prefix

    def _said(self, policy: str) -> Mapping[str, Any]:
        return (self._policies or {}).get(policy, {})

    async def known(self) -> None:
        """Ask it, unless it has been asked before."""
        if self._policies is None:
            with suppress(ServiceUnavailableError):
                await self.stats()

    async def stats(self) -> dict[str, Any]:
        """What the service tells. Raises `ServiceUnavailableError` if it does not."""
        self._policies = self._policies or {}
        told = await to_thread.run_sync(self._read)
        self._policies = told["policies"]
        return told

    def _read(self) -> dict[str, Any]:
        request = Request(self._url, headers={"Accept": "application/json"})
        if self._token is not None:
            request.add_unredirected_header("Authorization", f"Bearer {self._token}")
        try:
            with self._opener.open(request, timeout=_TIMEOUT) as answer:
                content: bytes = answer.read(_MOST_BYTES + 1)
        except HTTPError as error:
            error.close()
            why = f"answered {error.code}"
            if error.code == 401:
                why += ": it wants a token, or another one"
            raise ServiceUnavailableError(f"{self._url} {why}.") from None
        except (URLError, OSError, HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise ServiceUnavailableError(f"{self._url} cannot be had: {reason}") from None
        try:
            told: Any = json.loads(content) if len(content) <= _MOST_BYTES else None
        except ValueError:
            told = None
        if not _is_told(told):
            raise ServiceUnavailableError(
                f"{self._url} answers, but not as the /stats of a service does."
            )
        stats: dict[str, Any] = told
        return stats


def _parts_of(url: Any) -> SplitResult:
    """The parts of a URL; `SetUpError` if there is nobody to be asked at it."""
    try:
        parts: SplitResult = urlsplit(url)
        fine = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        if fine and not parts.username and url.isprintable():
            return parts
    except (ValueError, TypeError, AttributeError):
        pass
    raise SetUpError(f"Invalid stats: {shown(url)}, must be such as 'http://127.0.0.1:9464/stats'.")


def _trusting(ca: Any, cert: Any, key: Any) -> ssl.SSLContext:
    """Whom to trust, and what to show; `SetUpError` for files that do not do."""
    try:
        context = ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        raise SetUpError(f"Invalid ca: {shown(ca)}, {error.strerror or error}.") from None
    if cert is not None or key is not None:
        if cert is None:
            raise SetUpError(f"Invalid key: {shown(key)}, is of no use without cert.")
        try:
            # A password would be asked for on the terminal.
            context.load_cert_chain(cert, key, password="")
        except (OSError, ssl.SSLError) as error:
            raise SetUpError(
                f"Invalid cert: {shown(cert)}, {error.strerror or error}, with key {shown(key)}."
            ) from None
    return context


def _is_told(told: Any) -> bool:
    """Whether that is what a service tells, as far as the page relies on it."""
    if not isinstance(told, dict):
        return False
    parts: list[Any] = [told.get("policies"), told.get("stores")]
    return all(
        isinstance(part, dict) and all(isinstance(each, dict) for each in part.values())
        for part in parts
    )


def rule_told(rule: Rule | None, using: str) -> dict[str, Any]:
    """A rule for JSON, as `/stats` has it."""
    if rule is None:
        return {"quota": None, "algorithm": None, "cost": None, "name": None}
    return {
        "quota": str(rule.quota),
        "algorithm": rule.using or using,
        "cost": rule.cost,
        "name": rule.name,
    }
