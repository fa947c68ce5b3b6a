"""What holds for every algorithm on every store, sync and async, with a clock the test moves."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from math import inf
from typing import Any

import pytest

from tests.contract import FOREVER, STORES, Kind, MakeRig, Rig
from throttled.algorithms.plan import ALGORITHMS, LOOK

BUCKETS = ("token_bucket", "leaking_bucket", "gcra")
#: The states in which a key is asked; each leaves it somewhere else.
Situation = Callable[[Rig, Any], None]


@pytest.fixture(params=ALGORITHMS)
def algorithm(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=STORES)
def rig(request: pytest.FixtureRequest, make_rig: MakeRig, algorithm: str) -> Rig:
    return make_rig(request.param, algorithm)


def states(rig: Rig, quota: str = "10/s burst 4") -> list[tuple[Any, str]]:
    """Keys in many states under one plan."""
    plan = rig.plan(quota)
    rig.run(plan, "one", 1)
    rig.run(plan, "full", plan.capacity)
    rig.run(plan, "later", 2)
    rig.run(plan, "in line", plan.capacity)
    rig.promise(plan, "in line")
    rig.promise(plan, "in line", 2)
    rig.adjust(plan, "in debt", plan.capacity + 3)
    rig.after(17_171)
    rig.run(plan, "later", 1)
    rig.run(plan, "just now", plan.capacity)
    rig.after(130_007)
    return [
        (plan, key)
        for key in ("never seen", "one", "full", "later", "in line", "in debt", "just now")
    ]


# -- 1: exactly the quota -------------------------------------------------------------------------


def test_admits_exactly_the_capacity_at_once(rig: Rig) -> None:
    limiter = rig.limiter("7/m")
    assert [limiter.limit("key").limited for _ in range(9)] == [False] * 7 + [True] * 2
    assert limiter.limit("other").allowed
    assert limiter.limit("other", 6).allowed
    assert limiter.limit("other", 1).limited


def test_a_steady_stream_gets_the_rate(rig: Rig) -> None:
    """Calls every third of an emission interval for five periods: capacity + rate x time."""
    limiter = rig.limiter("10/s burst 10")
    admitted = 0
    for _ in range(150):
        admitted += limiter.limit("key").allowed
        rig.after(100_000 / 3 // 1)
    if rig.algorithm in BUCKETS:
        assert admitted == 10 + 49  # the 50th returns after 5 s, 50 µs after the last call
    else:
        assert 46 <= admitted <= 60


def test_promises_count_against_those_who_come_later(rig: Rig) -> None:
    plan = rig.plan("5/s")
    rig.drain(plan, "key")
    for _ in range(5):
        rig.promise(plan, "key")
    assert rig.free(plan, "key") == 0
    rig.after(1_000_000)
    # Everything that came free in this period had been promised; only a window that has gone
    # by in the meantime may hold more.
    taken = sum(rig.run(plan, "key")[1] == 0 for _ in range(10))
    assert taken <= 5
    if rig.algorithm in BUCKETS or rig.algorithm == "sliding_window_log":
        assert taken == 0


# -- 2: honest times ------------------------------------------------------------------------------


@pytest.mark.parametrize("quota", ["1/w", "10/s burst 4", "7/s burst 3", "1/ms", "104000/d"])
def test_retry_after_is_exact(rig: Rig, quota: str) -> None:
    plan = rig.plan(quota)
    rig.drain(plan, "key")
    for cost in {1, max(plan.capacity // 2, 1), plan.capacity}:
        wait = rig.run(plan, "key", cost)[1]
        assert 0 < wait < inf
        rig.after(wait - 1)
        assert rig.run(plan, "key", cost)[1] == 1
        rig.after(1)
        assert rig.run(plan, "key", cost)[1] == 0
        rig.drain(plan, "key")


def test_retry_after_and_reset_after_are_exact_in_any_state(rig: Rig) -> None:
    for plan, key in states(rig):
        for cost in (1, plan.capacity):
            wait = rig.look(plan, key, cost)[0]
            began = rig.now
            if wait:
                rig.after(wait - 1)
                assert rig.look(plan, key, cost)[0] == 1
                rig.after(1)
                assert rig.look(plan, key, cost)[0] == 0
            rig.clock.set(began / 1e6)
        _, remaining, reset_after = rig.look(plan, key)
        rig.after(reset_after)
        assert rig.look(plan, key, plan.capacity) == (0, plan.capacity, 0)
        rig.clock.set(began / 1e6)
        assert rig.look(plan, key)[1] == remaining


def test_public_times_are_float_seconds(rig: Rig) -> None:
    limiter = rig.limiter("2/m burst 2")
    first = limiter.limit("key", 2).state
    assert (first.limit, first.remaining, first.retry_after) == (2, 0, 0.0)
    assert type(first.reset_after) is float
    assert type(first.retry_after) is float
    assert type(first.remaining) is int
    refused = limiter.limit("key")
    assert refused.limited
    assert 0 < refused.state.retry_after <= refused.state.reset_after <= 120
    rig.clock.advance(refused.state.retry_after)
    assert limiter.limit("key").allowed


def test_what_can_never_fit_says_so_at_once(rig: Rig) -> None:
    limiter = rig.limiter("5/s")
    before = rig.now
    for timeout in (None, -1, 0, 3600.0, inf):
        refused = limiter.limit("key", 6, timeout)
        assert refused.limited
        assert refused.state.retry_after == inf
        assert refused.state.remaining == 5
    assert limiter.peek("key", 6).retry_after == inf
    assert rig.now == before
    assert limiter.limit("key", 5).allowed


# -- 3: remaining is what is left -----------------------------------------------------------------


def test_remaining_is_admitted_and_one_more_is_not(rig: Rig) -> None:
    for plan, key in states(rig):
        remaining = rig.free(plan, key)
        assert rig.run(plan, key, remaining + 1)[1] > 0
        if remaining:
            assert rig.run(plan, key, remaining)[1:3] == (0, 0)
        assert rig.free(plan, key) == 0


# -- 4: refusing and looking change nothing -------------------------------------------------------


def test_refusals_looks_and_cost_0_write_nothing(rig: Rig) -> None:
    for plan, key in states(rig):
        dumped = rig.dump(plan, key)
        ttl = None if rig.kind.memory else rig.ttl(plan, key)
        for patience in (0.0, 1.0):
            assert rig.run(plan, key, plan.capacity + 1, patience)[1] == inf
            if rig.look(plan, key)[0] > patience:
                rig.run(plan, key, 1, patience)
        rig.run(plan, key, 0)
        rig.run(plan, key, 0, FOREVER)
        rig.look(plan, key)
        rig.look(plan, key, plan.capacity)
        assert rig.dump(plan, key) == dumped
        if ttl is not None:
            assert rig.ttl(plan, key) <= ttl
            assert (ttl == -2) == (dumped is None)


def test_no_key_appears_for_what_takes_nothing(rig: Rig) -> None:
    limiter = rig.limiter("5/s")
    limiter.peek("key")
    limiter.limit("key", 0)
    limiter.limit("key", 6)
    limiter.limit("key", 6, 60)
    assert rig.dump(rig.plan("5/s"), "key") is None


def test_hammering_does_not_push_the_next_slot_away(rig: Rig) -> None:
    plan = rig.plan("5/s")
    rig.drain(plan, "key")
    slot = rig.now + rig.look(plan, "key")[0]
    while rig.now < slot - 50_000:
        assert rig.now + rig.run(plan, "key")[1] == slot
        rig.after(10_000)
    rig.after(slot - rig.now)
    assert rig.run(plan, "key")[1] == 0


def test_cost_0_is_always_allowed(rig: Rig) -> None:
    limiter = rig.limiter("3/m")
    assert limiter.limit("key", 3).allowed
    assert limiter.limit("key").limited
    free = limiter.limit("key", 0)
    assert free.allowed
    assert free.state.retry_after == 0
    assert free.state.remaining == 0


# -- 5: waiting -----------------------------------------------------------------------------------


def test_waiters_get_slots_in_the_order_of_asking(rig: Rig) -> None:
    plan = rig.plan("10/s burst 3")
    rig.drain(plan, "key")
    slots = []
    for cost in (1, 1, 3, 1, 2, 1, 1, 3):
        slots.append(rig.promise(plan, "key", cost).slot)
        assert rig.run(plan, "key")[1] > 0, "nobody passes those who wait"
        rig.after(20_000)
    assert slots == sorted(slots)


def test_a_small_call_does_not_overtake_a_large_one(rig: Rig) -> None:
    plan = rig.plan("10/s burst 10")
    rig.run(plan, "key", 6)
    large = rig.promise(plan, "key", 10)
    assert rig.look(plan, "key")[1] == 0
    small = rig.promise(plan, "key", 1)
    assert small.slot >= large.slot


def test_no_wait_outlasts_its_patience(rig: Rig) -> None:
    plan = rig.plan("10/s burst 1")
    rig.drain(plan, "key")
    for _ in range(5):
        wait = rig.look(plan, "key")[0]
        dumped = rig.dump(plan, "key")
        assert rig.run(plan, "key", 1, wait - 1)[1] == wait
        assert rig.dump(plan, "key") == dumped
        assert rig.run(plan, "key", 1, wait)[1] == wait
        assert rig.dump(plan, "key") != dumped


def test_a_waiting_call_moves_the_clock_to_its_slot(rig: Rig) -> None:
    limiter = rig.limiter("10/s burst 1", timeout=30)
    plan = rig.plan("10/s burst 1")
    for _ in range(12):
        slot = rig.now + rig.look(plan, "key")[0]
        result = limiter.limit("key")
        assert result.allowed
        assert result.state.retry_after == 0
        assert rig.now == slot
    assert result.state.remaining == limiter.peek("key").remaining
    assert result.state.reset_after == limiter.peek("key").reset_after


def test_a_wait_that_cannot_fit_returns_at_once(rig: Rig) -> None:
    limiter = rig.limiter("1/m burst 1")
    assert limiter.limit("key").allowed
    before = rig.now
    retry_after = limiter.peek("key").retry_after
    refused = limiter.limit("key", timeout=retry_after - 0.001)
    assert refused.limited
    assert refused.state.retry_after == retry_after
    assert rig.now == before
    assert limiter.limit("key", timeout=retry_after).allowed
    assert rig.now == before + retry_after * 1e6


@pytest.mark.parametrize("order", ["first to last", "last to first", "any"])
@pytest.mark.parametrize(
    ("quota", "waiters"),
    [("10/s", 100), ("10/s", 5), ("10/s burst 1", 5), ("3/ms burst 3", 2), ("3/ms burst 3", 5)],
)
def test_cancelled_waiters_leave_no_trace(rig: Rig, quota: str, waiters: int, order: str) -> None:
    """All of them cancel; the key is as if none had asked."""
    plan = rig.plan(quota)
    rig.run(plan, "key", 1)
    rig.drain(plan, "key")
    dumped = rig.dump(plan, "key")
    tickets = [rig.promise(plan, "key", 1 + 2 * n % plan.capacity) for n in range(waiters)]
    if order == "last to first":
        tickets.reverse()
    elif order != "first to last":
        random.Random(order).shuffle(tickets)
    for ticket in tickets:
        rig.withdraw(ticket)
    assert rig.dump(plan, "key") == dumped


def test_cancelling_with_nobody_behind_after_a_while(rig: Rig) -> None:
    plan = rig.plan("10/s burst 2")
    for key in ("key", "untouched"):
        rig.drain(plan, key)
    ticket = rig.promise(plan, "key", 2)
    rig.after(70_001)
    rig.withdraw(ticket)
    for cost in (1, 2):
        assert rig.look(plan, "key", cost) == rig.look(plan, "untouched", cost)
    assert rig.dump(plan, "key") == rig.dump(plan, "untouched")


def test_a_cancelled_wait_does_not_block_a_fresh_key(rig: Rig) -> None:
    """The longest wait there is, cancelled long after the key had its reset."""
    plan = rig.plan("1/m burst 1")
    rig.drain(plan, "key")
    tickets = [rig.promise(plan, "key") for _ in range(5)]
    rig.after(20 * 60_000_000)
    for ticket in tickets:
        rig.withdraw(ticket)
    assert rig.look(plan, "key") == (0, 1, 0)


def test_the_first_of_three_cancels_and_nobody_shares_a_slot(rig: Rig) -> None:
    plan = rig.plan("10/s burst 1")
    rig.drain(plan, "key")
    began = rig.now
    first, second, third = (rig.promise(plan, "key") for _ in range(3))
    rig.withdraw(first)
    newcomer = rig.promise(plan, "key")
    slots = [second.slot, third.slot, newcomer.slot]
    if rig.algorithm in BUCKETS:
        assert slots == [began + 200_000, began + 300_000, began + 400_000]
    else:
        assert slots == sorted(slots)
        # Burst means nothing to windows: ten at most within one window, or one trailing period.
        assert sum(began < slot <= began + 1_000_000 for slot in slots) <= 10


def test_those_who_stay_keep_their_slots(rig: Rig) -> None:
    plan = rig.plan("2/s burst 1")
    rig.drain(plan, "key")
    tickets = [rig.promise(plan, "key") for _ in range(6)]
    for gone in (tickets[1], tickets[3]):
        rig.withdraw(gone)
    staying = [ticket for ticket in tickets if ticket not in (tickets[1], tickets[3])]
    for ticket in staying:
        assert rig.now <= ticket.slot
        rig.after(ticket.slot - rig.now)
        rig.arrived(ticket)
    # All have been served, and nobody is left whom what was given up could hurt.
    last = staying[-1].slot
    if rig.algorithm in BUCKETS:
        assert rig.now + rig.look(plan, "key")[0] == last + 500_000
    else:
        served = 1 + len(staying)
        again = 0
        while rig.run(plan, "key")[1] == 0:
            again += 1
        assert served + again >= 2


def test_what_was_given_up_returns_once_those_behind_are_served(rig: Rig) -> None:
    """Four wait for a slot with room for five; the first gives up, then the others are served."""
    plan = rig.plan("5/s")
    rig.drain(plan, "key")
    tickets = [rig.promise(plan, "key") for _ in range(4)]
    rig.withdraw(tickets[0])
    for ticket in tickets[1:]:
        rig.after(max(ticket.slot - rig.now, 0))
        rig.arrived(ticket)
    other = rig.plan("5/s")
    never_asked = "as if the first had never asked"
    rig.clock.set(1_700_000_000.123457)
    rig.drain(other, never_asked)
    for _ in range(3):
        last = rig.promise(other, never_asked)
    rig.after(tickets[-1].slot - rig.now)
    if rig.algorithm not in BUCKETS:
        assert rig.free(plan, "key") == rig.free(other, never_asked)
    assert last.slot <= tickets[-1].slot


# -- 6: refunds and charges -----------------------------------------------------------------------


def test_a_refund_never_raises_a_key_above_its_capacity(rig: Rig) -> None:
    for plan, key in states(rig):
        rig.adjust(plan, key, -1000)
        assert rig.free(plan, key) <= plan.capacity
        assert rig.run(plan, key, plan.capacity + 1)[1] == inf
        rig.drain(plan, key)
        assert rig.run(plan, key)[1] > 0


def test_a_refund_of_what_was_taken_returns_it(rig: Rig) -> None:
    plan = rig.plan("5/m")
    rig.run(plan, "key", 4)
    assert rig.free(plan, "key") == 1
    assert rig.adjust(plan, "key", -3)
    assert rig.free(plan, "key") == 4
    assert rig.adjust(plan, "key", -1)
    assert rig.look(plan, "key", 5)[:2] == (0, 5)
    assert not rig.adjust(plan, "key", -1)


def test_a_charge_goes_past_the_limit_and_the_next_calls_feel_it(rig: Rig) -> None:
    plan = rig.plan("5/m")
    assert rig.adjust(plan, "key", 12)
    wait, remaining, reset_after = rig.look(plan, "key")
    assert remaining == 0
    assert 0 < wait <= reset_after
    rig.after(wait - 1)
    assert rig.run(plan, "key")[1] == 1
    rig.after(1)
    assert rig.run(plan, "key")[1] == 0


def test_a_fixed_window_forgives_its_overrun_and_the_others_do_not(rig: Rig) -> None:
    plan = rig.plan("5/m")
    rig.after(60_000_000 - rig.now % 60_000_000)
    rig.adjust(plan, "key", 8)
    rig.after(60_000_000 - 1)
    assert rig.free(plan, "key") == (
        1 if rig.algorithm in BUCKETS else 0
    )  # the buckets drain eight in 96 s
    rig.after(1)
    free = rig.free(plan, "key")
    if rig.algorithm == "fixed_window" or rig.algorithm == "sliding_window_log":
        assert free == 5  # the log forgets what is a period old
    else:
        assert free < 5


def test_reset_forgets_a_key(rig: Rig) -> None:
    for plan, key in states(rig):
        rig.reset(plan, key)
        assert rig.dump(plan, key) is None
        assert rig.look(plan, key) == (0, plan.capacity, 0)


def test_undo_is_refused_once_somebody_came_after(rig: Rig) -> None:
    plan = rig.plan("5/s burst 2")
    rig.drain(plan, "key")
    first = rig.promise(plan, "key")
    second = rig.promise(plan, "key")
    dumped = rig.dump(plan, "key")
    assert not rig.undo(first)
    assert rig.dump(plan, "key") == dumped
    assert rig.undo(second)
    assert not rig.undo(second)
    assert rig.undo(first)


def test_run_many_decides_each_in_its_own_place(rig: Rig) -> None:
    plan, other = rig.plan("2/m"), rig.plan("1/h")
    calls = [(plan, "a", 1, 0.0), (other, "a", 1, 0.0), (plan, "a", 2, 0.0), (plan, "b", 3, 0.0)]
    replies = rig.wait(rig.store.run_many(calls))
    assert [reply[1] == 0 for reply in replies] == [True, True, False, False]
    assert replies[3][1] == inf
    assert [rig.free(p, k) for p, k in ((plan, "a"), (other, "a"), (plan, "b"))] == [1, 0, 2]


# -- time that steps back -------------------------------------------------------------------------


def test_a_small_step_back_admits_nobody_twice(rig: Rig) -> None:
    plan = rig.plan("5/s")
    rig.after(1_000_000 - rig.now % 1_000_000 + 500_000)
    rig.drain(plan, "key")
    began = rig.now
    rig.clock.set((began - 400_000) / 1e6)
    wait = rig.run(plan, "key")[1]
    assert wait >= 400_000
    rig.after(wait)
    assert rig.run(plan, "key")[1] == 0


def test_a_large_step_back_blocks_nobody_for_longer(rig: Rig) -> None:
    plan = rig.plan("5/s")
    rig.drain(plan, "key")
    rig.clock.set(rig.clock.now - 2 * 86_400)
    wait, _, reset_after = rig.look(plan, "key")
    # A sliding window that is full early in its window holds for a period and a fifth.
    assert wait <= (1_200_000 if rig.algorithm == "sliding_window" else 1_000_000)
    assert wait <= reset_after <= 2_000_000
    rig.after(wait)
    assert rig.run(plan, "key")[1] == 0


# -- 8: the range of quotas -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("quota", "limit"),
    [
        ("1/w", 1),
        ("1/366d", 1),
        ("1/ms", 1),
        ("1000000/ms", 1_000_000),
        ("1000000/366d", 1_000_000),
        ("1000000000/s", 10**9),
        ("1000000000/366d", 10**9),
    ],
)
def test_every_quota_in_range_works(rig: Rig, quota: str, limit: int) -> None:
    if rig.algorithm == "sliding_window_log" and limit > 1_000_000:
        return  # a log remembers every call, and says that it does not take so many
    plan = rig.plan(quota)
    assert rig.look(plan, "key", limit) == (0, limit, 0)
    assert rig.run(plan, "key", limit)[1:3] == (0, 0)
    wait, remaining, reset_after = rig.look(plan, "key")
    assert remaining == 0
    assert 1 <= wait <= reset_after <= 2 * plan.period + 1
    rig.after(wait)
    exact = plan.capacity * plan.period < 2**53
    off = rig.look(plan, "key")[0]
    assert off == 0 or (off == 1 and not exact)
    rig.after(off)
    assert rig.run(plan, "key")[1] == 0
    assert rig.look(plan, "key", limit + 1)[0] == inf
    rig.after(rig.look(plan, "key")[2])
    assert rig.look(plan, "key", limit)[:2] == (0, limit)


def test_lowering_a_quota_applies_at_once(rig: Rig) -> None:
    high, low = rig.plan("100/m"), rig.plan("5/m")
    rig.run(high, "key", 20)
    assert rig.free(low, "key") == 0 or rig.algorithm in BUCKETS
    rig.drain(low, "key")
    assert rig.run(low, "key")[1] > 0
    assert rig.run(high, "key")[1] == 0 or rig.algorithm in BUCKETS


# -- keys -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key",
    ["user:1", "{a}", "}", "%7B", "a{b}c%", "été 🚲", "\ud800", "\0\r\n", " ", "x" * 10_000],
    ids=ascii,
)
@pytest.mark.parametrize("using", ["token_bucket", "sliding_window_log"])
@pytest.mark.parametrize("kind", STORES)
def test_any_text_is_a_key(make_rig: MakeRig, kind: Kind, using: str, key: str) -> None:
    """Keys are the store's affair: one algorithm of each shape of state is enough."""
    limiter = make_rig(kind, using).limiter("1/m")
    assert limiter.limit(key).allowed
    assert limiter.limit(key).limited
    assert limiter.limit(key + "x").allowed


def test_keys_that_look_alike_are_different(make_rig: MakeRig) -> None:
    for param in STORES:
        (kind,) = param.values
        if kind.real:
            continue
        limiter = make_rig(kind).limiter("1/m")
        for key in ("{", "%7B", "%257B", "}", "%7D", "%", "%25"):
            assert limiter.limit(key).allowed, key


def test_limits_that_differ_do_not_share_keys(rig: Rig) -> None:
    assert rig.limiter("1/m").limit("key").allowed
    assert rig.limiter("1/h").limit("key").allowed
    assert rig.limiter("1/m", key_prefix=rig.prefix + "-other").limit("key").allowed
    for name in ALGORITHMS:
        if name != rig.algorithm:
            assert rig.limiter("1/m", using=name).limit("key").allowed, name
    assert rig.limiter("1/m").limit("key").limited


# -- the server's own time ------------------------------------------------------------------------


@pytest.mark.server
@pytest.mark.parametrize("using", ALGORITHMS)
@pytest.mark.parametrize("kind", [param for param in STORES if param.values[0].real])
def test_by_the_servers_own_time(make_rig: MakeRig, kind: Kind, using: str) -> None:
    """Without a clock of ours, which is how it runs outside of tests."""
    rig = make_rig(kind, using)
    store = rig.wall_store()
    plan = rig.plan("5/366d")

    def run(cost: int = 1, patience: float = 0.0) -> Any:
        return rig.wait(store.run(plan, "key", cost, patience))

    def ttl() -> int:
        return int(rig.raw.pttl(rig.name(plan, "key")))

    assert run(0)[1:3] == run(1, LOOK)[1:3] == (0, 5)
    assert run(6)[1] == inf
    assert ttl() == -2
    assert [run(cost)[1:3] for cost in (1, 3, 1)] == [(0, 4), (0, 1), (0, 0)]
    _, wait, remaining, reset_after = run()
    assert remaining == 0
    assert 0 < wait <= reset_after
    # Rounded up when it is set, and again by the server, which keeps its own time in ms.
    assert reset_after / 1000 - 1000 <= ttl() <= reset_after / 1000 + 2
    dumped = rig.dump(plan, "key")
    for patience in (0.0, LOOK, wait / 2 // 1):
        run(1, patience)
        run(0, patience)
        assert rig.dump(plan, "key") == dumped
    tickets = [run(1, FOREVER)[0] for _ in range(3)]
    assert [t.slot for t in tickets] == sorted(t.slot for t in tickets)
    assert not rig.wait(store.undo(tickets[1]))
    for ticket in (tickets[1], tickets[0], tickets[2]):
        rig.wait(store.withdraw(ticket))
    assert rig.dump(plan, "key") == dumped
    assert rig.wait(store.adjust(plan, "key", -2))
    assert run(2)[1:3] == (0, 0)
    rig.wait(store.reset(plan, "key"))
    assert (ttl(), run(5)[1]) == (-2, 0)
    rig.wait(store.close())


@pytest.mark.server
@pytest.mark.parametrize("using", ALGORITHMS)
@pytest.mark.parametrize("kind", [param for param in STORES if param.values[0].real])
def test_keys_end_when_they_no_longer_count(make_rig: MakeRig, kind: Kind, using: str) -> None:
    rig = make_rig(kind, using)
    store = rig.wall_store()
    plan = rig.plan("20/20ms")
    for n in range(20):
        assert rig.wait(store.run(plan, f"key{n % 4}", 1 + n % 3, 0.0))[1] == 0
    time.sleep(0.05)
    assert rig.raw.keys(f"{rig.prefix}:*") == []
    rig.wait(store.close())
