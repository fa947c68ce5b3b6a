"""The tables of this run, shared by the benchmarks and printed at its end."""

from __future__ import annotations

from typing import Any

import pytest

from tests.benchmarks.measured import Measured

_MEASURED = pytest.StashKey[Measured]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_MEASURED] = Measured()
    # Times of their own are for a closer look: -v prints them.
    config.option.benchmark_quiet = config.option.verbose <= 0


@pytest.fixture
def measured(pytestconfig: pytest.Config) -> Measured:
    """The tables of this run."""
    return pytestconfig.stash[_MEASURED]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if config.stash[_MEASURED].tables:
        terminalreporter.section("measured")
        terminalreporter.write_line(config.stash[_MEASURED].text())
