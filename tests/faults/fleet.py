"""Four processes that hammer one key through two failovers.

    python -m tests.faults.fleet URL flavour

is one of them: it calls until its standard input ends, then prints what it saw.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from tests.faults.load import FLAVOURS, Figures, store_of
from tests.servers import PATIENCE, trio

#: Used up after the first failover or so.
QUOTA = 6000
FAILOVERS = 2
_TREE = Path(__file__).parents[2]


class Member:
    """One of the processes."""

    def __init__(self, url: str, flavour: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.fleet", url, flavour],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=_TREE,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def await_service(self) -> None:
        """Wait until it has been served."""
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"served\n"

    def end(self) -> Figures:
        """What its callers saw."""
        out, _ = self._process.communicate(timeout=PATIENCE)
        assert self._process.returncode == 0
        seen = json.loads(out)
        calls, admitted = Counter(seen.pop("calls")), Counter(seen.pop("admitted"))
        return Figures(calls, admitted, **seen)


def hammer(seconds: float = 10.0, binary: str | None = None) -> list[Figures]:
    """What four processes see that hammer one key for so long, or until all failovers are over."""
    with trio(binary=binary) as servers, ExitStack() as stack:
        members = [
            stack.enter_context(Member(servers.url, kind.flavour))
            for _ in range(2)
            for kind in FLAVOURS
        ]
        for member in members:
            member.await_service()
        end = time.monotonic() + seconds
        for _ in range(FAILOVERS):
            time.sleep(1)
            servers.revive(servers.kill_master())
        time.sleep(max(end - time.monotonic(), 1))
        return [member.end() for member in members]


def main(url: str, flavour: str) -> None:
    # That a server is left alone is logged each time, and is what this is about.
    logging.getLogger("throttled").setLevel(logging.ERROR)
    kind = next(each for each in FLAVOURS if each.flavour == flavour)
    load = kind(store_of(url, kind.asynchronous), QUOTA, ["key"], workers=4)
    load.start()
    load.await_service(0.0)
    print("served", flush=True)
    sys.stdin.read()
    load.stop()
    print(json.dumps(vars(load.figures())))


if __name__ == "__main__":
    main(*sys.argv[1:])
