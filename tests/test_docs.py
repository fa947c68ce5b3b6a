"""What the documents say is run: every Python block, every example, the demo."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXAMPLES = sorted(path.stem for path in (ROOT / "docs" / "examples").glob("*.py"))

#: The port of the server that the documents speak of.
PORT = re.compile(r"(?<!\d)6379(?!\d)")
NUMBER = re.compile(r"\d+(?:\.\d+)?")


def blocks() -> Iterator[object]:
    """Every block of Python, named by its document and line."""
    for document in DOCUMENTS:
        text = document.read_text("utf-8")
        for match in re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            line = text.count("\n", 0, match.start()) + 2
            marks = [pytest.mark.server] if PORT.search(match[1]) else []
            yield pytest.param(match[1], id=f"{document.name}:{line}", marks=marks)


def run(*arguments: str) -> str:
    """What a fresh interpreter prints; it must end well and without a warning."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr, done.stderr
    return done.stdout


def says(line: str, expected: str) -> bool:
    """Whether a line is the expected one, give or take a twentieth in its numbers: time passes."""
    if NUMBER.sub("#", line) != NUMBER.sub("#", expected):
        return False
    pairs = zip(NUMBER.findall(line), NUMBER.findall(expected), strict=True)
    return all(float(one) == pytest.approx(float(other), abs=0.05) for one, other in pairs)


def follow(code: str, printed: str) -> None:
    """Check that what code has printed follows the comments behind its prints, in their order."""
    lines = iter(printed.splitlines())
    for expected in re.findall(r"^ *print\(.*\)  # (.+)$", code, re.MULTILINE):
        rest = list(lines)
        found = next((n for n, line in enumerate(rest) if says(line, expected)), None)
        assert found is not None, f"{expected!r} is not among {rest}"
        lines = iter(rest[found + 1 :])


@pytest.mark.parametrize("code", list(blocks()))
def test_a_block_runs_and_prints_what_its_comments_say(
    code: str, request: pytest.FixtureRequest
) -> None:
    if PORT.search(code):
        code = PORT.sub(str(request.getfixturevalue("valkey").port), code)
    follow(code, run("-c", code))


def test_the_quick_starts_of_the_readme_are_the_examples() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    for name in ("quick_start", "async_quick_start"):
        example = (ROOT / "docs" / "examples" / f"{name}.py").read_text("utf-8")
        assert example.split('"""\n\n', 1)[1] in readme


@pytest.mark.parametrize(
    "name", [name for name in EXAMPLES if name not in ("demo", "redis_shared")]
)
def test_an_example_runs(name: str) -> None:
    assert run("-m", f"docs.examples.{name}")


@pytest.mark.server
def test_the_example_of_a_shared_server_admits_the_quota(request: pytest.FixtureRequest) -> None:
    url = request.getfixturevalue("valkey").url
    assert "together: 100 of 200" in run("-m", "docs.examples.redis_shared", url)


@pytest.mark.slow
def test_the_demo_agrees_with_itself_and_fits_a_terminal() -> None:
    lines = run("-m", "docs.examples.demo").splitlines()
    assert "Everything agrees" in lines[-1]
    assert not [line for line in lines if len(line) > 80]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text("utf-8")):
        assert (document.parent / target).exists(), target


def anchors(document: Path) -> set[str]:
    """What GitHub makes of the headings of a document."""
    text = re.sub(r"^```.*?^```", "", document.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each).lower().replace(" ", "-") for each in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_into_documents_lead_to_their_headings(document: Path) -> None:
    for target, anchor in re.findall(r"\]\(([\w./]*)#([\w-]+)\)", document.read_text("utf-8")):
        assert anchor in anchors((document.parent / target) if target else document), anchor


def test_every_table_row_has_as_many_cells_as_its_head() -> None:
    for document in DOCUMENTS:
        text = re.sub(r"`[^`]*`", "", document.read_text("utf-8"))
        for table in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
            rows = table.splitlines()
            assert len({row.count("|") for row in rows}) == 1, textwrap.shorten(rows[0], 60)
