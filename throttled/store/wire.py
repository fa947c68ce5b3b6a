"""Requests as Redis reads them, put together once a plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256
from hmac import digest
from math import inf
from typing import TYPE_CHECKING

from throttled.exceptions import DataError
from throttled.store.script import SCRIPT, SCRIPT_SHA

if TYPE_CHECKING:
    from throttled.algorithms.plan import Joint, Plan


def bulk(text: bytes) -> bytes:
    """A string as Redis reads it."""
    return b"$%d\r\n%b\r\n" % (len(text), text)


_EVALSHA = bulk(b"EVALSHA") + bulk(SCRIPT_SHA.encode())
_EVAL = bulk(b"EVAL") + bulk(SCRIPT.encode())
ASKING = b"*1\r\n" + bulk(b"ASKING")
#: EVALSHA, sha, how many keys, the key, now, and the seven arguments of a group.
_SINGLE = b"*12\r\n" + _EVALSHA + bulk(b"1")
SERVER_TIME = bulk(b"")
#: More keys than this of one plan, or more costs, and their bytes are put together anew.
_KEPT = 1024
#: Longer keys are put together anew each time, for the room that they would take.
_LONG = 256


def with_source(request: bytes) -> bytes:
    """The same request with the whole script in it."""
    return request.replace(_EVALSHA, _EVAL, 1)


def one(key: bytes, group: bytes, now: bytes = SERVER_TIME) -> bytes:
    """The request for one group."""
    return b"%b%b%b%b" % (_SINGLE, key, now, group)


def many(
    keys: Sequence[bytes], groups: Sequence[bytes], now: bytes = SERVER_TIME, count: int = 0
) -> bytes:
    """The request for any number of groups and their keys, which may stand several together:
    `count` says how many there are then."""
    count = count or len(keys)
    head = b"*%d\r\n" % (4 + 8 * count) + _EVALSHA + bulk(b"%d" % count)
    return b"".join((head, *keys, now, *groups))


def whole(value: float) -> bytes:
    """A number of µs or of tokens as the script reads it."""
    if value in (inf, -inf):
        return b"inf" if value > 0 else b"-inf"
    return b"%d" % value


def escaped(key: str) -> str:
    """The key without the braces that mark the hash tag around it."""
    return key.replace("%", "%25").replace("{", "%7B").replace("}", "%7D")


def digest_of(hash_keys: object) -> Callable[[str], str] | None:
    """What turns keys into digests: SHA-256 in hexadecimal, keyed (HMAC) if there is a secret."""
    if hash_keys is False or hash_keys is None:
        return None
    if hash_keys is True:
        return lambda key: sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
    if not isinstance(hash_keys, str | bytes) or not hash_keys:
        # The value itself stays out of the message: it may be a secret.
        raise DataError(
            f"Invalid hash_keys: got {type(hash_keys).__name__}, must be True, False or a "
            f"non-empty secret as str or bytes."
        )
    secret = hash_keys.encode("utf-8") if isinstance(hash_keys, str) else hash_keys
    return lambda key: digest(secret, key.encode("utf-8", "surrogatepass"), "sha256").hex()


class _Wording:
    """What is asked in bytes, kept for keys and costs that come again."""

    __slots__ = ("_groups", "_heads")

    #: How many keys it takes.
    width = 1

    def __init__(self) -> None:
        self._groups: dict[tuple[int, float], bytes] = {}
        self._heads: dict[str, bytes] = {}

    def bulk(self, key: str) -> bytes:
        """The keys in Redis, as Redis reads them, where the caller's is `key`."""
        raise NotImplementedError

    def _compose(self, cost: int, patience: float) -> bytes:
        """The groups that ask for a cost."""
        raise NotImplementedError

    def asking(self, key: str, cost: int, patience: float) -> bytes:
        """The whole request to admit one call by the server's time, in as few steps as can be."""
        head = self._heads.get(key) or self._head(key)
        return head + (self._groups.get((cost, patience)) or self.to_admit(cost, patience))

    def _head(self, key: str) -> bytes:
        """All of a request before its groups."""
        if len(self._heads) >= _KEPT:
            self._heads = {}
        head = many([self.bulk(key)], [], count=self.width)
        if len(key) <= _LONG:
            self._heads[key] = head
        return head

    def to_admit(self, cost: int, patience: float) -> bytes:
        """The groups that ask for a cost; most calls are like others before them."""
        groups = self._groups.get((cost, patience))
        if groups is None:
            groups = self._compose(cost, patience)
            if len(self._groups) >= _KEPT:
                self._groups = {}
            self._groups[cost, patience] = groups
        return groups


class JointWording(_Wording):
    """A joint in bytes: what its plans say, one after the other, joined."""

    __slots__ = ("_joint", "_parts", "width")

    def __init__(self, joint: Joint, parts: Sequence[Wording]) -> None:
        super().__init__()
        self._joint = joint
        self._parts = parts
        self.width = len(parts)

    def bulk(self, key: str) -> bytes:
        return self.bulks((key,) * self.width)

    def bulks(self, keys: Sequence[str]) -> bytes:
        """The keys in Redis, as Redis reads them."""
        return b"".join([part.bulk(key) for part, key in zip(self._parts, keys, strict=True)])

    def _compose(self, cost: int, patience: float) -> bytes:
        return self.to_ask(cost, patience, ticket=False)

    def to_ask(self, cost: int, patience: float, ticket: bool) -> bytes:
        """The groups that ask for a cost, with or without a ticket."""
        costs = (*self._joint.costs(cost), *(cost for _ in self._joint.holds))
        count = len(self._parts)
        groups = [
            part.to_join(each, patience, ticket, last=place == count)
            for place, (part, each) in enumerate(zip(self._parts, costs, strict=True), 1)
        ]
        return b"".join(groups)


class Wording(_Wording):
    """A plan in bytes: all that does not change from call to call."""

    __slots__ = (
        "_adjust",
        "_admit",
        "_digest",
        "_join",
        "_join_ticket",
        "_names",
        "_once",
        "_prefix",
        "_ticket",
        "_undo",
        "to_reset",
    )

    def __init__(self, plan: Plan, digest: Callable[[str], str] | None = None) -> None:
        super().__init__()
        numbers = b"".join(bulk(b"%d" % n) for n in (plan.limit, plan.period, plan.burst))
        rest = bulk(plan.kind.encode()) + numbers
        self._digest = digest
        self._prefix = plan.prefix.encode("utf-8", "surrogatepass") + b"{"
        (
            self._admit,
            self._adjust,
            self._undo,
            self._join,
            self._ticket,
            self._join_ticket,
            self._once,
            reset,
        ) = (
            bulk(op) + rest
            for op in (
                *(b"admit", b"adjust", b"undo", b"admit+", b"ticket", b"ticket+"),
                *(b"once", b"reset"),
            )
        )
        #: The group that forgets a key.
        self.to_reset = reset + bulk(b"") + bulk(b"")
        self._names: dict[str, bytes] = {}

    def bulk(self, key: str) -> bytes:
        """The key in Redis, as Redis reads it.

        The caller's part is the hash tag, so that several rules of it share a slot.
        """
        name = self._names.get(key)
        if name is None:
            if len(self._names) >= _KEPT:
                self._names = {}
            name = bulk(self._prefix + self._name(key))
            if len(key) <= _LONG:
                self._names[key] = name
        return name

    def mark(self, key: str, mark: str) -> bytes:
        """A mark in the slot of a key, as Redis reads it. Not kept: it will not be asked for again.

        `mark` needs no escaping, and is nobody's secret.
        """
        write = escaped if self._digest is None else self._digest
        text = f"{write(getattr(key, 'slot', key))}}}:{mark}"
        return bulk(self._prefix + text.encode("utf-8", "surrogatepass"))

    def _name(self, key: str) -> bytes:
        """What follows the brace that opens the hash tag."""
        write = escaped if self._digest is None else self._digest
        slot = getattr(key, "slot", None)
        if slot is None:
            return write(key).encode("utf-8", "surrogatepass") + b"}"
        # The slot is the tag, and the key of the caller follows it.
        text = f"{write(slot)}}}:{write(key.text)}"  # type: ignore[attr-defined]
        return text.encode("utf-8", "surrogatepass")

    def _compose(self, cost: int, patience: float) -> bytes:
        return self._admit + bulk(whole(cost)) + bulk(whole(patience))

    def to_join(self, cost: int, patience: float, ticket: bool, last: bool) -> bytes:
        """The group that asks for a cost together with the group after it, unless it is the last;
        and for a ticket, if there is to be one."""
        if ticket:
            op = self._ticket if last else self._join_ticket
        else:
            op = self._admit if last else self._join
        return op + bulk(whole(cost)) + bulk(whole(patience))

    def to_adjust(self, delta: int, slot: float | None) -> bytes:
        return self._adjust + bulk(whole(delta)) + bulk(b"" if slot is None else whole(slot))

    def to_mark(self, lasts: float, count: int) -> bytes:
        """The group without which the next `count` are not done: its key is new, and stays so many
        µs."""
        return self._once + bulk(whole(lasts)) + bulk(whole(count))

    def to_undo(self, written: bytes, before: bytes) -> bytes:
        return self._undo + bulk(written) + bulk(before)
