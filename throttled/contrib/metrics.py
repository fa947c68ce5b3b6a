"""What is measured of limits and stores, whoever exports it; no framework needed.

An exporter (`throttled.contrib.prometheus`, `throttled.contrib.otel`) makes the instruments below
and offers `watch`; what an event counts as is decided here.

Labels are bounded: by the names given to `watch` and by words of this library. Neither a caller's
key nor the text of an error or of a quota is ever one, for there is no end to those.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from threading import Lock
from typing import Any, Final, Literal, NamedTuple, Protocol, get_args
from weakref import WeakKeyDictionary, ref

from throttled._text import shown
from throttled.base import BaseThrottled
from throttled.contrib.limit import BaseRateLimit
from throttled.exceptions import DataError, StateError
from throttled.hooks import Event, Observer, store_type_of
from throttled.result import RateLimitResult, RateLimitState
from throttled.store.base import AsyncStore, Health, Store, new_lock
from throttled.store.memory import MemoryStore

__all__ = ["INSTRUMENTS", "BaseMetrics", "Instrument", "Outcome", "Recorder", "StoreState"]

#: What became of a call; in shadow mode a call that passes "would_refuse".
Outcome = Literal["allowed", "refused", "would_refuse"]
#: How a store failed to decide.
Failure = Literal["StoreUnavailableError", "StateError"]
BreakerState = Literal["closed", "half-open", "open"]

OUTCOMES: Final[tuple[Outcome, ...]] = get_args(Outcome)
BREAKER_STATES: Final[tuple[BreakerState, ...]] = get_args(BreakerState)

#: Seconds, from a decision in memory to one that times out …
DECISION_BUCKETS: Final = tuple(
    [float(f"{digit}e{power}") for power in range(-6, 0) for digit in (1, 2.5, 5)] + [1.0]
)
#: … and from a wait that nobody notices to one that most callers give up.
WAIT_BUCKETS: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0)


class Instrument(NamedTuple):
    """One instrument: its name in the words of OpenTelemetry, of which others are derived."""

    name: str
    kind: Literal["counter", "histogram", "gauge"]
    #: UCUM; what is counted stands in braces.
    unit: str
    #: Labels, without the namespace.
    labels: tuple[str, ...]
    description: str
    buckets: tuple[float, ...] = ()


DECISIONS: Final = Instrument(
    "throttled.decisions",
    "counter",
    "{decision}",
    ("limit", "source", "outcome"),
    "Calls that were admitted or refused, by who decided",
)
DECISION_DURATION: Final = Instrument(
    "throttled.decision.duration",
    "histogram",
    "s",
    ("limit",),
    "Time that deciding took, waiting for a slot not included",
    DECISION_BUCKETS,
)
WAIT_DURATION: Final = Instrument(
    "throttled.wait.duration",
    "histogram",
    "s",
    ("limit",),
    "Time that calls waited, of those that had to",
    WAIT_BUCKETS,
)
NEAR_LIMIT: Final = Instrument(
    "throttled.near_limit",
    "counter",
    "{decision}",
    ("limit",),
    "Calls that were admitted and left little of a limit",
)
STORE_ERRORS: Final = Instrument(
    "throttled.store.errors",
    "counter",
    "{error}",
    ("limit", "error"),
    "Calls that a store could not decide, whatever was done instead",
)
BREAKER: Final = Instrument(
    "throttled.store.breaker.state",
    "gauge",
    "1",
    ("store", "state"),
    "1 for the state that the circuit breaker of a store is in, 0 for the others",
)
EVICTIONS: Final = Instrument(
    "throttled.store.evictions",
    "counter",
    "{key}",
    ("store",),
    "Keys that a memory store gave up although they still counted",
)
KEYS: Final = Instrument(
    "throttled.store.keys", "gauge", "{key}", ("store",), "Keys that a memory store holds"
)

#: All there are.
INSTRUMENTS: Final = (
    DECISIONS,
    DECISION_DURATION,
    WAIT_DURATION,
    NEAR_LIMIT,
    STORE_ERRORS,
    BREAKER,
    EVICTIONS,
    KEYS,
)


class StoreState(NamedTuple):
    """What is read of a store when somebody looks; None where a store has no such thing."""

    name: str
    breaker: BreakerState | None
    evictions: int | None
    keys: int | None


class Recorder(Protocol):
    """The instruments of one limit, as an exporter has them."""

    def decided(self, event: Event, result: RateLimitResult, outcome: Outcome) -> None:
        """A call was admitted or refused."""
        ...

    def took(self, seconds: float, /) -> None:
        """A decision took so long."""
        ...

    def waited(self, seconds: float, /) -> None:
        """A call has waited so long."""
        ...

    def near(self) -> None:
        """A call was admitted and left little."""
        ...

    def failed(self, kind: Failure) -> None:
        """A store could not decide a call."""
        ...


def outcome_of(result: RateLimitResult) -> Outcome:
    """What became of a call."""
    if result.limited:
        return "refused"
    return "would_refuse" if result.would_limit else "allowed"


def states_of(event: Event, result: RateLimitResult) -> Sequence[RateLimitState]:
    """The states by the rules of the limit itself: `limit_all` tells each limit of all of them."""
    states = result.states
    if len(states) == 1:
        return states
    try:
        own = event.throttle.rules
    except DataError:
        return states  # its rules depend on the key
    # What stands in for a store may have another share of each rule, and no fewer of them.
    if len(states) <= len(own):
        return states
    return [state for rule, state in zip(result.rules, states, strict=True) if rule in own]


class _Watch(Observer):
    """What the events of one limit count as."""

    def __init__(self, recorder: Recorder, near: float) -> None:
        self._recorder = recorder
        self._near = near

    def decided(self, event: Event) -> None:
        result: Any = event.result
        recorder = self._recorder
        outcome = outcome_of(result)
        recorder.decided(event, result, outcome)
        if event.took:
            recorder.took(event.took)
        if event.wait:
            recorder.waited(event.wait)
        # Of what a policy allows, nothing is known that would be left.
        if outcome == "allowed" and result.source != "allowed-by-policy":
            for state in states_of(event, result):
                # Rounded: 0.57 * 100 is a little less than 57.
                if state.limit - state.remaining > round(self._near * state.limit, 6):
                    recorder.near()
                    break

    def failed(self, event: Event) -> None:
        self._recorder.failed(
            "StateError" if isinstance(event.error, StateError) else "StoreUnavailableError"
        )


class BaseMetrics(ABC):
    """What all exporters share: which limits and stores are watched, and under which names."""

    def __init__(self, near: float) -> None:
        """`near`: the share of a limit, above which what is used of it counts as near to it."""
        if not isinstance(near, float) or not 0.0 < near < 1.0:
            raise DataError(f"Invalid near: {shown(near)}, must be a share between 0.0 and 1.0.")
        self._near = near
        self._lock: Lock = new_lock()
        #: Not kept alive: a limit that is forgotten need not be watched.
        self._limits: WeakKeyDictionary[BaseThrottled[Any] | BaseRateLimit, str] = (
            WeakKeyDictionary()
        )
        self._stores: dict[str, ref[Store | AsyncStore]] = {}

    def watch(
        self,
        throttle: BaseThrottled[Any] | BaseRateLimit,
        name: str,
        *,
        store: str | None = None,
        replace: bool = False,
    ) -> None:
        """Measure a limit under a name from now on, and the stores that it uses: a `Throttled`, or
        the `RateLimit` of a web framework.

        `store` names its store: by default "memory", "redis" or the name of its class, the second
        of a kind "redis-2" and so on. One that has a name keeps it. Watching the same limit again
        by its name changes nothing. With `replace` it may take the name of another limit, one that
        is no longer called. Raises `DataError` for what is no limit, for a name that is no text or
        that another limit or store has, and for a second name of the same.
        """
        if not isinstance(throttle, BaseThrottled | BaseRateLimit):
            raise DataError(
                f"Invalid throttle: {shown(throttle)}, must be a Throttled or a RateLimit."
            )
        _check_name("name", name)
        if store is not None:
            _check_name("store", store)
        with self._lock:
            known = self._limits.get(throttle)
            if known not in (None, name):
                raise DataError(f"Invalid name: {shown(name)}, that limit is called {known!r}.")
            for other in [each for each, named in self._limits.items() if named == name]:
                if other is throttle:
                    continue
                if not replace:
                    raise DataError(f"Invalid name: {shown(name)} is the name of another limit.")
                del self._limits[other]
            self._name(throttle.store, store)
            # Those that stand in for it.
            after: Any = throttle.on_store_error
            while isinstance(after, Store | AsyncStore):
                self._name(after, None)
                after = after.on_store_error
            if known is None:
                throttle.observe(_Watch(self._recorder(name), self._near))
                self._limits[throttle] = name

    def _name(self, store: Any, name: str | None) -> None:
        """Give a store a name, if it has none."""
        names = {each: found() for each, found in self._stores.items()}
        known = next((each for each, found in names.items() if found is store), None)
        if known is not None:
            if name not in (None, known):
                raise DataError(f"Invalid store: {shown(name)}, that store is called {known!r}.")
            return
        if name is None:
            kind = store_type_of(store)
            name, number = kind, 1
            while name in self._stores:
                number += 1
                name = f"{kind}-{number}"
        elif names.get(name) is not None:
            raise DataError(f"Invalid store: {shown(name)} is the name of another store.")
        self._stores[name] = ref(store)

    def _states(self) -> Iterator[StoreState]:
        """What is to be told of the stores now."""
        with self._lock:
            stores = list(self._stores.items())
        for name, each in stores:
            store = each()
            if isinstance(store, MemoryStore):
                yield StoreState(name, None, store.evicted, len(store))
            elif store is not None:
                health: Health = store.health()
                yield StoreState(name, health.state, None, None)

    @abstractmethod
    def _recorder(self, limit: str) -> Recorder:
        """The instruments of a limit."""


def _check_name(what: str, name: object) -> None:
    """`DataError` unless it can be the name of a limit or a store."""
    if not isinstance(name, str) or not name.strip():
        raise DataError(f"Invalid {what}: {shown(name)}, must be text such as 'login'.")
