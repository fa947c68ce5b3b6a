"""Prometheus: what a real registry exposes of limits and stores."""

from __future__ import annotations

import gc
import re
import subprocess
import sys
from math import inf
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse
from starlette.testclient import TestClient

from tests import callers as shared
from tests import flavours, servers
from tests.callers import Callers
from tests.failing import LocalFailingStore
from tests.flavours import Flavour
from tests.servers import Server, wait_until
from throttled import MemoryStore, RedisStore, Throttled
from throttled.contrib.asgi import RateLimit, RateLimitMiddleware
from throttled.contrib.metrics import DECISION_BUCKETS, INSTRUMENTS, WAIT_BUCKETS
from throttled.contrib.prometheus import Metrics
from throttled.exceptions import DataError, StateError, StoreUnavailableError
from throttled.store.breaker import FAILURES
from throttled.testing import FakeClock

if TYPE_CHECKING:
    from pathlib import Path

flavour = flavours.flavour
valkey, key, callers = servers.valkey, shared.key, shared.callers
on_server = pytest.mark.server


class Exposed:
    """Metrics in a registry of their own, and what it exposes."""

    def __init__(self, **arguments: Any) -> None:
        self.registry = CollectorRegistry()
        self.metrics = Metrics(self.registry, **arguments)
        self.watch = self.metrics.watch

    @property
    def text(self) -> str:
        return generate_latest(self.registry).decode()

    def __call__(self, name: str, **labels: str) -> float:
        """The sum of the samples with these labels, whatever others they have."""
        return sum(
            sample.value
            for family in parse(self.text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def series(self) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
        return {
            (sample.name, tuple(sorted(sample.labels.items())))
            for family in parse(self.text)
            for sample in family.samples
        }

    def breaker(self, store: str) -> list[str]:
        """The states that its breaker is in: one, or there is a mistake."""
        return [
            state
            for state in ("closed", "half-open", "open")
            if self("throttled_store_breaker_state", store=store, state=state)
        ]


@pytest.fixture
def exposed() -> Exposed:
    return Exposed()


# -- decisions ------------------------------------------------------------------------------------


def test_decisions_are_counted_by_limit_source_and_outcome(
    flavour: Flavour, exposed: Exposed
) -> None:
    login, search = flavour.limiter(quota="2/m"), flavour.limiter(quota="1/m", enforce=False)
    exposed.watch(login, "login")
    exposed.watch(search, "search")
    for throttle in (login, search):
        for _ in range(5):
            flavour.run(throttle.limit, "key")

    def count(limit: str, source: str, outcome: str) -> float:
        return exposed("throttled_decisions_total", limit=limit, source=source, outcome=outcome)

    assert count("login", "memory", "allowed") == 2
    assert count("login", "memory", "refused") == 3
    assert count("search", "shadow", "allowed") == 1
    assert count("search", "shadow", "would_refuse") == 4
    assert exposed("throttled_decisions_total") == 10


def test_every_way_to_ask_is_counted(exposed: Exposed) -> None:
    throttle = Throttled(key="key", quota="9/m", store=MemoryStore(clock=FakeClock()))
    exposed.watch(throttle, "login")
    throttle.limit("key")
    with throttle:
        pass
    throttle(lambda: None)()
    throttle.reserve("key", 1).cancel()
    throttle.limit_many(["key", "key"])
    Throttled.limit_all([(throttle, "key")])
    assert next(throttle.wrap([1], key="key")) == 1
    throttle.peek("key")
    assert exposed("throttled_decisions_total", limit="login", outcome="allowed") == 8


def test_how_long_decisions_take_is_in_seconds_and_counts_each(exposed: Exposed) -> None:
    throttle = Throttled(quota="2/m", store=MemoryStore(), exempt=lambda key: key == "me")
    exposed.watch(throttle, "login")
    for _ in range(5):
        throttle.limit("key")
    throttle.limit("me")
    assert exposed("throttled_decision_duration_seconds_count", limit="login") == 5
    assert 0 < exposed("throttled_decision_duration_seconds_sum", limit="login") < 5
    assert exposed("throttled_wait_duration_seconds_count", limit="login") == 0


def test_buckets_go_from_a_microsecond_to_a_second_and_print_well(exposed: Exposed) -> None:
    exposed.watch(Throttled(), "login")
    found = re.findall(
        r'throttled_decision_duration_seconds_bucket\{le="([^"]+)",limit="login"\}', exposed.text
    )
    assert [float(each) for each in found] == [*DECISION_BUCKETS, inf]
    assert (DECISION_BUCKETS[0], DECISION_BUCKETS[-1], len(DECISION_BUCKETS)) == (1e-6, 1.0, 19)
    assert list(WAIT_BUCKETS) == sorted(WAIT_BUCKETS)
    assert all(len(each) <= 7 for each in found), "no 4.9999999999999996e-06"


def test_waits_are_measured_of_those_that_waited(flavour: Flavour, exposed: Exposed) -> None:
    throttle = flavour.limiter(quota="1/m", timeout=120)
    exposed.watch(throttle, "login")
    for _ in range(3):
        flavour.run(throttle.limit, "key")
    assert exposed("throttled_wait_duration_seconds_count", limit="login") == 2
    assert exposed("throttled_wait_duration_seconds_sum", limit="login") == 120
    assert exposed("throttled_wait_duration_seconds_bucket", limit="login", le="30.0") == 0
    assert exposed("throttled_wait_duration_seconds_bucket", limit="login", le="60.0") == 2
    assert exposed("throttled_decision_duration_seconds_sum", limit="login") < 5


# -- near the limit -------------------------------------------------------------------------------


def near(exposed: Exposed, limit: str = "login") -> float:
    return exposed("throttled_near_limit_total", limit=limit)


def test_calls_that_leave_less_than_a_fifth_are_near_the_limit(
    flavour: Flavour, exposed: Exposed
) -> None:
    throttle = flavour.limiter(quota="10/m")
    exposed.watch(throttle, "login")
    for _ in range(8):
        flavour.run(throttle.limit, "key")
    assert near(exposed) == 0, "a fifth is left"
    flavour.run(throttle.limit, "key")
    flavour.run(throttle.limit, "key")
    assert near(exposed) == 2
    flavour.run(throttle.limit, "key")
    assert near(exposed) == 2, "what is refused is counted as refused"


@pytest.mark.parametrize("percent", [1, 7, 29, 50, 57, 58, 99])
def test_how_near_is_near_can_be_said(percent: int) -> None:
    exposed = Exposed(near=percent / 100)
    throttle = Throttled(quota="100/m", store=MemoryStore(clock=FakeClock()))
    exposed.watch(throttle, "login")
    throttle.limit("key", percent)
    assert near(exposed) == 0
    throttle.limit("key")
    assert near(exposed) == 1


def test_of_several_rules_any_may_be_near(exposed: Exposed) -> None:
    clock = FakeClock()
    throttle = Throttled(quota="10/s; 20/h", store=MemoryStore(clock=clock))
    exposed.watch(throttle, "login")
    for cost in (8, 7):
        throttle.limit("key", cost)
        assert near(exposed) == 0
        clock.advance(30)
    throttle.limit("key", 4)
    assert near(exposed) == 1, "four of ten are nothing, nineteen of twenty are"


def test_of_limits_asked_together_only_those_are_near_that_are(exposed: Exposed) -> None:
    store = MemoryStore(clock=FakeClock())
    user = Throttled(quota="100/m", store=store, key_prefix="user")
    org = Throttled(quota="3/m", store=store, key_prefix="org")
    exposed.watch(user, "user")
    exposed.watch(org, "org")
    for _ in range(3):
        Throttled.limit_all([(user, "ann"), (org, "acme")])
    assert (near(exposed, "user"), near(exposed, "org")) == (0, 1)
    assert exposed("throttled_decisions_total", outcome="allowed") == 6


def test_what_is_not_known_or_not_enforced_is_not_near(exposed: Exposed) -> None:
    store = LocalFailingStore(FakeClock())
    store.fail()
    exposed.watch(allowing := Throttled(store=store, on_store_error="allow"), "allowing")
    exposed.watch(exempt := Throttled(store=MemoryStore(), exempt=lambda _: True), "exempt")
    for throttle in (allowing, exempt):
        throttle.limit("key", 60)
    assert exposed("throttled_decisions_total", source="allowed-by-policy") == 1
    assert exposed("throttled_decisions_total", source="exempt") == 1
    assert exposed("throttled_near_limit_total") == 0


# -- failures -------------------------------------------------------------------------------------


def test_failures_are_counted_by_limit_and_kind(flavour: Flavour, exposed: Exposed) -> None:
    store = flavour.failing_store()
    throttle = flavour.limiter(store=store, on_store_error="allow")
    exposed.watch(throttle, "login")
    for error, times in ((StoreUnavailableError("of user ann"), 3), (StateError("of bob"), 2)):
        store.fail(error)
        for _ in range(times):
            flavour.run(throttle.limit, "ann")

    def errors(kind: str) -> float:
        return exposed("throttled_store_errors_total", limit="login", error=kind)

    assert (errors("StoreUnavailableError"), errors("StateError")) == (3, 2)
    assert exposed("throttled_decisions_total", source="allowed-by-policy") == 5
    assert "ann" not in exposed.text
    assert "bob" not in exposed.text


@on_server
def test_a_server_that_dies_and_comes_back_is_seen(
    callers: Callers, key: str, exposed: Exposed
) -> None:
    with Server() as server:
        store = callers.store(server.url, on_store_error="allow")
        throttle = callers.limiter(store)
        exposed.watch(throttle, "login", store="sessions")
        assert exposed.breaker("sessions") == ["closed"]
        callers.wait(throttle.limit, key)
        server.kill()
        for number in range(1, FAILURES + 1):
            assert exposed.breaker("sessions") == ["closed"]
            callers.wait(throttle.limit, key)
            assert exposed("throttled_store_errors_total", error="StoreUnavailableError") == number
        assert exposed.breaker("sessions") == ["open"]
        wait_until(lambda: exposed.breaker("sessions") == ["half-open"], "the end of the pause")
        server.start()
        wait_until(lambda: callers.wait(throttle.limit, key).source == "server", "its return")
        assert exposed.breaker("sessions") == ["closed"]
    counted = exposed("throttled_decisions_total", limit="login", source="allowed-by-policy")
    assert counted == exposed("throttled_store_errors_total", limit="login") >= FAILURES
    assert exposed("throttled_decisions_total", limit="login", source="server") == 2


@on_server
def test_calls_on_a_server_are_counted_and_so_are_refusals_repeated_here(
    valkey: Server, callers: Callers, key: str, exposed: Exposed
) -> None:
    throttle = callers.limiter(callers.store(valkey.url), "2/366d")
    exposed.watch(throttle, "login")
    for _ in range(5):
        callers.wait(throttle.limit, key)

    def count(source: str, outcome: str) -> float:
        return exposed("throttled_decisions_total", source=source, outcome=outcome)

    assert (count("server", "allowed"), count("server", "refused")) == (2, 1)
    assert count("local-deny", "refused") == 2
    assert exposed("throttled_decision_duration_seconds_count", limit="login") == 5
    assert exposed.breaker("redis") == ["closed"]
    assert "throttled_store_keys{" not in exposed.text, "nobody counts the keys of a server"


# -- stores ---------------------------------------------------------------------------------------


def test_keys_and_evictions_of_a_memory_store_are_read_when_asked(exposed: Exposed) -> None:
    throttle = Throttled(quota="1/m", store=MemoryStore(options={"MAX_SIZE": 8}))
    exposed.watch(throttle, "login")
    for number in range(5):
        throttle.limit(f"key {number}")
    assert exposed("throttled_store_keys", store="memory") == 5
    assert exposed("throttled_store_evictions_total", store="memory") == 0
    for number in range(20):
        throttle.limit(f"key {number}")
    assert exposed("throttled_store_keys", store="memory") == 8
    assert exposed("throttled_store_evictions_total", store="memory") == 12
    assert "throttled_store_breaker_state{" not in exposed.text


def test_a_store_of_several_limits_is_told_once_and_others_are_numbered(exposed: Exposed) -> None:
    store, other = MemoryStore(), MemoryStore()
    for number, each in enumerate((store, store, other)):
        throttle = Throttled(store=each)
        exposed.watch(throttle, f"limit {number}")
        throttle.limit("key")
    assert exposed("throttled_store_keys") == 2
    assert exposed("throttled_store_keys", store="memory-2") == 1


def test_stores_that_stand_in_are_told_as_well(exposed: Exposed) -> None:
    spare = MemoryStore()
    store = RedisStore("redis://localhost:1/0", on_store_error=spare)
    throttle = Throttled(store=store)
    exposed.watch(throttle, "login", store="sessions")
    throttle.limit("key")
    assert exposed("throttled_store_keys", store="memory") == 1
    assert exposed.breaker("sessions") == ["closed"]
    assert exposed("throttled_decisions_total", source="fallback") == 1


def test_what_is_forgotten_is_told_no_more_and_kept_by_nobody(exposed: Exposed) -> None:
    throttle = Throttled(store=MemoryStore())
    exposed.watch(throttle, "login")
    throttle.limit("key")
    assert exposed("throttled_store_keys", store="memory") == 1
    del throttle
    gc.collect()
    assert "throttled_store_keys{" not in exposed.text
    assert exposed("throttled_decisions_total") == 1, "what was counted stays"
    exposed.watch(Throttled(), "login")


# -- bounded --------------------------------------------------------------------------------------


def test_a_thousand_keys_make_no_series_and_are_seen_nowhere(exposed: Exposed) -> None:
    throttle = Throttled(quota="2/m", store=MemoryStore(), on_store_error="allow")
    exposed.watch(throttle, "login")
    store = LocalFailingStore()
    failing = Throttled(quota="2/m", store=store, on_store_error="deny")
    exposed.watch(failing, "failing")

    def call(key: str) -> None:
        for _ in range(3):
            throttle.limit(key)
        store.fail(StoreUnavailableError(f"no {key}"))
        failing.limit(key)
        throttle.limit_many([key])

    call("secret-first")
    before = exposed.series()
    for number in range(1000):
        call(f"secret-{number}")
    assert exposed.series() == before
    assert exposed("throttled_decisions_total") == 5 * 1001
    assert "secret" not in exposed.text


# -- names ----------------------------------------------------------------------------------------


def test_every_instrument_is_there_by_its_documented_name(exposed: Exposed) -> None:
    kinds = dict(re.findall(r"# TYPE (\S+) (\S+)", exposed.text))
    kinds = {name: kind for name, kind in kinds.items() if not name.endswith("_created")}
    assert kinds == {
        "throttled_decisions_total": "counter",
        "throttled_decision_duration_seconds": "histogram",
        "throttled_wait_duration_seconds": "histogram",
        "throttled_near_limit_total": "counter",
        "throttled_store_errors_total": "counter",
        "throttled_store_breaker_state": "gauge",
        "throttled_store_evictions_total": "counter",
        "throttled_store_keys": "gauge",
    }
    assert len(kinds) == len(INSTRUMENTS)


def test_the_exposition_is_valid_openmetrics(exposed: Exposed) -> None:
    throttle = Throttled(quota="1/m", store=MemoryStore())
    exposed.watch(throttle, 'log"in\n')
    for _ in range(2):
        throttle.limit("key")
    families = list(parse_openmetrics(generate_openmetrics(exposed.registry).decode()))
    [found] = [family for family in families if family.name == "throttled_decisions"]
    assert {sample.labels["limit"] for sample in found.samples} == {'log"in\n'}


def test_watching_again_counts_once(flavour: Flavour, exposed: Exposed) -> None:
    throttle = flavour.limiter()
    for _ in range(3):
        exposed.watch(throttle, "login")
    flavour.run(throttle.limit, "key")
    assert exposed("throttled_decisions_total") == 1
    assert exposed("throttled_decision_duration_seconds_count") == 1


@pytest.mark.parametrize("name", [None, 7, "", " ", b"login", ["login"]])
def test_a_name_that_is_no_text_is_an_error(exposed: Exposed, name: Any) -> None:
    throttle = Throttled()
    with pytest.raises(DataError, match=r"^Invalid name: .*must be text such as 'login'"):
        exposed.watch(throttle, name)
    if name is not None:
        with pytest.raises(DataError, match=r"^Invalid store: .*must be text such as 'login'"):
            exposed.watch(throttle, "login", store=name)
    assert throttle._decide == throttle._ask, "nobody observes it"


def test_names_are_of_one_thing_and_things_have_one_name(exposed: Exposed) -> None:
    throttle = Throttled(store=MemoryStore())
    other = Throttled(store=MemoryStore())
    exposed.watch(throttle, "login", store="sessions")
    with pytest.raises(DataError, match=r"^Invalid name: 'login' is the name of another limit"):
        exposed.watch(other, "login")
    with pytest.raises(DataError, match=r"^Invalid name: 'search', that limit is called 'login'"):
        exposed.watch(throttle, "search")
    with pytest.raises(DataError, match=r"^Invalid store: 'sessions' is the name of another store"):
        exposed.watch(other, "search", store="sessions")
    with pytest.raises(DataError, match=r"^Invalid store: 'x', that store is called 'sessions'"):
        exposed.watch(throttle, "login", store="x")
    assert other._decide == other._ask, "nobody observes it"
    exposed.watch(other, "search")


def test_a_limit_takes_the_place_of_another(exposed: Exposed) -> None:
    old, new = Throttled(store=MemoryStore()), Throttled(store=MemoryStore())
    exposed.watch(old, "login")
    old.limit("k")
    exposed.watch(new, "login", replace=True)
    new.limit("k")
    assert exposed("throttled_decisions_total", limit="login") == 2
    with pytest.raises(DataError, match="is the name of another limit"):
        exposed.watch(old, "login")
    exposed.watch(new, "login", replace=True)
    new.limit("k")
    assert exposed("throttled_decisions_total", limit="login") == 3


@pytest.mark.parametrize("bad", [None, "login", Throttled, MemoryStore()])
def test_what_is_no_limit_is_an_error(exposed: Exposed, bad: Any) -> None:
    with pytest.raises(DataError, match=r"^Invalid throttle: "):
        exposed.watch(bad, "login")


@pytest.mark.parametrize("bad", [0.0, 1.0, 80, -0.5, "0.8", True, None])
def test_a_bad_share_is_an_error(bad: Any) -> None:
    with pytest.raises(DataError, match=r"^Invalid near: "):
        Metrics(CollectorRegistry(), near=bad)


def test_a_registry_has_one_metrics(exposed: Exposed) -> None:
    before = exposed.series()
    with pytest.raises(DataError, match=r"^Invalid registry: "):
        Metrics(exposed.registry)
    assert exposed.series() == before


# -- several processes ----------------------------------------------------------------------------

WORKER = """
from prometheus_client import CollectorRegistry
from throttled import MemoryStore, Throttled
from throttled.contrib.prometheus import Metrics

metrics = Metrics(CollectorRegistry())
throttle = Throttled(quota="2/m", store=MemoryStore())
metrics.watch(throttle, "login")
for _ in range(3):
    throttle.limit("key")
"""

SCRAPE = """
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

registry = CollectorRegistry()
MultiProcessCollector(registry)
print(generate_latest(registry).decode())
"""


def test_several_processes_are_counted_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    for _ in range(2):
        subprocess.run([sys.executable, "-W", "error", "-c", WORKER], check=True, timeout=60)
    scrape = subprocess.run(
        [sys.executable, "-c", SCRAPE], check=True, timeout=60, capture_output=True, text=True
    )
    samples = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in parse(scrape.stdout)
        for sample in family.samples
    }
    assert samples["throttled_decisions_total", "allowed", "login", "memory"] == 4
    assert samples["throttled_decisions_total", "login", "memory", "refused"] == 2
    assert samples["throttled_decision_duration_seconds_count", "login"] == 6
    assert samples["throttled_near_limit_total", "login"] == 2
    assert not [name for name, *_ in samples if name.startswith("throttled_store")]


def test_a_limit_of_a_web_application_is_watched_in_all_its_scopes(exposed: Exposed) -> None:
    limit = RateLimit("2/m", store=MemoryStore())
    exposed.watch(limit, "pages")
    app = RateLimitMiddleware(answer, rules={"/a": limit, "/b": limit})
    client = TestClient(app, client=("203.0.113.5", 50000))
    assert [client.get(path).status_code for path in ("/a", "/a", "/a", "/b")] == [
        200,
        200,
        429,
        200,
    ]
    assert exposed("throttled_decisions_total", limit="pages", outcome="allowed") == 3
    assert exposed("throttled_decisions_total", limit="pages", outcome="refused") == 1
    assert "203.0.113.5" not in exposed.text


async def answer(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})
