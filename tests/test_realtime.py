"""What tests in real time do where the machine stands still."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.realtime import RERUNS

TESTS = """
import os, signal, subprocess, sys
import pytest

runs = []

def stand_still():
    wake = f"import os, time; time.sleep(0.3); os.kill({os.getpid()}, {int(signal.SIGCONT)})"
    child = subprocess.Popen([sys.executable, "-c", wake])
    os.kill(os.getpid(), signal.SIGSTOP)
    child.wait()

@pytest.mark.realtime
def test_stood_still():
    runs.append("still")
    if runs == ["still"]:
        stand_still()
        assert False

@pytest.mark.realtime
def test_always_still():
    stand_still()
    assert False

@pytest.mark.realtime
def test_wrong():
    assert False

def test_of_no_time():
    stand_still()
    assert False
"""


@pytest.mark.skipif(os.name != "posix", reason="a process that stops needs POSIX signals")
def test_only_where_time_stood_still_is_a_test_run_again(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(
        "from tests.conftest import _watch, pytest_collection_modifyitems  # noqa: F401\n"
    )
    (tmp_path / "test_it.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = realtime\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-v", "--color=no", "-p", "no:cacheprovider", "."],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True,
        text=True,
        timeout=120,
    )

    said = [
        line.split()[:2] for line in done.stdout.splitlines() if line.startswith("test_it.py::")
    ]
    assert [(name.partition("::")[2], outcome) for name, outcome in said] == [
        ("test_stood_still", "RERUN"),
        ("test_stood_still", "PASSED"),
        *[("test_always_still", "RERUN")] * RERUNS,
        ("test_always_still", "FAILED"),
        ("test_wrong", "FAILED"),
        ("test_of_no_time", "FAILED"),
    ], done.stdout + done.stderr
