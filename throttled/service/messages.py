"""Results and errors as messages of the protocol.

A decision is filled in place: its rules, which are the same for all results of a plan, come as a
copy of a message that was made once. That takes half of what building it from its parts would.
"""

from __future__ import annotations

from typing import Any, Final

from throttled.exceptions import (
    BaseThrottledError,
    DataError,
    OperationNotSupportedError,
    PolicyNotFoundError,
    StateError,
    StoreUnavailableError,
)
from throttled.quota import Rule
from throttled.result import RateLimitResult, Source
from throttled.service import agreed
from throttled.service.v1 import throttled_pb2 as v1

#: Of `RateLimitResult.source`, what the protocol says.
SOURCES: Final[dict[Source, Any]] = {source: number for number, source in agreed.SOURCES.items()}

#: The first that an error is an instance of.
_CODES: Final[tuple[tuple[type[BaseThrottledError], int], ...]] = (
    (DataError, agreed.INVALID_ARGUMENT),
    (PolicyNotFoundError, agreed.NOT_FOUND),
    (OperationNotSupportedError, agreed.UNIMPLEMENTED),
    (StoreUnavailableError, agreed.UNAVAILABLE),
    (StateError, agreed.DATA_LOSS),
)

#: Longer texts than this are cut: they travel as metadata, which is short.
_LONGEST: Final = 1000

#: What is kept of rules and sources, at most: a policy whose rules change often makes new ones.
_MOST: Final = 1024
# By the identity of the rules, which hashing them would take longer than to copy them. They are
# kept with the message, so that nothing else can have their identity.
_told: dict[tuple[int, Source], tuple[tuple[Rule, ...], v1.Decision]] = {}


def problem_of(error: Exception) -> tuple[int, str]:
    """The status code of an error, and what is said to the client.

    Nothing is said of an error that is not one of a caller, a policy or a store.
    """
    for kind, code in _CODES:
        if isinstance(error, kind):
            text = str(error)
            return code, text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
    return agreed.INTERNAL, "internal error"


def decision_of(result: RateLimitResult) -> v1.Decision:
    """A result as a message."""
    decision = v1.Decision()
    tell(result, decision)
    return decision


def tell(result: RateLimitResult, decision: Any) -> None:
    """Fill an empty message with a result."""
    rules, states, binding, held = result._views()
    source = result.source
    known = _told.get((id(rules), source))
    decision.CopyFrom(known[1] if known is not None else _made(rules, source))
    if result.limited:
        decision.would_limit = True
    else:
        decision.allowed = True
        if result.would_limit:
            decision.would_limit = True
    add = decision.states.add
    for state in states:
        add(
            limit=state.limit,
            remaining=state.remaining,
            reset_after=state.reset_after,
            retry_after=state.retry_after,
        )
    if binding:
        decision.binding = binding
    if held:
        decision.held = True


def _made(rules: tuple[Rule, ...], source: Source) -> v1.Decision:
    """What decisions by these rules have in common."""
    message = v1.Decision(source=SOURCES[source], rules=[rule_of(rule) for rule in rules])
    if len(_told) >= _MOST:
        _told.clear()
    _told[id(rules), source] = rules, message
    return message


def rule_of(rule: Rule) -> v1.Rule:
    """A rule as a message."""
    return v1.Rule(
        quota=str(rule.quota), algorithm=rule.using or "", cost=rule.cost, name=rule.name or ""
    )
