"""What several stores use together, such as a client with its pool of connections."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Hashable, Mapping
from typing import Any, cast


def frozen(value: Any) -> Hashable:
    """A key that is equal for equal values; of what cannot be hashed, the identity."""
    kind = cast("Any", type(value))
    if issubclass(kind, Mapping):
        return ("mapping", frozenset((key, frozen(item)) for key, item in value.items()))
    if issubclass(kind, list | tuple):
        return ("sequence", tuple(frozen(item) for item in value))
    try:
        hash(value)
    except TypeError:
        return ("identity", id(value))
    return (kind, value)  # 1, 1.0 and True are equal, and mean different options.


class Shared:
    """Things made once for equal keys, and closed when the last of their users is gone.

    A user that is simply forgotten counts as gone. `keep` is held as long as the thing is, so that
    an identity in the key (see `frozen`) cannot come to mean something else.
    """

    def __init__(self) -> None:
        self._renew()
        _all_shared.add(self)

    def _renew(self) -> None:
        self._lock = threading.Lock()
        self._things: dict[Hashable, tuple[Any, weakref.WeakSet[Any], Any]] = {}

    def forget(self) -> None:
        """In a forked child: use nothing of the parent's any more, not even its lock."""
        users = [user for _, users, _ in self._things.values() for user in users]
        self._renew()
        for user in users:
            user.forget()

    def obtain(self, key: Hashable, user: Any, make: Callable[[], Any], keep: Any) -> Any:
        """The thing of that key, made now if there is none."""
        with self._lock:
            for old in [old for old, entry in self._things.items() if not entry[1]]:
                del self._things[old]
            if key not in self._things:
                self._things[key] = (make(), weakref.WeakSet(), keep)
            thing, users, _ = self._things[key]
            users.add(user)
            return thing

    def leave(self, key: Hashable, user: Any) -> Any:
        """Sign off. Returns the thing if nobody else uses it: it is the caller's to close then."""
        with self._lock:
            entry = self._things.get(key)
            if entry is None:
                return None
            thing, users, _ = entry
            users.discard(user)
            if users:
                return None
            del self._things[key]
            return thing


_all_shared: weakref.WeakSet[Shared] = weakref.WeakSet()


def _after_fork() -> None:
    for shared in list(_all_shared):
        shared.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
