"""`limit_all`: limits of several keys, all or nothing, now or not at all."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from math import inf
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.contract import PATIENT, STORES, Kind, MakeRig, Rig
from tests.joints import ALGORITHMS
from tests.servers import HOST, Cluster, Server, cluster, free_port
from throttled import Key, MemoryStore, Rule, Throttled
from throttled.asyncio import Throttled as AsyncThrottled
from throttled.asyncio.store import RedisStore as AsyncRedisStore
from throttled.exceptions import DataError, StateError, StoreUnavailableError
from throttled.store import RedisStore
from throttled.testing import FakeClock

pytestmark = pytest.mark.realtime

stores = pytest.mark.parametrize("kind", STORES)


KEYS = {"user": "u42", "org": "acme"}


class Both:
    """A limit a user and one of the organisation, on one store."""

    def __init__(self, rig: Rig, user: Any = "2/m burst 2", org: Any = "3/m burst 3") -> None:
        self.rig = rig
        self.made: Any = AsyncThrottled if rig.kind.asynchronous else Throttled
        self.user = self.limiter(user, "user")
        self.org = self.limiter(org, "org")

    def limiter(self, quota: Any, name: str, **arguments: Any) -> Any:
        prefix = f"{self.rig.prefix}:{name}"
        return self.made(quota=quota, store=self.rig.store, key_prefix=prefix, **arguments)

    def ask(self, pairs: Any = None, *args: Any, **kwargs: Any) -> Any:
        pairs = [(self.user, "u42"), (self.org, "acme")] if pairs is None else pairs
        return self.rig.wait(self.made.limit_all(pairs, *args, **kwargs))

    def limit(self, throttle: Any, *args: Any, **kwargs: Any) -> Any:
        return self.rig.wait(throttle.limit(*args, **kwargs))

    def free(self) -> tuple[int, int]:
        """What remains of both."""
        one, two = (
            self.rig.wait(throttle.peek(key)).remaining
            for throttle, key in ((self.user, "u42"), (self.org, "acme"))
        )
        return one, two

    def stored(self) -> list[Any]:
        """All that is stored of both."""
        return [
            self.rig.dump(plan, key)
            for throttle, key in ((self.user, "u42"), (self.org, "acme"))
            for plan in throttle._terms.plan.joint.members
        ]


# -- all or nothing -------------------------------------------------------------------------------


@stores
def test_all_are_taken_or_none(make_rig: MakeRig, kind: Kind) -> None:
    both = Both(make_rig(kind))
    result = both.ask()
    assert result.allowed
    assert [str(rule.quota) for rule in result.rules] == ["2/m", "3/m"]
    assert [state.remaining for state in result.states] == [1, 2]
    assert both.ask([(both.user, "u42", 1), (both.org, "acme", 2)]).allowed
    assert both.free() == (0, 0)
    assert both.limit(both.user, "u43").allowed
    both.rig.after(20e6)
    assert both.free() == (0, 1)
    found = both.stored()
    result = both.ask()
    assert result.limited
    assert (result.binding, result.rule) == (0, result.rules[0])
    assert result.state.retry_after == 10
    assert both.stored() == found, "nothing was taken or booked"


@stores
def test_what_can_never_fit_is_refused_at_once(make_rig: MakeRig, kind: Kind) -> None:
    both = Both(make_rig(kind))
    for timeout in (-1, 0, 5, inf):
        result = both.ask(cost=3, timeout=timeout)
        assert (result.limited, result.state.retry_after) == (True, inf)
    assert both.stored() == [None, None]


@stores
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_it_counts_as_the_limits_do_alone(make_rig: MakeRig, kind: Kind, algorithm: str) -> None:
    both, alone = Both(make_rig(kind)), Both(Rig(Kind("memory")))
    for each in (both, alone):
        each.user = each.limiter([Rule("5/m", algorithm), Rule("9/h", algorithm)], "user")
        each.org = each.limiter(Rule("7/m", algorithm), "org", hold=True)
    for cost in (1, 2, 1, 3, 1):
        result = both.ask(cost=cost)
        fits = min(alone.free()) >= cost
        assert result.allowed == fits
        if fits:
            alone.limit(alone.user, "u42", cost)
            alone.limit(alone.org, "acme", cost)
        assert both.stored() == alone.stored()
        for each in (both, alone):
            each.rig.after(7e6)


pauses = st.sampled_from([0, 0, 1_000, 1_000_000, 15_000_000, 40_000_000])
calls = st.tuples(pauses, st.sampled_from(["all", "all", "wait", "user", "org"]), st.integers(0, 4))


@settings(max_examples=40)
@given(
    st.tuples(st.sampled_from(ALGORITHMS), st.sampled_from(ALGORITHMS)),
    st.lists(calls, min_size=3, max_size=15),
)
def test_nothing_is_ever_booked_in_the_future(
    algorithms: tuple[str, str], history: list[tuple[int, str, int]]
) -> None:
    """It writes what the limits alone write at that instant without waiting, or nothing."""
    rig, alone_rig = Rig(Kind("memory")), Rig(Kind("memory"))
    alone_rig.prefix = rig.prefix
    both, alone = (
        Both(each, *(Rule("4/m", algorithm) for algorithm in algorithms))
        for each in (rig, alone_rig)
    )
    for pause, what, cost in history:
        rig.after(pause)
        if what in ("user", "org"):
            allowed = both.limit(getattr(both, what), KEYS[what], cost).allowed
            taken = [what] if allowed else []
        else:
            result = both.ask(cost=cost, timeout=30 if what == "wait" else -1)
            taken = [*KEYS] if result.allowed else []
        alone_rig.clock.set(rig.clock.now)
        for name in taken:
            assert alone.limit(getattr(alone, name), KEYS[name], cost).allowed
        assert both.stored() == alone.stored()


# -- waiting --------------------------------------------------------------------------------------


@stores
def test_with_a_timeout_it_asks_again_when_the_slowest_says_so(
    make_rig: MakeRig, kind: Kind
) -> None:
    both = Both(make_rig(kind), "3/m burst 3", "7/m burst 7")
    both.ask(cost=3)
    began = both.rig.now
    for _ in range(4):
        assert both.ask(timeout=30).allowed
    assert both.rig.now - began == 4 * 20_000_000
    found = both.stored()
    assert both.ask(timeout=19.999999).state.retry_after == 20
    assert both.rig.now - began == 4 * 20_000_000, "it is refused at once"
    assert both.stored() == found
    assert both.ask(timeout=20).allowed
    assert both.rig.now - began == 5 * 20_000_000


@stores
def test_it_sleeps_to_the_microsecond(make_rig: MakeRig, kind: Kind) -> None:
    both = Both(make_rig(kind), "1/s burst 1", "100/d")
    for wait in (1, 122, 123, 246, 255, 492):
        both.rig.after(10e6)
        assert both.ask().allowed
        both.rig.after(1_000_000 - wait)
        began = both.rig.now
        assert both.ask(timeout=1).allowed
        assert both.rig.now - began == wait


async def test_who_waits_stands_in_no_line() -> None:
    clock = FakeClock()
    store = MemoryStore(clock=clock)
    user = AsyncThrottled(quota="1/m", store=store, key_prefix="user")
    org = AsyncThrottled(quota="1/s burst 1", store=store, key_prefix="org")
    pairs = [(user, "u42"), (org, "acme")]
    assert (await AsyncThrottled.limit_all(pairs)).allowed
    began = clock.now
    waiting = asyncio.create_task(AsyncThrottled.limit_all(pairs, timeout=200))
    await asyncio.sleep(0)
    assert clock.now - began == 60, "the fake clock has moved to when it asks again"
    assert (await org.limit("acme")).allowed, "it holds nothing of the organisation's"
    assert (await user.limit("u42")).allowed, "and others may come first"
    assert (await waiting).allowed
    assert clock.now - began == 120


def test_it_waits_in_real_time() -> None:
    store = MemoryStore()
    user = Throttled(quota="10/s burst 1", store=store, key_prefix="user")
    org = Throttled(quota="1000/s", store=store, key_prefix="org")
    began = time.monotonic()
    for _ in range(3):
        assert Throttled.limit_all([(user, "u42"), (org, "acme")], timeout=5).allowed
    assert 0.19 <= time.monotonic() - began < 2


@pytest.mark.server
def test_threads_take_exactly_what_all_allow(server: Server) -> None:
    with RedisStore(server.url, PATIENT) as real:
        for store in (real, MemoryStore()):
            prefix = f"all-{time.monotonic_ns()}"
            user = Throttled(quota="100/366d", store=store, key_prefix=prefix)
            org = Throttled(
                using="fixed_window", quota="60/366d", store=store, key_prefix=f"{prefix}-org"
            )

            def run(_: int, user: Throttled = user, org: Throttled = org) -> int:
                pairs = [(user, "u42"), (org, "acme")]
                return sum(Throttled.limit_all(pairs).allowed for _ in range(10))

            with ThreadPoolExecutor(16) as pool:
                assert sum(pool.map(run, range(16))) == 60
            assert user.peek("u42").remaining == 40


# -- arguments ------------------------------------------------------------------------------------


@stores
def test_a_slot_makes_keys_that_are_found_by_name(make_rig: MakeRig, kind: Kind) -> None:
    both = Both(make_rig(kind))
    assert both.ask(slot="acme").allowed
    assert both.rig.wait(both.user.peek(Key("u42", slot="acme"))).remaining == 1
    assert both.free() == (2, 3), "they are other keys"
    keyed = [(both.user, Key("u42", slot="acme")), (both.org, Key("acme", slot="acme"))]
    assert both.ask(keyed).allowed
    assert both.ask(slot="acme").limited
    if not kind.memory:
        names = both.rig.raw.keys(f"{both.rig.prefix}:*")
        assert all(b"{acme}:" in name for name in names), names


def test_a_key_with_a_slot_is_a_key() -> None:
    key = Key("u42", slot="acme")
    assert key == Key("u42", slot="acme") != Key("u42", slot="other") != "u42"
    for text, slot in (("", "acme"), ("u42", "")):
        with pytest.raises(DataError, match="non-empty"):
            Key(text, slot=slot)


@stores
def test_bad_pairs_name_what_is_wrong(make_rig: MakeRig, kind: Kind) -> None:
    both, another = Both(make_rig(kind)), MemoryStore()
    stranger: Any = both.made(quota="5/m", store=another)
    denying = both.limiter("5/m", "denying", on_store_error="deny")
    same = both.limiter("9/m", "user")
    wrong: list[tuple[Any, str]] = [
        ([], "at least one"),
        ("text", "list of"),
        ([both.user], r"pairs\[0\]"),
        ([(both.user, "u42"), (both.org,)], r"pairs\[1\]"),
        ([("u42", both.user)], r"pairs\[0\]"),
        ([(both.user, "")], "Invalid key: ''"),
        ([(both.user, "u42", -1)], "Invalid cost: -1"),
        ([(both.user, "u42", True)], "Invalid cost: True"),
        ([(both.user, "u42"), (stranger, "acme")], "same store"),
        ([(both.user, "u42"), (denying, "acme")], "on_store_error"),
        ([(both.user, "u42"), (same, "u42")], "under one key"),
        ([(both.user, "u42"), (both.user, "u42")], "under one key"),
    ]
    for pairs, message in wrong:
        with pytest.raises(DataError, match=message):
            both.ask(pairs)
    with pytest.raises(DataError, match="Invalid cost"):
        both.ask(cost=-1)
    with pytest.raises(DataError, match="Invalid timeout"):
        both.ask(timeout=-2)
    other: Any = Throttled if kind.asynchronous else AsyncThrottled
    flavour = other(quota="5/m", store=MemoryStore())
    with pytest.raises(DataError, match="flavour"):
        both.ask([(flavour, "u42")])
    assert both.free() == (2, 3)
    assert both.ask([(both.user, "u42"), (same, "u43")]).allowed, "of another key"


@stores
def test_what_costs_nothing_is_not_asked_unless_all_do(make_rig: MakeRig, kind: Kind) -> None:
    both = Both(make_rig(kind))
    both.limit(both.user, "u42", 2)
    result = both.ask([(both.user, "u42", 0), (both.org, "acme")])
    assert result.allowed
    assert [str(rule.quota) for rule in result.rules] == ["3/m"]
    found = both.stored()
    result = both.ask(cost=0)
    assert result.allowed
    assert [state.remaining for state in result.states] == [0, 2]
    assert both.stored() == found


# -- limits that are not enforced, exempt, held ---------------------------------------------------


@stores
def test_a_limit_in_shadow_mode_refuses_nobody(make_rig: MakeRig, kind: Kind) -> None:
    both = Both(make_rig(kind))
    shadow = both.limiter("1/m", "shadow", enforce=False)
    pairs = [(shadow, "u42"), (both.user, "u42"), (both.org, "acme")]
    assert [both.ask(pairs).limited for _ in range(3)] == [False, False, True]
    assert both.rig.wait(shadow.peek("u42")).remaining == 0, "it counted"
    assert both.free() == (0, 1)


@stores
def test_an_exempt_key_is_left_out(make_rig: MakeRig, kind: Kind) -> None:
    both = Both(make_rig(kind))
    both.user = both.limiter("1/m", "user", exempt=lambda key: key == "u42")
    assert [both.ask().limited for _ in range(4)] == [False, False, False, True]
    assert both.ask([(both.user, "u42")]).source == "exempt"
    assert both.free()[0] == 1


@stores
def test_a_penalty_of_one_key_holds_them_all(make_rig: MakeRig, kind: Kind) -> None:
    both = Both(make_rig(kind))
    both.user = both.limiter("2/m", "user", hold=True)
    both.rig.wait(both.user.penalize("u42", 5))
    result = both.ask()
    assert (result.limited, result.held, result.state.retry_after) == (True, True, 5)
    assert both.free()[1] == 3
    assert both.ask([(both.user, "u43"), (both.org, "acme")]).allowed, "of another user"
    began = both.rig.now
    assert both.ask(timeout=5).allowed
    assert both.rig.now - began == 5_000_000


# -- stores that fail -----------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["raise", "allow", "deny", "local"])
def test_a_store_that_fails_is_answered_by_the_policy(word: Any) -> None:
    gone = f"redis://{HOST}:{free_port()}/0"
    store = RedisStore(gone, {"DECISION_TIMEOUT": 5.0})
    user = Throttled(quota="2/m", store=store, key_prefix="user", on_store_error=word)
    org = Throttled(quota="3/m", store=store, key_prefix="org", on_store_error=word)
    pairs = [(user, "u42"), (org, "acme")]

    def ask() -> Any:
        return Throttled.limit_all(pairs)

    if word == "raise":
        with pytest.raises(StoreUnavailableError):
            ask()
    elif word == "local":
        assert [ask().limited for _ in range(3)] == [False, False, True]
        assert ask().source == "fallback"
    else:
        assert ask().source == ("allowed-by-policy" if word == "allow" else "denied-by-policy")
        assert ask().limited == (word == "deny")


@pytest.mark.parametrize("kind", [param for param in STORES if not param.values[0].memory])
def test_a_damaged_key_takes_from_none(make_rig: MakeRig, kind: Kind) -> None:
    both = Both(make_rig(kind))
    both.rig.raw.set(both.rig.name(both.org._terms.plan, "acme"), "damaged")
    with pytest.raises(StateError):
        both.ask()
    assert both.rig.dump(both.user._terms.plan, "u42") is None


# -- a cluster ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    with cluster(2) as nodes:
        yield nodes


def runs(nodes: Cluster) -> int:
    return sum(node.calls("evalsha", "eval") for node in nodes)


WITHOUT = "must share a slot"


@pytest.mark.server
def test_on_a_cluster_the_keys_need_a_slot(nodes: Cluster) -> None:
    with RedisStore(nodes.url(), {"DECISION_TIMEOUT": 15.0}) as store:
        user = Throttled(quota="2/m", store=store, key_prefix="user")
        org = Throttled(quota="3/m; 9/h", store=store, key_prefix="org")
        pairs = [(user, "u42"), (org, "acme")]
        assert Throttled.limit_all(pairs, slot="acme").allowed
        before = runs(nodes)
        with pytest.raises(DataError, match=WITHOUT):
            Throttled.limit_all(pairs)
        assert runs(nodes) == before, "nothing was sent"
        assert Throttled.limit_all(pairs, slot="acme").allowed
        assert Throttled.limit_all(pairs, slot="acme").limited
        assert runs(nodes) == before + 2, "a round trip each"
        assert org.limit("acme").allowed, "rules of one key share its slot"
        assert Throttled.limit_all([(org, "other")]).allowed
        keyed = [(user, Key("u43", slot="other")), (org, Key("b", slot="other"))]
        assert Throttled.limit_all(keyed).allowed


@pytest.mark.server
async def test_on_a_cluster_async_keys_need_a_slot(nodes: Cluster) -> None:
    async with AsyncRedisStore(nodes.url(), {"DECISION_TIMEOUT": 15.0}) as store:
        user = AsyncThrottled(quota="2/m", store=store, key_prefix="async-user")
        org = AsyncThrottled(quota="3/m; 9/h", store=store, key_prefix="async-org")
        pairs = [(user, "u42"), (org, "acme")]
        assert (await AsyncThrottled.limit_all(pairs, slot="acme")).allowed
        before = runs(nodes)
        with pytest.raises(DataError, match=WITHOUT):
            await AsyncThrottled.limit_all(pairs)
        assert runs(nodes) == before
        assert (await AsyncThrottled.limit_all(pairs, slot="acme")).allowed
        assert (await AsyncThrottled.limit_all(pairs, slot="acme")).limited
        assert runs(nodes) == before + 2


@pytest.mark.parametrize(("word", "limited"), [("allow", False), ("deny", True)])
def test_what_nobody_could_decide_still_has_all_rules(word: Any, limited: bool) -> None:
    store = RedisStore("redis://localhost:1/0")
    limits = [
        Throttled(quota=quota, store=store, on_store_error=word, key_prefix=quota[0])
        for quota in ("3/m; 8/h", "7/m")
    ]
    pairs = [(limits[0], "u42"), (limits[1], "acme")]
    result = Throttled.limit_all(pairs)
    assert result.limited is limited
    assert [str(rule.quota) for rule in result.rules] == ["3/m", "8/h", "7/m"]
    assert [state.limit for state in result.states] == [3, 8, 7]
    if limited:
        assert Throttled.limit_all(pairs, cost=8).state.retry_after == inf
