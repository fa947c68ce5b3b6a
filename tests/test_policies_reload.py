"""Policy files that change while in use: what follows, and what is counted on."""

from __future__ import annotations

import gc
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import throttled
import throttled.asyncio
from tests import flavours, policy_files
from tests.flavours import Flavour
from tests.policy_files import API, loaded, put
from tests.servers import Server
from throttled import MemoryStore
from throttled.exceptions import PolicyNotFoundError, SetUpError
from throttled.hooks import Observer
from throttled.policies import base

flavour = flavours.flavour
path = policy_files.path


def remaining(flavour: Flavour, limit: Any, key: str = "key") -> int:
    return int(flavour.run(limit.peek, key).remaining)


# -- what follows ---------------------------------------------------------------------------------


def test_a_limit_follows_and_what_was_counted_stays(flavour: Flavour, path: Path) -> None:
    policies = loaded(flavour, path)
    api = policies["api"]
    mine = policies.policy("api", key="key", cost=2)
    assert flavour.run(api.limit, "key", 3).allowed
    at = policies.loaded_at
    assert not policies.reload()
    assert policies.loaded_at == at
    put(path, API.format("9/m"))
    assert policies.reload()
    assert policies.loaded_at > at
    assert policies["api"] is api
    assert (remaining(flavour, api), remaining(flavour, mine)) == (6, 6)
    assert (str(api.quota), str(mine.quota), mine.key, mine.cost) == ("9/m", "9/m", "key", 2)
    assert str(policies.spec("api").rules[0].quota) == "9/m"
    put(path, API.format("4/m"))
    assert policies.reload()
    assert remaining(flavour, api) == 1


def test_every_setting_follows(flavour: Flavour, path: Path) -> None:
    policies = loaded(flavour, path)
    api = policies["api"]
    put(
        path,
        """
        [stores.own]
        url = "memory"
        [policies.api]
        quota = "1/m; 10/h"
        using = "fixed_window"
        store = "own"
        key_prefix = "p"
        on_store_error = "allow"
        enforce = false
        hold = true
        overrides = [{ key = "root", exempt = true }, { key = "vip", quota = "7/m" }]
        """,
    )
    assert policies.reload()
    result = flavour.run(api.limit, "key")
    assert [(rule.using, str(rule.quota)) for rule in result.rules] == [
        ("fixed_window", "1/m"),
        ("fixed_window", "10/h"),
    ]
    assert (api.on_store_error, api.enforce, api.hold) == ("allow", False, True)
    assert flavour.run(api.limit, "key").allowed
    assert flavour.run(api.limit, "root").source == "exempt"
    assert flavour.run(api.peek, "vip").limit == 7
    flavour.run(api.penalize, "vip", 5)
    assert any(name.startswith("p:v1:hold") for name in api.store._cells)
    put(path, API.format("5/m"))
    assert policies.reload()
    assert (api.on_store_error, api.enforce, api.hold, api.exempt) == ("raise", True, False, None)
    assert (str(api.quota), remaining(flavour, api, "vip")) == ("5/m", 5)
    with pytest.raises(SetUpError):
        flavour.run(api.penalize, "key", 5)


def test_what_is_listened_to_and_who_is_exempt_stays(flavour: Flavour, path: Path) -> None:
    class Heard(Observer):
        keys: tuple[str, ...] = ()

        def decided(self, event: Any) -> None:
            self.keys += (event.key,)

    policies = loaded(flavour, path)
    observer, allowed = Heard(), []
    mine = policies.policy(
        "api", exempt=lambda key: key == "me", on_allow=lambda event: allowed.append(event.key)
    )
    mine.observe(observer)
    put(path, API.format("9/m"))
    policies.reload()
    put(path, 'policies.api = { quota = "9/m", overrides = [{ key = "k", exempt = true }] }')
    policies.reload()
    for key in ("k", "me", "other"):
        flavour.run(mine.limit, key)
    assert allowed == ["k", "me", "other"]
    assert observer.keys == ("k", "me", "other")
    assert [remaining(flavour, mine, key) for key in ("k", "me", "other")] == [9, 9, 8]
    put(path, API.format("9/m"))
    policies.reload()
    flavour.run(mine.limit, "me")
    assert (remaining(flavour, mine, "me"), remaining(flavour, policies["api"], "k")) == (9, 9)


def test_policies_come_and_go(flavour: Flavour, path: Path) -> None:
    policies = loaded(flavour, path)
    api = policies["api"]
    put(path, 'policies.other = { quota = "1/m" }')
    assert policies.reload()
    assert list(policies) == list(policies.specs) == ["other"]
    for ask in (policies.__getitem__, policies.policy, policies.spec):
        with pytest.raises(PolicyNotFoundError):
            ask("api")
    assert flavour.run(api.limit, "key").allowed  # as before
    put(path, API.format("3/m"))
    assert policies.reload()
    assert policies["api"] is api
    assert remaining(flavour, api) == 2


def test_a_limit_that_nobody_holds_is_forgotten(path: Path) -> None:
    policies = throttled.load(path)
    mine = [policies.policy("api") for _ in range(5)]
    assert len(policies._issued["api"]) == 6
    mine.clear()
    gc.collect()
    assert len(policies._issued["api"]) == 1
    put(path, 'policies.other = { quota = "1/m" }')
    policies.reload()
    gc.collect()
    policies.reload()
    assert "api" not in policies._first


def test_a_policy_that_is_the_same_is_left_alone(path: Path) -> None:
    policies = throttled.load(path)
    policies["api"].quota = "7/m"
    put(path, API.format("5/m") + 'policies.more = { quota = "1/m" }')
    assert policies.reload()
    assert str(policies["api"].quota) == "7/m"


def test_waiting_calls_are_served(path: Path) -> None:
    put(path, 'policies.api = { quota = "10/s burst 1" }')
    policies = throttled.load(path)
    mine = policies.policy("api", timeout=5)
    mine.limit("key")
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(mine.limit, "key") for _ in range(3)]
        for tier in ("10/s burst 2", "10/s burst 1"):
            put(path, f'policies.api = {{ quota = "{tier}", hold = true }}')
            policies.reload()
        assert all(each.result().allowed for each in waiting)


# -- stores ---------------------------------------------------------------------------------------

STORES = """
[stores.one]
url = "memory"
options = {{ MAX_SIZE = {size} }}
[policies.api]
quota = "{quota}"
using = "fixed_window"
store = "one"
[policies.own]
quota = "5/m"
store = "memory"
"""


def test_a_store_stays_until_it_is_another(flavour: Flavour, path: Path) -> None:
    put(path, STORES.format(size=10, quota="5/m"))
    policies = loaded(flavour, path)
    api, own = policies["api"], policies["own"]
    stores = api.store, own.store
    for limit in (api, own):
        assert flavour.run(limit.limit, "key", 2).allowed
    put(path, "# the same\n" + STORES.format(size=10, quota="7/m"))
    assert policies.reload()
    assert (api.store, own.store) == stores
    assert (remaining(flavour, api), remaining(flavour, own)) == (5, 3)
    put(path, STORES.format(size=20, quota="7/m"))
    assert policies.reload()
    assert own.store is stores[1]
    assert api.store is not stores[0]
    assert (remaining(flavour, api), remaining(flavour, own)) == (7, 3)


def test_a_store_is_another_if_what_stands_in_for_it_is(path: Path) -> None:
    text = """
    stores.one = {{ url = "redis://localhost:1", on_store_error = "two" }}
    stores.two = {{ url = "redis://localhost:2", on_store_error = "{}" }}
    stores.three = {{ url = "redis://localhost:3", on_store_error = "local" }}
    policies.api = {{ quota = "5/m", store = "one" }}
    policies.far = {{ quota = "5/m", store = "three" }}
    """
    put(path, text.format("deny"))
    with throttled.load(path) as policies:
        one, three = policies["api"].store, policies["far"].store
        put(path, text.format("allow"))
        assert policies.reload()
        assert policies["api"].store is not one
        assert policies["far"].store is three
        assert policies["api"].store.on_store_error.on_store_error == "allow"


class Closed:
    """Counts how often a store was closed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stores: list[Any] = []
        monkeypatch.setattr(MemoryStore, "close", lambda store: self.stores.append(store))


def test_a_store_that_was_replaced_is_closed_when_it_is_not_used(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed, now = Closed(monkeypatch), [0.0]
    monkeypatch.setattr(base.time, "monotonic", lambda: now[0])
    put(path, STORES.format(size=10, quota="5/m"))
    policies = throttled.load(path)
    held = policies["api"]
    first = held.store
    put(path, 'policies.other = { quota = "1/m" }')
    policies.reload()  # the store is gone, and a limit on it still held
    now[0] += base.GRACE
    policies._round(False)
    assert closed.stores == []
    del held
    gc.collect()
    policies._round(False)
    assert closed.stores == [first]
    policies.close()
    assert len(closed.stores) == 2  # the one in memory that every file has
    policies.close()


def test_a_store_that_was_given_stays_open(
    flavour: Flavour, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed, given = Closed(monkeypatch), MemoryStore()
    policies = loaded(flavour, path, store=given)
    flavour.run(policies.close)
    assert given not in closed.stores


async def test_async_with_closes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = Closed(monkeypatch)
    async with throttled.asyncio.load(path) as policies:
        assert (await policies["api"].limit("key")).allowed
    assert closed.stores == [policies["api"].store]


@pytest.mark.server
def test_counts_on_a_server_stay(path: Path, valkey: Server, monkeypatch: Any) -> None:
    monkeypatch.setenv("URL", valkey.url)
    text = """
    stores.main = {{ url = "${{URL}}", options = {{ DECISION_TIMEOUT = {} }} }}
    defaults.using = "fixed_window"
    policies.api = {{ quota = "{}", store = "main", key_prefix = "reloaded" }}
    """
    put(path, text.format("5.0", "5/366d"))
    with throttled.load(path) as policies:
        api = policies["api"]
        store = api.store
        assert api.limit("key", 3).allowed
        put(path, text.format("5.0", "9/366d"))
        assert policies.reload()
        assert api.store is store
        assert api.peek("key").remaining == 6
        put(path, text.format("4.0", "9/366d; 99/365d"))
        assert policies.reload()
        assert api.store is not store
        assert [state.remaining for state in api.limit("key").states] == [5, 98]
        api.reset("key")


@pytest.mark.server
async def test_counts_on_a_server_stay_in_async_code(path: Path, valkey: Server) -> None:
    text = """
    stores.main = {{ url = "{}", options = {{ DECISION_TIMEOUT = {} }} }}
    defaults.using = "fixed_window"
    policies.api = {{ quota = "{}", store = "main", key_prefix = "areloaded" }}
    """
    put(path, text.format(valkey.url, "5.0", "5/366d"))
    async with throttled.asyncio.load(path) as policies:
        api = policies["api"]
        assert (await api.limit("key", 3)).allowed
        for quota, timeout, left in (("9/366d", "5.0", 6), ("8/366d", "4.0", 5)):
            put(path, text.format(valkey.url, timeout, quota))
            assert policies.reload()
            assert (await api.peek("key")).remaining == left
        await api.reset("key")


# -- many at once ---------------------------------------------------------------------------------

KINDS = [
    API.format("1000000/s"),
    'policies.api = { quota = "1000000/s; 100000000/h", hold = true }',
    'policies.api = { quota = "1000000/s", overrides = [{ key = "k1", exempt = true }] }',
    'policies.api = { quota = "5/s", tiers.all = { keys = ["*"], quota = "1000000/s" } }',
    'policies.api = { quota = "1000000/s", enforce = false, key_prefix = "p", using = "gcra" }',
    'policies.api = { quota = "1000000/s", store = "memory", on_store_error = "local" }',
]


def test_calls_go_on_while_it_reloads(path: Path) -> None:
    put(path, KINDS[-1])
    policies = throttled.load(path, store=MemoryStore())
    limits = [policies["api"], policies.policy("api", timeout=1, exempt=lambda key: key == "k2")]
    over = threading.Event()

    def call(number: int) -> int:
        calls = 0
        limit, key = limits[number % 2], f"k{number % 4}"
        while not over.is_set():
            assert limit.limit(key).allowed
            assert all(result.allowed for result in limit.limit_many([key, "other"]))
            assert limit.peek(key).limit
            with limit.reserve(key) as reservation:
                reservation.settle(1)
            limit.refund(key, 1)
            assert policies["api"] is limits[0]
            assert policies.policy("api").limit(key).allowed
            repr(limit)
            calls += 1
        return calls

    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(8) as pool:
            calling = [pool.submit(call, number) for number in range(8)]
            try:
                for _ in range(20):
                    for text in KINDS:
                        put(path, text)
                        assert policies.reload()
            finally:
                over.set()
            assert all(each.result() for each in calling)
    finally:
        sys.setswitchinterval(switch)


def test_reloading_at_once_is_one_after_the_other(path: Path) -> None:
    policies = throttled.load(path)
    with ThreadPoolExecutor(8) as pool:
        for number in range(2, 12):
            put(path, API.format(f"{number}/m"))
            changed = [each.result() for each in [pool.submit(policies.reload) for _ in range(8)]]
            assert sum(changed) == 1
            assert policies["api"].quota.limit == number
