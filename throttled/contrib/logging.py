"""Decisions in the log, if somebody wants them there.

    throttle.observe(LogDecisions("login"))

Refusals are INFO, waits and admitted calls DEBUG, failures of a store WARNING; all go to the logger
`throttled.decisions`, with what they say as fields of the record too: `throttled_limit`,
`throttled_outcome` and so on. A program that has not configured logging sees none of them.
"""

from __future__ import annotations

import logging
from hashlib import sha256
from math import inf
from threading import Lock
from typing import Any, Final

from throttled._text import plain, shown
from throttled.contrib.metrics import Outcome, outcome_of
from throttled.exceptions import DataError
from throttled.hooks import Event, Observer
from throttled.settings import Quotas
from throttled.store.base import new_lock
from throttled.store.memory import MemoryStore
from throttled.throttled import Throttled

__all__ = ["LogDecisions"]

logger = logging.getLogger("throttled.decisions")
# Else Python prints warnings of a program that has not configured logging. It keeps to this
# logger: what the library itself has to say, such as that a store cannot be reached, is printed.
logger.addHandler(logging.NullHandler())

_MESSAGES: Final[dict[Outcome, tuple[int, str]]] = {
    "allowed": (logging.DEBUG, "%s: allowed"),
    "refused": (logging.INFO, "%s: refused, %s"),
    "would_refuse": (logging.INFO, "%s: would be refused, %s"),
}


class LogDecisions(Observer):
    """Logs what becomes of the calls of one limit, or of several under one name.

    `at_most`: how many lines a process writes of each kind, as a quota, for refusals come in
    floods; the next line says in `throttled_suppressed` how many were left out. None: all of them.

    `keys`: whether to log the caller's key, and error texts, in which it may stand. Where the store
    hides keys, it is the SHA-256 of the key. It is never part of the message.

    Raises `DataError` for a bad argument.
    """

    def __init__(self, name: str, *, at_most: Quotas | None = "10/s", keys: bool = False) -> None:
        if not isinstance(name, str) or not name.strip():
            raise DataError(f"Invalid name: {shown(name)}, must be text such as 'login'.")
        self._name = name
        self._keys = keys
        self._bound = None if at_most is None else Throttled(quota=at_most, store=MemoryStore())
        self._lock: Lock = new_lock()
        self._suppressed: dict[str, int] = {}

    def decided(self, event: Event) -> None:
        result: Any = event.result
        outcome = outcome_of(result)
        level, message = _MESSAGES[outcome]
        if not self._wanted(level, outcome):
            return
        state = result.state
        fields = {"source": result.source, "remaining": state.remaining, "waited": event.wait}
        words: list[object] = []
        if outcome != "allowed":
            never = state.retry_after == inf
            words = ["never fits" if never else f"fits in {plain(state.retry_after)} s"]
            # JSON has no infinity.
            fields["retry_after"] = None if never else state.retry_after
            fields["rule"] = None if result.rule is None else str(result.rule.quota)
        self._log(level, message, words, event, outcome, fields)

    def waits(self, event: Event) -> None:
        if self._wanted(logging.DEBUG, "waits"):
            words, fields = [plain(event.wait)], {"wait": event.wait}
            self._log(logging.DEBUG, "%s: waits %s s", words, event, "waits", fields)

    def failed(self, event: Event) -> None:
        if self._wanted(logging.WARNING, "failed"):
            kind = type(event.error).__name__
            fields = {"error": str(event.error) if self._keys else kind}
            self._log(logging.WARNING, "%s: not decided, %s", [kind], event, "failed", fields)

    def _wanted(self, level: int, outcome: str) -> bool:
        """Whether a line is to be written; if it is one too many, it is counted."""
        if not logger.isEnabledFor(level):
            return False
        if self._bound is None or self._bound.limit(outcome).allowed:
            return True
        with self._lock:
            self._suppressed[outcome] = self._suppressed.get(outcome, 0) + 1
        return False

    def _log(
        self,
        level: int,
        message: str,
        words: list[Any],
        event: Event,
        outcome: str,
        fields: dict[str, Any],
    ) -> None:
        told = {"limit": self._name, "outcome": outcome, "cost": event.cost, **fields}
        if self._keys:
            told["key"] = _digest(event.key) if event.throttle.store.hides_keys else event.key
        with self._lock:
            told["suppressed"] = self._suppressed.pop(outcome, 0)
        extra = {f"throttled_{name}": value for name, value in told.items()}
        logger.log(level, message, self._name, *words, extra=extra)


def _digest(key: str) -> str:
    return sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
