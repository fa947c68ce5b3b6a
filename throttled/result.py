"""What a decision answers."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, dataclass
from math import inf
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, cast

from throttled._text import plain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from throttled.quota import Rule

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
    "exempt",
    "disabled",
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


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a key can spend, and when it can spend more, if nothing else happens meanwhile.

    With 60 per minute, token bucket, 45 used at 12:00:00: `spendable_now=15`, `next_replenish_at`
    is 12:00:01, `full_at` 12:00:45.
    """

    #: The largest cost that would be admitted now.
    spendable_now: int
    #: When more than that can be spent, in seconds since the epoch; None: it will not be more.
    next_replenish_at: float | None
    #: When the key is as if it had never been seen, in seconds since the epoch; now if it is.
    full_at: float


class View(NamedTuple):
    """What a result says of each rule."""

    rules: tuple[Rule, ...]
    states: tuple[RateLimitState, ...]
    binding: int
    held: bool


class RateLimitResult:
    """The answer to one call: `limited`, its opposite `allowed`, and the `state` of the key.

    Where several rules hold at once, `state` is that of the binding one, `rule`: of a refused call
    the one that it has to wait for longest, else the one that would be the first to refuse more of
    the same. `states` has all of them.

    A result is always true in a condition, admitted or not: ask `result.limited`.
    """

    __slots__ = (
        "_asked",
        "_now",
        "_plan",
        "_seen",
        "_source",
        "_state",
        "_view",
        "_would",
        "limited",
    )

    #: Whether the call was refused.
    limited: bool
    # The state is built when it is asked for, which for most results is never. It is what a look
    # at the stored state `_seen` for the cost `_asked` says at `_now`, or with no `_now` the
    # store's reply `_seen`. Set from outside: a call costs about as much as its result. A joint has
    # a state or reply a plan in `_seen`, and in `_asked` the cost of the call, admitted or not.
    _state: RateLimitState
    _plan: Any
    _seen: Any
    _asked: int
    _now: float | None
    _view: View
    _would: bool
    #: Not set by a `MemoryStore`, for which it would cost what a fifth of its decision does.
    _source: Source

    def __init__(self, limited: bool, state: RateLimitState, source: Source = "memory") -> None:
        self.limited = limited
        self._state = state
        self._source = source

    @classmethod
    def told(
        cls, limited: bool, source: Source, view: View, would_limit: bool | None = None
    ) -> Self:
        """A result that is known in all."""
        result = cls(limited, view.states[view.binding], source)
        result._view = view
        if would_limit is not None:
            result._would = would_limit
        return result

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
    def would_limit(self) -> bool:
        """Whether the call would have been refused if its limit were enforced: see `enforce=`."""
        return getattr(self, "_would", self.limited)

    @property
    def source(self) -> Source:
        """Who decided.

        - `"memory"`: a store of this process.
        - `"server"`: the server that processes share.
        - `"local-deny"`: this process, by what the server had answered a moment ago.
        - `"fallback"`: the store that stands in for one that failed.
        - `"shadow"`: a limit that is not enforced; `would_limit` says what it would have done.
        - `"exempt"`, `"disabled"`: nobody; the key is exempt, or limits are switched off.
        - `"allowed-by-policy"`, `"denied-by-policy"`: nobody could, and `on_store_error` says what
          then. Of the state only `limit` is known: `remaining` and `reset_after` are 0, and so is
          `retry_after` unless denied.
        """
        return getattr(self, "_source", "memory")

    @property
    def state(self) -> RateLimitState:
        """The state of the key after this call, by the binding rule."""
        state: RateLimitState | None = getattr(self, "_state", None)
        if state is None:
            if self._plan.kind == "joint":
                view = self._views()
                state = view.states[view.binding]
            else:
                _, *look = self.reply()
                state = state_of(look, self._plan.capacity)
            self._state = state
        return state

    @property
    def states(self) -> tuple[RateLimitState, ...]:
        """The state by each rule, in the order of `rules`."""
        return self._views().states

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules that decided, each with its algorithm; empty if none did."""
        return self._views().rules

    @property
    def rule(self) -> Rule | None:
        """The binding rule; None if no rule decided."""
        view = self._views()
        return view.rules[view.binding] if view.rules else None

    @property
    def binding(self) -> int:
        """The place of the binding rule in `rules` and `states`."""
        return self._views().binding

    @property
    def held(self) -> bool:
        """Whether a penalty stands: nobody passes before its end, whatever the rules say."""
        return self._views().held

    def _views(self) -> View:
        view: View | None = getattr(self, "_view", None)
        if view is None:
            plan = getattr(self, "_plan", None)
            if plan is None or plan.kind != "joint":
                view = View(() if plan is None else plan.rules, (self.state,), 0, False)
            else:
                view = self._view_of(plan)
            self._view = view
        return view

    def _view_of(self, joint: Any) -> View:
        costs = joint.costs(self._asked)
        if self._now is None:
            looks = [tuple(map(float, each[:3])) for each in self._seen]
        else:
            asked = costs if self.limited else (0,) * len(costs)
            held = (self.limited,) * len(joint.holds)
            looks = [
                plan.queue(state, self._now, cost, -inf)[1:4]
                for plan, state, cost in zip(
                    joint.members, self._seen, (*asked, *held), strict=True
                )
            ]
        # A hold says nothing but when it ends, and that to every rule.
        ends = [(wait, left) for wait, _, left in looks[len(costs) :]]
        held_for, held_until = max(ends, default=(0.0, 0.0))
        states = [
            state_of(
                (max(wait, held_for), 0.0 if held_until else free, max(reset_after, held_until)),
                plan.capacity,
            )
            for plan, (wait, free, reset_after) in zip(joint.plans, looks, strict=False)
        ]
        if self.limited:
            order = [(-each.retry_after, each.remaining, -each.reset_after) for each in states]
        else:
            order = [
                (each.remaining // (cost or 1), each.remaining, -each.reset_after)
                for each, cost in zip(states, costs, strict=True)
            ]
        return View(joint.rules, tuple(states), order.index(min(order)), held_until > 0.0)

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
        return self.told, (self.limited, self.source, self._views(), self.would_limit)

    def __repr__(self) -> str:
        return (
            f"RateLimitResult(limited={self.limited}, state={self.state!r}, source={self.source!r})"
        )


class FrozenResult(RateLimitResult):
    """A result that was decided elsewhere: its fields cannot be set."""

    __slots__ = ()

    @classmethod
    def told(
        cls, limited: bool, source: Source, view: View, would_limit: bool | None = None
    ) -> Self:
        result: Any = RateLimitResult.told(limited, source, view, would_limit)
        result.__class__ = cls
        return cast("Self", result)

    def __setattr__(self, name: str, value: object) -> None:
        raise FrozenInstanceError(f"cannot assign to field {name!r}")

    def __delattr__(self, name: str) -> None:
        raise FrozenInstanceError(f"cannot delete field {name!r}")


def state_of(look: Sequence[Any], capacity: int) -> RateLimitState:
    """The public state of wait, remaining and reset_after: whole µs become float seconds here."""
    wait, remaining, reset_after = look
    state = _new(RateLimitState)
    _set_limit(state, capacity)
    _set_remaining(state, int(remaining))
    _set_reset_after(state, reset_after / 1e6 if reset_after > 0.0 else 0.0)
    _set_retry_after(state, wait / 1e6 if wait > 0.0 else 0.0)
    return state


# A frozen dataclass takes four times as long to fill in by its constructor.
_set_limit: Any = RateLimitState.__dict__["limit"].__set__
_set_remaining: Any = RateLimitState.__dict__["remaining"].__set__
_set_reset_after: Any = RateLimitState.__dict__["reset_after"].__set__
_set_retry_after: Any = RateLimitState.__dict__["retry_after"].__set__
