"""OpenTelemetry: what the real SDK exports of limits and stores."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from tests import callers as shared
from tests import flavours, servers
from tests.callers import Callers
from tests.flavours import Flavour, faults
from tests.servers import Server, wait_until
from throttled import MemoryStore, Rule, Throttled
from throttled.contrib.metrics import DECISION_BUCKETS, INSTRUMENTS, WAIT_BUCKETS
from throttled.contrib.otel import Metrics
from throttled.exceptions import DataError, StateError, StoreUnavailableError
from throttled.store.breaker import FAILURES
from throttled.testing import FakeClock

flavour = flavours.flavour
valkey, key, callers = servers.valkey, shared.key, shared.callers
on_server = pytest.mark.server

Point = tuple[dict[str, Any], Any]


class Exported:
    """Metrics with a provider of their own, and what it exports."""

    def __init__(self) -> None:
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider([self.reader], shutdown_on_exit=False)
        self.metrics = Metrics(self.provider)
        self.watch = self.metrics.watch

    def all(self) -> dict[str, Any]:
        """Every metric that has a point, by its name."""
        data = self.reader.get_metrics_data()
        if data is None:
            return {}
        [scope] = [scope for each in data.resource_metrics for scope in each.scope_metrics]
        assert scope.scope.name == "throttled"
        return {metric.name: metric for metric in scope.metrics}

    def points(self, name: str) -> list[Point]:
        """The attributes and the point of each series."""
        metric = self.all().get(name)
        return [] if metric is None else [(dict(p.attributes), p) for p in metric.data.data_points]

    def values(self, name: str, **attributes: str) -> list[Any]:
        """The values of the series with these attributes, dots as underscores."""
        wanted = {name.replace("_", ".", 1): value for name, value in attributes.items()}
        return [point.value for has, point in self.points(name) if wanted.items() <= has.items()]

    def breaker(self, store: str) -> list[str]:
        """The states that its breaker is in: one, or there is a mistake."""
        return [
            has["throttled.breaker.state"]
            for has, point in self.points("throttled.store.breaker.state")
            if has["throttled.store"] == store and point.value
        ]


@pytest.fixture
def exported() -> Iterator[Exported]:
    exported = Exported()
    yield exported
    exported.provider.shutdown()


class Traced:
    """A tracer, and what its spans say."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("test")

    def events(self) -> list[tuple[str, dict[str, Any]]]:
        [span] = self.exporter.get_finished_spans()
        return [(event.name, dict(event.attributes or {})) for event in span.events]


@pytest.fixture
def traced() -> Iterator[Traced]:
    traced = Traced()
    yield traced
    traced.provider.shutdown()


# -- metrics --------------------------------------------------------------------------------------


def test_decisions_are_counted_by_limit_source_and_outcome(
    flavour: Flavour, exported: Exported
) -> None:
    login, search = flavour.limiter(quota="2/m"), flavour.limiter(quota="1/m", enforce=False)
    exported.watch(login, "login")
    exported.watch(search, "search")
    for throttle in (login, search):
        for _ in range(5):
            flavour.run(throttle.limit, "key")
    counted = {
        (has["throttled.limit"], has["throttled.source"], has["throttled.outcome"]): point.value
        for has, point in exported.points("throttled.decisions")
    }
    assert counted == {
        ("login", "memory", "allowed"): 2,
        ("login", "memory", "refused"): 3,
        ("search", "shadow", "allowed"): 1,
        ("search", "shadow", "would_refuse"): 4,
    }


def test_decisions_and_waits_are_measured_in_seconds(flavour: Flavour, exported: Exported) -> None:
    throttle = flavour.limiter(quota="1/m", timeout=120)
    exported.watch(throttle, "login")
    for _ in range(3):
        flavour.run(throttle.limit, "key")
    [(labels, took)] = exported.points("throttled.decision.duration")
    assert labels == {"throttled.limit": "login"}
    assert (took.count, took.explicit_bounds) == (3, DECISION_BUCKETS)
    assert 0 < took.sum < 5
    [(labels, waited)] = exported.points("throttled.wait.duration")
    assert labels == {"throttled.limit": "login"}
    assert (waited.count, waited.sum, waited.explicit_bounds) == (2, 120, WAIT_BUCKETS)


def test_calls_near_the_limit_are_counted(flavour: Flavour, exported: Exported) -> None:
    throttle = flavour.limiter(quota="10/m")
    exported.watch(throttle, "login")
    flavour.run(throttle.limit, "key", 8)
    assert exported.values("throttled.near_limit") == []
    for _ in range(5):
        flavour.run(throttle.limit, "key")
    assert exported.values("throttled.near_limit", throttled_limit="login") == [2]


def test_failures_have_the_type_that_the_conventions_name(
    flavour: Flavour, exported: Exported
) -> None:
    store = flavour.failing_store()
    throttle = flavour.limiter(store=store, on_store_error="allow")
    exported.watch(throttle, "login")
    for error in (StoreUnavailableError("of user ann"), StateError("of user bob")):
        store.fail(error)
        flavour.run(throttle.limit, "ann")
    assert [(has, point.value) for has, point in exported.points("throttled.store.errors")] == [
        ({"throttled.limit": "login", "error.type": "StoreUnavailableError"}, 1),
        ({"throttled.limit": "login", "error.type": "StateError"}, 1),
    ]


def test_keys_and_evictions_are_read_when_exported(exported: Exported) -> None:
    throttle = Throttled(quota="1/m", store=MemoryStore(options={"MAX_SIZE": 8}))
    exported.watch(throttle, "login", store="sessions")
    for number in range(20):
        throttle.limit(f"key {number}")
    assert exported.values("throttled.store.keys", throttled_store="sessions") == [8]
    assert exported.values("throttled.store.evictions", throttled_store="sessions") == [12]
    assert exported.points("throttled.store.breaker.state") == []


@on_server
def test_a_server_that_dies_and_comes_back_is_seen(
    callers: Callers, key: str, exported: Exported
) -> None:
    with Server() as server:
        store = callers.store(server.url, on_store_error="allow")
        throttle = callers.limiter(store)
        exported.watch(throttle, "login")
        callers.wait(throttle.limit, key)
        assert exported.breaker("redis") == ["closed"]
        server.kill()
        for _ in range(FAILURES):
            callers.wait(throttle.limit, key)
        assert exported.breaker("redis") == ["open"]
        assert exported.values("throttled.store.errors") == [FAILURES]
        wait_until(lambda: exported.breaker("redis") == ["half-open"], "the end of the pause")
        server.start()
        wait_until(lambda: callers.wait(throttle.limit, key).source == "server", "its return")
        assert exported.breaker("redis") == ["closed"]
    assert exported.values("throttled.decisions", throttled_source="server") == [2]


def test_names_and_units_are_the_documented_ones(exported: Exported) -> None:
    store = flavours.LocalFailingStore(FakeClock())
    throttle = Throttled(quota="1/m", store=store, timeout=60, on_store_error="allow")
    exported.watch(throttle, "login")
    exported.watch(Throttled(store=MemoryStore()), "other")
    other = Throttled(store=MemoryStore())
    exported.watch(other, "another")
    other.limit("key")
    for _ in range(2):
        throttle.limit("key")
    store.fail()
    throttle.limit("key")
    kinds = {
        "counter": ("Sum", True),
        "histogram": ("Histogram", None),
        "gauge": ("Gauge", None),
    }
    found = exported.all()
    assert set(found) == {each.name for each in INSTRUMENTS}
    for each in INSTRUMENTS:
        metric = found[each.name]
        assert (metric.unit, metric.description) == (each.unit, each.description)
        kind = type(metric.data).__name__, getattr(metric.data, "is_monotonic", None)
        # What is held can be added up over processes; a gauge cannot.
        assert kind == (("Sum", False) if each.name.endswith("keys") else kinds[each.kind])


def test_a_thousand_keys_make_no_series_and_are_seen_nowhere(
    exported: Exported, traced: Traced
) -> None:
    throttle = Throttled(quota="2/m", store=MemoryStore())
    exported.watch(throttle, "login")

    def series() -> set[tuple[str, frozenset[tuple[str, Any]]]]:
        return {
            (name, frozenset(point.attributes.items()))
            for name, metric in exported.all().items()
            for point in metric.data.data_points
        }

    def call(key: str) -> None:
        for _ in range(3):
            throttle.limit(key)

    with traced.tracer.start_as_current_span("request"):
        call("secret-first")
        before = series()
        for number in range(1000):
            call(f"secret-{number}")
    assert series() == before
    data = exported.reader.get_metrics_data()
    assert data is not None
    assert "secret" not in data.to_json()
    assert "secret" not in traced.exporter.get_finished_spans()[0].to_json()


def test_watching_again_counts_once_and_wrong_names_are_errors(exported: Exported) -> None:
    throttle = Throttled(store=MemoryStore())
    for _ in range(3):
        exported.watch(throttle, "login")
    throttle.limit("key")
    assert exported.values("throttled.decisions") == [1]
    with pytest.raises(DataError, match=r"^Invalid name: 'login' is the name of another limit"):
        exported.watch(Throttled(), "login")
    with pytest.raises(DataError, match=r"^Invalid name: 7, must be text"):
        exported.watch(Throttled(), 7)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"^Invalid near: 80"):
        Metrics(exported.provider, near=80)


def test_without_a_provider_nothing_is_measured_and_calls_go_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    throttle = Throttled(quota="1/m", store=MemoryStore())
    Metrics().watch(throttle, "login")
    assert [throttle.limit("key").limited for _ in range(2)] == [False, True]
    assert faults(caplog) == []


# -- spans ----------------------------------------------------------------------------------------


def test_a_decision_is_an_event_of_the_span_around_it(
    flavour: Flavour, exported: Exported, traced: Traced
) -> None:
    throttle = flavour.limiter(quota="1/m")
    exported.watch(throttle, "login")

    def call() -> Any:
        with traced.tracer.start_as_current_span("request"):
            return [throttle.limit("ann") for _ in range(2)]

    async def acall() -> None:
        with traced.tracer.start_as_current_span("request"):
            for _ in range(2):
                await throttle.limit("ann")

    flavour.run(acall if flavour.asynchronous else call)
    common = {"throttled.limit": "login", "throttled.source": "memory"}
    assert traced.events() == [
        ("rate_limit", {**common, "throttled.outcome": "allowed"}),
        (
            "rate_limit",
            {
                **common,
                "throttled.outcome": "refused",
                "throttled.rule": "1/m",
                "throttled.retry_after": 60.0,
            },
        ),
    ]


def test_a_span_is_told_which_rule_refuses_and_no_instant_if_there_is_none(
    exported: Exported, traced: Traced
) -> None:
    rules = [Rule("5/m", name="many"), Rule("2/h", name="few")]
    throttle = Throttled(quota=rules, store=MemoryStore(clock=FakeClock()))
    exported.watch(throttle, "login")
    with traced.tracer.start_as_current_span("request"):
        throttle.limit("key", 2)
        throttle.limit("key", 1)
        throttle.limit("key", 9)
    told = [attributes for _, attributes in traced.events()]
    assert [each.get("throttled.rule") for each in told[:2]] == [None, "2/h"]
    assert "throttled.retry_after" in told[1]
    assert "throttled.retry_after" not in told[2], "it never fits, and JSON has no infinity"


def test_a_span_that_is_not_recorded_is_told_nothing(exported: Exported) -> None:
    provider = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
    throttle = Throttled(store=MemoryStore())
    exported.watch(throttle, "login")
    with provider.get_tracer("test").start_as_current_span("request") as span:
        throttle.limit("key")
        assert not span.is_recording()
    assert exported.values("throttled.decisions") == [1]
    provider.shutdown()
