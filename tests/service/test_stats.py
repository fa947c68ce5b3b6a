"""What is known of policies: right where it is exact, bounded where it is not."""

from __future__ import annotations

import json
import random
from collections import Counter
from hashlib import sha256

import pytest

from throttled import MemoryStore, Throttled
from throttled.hooks import Event
from throttled.service.stats import COUNTERS, TOP, PolicyStats, Sketch
from throttled.testing import FakeClock


@pytest.fixture
def stats(clock: FakeClock) -> PolicyStats:
    return PolicyStats(clock)


def watched(stats: PolicyStats, quota: str, clock: FakeClock, **arguments: object) -> Throttled:
    limit = Throttled(quota=quota, store=MemoryStore(clock=clock), **arguments)  # type: ignore[arg-type]
    limit.observe(stats)
    return limit


def test_few_keys_are_counted_exactly() -> None:
    sketch, keys = Sketch(), random.Random(1).choices([f"k{n}" for n in range(COUNTERS)], k=20_000)
    for key in keys:
        sketch.add(key)
    assert dict(sketch.items()) == Counter(keys)
    assert sketch.off_by == 0


def test_a_hundred_thousand_keys_stay_bounded() -> None:
    chance = random.Random(2)
    sketch, true = Sketch(), Counter[str]()
    for number in range(100_000):
        # One call in ten is one of five keys.
        key = f"busy{chance.randrange(5)}" if number % 10 == 0 else f"once{number}"
        sketch.add(key)
        true[key] += 1
        assert len(sketch) <= COUNTERS
    counted = dict(sketch.items())
    assert sketch.off_by <= 100_000 / (COUNTERS // 2)
    for key in [f"busy{n}" for n in range(5)]:
        assert true[key] - sketch.off_by <= counted[key] <= true[key]
    busiest = sorted(counted, key=lambda key: counted[key])[-5:]
    assert set(busiest) == {f"busy{n}" for n in range(5)}


def test_long_keys_are_kept_as_their_digest() -> None:
    sketch = Sketch()
    for key in ("x" * 4_096, "x" * 4_096, "x" * 4_095 + "y"):
        sketch.add(key)
    assert sorted(n for _, n in sketch.items()) == [1, 2]
    assert all(len(key) < 200 and "SHA-256" in key for key, _ in sketch.items())


def test_counts_and_keys(stats: PolicyStats, clock: FakeClock) -> None:
    limit = watched(stats, "3/h", clock)
    for key, calls in (("ann", 5), ("bob", 1), ("cy", 4)):
        for _ in range(calls):
            limit.limit(key)
    told = stats.told(digests=False)
    assert (told["allowed"], told["refused"], told["would_refuse"], told["errors"]) == (7, 3, 0, 0)
    keys = told["keys"]
    assert keys["approximate"] is True
    assert keys["busiest"] == {
        "off_by_at_most": 0,
        "top": [
            {"key": "ann", "calls": 5},
            {"key": "cy", "calls": 4},
            {"key": "bob", "calls": 1},
        ],
    }
    refused = [{"key": "ann", "refused": 2}, {"key": "cy", "refused": 1}]
    assert keys["most_refused"]["top"] == refused
    json.dumps(told, allow_nan=False)


def test_keys_that_are_not_to_be_shown(stats: PolicyStats, clock: FakeClock) -> None:
    watched(stats, "3/h", clock).limit("ann")
    told = stats.told(digests=True)
    digest = sha256(b"ann").hexdigest()[:16]
    assert told["keys"]["busiest"]["top"] == [{"key": f"sha256:{digest}", "calls": 1}]
    assert "ann" not in json.dumps(told)


def test_what_shadow_mode_lets_pass(stats: PolicyStats, clock: FakeClock) -> None:
    limit = watched(stats, "1/h", clock, enforce=False)
    for _ in range(3):
        limit.limit("k")
    told = stats.told(False)
    assert (told["allowed"], told["refused"], told["would_refuse"]) == (1, 0, 2)


def test_only_so_many_keys_are_told(stats: PolicyStats, clock: FakeClock) -> None:
    limit = watched(stats, "3/h", clock)
    for number in range(100):
        limit.limit(f"k{number}")
    assert len(stats.told(False)["keys"]["busiest"]["top"]) == TOP


def test_keys_are_of_the_last_minute(stats: PolicyStats, clock: FakeClock) -> None:
    limit = watched(stats, "1000/s", clock)

    def busiest() -> dict[str, int]:
        return {each["key"]: each["calls"] for each in stats.told(False)["keys"]["busiest"]["top"]}

    limit.limit("first")
    clock.advance(29)
    limit.limit("second")
    assert busiest() == {"first": 1, "second": 1}
    clock.advance(1)
    assert busiest() == {"first": 1, "second": 1}
    limit.limit("third")
    clock.advance(29)
    assert stats.told(False)["keys"]["seconds"] == 59
    assert busiest() == {"first": 1, "second": 1, "third": 1}
    clock.advance(1)
    assert busiest() == {"third": 1}
    clock.advance(300)
    assert busiest() == {}
    assert stats.told(False)["allowed"] == 3


def test_the_rate_is_of_the_last_ten_seconds(stats: PolicyStats, clock: FakeClock) -> None:
    limit = watched(stats, "100000/s", clock)

    def rate() -> float:
        rate: float = stats.told(False)["per_second"]
        return rate

    assert rate() == 0.0
    for second in range(20):
        for _ in range(30):
            limit.limit("k")
        assert rate() > 0.0
        clock.advance(1)
        assert rate() == pytest.approx(30.0), second
    clock.advance(5)
    assert rate() == 15.0
    clock.advance(100)
    assert rate() == 0.0


def test_times_of_decisions(clock: FakeClock) -> None:
    stats = PolicyStats(clock)
    limit = watched(stats, "100/s", clock)
    assert stats.told(False)["decision_seconds"] == {"p50": None, "p99": None}
    result = limit.limit("k")
    for took in [100e-6] * 98 + [3e-3] * 2 + [0.0]:
        stats.decided(Event("k", 1, result, 0.0, None, limit, took))
    told = stats.told(False)["decision_seconds"]
    assert told["p50"] == pytest.approx(100e-6, rel=0.15)
    assert told["p99"] == pytest.approx(3e-3, rel=0.15)
    stats.decided(Event("k", 1, result, 0.0, None, limit, 1e9))
    stats.decided(Event("k", 1, result, 0.0, None, limit, 1e-12))
