"""Every algorithm against a textbook model written another way, in exact fractions.

The models keep what was taken at which slot, and never anything of the algorithm's own state. What
they share is the line: nobody is served before those who asked earlier.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from fractions import Fraction
from math import inf

import fakeredis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.contract import FOREVER, Kind, Rig
from throttled.algorithms.plan import ALGORITHMS, LOOK, make_plan
from throttled.exceptions import DataError
from throttled.quota import Quota, RateLimiterType
from throttled.store import RedisStore
from throttled.testing import FakeClock

BUCKETS = ("token_bucket", "leaking_bucket", "gcra")
PERIOD = 3000  # µs


class Model(ABC):
    """So many per PERIOD; `last` is the slot taken last."""

    def __init__(self, limit: int, burst: int) -> None:
        self.limit = limit
        self.burst = burst
        self.last = 0

    @property
    def capacity(self) -> int:
        return self.limit

    @abstractmethod
    def fits(self, instant: int, cost: int) -> bool:
        """Whether it fits at an instant not before the last slot."""

    @abstractmethod
    def take(self, instant: int, cost: int) -> None: ...

    @abstractmethod
    def fresh(self, instant: int) -> bool:
        """Whether nothing of what was taken counts any more."""

    def wait(self, now: int, cost: int) -> float:
        if cost == 0:
            return 0
        if cost > self.capacity:
            return inf
        return self._earliest(max(now, self.last), lambda t: self.fits(t, cost)) - now

    def remaining(self, now: int) -> int:
        if self.last > now:
            return 0
        return max(cost for cost in range(self.capacity + 1) if not cost or self.fits(now, cost))

    def reset_after(self, now: int) -> int:
        return self._earliest(max(now, self.last), self.fresh) - now

    @staticmethod
    def _earliest(begin: int, fine: object) -> int:
        """The first instant at which it is fine; once fine, it stays so."""
        assert callable(fine)
        if fine(begin):
            return begin
        step = 1
        while not fine(begin + step):
            step *= 2
        low, high = begin + step // 2, begin + step
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if fine(middle) else (middle, high)
        return high


class TokenBucket(Model):
    """Tokens drip in at the rate, up to the burst; a call takes its tokens out."""

    tokens: Fraction | None = None

    @property
    def capacity(self) -> int:
        return self.burst

    def _tokens(self, instant: int) -> Fraction:
        if self.tokens is None:
            return Fraction(self.burst)
        dripped = Fraction((instant - self.last) * self.limit, PERIOD)
        return min(Fraction(self.burst), self.tokens + dripped)

    def fits(self, instant: int, cost: int) -> bool:
        return self._tokens(instant) >= cost

    def take(self, instant: int, cost: int) -> None:
        self.tokens, self.last = self._tokens(instant) - cost, instant

    def fresh(self, instant: int) -> bool:
        return self._tokens(instant) == self.burst


class LeakyBucket(TokenBucket):
    """A call pours water in, the water leaks at the rate, and the bucket must not overflow."""

    water = Fraction(0)

    def _water(self, instant: int) -> Fraction:
        leaked = Fraction((instant - self.last) * self.limit, PERIOD)
        return max(Fraction(0), self.water - leaked)

    def fits(self, instant: int, cost: int) -> bool:
        return self._water(instant) + cost <= self.burst

    def take(self, instant: int, cost: int) -> None:
        self.water, self.last = self._water(instant) + cost, instant

    def fresh(self, instant: int) -> bool:
        return self._water(instant) == 0


class Gcra(TokenBucket):
    """Virtual scheduling: a theoretical arrival time, and how far it may run ahead."""

    tat = Fraction(0)

    def _after(self, instant: int, cost: int) -> Fraction:
        return max(Fraction(instant), self.tat) + cost * Fraction(PERIOD, self.limit)

    def fits(self, instant: int, cost: int) -> bool:
        tolerance = self.burst * Fraction(PERIOD, self.limit)
        return self._after(instant, cost) - instant <= tolerance

    def take(self, instant: int, cost: int) -> None:
        self.tat, self.last = self._after(instant, cost), instant

    def fresh(self, instant: int) -> bool:
        return self.tat <= instant


class Entries(Model):
    """Remembers every slot and what was taken for it."""

    def __init__(self, limit: int, burst: int) -> None:
        super().__init__(limit, burst)
        self.entries: list[tuple[int, int]] = []

    def take(self, instant: int, cost: int) -> None:
        self.entries.append((instant, cost))
        self.last = instant

    def count(self, begin: int, end: int) -> int:
        """What was taken from begin to before end."""
        return sum(cost for slot, cost in self.entries if begin <= slot < end)


class FixedWindow(Entries):
    """At most limit in each window."""

    def fits(self, instant: int, cost: int) -> bool:
        start = instant - instant % PERIOD
        return self.count(start, start + PERIOD) + cost <= self.limit

    def fresh(self, instant: int) -> bool:
        start = instant - instant % PERIOD
        return self.count(start, start + PERIOD) == 0


class SlidingWindow(Entries):
    """The previous window's count in the share still in sight, and the current one's."""

    def fits(self, instant: int, cost: int) -> bool:
        start = instant - instant % PERIOD
        share = Fraction(start + PERIOD - instant, PERIOD)
        previous = self.count(start - PERIOD, start)
        return previous * share + self.count(start, start + PERIOD) + cost <= self.limit

    def fresh(self, instant: int) -> bool:
        start = instant - instant % PERIOD
        return self.count(start - PERIOD, start + PERIOD) == 0


class SlidingWindowLog(Entries):
    """At most limit in any trailing period."""

    def fits(self, instant: int, cost: int) -> bool:
        return self.count(instant - PERIOD + 1, instant + 1) + cost <= self.limit

    def fresh(self, instant: int) -> bool:
        return self.count(instant - PERIOD + 1, instant + 1) == 0


MODELS: dict[str, type[Model]] = {
    "fixed_window": FixedWindow,
    "sliding_window": SlidingWindow,
    "sliding_window_log": SlidingWindowLog,
    "token_bucket": TokenBucket,
    "leaking_bucket": LeakyBucket,
    "gcra": Gcra,
}

#: (µs that pass, cost, patience in µs)
steps = st.lists(
    st.tuples(
        st.one_of(
            st.just(0), st.integers(0, PERIOD // 4), st.integers(0, 3 * PERIOD), st.just(PERIOD)
        ),
        st.integers(0, 8),
        st.one_of(st.just(0), st.just(LOOK), st.integers(0, 4 * PERIOD), st.just(FOREVER)),
    ),
    max_size=40,
)
#: Some that divide the period and some that do not.
limits = st.sampled_from([1, 2, 3, 5, 7])


def agree(algorithm: str, model: Model, history: list[tuple[int, int, float]]) -> None:
    rig = Rig(Kind("memory"), algorithm)
    plan = rig.plan(f"{model.limit}/{PERIOD // 1000}ms burst {model.burst}")
    for elapsed, cost, patience in history:
        rig.after(elapsed)
        now = int(rig.now)
        expected = model.wait(now, cost)
        _, wait, remaining, reset_after = rig.run(plan, "key", cost, patience)
        assert wait == expected
        if cost and expected <= patience:
            model.take(int(now + expected), cost)
        assert remaining == model.remaining(now)
        assert reset_after == model.reset_after(now)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_agrees_with_its_textbook_model(algorithm: str) -> None:
    @given(limits, st.integers(1, 7), steps)
    def check(limit: int, burst: int, history: list[tuple[int, int, float]]) -> None:
        agree(algorithm, MODELS[algorithm](limit, burst), history)

    check()


@pytest.mark.parametrize("algorithm", BUCKETS)
@pytest.mark.parametrize("model", [TokenBucket, LeakyBucket, Gcra])
def test_the_three_buckets_are_one(algorithm: str, model: type[Model]) -> None:
    """ITU-T I.371: each name agrees with the models of all three."""

    @given(limits, st.integers(1, 7), steps)
    def check(limit: int, burst: int, history: list[tuple[int, int, float]]) -> None:
        agree(algorithm, model(limit, burst), history)

    check()


# -- plans ----------------------------------------------------------------------------------------


def test_names() -> None:
    assert set(RateLimiterType.choice()) == set(ALGORITHMS)
    assert [member.value for member in RateLimiterType] == RateLimiterType.choice()
    for member in RateLimiterType:
        plan = make_plan(member, Quota.parse("1/s"))
        assert plan is make_plan(member.value, Quota.parse("1/s"))
        assert plan.prefix == f"throttled:v1:{member.value}:1000000:"


def test_a_rule_name_keeps_two_rules_apart() -> None:
    quota = Quota.parse("1/s")
    assert make_plan("gcra", quota, "app", "login").prefix == "app:v1:gcra:1000000:login:"


def test_a_limit_does_not_change_the_keys_and_a_period_does() -> None:
    plans = [make_plan("gcra", Quota.parse(text)) for text in ("1/m", "9/m burst 20", "9/61s")]
    assert plans[0].prefix == plans[1].prefix != plans[2].prefix


@pytest.mark.parametrize("prefix", ["", "a{b", "a}b", 7])
def test_prefix_must_leave_the_hash_tag_alone(prefix: object) -> None:
    with pytest.raises(DataError, match="Invalid key_prefix: "):
        make_plan("gcra", Quota.parse("1/s"), prefix)  # type: ignore[arg-type]


@pytest.mark.parametrize("using", ["", "GCRA", "bucket", None, 1, RateLimiterType])
def test_unknown_algorithm(using: object) -> None:
    with pytest.raises(DataError) as error:
        make_plan(using, Quota.parse("1/s"))
    assert repr(using) in str(error.value)
    assert "token_bucket" in str(error.value)


def test_a_log_has_an_end() -> None:
    make_plan("sliding_window_log", Quota.parse("1000000/d"))
    with pytest.raises(DataError, match=r"1000001.*at most 1000000.*sliding_window"):
        make_plan("sliding_window_log", Quota.parse("1000001/d"))


def test_running_totals_of_a_log_start_afresh() -> None:
    """They may grow for years; beyond 2**52 the log is numbered anew, in both its tongues."""
    plan = make_plan("sliding_window_log", Quota.parse("5/s"))
    now, huge = 1_700_000_000_000_000.0, 2.0**52
    slots = array("d", [now - 1_500_000, now - 300_000, now - 200_000])
    befores = array("d", [huge, huge + 1, huge + 3])
    old = (now - 200_000, slots, befores, 0, 3, huge + 4)
    dumped = plan.dump(old)

    new, (times, totals, index, slot, before) = plan.take(old, now, 2)
    times[index], totals[index] = slot, before
    assert plan.dump(old) == dumped, "what an older state means does not change"
    assert plan.dump(new) == tuple(
        f"{n:.17g}" for n in (0, now - 300_000, 2, now - 200_000, 3, now, 5)
    )

    client = fakeredis.FakeRedis(decode_responses=True)
    name = f"{plan.prefix}{{key}}"
    client.rpush(name, *dumped)
    store = RedisStore(client=client, clock=FakeClock(now / 1e6))
    assert store.run(plan, "key", 2, 0.0)[1:] == (0.0, 0.0, 1_000_000.0)
    assert tuple(client.lrange(name, 0, -1)) == plan.dump(new)
