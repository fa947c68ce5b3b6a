"""What a decision answers."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Any, Literal, Self, cast

from throttled._text import plain

_new = object.__new__

#: Who decided: see `RateLimitResult.source`.
Source = Literal[
    "memory",
    "server",
    "local-deny",
    "fallback",
    "allowed-by-policy",
    "denied-by-policy",
    "shadow",
]


@dataclass(frozen=True, slots=True, repr=False)
class RateLimitState:
    """The state of a key.

    With 60 per minute, token bucket, right after a first call of cost 1:
    `limit=60, remaining=59, reset_after=1, retry_after=0`; when empty:
    `limit=60, remaining=0, reset_after=60, retry_after=1`.
    """

    #: The most that a key never seen would admit at once: the burst of a bucket, else the limit.
    limit: int
    #: The largest cost that would be admitted now, after this call.
    remaining: int
    #: Seconds until the key is as if it had never been seen, and `remaining == limit`.
    reset_after: float
    #: Seconds until this call fits: 0 if it was admitted, `math.inf` if its cost can never fit.
    retry_after: float

    def __repr__(self) -> str:
        return (
            f"RateLimitState(limit={self.limit}, remaining={self.remaining}, "
            f"reset_after={plain(self.reset_after)}, retry_after={plain(self.retry_after)})"
        )


class RateLimitResult:
    """The answer to one call: `limited`, its opposite `allowed`, and the `state` of the key.

    A result is always true in a condition, admitted or not: ask `result.limited`.
    """

    __slots__ = ("_asked", "_now", "_plan", "_seen", "_source", "_state", "limited")

    #: Whether the call was refused.
    limited: bool
    # The state is built when it is asked for, which for most results is never. It is what a look
    # at the stored state `_seen` for the cost `_asked` says at `_now`, or with no `_now` the
    # store's reply `_seen`. Set from outside: a call costs about as much as its result.
    _state: RateLimitState
    _plan: Any
    _seen: Any
    _asked: int
    _now: float | None
    #: Not set by a `MemoryStore`, for which it would cost what a fifth of its decision does.
    _source: Source

    def __init__(self, limited: bool, state: RateLimitState, source: Source = "memory") -> None:
        self.limited = limited
        self._state = state
        self._source = source

    @classmethod
    def of(cls, limited: bool, reply: tuple[Any, ...], plan: Any, source: Source) -> Self:
        """The result of a store's reply."""
        result = _new(cls)
        result.limited = limited
        result._plan = plan
        result._seen = reply
        result._now = None
        result._source = source
        return result

    @property
    def allowed(self) -> bool:
        """Whether the call was admitted."""
        return not self.limited

    @property
    def source(self) -> Source:
        """Who decided.

        - `"memory"`: a store of this process.
        - `"server"`: the server that processes share.
        - `"local-deny"`: this process, by what the server had answered a moment ago.
        - `"fallback"`: the store that stands in for one that failed.
        - `"allowed-by-policy"`, `"denied-by-policy"`: nobody could, and `on_store_error` says what
          then. Of the state only `limit` is known: `remaining` and `reset_after` are 0, and so is
          `retry_after` unless denied.
        """
        try:
            return self._source
        except AttributeError:
            return "memory"

    @property
    def state(self) -> RateLimitState:
        """The state of the key after this call."""
        try:
            return self._state
        except AttributeError:
            self._state = state = state_of(self.reply(), self._plan)
            return state

    def reply(self) -> tuple[Any, ...]:
        """The store's reply that this result stands for, durations in µs."""
        if self._now is None:
            seen = self._seen
            if seen.__class__ is list:  # as the server replied
                return None, float(seen[0]), float(seen[1]), float(seen[2])
            return cast("tuple[Any, ...]", seen)
        looked = self._plan.queue(self._seen, self._now, self._asked, -inf)
        return None, *looked[1:4]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RateLimitResult):
            return NotImplemented
        return self.limited == other.limited and self.state == other.state

    def __hash__(self) -> int:
        return hash((self.limited, self.state))

    def __reduce__(self) -> tuple[Any, ...]:
        return RateLimitResult, (self.limited, self.state, self.source)

    def __repr__(self) -> str:
        return (
            f"RateLimitResult(limited={self.limited}, state={self.state!r}, source={self.source!r})"
        )


def state_of(reply: tuple[Any, ...], plan: Any) -> RateLimitState:
    """The public state of a store's reply: whole µs become float seconds here."""
    _, wait, remaining, reset_after = reply
    # Adding 0.0 turns -0.0 into 0.0.
    return RateLimitState(
        plan.capacity,
        int(remaining),
        max(reset_after, 0.0) / 1e6 + 0.0,
        max(wait, 0.0) / 1e6 + 0.0,
    )
