"""Benchmark, and how errors print and travel."""

import asyncio
import copy
import io
import math
import multiprocessing
import pickle
import re
import sys
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from throttled import utils
from throttled._text import plain, shown
from throttled.exceptions import DataError, LimitedError

LINE = re.compile(
    r"✅ Total: (\d+), 🕒 Latency: \d+\.\d{4} ms/op, 🚀 Throughput: \d+ req/s\n", re.ASCII
)


def run(form: str, task: Callable[..., Any], batch: Any, *args: Any) -> list[Any]:
    """Benchmark a plain function in any of the four forms."""
    bench = utils.Benchmark()
    if not form.startswith("async"):
        return getattr(bench, form)(task, batch, *args)  # type: ignore[no-any-return]

    async def awaited(*words: Any) -> Any:
        await anyio.lowlevel.checkpoint()
        return task(*words)

    name, _, backend = form.partition(" on ")
    return anyio.run(getattr(bench, name), awaited, batch, *args, backend=backend)


FORMS = [
    "serial",
    "concurrent",
    "async_serial on asyncio",
    "async_serial on trio",
    "async_concurrent on asyncio",
    "async_concurrent on trio",
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("batch", [1, 100])
def test_benchmark_calls_prints_and_returns(
    form: str, batch: int, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[int] = []

    def task() -> int:
        calls.append(1)
        return 7

    assert run(form, task, batch) == [7] * batch
    assert len(calls) == batch
    printed = LINE.fullmatch(capsys.readouterr().out)
    assert printed is not None
    assert printed[1] == str(batch)


@pytest.mark.parametrize("form", FORMS)
def test_benchmark_raises_what_the_function_raises(
    form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[int] = []

    def task() -> None:
        calls.append(1)
        if len(calls) == 5:
            raise ZeroDivisionError("fifth")

    with pytest.raises(ZeroDivisionError, match="fifth"):
        run(form, task, 10_000)
    assert len(calls) < 10_000
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("batch", [0, -1, True, 1.0, "10", None])
def test_benchmark_refuses_a_batch_of_nothing(form: str, batch: Any) -> None:
    with pytest.raises(DataError, match=r"Invalid batch: .* at least 1"):
        run(form, int, batch)


@pytest.mark.parametrize("form", [form for form in FORMS if "concurrent" in form])
def test_benchmark_refuses_no_workers(form: str) -> None:
    with pytest.raises(DataError, match="Invalid workers: 0"):
        run(form, int, 1, 0)


def test_arguments_are_handed_on() -> None:
    def times(a: int, b: int) -> int:
        return a * b

    async def awaited(a: int, b: int) -> int:
        return a * b

    bench = utils.Benchmark()
    assert bench.serial(times, 2, 3, b=7) == [21, 21]
    assert bench.concurrent(times, 2, 1, 3, b=7) == [21, 21]
    assert asyncio.run(bench.async_serial(awaited, 2, 3, b=7)) == [21, 21]
    assert asyncio.run(bench.async_concurrent(awaited, 2, 1, 3, b=7)) == [21, 21]


def test_concurrent_runs_as_many_threads_as_asked() -> None:
    barrier = threading.Barrier(4)  # passes only when four are inside at once
    utils.Benchmark().concurrent(lambda: barrier.wait(30), 8, workers=4)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_async_concurrent_runs_as_many_tasks_as_asked(backend: str) -> None:
    # Served in reverse, so the results also show that call order is kept.
    async def main() -> list[int]:
        inside: list[anyio.Event] = []

        async def task() -> int:
            number = len(inside)
            inside.append(anyio.Event())
            if len(inside) == 4:
                inside[3].set()
            await inside[number].wait()
            if number:
                inside[number - 1].set()
            return number

        with anyio.fail_after(30):
            return await utils.Benchmark().async_concurrent(task, 4, workers=4)

    assert anyio.run(main, backend=backend) == [0, 1, 2, 3]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_long_run_shows_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(utils, "_BAR_AFTER", 0.0)
    deadline = time.monotonic() + 30

    calls: list[int] = []

    def task() -> None:
        # The second call ends once the bar shows that the first has.
        while calls and "50%" not in terminal.getvalue():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        calls.append(1)

    utils.Benchmark().serial(task, 2)
    assert "✅ Total: 2" in terminal.getvalue()


def test_no_bar_elsewhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(utils, "_BAR_AFTER", 0.0)
    utils.Benchmark().serial(time.sleep, 1, 0.05)
    assert LINE.fullmatch(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0"),
        (0.0, "0"),
        (-0.0, "0"),
        (60, "60"),
        (60.0, "60"),
        (59.999998, "60"),
        (1.2, "1.2"),
        (1.23456, "1.235"),
        (0.25, "0.25"),
        (0.999998, "1"),
        (0.123456, "0.123"),
        (0.00025, "0.00025"),
        (1e-6, "0.000001"),
        (31_622_400.0, "31622400"),
        (-0.5, "-0.5"),
        (math.inf, "inf"),
        (math.nan, "nan"),
    ],
)
def test_numbers_print_as_a_person_would(seconds: float, text: str) -> None:
    assert plain(seconds) == text


@settings(deadline=None)
@given(st.floats(min_value=0, exclude_min=True, allow_infinity=False))
def test_a_printed_duration_is_near_and_never_zero(seconds: float) -> None:
    text = plain(seconds)
    assert float(text) > 0
    assert float(text) == pytest.approx(seconds, rel=0.006)
    assert "e" not in text


def test_values_in_messages_are_cut_and_never_fail() -> None:
    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError

    assert shown("a") == "'a'"
    assert shown(Broken()) == "<Broken>"
    assert shown(10**5000) == "<int>"
    assert len(shown("x" * 10_000)) < 200


def refusal() -> LimitedError:
    # Printed from a result's fields alone, so any object with these will do.
    state = SimpleNamespace(limit=1, remaining=0, reset_after=60.0, retry_after=59.999998)
    result: Any = SimpleNamespace(limited=True, state=state)
    return LimitedError(rate_limit_result=result)


def raise_refusal() -> None:
    raise refusal()


def test_limited_error_says_what_is_left() -> None:
    assert str(refusal()) == "Rate limit exceeded: remaining=0, reset_after=60, retry_after=60."
    assert str(LimitedError()) == "Rate limit exceeded."
    assert LimitedError().rate_limit_result is None


def test_limited_error_travels_with_its_result() -> None:
    for twin in (pickle.loads(pickle.dumps(refusal())), copy.copy(refusal())):
        assert twin.rate_limit_result == refusal().rate_limit_result
        assert str(twin) == str(refusal())


def test_limited_error_crosses_processes() -> None:
    with (
        multiprocessing.get_context("spawn").Pool(1) as pool,
        pytest.raises(LimitedError, match="retry_after=60") as caught,
    ):
        pool.apply(raise_refusal)
    assert caught.value.rate_limit_result == refusal().rate_limit_result
