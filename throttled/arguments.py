"""The arguments of calls, checked before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import isnan
from typing import Any, Self

from throttled._text import shown
from throttled.algorithms.plan import NOW
from throttled.exceptions import DataError
from throttled.quota import MAX_LIMIT

#: Longer than any wait: what `timeout=inf` means in µs.
EVER = 2.0**62


class Key(str):
    """A key that lives in a given slot of a Redis Cluster, usable wherever a key is.

    `Key("u42", slot="acme")` is another key than `"u42"`. Keys with the same `slot` are kept by the
    same node, so that `limit_all` can decide about them at once. In other stores it makes no
    difference where it lives. Raises `DataError` for an empty text or slot.
    """

    __slots__ = ("slot", "text")

    #: What the cluster hashes.
    slot: str
    #: The key as it was given.
    text: str

    def __new__(cls, text: str, slot: str) -> Self:
        for what, given in (("key", text), ("slot", slot)):
            if not isinstance(given, str) or not given:
                raise DataError(f"Invalid {what}: {shown(given)}, must be a non-empty string.")
        if "\0" in slot:
            raise DataError(f"Invalid slot: {shown(slot)}, must be without NUL characters.")
        key = super().__new__(cls, f"{slot}\0{text}")
        key.text = str(text.text if isinstance(text, Key) else text)
        key.slot = str(slot)
        return key

    def __repr__(self) -> str:
        return f"Key({self.text!r}, slot={self.slot!r})"

    def __reduce__(self) -> Any:
        return Key, (self.text, self.slot)


def check_key(key: object) -> str:
    """A key as a plain string or a `Key`; `DataError` unless it is a non-empty string."""
    if not isinstance(key, str) or not key:
        raise DataError(f"Invalid key: {shown(key)}, must be a non-empty string.")
    return key if type(key) is Key else str(key)


def check_cost(cost: object) -> int:
    """A cost as an int; `DataError` unless it is an integer of 0 or more."""
    if not isinstance(cost, int) or isinstance(cost, bool) or cost < 0:
        raise DataError(f"Invalid cost: {shown(cost)}, must be an integer of 0 or more.")
    # No capacity is larger, so anything beyond never fits either.
    return min(int(cost), MAX_LIMIT + 1)


def check_amount(what: str, amount: object) -> int:
    """What is to be charged or given back; `DataError` unless it is an integer from 0 up."""
    if not isinstance(amount, int) or isinstance(amount, bool) or not 0 <= amount <= MAX_LIMIT:
        raise DataError(
            f"Invalid {what}: {shown(amount)}, must be an integer from 0 to {MAX_LIMIT}."
        )
    return int(amount)


def check_seconds(what: str, seconds: object) -> float:
    """A duration in whole µs; `DataError` unless it is a number of seconds from 0 to a year."""
    if (
        not isinstance(seconds, int | float)
        or isinstance(seconds, bool)
        or not 0 <= seconds <= 366 * 86_400
    ):
        raise DataError(
            f"Invalid {what}: {shown(seconds)}, must be seconds from 0 to 31622400 (366 days)."
        )
    return -(-seconds * 1e6 // 1.0)


def patience_of(timeout: object) -> float:
    """The µs a caller is willing to wait; -1 and 0 both mean: now or not at all."""
    if isinstance(timeout, int | float) and not isinstance(timeout, bool) and not isnan(timeout):
        if timeout == -1:
            return NOW
        if timeout >= 0:
            return EVER if timeout > EVER / 1e6 else timeout * 1e6 // 1.0
    raise DataError(
        f"Invalid timeout: {shown(timeout)}, must be seconds of 0 or more, or -1 not to wait."
    )


def wait_of(timeout: object, deadline: object, default: float, clock: Callable[[], float]) -> float:
    """The patience that a timeout (None: `default`) and a deadline by `clock` leave.

    A deadline alone is also a timeout.
    """
    patience = default if timeout is None else patience_of(timeout)
    if deadline is None:
        return patience
    left = _left_until(deadline, clock())
    return left if timeout is None and not patience else min(patience, left)


def _left_until(deadline: object, now: float) -> float:
    if not isinstance(deadline, int | float) or isinstance(deadline, bool) or isnan(deadline):
        raise DataError(
            f"Invalid deadline: {shown(deadline)}, must be an instant in seconds, such as "
            f"time.monotonic() + 5."
        )
    left = deadline - now
    # Not only -inf and inf, which cannot be rounded.
    if left <= 0.0:
        return NOW
    return EVER if left > EVER / 1e6 else left * 1e6 // 1.0


def checked_calls(calls: object) -> list[tuple[str, int]]:
    """The calls of `limit_many` as pairs of key and cost; `DataError` names the first bad one."""
    if isinstance(calls, str | bytes | Mapping) or not isinstance(calls, Iterable):
        raise DataError(
            f"Invalid calls: {shown(calls)}, must be an iterable of keys or of (key, cost) pairs."
        )
    checked: list[tuple[str, int]] = []
    for place, call in enumerate(calls):
        if type(call) is tuple and len(call) == 2:
            key, cost = call
            if type(key) is str and key and type(cost) is int and 0 < cost <= MAX_LIMIT:
                checked.append(call)
                continue
        pair = (call, 1) if isinstance(call, str) else call
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise DataError(
                f"Invalid calls[{place}]: {shown(call)}, must be a key or a (key, cost) pair."
            )
        try:
            checked.append((check_key(pair[0]), check_cost(pair[1])))
        except DataError as error:
            raise DataError(f"Invalid calls[{place}]: {shown(call)}. {error}") from None
    return checked
