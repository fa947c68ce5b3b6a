"""Quota by key: what a user's callable says, kept for a while."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Generator
from inspect import isawaitable
from math import isnan
from typing import Any, Generic, TypeVar

from cachetools import LRUCache, TTLCache

from throttled._callables import checked_callable, is_async, name_of
from throttled._text import shown
from throttled.exceptions import DataError
from throttled.once import AsyncOnce
from throttled.quota import Rule, rules_of
from throttled.store.base import new_lock

E = TypeVar("E")

#: Keys whose quota is kept.
MOST_KEYS = 65_536
#: Quotas whose entry is kept.
MOST_QUOTAS = 1_024


class Tiers(Generic[E]):
    """What a limit needs for a key, by the quota that a callable gives for the key.

    `of(key)` is what callers want. `resolve` is the callable, in async code also an async one;
    `make` turns the rules of a quota into an entry. Entries are kept by quota, and for `ttl`
    seconds by key: with 0 the callable is asked each time, with `math.inf` once, as long as the
    key is among the 65,536 used last.

    What the callable raises comes through as it is, and nothing is kept then. A quota that it
    should not have returned is a `DataError`.
    """

    def __init__(
        self,
        resolve: Callable[[str], Any],
        ttl: float,
        make: Callable[[tuple[Rule, ...]], E],
        asynchronous: bool,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises `DataError` for a bad `ttl`, or a callable that the flavour cannot use."""
        if not isinstance(ttl, int | float) or isinstance(ttl, bool) or isnan(ttl) or ttl < 0:
            raise DataError(f"Invalid quota_ttl: {shown(ttl)}, must be seconds of 0 or more.")
        self._resolve = checked_callable("quota", resolve, asynchronous)
        self._asks_async = is_async(resolve)
        self._make = make
        self._asynchronous = asynchronous
        self._by_key: TTLCache[str, E] | None = TTLCache(MOST_KEYS, ttl, timer) if ttl else None
        self._by_quota: LRUCache[Any, E] = LRUCache(MOST_QUOTAS)
        # Lookups under way, by event loop and key.
        self._lookups: dict[tuple[object, str], Lookup[E]] = {}
        # Grows when something is forgotten: what was asked for before is not kept after.
        self._age = 0
        self._lock = new_lock()

    def of(self, key: str) -> E | Lookup[E]:
        """The entry of a key, or what to await for it where an async callable has to be asked."""
        if self._by_key is not None:
            with self._lock:
                try:
                    return self._by_key[key]
                except KeyError:
                    pass
        if self._asks_async:
            return self._lookup(key)
        age = self._age
        quota = self._resolve(key)
        if self._asynchronous and isawaitable(quota):
            self._asks_async = True
            return self._lookup(key, quota)
        return self._kept(key, quota, age)

    def forget(self, key: str | None = None) -> None:
        """Ask anew for a key, or for all of them."""
        with self._lock:
            self._age += 1
            if self._by_key is None:
                return
            if key is None:
                self._by_key.clear()
            else:
                self._by_key.pop(key, None)

    def _kept(self, key: str, quota: object, age: int) -> E:
        """The entry of a quota that was asked for at an age; kept for its key."""
        entry = self._entry(quota)
        if self._by_key is not None:
            with self._lock:
                if age == self._age:
                    self._by_key[key] = entry
        return entry

    def _entry(self, quota: object) -> E:
        # Reading text takes longer than to find what it came to the last time.
        text = quota if type(quota) is str else None
        entry = self._known(text)
        if entry is not None:
            return entry
        try:
            rules = rules_of(quota)
            entry = self._known(rules)
            if entry is None:
                entry = self._make(rules)
        except DataError as error:
            raise DataError(
                f"Invalid quota: {name_of(self._resolve)} returned {shown(quota)}. {error}"
            ) from None
        with self._lock:
            # Of two threads that made one, the first has made it for both.
            entry = self._by_quota.setdefault(rules, entry)
            if text is not None:
                self._by_quota[text] = entry
        return entry

    def _known(self, quota: str | tuple[Rule, ...] | None) -> E | None:
        with self._lock:
            return self._by_quota.get(quota)

    def _lookup(self, key: str, asked: Awaitable[Any] | None = None) -> Lookup[E]:
        """The lookup of a key that is under way, or a new one."""
        from anyio.lowlevel import current_token  # here, so that sync code does not load it

        place = current_token(), key
        with self._lock:
            lookup = self._lookups.get(place)
            if lookup is None or lookup.age != self._age:
                lookup = self._lookups[place] = Lookup(self, place, self._age, asked)
        return lookup

    def _landed(self, lookup: Lookup[E]) -> None:
        with self._lock:
            if self._lookups.get(lookup.place) is lookup:
                del self._lookups[lookup.place]


class Lookup(Generic[E]):
    """What an async callable says of one key: await it, from as many tasks as ask meanwhile."""

    __slots__ = ("_asked", "_askers", "_once", "_tiers", "age", "place")

    def __init__(
        self,
        tiers: Tiers[E],
        place: tuple[object, str],
        age: int,
        asked: Awaitable[Any] | None,
    ) -> None:
        self._tiers = tiers
        self._asked = asked  # the first answer to await, where the callable was called already
        self._once = AsyncOnce(self._ask)
        self._askers = 0
        self.place = place
        self.age = age

    def __await__(self) -> Generator[Any, Any, E]:
        return self._join().__await__()

    async def _join(self) -> E:
        self._askers += 1
        try:
            return await self._once()
        finally:
            self._askers -= 1
            # Cancelled ones leave it to others; the last one takes it away, or it would stay.
            if self._once.done or not self._askers:
                self._tiers._landed(self)

    async def _ask(self) -> E:
        tiers, (_, key) = self._tiers, self.place
        asked, self._asked = self._asked, None
        quota = tiers._resolve(key) if asked is None else asked
        return tiers._kept(key, await quota if isawaitable(quota) else quota, self.age)
