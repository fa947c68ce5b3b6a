"""What the server refused a moment ago, so that it need not be asked again."""

from __future__ import annotations

from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

from cachetools import FIFOCache

from throttled.result import RateLimitResult
from throttled.store.base import joint_result, new_lock

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from throttled.algorithms.plan import Joint, Plan

#: So many refused keys are remembered …
MAX_DENIALS = 16_384
#: … and so many costs of a key, where one does not follow from another.
MAX_COSTS = 32

#: plan, cost, when it was sent, how long it holds from then in µs, when the answer came, the answer
#: (wait, remaining, reset_after), refusals of higher costs that do not follow from this one, and of
#: a joint the key and what each of its plans said.
Denial = tuple[Any, int, float, float, float, float, float, float, dict[int, Any], Any]


class Denials(FIFOCache[str, Denial]):
    """The last refusal of each key, by the name of its plan and itself.

    The server refused a cost until some instant by its arithmetic; until then it would refuse that
    cost again, and any higher one. How long a higher one has to wait follows from that in most
    cases; in the others the server is asked for each cost once.

    Instants are counted from when the call was sent, so they are over here before they are there;
    what is reported counts from when the answer came, so that who comes back after `retry_after`
    does not come too early.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] | None) -> None:
        super().__init__(MAX_DENIALS)
        self.seconds = seconds
        self.tick: Callable[[], float] = clock or monotonic
        #: The same entries, for looking up without a call into Python.
        self.at_hand: dict[str, Denial] = {}
        #: How often something was taken back: a refusal that was under way then is not believed.
        self.taken_back = 0
        self._lock = new_lock()
        # The names of refusals by joints, by key: whatever changes a key changes theirs.
        self._joints: dict[str, set[str]] = {}

    def __setitem__(self, name: str, denial: Denial) -> None:
        super().__setitem__(name, denial)
        self.at_hand[name] = denial

    def __delitem__(self, name: str) -> None:
        super().__delitem__(name)
        denial = self.at_hand.pop(name)
        if denial[9] is not None:
            names = self._joints.get(denial[9][0])
            if names is not None:
                names.discard(name)
                if not names:
                    del self._joints[denial[9][0]]

    def refused(
        self,
        plan: Plan | Joint,
        key: str,
        cost: int,
        sent_at: float,
        reply: tuple[Any, ...],
        seen: int,
        looks: Sequence[tuple[float, ...]] | None = None,
    ) -> None:
        """The server refused a call sent at `sent_at`; `seen`: `taken_back` at that time."""
        _, wait, remaining, reset_after = reply
        # Half a microsecond off, for a clock that counts seconds in a float.
        lasting = min(wait, self.seconds * 1e6) - 0.5
        name = plan.prefix + key
        with self._lock:
            if seen != self.taken_back:
                return
            now = self.tick()
            of = None if looks is None else (key, looks)
            denial: Denial = (
                plan, cost, sent_at, lasting, now, wait, remaining, reset_after, {}, of
            )  # fmt: skip
            lower = self.at_hand.get(name)
            if lower and lower[0] is plan and lower[1] < cost and (now - lower[2]) * 1e6 < lower[3]:
                if len(lower[8]) < MAX_COSTS:
                    lower[8][cost] = denial
                return
            self.pop(name, None)
            self[name] = denial
            if of is not None:
                self._joints.setdefault(key, set()).add(name)

    def outdated(self, plan: Plan | Joint, key: str) -> None:
        """Something of that key was taken: the next refusal is for longer."""
        if plan.prefix + key in self.at_hand or key in self._joints:
            self.forget(plan, key)

    def forget(self, plan: Plan | Joint, key: str) -> None:
        """Something was given back, or the key reset."""
        with self._lock:
            self.taken_back += 1
            self.pop(plan.prefix + key, None)
            for name in list(self._joints.get(key, ())):
                self.pop(name, None)


def again(denial: Denial, plan: Plan | Joint, cost: int, patience: float, now: float) -> Any:
    """The refusal once more, as of now; None if the server has to be asked."""
    of, least, sent_at, lasting, answered_at, wait, remaining, reset_after, more, looks = denial
    if (now - sent_at) * 1e6 >= lasting or cost < least or of is not plan or patience < 0.0:
        return None
    if cost != least:
        if cost in more:
            return again(more[cost], plan, cost, patience, now)
        higher = _wait_for_more(plan, cost, least, wait, reset_after)
        if higher is None:
            return None
        wait = higher
    past = round((now - answered_at) * 1e6)
    wait -= past
    if patience >= wait:
        return None
    if looks is not None:
        joint = cast("Joint", plan)
        costs = (*joint.costs(cost), *(0 for _ in joint.holds))
        held = [
            (inf if each > one.capacity else max(left - past, 0.0), free, reset_after - past)
            for (left, free, reset_after), one, each in zip(
                looks[1], joint.members, costs, strict=True
            )
        ]
        return joint_result(True, joint, held, cost, None, "local-deny")
    return RateLimitResult.of(True, (None, wait, remaining, reset_after - past), plan, "local-deny")


def _wait_for_more(
    plan: Plan | Joint, cost: int, least: int, wait: float, reset_after: float
) -> float | None:
    """How long a higher cost has to wait than the one that was refused; None if that is open."""
    if cost > plan.capacity:
        return inf
    if plan.kind == "joint":
        return None
    plan = cast("Plan", plan)
    if plan.kind == "bucket":
        # What the difference takes to flow in, rounded up.
        return wait - (-(cost - least) * plan.period // plan.limit)
    if plan.kind == "fixed_window" and wait == reset_after:
        return wait  # The next window is free.
    return None
