"""What answers of stores come to for the caller."""

from __future__ import annotations

import logging
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from throttled.algorithms.plan import Joint
from throttled.exceptions import BaseThrottledError
from throttled.result import RateLimitResult
from throttled.store.base import Outcome, Reply, Ticket, joint_result, joint_ticket

if TYPE_CHECKING:
    from throttled.store.policy import Level

logger = logging.getLogger("throttled")


def results_of(outcomes: Sequence[Outcome]) -> list[RateLimitResult]:
    """Outcomes without an error; else the first error is raised, with all of them."""
    if set(map(type, outcomes)) == {RateLimitResult}:
        return cast("list[RateLimitResult]", outcomes)
    for outcome in outcomes:
        if isinstance(outcome, BaseThrottledError):
            outcome.outcomes = cast("Any", tuple(outcomes))
            raise outcome
    return cast("list[RateLimitResult]", outcomes)


def served(reply: Reply) -> RateLimitResult:
    """The result of a call that has waited for its slot, as of the slot."""
    ticket: Ticket = reply[0]
    wait: float = reply[1]
    plan = ticket.plan
    if isinstance(plan, Joint):
        looks = [(0.0, free, reset_after - wait) for _, free, reset_after in reply[2]]
        return joint_result(False, plan, looks, ticket.cost, None, ticket.source)
    _, _, remaining, reset_after = reply
    return RateLimitResult.of(
        False, (None, 0.0, remaining, reset_after - wait), plan, ticket.source
    )


def nothing_taken(level: Level, key: str) -> Ticket:
    """The ticket of a cost of 0, for what is charged to it when it is settled."""
    joint, store = level.plan.joint, level.store
    parts = [Ticket(plan, key, 0, 0.0, 0.0, None, None, store) for plan in joint.plans]
    return joint_ticket(joint, 0, 0.0, 0.0, parts, store)


def shadowed(result: RateLimitResult) -> None:
    """Let a refused call pass: the limit is not enforced."""
    result._views()
    # Past the class, for one that nothing else can be set on.
    for name, value in (("_would", result.limited), ("limited", False), ("_source", "shadow")):
        object.__setattr__(result, name, value)


@contextmanager
def unheard(what: str) -> Generator[None]:
    """Log what a store cannot do any more, where the caller has to hear of something else.

    What could not be given back stays taken.
    """
    try:
        yield
    except BaseThrottledError as error:
        logger.warning("%s: %s", what, error)
