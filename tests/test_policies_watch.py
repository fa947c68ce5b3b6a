"""Policy files that somebody watches: which changes are seen, and what is told of wrong ones."""

from __future__ import annotations

import gc
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio
import pytest

import throttled
import throttled.asyncio
from tests import flavours, policy_files
from tests.flavours import Flavour, faults
from tests.policy_files import API, aseen, loaded, put, seen
from tests.servers import PATIENCE
from throttled import Throttled
from throttled.exceptions import DataError, SetUpError
from throttled.policies import Policies, base

pytestmark = pytest.mark.realtime

flavour = flavours.flavour
path = policy_files.path
ROOT = Path(__file__).parent.parent


# -- a file that is wrong -------------------------------------------------------------------------


def test_a_bad_file_changes_nothing(flavour: Flavour, path: Path) -> None:
    policies = loaded(flavour, path)
    at = policies.loaded_at
    assert policies.error is None
    for text in ("x", 'policies.api = { quota = "6/m", hold = 5 }', ""):
        put(path, text)
        with pytest.raises(DataError) as raised:
            policies.reload()
        assert policies.error == str(raised.value)
        assert str(policies["api"].quota) == "5/m"
        assert not policies["api"].hold
    path.unlink()
    with pytest.raises(DataError, match="there is no such file"):
        policies.reload()
    assert policies.loaded_at == at
    put(path, API.format("5/m"))
    assert not policies.reload()
    assert policies.error is None


@pytest.fixture
def looked(path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    """Looks at the file often enough to see what there is, and returns what is logged of it."""
    caplog.set_level(logging.INFO, "throttled")
    policies = throttled.load(path)

    def look() -> list[str]:
        caplog.clear()
        for _ in range(4):
            policies._look(False)
        return [record.getMessage() for record in faults(caplog)]

    look.policies = policies
    yield look
    policies.close()


def test_what_a_look_tells(path: Path, looked: Any) -> None:
    policies = looked.policies
    assert looked() == []
    put(path, API.format("6/m"))
    reloaded = f"{path} was reloaded, policies in force: 1"
    assert looked() == [reloaded]
    assert looked() == []
    put(path, "policies = 5")
    problem = f"{path}: policies: Invalid policies: 5, must be a table."
    warning = f"{path} was not reloaded, the policies of before stay: {problem}"
    assert looked() == [warning]
    assert policies.error == problem
    assert looked() == []  # said once
    put(path, "policies = 5")
    assert looked() == []  # also where another file says it
    put(path, "policies = 5 # still")
    assert looked() == [warning]
    path.unlink()
    gone = f"{path}: Invalid path: there is no such file."
    assert looked() == [f"{path} was not reloaded, the policies of before stay: {gone}"]
    assert looked() == []
    put(path, API.format("6/m"))
    assert looked() == [reloaded]  # nothing has changed, but it was wrong
    assert looked() == []
    assert policies.error is None
    put(path, "policies = 5")
    assert looked() == [warning]  # it was right meanwhile


def test_a_file_that_is_being_written_is_left_alone(path: Path, looked: Any) -> None:
    policies = looked.policies
    looked()
    for text in ("poli", 'policies.api = { quota = "', API.format("6/m")):
        path.write_text(text)
        assert policies._look(False)  # soon again
        assert policies.error is None
        assert str(policies["api"].quota) == "5/m"
    assert not policies._look(False)
    assert str(policies["api"].quota) == "6/m"


def test_a_change_that_looks_like_none_is_seen_for_a_while(path: Path, looked: Any) -> None:
    """Of the same size, in the same file, within one tick of a coarse clock."""
    policies = looked.policies
    seen = os.stat(path)
    path.write_text(API.format("6/m"))
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    policies._look(False)
    policies._look(False)
    assert str(policies["api"].quota) == "6/m"


# -- watching -------------------------------------------------------------------------------------


def test_a_thread_sees_every_kind_of_change(path: Path, tmp_path: Path) -> None:
    def limit() -> int:
        return policies["api"].quota.limit

    before = threading.active_count()
    with throttled.load(path, watch=0.02) as policies:
        assert threading.active_count() == before + 1
        path.write_text(API.format("6/m"))
        seen(lambda: limit() == 6)
        put(path, API.format("7/m"))
        seen(lambda: limit() == 7)
        path.unlink()
        seen(lambda: policies.error is not None)
        put(path, API.format("8/m"))
        seen(lambda: limit() == 8 and policies.error is None)
        # As Kubernetes mounts it: the file leads through a directory that is swapped.
        for number in (9, 10):
            (tmp_path / f"v{number}").mkdir()
            put(tmp_path / f"v{number}" / "policies.toml", API.format(f"{number}/m"))
        (tmp_path / "data").symlink_to("v9")
        path.unlink()
        path.symlink_to("data/policies.toml")
        seen(lambda: limit() == 9)
        (tmp_path / "swap").symlink_to("v10")
        (tmp_path / "swap").replace(tmp_path / "data")
        seen(lambda: limit() == 10)
    assert threading.active_count() == before
    put(path, API.format("11/m"))
    assert limit() == 10


def test_touch_lets_it_look_now(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUOTA", "5/m")
    put(path, API.format("${QUOTA}"))
    with throttled.load(path, watch=3600) as policies:
        monkeypatch.setenv("QUOTA", "6/m")
        policies.touch()
        seen(lambda: policies["api"].quota.limit == 6)
    policies.touch()  # nobody watches


def test_watching_anew(path: Path) -> None:
    before = threading.active_count()
    with throttled.load(path, watch=3600) as policies:
        policies.watch(0.02)
        assert threading.active_count() == before + 1
        put(path, API.format("6/m"))
        seen(lambda: policies["api"].quota.limit == 6)
        with pytest.raises(DataError):
            policies.watch(0)
        put(path, API.format("7/m"))
        seen(lambda: policies["api"].quota.limit == 7)  # as before


def test_the_thread_ends_with_the_policies(path: Path) -> None:
    policies = throttled.load(path, watch=0.02)
    thread = policies._watch._thread
    assert thread.daemon
    del policies
    gc.collect()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_what_goes_wrong_does_not_end_the_thread(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with throttled.load(path, watch=0.02) as policies:
        monkeypatch.setattr(base, "read", lambda name: 1 / 0)
        put(path, API.format("6/m"))
        seen(lambda: "could not be looked at" in caplog.text)
        monkeypatch.undo()
        put(path, API.format("7/m"))
        seen(lambda: policies["api"].quota.limit == 7)


def script(text: str, *arguments: object) -> str:
    """What a program of its own prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(text), *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_a_signal_reloads(path: Path) -> None:
    told = script(
        """
        import logging, os, signal, sys, time
        from pathlib import Path
        import throttled

        logging.basicConfig(format="%(levelname)s", level=logging.INFO, stream=sys.stdout)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        path = Path(sys.argv[1])
        policies = throttled.load(path)
        policies.watch(3600, signal=signal.SIGHUP)
        for text, done in (
            ('policies.api = { quota = "6/m" }', lambda: policies["api"].quota.limit == 6),
            ("policies = 5", lambda: policies.error),
            ('policies.api = { quota = "7/m" }', lambda: policies["api"].quota.limit == 7),
        ):
            path.write_text(text)
            os.kill(os.getpid(), signal.SIGHUP)
            while not done():
                time.sleep(0.001)
        policies.close()
        print(signal.getsignal(signal.SIGHUP) is signal.SIG_IGN)
        """,
        path,
    )
    assert told.split() == ["INFO", "WARNING", "INFO", "True"]


def test_a_signal_takes_the_main_thread(path: Path) -> None:
    policies = throttled.load(path)
    with (
        ThreadPoolExecutor(1) as pool,
        pytest.raises(SetUpError, match="in the main thread only"),
    ):
        pool.submit(policies.watch, signal=signal.SIGHUP).result()
    for bad in (signal.SIGKILL, 0, 99, "SIGHUP", True):
        with pytest.raises(DataError, match="Invalid signal: "):
            policies.watch(signal=bad)
    before = signal.getsignal(signal.SIGHUP)
    with policies:
        policies.watch(3600, signal=signal.SIGHUP)
        policies.watch(3600, signal=signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is not before
    assert signal.getsignal(signal.SIGHUP) is before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_watches_for_itself(path: Path) -> None:
    policies = throttled.load(path, watch=0.02)
    child = os.fork()
    if not child:
        done = 1
        try:
            put(path, API.format("6/m"))
            time.sleep(0.1)
            assert policies["api"].quota.limit == 5
            policies.watch(0.02)
            seen(lambda: policies["api"].quota.limit == 6)
            policies.close()
            done = 0
        finally:
            os._exit(done)
    assert os.waitpid(child, 0)[1] == 0
    policies.close()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_task_watches(path: Path, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        before = threading.active_count()
        policies = throttled.asyncio.load(path)
        async with policies, anyio.create_task_group() as group:
            api = policies["api"]
            group.start_soon(policies.watching, 0.02)
            put(path, API.format("6/m"))
            await aseen(lambda: api.quota.limit == 6)
            put(path, "policies = 5")
            await aseen(lambda: policies.error is not None)
            put(path, API.format("${QUOTA}"))
            await aseen(lambda: "QUOTA" in str(policies.error))
            monkeypatch.setenv("QUOTA", "7/m")
            # From anywhere: here, in a thread.
            await anyio.to_thread.run_sync(policies.touch)
            await aseen(lambda: api.quota.limit == 7)
            group.cancel_scope.cancel()
        assert not policies._wakers
        with pytest.raises(DataError, match="Invalid every"):
            await policies.watching(0)
        policies.touch()
        assert threading.active_count() <= before + 2  # those of the backend

    anyio.run(main, backend=backend)


async def test_a_task_is_woken_by_touch_alone(path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("QUOTA", "5/m")
    put(path, API.format("${QUOTA}"))
    async with throttled.asyncio.load(path) as policies, anyio.create_task_group() as group:
        group.start_soon(policies.watching, 3600)
        await anyio.wait_all_tasks_blocked()
        monkeypatch.setenv("QUOTA", "6/m")
        policies.touch()
        await aseen(lambda: policies["api"].quota.limit == 6)
        group.cancel_scope.cancel()


def test_nothing_is_started_unasked(path: Path) -> None:
    before = threading.active_count()
    policies = throttled.load(path)
    assert threading.active_count() == before
    assert isinstance(policies, Policies)
    assert isinstance(policies["api"], Throttled)
    assert policies.path == path
    assert policies != throttled.load(path)
    assert len({policies, throttled.load(path)}) == 2
