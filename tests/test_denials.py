"""Local refusals: what the server refused a moment ago is refused again without asking it, and
nothing that it would admit."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import fakeredis
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import callers as shared
from tests import servers
from tests.callers import PATIENT, Callers, counted, results
from throttled import Throttled
from throttled.algorithms.plan import ALGORITHMS, make_plan
from throttled.quota import Quota
from throttled.store import denials
from throttled.store.redis import RedisStore
from throttled.testing import FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.servers import Proxy, Server

valkey, key, proxy = servers.valkey, shared.key, shared.proxy
callers = shared.callers
on_server = pytest.mark.server


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(1_700_000_000.123457)


class Limit:
    """A limit on a real server and on a clock that the test moves, and how often it asks."""

    def __init__(self, callers: Callers, server: Server, clock: Any, key: str, url: str) -> None:
        self._callers = callers
        self._server = server
        self._url = url or server.url
        self.clock = clock
        self.key = key
        self.store: Any = None

    def at(self, quota: str, using: str = "token_bucket", **options: Any) -> Any:
        """The limiter of a quota, on a store with these options if there is none yet."""
        if self.store is None:
            options = {**PATIENT, **options}
            self.store = self._callers.store(self._url, options, clock=self.clock)
        return self._callers.limiter(self.store, quota, using=using, key_prefix=self.key)

    def source(self, limiter: Any, *args: Any, **kwargs: Any) -> str:
        """Who decides a call; "local-deny" and only that makes no run of the script."""
        with counted(self._server) as sizes:
            result = self._callers.wait(limiter.limit, "key", *args, **kwargs)
        assert bool(sizes) == (result.source != "local-deny")
        assert result.limited or result.source == "server"
        return str(result.source)

    def drained(self, quota: str, using: str = "token_bucket", **options: Any) -> Any:
        """A limiter of a quota that is used up, and was found to be."""
        limiter = self.at(quota, using, **options)
        while self._callers.wait(limiter.limit, "key").allowed:
            pass
        return limiter


@pytest.fixture
def limit(callers: Callers, valkey: Server, clock: FakeClock, key: str) -> Limit:
    return Limit(callers, valkey, clock, key, "")


# --- what is refused without asking --------------------------------------------------------------


@on_server
@pytest.mark.parametrize("real_time", [True, False])
def test_a_flood_of_refused_calls_costs_the_server_nothing(
    callers: Callers, valkey: Server, clock: FakeClock, key: str, real_time: bool
) -> None:
    options = {"LOCAL_DENY_SECONDS": 60.0}
    store = callers.store(valkey.url, options, clock=None if real_time else clock)
    limiter = callers.limiter(store, "1/d")
    assert callers.wait(limiter.limit, key).allowed
    first = callers.wait(limiter.limit, key)
    assert (first.limited, first.source) == (True, "server")
    with counted(valkey) as sizes:
        answers = results([callers.call(limiter.limit, key) for _ in range(100)])
    assert sizes == []
    for answer in answers:
        assert (answer.limited, answer.source) == (True, "local-deny")
        assert answer.state.limit == 1
        assert answer.state.remaining == 0
        assert 86_399 - 60 < answer.state.retry_after <= 86_400


@on_server
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_state_counts_down_as_the_servers_does(
    callers: Callers, limit: Limit, algorithm: str
) -> None:
    limiter = limit.drained("7/3m", algorithm)
    other = callers.store(limit.store._server, {"LOCAL_DENY_SECONDS": 0}, clock=limit.clock)
    asking = callers.limiter(other, "7/3m", using=algorithm, key_prefix=limit.key)
    for step in (0.0, 0.000001, 0.1, 0.333333, 0.5):
        limit.clock.advance(step)
        here, there = (callers.wait(each.limit, "key") for each in (limiter, asking))
        assert (here.source, there.source) == ("local-deny", "server")
        assert here == there, "to the µs"


@on_server
def test_it_asks_again_at_the_instant_and_not_before(limit: Limit) -> None:
    limiter = limit.drained("10/s burst 1")
    limit.clock.advance(0.099999)
    assert limit.source(limiter) == "local-deny"
    limit.clock.advance(0.000001)
    assert limit.source(limiter) == "server"


@on_server
@pytest.mark.parametrize(("options", "seconds"), [({}, 1.0), ({"LOCAL_DENY_SECONDS": 0.25}, 0.25)])
def test_it_asks_again_after_a_second_at_most(
    limit: Limit, options: dict[str, float], seconds: float
) -> None:
    limiter = limit.drained("1/d", **options)
    limit.clock.advance(seconds - 0.000001)
    assert limit.source(limiter) == "local-deny"
    limit.clock.advance(0.000001)
    assert limit.source(limiter) == "server"
    assert limit.source(limiter) == "local-deny", "refused once more, remembered once more"


@on_server
def test_it_can_be_switched_off(limit: Limit) -> None:
    limiter = limit.drained("1/d", LOCAL_DENY_SECONDS=0)
    assert [limit.source(limiter) for _ in range(3)] == ["server"] * 3


@on_server
def test_it_holds_for_that_cost_and_more(limit: Limit, callers: Callers) -> None:
    limiter = limit.at("10/d")
    assert limit.source(limiter, 6) == "server"
    assert limit.source(limiter, 5) == "server"
    assert limit.source(limiter, 5) == "local-deny"
    assert limit.source(limiter, 11) == "local-deny"
    assert callers.wait(limiter.limit, "key", 11).state.retry_after == float("inf")
    assert limit.source(limiter, 4) == "server", "a smaller one may fit, and does"
    assert limit.source(limiter, 1) == "server", "it was never refused"
    assert limit.source(limiter, 1) == "local-deny"
    assert limit.source(limiter, 0) == "server"


@on_server
def test_who_would_wait_that_long_is_asked_for(limit: Limit) -> None:
    limiter = limit.drained("2/s burst 1")
    assert limit.source(limiter, timeout=0.499999) == "local-deny"
    assert limit.source(limiter, timeout=0.5) == "server"


@on_server
def test_it_holds_for_that_key_and_that_plan(limit: Limit, callers: Callers) -> None:
    limiter = limit.drained("1/d")
    assert callers.wait(limiter.limit, "another").source == "server"
    assert limit.source(limit.at("1/d")) == "local-deny", "an equal limit of the same store"
    # The same key in Redis, by another quota: as many a day, and a few at once.
    assert limit.source(limit.at("1/d burst 5")) == "server"


@on_server
def test_many_calls_at_once_are_refused_alike(limit: Limit, callers: Callers) -> None:
    limiter = limit.drained("1/d")
    with counted(limit._server) as sizes:
        answers = callers.wait(limiter.limit_many, ["key", "fresh", ("key", 2), "key"])
        assert callers.wait(limiter.limit_many, ["key"] * 5)[0].source == "local-deny"
    assert sizes == [1], "only the fresh one was asked for"
    assert [answer.source for answer in answers] == [
        "local-deny", "server", "local-deny", "local-deny"
    ]  # fmt: skip
    # And what they find is remembered.
    callers.wait(limiter.limit_many, ["other", "other"])
    assert callers.wait(limiter.limit, "other").source == "local-deny"


@on_server
def test_a_look_always_asks(limit: Limit, callers: Callers) -> None:
    limiter = limit.drained("1/d")
    with counted(limit._server) as sizes:
        assert callers.wait(limiter.peek, "key").retry_after == 86_400
    assert sizes == [1]
    # And what it finds is no refusal.
    fresh = limit.at("2/d")
    callers.wait(fresh.peek, "other", 3)
    assert callers.wait(fresh.limit, "other", 3).source == "server"


# --- what makes it ask again ---------------------------------------------------------------------


def reset(limit: Limit, limiter: Any, promise: Any) -> tuple[Any, ...]:
    return limit.store.reset, limiter._terms.plan, "key"


def refund(limit: Limit, limiter: Any, promise: Any) -> tuple[Any, ...]:
    return limit.store.adjust, limiter._terms.plan, "key", -1


def withdraw(limit: Limit, limiter: Any, promise: Any) -> tuple[Any, ...]:
    return limit.store.withdraw, promise


def undo(limit: Limit, limiter: Any, promise: Any) -> tuple[Any, ...]:
    return limit.store.undo, promise


CHANGES = pytest.mark.parametrize("change", [reset, refund, withdraw, undo])


@on_server
@CHANGES
def test_who_gives_back_through_the_store_is_heard_at_once(
    limit: Limit, callers: Callers, change: Callable[..., tuple[Any, ...]]
) -> None:
    limiter = limit.at("1/d burst 2")
    limit.source(limiter, 2 if change in (reset, refund) else 1)
    promise = None
    if change in (withdraw, undo):
        # A slot far away, which leaves nothing for a cost of 1 before it.
        promise = callers.wait(limit.store.run, limiter._terms.plan, "key", 2, 1e15)[0]
    assert limit.source(limiter) == "server"
    assert limit.source(limiter) == "local-deny"
    callers.wait(*change(limit, limiter, promise))
    assert callers.wait(limiter.limit, "key").allowed


@on_server
@CHANGES
def test_a_refusal_that_was_under_way_meanwhile_is_not_believed(
    callers: Callers,
    valkey: Server,
    proxy: Proxy,
    clock: FakeClock,
    key: str,
    change: Callable[..., tuple[Any, ...]],
) -> None:
    limit = Limit(callers, valkey, clock, key, proxy.url)
    limiter = limit.at("1/d burst 2")
    callers.wait(limiter.limit, "key", 2 if change in (reset, refund) else 1)
    promise = None
    if change in (withdraw, undo):
        promise = callers.wait(limit.store.run, limiter._terms.plan, "key", 2, 1e15)[0]
    proxy.mode = "hold"
    refused = callers.call(limiter.limit, "key")
    assert proxy.caught.wait(servers.PATIENCE)
    given_back = callers.join(limit.store, *_as_call(change(limit, limiter, promise)))
    proxy.mode = "pass"
    assert refused.result(30).limited
    results(given_back)
    assert callers.wait(limiter.limit, "key").allowed


def _as_call(change: tuple[Any, ...]) -> tuple[Any, list[tuple[Any, ...]]]:
    return change[0], [change[1:]]


def test_a_refusal_from_before_something_was_given_back_is_not_believed(clock: FakeClock) -> None:
    remembered = denials.Denials(1.0, clock)
    plan = make_plan("token_bucket", Quota.parse("1/d"))
    refusal = (None, 8.64e10, 0.0, 8.64e10)
    asked_at = remembered.taken_back
    remembered.forget(plan, "another")
    remembered.refused(plan, "key", 1, clock(), refusal, asked_at)
    assert not remembered
    remembered.refused(plan, "key", 1, clock(), refusal, remembered.taken_back)
    assert len(remembered) == len(remembered.at_hand) == 1


@on_server
def test_it_counts_from_when_the_call_was_sent(
    callers: Callers, valkey: Server, proxy: Proxy, clock: FakeClock, key: str
) -> None:
    limit = Limit(callers, valkey, clock, key, proxy.url)
    limiter = limit.at("2/s burst 1")
    callers.wait(limiter.limit, "key")
    proxy.mode = "hold"
    refused = callers.call(limiter.limit, "key")
    assert proxy.caught.wait(servers.PATIENCE)
    clock.advance(0.4)
    proxy.mode = "pass"
    assert refused.result(30).state.retry_after == 0.5
    clock.advance(0.099999)
    answer = callers.wait(limiter.limit, "key")
    assert answer.source == "local-deny"
    # From when the answer came: who sleeps that long does not come too early.
    assert answer.state.retry_after == pytest.approx(0.400001, abs=1e-6)
    clock.advance(0.000001)
    assert callers.wait(limiter.limit, "key").allowed


# --- what it may never do ------------------------------------------------------------------------

STEP = st.one_of(
    st.tuples(st.just("limit"), st.integers(1, 7), st.sampled_from([None, None, 0.05, 0.6, 3.0])),
    st.tuples(st.just("many"), st.integers(1, 4), st.integers(1, 4)),
    st.tuples(st.just("peek"), st.integers(1, 4), st.none()),
    st.tuples(st.just("adjust"), st.integers(-3, 3), st.none()),
    st.tuples(st.just("reset"), st.none(), st.none()),
    st.tuples(
        st.just("advance"),
        st.sampled_from([1e-6, 0.05, 0.199999, 0.2, 0.333333, 0.5, 1.0, 2.3]),
        st.none(),
    ),
)


class Twin:
    """A limiter on a server of its own, which is refused locally, or never."""

    def __init__(self, algorithm: str, quota: str, seconds: float, stack: ExitStack) -> None:
        self.clock = FakeClock(1_700_000_000.123457)
        client = stack.enter_context(fakeredis.FakeRedis(server=fakeredis.FakeServer()))
        options = {"LOCAL_DENY_SECONDS": seconds, **PATIENT}
        self.store = RedisStore(client=client, options=options, clock=self.clock)
        stack.enter_context(self.store)
        self.limiter = Throttled(using=algorithm, quota=quota, store=self.store)

    def take(self, what: str, one: Any, two: Any) -> list[Any]:
        """Take a step: the answers that it had."""
        if what == "limit":
            return [self.limiter.limit("key", one, two)]
        if what == "many":
            return self.limiter.limit_many([("key", one), ("key", two), ("key", one)])
        if what == "promise":
            self.store.run(self.limiter._terms.plan, "key", one, 1e9)
        elif what == "peek":
            self.limiter.peek("key", one)
        elif what == "adjust":
            self.store.adjust(self.limiter._terms.plan, "key", one)
        elif what == "reset":
            self.store.reset(self.limiter._terms.plan, "key")
        else:
            self.clock.advance(one)
        return []


@settings(max_examples=100)
@given(
    algorithm=st.sampled_from(list(ALGORITHMS)),
    quota=st.sampled_from(["5/s", "3/2s", "10/s burst 2", "2/300ms", "6/m burst 4"]),
    steps=st.lists(STEP, min_size=4, max_size=20),
)
def test_nothing_is_refused_that_the_server_would_admit(
    algorithm: str, quota: str, steps: list[tuple[str, Any, Any]]
) -> None:
    with ExitStack() as stack:
        here, there = (Twin(algorithm, quota, seconds, stack) for seconds in (1.0, 0))
        for step in steps:
            for ours, theirs in zip(here.take(*step), there.take(*step), strict=True):
                assert theirs.source == "server"
                assert ours.limited == theirs.limited
            assert here.clock.now == there.clock.now, "they waited equally long"


@pytest.mark.parametrize("algorithm", ["token_bucket", "sliding_window", "fixed_window"])
@pytest.mark.parametrize(
    "meanwhile",
    [
        pytest.param([("limit", 10, None), ("limit", 1, None)], id="more is asked for"),
        pytest.param(
            [("limit", 8, None), ("limit", 5, None), ("limit", 2, None)], id="less was admitted"
        ),
        pytest.param(
            [("limit", 10, None), ("limit", 5, None), ("promise", 8, None)], id="a promise was made"
        ),
    ],
)
def test_who_sleeps_as_told_does_not_come_too_early(
    algorithm: str, meanwhile: list[tuple[str, Any, Any]]
) -> None:
    with ExitStack() as stack:
        twin = Twin(algorithm, "10/s", 1.0, stack)
        for step in [*meanwhile, ("advance", 0.05, None)]:
            twin.take(*step)
        told = twin.limiter.limit("key", 5).state.retry_after
        twin.clock.advance(told)
        assert twin.limiter.limit("key", 5).allowed


# --- bounds --------------------------------------------------------------------------------------


def test_only_so_many_refusals_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(denials, "MAX_DENIALS", 3)
    with fakeredis.FakeRedis(server=fakeredis.FakeServer()) as client:
        store = RedisStore(client=client, clock=FakeClock())
        limiter = Throttled(quota="1/d", store=store)
        for number in range(5):
            limiter.limit_many([f"key {number}"] * 2)
            assert len(store._denials) == len(store._denials.at_hand) <= 3
        assert [limiter.limit(f"key {n}").source for n in (4, 3, 2)] == ["local-deny"] * 3
        assert limiter.limit("key 0").source == "server", "the eldest were forgotten"
        assert set(store._denials) == set(store._denials.at_hand)


def test_stores_do_not_hear_of_each_others_refusals() -> None:
    with fakeredis.FakeRedis(server=fakeredis.FakeServer()) as client:
        one, two = (
            Throttled(quota="1/d", store=RedisStore(client=client, clock=FakeClock()))
            for _ in range(2)
        )
        assert [one.limit("key").source for _ in range(3)] == ["server", "server", "local-deny"]
        assert two.limit("key").source == "server"
