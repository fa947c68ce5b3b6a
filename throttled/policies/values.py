"""The values of a policy file one by one: where each stands, what it may be, what is wrong with it.

Problems are collected, so that a file can be put right in one go.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, TypeAlias
from urllib.parse import unquote

from throttled._text import shown
from throttled.exceptions import DataError, SetUpError

_TEXT: Final = "text that is not empty"

#: Names and indexes that lead to a value.
Path: TypeAlias = "tuple[str | int, ...]"

#: So many are told of.
_MOST_TOLD: Final = 20

#: Shorter ones would be taken for what they are not.
_SECRET: Final = 3

_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
_BARE: Final = re.compile(r"[A-Za-z0-9_-]{1,100}", re.ASCII)
_VARIABLE: Final = re.compile(r"\$\$\{|\$\{([A-Za-z_][A-Za-z0-9_]*)\}|\$\{", re.ASCII)


def path_text(path: Path) -> str:
    """A path as it is written in TOML: policies.api.overrides[2].key."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            name = step if _BARE.fullmatch(step) else '"' + shown(step)[1:-1] + '"'
            text += f".{name}" if text else name
    return text


class BadValueError(Exception):
    """A value is none; what is wrong with it is among the problems."""


class Values:
    """Reads the values of one file, and collects what is wrong with them.

    `${NAME}` in a text is the variable of that name in the environment, and `$${` is `${`. What
    comes from there is never shown: it may be secret.
    """

    def __init__(self, name: str, environment: Mapping[str, str] | None = None) -> None:
        self._name = name
        self._environment = os.environ if environment is None else environment
        self._problems: dict[tuple[Path, str], None] = {}
        #: By the two first steps of a path: what was read there, and how it was written.
        self._secrets: dict[Path, dict[str, str]] = {}

    # -- problems ---------------------------------------------------------------------------------

    def wrong(self, path: Path, why: object) -> None:
        """Note a problem."""
        text = str(why)
        for secret, written in self._secrets.get(path[:2], {}).items():
            text = text.replace(secret, written)
        self._problems[path, " ".join(text.split("\n"))] = None

    def bad(self, path: Path, what: str, value: object, must: str) -> BadValueError:
        """Note that a value is not what it must be."""
        self.wrong(path, f"Invalid {what}: {shown(value)}, must be {must}.")
        return BadValueError()

    def trying(self, path: Path, make: Callable[[], Any]) -> Any:
        """What the library makes of values; `BadValueError` where it says that it cannot."""
        try:
            return make()
        except (DataError, SetUpError) as error:
            self.wrong(path, error)
            raise BadValueError from None

    def fine(self, path: Path) -> bool:
        """Whether there is nothing wrong at a path, nor below."""
        return not any(where[: len(path)] == path for where, _ in self._problems)

    def check(self) -> None:
        """Raise `DataError` if there is a problem: it names all of them, one a line."""
        told = [
            ": ".join(filter(None, (self._name, path_text(path), why)))
            for path, why in self._problems
        ]
        more = len(told) - _MOST_TOLD
        if more > 0:
            told[_MOST_TOLD:] = [f"{self._name}: and {more} more"]
        if told:
            raise DataError("\n".join(told))

    # -- tables -----------------------------------------------------------------------------------

    def table(self, path: Path, value: object) -> dict[str, Any]:
        """A table, whatever is in it."""
        if not isinstance(value, dict):
            raise self.bad(path, str(path[-1]), value, "a table")
        return value

    def known(self, path: Path, table: dict[str, Any], keys: Iterable[str]) -> None:
        """Note the keys of a table that it cannot have."""
        known = tuple(keys)
        for key in table:
            if key not in known:
                self.wrong((*path, key), f"Unknown key, {nearest(key, known)}")

    def entries(self, path: Path, value: object) -> Iterator[tuple[Path, str, dict[str, Any]]]:
        """The tables in a table, by their names; noting those that are none."""
        for name, entry in self.table(path, value).items():
            where = (*path, name)
            try:
                if not _NAME.fullmatch(name):
                    must = "1 to 64 of the characters A-Z, a-z, 0-9, '.', '_' and '-'"
                    raise self.bad(where, "name", name, must)
                yield where, name, self.table(where, entry)
            except BadValueError:
                continue

    def items(self, path: Path, what: str, value: object) -> list[tuple[Path, Any]]:
        """The items of a list that has some."""
        if not isinstance(value, list) or not value:
            raise self.bad(path, what, value, "a list of one or more")
        return [((*path, place), item) for place, item in enumerate(value)]

    # -- values -----------------------------------------------------------------------------------

    def text(self, path: Path, what: str, value: object, must: str = _TEXT) -> str:
        """Text that is not empty, with what it has of the environment."""
        text = self.plain(path, what, value, must)
        expanded = self.expanded(path, what, text)
        if not expanded:
            raise self.bad(path, what, text, f"{must}; it is empty in the environment")
        return expanded

    def plain(self, path: Path, what: str, value: object, must: str = _TEXT) -> str:
        """Text that is not empty, as it is."""
        if not isinstance(value, str) or not value:
            raise self.bad(path, what, value, must)
        return value

    def flag(self, path: Path, what: str, value: object) -> bool:
        """True or false."""
        if not isinstance(value, bool):
            raise self.bad(path, what, value, "true or false")
        return value

    def word(self, path: Path, what: str, value: object, words: Iterable[str]) -> str:
        """One of several words."""
        known = tuple(words)
        text = self.text(path, what, value, f"one of {', '.join(known)}")
        if text not in known:
            self.wrong(path, f"Invalid {what}: {shown(text)}, {nearest(text, known)}")
            raise BadValueError
        return text

    def expanded(self, path: Path, what: str, text: str) -> str:
        """A text with what it has of the environment."""
        if "${" not in text:
            return text
        found: dict[str, str] = {}
        for match in _VARIABLE.finditer(text):
            name = match[1]
            if match[0] == "${":
                must = "${NAME}, or $${ for the characters themselves"
                raise self.bad(path, what, text, f"written with {must}")
            if name is not None:
                if name not in self._environment:
                    self.wrong(
                        path,
                        f"Invalid {what}: {shown(text)}, the environment has no variable {name}.",
                    )
                    raise BadValueError
                found[f"${{{name}}}"] = self._environment[name]
        full = _VARIABLE.sub(lambda each: found.get(each[0], "${"), text)
        # The whole first, which an error may show cut; then what is longer, which may hold another.
        hidden = self._secrets.setdefault(path[:2], {})
        for secret, written in ((full, text), *((value, name) for name, value in found.items())):
            hidden[shown(secret)] = shown(written)
            for form in (secret, unquote(secret), repr(secret)[1:-1]):
                if len(form) >= _SECRET:
                    hidden[form] = written
        self._secrets[path[:2]] = dict(sorted(hidden.items(), key=lambda each: -len(each[0])))
        return full

    def expanded_all(self, path: Path, value: Any) -> Any:
        """A value of any kind, with what the texts in it have of the environment."""
        if isinstance(value, str):
            return self.expanded(path, "option", value)
        if isinstance(value, list):
            return [self.expanded_all((*path, place), each) for place, each in enumerate(value)]
        if isinstance(value, dict):
            return {name: self.expanded_all((*path, name), each) for name, each in value.items()}
        return value


def nearest(key: str, known: Iterable[str]) -> str:
    """What is likely meant by a key that is not known, as the end of a sentence."""
    from difflib import get_close_matches  # here and not above: files are mostly right

    names = list(known)
    close = get_close_matches(key[:100], names, 1)
    if close:
        return f"did you mean {close[0]!r}?"
    more = len(names) - _MOST_TOLD
    also = f" and {more} more" if more > 0 else ""
    return f"must be one of {', '.join(names[:_MOST_TOLD])}{also}."
