"""Several rules of one key: a call keeps all of them, or takes from none."""

from __future__ import annotations

import asyncio
import multiprocessing
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import permutations, product
from math import inf
from typing import Any

import fakeredis
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.contract import FOREVER, PATIENT, STORES, Kind, MakeRig, Rig
from tests.joints import ALGORITHMS, KEY, admit, drain, dumps, joint_of, look_of, plans_of
from tests.servers import Server
from throttled import MemoryStore, Rule, Throttled
from throttled.algorithms.plan import LOOK, Joint
from throttled.asyncio import Throttled as AsyncThrottled
from throttled.asyncio.store import RedisStore as AsyncRedisStore
from throttled.exceptions import DataError, StateError, StoreUnavailableError
from throttled.store import RedisStore
from throttled.testing import FakeClock

stores = pytest.mark.parametrize("kind", STORES)
pairs = [*product(ALGORITHMS, repeat=2)]


def each_pair(rig: Rig, first: str = "5/s", second: str = "7/m") -> Iterator[tuple[Joint, Any]]:
    """A joint of every two algorithms in either order, on keys of its own, and its plans."""
    prefix = rig.prefix
    for place, (one, two) in enumerate(pairs):
        rig.prefix = f"{prefix}-{place}"
        plans = plans_of(rig, [(one, first), (two, second)])
        yield joint_of(rig, plans), plans
    rig.prefix = prefix


# -- all or nothing -------------------------------------------------------------------------------


@stores
def test_a_refusal_by_any_rule_takes_from_none(make_rig: MakeRig, kind: Kind) -> None:
    rig = make_rig(kind)
    for joint, plans in each_pair(rig):
        assert admit(rig, joint, 2)[0].allowed
        for exhausted in plans:
            rig.after(61e6)
            admit(rig, joint, 2)
            drain(rig, exhausted)
            found = dumps(rig, plans)
            if not rig.kind.memory:
                for plan in plans:
                    rig.raw.pexpire(rig.name(plan, KEY), 500_000)
            for cost, patience in [(1, 0), (3, 0), (1, 1), (8, FOREVER), (10**9, 0), (0, 0)]:
                answer, ticket = admit(rig, joint, cost, patience)
                assert answer.limited == (cost > 0)
                assert ticket is None
                result = rig.wait(rig.store.bind(joint)(KEY, cost, patience if cost else LOOK))
                assert result.limited == (cost > 0)
            assert dumps(rig, plans) == found
            if not rig.kind.memory:
                ttls = [rig.ttl(plan, KEY) for plan in plans]
                assert all(450_000 < ttl <= 500_000 for ttl in ttls), "no TTL moves"


@stores
def test_a_refused_call_leaves_no_key(make_rig: MakeRig, kind: Kind) -> None:
    rig = make_rig(kind)
    for joint, plans in each_pair(rig):
        assert admit(rig, joint, 6)[0].state.retry_after == inf, "more than 5, and less than 7"
        assert admit(rig, joint, 6, FOREVER)[0].state.retry_after == inf, "at once"
        look_of(rig, joint, 3)
        admit(rig, joint, 0)
        assert dumps(rig, plans) == [None, None]


@stores
def test_an_admission_takes_from_all_what_each_would_take_alone(
    make_rig: MakeRig, kind: Kind
) -> None:
    rig, alone = make_rig(kind), Rig(Kind("memory"))
    for joint, plans in each_pair(rig):
        for cost in (1, 2):
            alone.clock.set(rig.clock.now)
            answer, ticket = admit(rig, joint, cost)
            assert answer.allowed
            assert [part.cost for part in ticket.parts] == [cost, cost]
            for plan in plans:
                alone.run(plan, KEY, cost)
            assert dumps(rig, plans) == [alone.dump(plan, KEY) for plan in plans]
            rig.after(100)


@stores
def test_three_rules_are_taken_or_none(make_rig: MakeRig, kind: Kind) -> None:
    rig = make_rig(kind)
    prefix = rig.prefix
    for place, order in enumerate(permutations(ALGORITHMS, 3)):
        rig.prefix = f"{prefix}-{place}"
        plans = plans_of(rig, [(name, quota) for name, quota in zip(order, QUOTAS, strict=True)])
        joint = joint_of(rig, plans)
        assert [admit(rig, joint)[0].limited for _ in range(4)] == [False, False, False, True]
        found = dumps(rig, plans)
        assert admit(rig, joint, 1, 1e6)[0].limited
        assert dumps(rig, plans) == found


QUOTAS = ("5/s burst 5", "3/m burst 3", "9/h")


@pytest.mark.parametrize("kind", [param for param in STORES if not param.values[0].memory])
@pytest.mark.parametrize("patience", [0.0, FOREVER])
def test_a_damaged_state_of_any_rule_writes_nothing(
    make_rig: MakeRig, kind: Kind, patience: float
) -> None:
    rig = make_rig(kind)
    for joint, plans in each_pair(rig, "5/s burst 5", "3/m burst 3"):
        for bad, good in ((0, 1), (1, 0)):
            damaged = rig.name(plans[bad], KEY)
            for damage in ("text", "another type"):
                rig.raw.delete(*[rig.name(plan, KEY) for plan in plans])
                drain(rig, plans[good])
                if damage == "text":
                    rig.raw.set(damaged, "1 2 three 4")
                else:
                    rig.raw.hset(damaged, "field", "value")
                found = rig.dump(plans[good], KEY)
                # A clock that has stepped back makes each rule write, even when it refuses.
                for step in (0, -400_000_000):
                    rig.clock.set((rig.now + step) / 1e6)
                    with pytest.raises(StateError):
                        admit(rig, joint, 1, patience)
                    with pytest.raises(StateError):
                        look_of(rig, joint)
                    assert rig.dump(plans[good], KEY) == found
                rig.after(400_000_000)
                if damage == "text":
                    assert rig.raw.get(damaged) == b"1 2 three 4"


@pytest.mark.server
@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_a_server_out_of_memory_writes_nothing(server: Server, asynchronous: bool) -> None:
    kind = Kind("valkey", asynchronous)
    with server.client() as raw:
        rig = Rig(kind, "", server.url, raw)
        rig.prefix = f"memory-{time.monotonic_ns()}"
        try:
            for joint, plans in each_pair(rig, "1000/d", "3/m burst 3"):
                for free in (3, 0):  # what is free by the second rule: it has to wait, or not
                    assert admit(rig, joint, 1 if free else 3)[0].allowed
                    found = dumps(rig, plans)
                    raw.config_set("maxmemory", "1")
                    try:
                        with pytest.raises(StoreUnavailableError, match="maxmemory"):
                            admit(rig, joint, 1, FOREVER)
                        with pytest.raises(StoreUnavailableError, match="maxmemory"):
                            admit(rig, joint, 3 if free == 0 else 1, 1e12)
                    finally:
                        raw.config_set("maxmemory", "0")
                    assert dumps(rig, plans) == found
                    rig.after(600e6)
        finally:
            rig.close()


# -- what is answered -----------------------------------------------------------------------------


@stores
def test_the_wait_is_that_of_the_slowest_and_is_exact(make_rig: MakeRig, kind: Kind) -> None:
    rig = make_rig(kind)
    for joint, plans in each_pair(rig, "5/s burst 5", "3/m burst 3"):
        rig.after(61e6)
        for plan in plans:
            drain(rig, plan)
        waits = [rig.look(plan, KEY)[0] for plan in plans]
        result = admit(rig, joint)[0]
        assert result.state.retry_after == max(waits) / 1e6
        assert result.rule is joint.rules[1]
        assert [state.retry_after for state in result.states] == [wait / 1e6 for wait in waits]
        rig.after(max(waits) - 1)
        assert admit(rig, joint)[0].state.retry_after == 1e-6
        rig.after(1)
        assert admit(rig, joint)[0].allowed


@stores
def test_a_result_has_all_rules_and_the_one_that_binds(make_rig: MakeRig, kind: Kind) -> None:
    rig = make_rig(kind)
    limiter = rig.limiter([Rule("10/s", using="gcra"), Rule("12/h", using="fixed_window")])
    result = limiter.limit("key", 4)
    assert [str(rule.quota) for rule in result.rules] == ["10/s", "12/h"]
    assert [rule.using for rule in result.rules] == ["gcra", "fixed_window"]
    assert [(state.limit, state.remaining) for state in result.states] == [(10, 6), (12, 8)]
    assert (result.binding, result.rule) == (0, result.rules[0]), "fewer of the same fit"
    assert result.state == result.states[0]
    assert not result.held
    rig.after(400_000)
    result = limiter.limit("key", 4)
    assert [state.remaining for state in result.states] == [6, 4]
    assert result.rule == result.rules[1]
    rig.after(400_000)
    result = limiter.limit("key", 5)
    assert result.limited
    assert result.rule == result.rules[1]
    assert result.states[0].retry_after == 0, "it would let it pass"
    assert result.state.retry_after > 0
    peeked = limiter.peek("key", 5)
    assert peeked == result.state


@stores
def test_what_can_never_fit_binds(make_rig: MakeRig, kind: Kind) -> None:
    rig = make_rig(kind)
    limiter = rig.limiter([Rule("10/s", using="gcra"), Rule("12/h", using="fixed_window")])
    assert limiter.limit("key", 8).allowed
    result = limiter.limit("key", 11)
    assert (result.rule, result.state.retry_after) == (result.rules[0], inf)
    assert limiter.limit("key", 13).state.retry_after == inf


@stores
def test_text_holds_several_rules(make_rig: MakeRig, kind: Kind) -> None:
    rig = make_rig(kind)
    limiter = rig.limiter("2/s; 3/m burst 3")
    assert [limiter.limit("key").limited for _ in range(3)] == [False, False, True]
    rig.after(1_000_000)
    assert [limiter.limit("key").limited for _ in range(2)] == [False, True]
    assert limiter.limit("key").state.retry_after > 1


@stores
def test_a_fixed_cost_is_what_every_call_costs_by_that_rule(make_rig: MakeRig, kind: Kind) -> None:
    rig = make_rig(kind)
    limiter = rig.limiter([Rule("5/m", cost=1, name="requests"), Rule("1000/m", name="tokens")])
    result = limiter.limit("key", 300)
    assert [state.remaining for state in result.states] == [4, 700]
    assert limiter.limit("key", 0).states == result.states
    assert limiter.limit("key", 1001).state.retry_after == inf
    for _ in range(4):
        result = limiter.limit("key", 10)
    assert [state.remaining for state in result.states] == [0, 660]
    assert limiter.limit("key", 10).rule == Rule("5/m", "token_bucket", 1, "requests")
    alone = rig.limiter(Rule("7/s", cost=3, using="fixed_window"))
    results = [alone.limit("other", cost) for cost in (1, 500, 1)]
    assert [result.state.remaining for result in results] == [4, 1, 1]
    assert [result.limited for result in results] == [False, False, True]


def test_rules_that_would_count_into_one_another_need_names() -> None:
    for same in ("5/s; 7/s", [Rule("5/s"), Rule("5/s burst 9")], [Rule("1/m"), Rule("2/60s")]):
        with pytest.raises(DataError, match="name"):
            Throttled(quota=same, store=MemoryStore())
    for fine in ("5/s; 7/m", [Rule("5/s", "gcra"), "7/s"], [Rule("5/s", name="a"), "7/s"]):
        Throttled(quota=fine, store=MemoryStore())
    with pytest.raises(DataError, match="never fit"):
        Throttled(quota=[Rule("5/s", cost=6), "7/m"], store=MemoryStore())


# -- waiting --------------------------------------------------------------------------------------


@stores
def test_a_slot_is_the_same_instant_by_all_rules(make_rig: MakeRig, kind: Kind) -> None:
    """Also where one looks a day ahead and the other a tenth of a second."""
    rig = make_rig(kind)
    for joint, (short, _) in each_pair(rig, "3/100ms burst 3", "2/d burst 2"):
        admit(rig, joint, 2)
        tickets = [admit(rig, joint, 1, FOREVER)[1] for _ in range(3)]
        slots = [ticket.slot for ticket in tickets]
        assert slots == sorted(slots)
        assert slots[0] - rig.now >= 1_600_000_000, "by far beyond the shorter period"
        for ticket in tickets:
            assert {part.slot for part in ticket.parts} == {ticket.slot}
        # Whoever only keeps the shorter rule stands behind them, but within a fixed window.
        behind = rig.look(short, KEY, 3)[0] + rig.now
        assert behind >= (slots[-1] if short.kind != "fixed_window" else slots[-1] - 100_000)
        for ticket in reversed(tickets):
            rig.withdraw(ticket)
        rig.after(200_000)
        assert rig.look(short, KEY) == (0, 3, 0), "as if nobody had waited"


@stores
def test_a_promise_into_fresh_keys_leaves_no_key_when_it_is_withdrawn(
    make_rig: MakeRig, kind: Kind
) -> None:
    rig = make_rig(kind)
    for joint, (short, long) in each_pair(rig, "3/100ms burst 3", "2/d burst 2"):
        drain(rig, long)
        found = rig.dump(long, KEY)
        for _ in range(2):
            _, ticket = admit(rig, joint, 1, FOREVER)
            assert rig.dump(short, KEY) is not None
            rig.withdraw(ticket)
            assert rig.dump(short, KEY) is None
            assert rig.dump(long, KEY) == found


@stores
def test_in_a_fixed_window_who_was_put_off_keeps_its_place(make_rig: MakeRig, kind: Kind) -> None:
    """The other rule lets it go on in the middle of a later window. Who comes after it does not go
    on before it, and what both give up leaves no trace."""
    rig = make_rig(kind)
    window, bucket = plans_of(rig, [("fixed_window", "5/s"), ("gcra", "1/2500ms")])
    drain(rig, bucket)
    _, put_off = admit(rig, joint_of(rig, [window, bucket]), 1, FOREVER)
    assert put_off.slot == rig.now + 2_500_000
    _, behind = admit(rig, joint_of(rig, [window]), 1, FOREVER)
    assert behind.slot == put_off.slot
    rig.withdraw(put_off)
    rig.withdraw(behind)
    assert rig.dump(window, KEY) is None


@stores
def test_callers_who_wait_are_served_at_their_slots(make_rig: MakeRig, kind: Kind) -> None:
    rig = make_rig(kind)
    limiter = rig.limiter("10/s burst 1; 3/m burst 3", timeout=60)
    began, served = rig.now, []
    for _ in range(5):
        result = limiter.limit("key")
        assert result.allowed
        assert result.state.retry_after == 0
        served.append((rig.now - began) / 1e6)
    assert served == [0, 0.1, 0.2, 20, 40]
    assert limiter.limit("key", timeout=19).state.retry_after == 20
    assert limiter.limit("another", 2).state.retry_after == inf


# -- many at once ---------------------------------------------------------------------------------

RULES = [Rule("100/366d", using="fixed_window"), Rule("60/366d", using="sliding_window_log")]


def by_threads(throttle: Throttled, count: int = 16) -> int:
    barrier = threading.Barrier(count)

    def run(_: int) -> int:
        barrier.wait()
        return sum(throttle.limit("key").allowed for _ in range(10))

    with ThreadPoolExecutor(count) as pool:
        return sum(pool.map(run, range(count)))


@pytest.mark.parametrize("using", ["gcra", "sliding_window", "sliding_window_log"])
def test_threads_take_exactly_what_two_rules_allow_in_memory(using: str) -> None:
    store = MemoryStore(clock=FakeClock())
    throttle = Throttled(quota=[RULES[0], Rule("60/366d", using=using)], store=store)
    assert by_threads(throttle) == 60
    assert [state.remaining for state in throttle.limit("key").states] == [40, 0]


@pytest.mark.server
def test_threads_take_exactly_what_two_rules_allow_on_a_server(server: Server) -> None:
    with RedisStore(server.url, PATIENT) as store:
        prefix = f"rules-{time.monotonic_ns()}"
        throttle = Throttled(quota=RULES, store=store, key_prefix=prefix)
        assert by_threads(throttle) == 60
        assert [state.remaining for state in throttle.limit("key").states] == [40, 0]


@pytest.mark.server
async def test_tasks_take_exactly_what_two_rules_allow(server: Server) -> None:
    async with AsyncRedisStore(server.url, PATIENT) as store:
        for where in (store, MemoryStore()):
            prefix = f"rules-{time.monotonic_ns()}"
            throttle = AsyncThrottled(quota=RULES, store=where, key_prefix=prefix)
            results = await asyncio.gather(*[throttle.limit("key") for _ in range(100)])
            assert sum(result.allowed for result in results) == 60
            result = await throttle.limit("key")
            assert [state.remaining for state in result.states] == [40, 0]


def in_a_process(url: str, prefix: str) -> int:
    with RedisStore(url, PATIENT) as store:
        throttle = Throttled(quota=RULES, store=store, key_prefix=prefix)
        return sum(throttle.limit("key").allowed for _ in range(40))


@pytest.mark.server
def test_processes_take_exactly_what_two_rules_allow(server: Server) -> None:
    prefix = f"rules-{time.monotonic_ns()}"
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        assert sum(pool.starmap(in_a_process, [(server.url, prefix)] * 3, chunksize=1)) == 60


# -- what is refused without asking ---------------------------------------------------------------


class Twin:
    """Limits on a server of their own, which refuse locally for so many seconds, or never."""

    def __init__(self, rules: list[Rule], seconds: float, stack: ExitStack) -> None:
        self.clock = FakeClock(1_700_000_000.123457)
        client = stack.enter_context(fakeredis.FakeRedis(server=fakeredis.FakeServer()))
        options = {"LOCAL_DENY_SECONDS": seconds, "DECISION_TIMEOUT": 20.0}
        store = RedisStore(client=client, options=options, clock=self.clock)
        stack.enter_context(store)
        self.all = Throttled(quota=rules, store=store, hold=True)
        self.one = Throttled(quota=rules[0], store=store)

    def take(self, what: str, one: Any, two: Any) -> list[Any]:
        match what:
            case "limit":
                return [self.all.limit("key", one, two)]
            case "single":
                return [self.one.limit("key", one, two)]
            case "many":
                return self.all.limit_many([("key", one), ("key", two), ("key", one)])
            case "refund":
                (self.one if two else self.all).refund("key", one)
            case "debit":
                (self.one if two else self.all).debit("key", one)
            case "reset":
                (self.one if two else self.all).reset("key")
            case "penalize":
                self.all.penalize("key", one / 10)
            case _:
                self.clock.advance(one)
        return []


timeouts = st.sampled_from([None, None, 0.05, 0.6, 3.0])
actions = st.one_of(
    st.tuples(st.just("limit"), st.integers(1, 4), timeouts),
    st.tuples(st.just("single"), st.integers(1, 4), timeouts),
    st.tuples(st.just("many"), st.integers(1, 4), st.integers(1, 4)),
    st.tuples(st.just("refund"), st.integers(1, 4), st.booleans()),
    st.tuples(st.sampled_from(["debit", "reset", "penalize"]), st.integers(1, 4), st.booleans()),
    st.tuples(
        st.just("advance"),
        st.sampled_from([1e-6, 0.05, 0.199999, 0.2, 0.333333, 0.5, 1.0, 2.3]),
        st.none(),
    ),
)


@settings(max_examples=80)
@given(
    st.tuples(st.sampled_from(ALGORITHMS), st.sampled_from(ALGORITHMS)),
    st.sampled_from([("5/s", "7/3s burst 5"), ("10/s burst 2", "2/300ms"), ("4/s", "6/m burst 4")]),
    st.lists(actions, min_size=6, max_size=20),
)
def test_nothing_is_refused_locally_that_the_server_would_admit(
    algorithms: tuple[str, str], quotas: tuple[str, str], steps: list[tuple[str, Any, Any]]
) -> None:
    rules = [Rule(quota, using) for quota, using in zip(quotas, algorithms, strict=True)]
    with ExitStack() as stack:
        here, there = (Twin(rules, seconds, stack) for seconds in (1.0, 0))
        for step in steps:
            for ours, theirs in zip(here.take(*step), there.take(*step), strict=True):
                assert theirs.source == "server"
                assert ours.limited == theirs.limited
                if theirs.state.retry_after < inf:
                    assert ours.state.retry_after == theirs.state.retry_after
                assert ours.held == theirs.held
            assert here.clock.now == there.clock.now, "they waited equally long"


def test_what_can_never_fit_is_told_so_by_whoever_refuses_it() -> None:
    with ExitStack() as stack:
        twin = Twin([Rule("1/d", "gcra"), Rule("5/h", "fixed_window")], 60.0, stack)
        assert [twin.all.limit("key").limited for _ in range(2)] == [False, True]
        assert twin.all.limit("key", 2).state.retry_after == inf


def test_a_refusal_is_forgotten_when_a_rule_gives_back_by_whatever_limit() -> None:
    with ExitStack() as stack:
        rules = [Rule("1/d", "gcra"), Rule("5/h", "fixed_window")]
        twin = Twin(rules, 60.0, stack)
        assert [twin.all.limit("key").source for _ in range(3)] == ["server"] * 2 + ["local-deny"]
        twin.one.refund("key", 1)
        assert twin.all.limit("key").allowed
        assert [twin.all.limit("key").source for _ in range(2)] == ["server", "local-deny"]
        twin.one.reset("key")
        assert twin.all.limit("key").allowed
        assert [twin.one.limit("key").source for _ in range(2)] == ["server", "local-deny"]
        twin.all.refund("key", 1)
        assert twin.one.limit("key").allowed
