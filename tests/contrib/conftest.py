"""Fixtures that tests of adapters share."""

from __future__ import annotations

import pytest

from throttled import MemoryStore
from throttled.testing import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(clock: FakeClock) -> MemoryStore:
    """Counts in memory, by a clock that the test moves."""
    return MemoryStore(clock=clock)
