"""How the pages of this folder become a site: `make docs`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from django.conf import settings
from docutils.utils import new_document
from myst_parser.parsers.sphinx_ import MystParser
from sphinx.util.docutils import SphinxDirective

import throttled

if TYPE_CHECKING:
    from docutils.nodes import Node
    from sphinx.application import Sphinx

settings.configure()  # REST framework asks for settings when it is imported

project = "throttled"
author = "The authors of throttled"
version = release = throttled.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton"]
exclude_patterns = ["examples"]
highlight_language = "text"  # of blocks that do not say

html_theme = "furo"
html_title = f"throttled {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False

myst_heading_anchors = 4  # the same as GitHub makes
myst_enable_extensions = ["fieldlist"]  # `:param x:` in docstrings

autoclass_content = "both"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True

nitpicky = True
nitpick_ignore_regex = [
    # Types of others, and names that only type checkers know.
    ("py:.*", r"(?!throttled\.).*"),
    ("py:.*", r"throttled\.(.*\.)?([A-Z]|StoreT)"),
    # What calls return or take, and nobody makes or names.
    ("py:.*", r"throttled\.(pacing\.(Async)?Paced|switch\.Disabled|contrib\.flask\._Said)"),
    ("py:.*", r"throttled\.(asyncio\.reservation\.Reserving|store\.base\.Sleeper)"),
    ("py:.*", r"throttled\.(base\.BaseThrottled|dashboard\.sources\.Source)"),
    ("py:.*", r"throttled\.store\.\w+\.(Sync|Async)(Line|Lane|Ask)"),
]
suppress_warnings = [
    "misc.highlighting_failure",  # Lua's lexer stumbles over functions without a name
    "ref.python",  # in a signature, "Throttled" may be that of either flavour
]


class Markdown(SphinxDirective):
    """What stands in it is Markdown, as the docstrings are."""

    has_content = True

    def run(self) -> list[Node]:
        document = new_document(self.get_source_info()[0], self.state.document.settings)
        MystParser().parse("\n".join(self.content), document)
        made: list[Node] = document.children
        return made


def as_markdown(app: Sphinx, kind: str, name: str, what: Any, how: Any, lines: list[str]) -> None:
    """Says of a docstring that it is Markdown; what it is divided into is no part of the page."""
    if kind == "data" and lines and lines[0] in (type(what).__doc__ or ""):
        lines.clear()  # that of `tuple`, say
    text = re.sub(r"^(.+)\n-{3,}$", r"**\1**\n", "\n".join(lines), flags=re.MULTILINE)
    if text.strip():
        lines[:] = [".. markdown::", "", *[f"   {line}" for line in text.split("\n")], ""]


def to_changelog(app: Sphinx, page: str, source: list[str]) -> None:
    """Links to the changelog lead to the page that holds it."""
    up = "../" * page.count("/")
    source[0] = source[0].replace(f"]({up}../CHANGELOG.rst", f"]({up}changelog.rst")


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("markdown", Markdown)
    app.connect("autodoc-process-docstring", as_markdown)
    app.connect("source-read", to_changelog)
    return {"parallel_read_safe": True}
