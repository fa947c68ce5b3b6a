"""What a request asks, checked: its bytes, its key, its cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf.message import DecodeError

from throttled._text import shown
from throttled.arguments import check_key
from throttled.exceptions import DataError
from throttled.service.agreed import LONGEST_KEY


def reader(message: Any) -> Callable[[bytes], Any]:
    """What makes a message of bytes; None of bytes that are none.

    An exception would end the call with its own text, and not as an error of the caller.
    """
    parse = message.FromString

    def read(content: bytes) -> Any:
        try:
            return parse(content)
        except DecodeError:
            return None

    return read


def key_of(key: str) -> str:
    """A key as it is; `DataError` for one that is empty or too long."""
    if not key:
        check_key(key)
    if len(key) > LONGEST_KEY:
        raise DataError(
            f"Invalid key: {shown(key[:60])}... of {len(key):,} characters, must have at most "
            f"{LONGEST_KEY:,}."
        )
    return key


def cost_of(request: Any) -> int:
    """The cost that a request names, 1 if it names none."""
    cost: int = request.cost
    return cost if cost or request.HasField("cost") else 1


def check_no_timeout(timeout: float) -> None:
    """`DataError` if a check that must not wait is to wait."""
    if timeout != -1:  # as the library has it: do not wait
        raise DataError(
            f"Invalid timeout: {shown(timeout)}, must be 0: the checks of CheckMany do not wait."
        )
