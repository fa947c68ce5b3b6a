"""Callables that say the key or the cost of a call."""

from __future__ import annotations

import functools
from typing import Any

import anyio
import pytest

from throttled import MemoryStore, Throttled
from throttled.asyncio import Throttled as AsyncThrottled
from throttled.exceptions import DataError, LimitedError
from throttled.testing import FakeClock


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore(clock=FakeClock())


def taken(store: MemoryStore, key: str) -> int:
    """What calls have taken from a key's 100 a minute."""
    return 100 - Throttled(quota="100/m", store=store).peek(key).remaining


def test_callables_are_given_the_very_arguments(store: MemoryStore) -> None:
    seen = []

    def key(*args: Any, **kwargs: Any) -> str:
        seen.append((args, kwargs))
        return "key"

    def cost(*args: Any, **kwargs: Any) -> int:
        seen.append((args, kwargs))
        return 3

    class Client:
        @Throttled(key=key, cost=cost, quota="100/m", store=store)
        def complete(self, prompt: str, *more: str, n: int = 1) -> str:
            return prompt

    client, prompt = Client(), "say"
    assert client.complete(prompt) == "say"
    assert client.complete(prompt, "x", n=2) == "say"
    assert seen == [((client, "say"), {})] * 2 + [((client, "say", "x"), {"n": 2})] * 2
    assert seen[0][0][1] is prompt
    assert taken(store, "key") == 6


def test_a_cost_by_the_prompt(store: MemoryStore) -> None:
    @Throttled(
        key="user:{user_id}", cost=lambda user_id, prompt, **_: len(prompt) // 4,
        quota="100/m", store=store,
    )  # fmt: skip
    def complete(user_id: str, prompt: str, *, model: str = "") -> str:
        return prompt

    complete("ann", "p" * 160)
    complete("ann", "p" * 40, model="m")
    complete("bob", "")
    assert (taken(store, "user:ann"), taken(store, "user:bob")) == (50, 0)
    with pytest.raises(LimitedError):
        complete("ann", "p" * 204)
    complete("ann", "p" * 200)


def broken(*args: Any) -> Any:
    raise KeyError("mine")


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("value", [None, "", b"key", 5, ["k"]], ids=repr)
def test_a_key_that_is_none(store: MemoryStore, backend: str, value: Any) -> None:
    def the_key(a: int) -> Any:
        return value

    @Throttled(key=the_key, store=store)
    def func(a: int) -> None: ...

    @AsyncThrottled(key=the_key, store=store)
    async def afunc(a: int) -> None: ...

    says = r"Invalid key: .*, must be a non-empty string\. .*the_key returned it\.$"
    with pytest.raises(DataError, match=says) as error:
        func(1)
    assert repr(value) in str(error.value)
    with pytest.raises(DataError, match=says):
        anyio.run(afunc, 1, backend=backend)
    assert len(store) == 0


@pytest.mark.parametrize("value", [None, -1, True, False, 1.0, "1"], ids=repr)
async def test_a_cost_that_is_none(store: MemoryStore, value: Any) -> None:
    def the_cost(a: int) -> Any:
        return value

    @Throttled(key="key", cost=the_cost, store=store)
    def func(a: int) -> None: ...

    @AsyncThrottled(key="key", cost=the_cost, store=store)
    async def afunc(a: int) -> None: ...

    says = r"Invalid cost: .*, must be an integer of 0 or more\. .*the_cost returned it\.$"
    with pytest.raises(DataError, match=says) as error:
        func(1)
    assert repr(value) in str(error.value)
    with pytest.raises(DataError, match=says):
        await afunc(1)
    assert len(store) == 0


async def test_what_a_callable_raises_comes_through(store: MemoryStore) -> None:
    options: list[Any] = [{"key": broken}, {"key": "{a}", "cost": broken}]
    for each in options:

        @Throttled(store=store, **each)
        def func(a: int) -> None: ...

        @AsyncThrottled(store=store, **each)
        async def afunc(a: int) -> None: ...

        with pytest.raises(KeyError, match="mine") as error:
            func(1)
        assert error.value.__cause__ is None
        with pytest.raises(KeyError, match="mine"):
            await afunc(1)
    assert len(store) == 0


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_async_callables_are_awaited(store: MemoryStore, backend: str) -> None:
    async def key(user_id: int) -> str:
        await anyio.lowlevel.checkpoint()
        return f"user:{user_id}"

    async def cost(user_id: int) -> int:
        await anyio.lowlevel.checkpoint()
        return 2 * user_id

    @AsyncThrottled(key=key, cost=cost, quota="100/m", store=store)
    async def both(user_id: int) -> int:
        return user_id

    @AsyncThrottled(key=lambda user_id: key(user_id), cost=5, quota="100/m", store=store)
    async def only_key(user_id: int) -> int:
        return user_id

    @AsyncThrottled(key="user:{user_id}", cost=cost, quota="100/m", store=store)
    async def only_cost(user_id: int) -> int:
        return user_id

    @AsyncThrottled(key=key, cost=lambda user_id: cost(user_id), quota="100/m", store=store)
    async def generate(user_id: int) -> Any:
        yield user_id

    async def main() -> None:
        assert [await both(1), await only_key(2), await only_cost(3)] == [1, 2, 3]
        assert [item async for item in generate(4)] == [4]

    anyio.run(main, backend=backend)
    assert [taken(store, f"user:{n}") for n in (1, 2, 3, 4)] == [2, 5, 6, 8]


def test_async_callables_have_no_place_in_sync_code(store: MemoryStore) -> None:
    async def say(*args: Any) -> Any: ...

    class Say:
        async def __call__(self, *args: Any) -> Any: ...

    def func(a: int) -> None: ...

    says = r" is async, must be a plain callable; throttled\.asyncio takes both\.$"
    for each in (say, Say(), functools.partial(say)):
        with pytest.raises(DataError, match="Invalid key: .*" + says):
            Throttled(key=each, store=store)(func)
        with pytest.raises(DataError, match="Invalid cost: .*" + says):
            Throttled(key="{a}", cost=each, store=store)(func)
    # A coroutine that comes as a surprise is closed, so nothing warns of it later.
    with pytest.raises(DataError, match=r"Invalid key: <coroutine object .* returned it"):
        Throttled(key=lambda a: say(a), store=store)(func)(1)
