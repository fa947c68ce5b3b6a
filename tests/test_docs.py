"""What the documents say is run: every Python block, every example, the demo.

Of the other blocks, files of policies are loaded, commands are parsed, and what a block is said to
print (a block of text right behind it) is compared. The pages of the command line, of the contract
and of migration have tests of their own for theirs.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import textwrap
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest

import throttled
from tests.servers import HOST
from throttled.cli.commands import throttled as command_line

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXAMPLES = sorted(path.stem for path in (ROOT / "docs" / "examples").glob("*.py"))

#: The ports of the server and of the service that the documents speak of.
PORT = re.compile(r"(?<!\d)6379(?!\d)")
SERVICE = re.compile(r"localhost:50051")
NUMBER = re.compile(r"\d+(?:\.\d+)?")


def blocks() -> Iterator[object]:
    """Every block of Python, named by its document and line."""
    for document in DOCUMENTS:
        text = document.read_text("utf-8")
        for match in re.finditer(
            r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```)?", text, re.DOTALL | re.MULTILINE
        ):
            line = text.count("\n", 0, match.start()) + 2
            marks = [pytest.mark.server] if PORT.search(match[1]) else []
            yield pytest.param(match[1], match[2] or "", id=f"{document.name}:{line}", marks=marks)


def others(language: str) -> Iterator[object]:
    """Every block of another language, named likewise."""
    for document in DOCUMENTS:
        text = document.read_text("utf-8")
        for match in re.finditer(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            line = text.count("\n", 0, match.start()) + 2
            yield pytest.param(match[1], id=f"{document.name}:{line}")


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


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a service with the policy that the documents ask."""
    file = tmp_path_factory.mktemp("service") / "policies.toml"
    file.write_text('[policies.api]\nquota = "100/s"\n')
    words = ("serve", str(file), "--listen", f"{HOST}:0", "--http", "off")
    with subprocess.Popen(
        [sys.executable, "-m", "throttled", *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
    ) as serving:
        assert serving.stdout is not None
        try:
            yield serving.stdout.readline().removeprefix("gRPC on ").strip()
        finally:
            serving.terminate()


@pytest.mark.parametrize(("code", "shown"), list(blocks()))
def test_a_block_runs_and_prints_what_its_comments_say(
    code: str, shown: str, request: pytest.FixtureRequest
) -> None:
    if PORT.search(code):
        code = PORT.sub(str(request.getfixturevalue("valkey").port), code)
    if SERVICE.search(code):
        code = SERVICE.sub(request.getfixturevalue("service"), code)
    printed = run("-c", code)
    follow(code, printed)
    assert " ".join(shown.split()) in " ".join(printed.split())


@pytest.mark.parametrize("text", list(others("toml")))
def test_a_policy_file_is_in_order(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://localhost:1/0")
    file = tmp_path / "policies.toml"
    file.write_text(
        text if "policies" in tomllib.loads(text) else f'{text}[policies.a]\nquota="1/s"'
    )
    throttled.load(file).close()


@pytest.mark.parametrize("text", list(others("json")))
def test_json_is_json(text: str) -> None:
    json.loads(text)


def commands() -> Iterator[object]:
    """Every command of ours in a block, be it typed behind a prompt or not."""
    for document in DOCUMENTS:
        text = document.read_text("utf-8")
        for block in re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            joined = block.replace("\\\n", " ")
            for words in re.findall(r"^(?:\$ )?throttled (.+)$", joined, re.MULTILINE):
                yield pytest.param(
                    shlex.split(words, comments=True), id=f"{document.name}: {words}"
                )


@pytest.mark.parametrize("words", list(commands()))
def test_a_command_could_be_given(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "policies.toml").write_text('[policies.api]\nquota = "1/s"\n')
    name, *rest = words
    settings = command_line.context_settings  # of which a command keeps what it asks for first
    with click.Context(command_line, info_name="throttled", **settings) as context:
        command = command_line.get_command(context, name)
        assert command is not None
        command.make_context(name, rest, parent=context).close()


def test_what_is_installed_run_or_made_exists() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for document in DOCUMENTS:
        text = document.read_text("utf-8")
        for extras in re.findall(r"throttled-core\[([\w, -]+)\]", text):
            assert set(extras.split(",")) <= set(project["optional-dependencies"]), document
        for target in re.findall(r"(?:^|`)make ([a-z][a-z-]+)", text, re.MULTILINE):
            assert f"\n{target}:" in makefile, f"{document}: {target}"
        for module in re.findall(r"python -m ((?:docs|tests|throttled)[\w.]*)", text):
            assert find_spec(module.rstrip(".")), f"{document}: {module}"


def test_the_readme_can_be_read_anywhere() -> None:
    """Where a package is listed there are no files beside it, so a page is linked by its name."""
    readme = (ROOT / "README.md").read_text("utf-8")
    links = re.findall(r"\[`([\w./-]+)`\]\(([\w./-]+)\)", readme)
    assert len(links) == len(re.findall(r"\]\((?!https://)", readme)) > 20
    assert not [(name, page) for name, page in links if f"docs/{name}.md" != page != name]
    assert not [page for _, page in links if not (ROOT / page).exists()]
    shown = readme.splitlines()[:25]
    assert {"# throttled", "from throttled import Throttled"} <= set(shown)
    assert [line for line in shown if line.startswith("pip install throttled-core")]


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
