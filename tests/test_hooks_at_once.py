"""Hooks that ask from several threads or tasks, and calls that are cancelled within hooks."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

import throttled.asyncio.hooks as async_hooks
from tests import flavours
from tests.flavours import (
    CONTEXT,
    AwaitedHook,
    Body,
    Decision,
    Flavour,
    faults,
    passed,
    passes,
    raises_after,
    result,
)
from throttled import RateLimitResult, hooks
from throttled.exceptions import StoreUnavailableError
from throttled.hooks import HookContext

pytestmark = pytest.mark.realtime

flavour = flavours.flavour

# -- several at once ------------------------------------------------------------------------------


def test_threads_of_a_hook_get_one_decision() -> None:
    decision = Decision()
    gate = threading.Barrier(8)
    answers: list[Any] = []

    class Spreads(hooks.Hook):
        def on_limit(self, call_next: Any, context: HookContext) -> RateLimitResult:
            def ask() -> Any:
                gate.wait()
                return call_next()

            with ThreadPoolExecutor(8) as pool:
                futures = [pool.submit(ask) for _ in range(8)]
            answers.extend(future.result() for future in futures)
            answer: RateLimitResult = answers[0]
            return answer

    def decide() -> Any:
        time.sleep(0.002)  # long enough for all of them to ask
        return decision()

    for _ in range(10):
        decision.taken = 0
        assert hooks.run_hooks([Spreads()], decide, CONTEXT) is decision.answer
        assert decision.taken == 1
    assert len(answers) == 80
    assert {id(answer) for answer in answers} == {id(decision.answer)}


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("answer", [result(), StoreUnavailableError("gone")])
def test_tasks_of_a_hook_get_one_decision(backend: str, answer: Any) -> None:
    taken = []
    answers: list[Any] = []

    async def decide() -> RateLimitResult:
        taken.append(1)
        await anyio.sleep(0.01)
        if isinstance(answer, Exception):
            raise answer
        given: RateLimitResult = answer
        return given

    async def spreads(call_next: Any, context: HookContext) -> Any:
        async def ask() -> None:
            try:
                answers.append(await call_next())
            except StoreUnavailableError as error:
                answers.append(error)

        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(ask)
        return await call_next()

    async def main() -> None:
        chain = async_hooks.run_hooks([AwaitedHook(spreads)], decide, CONTEXT)
        if isinstance(answer, Exception):
            with pytest.raises(StoreUnavailableError):
                await chain
        else:
            assert await chain is answer

    anyio.run(main, backend=backend)
    assert len(taken) == 1
    assert answers == [answer] * 5


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_decision_that_nobody_waited_for_is_waited_for(backend: str) -> None:
    """The hook leaves while its task still asks; the result is that of the same decision."""
    decision = Decision()

    async def decide() -> Any:
        await anyio.sleep(0.01)
        return decision()

    async def main() -> None:
        async with anyio.create_task_group() as tasks:

            async def leaves(call_next: Any, context: HookContext) -> Any:
                tasks.start_soon(call_next)
                await checkpoint()

            answer = await async_hooks.run_hooks([AwaitedHook(leaves)], decide, CONTEXT)
        assert answer is decision.answer
        assert decision.taken == 1

    anyio.run(main, backend=backend)


# -- what ends programs and tasks -----------------------------------------------------------------


@pytest.mark.parametrize("faulty", [passes, raises_after])
def test_an_interrupted_decision_is_interrupted(flavour: Flavour, faulty: Body) -> None:
    decision = Decision(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        passed(flavour, [faulty], decision)
    assert decision.taken == 1


def test_an_interrupt_within_a_hook_passes(
    flavour: Flavour, caplog: pytest.LogCaptureFixture
) -> None:
    async def interrupted(call_next: Any, context: HookContext) -> Any:
        await call_next()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        passed(flavour, [passes, interrupted], Decision())
    assert not faults(caplog)


def test_an_interrupt_passes_a_hook_that_fails_on_its_way_out(flavour: Flavour) -> None:
    async def fails_in_finally(call_next: Any, context: HookContext) -> Any:
        try:
            return await call_next()
        finally:
            raise ZeroDivisionError

    decision = Decision(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        passed(flavour, [fails_in_finally], decision)
    assert decision.taken == 1


class Hanging:
    """A decision that never comes, unless it is asked a second time."""

    def __init__(self) -> None:
        self.answer = result()
        self.taken = 0
        self.asked = anyio.Event()

    async def __call__(self) -> RateLimitResult:
        self.taken += 1
        self.asked.set()
        if self.taken == 1:
            await anyio.sleep_forever()
        return self.answer


async def fails_on_its_way_out(call_next: Any, context: HookContext) -> Any:
    try:
        return await call_next()
    finally:
        raise ZeroDivisionError


async def gives_up(call_next: Any, context: HookContext) -> Any:
    """Sets the decision a time, and fails."""
    with anyio.move_on_after(0.01):
        return await call_next()
    raise ZeroDivisionError


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("body", [passes, fails_on_its_way_out])
def test_a_cancelled_call_ends_whatever_its_hooks_do(backend: str, body: Body) -> None:
    decision = None

    async def main() -> None:
        nonlocal decision
        decision = Hanging()
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:

                async def call() -> None:
                    await async_hooks.run_hooks([AwaitedHook(body)] * 2, decision, CONTEXT)
                    raise AssertionError("it went on")

                tasks.start_soon(call)
                await decision.asked.wait()
                scope.cancel()
        assert scope.cancelled_caught

    anyio.run(main, backend=backend)
    assert decision is not None
    assert decision.taken == 1


async def test_a_task_that_asyncio_cancels_ends_whatever_its_hooks_do() -> None:
    for body in (passes, fails_on_its_way_out):
        decision = Hanging()
        task = asyncio.create_task(
            async_hooks.run_hooks([AwaitedHook(body)] * 2, decision, CONTEXT)
        )
        await decision.asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert decision.taken == 1


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_decision_that_a_hook_cancels_is_not_taken_and_may_be_asked_for_again(
    backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        decision = Hanging()
        answer = await async_hooks.run_hooks([AwaitedHook(gives_up)], decision, CONTEXT)
        assert answer is decision.answer
        assert decision.taken == 2

    anyio.run(main, backend=backend)
    assert len(faults(caplog)) == 1


async def test_a_hook_with_a_timeout_of_asyncio_is_no_cancelled_task() -> None:
    async def hurries(call_next: Any, context: HookContext) -> Any:
        async with asyncio.timeout(0.01):
            return await call_next()

    decision = Hanging()
    answer = await async_hooks.run_hooks([AwaitedHook(hurries)], decision, CONTEXT)
    assert answer is decision.answer


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_cancelled_task_of_a_hook_leaves_the_decision_to_the_others(backend: str) -> None:
    async def main() -> None:
        decision = Hanging()
        answers: list[Any] = []

        async def races(call_next: Any, context: HookContext) -> Any:
            async def ask() -> None:
                answers.append(await call_next())

            first = anyio.CancelScope()

            async def ask_first() -> None:
                with first:
                    await ask()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ask_first)
                await decision.asked.wait()
                tasks.start_soon(ask)
                tasks.start_soon(ask)
                await anyio.wait_all_tasks_blocked()
                first.cancel()
            return answers[0]

        answer = await async_hooks.run_hooks([AwaitedHook(races)], decision, CONTEXT)
        assert answers == [decision.answer, decision.answer]
        assert answer is decision.answer
        assert decision.taken == 2

    anyio.run(main, backend=backend)
