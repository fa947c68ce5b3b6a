"""Tries what would be published, on every Python that is found: `make check-dist`.

    python -m tests.packaging                       # all of it
    python -m tests.packaging --python python3.12   # on this one only; may be given several times
    python -m tests.packaging --only extras         # "extras" or "tests" alone

On each: the wheel alone, each extra in an environment of its own, and the fast tests against the
installed wheel, from a folder that holds nothing but them. It takes some minutes a Python.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import monotonic

from tests.packaging.building import (
    EXTRAS,
    FIRST,
    PATIENCE,
    ROOT,
    Distributions,
    Environment,
    build,
    extras,
)

#: The Pythons to look for: those that the classifiers name.
WANTED = ("3.11", "3.12", "3.13")
#: What the tests read beside themselves.
BESIDE = ("docs", "CHANGELOG.rst", "Makefile", "README.md", "pyproject.toml")
#: Tests of the tree itself, which would have to lie around them.
OF_THE_TREE = (
    "contrib/test_imports.py",
    "packaging",
    "service/test_proto.py",
    "test_docs.py::test_links_lead_somewhere",
    "test_sphinx.py",
)
#: Characters of what a failure says: its end.
SHOWN = 4_000


def version_of(python: str | Path) -> str | None:
    """The version of a Python such as "3.12", None if it does not run."""
    code = "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"
    try:
        said = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return said.stdout.strip()


def pythons() -> dict[str, Path]:
    """The Pythons on this machine, by version: in the path, and those of pyenv."""
    found: dict[str, Path] = {}
    versions = sorted((Path.home() / ".pyenv" / "versions").glob("*/bin/python"))
    named = [Path(path) for each in WANTED if (path := shutil.which(f"python{each}"))]
    for python in (Path(sys.executable), *named, *versions):
        version = version_of(python)
        if version in WANTED:
            found.setdefault(version, python)
    return dict(sorted(found.items()))


class Trial:
    """What was tried, and what came of it."""

    def __init__(self) -> None:
        self.failed: list[str] = []

    def __call__(self, name: str, work: Callable[[], object]) -> None:
        start = monotonic()
        try:
            work()
        except (AssertionError, subprocess.TimeoutExpired) as error:
            self.failed.append(name)
            print(f"{name}: FAILED\n{str(error)[-SHOWN:]}\n", flush=True)
        else:
            print(f"{name}: fine ({monotonic() - start:.0f} s)", flush=True)


def check(trial: Trial, version: str, python: Path, wheel: Path, place: Path, only: str) -> None:
    """Try a wheel on one Python."""
    bare = Environment(python, place / "bare")

    def alone() -> None:
        bare.install(wheel)
        bare.check()
        bare.run("-W", "error", "-c", FIRST)

    trial(f"{version}, the wheel alone", alone)
    if only != "tests":
        for extra in extras():
            trial(f"{version}, [{extra}]", partial(with_extra, bare, extra, wheel, place))
    if only != "extras":
        trial(f"{version}, the fast tests", partial(tested, bare, wheel, place))


def with_extra(bare: Environment, extra: str, wheel: Path, place: Path) -> None:
    """Try one extra by itself."""
    fresh = Environment(bare.python, place / extra, pip=bare)
    try:
        fresh.install(f"{wheel}[{extra}]")
        fresh.check()
        fresh.run("-c", EXTRAS[extra])
    finally:
        shutil.rmtree(place / extra)


def tested(bare: Environment, wheel: Path, place: Path) -> None:
    """Run the fast tests where they can import nothing of the tree."""
    fresh = Environment(bare.python, place / "dev", pip=bare)
    fresh.install(f"{wheel}[dev]")
    apart = place / "apart"
    caches = shutil.ignore_patterns("__pycache__", "node_modules")
    shutil.copytree(ROOT / "tests", apart / "tests", ignore=caches)
    for name in BESIDE:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, apart / name, ignore=caches)
        else:
            shutil.copy(ROOT / name, apart)
    fast = [
        "-q",
        "--show-capture=no",
        "-m",
        "not server and not slow",
        "-n",
        str(os.cpu_count()),
        "--dist",
        "loadfile",
    ]
    aside = [f"--deselect=tests/{each}" for each in OF_THE_TREE]
    said = fresh.run("-m", "pytest", *fast, *aside, cwd=apart, timeout=3 * PATIENCE)
    print(said.strip().rpartition("\n")[2])


def described(built: Distributions, place: Path) -> None:
    """Let the tool that would upload them say whether an index can show them."""
    fresh = Environment(Path(sys.executable), place / "twine")
    fresh.install("twine")
    fresh.run("-m", "twine", "check", "--strict", built.wheel, built.source)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.packaging",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--python", action="append", metavar="PATH", help="one to try it on")
    parser.add_argument("--only", choices=["extras", "tests"], default="", help="not the rest")
    chosen = parser.parse_args()
    found = pythons()
    if chosen.python:
        found = {version_of(each) or each: Path(each) for each in chosen.python}
    trial = Trial()
    with tempfile.TemporaryDirectory(prefix="check-dist-") as name:
        place = Path(name)
        built = build(place / "dist")
        print(f"on Python {', '.join(found)}; {built.wheel.name}", flush=True)
        trial("what an index shows", partial(described, built, place))
        for version, python in found.items():
            check(trial, version, python, built.wheel, place / version, chosen.only)
            shutil.rmtree(place / version)
    if trial.failed:
        sys.exit("failed: " + "; ".join(trial.failed))


if __name__ == "__main__":
    main()
