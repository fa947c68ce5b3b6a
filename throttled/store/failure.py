"""What can go wrong with a request, told apart as far as the next step depends on it."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final, TypeGuard

from throttled.exceptions import BaseThrottledError, SetUpError, StateError, StoreUnavailableError

#: The server does not know the script. It did not run.
NOSCRIPT: Final = "NOSCRIPT"
#: The server is a replica. Nothing ran that would have written.
READONLY: Final = "READONLY"
#: The slot lives, or is on its way, elsewhere. It did not run.
MOVED: Final = "MOVED"
ASK: Final = "ASK"
#: Several keys of a slot that is on its way. It did not run.
TRYAGAIN: Final = "TRYAGAIN"
#: The user may not do that, or not with one of the keys. It did not run.
NOPERM: Final = "NOPERM"
#: The server answered that it will not (LOADING, BUSY, CLUSTERDOWN …). It did not run.
REFUSED: Final = "REFUSED"
#: There was no connection, or the request could not be written out in full. It did not run.
UNSENT: Final = "UNSENT"
#: The request went out and no reply came. It may have run, and counts as if it had.
UNKNOWN: Final = "UNKNOWN"


class Failure:
    """What went wrong with one request."""

    __slots__ = ("code", "error", "lost", "text")

    def __init__(self, error: BaseException, sent: bool) -> None:
        from redis import exceptions

        self.error = error
        self.lost = False  # in a cluster that keeps sending the call on
        # Sentinel's errors go on with the whole client; a timeout kept by the kernel has no words.
        text = str(error).partition(" : <")[0]
        self.text = "timed out" if isinstance(error, BlockingIOError) else text or repr(error)
        self.code = UNKNOWN if sent else UNSENT
        cause = error.__cause__ or error.__context__
        if isinstance(error, exceptions.NoScriptError) or text.startswith("NOSCRIPT"):
            self.code = NOSCRIPT
        elif isinstance(error, exceptions.ReadOnlyError) or text.startswith("READONLY"):
            self.code = READONLY
        elif isinstance(cause, exceptions.ReadOnlyError):
            self.code = READONLY  # How redis-py's Sentinel connections put it.
        elif isinstance(error, exceptions.MovedError) or text.startswith("MOVED "):
            self.code = MOVED
        elif isinstance(error, exceptions.AskError) or text.startswith("ASK "):
            self.code = ASK
        elif isinstance(error, exceptions.TryAgainError) or text.startswith("TRYAGAIN"):
            self.code = TRYAGAIN
        elif isinstance(error, exceptions.NoPermissionError) or text.startswith("NOPERM"):
            self.code = NOPERM
        elif isinstance(
            error,
            exceptions.ResponseError | exceptions.AuthenticationError | exceptions.BusyLoadingError,
        ):
            self.code = REFUSED

    def as_error(self, where: str) -> BaseThrottledError:
        """What the caller gets to see."""
        if self.lost:
            error: BaseThrottledError = StoreUnavailableError(
                f"The cluster kept sending the call on, at last from {where}: {self.text}"
            )
        elif self.code in (MOVED, ASK):
            error = SetUpError(
                f"Redis at {where} belongs to a cluster: give the URL as redis+cluster://host:port."
            )
        elif self.code == UNKNOWN:
            error = StoreUnavailableError(
                f"Redis at {where} did not answer ({self.text}); the call may have been counted "
                f"and was not sent again."
            )
        elif self.code == UNSENT:
            error = StoreUnavailableError(f"Redis at {where} is unreachable: {self.text}")
        else:
            error = StoreUnavailableError(f"Redis at {where} refused the call: {self.text}")
        error.__cause__ = self.error
        return error


def group_error(key: bytes, text: object) -> BaseThrottledError:
    """The error that stands in a group's place."""
    if isinstance(text, bytes | str):
        words = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        if words.startswith(("damaged state", "WRONGTYPE")):
            return StateError(
                f"The state under the Redis key {key.decode('utf-8', 'replace')!r} cannot be "
                f"used: {words}. Deleting the key starts it afresh."
            )
        return StoreUnavailableError(f"The Redis script failed: {words}")
    return StoreUnavailableError(f"Unexpected reply of the Redis script: {text!r}")


@lru_cache(maxsize=1)
def failures() -> tuple[type[Exception], ...]:
    """What redis-py raises, as against what may come from anywhere else, such as an interrupt."""
    from redis.exceptions import RedisClusterException, RedisError

    return (RedisError, RedisClusterException, OSError)


def is_list(value: Any) -> TypeGuard[list[Any]]:
    """A list, its items still of any kind."""
    return type(value) is list


def read_only(reply: list[Any]) -> bool:
    """Whether a reply of the script comes from a replica. What that refused, a master may admit."""
    return any(type(group) is bytes and group.startswith(b"READONLY") for group in reply)
