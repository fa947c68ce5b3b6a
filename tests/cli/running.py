"""The command line as tests run it: `invoke` in this process, `run` and `started` as a process."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from click.testing import CliRunner

from throttled.cli.commands import throttled

if TYPE_CHECKING:
    from collections.abc import Generator

ROOT = Path(__file__).parent.parent.parent
PATIENCE = 30.0

#: What the environment of whoever runs the tests must not decide.
_UNSET = (
    "THROTTLED_STORE",
    "THROTTLED_TOKEN",
    "THROTTLED_TICKET_SECRET",
    "NO_COLOR",
    "FORCE_COLOR",
    "TTY_COMPATIBLE",
)


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it printed, which has to be one object and nothing else."""
        assert self.out.count("\n") == 1
        value = json.loads(self.out, parse_constant=lambda word: 1 / 0)
        assert isinstance(value, dict)
        return value


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in _UNSET}
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8", "TERM": "xterm", **more}


def invoke(*arguments: object, **more: str) -> Done:
    """Run a command in this process; `more` is for its environment."""
    unset: dict[str, str | None] = dict.fromkeys(_UNSET)
    done = CliRunner().invoke(throttled, [str(each) for each in arguments], env={**unset, **more})
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert "Traceback" not in done.stderr
    return Done(done.exit_code, done.stdout, done.stderr)


def started(*arguments: object, env: dict[str, str] | None = None, **options: Any) -> Any:
    """A process that runs a command; the caller sees to its end."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "throttled", *map(str, arguments)],
        env=env or environment(),
        cwd=ROOT,
        **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        | options,
    )


def run(*arguments: object, **more: str) -> Done:
    """Run a command as a process, to its end; `more` is for its environment."""
    with started(*arguments, env=environment(**more)) as process:
        out, err = process.communicate(timeout=PATIENCE)
    return Done(process.returncode, out.decode(), err.decode())


@contextmanager
def terminal(*arguments: object, **more: str) -> Generator[Terminal]:
    """A command on a terminal."""
    ours, theirs = pty.openpty()
    process = started(
        *arguments, env=environment(**more), stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    try:
        yield Terminal(process, ours)
    finally:
        process.kill()
        process.wait()
        os.close(ours)


class Terminal:
    """What is seen on it, and what is typed."""

    def __init__(self, process: Any, descriptor: int) -> None:
        self.process = process
        self._descriptor = descriptor
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self._descriptor, text.encode())

    def until(self, text: str) -> None:
        """Read on until a text appears."""
        deadline = time.monotonic() + PATIENCE
        while text not in self.seen:
            assert self._more(deadline), f"{text!r} never came, but {self.seen!r}"

    def end(self) -> int:
        """Read to the end: the exit code."""
        deadline = time.monotonic() + PATIENCE
        while self._more(deadline):
            pass
        return int(self.process.wait(PATIENCE))

    def _more(self, deadline: float) -> bool:
        ready, _, _ = select.select([self._descriptor], [], [], max(deadline - time.monotonic(), 0))
        assert ready, f"nothing comes after {self.seen!r}"
        try:
            chunk = os.read(self._descriptor, 4096)
        except OSError:  # so Linux says that the other end is closed
            return False
        self.seen += chunk.decode(errors="replace")
        return bool(chunk)
