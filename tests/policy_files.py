"""Policy files for tests: written, loaded, and waited for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

import throttled
import throttled.asyncio
from tests.flavours import Flavour
from tests.servers import PATIENCE, wait_until
from throttled import MemoryStore
from throttled.testing import FakeClock

#: Counts from one, whatever the limit; a bucket would keep its credit.
API = 'policies.api = {{ quota = "{}", using = "fixed_window" }}\n'


def put(path: Path, text: str) -> None:
    """Write a file as most tools do: another one takes its place."""
    other = path.with_name(f"{path.name}.new")
    other.write_text(text, "utf-8")
    other.replace(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "policies.toml"
    put(path, API.format("5/m"))
    return path


def loaded(flavour: Flavour, path: Path, **options: Any) -> Any:
    """Its policies, on a clock that stands."""
    load: Any = throttled.asyncio.load if flavour.asynchronous else throttled.load
    options.setdefault("store", MemoryStore(clock=FakeClock()))
    return load(path, **options)


def seen(done: Callable[[], object]) -> None:
    """Wait until a change is seen."""
    wait_until(lambda: bool(done()), "the change")


async def aseen(done: Callable[[], object]) -> None:
    """The same, while tasks go on."""
    with anyio.fail_after(PATIENCE):
        while not done():  # noqa: ASYNC110 - a change in a file sets no event
            await anyio.sleep(0.002)
