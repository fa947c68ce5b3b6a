"""The service and the processes that ask it, and what came of it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from docs.examples.llm_client import HEADROOM, PERIOD, REQUESTS, TOKENS
from tests.llm.service import Arrival
from tests.servers import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Sequence

PROCESSES = 4
THREADS = 4
#: How many times shorter a minute is, and the headroom with it.
SCALE = 5
_TREE = Path(__file__).parents[2]


class Program:
    """A program of this package that speaks once when it is ready, and once when it is to end."""

    def __init__(self, name: str, *arguments: object) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"tests.llm.{name}", *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=_TREE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def ready(self) -> str:
        """Its first line; empty if it has ended without one."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def end(self) -> Any:
        """What it has to say in the end."""
        out, _ = self._process.communicate(timeout=PATIENCE)
        assert self._process.returncode == 0
        return json.loads(out)


@dataclass(frozen=True)
class Report:
    """What the service saw, and what the processes did: `used` is a share of the quota of tokens.

    The mean is that of all periods, from wherever, that begin after the first one.
    """

    used: float
    #: The most requests and tokens admitted within any one period.
    most: tuple[int, int]
    admitted: int
    refused: int
    #: What each process saw: its answers, their tokens, its errors.
    workers: list[dict[str, Any]]
    #: The longest that a process which only sleeps was held up meanwhile, in seconds.
    stall: float

    @property
    def errors(self) -> list[str]:
        return [error for worker in self.workers for error in worker["errors"]]


def used(arrivals: Sequence[Arrival], period: int, periods: int) -> float:
    """The tokens of a period, as a share of the quota: the mean of all that begin after the first.

    A request is within all periods that end from its arrival until a period later.
    """
    begin = arrivals[0].at + 2 * period
    end = arrivals[0].at + periods * period
    total = sum(
        each.tokens * max(min(each.at + period, end) - max(each.at, begin), 0)
        for each in arrivals
        if each.admitted
    )
    return total / (end - begin) / TOKENS


def most(arrivals: Sequence[Arrival], period: int) -> tuple[int, int]:
    """The most requests, and the most tokens, that were admitted within any one period."""
    within: deque[Arrival] = deque()
    requests = tokens = used = 0
    for arrival in arrivals:
        if not arrival.admitted:
            continue
        within.append(arrival)
        used += arrival.tokens
        while within[0].at <= arrival.at - period:
            used -= within.popleft().tokens
        requests, tokens = max(requests, len(within)), max(tokens, used)
    return requests, tokens


def longest_stall(seconds: float, step: float = 0.05) -> float:
    """Sleep for so long, in short steps; by how much the worst of them was late."""
    longest = 0.0
    now = time.monotonic()
    end = now + seconds
    while now < end:
        before = now
        time.sleep(step)
        now = time.monotonic()
        longest = max(longest, now - before - step)
    return longest


def run(store: str, headroom: float = HEADROOM, scale: float = SCALE, periods: int = 4) -> Report:
    """Four processes ask as much as they may, for so many periods.

    `headroom` is in seconds of a real minute, which is shortened with it.
    """
    period = PERIOD / scale
    with ExitStack() as stack:
        service = stack.enter_context(Program("service", REQUESTS, TOKENS, period))
        port = service.ready()
        workers = [
            stack.enter_context(
                Program("worker", store, port, period, headroom / scale, THREADS, number)
            )
            for number in range(PROCESSES)
        ]
        for worker in workers:
            assert worker.ready(), "a worker ended at once"
        stall = longest_stall(periods * period)
        seen = [worker.end() for worker in workers]
        arrivals = [Arrival(*each) for each in service.end()]
    span = round(period * 1e9)
    refused = sum(not arrival.admitted for arrival in arrivals)
    return Report(
        used(arrivals, span, periods),
        most(arrivals, span),
        len(arrivals) - refused,
        refused,
        seen,
        stall,
    )
