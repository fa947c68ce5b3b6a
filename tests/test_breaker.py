"""A server that fails: the circuit breaker that leaves it alone, and the deadline of a decision."""

from __future__ import annotations

import logging
import socket
import statistics
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from tests import callers as shared
from tests import servers
from tests.callers import PATIENT, Callers, counted
from tests.servers import HOST, Proxy, Server, wait_until
from throttled.exceptions import StoreUnavailableError
from throttled.store import breaker as breakers
from throttled.store.breaker import FAILURES, PAUSE, Breaker

pytestmark = pytest.mark.realtime

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from concurrent.futures import Future

valkey, key, proxy = servers.valkey, shared.key, shared.proxy
callers = shared.callers
on_server = pytest.mark.server

#: How much later than its deadline a caller may be on a busy machine, in seconds.
SLACK = 1.5


# --- by itself -----------------------------------------------------------------------------------

NOW = 1000.0
LONGEST = 1.5 * PAUSE


def opened(at: float = NOW) -> Breaker:
    """A breaker that has just opened."""
    breaker = Breaker("Redis at here:1")
    for _ in range(FAILURES):
        breaker.failed(at, at, "timed out")
    assert breaker.opened
    return breaker


def test_it_opens_after_failures_in_a_row_and_no_others() -> None:
    breaker = Breaker("Redis at here:1")
    assert breaker.health(NOW).ok
    for number in range(5 * FAILURES):
        if number % FAILURES == FAILURES - 1:
            breaker.worked()
        else:
            breaker.failed(NOW + number, NOW + number, "timed out")
        assert breaker.admits(NOW + number, 1.0)
    assert breaker.health(NOW + number).state == "closed"
    assert not breaker.troubled
    for number in range(FAILURES):
        assert breaker.admits(NOW + 50, 1.0)
        breaker.failed(NOW + 50 + number, NOW + 50 + number, "timed out")
        assert breaker.health(NOW + 50).failures == number + 1
    assert not breaker.admits(NOW + 50 + number, 1.0)


def test_calls_that_fail_together_are_one_failure() -> None:
    breaker = Breaker("Redis at here:1")
    for late in range(100):
        breaker.failed(NOW - late / 1000, NOW + 0.25 + late / 1000, "timed out")
    assert breaker.health(NOW + 1).failures == 1
    # One that was made after the failure was known is another.
    breaker.failed(NOW + 0.25, NOW + 0.5, "timed out")
    assert breaker.health(NOW + 1).failures == 2


def test_the_pause_is_jittered() -> None:
    pauses = [opened().health(NOW).retry_after for _ in range(200)]
    assert 0.5 * PAUSE <= min(pauses) < 0.7 * PAUSE
    assert 1.3 * PAUSE < max(pauses) <= LONGEST


def test_after_the_pause_one_probe_goes() -> None:
    breaker = opened()
    pause = breaker.health(NOW).retry_after
    assert breaker.health(NOW).state == "open"
    assert not breaker.admits(NOW + pause - 0.001, 1.0)
    after = NOW + pause
    assert breaker.health(after).state == "half-open"
    assert [breaker.admits(after, 0.25) for _ in range(5)] == [True, False, False, False, False]
    assert not breaker.admits(after + 0.249, 0.25)
    # Nothing was heard of that probe: it counts as lost, and another may go.
    assert [breaker.admits(after + 0.251, 0.25) for _ in range(3)] == [True, False, False]


@pytest.mark.parametrize("works", [True, False])
def test_the_probe_closes_it_or_opens_it_again(works: bool) -> None:
    breaker = opened()
    probed = NOW + LONGEST
    assert breaker.admits(probed, 0.25)
    if works:
        breaker.worked()
        assert breaker.health(probed).ok
        assert breaker.health(probed).last_error == "timed out", "what went wrong stays readable"
        assert all(breaker.admits(probed, 0.25) for _ in range(5))
    else:
        breaker.failed(probed, probed + 0.25, "connection refused")
        health = breaker.health(probed + 0.25)
        assert (health.state, health.last_error) == ("open", "connection refused")
        assert 0.5 * PAUSE <= health.retry_after <= LONGEST
        assert not breaker.admits(probed + 0.25, 0.25)


def test_a_connection_made_after_all_is_tried_at_once() -> None:
    breaker = opened()
    breaker.reachable()
    assert [breaker.admits(NOW, 0.25) for _ in range(3)] == [True, False, False]


def test_a_refusal_says_for_how_long_and_why() -> None:
    breaker = opened()
    text = breaker.refusal(NOW)
    assert "here:1 is left alone for another" in text
    assert text.endswith(f"after {FAILURES} failures in a row, the last: timed out")


# --- an outage -----------------------------------------------------------------------------------


def fail(callers: Callers, limiter: Any, key: str) -> str:
    """What a call that cannot be decided raises."""
    return texts([callers.call(limiter.limit, key)])[0]


def health(callers: Callers, store: Any) -> Any:
    """The health of a store, asked for where its calls are made."""

    async def ask() -> Any:
        return store.health()

    return callers.wait(ask if callers.asynchronous else store.health)


def texts(calls: Sequence[Future[Any]]) -> list[str]:
    """What calls raise that cannot be decided."""
    errors = [call.exception(30) for call in calls]
    assert all(isinstance(error, StoreUnavailableError) for error in errors), errors
    return [str(error) for error in errors]


@pytest.fixture
def calm_server() -> Iterator[Server]:
    with Server() as server:
        yield server


@on_server
def test_an_outage_from_its_beginning_to_its_end(
    calm_server: Server, callers: Callers, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    server = calm_server
    caplog.set_level(logging.DEBUG, "throttled")
    store = callers.store(server.url)
    limiter = callers.limiter(store)
    assert health(callers, store).ok, "nothing was asked yet"
    callers.wait(limiter.limit, key)
    assert health(callers, store).ok

    server.kill()
    for failures in range(1, FAILURES + 1):
        assert health(callers, store).state == "closed"
        fail(callers, limiter, key)
        assert health(callers, store).failures == failures
    found = health(callers, store)
    assert found.state == "open"
    assert not found.ok
    assert "connecting to" in found.last_error
    assert abs(found.last_error_at - time.time()) < 60
    assert 0 < found.retry_after <= LONGEST
    assert "left alone" in fail(callers, limiter, key)

    # It stays down: a probe fails, and nobody is told again.
    wait_until(lambda: health(callers, store).state == "half-open", "the end of the pause")
    assert "unreachable" in fail(callers, limiter, key)
    assert health(callers, store).state == "open"

    server.start()
    wait_until(lambda: health(callers, store).state == "half-open", "the end of the pause")
    assert callers.wait(limiter.limit, key).allowed
    found = health(callers, store)
    assert found.ok
    assert (found.failures, found.retry_after) == (0, 0)
    assert "connecting to" in found.last_error, "what went wrong stays readable"

    said = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert [level for level, _ in said] == ["WARNING", "INFO"]
    where = f"Redis at {HOST}:{server.port}"
    assert said[0][1].startswith(f"{where} failed {FAILURES} times in a row and is left alone")
    assert said[1][1] == f"{where} works again"


@on_server
def test_while_it_is_open_nothing_is_tried(
    calm_server: Server, callers: Callers, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(breakers, "PAUSE", 100.0)
    store = callers.store(calm_server.url)
    limiter = callers.limiter(store)
    callers.wait(limiter.limit, key)
    calm_server.kill()
    for _ in range(FAILURES):
        fail(callers, limiter, key)
    with closing(socket.create_server((HOST, calm_server.port))) as listener:
        listener.setblocking(False)
        took = []
        for _ in range(50):
            began = time.perf_counter()
            assert "left alone" in fail(callers, limiter, key)
            took.append(time.perf_counter() - began)
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert statistics.median(took) < 0.005


@on_server
def test_only_one_call_goes_as_a_probe(
    valkey: Server,
    proxy: Proxy,
    callers: Callers,
    key: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = callers.store(proxy.url, PATIENT)
    limiter = callers.limiter(store)
    callers.wait(limiter.limit, key)
    proxy.mode = "cut"
    for _ in range(FAILURES):
        fail(callers, limiter, key)
    made = proxy.connections
    proxy.mode = "silent"
    wait_until(lambda: health(callers, store).state == "half-open", "the end of the pause")
    with counted(valkey) as sizes:
        probe = callers.call(limiter.limit, key)
        wait_until(lambda: proxy.connections == made + 1, "the probe")
        for _ in range(20):
            assert "left alone" in fail(callers, limiter, key)
        assert not probe.done()
        proxy.mode = "pass"
        assert probe.result(30).allowed
    assert sizes == [1]
    assert health(callers, store).ok
    assert proxy.connections == made + 1


@on_server
def test_calls_that_share_a_failure_count_once(proxy: Proxy, callers: Callers, key: str) -> None:
    store = callers.store(proxy.url, PATIENT)
    limiter = callers.limiter(store)
    calls = [callers.hold(proxy, limiter.limit, key)]
    calls += callers.join(store, limiter.limit, [(key,)] * 20)
    proxy.mode = "cut"
    texts(calls)
    assert 1 <= health(callers, store).failures <= 2, "that flight, and the one that followed it"


# --- deadlines -----------------------------------------------------------------------------------

HASTY = {"DECISION_TIMEOUT": 0.3}


@on_server
def test_everybody_is_back_in_time_and_knows_whether_it_counts(
    valkey: Server, proxy: Proxy, callers: Callers, key: str
) -> None:
    store = callers.store(proxy.url, HASTY)
    limiter = callers.limiter(store)
    callers.wait(limiter.limit, key)
    # More tasks than two flights take; of threads, one is under way and the others are in line.
    crowd = 300 if callers.asynchronous else 40
    with counted(valkey) as sizes:
        proxy.mode = "hold"
        ended: list[float] = []
        calls = []
        for _ in range(crowd):
            began = time.monotonic()
            calls.append(callers.call(limiter.limit, key))
            calls[-1].add_done_callback(
                lambda _, began=began: ended.append(time.monotonic() - began)
            )
        said = texts(calls)
        proxy.mode = "pass"
    assert max(ended) < HASTY["DECISION_TIMEOUT"] + SLACK
    counts = sum("may have been counted" in text for text in said)
    unsent = sum(text.endswith("was not sent.") or "left alone" in text for text in said)
    assert counts + unsent == crowd
    assert counts == sum(sizes), "exactly those were decided, though nobody heard of it"
    assert 1 <= counts < crowd
    look = callers.limiter(callers.store(valkey.url))
    assert callers.wait(look.peek, key).remaining == 999 - counts


@on_server
def test_a_reply_that_comes_too_late_is_nobody_elses(
    proxy: Proxy, callers: Callers, key: str
) -> None:
    store = callers.store(proxy.url, HASTY)
    limiter = callers.limiter(store, "5/366d")
    late = callers.hold(proxy, limiter.limit, key)
    assert "may have been counted" in texts([late])[0]
    proxy.mode = "pass"
    assert callers.wait(limiter.limit, f"{key}-another").state.remaining == 4
    assert callers.wait(limiter.limit, key).state.remaining == 2


@on_server
def test_a_slow_handshake_succeeds_at_last_and_is_made_once(
    proxy: Proxy, callers: Callers, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(breakers, "PAUSE", 100.0)
    store = callers.store(proxy.url, HASTY)
    limiter = callers.limiter(store)
    proxy.mode = "silent"
    for _ in range(FAILURES):
        began = time.monotonic()
        said = texts([callers.call(limiter.limit, key) for _ in range(10)])
        assert time.monotonic() - began < HASTY["DECISION_TIMEOUT"] + SLACK
        assert all(text.endswith("was not sent.") for text in said)
    assert health(callers, store).state == "open"
    assert "left alone" in fail(callers, limiter, key)
    assert proxy.connections == 1
    proxy.mode = "pass"
    # No pause is waited for: that the handshake succeeded is known.
    wait_until(lambda: health(callers, store).state == "half-open", "the connection")
    assert callers.wait(limiter.limit, key).state.remaining == 999
    assert health(callers, store).ok
    assert proxy.connections == 1
