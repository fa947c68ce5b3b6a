"""Limits that a file says: named policies in TOML or JSON, reloaded while they are in use.

    policies = throttled.load("policies.toml", watch=1.0)
    if policies["api"].limit("user:1").limited:
        ...

The way of a file: `reading` makes it a table, `checking` a `FileSpec`, with the help of `values`;
`making` makes stores and limits of that, and `base` lets those that are in use take over.
"""

from __future__ import annotations

import os

from throttled._closing import Closing
from throttled.policies.base import BasePolicies
from throttled.policies.spec import OPERATIONS, Override, PolicySpec, Tier, described
from throttled.store.base import Store
from throttled.store.redis import RedisStore
from throttled.throttled import Throttled

__all__ = ["OPERATIONS", "Override", "Policies", "PolicySpec", "Tier", "described", "load"]


class Policies(BasePolicies[Throttled], Closing):
    """The policies of a file: `policies["api"]` is a `Throttled`. Made by `throttled.load`.

    `policies.policy("api", key=..., timeout=...)` makes further ones with options of their own. All
    of them follow the file: `reload()` reads it again, `watch()` does so whenever it changes.

    May be shared by any number of threads. `close()`, or the end of a `with` block, stops watching
    and closes the stores that the file says, not one that was given.
    """

    _kind = Throttled
    _redis = RedisStore

    def close(self) -> None:
        """Stop watching, and close the stores of the file. A later call opens them anew."""
        for store in self._ended():
            store.close()

    def _round(self, asked: bool) -> bool:
        soon = super()._round(asked)
        for store in self._due():
            store.close()
        return soon


def load(
    path: str | os.PathLike[str], *, store: Store | None = None, watch: float | None = None
) -> Policies:
    """The policies of a .toml or .json file: `load("policies.toml")["api"].limit(key)`.

    `store` is for policies for which the file names none; by default they share one in the memory
    of this process. With `watch=1.0` a thread looks whether the file has changed, every so many
    seconds, and reloads it: see `Policies.watch`.

    Raises `DataError` for a file that cannot be had or is wrong, with every problem on a line of
    its own.
    """
    policies = Policies(path, store=store)
    if watch is not None:
        policies.watch(watch)
    return policies
