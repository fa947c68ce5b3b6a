"""Limits as Prometheus metrics. Needs the package `prometheus-client`.

    metrics = Metrics()
    metrics.watch(throttle, "login")

One `Metrics` a registry watches all limits. What there is to see is listed in
`throttled.contrib.metrics`; here names have underscores and the suffixes that Prometheus wants:
`throttled_decisions_total`, `throttled_decision_duration_seconds`.

With `PROMETHEUS_MULTIPROC_DIR` calls are counted over all processes. The states of stores are
those of one process, which nobody else can read: they are not told then.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, Final

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

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
)
from throttled.exceptions import DataError
from throttled.hooks import Event
from throttled.result import RateLimitResult

__all__ = ["Metrics"]

_SECONDS: Final = "_seconds"


def _name(instrument: Instrument) -> str:
    """Without `_total`, which the client appends to counters."""
    return instrument.name.replace(".", "_") + (_SECONDS if instrument.unit == "s" else "")


class Metrics(BaseMetrics):
    """Most callers make one at start-up and call `watch` for each limit.

    `registry`: where the metrics are to be found, by default that of the whole process. `near`:
    the share of a limit above which what is used of it counts as near to it. Raises `DataError`
    for a bad share, and for a registry that has these metrics already.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY, *, near: float = 0.8) -> None:
        super().__init__(near)
        stores = _Stores(self)
        # First: it is the whole of it that is refused where another one is registered.
        try:
            registry.register(stores)
        except ValueError as error:
            raise DataError(
                "Invalid registry: it has the metrics of limits already; make one Metrics and let "
                "it watch all of them."
            ) from error
        counter, histogram = partial(_counter, registry), partial(_histogram, registry)
        self._decisions = counter(DECISIONS)
        self._near_limit = counter(NEAR_LIMIT)
        self._store_errors = counter(STORE_ERRORS)
        self._decision_duration = histogram(DECISION_DURATION)
        self._wait_duration = histogram(WAIT_DURATION)

    def _recorder(self, limit: str) -> _Recorder:
        return _Recorder(self, limit)


def _counter(registry: CollectorRegistry, instrument: Instrument) -> Counter:
    name, text, labels = _name(instrument), instrument.description, instrument.labels
    return Counter(name, text, labels, registry=registry)


def _histogram(registry: CollectorRegistry, instrument: Instrument) -> Histogram:
    name, text, labels = _name(instrument), instrument.description, instrument.labels
    return Histogram(name, text, labels, registry=registry, buckets=instrument.buckets)


class _Recorder:
    """The instruments of one limit. Series are looked up once: that takes longer than to count."""

    def __init__(self, metrics: Metrics, limit: str) -> None:
        self._limit = limit
        self._decisions = metrics._decisions
        self._counted: dict[tuple[str, Outcome], Counter] = {}
        self._errors = metrics._store_errors
        self.took = metrics._decision_duration.labels(limit).observe
        self.waited = metrics._wait_duration.labels(limit).observe
        self.near = metrics._near_limit.labels(limit).inc

    def decided(self, event: Event, result: RateLimitResult, outcome: Outcome) -> None:
        source = result.source
        counter = self._counted.get((source, outcome))
        if counter is None:
            counter = self._decisions.labels(self._limit, source, outcome)
            self._counted[source, outcome] = counter
        counter.inc()

    def failed(self, kind: Failure) -> None:
        self._errors.labels(self._limit, kind).inc()


class _Stores(Collector):
    """What is read of the stores when the registry is collected."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def describe(self) -> Iterable[Metric]:
        return self._families()

    def collect(self) -> Iterable[Metric]:
        breaker, evictions, keys = families = self._families()
        for store in self._metrics._states():
            for state in BREAKER_STATES if store.breaker else ():
                breaker.add_metric([store.name, state], float(state == store.breaker))
            if store.evictions is not None:
                evictions.add_metric([store.name], store.evictions)
            if store.keys is not None:
                keys.add_metric([store.name], store.keys)
        return families

    @staticmethod
    def _families() -> tuple[GaugeMetricFamily, CounterMetricFamily, GaugeMetricFamily]:
        def family(kind: Any, instrument: Instrument) -> Any:
            return kind(_name(instrument), instrument.description, labels=instrument.labels)

        return (
            family(GaugeMetricFamily, BREAKER),
            family(CounterMetricFamily, EVICTIONS),
            family(GaugeMetricFamily, KEYS),
        )
