"""The off switch: `disabled()` and `THROTTLED_ENABLED`."""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import pytest

from tests import flavours
from tests.flavours import Flavour
from throttled import switch
from throttled.exceptions import LimitedError
from throttled.switch import disabled, enabled

flavour = flavours.flavour


class Switch:
    """What a `Throttled` is to the switch."""

    def __init__(self) -> None:
        self.turned: list[bool] = []
        switch.register(self)

    def _switch(self, enabled: bool) -> None:
        self.turned.append(enabled)


@pytest.fixture(autouse=True)
def on() -> Iterator[None]:
    """Tests begin and end with limits that are on."""
    assert enabled()
    yield
    assert enabled()


# -- the block ------------------------------------------------------------------------------------


def test_limits_are_off_within_the_block() -> None:
    with disabled():
        assert not enabled()
    assert enabled()


def test_limits_are_on_again_when_the_block_fails() -> None:
    with pytest.raises(ZeroDivisionError), disabled():
        raise ZeroDivisionError
    assert enabled()


def test_limits_are_told_when_the_switch_is_turned() -> None:
    one, other = Switch(), Switch()
    assert one.turned == other.turned == [True]
    with disabled():
        assert one.turned == other.turned == [True, False]
    assert one.turned == other.turned == [True, False, True]


def test_blocks_nest() -> None:
    limit = Switch()
    again = disabled()
    with disabled():
        with again, again:
            assert not enabled()
        assert not enabled()
    assert limit.turned == [True, False, True]


def test_blocks_may_end_in_any_order() -> None:
    limit = Switch()
    first, second = disabled(), disabled()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not enabled()
    second.__exit__(None, None, None)
    assert limit.turned == [True, False, True]


def test_a_limit_made_within_the_block_is_off_at_once() -> None:
    with disabled():
        limit = Switch()
        assert limit.turned == [False]
    assert limit.turned == [False, True]


def test_a_limit_is_not_kept_for_the_switch() -> None:
    limit = weakref.ref(Switch())
    gc.collect()
    assert limit() is None


def test_tasks_that_overlap_leave_it_on() -> None:
    limit = Switch()

    async def off_until(event: anyio.Event) -> None:
        with disabled():
            await event.wait()

    async def main() -> None:
        first, second = anyio.Event(), anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(off_until, first)
            await anyio.wait_all_tasks_blocked()
            tasks.start_soon(off_until, second)
            await anyio.wait_all_tasks_blocked()
            first.set()
            await anyio.wait_all_tasks_blocked()
            assert not enabled()
            second.set()

    for backend in ("asyncio", "trio"):
        limit.turned.clear()
        anyio.run(main, backend=backend)
        assert limit.turned == [False, True]


def test_threads_that_turn_it_leave_it_on_and_every_limit_with_it() -> None:
    """Limits hear of it in the order in which it was turned, those being made included."""
    gate = threading.Barrier(6)
    limits = [Switch() for _ in range(5)]

    def turn() -> list[Switch]:
        gate.wait()
        made = []
        for _ in range(200):
            with disabled():
                assert not enabled()
                made.append(Switch())
        return made

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(6) as pool:
            futures = [pool.submit(turn) for _ in range(6)]
            limits += [limit for future in futures for limit in future.result(60)]
    finally:
        sys.setswitchinterval(interval)
    for limit in limits:
        assert limit.turned[-1:] == [True]
        assert all(was is not now for was, now in zip(limit.turned, limit.turned[1:], strict=False))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_process_can_turn_it_whoever_did_when_it_forked() -> None:
    with switch._lock:
        child = os.fork()
        if not child:
            with disabled():
                os._exit(0 if not enabled() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# -- the decorator --------------------------------------------------------------------------------


def test_a_function_runs_with_limits_off() -> None:
    @disabled()
    def function(a: int, *, b: int = 2) -> tuple[int, int, bool]:
        """What it is for."""
        return a, b, enabled()

    assert function(1, b=3) == (1, 3, False)
    assert enabled()
    assert function(1) == (1, 2, False)
    assert function.__doc__ == "What it is for."


async def test_a_coroutine_function_runs_with_limits_off() -> None:
    @disabled()
    async def function(a: int) -> tuple[int, bool]:
        await asyncio.sleep(0)
        return a, enabled()

    assert inspect.iscoroutinefunction(function)
    waiting = function(1)
    assert enabled()  # until it runs
    assert await waiting == (1, False)
    assert enabled()


def test_what_would_run_when_limits_are_on_again_is_refused() -> None:
    def generator() -> Iterator[int]:
        yield 1

    async def async_generator() -> Any:
        yield 1

    class Tests:
        pass

    for what in (generator, async_generator, Tests):
        with pytest.raises(TypeError, match="use `with disabled"):
            disabled()(what)


# -- the environment ------------------------------------------------------------------------------


def said(value: str | None, script: str = "") -> tuple[str, str]:
    """What a process with that variable prints, and what it logs."""
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    environment.pop("THROTTLED_ENABLED", None)
    if value is not None:
        environment["THROTTLED_ENABLED"] = value
    script = script or "from throttled import switch; print(switch.enabled())"
    ran = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    return ran.stdout.strip(), ran.stderr.strip()


@pytest.mark.parametrize("value", [None, "", "1", "true", "YES", "On", " 1 "])
def test_the_environment_leaves_limits_on(value: str | None) -> None:
    assert said(value) == ("True", "")


@pytest.mark.parametrize("value", ["0", "false", "NO", "Off", " 0 "])
def test_the_environment_switches_limits_off_and_that_is_logged_once(value: str) -> None:
    printed, logged = said(value)
    assert printed == "False"
    assert logged.splitlines() == [
        f"THROTTLED_ENABLED={value}: nothing is limited in this process".strip()
    ]


def test_what_the_environment_cannot_mean_is_logged_and_limits_stay_on() -> None:
    printed, logged = said("disabled")
    assert printed == "True"
    assert "THROTTLED_ENABLED: 'disabled'" in logged
    assert "limits stay on" in logged


def test_a_block_does_not_end_what_the_environment_says() -> None:
    script = """
from throttled.switch import disabled, enabled
with disabled():
    pass
print(enabled())
"""
    assert said("0", script)[0] == "False"


# -- in a Throttled -------------------------------------------------------------------------------


def test_calls_are_admitted_and_count_nothing(flavour: Flavour) -> None:
    throttle = flavour.limiter(quota="1/m", key="key")
    with disabled():
        for _ in range(3):
            result = flavour.run(throttle.limit)
            assert (result.allowed, result.source) == (True, "disabled")
        assert flavour.run(throttle.limit, cost=100).allowed
    result = flavour.run(throttle.limit)
    assert (result.allowed, result.source) == (True, "memory")
    assert flavour.run(throttle.limit).limited
    with disabled():
        assert flavour.run(throttle.limit).allowed
    assert flavour.run(throttle.limit).limited


def test_a_limit_made_meanwhile_is_off_too(flavour: Flavour) -> None:
    with disabled():
        throttle = flavour.limiter(quota="1/m")
        assert [flavour.run(throttle.limit, "key").limited for _ in range(3)] == [False] * 3
    assert [flavour.run(throttle.limit, "key").limited for _ in range(2)] == [False, True]


def test_decorated_functions_run(flavour: Flavour) -> None:
    throttle = flavour.limiter(quota="1/m", key="key")
    if flavour.asynchronous:

        @throttle
        async def ping() -> str:
            return "pong"
    else:

        @throttle
        def ping() -> str:
            return "pong"

    with disabled():
        assert [flavour.run(ping) for _ in range(3)] == ["pong"] * 3
    assert flavour.run(ping) == "pong"
    with pytest.raises(LimitedError):
        flavour.run(ping)


def test_nobody_waits_and_no_store_is_asked(flavour: Flavour) -> None:
    store = flavour.failing_store()
    store.fail()
    throttle = flavour.limiter(quota="1/m", store=store, timeout=60)
    with disabled():
        for _ in range(3):
            assert flavour.run(throttle.limit, "key").allowed
    assert store.asked == []


def test_the_environment_switches_every_limit_off() -> None:
    script = """
from throttled import Throttled
throttle = Throttled(quota="1/m")
print([throttle.limit("key").limited for _ in range(3)])
"""
    assert said("0", script)[0] == "[False, False, False]"
    assert said("1", script)[0] == "[False, True, True]"


def test_users_find_it_in_testing() -> None:
    from throttled import testing

    assert testing.disabled is disabled
