"""The decorator and `with`, sync and async: what is kept, what is charged and when."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from throttled import MemoryStore, Throttled
from throttled.asyncio import Throttled as AsyncThrottled
from throttled.exceptions import DataError, LimitedError
from throttled.testing import FakeClock


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore(clock=FakeClock())


def sync(store: MemoryStore, limit: int = 1, **kwargs: Any) -> Throttled:
    return Throttled(key="key", quota=f"{limit}/m", store=store, **kwargs)


def async_(store: MemoryStore, limit: int = 1, **kwargs: Any) -> AsyncThrottled:
    return AsyncThrottled(key="key", quota=f"{limit}/m", store=store, **kwargs)


# -- sync -----------------------------------------------------------------------------------------


def test_function(store: MemoryStore) -> None:
    @sync(store, 2)
    def add(a: int, b: int = 2, *more: int, c: int = 0, **rest: int) -> int:
        """Adds."""
        return a + b + sum(more) + c + sum(rest.values())

    assert add(1) == 3
    assert add(1, 2, 3, c=4, d=5) == 15
    with pytest.raises(
        LimitedError, match=r"exceeded: remaining=0, reset_after=60, retry_after=30\.$"
    ) as error:
        add(1)
    result = error.value.rate_limit_result
    assert result is not None
    assert result.limited
    assert result.state.retry_after == 30.0


def test_the_function_is_still_itself(store: MemoryStore) -> None:
    def original(a: int, *, b: str = "x") -> list[int]:
        """Its words."""
        return [a]

    original.mark = 7  # type: ignore[attr-defined]
    limited = sync(store)(original)
    assert inspect.signature(limited) == inspect.signature(original)
    assert limited.__wrapped__ is original  # type: ignore[attr-defined]
    for name in ("__name__", "__qualname__", "__doc__", "__module__", "__annotations__", "mark"):
        assert getattr(limited, name) == getattr(original, name)
    assert not inspect.iscoroutinefunction(limited)
    assert not inspect.isgeneratorfunction(limited)


def test_a_refused_call_does_not_run(store: MemoryStore) -> None:
    ran = []

    @sync(store)
    def run() -> None:
        ran.append(1)

    run()
    with pytest.raises(LimitedError):
        run()
    assert ran == [1]


def test_an_error_of_the_function_passes_and_was_charged(store: MemoryStore) -> None:
    @sync(store, 2)
    def fail() -> None:
        raise KeyError("mine")

    for _ in range(2):
        with pytest.raises(KeyError, match="mine"):
            fail()
    with pytest.raises(LimitedError):
        fail()


def test_cost_and_timeout_of_the_instance(store: MemoryStore) -> None:
    @sync(store, 10, cost=4, timeout=12)
    def run() -> None: ...

    clock: Any = store.sleeper
    began = clock.now
    run()
    run()
    assert clock.now == began
    run()  # 2 are left and 2 more come in 12 s
    assert clock.now == pytest.approx(began + 12)
    with pytest.raises(LimitedError):
        run()


def test_methods(store: MemoryStore) -> None:
    limit = sync(store, 6)

    class Service:
        factor = 2

        @limit
        def method(self, n: int) -> int:
            return self.factor * n

        @staticmethod
        @limit
        def inside(n: int) -> int:
            return n

        @limit
        @staticmethod
        def outside(n: int) -> int:
            return n

        @classmethod
        @limit
        def within(cls, n: int) -> int:
            return cls.factor * n

        @limit
        @classmethod
        def around(cls, n: int) -> int:
            return cls.factor * n

        @property
        @limit
        def value(self) -> int:
            return self.factor

    service = Service()
    assert [service.method(1), service.inside(2), service.outside(3)] == [2, 2, 3]
    assert [service.within(4), Service.around(5), service.value] == [8, 10, 2]
    with pytest.raises(LimitedError):
        service.method(1)
    with pytest.raises(LimitedError):
        Service.around(1)
    assert service.method.__self__ is service


def test_generator_is_charged_at_each_iteration(store: MemoryStore) -> None:
    """Not when it is made: a generator that is never iterated did nothing."""

    @sync(store, 2)
    def numbers(n: int) -> Iterator[int]:
        got = yield 0
        yield from range(1, n)
        return got

    assert inspect.isgeneratorfunction(numbers)
    unused = [numbers(2) for _ in range(5)]
    assert list(numbers(3)) == [0, 1, 2]
    generator: Any = numbers(2)
    assert next(generator) == 0
    assert generator.send("sent") == 1
    with pytest.raises(StopIteration) as stop:
        next(generator)
    assert stop.value.value == "sent"
    with pytest.raises(LimitedError):
        next(unused[0])


def test_functions_of_one_name_share_a_limit_only_by_key(store: MemoryStore) -> None:
    def make(key: str) -> Any:
        @Throttled(key=key, quota="1/m", store=store)
        def same() -> None: ...

        return same

    first, second, third = make("a"), make("b"), make("a")
    first()
    second()
    with pytest.raises(LimitedError):
        third()


def test_other_callables(store: MemoryStore) -> None:
    class Adder:
        def __call__(self, n: int) -> int:
            return n + 1

    limit = sync(store, 4)
    assert limit(Adder())(1) == 2
    assert limit(functools.partial(int, "11"))(base=2) == 3
    assert limit(int)("5") == 5
    assert limit(lambda: 6)() == 6
    with pytest.raises(LimitedError):
        limit(len)([])


@pytest.mark.parametrize("thing", [5, None, "text", object()])
def test_what_cannot_be_called(store: MemoryStore, thing: Any) -> None:
    for limit in (sync(store), async_(store)):
        with pytest.raises(TypeError):
            limit(thing)


def test_with(store: MemoryStore) -> None:
    throttle = sync(store, 2, cost=2)
    with throttle as result:
        assert result.allowed
        assert not result.limited
        assert result.state.remaining == 0
    with pytest.raises(LimitedError) as error, throttle:
        pytest.fail("a refused block does not run")
    assert error.value.rate_limit_result is not None
    assert error.value.rate_limit_result.limited


def test_with_lets_errors_pass(store: MemoryStore) -> None:
    with pytest.raises(KeyError), sync(store):
        raise KeyError


# -- async ----------------------------------------------------------------------------------------


async def test_async_function(store: MemoryStore) -> None:
    @async_(store, 2)
    async def double(n: int) -> int:
        """Doubles."""
        await asyncio.sleep(0)
        return 2 * n

    assert inspect.iscoroutinefunction(double)
    assert (double.__name__, double.__doc__) == ("double", "Doubles.")
    assert await double(2) == 4
    unused = double(1)
    assert await double(3) == 6
    with pytest.raises(LimitedError, match=r"retry_after=30\.$"):
        await unused


async def test_async_generator(store: MemoryStore) -> None:
    closed = []

    @async_(store, 2)
    async def numbers(n: int) -> AsyncIterator[int]:
        try:
            for i in range(n):
                yield i
        finally:
            closed.append(n)

    assert inspect.isasyncgenfunction(numbers)
    assert [n async for n in numbers(3)] == [0, 1, 2]
    async for _ in (partly := numbers(4)):
        break
    await partly.aclose()  # type: ignore[attr-defined]
    assert closed == [3, 4]
    with pytest.raises(LimitedError):
        [n async for n in numbers(1)]


async def test_async_methods(store: MemoryStore) -> None:
    limit = async_(store, 3)

    class Service:
        @limit
        async def method(self, n: int) -> int:
            return n

        @limit
        @staticmethod
        async def alone(n: int) -> int:
            return n

        @classmethod
        @limit
        async def whole(cls, n: int) -> int:
            return n

    service = Service()
    assert [await service.method(1), await service.alone(2), await Service.whole(3)] == [1, 2, 3]
    assert inspect.iscoroutinefunction(service.method)
    with pytest.raises(LimitedError):
        await service.alone(1)


async def test_async_with(store: MemoryStore) -> None:
    throttle = async_(store)
    async with throttle as result:
        assert result.allowed
    with pytest.raises(LimitedError):
        async with throttle:
            pytest.fail("a refused block does not run")


async def test_async_decorator_waits(store: MemoryStore) -> None:
    @async_(store, timeout=60)
    async def run() -> None: ...

    clock: Any = store.sleeper
    began = clock.now
    await run()
    await run()
    assert clock.now == began + 60


# -- one for the other ----------------------------------------------------------------------------


async def coroutine() -> None: ...


async def async_generator() -> AsyncIterator[int]:
    yield 1


class AsyncCallable:
    async def __call__(self) -> None: ...


@pytest.mark.parametrize(
    "func",
    [
        coroutine,
        async_generator,
        AsyncCallable(),
        functools.partial(coroutine),
        staticmethod(coroutine),
    ],
)
def test_sync_refuses_async_functions(store: MemoryStore, func: Any) -> None:
    with pytest.raises(TypeError, match=r"is async.*throttled\.asyncio\.Throttled"):
        sync(store)(func)


@pytest.mark.parametrize("func", [print, lambda: None, int, classmethod(print)])
def test_async_refuses_sync_functions(store: MemoryStore, func: Any) -> None:
    with pytest.raises(TypeError, match=r"is not async.*throttled\.Throttled"):
        async_(store)(func)


# -- per= and key= that do not suit ---------------------------------------------------------------


def test_per_item_is_for_generators(store: MemoryStore) -> None:
    def function() -> list[int]:
        return [1]

    with pytest.raises(DataError, match=r"Invalid per: 'item', .*function is no generator f"):
        sync(store, per="item")(function)
    with pytest.raises(DataError, match=r"Invalid per: 'item', coroutine is no async generator f"):
        async_(store, per="item")(coroutine)
    with pytest.raises(DataError, match=r"Invalid per: 'item'"):
        sync(store, per="item")(staticmethod(function))
    with pytest.raises(TypeError, match="is async"):
        sync(store, per="item")(async_generator)


@pytest.mark.parametrize("per", ["items", None, 1, "CALL", ""])
def test_per_is_call_or_item(store: MemoryStore, per: Any) -> None:
    for flavour in (sync, async_):
        with pytest.raises(DataError, match=f"Invalid per: {per!r}, must be 'call' or 'item'"):
            flavour(store, per=per)


async def test_without_a_key_there_is_nothing_to_limit_by(store: MemoryStore) -> None:
    with pytest.raises(DataError, match=r"Invalid key: None.*key="):
        Throttled(store=store)(lambda: None)
    with pytest.raises(DataError, match=r"Invalid key: None.*key="):
        AsyncThrottled(store=store)(coroutine)
