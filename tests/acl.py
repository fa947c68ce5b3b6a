"""The users of docs/security.md: what the document grants is what the tests have."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.servers import Server

DOCUMENT = Path(__file__).parent.parent / "docs" / "security.md"


@dataclass(frozen=True)
class User:
    """A user, by the words of the line that makes it."""

    words: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.words[0]

    @property
    def password(self) -> str:
        return next(word[1:] for word in self.words if word[0] == ">")

    @property
    def commands(self) -> list[str]:
        """What it may call, as the line has it."""
        return [word for word in self.words if word[0] == "+"]

    def without(self, word: str) -> User:
        """The same user with one right less."""
        return replace(self, words=tuple(each for each in self.words if each != word))

    def enter(self, *servers: Server) -> None:
        """Make the user on these servers, in the place of one of the same name."""
        for server in servers:
            server.ask("ACL", "SETUSER", *self.words)

    def url(self, url: str) -> str:
        """The same URL, for this user."""
        return url.replace("://", f"://{self.name}:{self.password}@", 1)


_lines = re.findall(r"^ACL SETUSER (.+)$", DOCUMENT.read_text("utf-8"), re.MULTILINE)
#: Of a server, of a node of a cluster, and of a Sentinel: the order of the document.
SERVER, NODE, SENTINEL = (User(tuple(line.split())) for line in _lines)
