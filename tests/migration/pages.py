"""What the pages of docs/migration say, in pieces that can be checked."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.test_docs import ROOT

if TYPE_CHECKING:
    from pathlib import Path

FOLDER = ROOT / "docs" / "migration"

#: Code of the other library. What prints the same here says so, and its successor follows it.
_BLOCK = re.compile(r"^```python( old)?( same)?\n(.*?)^```", re.DOTALL | re.MULTILINE)
#: The tables of calls: "| In `limits` | In `throttled` |" and what is below.
_TABLE = re.compile(
    r"^\| In `[\w-]+` +\| In `throttled` +\|.*\n\|[-| ]+\n((?:\|.*\n)+)", re.MULTILINE
)
_CODE = re.compile(r"`([^`]+)`")


@dataclass(frozen=True)
class Block:
    """A block of Python."""

    where: str
    code: str
    old: bool
    same: bool


@dataclass(frozen=True)
class Page:
    """A page, read."""

    path: Path
    text: str
    blocks: list[Block]

    @classmethod
    def read(cls, path: Path) -> Page:
        text = path.read_text("utf-8")
        blocks = [
            Block(
                f"{path.name}:{text.count(chr(10), 0, match.start()) + 2}",
                match[3],
                bool(match[1]),
                bool(match[2]),
            )
            for match in _BLOCK.finditer(text)
        ]
        return cls(path, text, blocks)

    def pairs(self) -> list[tuple[Block, Block]]:
        """Blocks that print the same, the old one first."""
        return [(block, self.blocks[at + 1]) for at, block in enumerate(self.blocks) if block.same]

    def imports(self, *, old: bool) -> list[str]:
        """The lines by which the blocks of one side import anything."""
        return [
            ast.unparse(node)
            for block in self.blocks
            if block.old is old
            for node in ast.walk(ast.parse(block.code))
            if isinstance(node, ast.Import | ast.ImportFrom)
        ]

    def calls(self, *, old: bool) -> list[str]:
        """The pieces of code in one column of the tables of calls."""
        return [
            code
            for table in _TABLE.finditer(self.text)
            for row in table[1].splitlines()
            for code in _CODE.findall(re.split(r"(?<!\\)\|", row)[1 if old else 2])
        ]
