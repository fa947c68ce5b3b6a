"""The dashboard and the service as processes."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from tests.cli.running import PATIENCE, environment, started
from tests.dashboard.sites import Site
from tests.servers import HOST

POLICIES = """
[policies.api]
quota = "5/h"
using = "fixed_window"

[policies.looked]
quota = "9/h"
operations = ["check", "peek"]
"""


@contextmanager
def process(*arguments: object, lines: int = 1, **more: str) -> Iterator[tuple[Any, list[str]]]:
    """A command that serves, and the addresses that it prints; it has to end in good order."""
    running = started(*arguments, env=environment(**more))
    try:
        addresses: list[str] = []
        for _ in range(lines):
            line = running.stdout.readline().decode()
            found = re.search(r"on (?:http://)?([^/\s]+)", line)
            assert found, line + running.stderr.read().decode()
            addresses.append(found[1])
        yield running, addresses
        if running.poll() is None:
            running.send_signal(signal.SIGTERM)
        running.wait(PATIENCE)
        assert running.returncode == 0, running.stderr.read().decode()
    finally:
        if running.poll() is None:
            running.kill()
        running.communicate()


@contextmanager
def dashboard(*arguments: object, **more: str) -> Iterator[tuple[Any, Site]]:
    """A dashboard as a process, and what asks it."""
    listen = ("--listen", f"{HOST}:0") if "--listen" not in arguments else ()
    with process("dashboard", *listen, *arguments, **more) as (running, (address,)):
        site = Site(int(address.rpartition(":")[2]))
        with closing(site.client):
            yield running, site


@contextmanager
def service(directory: Path, *arguments: object, said: str = POLICIES) -> Iterator[tuple[str, str]]:
    """A service as a process: its address, and the URL of its /stats."""
    path = directory / "policies.toml"
    path.write_text(said, "utf-8")
    options = ("--listen", f"{HOST}:0", "--http", f"{HOST}:0", *arguments)
    with process("serve", path, *options, lines=2) as (_, (address, side)):
        yield address, f"http://{side}/stats"
