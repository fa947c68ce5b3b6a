"""Checks what the pages of docs/migration say of other libraries, against those libraries.

    python -m tests.migration              # all of them
    python -m tests.migration limits       # one

The examples of each page run as they stand there and print what their comments say; where the page
says that ours prints the same, it does; and each call in its tables could be made. Environments are
made once, under `.benchmarks/migration`; a Valkey server is started for the run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from tests.migration import calls
from tests.migration.packages import PACKAGES, Package
from tests.migration.pages import FOLDER, Page
from tests.servers import Server
from tests.test_docs import PORT, ROOT, follow, run, says

ENVIRONMENTS = ROOT / ".benchmarks" / "migration"


def environment(package: Package) -> Path:
    """The Python of an environment with the package, made if it is not there yet."""
    place = ENVIRONMENTS / package.name
    python = place / "bin" / "python"
    done = place / "done"
    wanted = "\n".join(package.requirements)
    if not done.exists() or done.read_text() != wanted:
        print(f"making {place}", file=sys.stderr)
        venv.create(place, with_pip=True, clear=True)
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", *package.requirements], check=True
        )
        done.write_text(wanted)
    return python


def printed(python: Path, *arguments: str, given: str = "") -> str:
    """What a program of the other environment prints; it must end well."""
    with tempfile.TemporaryDirectory() as folder:  # some read files of where they are
        done = subprocess.run(
            [python, "-I", *arguments],
            cwd=folder,
            input=given,
            capture_output=True,
            encoding="utf-8",
            timeout=60,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def differences(one: str, other: str) -> list[str]:
    """Lines that differ by more than the time that passes."""
    pairs = list(zip(one.splitlines(), other.splitlines(), strict=False))
    differ = [f"{old!r}, here {new!r}" for old, new in pairs if not says(old, new)]
    if len(one.splitlines()) != len(other.splitlines()):
        differ.append(f"{one!r}, here {other!r}")
    return differ


def wrong(package: Package, server: Server) -> list[str]:
    """What is wrong with the page of a package."""
    page = Page.read(FOLDER / f"{package.name}.md")
    python = environment(package)
    at_port = str(server.port)
    found = []
    outputs = {}
    for block in page.blocks:
        with server.client() as client:
            client.flushall()
        code = PORT.sub(at_port, block.code)
        try:
            outputs[block] = printed(python, "-c", code) if block.old else run("-c", code)
            follow(block.code, outputs[block])
        except (AssertionError, subprocess.TimeoutExpired) as error:
            found.append(f"{block.where}: {error}")
    for old, new in page.pairs():
        if old in outputs and new in outputs:
            found += [f"{old.where}: {each}" for each in differences(outputs[old], outputs[new])]
    question = {
        "imports": [*package.imports, *page.imports(old=True)],
        "variables": package.variables,
        "texts": page.calls(old=True),
    }
    answer = printed(python, calls.__file__, given=json.dumps(question))
    found += [f"{page.path.name}: {line}" for line in answer.splitlines() if line]
    blocks = sum(block.old for block in page.blocks)
    print(
        f"{package.name} {package.version}: {blocks} examples, {len(page.pairs())} the same here, "
        f"{len(question['texts'])} calls, {len(found)} wrong"
    )
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="of packages; all by default")
    chosen = parser.parse_args()
    unknown = set(chosen.names) - set(PACKAGES)
    if unknown:
        parser.error(f"no page about {', '.join(unknown)}; there are {', '.join(PACKAGES)}")
    found = []
    with Server() as server:
        for name in chosen.names or PACKAGES:
            found += wrong(PACKAGES[name], server)
    print("\n".join(found))
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
