"""Distributions, and environments to try them in."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZipFile

ROOT = Path(__file__).parents[2]
PATIENCE = 600.0

#: Extra -> what it is there for, tried in an environment that has this extra and no other.
EXTRAS = {
    "in-memory": "from throttled.store import MemoryStore; MemoryStore()",
    "redis": (
        "from throttled.store import RedisStore; RedisStore('redis://h')\n"
        "from throttled.asyncio.store import RedisStore; RedisStore('redis://h')"
    ),
    "all": "from throttled.store import RedisStore; RedisStore('redis+cluster://h')",
    "asgi": "import throttled.contrib.asgi, throttled.contrib.wsgi, throttled.contrib.logging",
    "fastapi": "import throttled.contrib.fastapi",
    "flask": "import throttled.contrib.flask",
    "django": "import throttled.contrib.django",
    "httpx": "import throttled.contrib.httpx",
    "requests": "import throttled.contrib.requests",
    "aiohttp": "import throttled.contrib.aiohttp",
    "grpc": "import throttled.contrib.grpc",
    "mcp": "import throttled.contrib.mcp",
    "otel": "import throttled.contrib.otel",
    "prometheus": "import throttled.contrib.prometheus",
    "cli": "import throttled.cli.commands",
    "plot": "import matplotlib, throttled.simulation",
    "client": "import throttled.service, throttled.asyncio.service",
    "service": "import throttled.service.serving, throttled.cli.serve",
    "dashboard": "import throttled.dashboard",
}
#: Extras for those who work on the library.
OWN = {"dev", "docs"}

#: The first program of a user: limits, an error that says when, a store that needs an extra.
FIRST = """
import throttled, throttled.asyncio, throttled.testing
from throttled import Throttled, exceptions, store, utils

throttle = Throttled(using="token_bucket", quota="5/m", store=store.MemoryStore())
results = utils.Benchmark().serial(lambda: throttle.limit("user:42").limited, 8)
assert sum(results) == 3, results
try:
    store.RedisStore("redis://localhost:6379")
except exceptions.SetUpError as error:
    assert 'pip install "throttled-core[redis]"' in str(error), error
else:
    raise AssertionError("it was made without redis")
"""


def project() -> dict[str, Any]:
    """The table `project` of pyproject.toml."""
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return table


def extras() -> list[str]:
    """The extras of users."""
    return [name for name in project()["optional-dependencies"] if name not in OWN]


def done(*command: object, cwd: Path | None = None, timeout: float = PATIENCE) -> str:
    """What a command prints; it has to end well, or all it said is in the error."""
    ended = subprocess.run(
        [str(each) for each in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        env=environment(),
        cwd=cwd,
        timeout=timeout,
        check=False,
    )
    if ended.returncode:
        raise AssertionError(f"{' '.join(map(str, command))}\n{ended.stdout}")
    return ended.stdout


def environment() -> dict[str, str]:
    """An environment in which nothing is imported but what is installed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return {**kept, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONIOENCODING": "utf-8"}


@dataclass(frozen=True)
class Distributions:
    """What was built from one tree."""

    wheel: Path
    source: Path


def build(place: Path) -> Distributions:
    """Do what `make dist` does, elsewhere: the source first, and the wheel from that."""
    done(sys.executable, "-m", "build", "--outdir", place, ROOT)
    (wheel,), (source,) = place.glob("*.whl"), place.glob("*.tar.gz")
    return Distributions(wheel, source)


def in_wheel(wheel: Path) -> dict[str, bytes]:
    """The files of a wheel."""
    with ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def in_source(source: Path) -> dict[str, bytes]:
    """The files of a source distribution, by their path below its one folder."""
    found: dict[str, bytes] = {}
    with tarfile.open(source) as archive:
        for member in archive:
            file = archive.extractfile(member)
            if file is not None:
                found[member.name.partition("/")[2]] = file.read()
    return found


class Environment:
    """A fresh virtual environment of one Python."""

    def __init__(self, python: Path, place: Path, pip: Environment | None = None) -> None:
        """`pip`: another one of the same Python, which has pip; making that takes longest."""
        done(python, "-m", "venv", *(["--without-pip"] if pip else []), place)
        self.python = place / "bin" / "python"
        self._pip = [self.python if pip is None else pip.python, "-m", "pip"]
        if pip is not None:
            self._pip += ["--python", self.python]

    def install(self, *what: object) -> None:
        done(*self._pip, "install", "--quiet", *what)

    def check(self) -> None:
        """Whether what is installed suits one another."""
        done(*self._pip, "check")

    def run(self, *arguments: object, cwd: Path | None = None, timeout: float = PATIENCE) -> str:
        """What its Python prints; started, by default, where there is nothing to import."""
        return done(self.python, *arguments, cwd=cwd or self.python.parent, timeout=timeout)
