"""The figures of the documents: all are there, all are drawn by `make figures`, and are current."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import matplotlib as mpl
import pytest

from docs.figures.make import FIGURES, HERE

DOCS = Path(__file__).parent.parent / "docs"
IMAGE = re.compile(r"!\[([^\]]*)\]\((?!https?:)([^)]+)\)")
SVG = "{http://www.w3.org/2000/svg}"


def images() -> list[tuple[Path, str]]:
    """Every picture in the documents: its file, and what is said to those who do not see it."""
    return [
        ((document.parent / target).resolve(), words)
        for document in sorted(DOCS.rglob("*.md"))
        for words, target in IMAGE.findall(document.read_text("utf-8"))
    ]


def test_every_figure_is_drawn_by_the_script_and_shown_in_a_document() -> None:
    shown = {path.name for path, _ in images() if path.parent == HERE.resolve()}
    assert shown == set(FIGURES)
    assert {path.name for path in HERE.glob("*.svg")} == set(FIGURES)


def test_every_picture_of_a_document_has_words() -> None:
    for path, words in images():
        assert len(words.split()) >= 4, path


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_has_a_title_and_a_description(name: str) -> None:
    root = ElementTree.parse(HERE / name).getroot()
    assert root.get("role") == "img"
    assert root.findtext(f"{SVG}title")
    assert re.search(r"\d", root.findtext(f"{SVG}desc") or "")


@pytest.mark.slow
@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_current(name: str, tmp_path: Path) -> None:
    kept = (HERE / name).read_text("utf-8")
    (version,) = re.findall(r"Matplotlib v([\w.+]+),", kept)
    if version != mpl.__version__:
        pytest.skip(f"drawn with matplotlib {version}, which draws otherwise")
    FIGURES[name](str(tmp_path / name))
    # Not the texts: their difference would be pages long.
    assert (tmp_path / name).read_bytes() == (HERE / name).read_bytes(), "run `make figures`"
