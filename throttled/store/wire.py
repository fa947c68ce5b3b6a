"""Requests as Redis reads them, put together once a plan."""

from __future__ import annotations

from functools import lru_cache
from math import inf
from typing import TYPE_CHECKING

from throttled.store.script import SCRIPT, SCRIPT_SHA

if TYPE_CHECKING:
    from throttled.algorithms.plan import Plan


def bulk(text: bytes) -> bytes:
    """A string as Redis reads it."""
    return b"$%d\r\n%b\r\n" % (len(text), text)


_EVALSHA = bulk(b"EVALSHA") + bulk(SCRIPT_SHA.encode())
_EVAL = bulk(b"EVAL") + bulk(SCRIPT.encode())
ASKING = b"*1\r\n" + bulk(b"ASKING")
#: EVALSHA, sha, how many keys, the key, now, and the seven arguments of a group.
_SINGLE = b"*12\r\n" + _EVALSHA + bulk(b"1")
SERVER_TIME = bulk(b"")
_HEAD = _SINGLE.decode() + "$"


def with_source(request: bytes) -> bytes:
    """The same request with the whole script in it."""
    return request.replace(_EVALSHA, _EVAL, 1)


def one(key: bytes, group: bytes, now: bytes = SERVER_TIME) -> bytes:
    """The request for one group."""
    return b"%b$%d\r\n%b\r\n%b%b" % (_SINGLE, len(key), key, now, group)


def many(groups: list[tuple[bytes, bytes]], now: bytes = SERVER_TIME) -> bytes:
    """The request for any number of (key, group)."""
    count = len(groups)
    return b"".join(
        (
            b"*%d\r\n" % (4 + 8 * count),
            _EVALSHA,
            bulk(b"%d" % count),
            *(bulk(key) for key, _ in groups),
            now,
            *(group for _, group in groups),
        )
    )


def delete(key: bytes) -> bytes:
    """The request that forgets a key."""
    return b"*2\r\n" + bulk(b"DEL") + bulk(key)


def whole(value: float) -> bytes:
    """A number of µs or of tokens as the script reads it."""
    if value in (inf, -inf):
        return b"inf" if value > 0 else b"-inf"
    return b"%d" % value


@lru_cache(maxsize=1024)
def _asked(cost: int, patience: float) -> str:
    return (bulk(whole(cost)) + bulk(whole(patience))).decode()


def escaped(key: str) -> str:
    """The key without the braces that mark the hash tag around it."""
    return key.replace("%", "%25").replace("{", "%7B").replace("}", "%7D")


class Wording:
    """A plan in bytes: all that does not change from call to call."""

    __slots__ = ("_length", "_middle", "_start", "adjust", "admit", "prefix", "undo")

    def __init__(self, plan: Plan) -> None:
        numbers = b"".join(bulk(b"%d" % n) for n in (plan.limit, plan.period, plan.burst))
        rest = bulk(plan.kind.encode()) + numbers
        self.prefix = plan.prefix.encode("utf-8", "surrogatepass") + b"{"
        self.admit = bulk(b"admit") + rest
        self.adjust = bulk(b"adjust") + rest
        self.undo = bulk(b"undo") + rest
        # The same as text, for `asking`.
        self._length = len(self.prefix) + 1
        self._start = "\r\n" + self.prefix.decode("utf-8", "surrogatepass")
        self._middle = "}\r\n" + (SERVER_TIME + self.admit).decode()

    def key(self, key: str) -> bytes:
        """The key in Redis. The caller's part is the hash tag, so that its rules share a slot."""
        if "%" in key or "{" in key or "}" in key:
            key = escaped(key)
        return self.prefix + key.encode("utf-8", "surrogatepass") + b"}"

    def asking(self, key: str, cost: int, patience: float) -> bytes:
        """The whole request to admit one call by the server's time, in as few steps as can be."""
        if not key.isascii() or "%" in key or "{" in key or "}" in key:
            return one(self.key(key), self.to_admit(cost, patience))
        return (
            f"{_HEAD}{self._length + len(key)}{self._start}{key}{self._middle}"
            f"{_asked(cost, patience)}"
        ).encode("utf-8", "surrogatepass")

    def to_admit(self, cost: int, patience: float) -> bytes:
        return self.admit + _asked(cost, patience).encode()

    def to_adjust(self, delta: int, slot: float | None) -> bytes:
        return self.adjust + bulk(whole(delta)) + bulk(b"" if slot is None else whole(slot))

    def to_undo(self, written: bytes, before: bytes) -> bytes:
        return self.undo + bulk(written) + bulk(before)
