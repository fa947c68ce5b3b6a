"""`throttle.wrap`: the items of an iterable, each at its turn, and none of them lost."""

from __future__ import annotations

import inspect
import itertools
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import aclosing, closing
from math import inf
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import given
from hypothesis import strategies as st

from tests.cancelling import cancelled
from throttled import MemoryStore, Throttled
from throttled.asyncio import Throttled as AsyncThrottled
from throttled.exceptions import DataError, LimitedError
from throttled.testing import FakeClock

BACKENDS = pytest.mark.parametrize("backend", ["asyncio", "trio"])


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(clock: FakeClock) -> MemoryStore:
    return MemoryStore(clock=clock)


async def each(items: Iterable[Any]) -> AsyncIterator[Any]:
    for item in items:
        await checkpoint()
        yield item


async def collected(items: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in items]


class Source:
    """An iterator of numbers, sync and async, that says whether it was closed."""

    def __init__(self, until: int = 3) -> None:
        self.numbers = iter(range(until))
        self.closed = 0

    def __iter__(self) -> Source:
        return self

    def __next__(self) -> int:
        return next(self.numbers)

    def close(self) -> None:
        self.closed += 1


# -- the pace -------------------------------------------------------------------------------------


def test_items_come_at_the_pace_of_the_limit(store: MemoryStore, clock: FakeClock) -> None:
    throttle = Throttled(key="k", quota="2/s burst 1", store=store)
    began = clock.now
    paced = throttle.wrap("abcd")
    assert [(item, clock.now - began) for item in paced] == [
        ("a", 0.0), ("b", 0.5), ("c", 1.0), ("d", 1.5),
    ]  # fmt: skip
    assert iter(paced) is paced
    assert list(paced) == []


@BACKENDS
@pytest.mark.parametrize("source", [list, each], ids=["iterable", "async iterable"])
def test_async_items_come_at_the_pace_of_the_limit(
    store: MemoryStore, clock: FakeClock, backend: str, source: Any
) -> None:
    throttle = AsyncThrottled(key="k", quota="2/s burst 1", store=store)
    began = clock.now

    async def main() -> None:
        paced = throttle.wrap(source("abcd"))
        assert [(item, clock.now - began) async for item in paced] == [
            ("a", 0.0), ("b", 0.5), ("c", 1.0), ("d", 1.5),
        ]  # fmt: skip
        assert await collected(paced) == []

    anyio.run(main, backend=backend)


def test_an_exhausted_source_is_not_charged(store: MemoryStore) -> None:
    throttle = Throttled(key="k", quota="9/m", store=store)
    assert list(throttle.wrap([])) == []
    assert len(store) == 0
    paced = throttle.wrap([1, 2])
    assert [next(paced), next(paced)] == [1, 2]
    for _ in range(3):
        with pytest.raises(StopIteration):
            next(paced)
    assert throttle.peek().remaining == 7


@BACKENDS
def test_an_exhausted_async_source_is_not_charged(store: MemoryStore, backend: str) -> None:
    throttle = AsyncThrottled(key="k", quota="9/m", store=store)

    async def main() -> None:
        for source in ([1, 2], each([1, 2])):
            paced = throttle.wrap(source)
            assert [await anext(paced), await anext(paced)] == [1, 2]
            for _ in range(3):
                with pytest.raises(StopAsyncIteration):
                    await anext(paced)
        assert (await throttle.peek()).remaining == 5

    anyio.run(main, backend=backend)


def test_nothing_is_read_ahead_of_its_turn(store: MemoryStore) -> None:
    taken: list[int] = []

    def source() -> Iterator[int]:
        for n in itertools.count():
            taken.append(n)
            yield n

    paced = Throttled(key="k", quota="9/m", store=store).wrap(source())
    assert taken == []
    assert next(paced) == 0
    assert taken == [0]


def test_key_and_cost_of_the_wrapping(store: MemoryStore, clock: FakeClock) -> None:
    """The instance's cost is that of its calls; an item costs 1 unless `cost=` says more."""
    throttle = Throttled(key="own", cost=7, quota="10/s", store=store)
    assert list(throttle.wrap([1, 2])) == [1, 2]
    assert list(throttle.wrap([1, 2], key="other", cost=4)) == [1, 2]
    assert list(throttle.wrap(["a", "bbb"], key="third", cost=len)) == ["a", "bbb"]
    assert [throttle.peek(key).remaining for key in ("own", "other", "third")] == [8, 2, 6]
    assert list(throttle.wrap([0] * 50, key="free", cost=0)) == [0] * 50
    assert throttle.peek("free").remaining == 10


@BACKENDS
def test_an_async_cost_may_have_to_be_awaited(store: MemoryStore, backend: str) -> None:
    async def cost(item: str) -> int:
        await checkpoint()
        return len(item)

    throttle = AsyncThrottled(quota="10/s", store=store)

    async def main() -> None:
        words = ["a", "bbb"]
        assert await collected(throttle.wrap(words, key="1", cost=cost)) == words
        assert await collected(throttle.wrap(words, key="2", cost=lambda word: cost(word))) == words
        assert await collected(throttle.wrap(each(words), key="3", cost=len)) == words
        assert [(await throttle.peek(key)).remaining for key in "123"] == [6, 6, 6]

    anyio.run(main, backend=backend)


@given(
    st.lists(st.integers(0, 9), max_size=12),
    st.integers(1, 9),
    st.sampled_from(["token_bucket", "fixed_window", "sliding_window_log"]),
)
def test_whatever_the_costs_all_items_come_in_order(
    costs: list[int], limit: int, using: str
) -> None:
    """One that never fits is refused again and again, and stays the next."""
    store = MemoryStore(clock=FakeClock())
    paced = Throttled(key="k", quota=f"{limit}/s", using=using, store=store).wrap(
        enumerate(costs), cost=lambda pair: pair[1]
    )
    for place, cost in enumerate(costs):
        if cost <= limit:
            assert next(paced) == (place, cost)
        else:
            for _ in range(2):
                with pytest.raises(LimitedError):
                    next(paced)
            return
    assert list(paced) == []


# -- nothing is lost ------------------------------------------------------------------------------


def test_a_refused_item_is_tried_again(store: MemoryStore, clock: FakeClock) -> None:
    throttle = Throttled(key="k", quota="1/m", store=store)
    paced = throttle.wrap(iter("ab"), timeout=10)
    assert next(paced) == "a"
    for _ in range(3):
        with pytest.raises(LimitedError) as error:
            next(paced)
        assert error.value.rate_limit_result is not None
        assert error.value.rate_limit_result.state.retry_after == 60.0
    clock.advance(50)
    assert next(paced) == "b"
    assert list(paced) == []


def test_without_patience_it_says_when(store: MemoryStore, clock: FakeClock) -> None:
    for timeout in (-1, 0):
        paced = Throttled(key=f"k{timeout}", quota="1/s", store=store).wrap("ab", timeout=timeout)
        assert next(paced) == "a"
        with pytest.raises(LimitedError):
            next(paced)
        clock.advance(1)
        assert list(paced) == ["b"]


@BACKENDS
@pytest.mark.parametrize("source", [list, each], ids=["iterable", "async iterable"])
def test_a_refused_async_item_is_tried_again(
    store: MemoryStore, clock: FakeClock, backend: str, source: Any
) -> None:
    async def main() -> None:
        paced = AsyncThrottled(key="k", quota="1/m", store=store).wrap(source("ab"), timeout=10)
        assert await anext(paced) == "a"
        for _ in range(3):
            with pytest.raises(LimitedError):
                await anext(paced)
        clock.advance(50)
        assert await anext(paced) == "b"
        assert await collected(paced) == []

    anyio.run(main, backend=backend)


@BACKENDS
@pytest.mark.parametrize("source", [list, each], ids=["iterable", "async iterable"])
def test_the_item_of_a_cancelled_wait_is_tried_again(backend: str, source: Any) -> None:
    store = MemoryStore()
    throttle = AsyncThrottled(key="k", quota="1/h", store=store)

    async def main() -> None:
        paced = throttle.wrap(source("abc"))
        assert await anext(paced) == "a"
        for _ in range(2):
            await cancelled(lambda: anext(paced))
        assert (await throttle.peek()).retry_after == pytest.approx(3600, abs=60)
        await throttle.reset("k")
        assert await anext(paced) == "b"
        await paced.aclose()

    anyio.run(main, backend=backend)


@BACKENDS
def test_it_does_not_sleep_into_the_end_of_a_scope(backend: str) -> None:
    throttle = AsyncThrottled(key="k", quota="1/h", store=MemoryStore())

    async def main() -> None:
        paced = throttle.wrap("ab")
        assert await anext(paced) == "a"
        with anyio.fail_after(60), pytest.raises(LimitedError):
            await anext(paced)
        await throttle.reset("k")
        assert await anext(paced) == "b"

    anyio.run(main, backend=backend)


async def test_a_failing_cost_keeps_the_item(store: MemoryStore) -> None:
    fails = [KeyError("mine"), None, KeyError("mine"), None]

    def cost(item: str) -> int:
        error = fails.pop()
        if error is not None:
            raise error
        return 1

    paced = Throttled(key="k", store=store).wrap("ab", cost=cost)
    apaced = AsyncThrottled(key="k", store=store).wrap("ab", cost=cost)
    assert next(paced) == "a"
    with pytest.raises(KeyError, match="mine"):
        next(paced)
    fails += [None, None, KeyError("mine")]
    with pytest.raises(KeyError, match="mine"):
        await anext(apaced)
    assert await anext(apaced) == "a"
    assert next(paced) == "b"


def test_an_error_of_the_source_passes(store: MemoryStore) -> None:
    throttle = Throttled(key="k", quota="9/m", store=store)

    def source() -> Iterator[int]:
        yield 1
        raise KeyError("mine")

    paced = throttle.wrap(source())
    assert next(paced) == 1
    with pytest.raises(KeyError, match="mine") as error:
        next(paced)
    assert error.value.__context__ is None
    assert throttle.peek().remaining == 8


def test_threads_share_the_items() -> None:
    """Every item goes to one of them, whoever was refused in between."""
    throttle = Throttled(key="k", quota="2000/s burst 5", store=MemoryStore())
    numbers = 300
    paced = throttle.wrap(range(numbers), timeout=0)
    served: list[int] = []
    refused: list[int] = []

    def work() -> None:
        while len(served) < numbers:
            try:
                served.append(next(paced))
            except LimitedError:
                refused.append(1)
            except StopIteration:
                pass  # another may yet be refused, and leave its item

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(served) == list(range(numbers))
    assert refused, "no test of what happens to the items of the refused"


@BACKENDS
def test_tasks_share_the_items(store: MemoryStore, clock: FakeClock, backend: str) -> None:
    paced = AsyncThrottled(key="k", quota="10/s burst 1", store=store).wrap(range(20))
    began = clock.now
    served: list[int] = []

    async def work() -> None:
        served.extend([item async for item in paced])

    async def main() -> None:
        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(work)

    anyio.run(main, backend=backend)
    assert sorted(served) == list(range(20))
    assert clock.now - began == pytest.approx(1.9)


# -- the end --------------------------------------------------------------------------------------


def test_closing_it_closes_the_source(store: MemoryStore) -> None:
    source, throttle = Source(), Throttled(key="k", quota="1/m", store=store)
    with closing(throttle.wrap(source, timeout=0)) as paced:
        assert next(paced) == 0
        with pytest.raises(LimitedError):
            next(paced)
    assert source.closed == 1
    assert list(paced) == [], "neither the item that it kept nor those to come"
    paced.close()
    assert source.closed == 1
    plain = throttle.wrap([1, 2], key="other")
    plain.close()
    assert list(plain) == []


@BACKENDS
def test_closing_it_closes_the_async_source(store: MemoryStore, backend: str) -> None:
    ended = []

    async def source() -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            await checkpoint()
            ended.append(1)

    class Closing(Source):
        async def close(self) -> None:  # type: ignore[override]
            await checkpoint()
            self.closed += 1

    throttle = AsyncThrottled(key="k", store=store)

    async def main() -> None:
        async with aclosing(throttle.wrap(source())) as paced:
            assert await anext(paced) == 1
        assert ended == [1]
        assert await collected(paced) == []
        for made in (Source, Closing):
            plain = made()
            paced = throttle.wrap(plain)
            assert await anext(paced) == 0
            await paced.aclose()
            await paced.aclose()
            assert plain.closed == 1
            assert await collected(paced) == []
        unclosable = throttle.wrap([1, 2])
        await unclosable.aclose()
        assert await collected(unclosable) == []

    anyio.run(main, backend=backend)


# -- bad arguments --------------------------------------------------------------------------------


async def afunc(item: Any) -> int:
    return 1


@pytest.mark.parametrize("flavour", [Throttled, AsyncThrottled], ids=["sync", "async"])
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"iterable": 5}, r"Invalid iterable: 5, must be an iterable"),
        ({"iterable": None}, r"Invalid iterable: None, must be an iterable"),
        ({"iterable": list}, r"Invalid iterable: <class 'list'>, must be an iterable"),
        ({"cost": -1}, r"Invalid cost: -1"),
        ({"cost": 1.5}, r"Invalid cost: 1\.5"),
        ({"cost": "1"}, r"Invalid cost: '1'"),
        ({"cost": True}, r"Invalid cost: True"),
        ({"cost": None}, r"Invalid cost: None"),
        ({"key": ""}, r"Invalid key: ''"),
        ({"key": 5}, r"Invalid key: 5"),
        ({"timeout": -2}, r"Invalid timeout: -2"),
        ({"timeout": "1"}, r"Invalid timeout: '1'"),
    ],
    ids=str,
)
def test_bad_arguments_are_said_when_it_is_wrapped(
    store: MemoryStore, flavour: Any, arguments: dict[str, Any], says: str
) -> None:
    taken: list[int] = []

    def source() -> Iterator[int]:
        taken.append(1)
        yield 1

    with pytest.raises(DataError, match=says):
        flavour(key="k", store=store).wrap(**{"iterable": source(), **arguments})
    assert not taken
    assert len(store) == 0


def test_a_key_must_come_from_somewhere(store: MemoryStore) -> None:
    for flavour in (Throttled, AsyncThrottled):
        with pytest.raises(DataError, match="Invalid key: None"):
            flavour(store=store).wrap([1])


def test_what_is_async_has_no_place_in_sync_code(store: MemoryStore) -> None:
    throttle: Any = Throttled(key="k", store=store)
    items = each([1])
    with pytest.raises(DataError, match=r"Invalid iterable: .*; throttled\.asyncio takes"):
        throttle.wrap(items)
    with pytest.raises(DataError, match="Invalid cost: afunc is async"):
        throttle.wrap([1], cost=afunc)


@pytest.mark.parametrize("value", [None, -1, True, 1.0, "1"], ids=repr)
async def test_a_cost_of_an_item_that_is_none(store: MemoryStore, value: Any) -> None:
    def the_cost(item: int) -> Any:
        return value

    async def the_acost(item: int) -> Any:
        return value

    says = r"Invalid cost: .*, must be an integer of 0 or more\. .*the_a?cost returned it\.$"
    with pytest.raises(DataError, match=says) as error:
        next(Throttled(key="k", store=store).wrap([1], cost=the_cost))
    assert repr(value) in str(error.value)
    costs: list[Callable[[int], Any]] = [the_cost, the_acost]
    for cost in costs:
        with pytest.raises(DataError, match=says):
            await anext(AsyncThrottled(key="k", store=store).wrap([1], cost=cost))
    assert len(store) == 0


def test_its_arguments() -> None:
    for flavour in (Throttled, AsyncThrottled):
        parameters = list(inspect.signature(flavour.wrap).parameters.values())[1:]
        assert [(each.name, each.default) for each in parameters[1:]] == [
            ("key", None), ("cost", 1), ("timeout", inf),
        ]  # fmt: skip
        assert all(each.kind is each.KEYWORD_ONLY for each in parameters[1:])
