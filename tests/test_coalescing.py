"""Calls that meet share a round trip: who travels with whom, in which order, and what becomes of
those who leave on the way. Threads and tasks alike, on a real server."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import threading
from typing import TYPE_CHECKING, Any

import pytest
import redis
import redis.asyncio as aredis

from tests import callers as shared
from tests import servers
from tests.callers import MANY, PATIENT, Callers, counted, paused, results
from tests.servers import HOST, Proxy, Server, cluster, wait_until
from throttled.algorithms.plan import LOOK, make_plan
from throttled.asyncio import Throttled as AsyncThrottled
from throttled.exceptions import StateError
from throttled.quota import Quota
from throttled.store.aioredis import RedisStore as AsyncRedisStore
from throttled.testing import FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future

    Press = Callable[[], None]

pytestmark = pytest.mark.server

valkey, key, proxy = servers.valkey, shared.key, shared.proxy
callers = shared.callers

#: Flights that a crowd of tasks makes at most: it goes in halves, one while the other is answered.
FEW = 4


@pytest.fixture
def tasks() -> Iterator[Callers]:
    with Callers(True) as callers:
        yield callers


@pytest.fixture
def threads() -> Iterator[Callers]:
    with Callers(False) as callers:
        yield callers


def await_flight(callers: Callers, store: Any, size: int) -> None:
    """Wait until so many calls are under way."""
    [lane] = callers.lanes(store)
    wait_until(lambda: sum(len(part.asks) for part in lane.air) == size, "the flight")


def landed(tasks: Callers, store: Any) -> None:
    """Wait until nothing is under way, and nothing is left to be given back."""
    wait_until(lambda: not tasks.asking(store) and not tasks.at_work(), "the landing")


# --- together ------------------------------------------------------------------------------------


def test_a_lone_caller_makes_one_run_a_call(valkey: Server, callers: Callers, key: str) -> None:
    limiter = callers.limiter(callers.store(valkey.url))
    callers.wait(limiter.limit, key)
    with counted(valkey) as sizes:
        for _ in range(10):
            callers.wait(limiter.limit, key)
        callers.wait(limiter.peek, key)
    assert sizes == [1] * 11


def test_calls_that_come_while_one_is_under_way_leave_together(
    valkey: Server, proxy: Proxy, callers: Callers, key: str
) -> None:
    store = callers.store(proxy.url, PATIENT)
    limiter = callers.limiter(store)
    first = callers.hold(proxy, limiter.limit, "first")
    with counted(valkey) as sizes:
        calls = callers.join(store, limiter.limit, [(key,)] * 60)
        assert not first.done()
        proxy.mode = "pass"
        answers = results([first, *calls])
    assert all(answer.source == "server" and answer.allowed for answer in answers)
    assert sum(sizes) == 60
    assert len(sizes) <= (FEW if callers.asynchronous else 1)
    assert callers.wait(limiter.peek, key).remaining == 940
    assert proxy.connections == 1


def test_a_batch_is_one_round_trip(valkey: Server, callers: Callers, key: str) -> None:
    limiter = callers.limiter(callers.store(valkey.url, PATIENT))
    callers.wait(limiter.limit, key)
    with counted(valkey) as sizes:
        callers.wait(limiter.limit_many, [key] * 40)
    assert sizes == [40]


async def test_what_is_asked_in_one_turn_of_the_loop_leaves_together(
    valkey: Server, key: str
) -> None:
    async with AsyncRedisStore(valkey.url, PATIENT) as store:
        limiter = AsyncThrottled(quota=MANY, store=store)
        await limiter.limit(key)
        with counted(valkey) as sizes:
            await asyncio.gather(*(limiter.limit(key) for _ in range(40)))
    assert sizes == [40]


def test_at_most_128_decisions_leave_in_a_run(
    valkey: Server, proxy: Proxy, callers: Callers, key: str
) -> None:
    store = callers.store(proxy.url, PATIENT)
    limiter = callers.limiter(store)
    first = callers.hold(proxy, limiter.limit, "first")
    with counted(valkey) as sizes:
        calls = callers.join(store, limiter.limit, [(key,)] * 300)
        proxy.mode = "pass"
        answers = results([first, *calls])
        batch = callers.wait(limiter.limit_many, [key] * 300)
    assert all(answer.allowed for answer in answers + batch)
    assert (sum(sizes), max(sizes)) == (600, 128)
    assert 6 <= len(sizes) <= 12


def test_those_are_admitted_who_came_first(proxy: Proxy, callers: Callers, key: str) -> None:
    store = callers.store(proxy.url, PATIENT)
    few = callers.limiter(store, "10/366d")
    first = callers.hold(proxy, callers.limiter(store).limit, "first")
    # Two a call: the line is longer than what is left, and longer than a cohort of tasks.
    calls = callers.join(store, few.limit, [(key, 2)] * 40)
    proxy.mode = "pass"
    assert first.result(30).allowed
    answers = results(calls)
    assert [answer.allowed for answer in answers] == [True] * 5 + [False] * 35
    assert [answer.state.remaining for answer in answers[:6]] == [8, 6, 4, 2, 0, 0]


def test_slots_are_given_in_the_order_of_asking(proxy: Proxy, callers: Callers, key: str) -> None:
    store = callers.store(proxy.url, PATIENT, clock=FakeClock())
    plan = make_plan("token_bucket", Quota.parse("1/s"))
    first = callers.hold(proxy, store.run, plan, "first", 0, LOOK)
    calls = callers.join(store, store.run, [(plan, key, 1, 1e9)] * 40)
    proxy.mode = "pass"
    first.result(30)
    assert [reply[1] for reply in results(calls)] == [number * 1e6 for number in range(40)]


def test_a_thread_that_carries_others_leaves_with_its_own_answer(
    valkey: Server, proxy: Proxy, threads: Callers, key: str
) -> None:
    store = threads.store(proxy.url, PATIENT)
    limiter = threads.limiter(store)
    first = threads.hold(proxy, limiter.limit, "first")
    carried = threads.join(store, limiter.limit, [(key,)] * 3)
    with paused(valkey):
        proxy.mode = "pass"
        first.result(30)
        await_flight(threads, store, 3)
        later = threads.join(store, limiter.limit, [(key,)] * 3)
        proxy.caught.clear()
        proxy.mode = "hold"
    assert proxy.caught.wait(servers.PATIENCE)
    with paused(valkey):
        proxy.mode = "pass"
        # The next flight is under way by then, and nothing comes of it yet.
        results(carried)
        assert not any(call.done() for call in later)
    results(later)


# --- errors and clients --------------------------------------------------------------------------


def test_one_bad_key_spoils_nobody_elses_call(
    valkey: Server, proxy: Proxy, callers: Callers, key: str
) -> None:
    store = callers.store(proxy.url, PATIENT)
    limiter = callers.limiter(store)
    name = limiter._terms.plan.prefix + "{%s}"
    with valkey.client() as client:
        client.lpush(name % f"list-{key}", "x")
        client.set(name % f"text-{key}", "garbage")
    first = callers.hold(proxy, limiter.limit, "first")
    keys = [f"list-{key}" if n == 7 else f"text-{key}" if n == 9 else key for n in range(20)]
    calls = callers.join(store, limiter.limit, [(each,) for each in keys])
    with counted(valkey) as sizes:
        proxy.mode = "pass"
        first.result(30)
        for number, call in enumerate(calls):
            if number in (7, 9):
                with pytest.raises(StateError, match=keys[number]):
                    call.result(30)
            else:
                assert call.result(30).allowed
    assert sizes == [20], "they did share a run"
    assert callers.wait(limiter.peek, key).remaining == 1000 - 18


def test_a_script_forgotten_meanwhile_is_sent_along(
    valkey: Server, proxy: Proxy, callers: Callers, key: str
) -> None:
    store = callers.store(proxy.url, PATIENT)
    limiter = callers.limiter(store)
    first = callers.hold(proxy, limiter.limit, "first")
    calls = callers.join(store, limiter.limit, [(key,)] * 20)
    valkey.ask("SCRIPT", "FLUSH")
    proxy.mode = "pass"
    answers = results([first, *calls])
    assert [answer.state.remaining for answer in answers[1:]] == [999 - n for n in range(20)]
    assert proxy.connections == 1


def a_client(asynchronous: bool, port: int) -> dict[str, Any]:
    flavour: Any = aredis if asynchronous else redis
    return {"client": flavour.Redis(host=HOST, port=port), "options": PATIENT}


def with_kwargs(**kwargs: Any) -> Callable[[bool, int], dict[str, Any]]:
    return lambda _, port: {
        "server": f"redis://{HOST}:{port}/0",
        "options": {"CONNECTION_POOL_KWARGS": kwargs, **PATIENT},
    }


def the_slow_parser(asynchronous: bool, port: int) -> dict[str, Any]:
    parser = f"redis._parsers.{'_AsyncRESP2Parser' if asynchronous else '_RESP2Parser'}"
    return {"server": f"redis://{HOST}:{port}/0", "options": {"PARSER_CLASS": parser, **PATIENT}}


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(a_client, id="a client of the user"),
        pytest.param(with_kwargs(protocol=3), id="RESP3"),
        pytest.param(with_kwargs(health_check_interval=1), id="health checks"),
        pytest.param(with_kwargs(decode_responses=True), id="decoded responses"),
        pytest.param(the_slow_parser, id="a parser in Python"),
    ],
)
def test_calls_share_round_trips_over_any_connection(
    valkey: Server, proxy: Proxy, callers: Callers, key: str, arguments: Callable[..., Any]
) -> None:
    made = arguments(callers.asynchronous, proxy.port)
    store = callers.store(**made)
    limiter = callers.limiter(store)
    first = callers.hold(proxy, limiter.limit, "first")
    calls = callers.join(store, limiter.limit, [(key,)] * 30)
    with counted(valkey) as sizes:
        proxy.mode = "pass"
        answers = results([first, *calls])
    assert sorted(answer.state.remaining for answer in answers[1:]) == list(range(970, 1000))
    assert sizes == [30] or (callers.asynchronous and len(sizes) <= FEW)
    assert proxy.connections == 1
    if "client" in made:
        callers.wait(store.close)
        client = made["client"]
        callers.wait(client.aclose if callers.asynchronous else client.close)


# --- those who leave -----------------------------------------------------------------------------


def test_who_is_cancelled_in_line_is_never_sent(
    valkey: Server, proxy: Proxy, tasks: Callers, key: str
) -> None:
    store = tasks.store(proxy.url, PATIENT)
    limiter = tasks.limiter(store)
    first = tasks.hold(proxy, limiter.limit, "first")
    with counted(valkey) as sizes:
        calls = tasks.join(store, limiter.limit, [(key,)] * 12)
        for call in calls[1::3]:
            call.cancel()
        proxy.mode = "pass"
        assert first.result(30).allowed
        stayed = [call for call in calls if not call.cancelled()]
        assert [answer.state.remaining for answer in results(stayed)] == [
            999 - number for number in range(8)
        ]
        landed(tasks, store)
    assert sizes == [8], "and so nothing had to be given back"


@pytest.mark.parametrize("algorithm", ["token_bucket", "fixed_window", "sliding_window_log"])
def test_who_is_cancelled_under_way_gets_back_what_it_took(
    valkey: Server, proxy: Proxy, tasks: Callers, key: str, algorithm: str
) -> None:
    store = tasks.store(proxy.url, PATIENT)
    limiter = tasks.limiter(store, using=algorithm)
    first = tasks.hold(proxy, limiter.limit, "first")
    calls = tasks.join(store, limiter.limit, [(key, cost) for cost in range(1, 13)])
    with paused(valkey):
        proxy.mode = "pass"
        first.result(30)
        await_flight(tasks, store, 12)
        for call in calls[::2]:
            call.cancel()
    taken = sum(range(2, 13, 2))
    assert all(answer.allowed for answer in results(calls[1::2]))
    landed(tasks, store)
    assert tasks.wait(limiter.peek, key).remaining == 1000 - taken


def test_promises_of_those_who_are_cancelled_under_way_are_taken_back(
    valkey: Server, proxy: Proxy, tasks: Callers, key: str
) -> None:
    store = tasks.store(proxy.url, PATIENT)
    plan = make_plan("gcra", Quota.parse("1/d"))
    tasks.wait(store.run, plan, key, 1, 0.0)
    before = tasks.wait(store.run, plan, key, 1, LOOK)[1]
    first = tasks.hold(proxy, store.run, plan, "first", 1, LOOK)
    calls = tasks.join(store, store.run, [(plan, key, 1, 1e15)] * 8)
    with paused(valkey):
        proxy.mode = "pass"
        first.result(30)
        await_flight(tasks, store, 8)
        for call in calls:
            call.cancel()
    landed(tasks, store)
    assert tasks.wait(store.run, plan, key, 1, LOOK)[1] <= before
    assert not store._waiting._lines


@pytest.fixture
def ctrl_c() -> Iterator[Press]:
    """Press Ctrl-C."""
    main = threading.main_thread().ident
    assert main is not None
    # A process that was started in the background ignores it.
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda: signal.pthread_kill(main, signal.SIGINT)
    signal.signal(signal.SIGINT, usual)


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs POSIX signals")
@pytest.mark.parametrize("where", ["it carries the others", "another carries it", "it is in line"])
def test_who_is_interrupted_leaves_the_others_alone_and_takes_nothing(
    valkey: Server, proxy: Proxy, threads: Callers, ctrl_c: Press, key: str, where: str
) -> None:
    store = threads.store(proxy.url, PATIENT)
    limiter = threads.limiter(store)
    first = threads.hold(proxy, limiter.limit, "first")
    [lane] = threads.lanes(store)
    others: list[Future[Any]] = []

    def join() -> None:
        others.extend(threads.join(store, limiter.limit, [(key,)] * 5))

    def press() -> None:
        wait_until(lambda: len(lane.queue) == len(others) + 1, "the main thread in line")
        if not others:
            join()
        if where == "it is in line":
            ctrl_c()
            return
        with paused(valkey):
            proxy.mode = "pass"
            await_flight(threads, store, 6)
            ctrl_c()

    if where != "it carries the others":
        join()
    pressed = threads.call(press)
    with pytest.raises(KeyboardInterrupt):
        limiter.limit(key)
    pressed.result(30)
    if where == "it is in line":
        assert not any(call.done() for call in others), "it waits for nothing"
    proxy.mode = "pass"
    assert first.result(30).allowed
    assert all(answer.allowed for answer in results(others))
    assert limiter.peek(key).remaining == 1000 - 5
    assert proxy.connections == 1


# --- loops, processes, nodes ---------------------------------------------------------------------


def test_tasks_of_several_loops_share_a_store(valkey: Server, key: str) -> None:
    store = AsyncRedisStore(valkey.url, PATIENT)
    limiter = AsyncThrottled(quota="100/366d", store=store)
    admitted: list[bool] = []

    async def go() -> None:
        for _ in range(3):
            answers = await asyncio.gather(*(limiter.limit(key) for _ in range(20)))
            admitted.extend(answer.allowed for answer in answers)

    loops = [threading.Thread(target=asyncio.run, args=(go(),)) for _ in range(4)]
    with counted(valkey) as sizes:
        for loop in loops:
            loop.start()
        for loop in loops:
            loop.join()
    assert (len(admitted), sum(admitted)) == (240, 100)
    assert len(sizes) <= 4 * 3, "each turn of each loop made one flight at most"
    assert not store._roads, "nothing stays behind of a loop that ended"


def _in_child(limiter: Any, key: str, asynchronous: bool, seen: Any) -> None:
    async def go() -> list[Any]:
        return list(await asyncio.gather(*(limiter.limit(key) for _ in range(3))))

    answers = asyncio.run(go()) if asynchronous else [limiter.limit(key) for _ in range(3)]
    seen.put([answer.state.remaining for answer in answers])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_in_the_middle_of_traffic_is_noticed_by_nobody(
    valkey: Server, callers: Callers, key: str
) -> None:
    store = callers.store(valkey.url, PATIENT)
    limiter = callers.limiter(store, "1000000/366d")
    context = multiprocessing.get_context("fork")
    enough = threading.Event()

    def in_thread() -> int:
        made = 0
        while not enough.is_set():
            assert limiter.limit(key).allowed
            made += 1
        return made

    async def in_task() -> int:
        made = 0
        while not enough.is_set():
            assert (await limiter.limit(key)).allowed
            made += 1
        return made

    traffic = [callers.call(in_task if callers.asynchronous else in_thread) for _ in range(6)]
    try:
        for number in range(4):
            seen = context.Queue()
            args = limiter, f"{key}-{number}", callers.asynchronous, seen
            child = context.Process(target=_in_child, args=args)
            child.start()
            assert seen.get(timeout=20) == [999_999, 999_998, 999_997]
            child.join(20)
            assert child.exitcode == 0
    finally:
        enough.set()
    made = sum(results(traffic))
    assert callers.wait(limiter.peek, key).remaining == 1_000_000 - made


def test_each_node_of_a_cluster_gets_one_write(callers: Callers) -> None:
    keys = [f"key-{number}" for number in range(16)]
    with cluster(2) as nodes:
        store = callers.store(nodes.url(), PATIENT)
        limiter = callers.limiter(store, "4/366d")
        callers.wait(limiter.limit_many, keys)
        watches = [node.client(single_connection_client=True) for node in nodes]
        runs = [node.calls("evalsha", "eval") for node in nodes]
        before = [watch.info("stats")["total_reads_processed"] for watch in watches]
        answers = callers.wait(limiter.limit_many, keys)
        reads = [watch.info("stats")["total_reads_processed"] for watch in watches]
        assert [answer.state.remaining for answer in answers] == [2] * 16
        assert [after - old for after, old in zip(reads, before, strict=True)] == [1 + 1] * 2
        ran = [node.calls("evalsha", "eval") - old for node, old in zip(nodes, runs, strict=True)]
        assert sum(ran) == 16, "a run for each slot"
        assert all(ran)

        # In line behind what the nodes are busy with, calls of many slots leave together as well.
        with paused(*nodes):
            busy = [callers.call(limiter.peek, each) for each in keys]
            wait_until(lambda: callers.asking(store) >= 2, "calls under way")
            line = callers.join(store, limiter.limit, [(each, 1) for each in keys[:4] * 3])
        results(busy)
        answers = results(line)
        # Of each key, the two that came first.
        assert [answer.allowed for answer in answers] == [True] * 8 + [False] * 4
        for node, watch in zip(nodes, watches, strict=True):
            ours = [each for each in node.ask("CLIENT", "LIST").splitlines() if b"evalsha" in each]
            assert len(ours) == 1, "one connection a node"
            watch.close()


# --- nothing stays behind ------------------------------------------------------------------------


def test_nothing_stays_behind(valkey: Server, callers: Callers, key: str) -> None:
    with valkey.client(single_connection_client=True) as client:
        before = len(client.client_list())
        store = callers.store(valkey.url, PATIENT)
        limiter = callers.limiter(store)
        results([callers.call(limiter.limit, key) for _ in range(50)])
        wait_until(lambda: not callers.asking(store) and not callers.at_work(), "the end")
        assert len(client.client_list()) == before + 1
        callers.wait(store.close)
        wait_until(lambda: len(client.client_list()) == before, "the end of the connection")
