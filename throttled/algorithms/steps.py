"""What an algorithm offers once it is bound to its numbers."""

from __future__ import annotations

from collections.abc import Callable
from operator import eq
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

S = TypeVar("S")
S_contra = TypeVar("S_contra", contravariant=True)

#: Doubles hold whole numbers exactly below this; Lua has no other numbers, so neither have we.
EXACT = 2.0**53


class Take(Protocol[S_contra]):
    """`(state, now, cost) -> new state`, or None when the cost (1 or more) does not fit now.

    The common half of admitting, alone: no division, nothing that a caller may never look at.
    An algorithm whose state is too long to copy appends: it returns `(new state, append)` with
    `append = (array, array, index, value, value)`, which the store writes with the new state.
    """

    def __call__(self, state: S_contra | None, now: float, cost: int, /) -> Any: ...


class Queue(Protocol[S_contra]):
    """`(state, now, cost, patience, soonest) -> (new state or None, wait, remaining, reset_after)`.

    The other half, for a cost that does not fit now or is only looked at (patience `LOOK`, or a
    cost of 0). All instants and durations are whole µs in floats. `wait` is 0 when the cost fits
    now, n when it fits in n µs and not earlier, inf when it can never fit. It is taken if and only
    if `wait <= patience`; a new state of None means: write nothing. No slot is given before
    `soonest`, where another rule has put it off. (A new state with
    `wait > patience` only says that the clock has stepped back by more than a period; the store
    writes it, or the key would be measured against an instant that lies far ahead.)

    An algorithm that appends adds a fifth item to its reply: what to append, or None.
    """

    def __call__(
        self,
        state: S_contra | None,
        now: float,
        cost: int,
        patience: float,
        soonest: float = 0.0,
        /,
    ) -> tuple[Any, ...]: ...


class Adjust(Protocol[S]):
    """`(state, now, delta, slot) -> (new state or None, what to append or None)`.

    `delta > 0` charges, whatever the limit says; `delta < 0` gives back what was taken for
    `slot` (None: the newest that has come), as far as nobody promised a later slot needs it.
    """

    def __call__(
        self, state: S | None, now: float, delta: int, slot: float | None, /
    ) -> tuple[S | None, Any]: ...


class ResetAt(Protocol[S_contra]):
    """`state -> µs since the epoch` from which on it equals that of a key never seen."""

    def __call__(self, state: S_contra, /) -> float: ...


class Owed(Protocol[S_contra]):
    """`(state, now) -> µs` of its rate that a state stands for: what is lost by forgetting it.

    0 or less when it equals that of a key never seen. Used up earlier or later, a key that is
    used up owes more than one that took a single token.
    """

    def __call__(self, state: S_contra, now: float, /) -> float: ...


def numbers(state: tuple[float, ...]) -> tuple[str, ...]:
    """A state of a few numbers as the text that Redis holds."""
    return (" ".join([f"{number:.17g}" for number in state]),)


class Steps(NamedTuple, Generic[S]):
    """The pure steps of one algorithm, bound to limit, period and burst.

    Admitting is `take`, and `queue` when that answers None.
    """

    take: Take[S]
    queue: Queue[S]
    adjust: Adjust[S]
    reset_at: ResetAt[S]
    owed: Owed[S]
    #: Whether two states are the same, as far as an undo has to know.
    same: Callable[[S, S], bool] = eq
    #: The state as Redis holds it: one text, or the items of a list.
    dump: Callable[[Any], tuple[str, ...]] = numbers
    #: Whether the state is too long to copy, so that `take` and `queue` say what to append.
    appends: bool = False
