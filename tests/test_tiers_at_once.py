"""Quota by key, asked for by several threads, tasks and event loops at once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from inspect import isawaitable
from typing import Any

import anyio
import pytest

from tests.tariffs import Made, Tariff, tiers_of
from throttled.quota import Rule, rules_of
from throttled.testing import FakeClock

backends = pytest.mark.parametrize("backend", ["asyncio", "trio"])


def test_threads_share_it() -> None:
    """Every thread gets the quota of its key, while keys expire and are forgotten."""
    clock = FakeClock()
    made = Made()
    tiers = tiers_of(lambda key: f"{len(key)}/m", 5.0, timer=clock, make=made)
    gate = threading.Barrier(8)
    keys = ["x" * length for length in range(1, 40)]

    def work(number: int) -> None:
        gate.wait()
        for turn in range(40):
            for key in keys:
                assert tiers.of(key)[1] == rules_of(f"{len(key)}/m")
            if number == 0:
                clock.advance(1)
            elif number == 1:
                tiers.forget(keys[turn % len(keys)] if turn % 5 else None)

    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(work, number) for number in range(8)]:
            future.result(60)
    by_rules: dict[Any, Any] = {}
    for key in keys:  # whoever made it, there is one entry to a quota
        entry = tiers.of(key)
        assert by_rules.setdefault(entry[1], entry) is entry
    assert len(by_rules) == len(keys)


def test_threads_that_make_an_entry_at_once_get_the_same() -> None:
    making = threading.Barrier(2)

    def make(rules: tuple[Rule, ...]) -> Any:
        making.wait(30)
        return ["entry", rules]

    tiers = tiers_of(Tariff(), make=make)
    with ThreadPoolExecutor(2) as pool:
        one, other = [pool.submit(tiers.of, key) for key in ("a", "b")]
    assert one.result() is other.result() is tiers.of("a") is tiers.of("c")


@backends
@pytest.mark.parametrize("known", [True, False], ids=["coroutine function", "returns a coroutine"])
def test_those_who_ask_for_a_key_meanwhile_share_one_lookup(backend: str, known: bool) -> None:
    async def main() -> None:
        gate = anyio.Event()
        asked: list[str] = []

        async def look_up(key: str) -> str:
            asked.append(key)
            await gate.wait()
            return "5/m"

        tiers = tiers_of(look_up if known else (lambda key: look_up(key)), asynchronous=True)
        entries: list[Any] = []

        async def note(key: str) -> None:
            entries.append(await tiers.of(key))

        async with anyio.create_task_group() as tasks:
            for key in ["a", "b"] * 5:
                tasks.start_soon(note, key)
            await anyio.wait_all_tasks_blocked()
            assert sorted(asked) == ["a", "b"]
            gate.set()
        assert len(entries) == 10
        assert all(entry is entries[0] for entry in entries)
        assert not isawaitable(tiers.of("a"))
        assert sorted(asked) == ["a", "b"]
        assert not tiers._lookups

    anyio.run(main, backend=backend)


@backends
def test_those_who_share_a_lookup_share_its_error(backend: str) -> None:
    async def main() -> None:
        gate = anyio.Event()
        asked, errors = [], []

        async def look_up(key: str) -> str:
            asked.append(key)
            await gate.wait()
            raise LookupError("no such user")

        tiers = tiers_of(look_up, asynchronous=True)

        async def note() -> None:
            try:
                await tiers.of("key")
            except LookupError as error:
                errors.append(error)

        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(note)
            await anyio.wait_all_tasks_blocked()
            gate.set()
        assert len(errors) == 5
        assert asked == ["key"]
        assert not tiers._lookups

    anyio.run(main, backend=backend)


@backends
def test_a_cancelled_lookup_is_taken_over_by_those_who_wait(backend: str) -> None:
    async def main() -> None:
        asked: list[str] = []
        gate = anyio.Event()

        async def look_up(key: str) -> str:
            asked.append(key)
            await gate.wait()
            return "5/m"

        tiers = tiers_of(look_up, asynchronous=True)
        entries: list[Any] = []
        first = anyio.CancelScope()

        async def note(scope: anyio.CancelScope) -> None:
            with scope:
                entries.append(await tiers.of("key"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(note, first)
            await anyio.wait_all_tasks_blocked()
            for _ in range(3):
                tasks.start_soon(note, anyio.CancelScope())
            await anyio.wait_all_tasks_blocked()
            first.cancel()
            await anyio.wait_all_tasks_blocked()
            assert asked == ["key", "key"]  # one of the three asks, for all of them
            gate.set()
        assert [entry[1] for entry in entries] == [rules_of("5/m")] * 3
        assert asked == ["key", "key"]
        assert not tiers._lookups

    anyio.run(main, backend=backend)


@backends
def test_lookups_that_all_were_cancelled_leave_nothing_behind(backend: str) -> None:
    async def main() -> None:
        async def look_up(key: str) -> str:
            await anyio.sleep_forever()
            return "5/m"

        tiers = tiers_of(look_up, asynchronous=True)

        async def ask_for(key: str) -> None:
            await tiers.of(key)

        async with anyio.create_task_group() as tasks:
            for number in range(20):
                tasks.start_soon(ask_for, str(number // 2))
            await anyio.wait_all_tasks_blocked()
            assert len(tiers._lookups) == 10
            tasks.cancel_scope.cancel()
        assert not tiers._lookups

    anyio.run(main, backend=backend)


def test_event_loops_do_not_wait_for_each_other() -> None:
    """One limiter in loops of several threads: each looks up for itself."""
    asking = threading.Barrier(3)

    async def look_up(key: str) -> str:
        await anyio.to_thread.run_sync(partial(asking.wait, 30))
        return "5/m"

    tiers = tiers_of(look_up, asynchronous=True)

    async def main() -> Any:
        return await tiers.of("key")

    with ThreadPoolExecutor(3) as pool:
        futures = [
            pool.submit(anyio.run, main, backend=backend)
            for backend in ("asyncio", "asyncio", "trio")
        ]
        entries = [future.result(60) for future in futures]
    assert all(entry is entries[0] for entry in entries)
    assert not tiers._lookups
