"""What the server refused a moment ago, so that it need not be asked again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cachetools import FIFOCache

from throttled.result import RateLimitResult
from throttled.store.base import new_lock

if TYPE_CHECKING:
    from collections.abc import Callable

    from throttled.algorithms.plan import Plan

#: So many refused keys are remembered.
MAX_DENIALS = 16_384

#: plan, cost, when it was sent, how long it holds from then in µs, when the answer came, and the
#: answer: wait, remaining, reset_after.
Denial = tuple[Any, int, float, float, float, float, float, float]


class Denials(FIFOCache[str, Denial]):
    """The last refusal of each key, by the name of its plan and itself.

    The server refused a cost until some instant by its arithmetic; until then it would refuse that
    cost again, and any higher one. Instants are counted from when the call was sent, so they are
    over here before they are there; what is reported counts from when the answer came, so that who
    comes back after `retry_after` does not come too early.
    """

    def __init__(self, seconds: float, tick: Callable[[], float]) -> None:
        super().__init__(MAX_DENIALS)
        self.seconds = seconds
        self.tick = tick
        #: The same entries, for looking up without a call into Python.
        self.at_hand: dict[str, Denial] = {}
        #: How often something was taken back: a refusal that was under way then is not believed.
        self.taken_back = 0
        self._lock = new_lock()

    def __setitem__(self, name: str, denial: Denial) -> None:
        super().__setitem__(name, denial)
        self.at_hand[name] = denial

    def __delitem__(self, name: str) -> None:
        super().__delitem__(name)
        del self.at_hand[name]

    def refused(
        self, plan: Plan, key: str, cost: int, sent_at: float, reply: tuple[Any, ...], seen: int
    ) -> None:
        """The server refused a call sent at `sent_at`; `seen`: `taken_back` at that time."""
        _, wait, remaining, reset_after = reply
        # Half a microsecond off, for a clock that counts seconds in a float.
        lasting = min(wait, self.seconds * 1e6) - 0.5
        name = plan.prefix + key
        with self._lock:
            if seen == self.taken_back:
                self.pop(name, None)
                now = self.tick()
                self[name] = (plan, cost, sent_at, lasting, now, wait, remaining, reset_after)

    def forget(self, plan: Plan, key: str) -> None:
        """Something was given back, or the key reset."""
        with self._lock:
            self.taken_back += 1
            self.pop(plan.prefix + key, None)


def again(denial: Denial, plan: Plan, cost: int, patience: float, now: float) -> Any:
    """The refusal once more, as of now; None if the server has to be asked."""
    of, least, sent_at, lasting, answered_at, wait, remaining, reset_after = denial
    if (now - sent_at) * 1e6 >= lasting or cost < least or of is not plan or patience < 0.0:
        return None
    if cost != least:
        wait = _wait_for_more(plan, cost, least, wait)
    past = round((now - answered_at) * 1e6)
    wait -= past
    if patience >= wait:
        return None
    return RateLimitResult.of(True, (None, wait, remaining, reset_after - past), plan, "local-deny")


def _wait_for_more(plan: Plan, cost: int, least: int, wait: float) -> float:
    if cost > plan.capacity:
        return float("inf")
    if plan.kind == "bucket":
        # What the difference takes to flow in, rounded up.
        return wait - (-(cost - least) * plan.period // plan.limit)
    return wait
