"""Limits as OpenTelemetry metrics and span events. Needs the package `opentelemetry-api`.

    metrics = Metrics()
    metrics.watch(throttle, "login")

What is measured is listed in `throttled.contrib.metrics`. Besides, each decision adds an event
named `rate_limit` to the current span, if that is being recorded. Attributes stand in the
namespace `throttled`, but for `error.type`, which is that of the semantic conventions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import inf
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation, get_meter
from opentelemetry.util.types import AttributeValue

from throttled.contrib.metrics import (
    BREAKER,
    BREAKER_STATES,
    DECISION_DURATION,
    DECISIONS,
    EVICTIONS,
    KEYS,
    NEAR_LIMIT,
    STORE_ERRORS,
    WAIT_DURATION,
    BaseMetrics,
    Failure,
    Instrument,
    Outcome,
    StoreState,
)
from throttled.hooks import Event
from throttled.result import RateLimitResult

__all__ = ["Metrics"]

_SCOPE: Final = "throttled"
_LIMIT: Final = "throttled.limit"
_SOURCE: Final = "throttled.source"
_OUTCOME: Final = "throttled.outcome"
_RULE: Final = "throttled.rule"
_RETRY_AFTER: Final = "throttled.retry_after"
_STORE: Final = "throttled.store"
_BREAKER_STATE: Final = "throttled.breaker.state"
_ERROR: Final = "error.type"

_SPAN_EVENT: Final = "rate_limit"

_Attributes = dict[str, AttributeValue]


class Metrics(BaseMetrics):
    """Most callers make one at start-up and call `watch` for each limit.

    `meter_provider`: the global one by default, which may be set up later. `near`: the share of a
    limit above which what is used of it counts as near to it; `DataError` for a bad one.

    Make one for each provider: two would watch the stores twice.
    """

    def __init__(self, meter_provider: MeterProvider | None = None, *, near: float = 0.8) -> None:
        super().__init__(near)
        meter = get_meter(_SCOPE, meter_provider=meter_provider)
        self._decisions = meter.create_counter(*_named(DECISIONS))
        self._near_limit = meter.create_counter(*_named(NEAR_LIMIT))
        self._store_errors = meter.create_counter(*_named(STORE_ERRORS))
        self._decision_duration = _histogram(meter, DECISION_DURATION)
        self._wait_duration = _histogram(meter, WAIT_DURATION)
        self._observed(meter.create_observable_gauge, BREAKER, _breaker)
        self._observed(meter.create_observable_counter, EVICTIONS, _evictions)
        self._observed(meter.create_observable_up_down_counter, KEYS, _keys)

    def _observed(
        self,
        create: Callable[..., Any],
        instrument: Instrument,
        read: Callable[[StoreState], Iterable[Observation]],
    ) -> None:
        """Have an instrument of the stores read when it is exported."""

        def observe(options: CallbackOptions) -> Iterable[Observation]:
            return [each for state in self._states() for each in read(state)]

        name, unit, description = _named(instrument)
        create(name, [observe], unit, description)

    def _recorder(self, limit: str) -> _Recorder:
        return _Recorder(self, limit)


def _named(instrument: Instrument) -> tuple[str, str, str]:
    return instrument.name, instrument.unit, instrument.description


def _histogram(meter: Meter, instrument: Instrument) -> Any:
    return meter.create_histogram(
        *_named(instrument), explicit_bucket_boundaries_advisory=instrument.buckets
    )


def _breaker(store: StoreState) -> Iterable[Observation]:
    for state in BREAKER_STATES if store.breaker else ():
        attributes = {_STORE: store.name, _BREAKER_STATE: state}
        yield Observation(int(state == store.breaker), attributes)


def _evictions(store: StoreState) -> Iterable[Observation]:
    if store.evictions is not None:
        yield Observation(store.evictions, {_STORE: store.name})


def _keys(store: StoreState) -> Iterable[Observation]:
    if store.keys is not None:
        yield Observation(store.keys, {_STORE: store.name})


class _Recorder:
    """The instruments of one limit, and the span event of a decision."""

    def __init__(self, metrics: Metrics, limit: str) -> None:
        self._metrics = metrics
        self._limit = limit
        self._attributes: _Attributes = {_LIMIT: limit}

    def decided(self, event: Event, result: RateLimitResult, outcome: Outcome) -> None:
        attributes = {**self._attributes, _SOURCE: result.source, _OUTCOME: outcome}
        self._metrics._decisions.add(1, attributes)
        span = trace.get_current_span()
        if span.is_recording():
            if outcome != "allowed":
                attributes |= _why(result)
            span.add_event(_SPAN_EVENT, attributes)

    def took(self, seconds: float) -> None:
        self._metrics._decision_duration.record(seconds, self._attributes)

    def waited(self, seconds: float) -> None:
        self._metrics._wait_duration.record(seconds, self._attributes)

    def near(self) -> None:
        self._metrics._near_limit.add(1, self._attributes)

    def failed(self, kind: Failure) -> None:
        self._metrics._store_errors.add(1, {**self._attributes, _ERROR: kind})


def _why(result: RateLimitResult) -> _Attributes:
    """What a span is told of a refusal: the rule, and when the call fits, if it ever does."""
    why: _Attributes = {}
    if result.rule is not None:
        why[_RULE] = str(result.rule.quota)
    if result.state.retry_after != inf:
        why[_RETRY_AFTER] = result.state.retry_after
    return why
