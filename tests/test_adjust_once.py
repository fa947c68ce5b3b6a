"""Adjustments that are done once for a mark, by whichever process comes first."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from tests.contract import FOREVER, STORES, Kind, Rig
from tests.servers import Server, cluster
from throttled import MemoryStore, Quota, RedisStore
from throttled.algorithms.plan import ALGORITHMS, make_plan
from throttled.arguments import Key
from throttled.exceptions import SetUpError, StateError
from throttled.store.base import Store
from throttled.testing import FakeClock


@pytest.fixture(params=STORES)
def rig(request: pytest.FixtureRequest, make_rig: Callable[..., Rig]) -> Rig:
    return make_rig(request.param)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("kind", STORES)
def test_only_the_first_time(make_rig: Callable[..., Rig], kind: Kind, algorithm: str) -> None:
    rig = make_rig(kind, algorithm)
    plan, other = rig.plan("10/m"), rig.plan("100/h")
    for each in (plan, other):
        rig.run(each, "k", 5)
    changes = [(plan, "k", -2, None), (other, "k", 7, None)]

    def once(mark: str, what: list[object]) -> list[bool] | None:
        answer: list[bool] | None = rig.wait(rig.store.adjust_once(plan, "k", mark, 60.0, what))
        return answer

    assert once("a", changes) == [True, True]
    assert (rig.look(plan, "k")[1], rig.look(other, "k")[1]) == (7, 88)
    assert once("a", changes) is None
    assert (rig.look(plan, "k")[1], rig.look(other, "k")[1]) == (7, 88)
    assert once("b", changes) == [True, True]
    assert (rig.look(plan, "k")[1], rig.look(other, "k")[1]) == (9, 81)
    # Marks are there before there is anything to do, too.
    assert once("c", []) == []
    assert once("c", changes) is None
    assert (rig.look(plan, "k")[1], rig.look(other, "k")[1]) == (9, 81)


def test_marks_are_of_one_key_and_plan(rig: Rig) -> None:
    plan, other = rig.plan("10/m"), rig.plan("10/h")
    done = [
        rig.wait(rig.store.adjust_once(each, key, "m", 60.0, [(each, key, 1, None)]))
        for each in (plan, other)
        for key in ("k", "{k}", Key("k", slot="s"), Key("j", slot="s"))
    ]
    # Keys of one slot share their marks; those are too long to be told apart only by chance.
    assert done == [[True], [True], [True], None] * 2


def test_a_state_that_is_damaged_is_said(rig: Rig) -> None:
    if rig.kind.memory:
        pytest.skip("nothing can damage a state in memory")
    plan, other = rig.plan("10/m"), rig.plan("10/h")
    rig.raw.set(f"{plan.prefix}{{k}}", "nonsense")
    changes = [(plan, "k", 1, None), (other, "k", 1, None)]
    with pytest.raises(StateError, match="nonsense"):
        rig.wait(rig.store.adjust_once(plan, "k", "m", 60.0, changes))
    assert rig.look(other, "k")[1] == 9


def test_what_was_promised_later_stands(rig: Rig) -> None:
    """The slot of what is given back counts, as without a mark."""
    plan = rig.plan("10/s")
    rig.run(plan, "k", 10)
    promised = [rig.run(plan, "k", 2, FOREVER) for _ in range(3)]
    before = rig.look(plan, "k")
    slot = promised[0][0].slot
    rig.wait(rig.store.adjust_once(plan, "k", "m", 60.0, [(plan, "k", -2, slot)]))
    assert rig.look(plan, "k")[0] >= before[0] - 2e5


def test_marks_end() -> None:
    clock = FakeClock()
    store, plan = MemoryStore(clock=clock), make_plan("gcra", Quota.parse("10/m"))
    assert store.adjust_once(plan, "k", "m", 5.0, []) == []
    clock.advance(4.999_999)
    assert store.adjust_once(plan, "k", "m", 5.0, []) is None
    clock.advance(0.000_001)
    assert store.adjust_once(plan, "k", "m", 5.0, []) == []


def test_marks_in_memory_are_bounded_and_push_out_no_key() -> None:
    store, plan = MemoryStore(options={"MAX_SIZE": 10}), make_plan("gcra", Quota.parse("10/m"))
    store.run(plan, "k", 10, 0.0)
    for number in range(100):
        assert store.adjust_once(plan, "k", str(number), 3600.0, []) == []
    assert len(store) == 1
    assert store.run(plan, "k", 1, 0.0)[1] > 0
    assert store.adjust_once(plan, "k", "99", 3600.0, []) is None


@pytest.mark.server
def test_marks_end_on_a_server_as_well(rig: Rig) -> None:
    if not rig.kind.real:
        pytest.skip("the time of a server is what counts")
    plan, store = rig.plan("10/m"), rig.wall_store()
    rig.wait(store.adjust_once(plan, "k", "m", 5.0, []))
    assert 4_000 < rig.raw.pttl(f"{plan.prefix}{{k}}:m") <= 5_000
    rig.wait(store.close())


@pytest.mark.server
def test_a_server_without_memory_leaves_everything(server_named: Callable[[str], Server]) -> None:
    server = server_named("valkey")
    with RedisStore(server.url) as store, server.client() as raw:
        plan = make_plan("gcra", Quota.parse("10/m"), "throttled:full")
        store.run(plan, "k", 5, 0.0)
        raw.config_set("maxmemory", 1)
        try:
            with pytest.raises(Exception, match="OOM"):
                store.adjust_once(plan, "k", "m", 60.0, [(plan, "k", 1, None)])
        finally:
            raw.config_set("maxmemory", 0)
        assert store.adjust_once(plan, "k", "m", 60.0, [(plan, "k", 1, None)]) == [True]
        store.reset(plan, "k")


def test_sixteen_threads_do_it_once(rig: Rig) -> None:
    if rig.kind.asynchronous:
        pytest.skip("threads are for the other flavour")
    plan = rig.plan("1000/m")
    rig.run(plan, "k", 500)
    done: list[object] = []

    def settle() -> None:
        done.append(rig.store.adjust_once(plan, "k", "m", 60.0, [(plan, "k", -100, None)]))

    threads = [threading.Thread(target=settle) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done, key=bool) == [None] * 15 + [[True]]
    assert rig.look(plan, "k")[1] == 600


@pytest.mark.server
@pytest.mark.slow
def test_marks_lie_where_their_keys_do() -> None:
    with cluster(3) as nodes, RedisStore(f"redis+cluster://127.0.0.1:{nodes[0].port}") as store:
        plans = [make_plan(name, Quota.parse("10/m")) for name in ("gcra", "sliding_window_log")]
        for number in range(20):
            key = f"user:{number}"
            changes = [(plan, key, 3, None) for plan in plans]
            assert store.adjust_once(plans[0], key, "m", 60.0, changes) == [True, True]
            assert store.adjust_once(plans[0], key, "m", 60.0, changes) is None
            assert [store.run(plan, key, 0, 0.0)[2] for plan in plans] == [7, 7]


def test_a_store_that_cannot_says_so() -> None:
    class Plain(Store):
        run = run_many = adjust = undo = withdraw = arrived = reset = close = lambda *_: None  # type: ignore[assignment]

    with pytest.raises(SetUpError, match=r"with adjust_once\(\) if a service"):
        Plain().adjust_once(make_plan("gcra", Quota.parse("1/s")), "k", "m", 1.0, [])
