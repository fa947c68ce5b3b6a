"""What a store holds for a key: the same in memory and on a server, and what may be in the way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import pytest

from tests import acl
from tests.contract import PATIENT
from tests.dashboard.sites import TOKEN, Site, site, until
from tests.servers import HOST, Server, free_port
from throttled import MemoryStore, Quota, RateLimiterType, RedisStore, Throttled
from throttled.algorithms.plan import Plan, make_plan
from throttled.asyncio import RedisStore as AsyncRedisStore
from throttled.asyncio import Throttled as AsyncThrottled
from throttled.dashboard import Dashboard
from throttled.dashboard.stored import entries_of, fields_of, stored
from throttled.testing import FakeClock

_numbers = count(1)


def plan_of(using: str, quota: str = "10/m", prefix: str | None = None) -> Plan:
    return make_plan(using, Quota.parse(quota), prefix or f"throttled:dash{next(_numbers)}")


def shown(told: Any) -> dict[str, str]:
    return {each["name"]: each["shown"] for each in told["fields"]}


# -- in memory -------------------------------------------------------------------------------------


async def test_in_memory_every_algorithm() -> None:
    clock = FakeClock(1_700_000_000.0)
    store = MemoryStore(clock=clock)
    plans = [plan_of(using) for using in RateLimiterType.choice()]
    for plan in plans:
        store.run(plan, "ann", 4, 0.0)
    told = await stored(store, plans, "ann")
    assert told is not None
    fixed, sliding, log, *buckets = told
    assert shown(fixed)["count"] == "4"
    assert shown(fixed)["start"] == "2023-11-14 22:13:00.000Z"
    assert (shown(sliding)["previous"], shown(sliding)["current"]) == ("0", "4")
    assert (log["type"], log["length"], log["ttl"]) == ("list", 1, 60.0)
    assert log["entries"] == [{"slot": "2023-11-14 22:13:20.000Z", "cost": 4.0}]
    for each in buckets:
        assert shown(each) == {"at": "2023-11-14 22:13:20.000Z", "credit": "6 tokens"}
        assert each["ttl"] == 24.0
    assert all(each["error"] is None for each in told)
    clock.advance(3600)
    told = await stored(store, plans, "ann")
    assert told is not None
    assert [each["type"] for each in told] == [None] * 6


async def test_a_promise_has_two_fields_more() -> None:
    store = MemoryStore(clock=FakeClock())
    plan = plan_of("gcra", "1/s")
    store.run(plan, "ann", 1, 0.0)
    store.run(plan, "ann", 1, 5e6)
    told = await stored(store, [plan], "ann")
    assert told is not None
    assert shown(told[0])["ahead"] == "1 s"
    assert shown(told[0])["credit"] == "-1 tokens"


def test_a_state_that_is_none() -> None:
    for text in ("", "1", "1 2 3", "one two"):
        with pytest.raises(ValueError, match=r"number|float"):
            fields_of("bucket", text)
    with pytest.raises(ValueError, match="without its total"):
        entries_of([])


def test_the_end_of_a_log() -> None:
    whole = ["0", "10", "2", "20", "5", "30", "6"]  # before, slot, ..., total
    assert entries_of(whole) == ([(10.0, 2.0), (20.0, 3.0), (30.0, 1.0)], 6.0)
    assert entries_of([*whole, "-35"])[0][-1] == (30.0, 1.0)
    assert entries_of(whole[1:])[0] == [(20.0, 3.0), (30.0, 1.0)]
    assert entries_of(["0"]) == ([], 0.0)


# -- on a server -----------------------------------------------------------------------------------


@pytest.fixture(params=["threads", "loop"])
def kinds(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """The store and the limit of each flavour."""
    if request.param == "threads":
        return RedisStore, Throttled
    return AsyncRedisStore, AsyncThrottled


@pytest.fixture
def server(server_named: Callable[[str], Server]) -> Server:
    """One that knows the user of the documents."""
    return server_named("valkey")


@pytest.fixture
def store(kinds: tuple[Any, Any], server: Server) -> Iterator[Callable[..., Any]]:
    """Makes stores on a real server, with the rights of the documents unless told otherwise."""
    made: list[Any] = []

    def make(url: str | None = None, **arguments: Any) -> Any:
        made.append(kinds[0](url or acl.SERVER.url(server.url), PATIENT, **arguments))
        return made[-1]

    yield make
    for each in made:
        closed = each.close()
        if closed is not None:
            asyncio.run(closed)


async def _run(store: Any, plan: Plan, key: str, cost: int) -> None:
    done = store.run(plan, key, cost, 0.0)
    if not isinstance(done, tuple):
        await done


@pytest.mark.server
async def test_on_a_server_it_is_what_it_is_in_memory(
    store: Callable[..., Any], server: Server
) -> None:
    clock = FakeClock(1_700_000_000.0)
    memory, shared = MemoryStore(clock=clock), store(clock=clock)
    plans = [plan_of(using) for using in RateLimiterType.choice()]
    for plan in plans:
        for cost in (3, 2):
            memory.run(plan, "a{n}n", cost, 0.0)
            await _run(shared, plan, "a{n}n", cost)
    here, there = await stored(memory, plans, "a{n}n"), await stored(shared, plans, "a{n}n")
    assert here is not None
    assert there is not None
    for one, other in zip(here, there, strict=True):
        assert other["name"].endswith("{a%7Bn%7Dn}")
        assert server.ask("EXISTS", other["name"]) == 1
        for field in ("type", "fields", "entries", "length", "error"):
            assert one[field] == other[field], field
        assert other["ttl"] is None  # the user of the documents may not ask for it
    none = await stored(shared, plans, "nobody")
    assert none is not None
    assert {each["type"] for each in none} == {None}


@pytest.mark.server
async def test_who_may_ask_for_the_ttl_is_told(store: Callable[..., Any], server: Server) -> None:
    shared, plan = store(server.url), plan_of("gcra", "10/m")
    await _run(shared, plan, "ann", 5)
    told = await stored(shared, [plan], "ann")
    assert told is not None
    assert 25 < told[0]["ttl"] <= 30.1


@pytest.mark.server
async def test_what_is_none_of_ours(store: Callable[..., Any], server: Server) -> None:
    shared, plan = store(server.url), plan_of("gcra")
    log = plan_of("sliding_window_log")
    server.ask("SET", f"{plan.prefix}{{ann}}", "hello")
    server.ask("SADD", f"{plan.prefix}{{bob}}", "hello")
    server.ask("RPUSH", f"{log.prefix}{{ann}}", "hello", "you")
    damaged = await stored(shared, [plan], "ann")
    other = await stored(shared, [plan], "bob")
    listed = await stored(shared, [log], "ann")
    assert damaged is not None
    assert other is not None
    assert listed is not None
    assert damaged[0]["error"].startswith("damaged: ")
    assert (other[0]["type"], other[0]["error"]) == ("set", "holds something else")
    assert listed[0]["error"].startswith("damaged: ")


@pytest.mark.server
async def test_a_hashed_key_is_held_under_its_digest(store: Callable[..., Any]) -> None:
    shared, plan = store(hash_keys=True), plan_of("gcra")
    await _run(shared, plan, "bob@example.org", 1)
    told = await stored(shared, [plan], "bob@example.org")
    assert told is not None
    assert "bob" not in told[0]["name"]
    assert told[0]["type"] == "string"


@pytest.mark.server
def test_the_page_looks_and_resets_on_a_server(kinds: tuple[Any, Any], server: Server) -> None:
    prefix = f"throttled:dash{next(_numbers)}"
    with RedisStore(server.url, PATIENT) as counting:
        same = Throttled(quota="2/s; 50/h", store=counting, key_prefix=prefix, hold=True)
        same.limit("ann")
        looking = kinds[0](server.url, PATIENT)
        limit = kinds[1](quota="2/s; 50/h", store=looking, key_prefix=prefix, hold=True)
        with site(Dashboard({"api": limit}, tokens=(TOKEN,))) as made:
            told = made.post("api/key", {"policy": "api", "key": "ann"}).json()
            assert [each["remaining"] for each in told["rules"]][1] == 49
            assert len(told["stored"]["held"]) == 3
            same.penalize("ann", 30)
            told = made.post("api/key", {"policy": "api", "key": "ann"}).json()
            assert told["held"] is True
            assert "until" in shown(told["stored"]["held"][2])
            assert made.reset({"policy": "api", "key": "ann"}).status_code == 200
            assert same.peek("ann").remaining == same.peek("ann").limit
            assert told["stored"]["error"] is None
        _close(looking)


def _close(store: Any) -> None:
    closed = store.close()
    if closed is not None:
        asyncio.run(closed)


def test_a_server_that_is_down(kinds: tuple[Any, Any]) -> None:
    url = f"redis://:secret@{HOST}:{free_port()}/0"
    raising, allowing = kinds[0](url), kinds[0](url, on_store_error="allow")
    limits = {
        "raising": kinds[1](quota="5/h", store=raising),
        "allowing": kinds[1](quota="5/h", store=allowing),
    }
    with site(Dashboard(limits, tokens=(TOKEN,))) as made:
        answer = made.post("api/key", {"policy": "raising", "key": "ann"})
        assert answer.status_code == 503
        assert "unreachable" in answer.json()["error"]
        assert "secret" not in answer.text
        told = made.post("api/key", {"policy": "allowing", "key": "ann"}).json()
        assert told["source"] == "allowed-by-policy"
        assert "unreachable" in _error(made)
        live = made.told("api/live")[0]
        assert live["error"] is None
        assert live["stats"]["stores"]["redis"]["failures"] > 0
        assert made.reset({"policy": "raising", "key": "ann"}).status_code == 503
    _close(raising)
    _close(allowing)


@pytest.mark.server
def test_a_server_that_comes_back(kinds: tuple[Any, Any]) -> None:
    with Server() as server:
        counting = kinds[0](server.url, PATIENT)
        limit = kinds[1](quota="5/h", store=counting)
        with site(Dashboard({"api": limit}, tokens=(TOKEN,))) as made:
            asked = {"policy": "api", "key": "ann"}

            def status() -> int:
                return made.post("api/key", asked).status_code

            def state() -> str:
                told: str = made.told("api/live")[0]["stats"]["stores"]["redis"]["state"]
                return told

            assert (status(), state()) == (200, "closed")
            server.kill()
            until(lambda: status() == 503 and state() != "closed")
            server.start()
            until(lambda: status() == 200 and state() == "closed")
            assert made.reset(asked).status_code == 200
        _close(counting)


def _error(made: Site) -> str:
    told = made.post("api/key", {"policy": "allowing", "key": "ann"}).json()["stored"]
    error: str = told["error"] or told["held"][0]["error"]
    return error
