"""Decorated generators: charged by the call or by the item, and otherwise as they were."""

from __future__ import annotations

import gc
import inspect
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from tests.cancelling import cancelled
from throttled import MemoryStore, Throttled
from throttled.asyncio import Throttled as AsyncThrottled
from throttled.exceptions import LimitedError
from throttled.testing import FakeClock


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore(clock=FakeClock())


def sync(store: MemoryStore, limit: int = 1, **kwargs: Any) -> Throttled:
    return Throttled(key="key", quota=f"{limit}/m", store=store, **kwargs)


def async_(store: MemoryStore, limit: int = 1, **kwargs: Any) -> AsyncThrottled:
    return AsyncThrottled(key="key", quota=f"{limit}/m", store=store, **kwargs)


def left(store: MemoryStore, limit: int) -> int:
    """What is left of a key that nobody has waited for."""
    return sync(store, limit).peek().remaining


def test_per_item_charges_what_is_handed_out(store: MemoryStore) -> None:
    made, closed = [], []

    @sync(store, 6, cost=2, per="item")
    def numbers(n: int) -> Iterator[int]:
        try:
            for i in range(n):
                made.append(i)
                yield i
        finally:
            closed.append(n)

    assert inspect.isgeneratorfunction(numbers)
    unused = numbers(9)
    assert list(numbers(0)) == []
    assert left(store, 6) == 6
    assert list(numbers(2)) == [0, 1]
    assert left(store, 6) == 2
    last = numbers(3)
    assert next(last) == 0
    assert (made, closed, left(store, 6)) == ([0, 1, 0], [0, 2], 0)
    with pytest.raises(LimitedError):
        next(last)
    assert closed == [0, 2, 3], "the refused generator is closed"
    assert list(last) == []
    with pytest.raises(LimitedError):
        next(unused)


def test_per_item_waits_for_each_item(store: MemoryStore) -> None:
    clock: Any = store.sleeper

    @Throttled(key="k", quota="1/s burst 1", store=store, timeout=5, per="item")
    def ticks() -> Iterator[float]:
        while True:
            yield clock.now

    began = clock.now
    at = [clock.now - began for _ in zip(range(4), ticks(), strict=False)]
    assert at == [0.0, 1.0, 2.0, 3.0]


def test_the_key_and_cost_of_a_generator_are_read_once(store: MemoryStore) -> None:
    read = []

    def cost(user: str, n: int) -> int:
        read.append(user)
        return n

    @Throttled(key="user:{user}", cost=cost, quota="100/m", store=store, per="item")
    def numbers(user: str, n: int) -> Iterator[int]:
        yield from range(n)

    generator = numbers("ann", 3)
    assert read == []
    assert list(generator) == [0, 1, 2]
    assert read == ["ann"]
    assert sync(store, 100).peek("user:ann").remaining == 91


async def test_a_generator_that_cannot_be_made_is_not_charged(store: MemoryStore) -> None:
    @sync(store)
    def numbers(n: int) -> Iterator[int]:
        yield n

    @async_(store)
    async def anumbers(n: int) -> AsyncIterator[int]:
        yield n

    wrong: Any = numbers(), anumbers()
    with pytest.raises(TypeError, match=r"numbers\(\) missing 1 required"):
        next(wrong[0])
    with pytest.raises(TypeError, match=r"anumbers\(\) missing 1 required"):
        await anext(wrong[1])
    assert left(store, 1) == 1


class Sent(Exception):  # noqa: N818
    """What a test throws into a generator."""


def conversation(log: list[Any]) -> Any:
    """A generator that does all that a generator can."""
    got: Any = "start"
    try:
        while got != "return":
            try:
                got = yield ("got", got)
            except Sent as error:
                got = yield ("caught", str(error))
        return "returned"
    except GeneratorExit:
        log.append("exit")
        raise
    finally:
        log.append("closed")


async def aconversation(log: list[Any]) -> Any:
    """The same, async: it returns nothing."""
    got: Any = "start"
    try:
        while got != "return":
            try:
                got = yield ("got", got)
            except Sent as error:
                got = yield ("caught", str(error))
    except GeneratorExit:
        log.append("exit")
        raise
    finally:
        log.append("closed")


#: What is done to a generator: sent, thrown, or None for the end.
ACTS: list[list[Any]] = [
    [],
    ["a", "b"],
    ["a", Sent("x"), "b"],
    [Sent("x"), Sent("y"), "z"],
    ["return"],
    [Sent("x"), "return"],
    [KeyError("unheard")],
    ["a", GeneratorExit()],
    ["a", "close"],
    ["return", "after"],
]


def talk(generator: Any, acts: list[Any]) -> list[Any]:
    """What came of each act."""
    said: list[Any] = []
    for act in [None, *acts]:
        try:
            if act == "close":
                said.append(generator.close())
            elif isinstance(act, BaseException):
                said.append(generator.throw(act))
            else:
                said.append(generator.send(act))
        except StopIteration as end:
            said.append(("stop", end.value))
        except (Exception, GeneratorExit) as error:
            said.append(repr(error))
    return said


async def atalk(generator: Any, acts: list[Any]) -> list[Any]:
    said: list[Any] = []
    for act in [None, *acts]:
        try:
            if act == "close":
                said.append(await generator.aclose())
            elif isinstance(act, BaseException):
                said.append(await generator.athrow(act))
            else:
                said.append(await generator.asend(act))
        except (Exception, GeneratorExit) as error:
            said.append(repr(error))
    await generator.aclose()
    return said


@pytest.mark.parametrize("per", ["call", "item"])
@pytest.mark.parametrize("acts", ACTS, ids=str)
def test_a_generator_is_driven_as_if_it_were_not_limited(
    store: MemoryStore, acts: list[Any], per: Any
) -> None:
    plain: list[Any] = []
    logged: list[Any] = []
    expected = talk(conversation(plain), acts)
    assert talk(sync(store, 100, per=per)(conversation)(logged), acts) == expected
    assert logged == plain
    items = sum(isinstance(each, tuple) and each[0] != "stop" for each in expected)
    assert left(store, 100) == 100 - (1 if per == "call" else items)


@pytest.mark.parametrize("per", ["call", "item"])
@pytest.mark.parametrize("acts", ACTS, ids=str)
async def test_an_async_generator_is_driven_as_if_it_were_not_limited(
    store: MemoryStore, acts: list[Any], per: Any
) -> None:
    plain: list[Any] = []
    logged: list[Any] = []
    expected = await atalk(aconversation(plain), acts)
    assert await atalk(async_(store, 100, per=per)(aconversation)(logged), acts) == expected
    assert logged == plain
    items = sum(isinstance(each, tuple) for each in expected)
    assert left(store, 100) == 100 - (1 if per == "call" else items)


@pytest.mark.parametrize("per", ["call", "item"])
async def test_what_a_generator_raises_passes(store: MemoryStore, per: Any) -> None:
    @sync(store, 9, per=per)
    def fail() -> Iterator[int]:
        yield 1
        raise KeyError("mine")

    @async_(store, 9, per=per)
    async def afail() -> AsyncIterator[int]:
        yield 1
        raise KeyError("mine")

    generator, agenerator = fail(), afail()
    assert next(generator) == 1
    with pytest.raises(KeyError, match="mine"):
        next(generator)
    assert [*generator] == []
    assert await anext(agenerator) == 1
    with pytest.raises(KeyError, match="mine"):
        await anext(agenerator)
    assert [item async for item in agenerator] == []


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_async_per_item_charges_what_is_handed_out(store: MemoryStore, backend: str) -> None:
    made, closed = [], []

    @async_(store, 6, cost=2, per="item")
    async def numbers(n: int) -> AsyncIterator[int]:
        try:
            for i in range(n):
                await checkpoint()
                made.append(i)
                yield i
        finally:
            await checkpoint()
            closed.append(n)

    assert inspect.isasyncgenfunction(numbers)

    async def main() -> None:
        assert [n async for n in numbers(0)] == []
        assert left(store, 6) == 6
        assert [n async for n in numbers(2)] == [0, 1]
        last = numbers(3)
        assert await anext(last) == 0
        assert (made, closed, left(store, 6)) == ([0, 1, 0], [0, 2], 0)
        with pytest.raises(LimitedError):
            await anext(last)
        assert closed == [0, 2, 3], "the refused generator is closed"
        assert [n async for n in last] == []
        with pytest.raises(LimitedError):
            await anext(numbers(1))

    anyio.run(main, backend=backend)
    assert closed == [0, 2, 3, 1]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_cancelled_async_generator_gives_its_slot_back(backend: str) -> None:
    """The item in hand is gone with the generator, and nobody pays for it."""
    store, closed = MemoryStore(), []

    @AsyncThrottled(key="k", quota="1/h burst 1", store=store, timeout=7200, per="item")
    async def numbers() -> AsyncIterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.append(1)

    async def main() -> None:
        generator = numbers()
        assert await anext(generator) == 1
        await cancelled(lambda: anext(generator))
        assert closed == [1]

    anyio.run(main, backend=backend)
    throttle = Throttled(quota="1/h burst 1", store=store)
    assert throttle.peek("k").retry_after == pytest.approx(3600, abs=60)


def test_an_unfinished_generator_closes_the_one_inside(store: MemoryStore) -> None:
    for per in ("call", "item"):
        log: list[Any] = []
        generator = sync(store, 9, per=per)(conversation)(log)
        next(generator)
        del generator
        gc.collect()
        assert log == ["exit", "closed"], per


def test_callable_objects_may_generate(store: MemoryStore) -> None:
    class Numbers:
        def __call__(self, n: int) -> Iterator[int]:
            yield from range(n)

    numbers = sync(store, 3, per="item")(Numbers())
    assert inspect.isgeneratorfunction(numbers)
    assert list(numbers(3)) == [0, 1, 2]
    with pytest.raises(LimitedError):
        list(numbers(1))


async def test_async_callable_objects_may_generate(store: MemoryStore) -> None:
    class Numbers:
        async def __call__(self, n: int) -> AsyncIterator[int]:
            for i in range(n):
                yield i

    per_call, per_item = async_(store, 4)(Numbers()), async_(store, 4, per="item")(Numbers())
    assert inspect.isasyncgenfunction(per_call)
    assert [n async for n in per_call(3)] == [0, 1, 2]
    assert [n async for n in per_item(3)] == [0, 1, 2]
    with pytest.raises(LimitedError):
        [n async for n in per_item(1)]


def test_generator_methods(store: MemoryStore) -> None:
    limit = sync(store, 5, per="item")

    class Pages:
        size = 2

        @limit
        def pages(self) -> Iterator[int]:
            yield from range(self.size)

        @limit
        @classmethod
        def outside(cls) -> Iterator[int]:
            yield from range(cls.size)

        @staticmethod
        @limit
        def within(n: int) -> Iterator[int]:
            yield from range(n)

    assert [*Pages().pages(), *Pages.outside(), *Pages.within(1)] == [0, 1, 0, 1, 0]
    with pytest.raises(LimitedError):
        next(Pages.within(1))
