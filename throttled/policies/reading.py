"""A policy file as text: found, decoded, parsed; nothing of what it says is looked at here."""

from __future__ import annotations

import json
import os
import re
import stat
import time
from hashlib import sha256
from typing import Any, Final, NamedTuple

from throttled._text import shown
from throttled.exceptions import DataError

#: Bytes; more is no policy file but a mistake.
_MOST_BYTES: Final = 16 * 2**20
#: Seconds for which a file that was just written may be written again without looking different:
#: clocks of file systems are coarse.
_YOUNG: Final = 2.0

_TOML_PLACE: Final = re.compile(r"(?s)(.*) \(at (?:line (\d+), column (\d+)|end of document)\)")


class Print(NamedTuple):
    """What a file looks like from outside: it changes with its content, or when another file takes
    its place, be it by a symbolic link."""

    mtime_ns: int
    ctime_ns: int
    size: int
    inode: int
    device: int


class Content(NamedTuple):
    """What was read."""

    text: str
    #: Equal for equal text.
    digest: bytes
    #: What the file looked like; None if that may not be enough to see its next change.
    print: Print | None


def file_name(path: object) -> str:
    """The path of a policy file as text.

    Raises `DataError` for what is no path, or does not say which format it is.
    """
    if isinstance(path, str | os.PathLike):
        name = os.fspath(path)
        if isinstance(name, str) and "\0" not in name and _suffix(name) in (".toml", ".json"):
            return name
    raise DataError(
        f"Invalid path: {shown(path)}, must be that of a file whose name ends in .toml or .json."
    )


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def print_of(name: str) -> Print | None:
    """What a file looks like now; None if it cannot be looked at."""
    try:
        return _print(os.stat(name))
    except OSError:
        return None


def _print(seen: os.stat_result) -> Print:
    return Print(seen.st_mtime_ns, seen.st_ctime_ns, seen.st_size, seen.st_ino, seen.st_dev)


def read(name: str) -> Content:
    """What is in a file. Raises `DataError` if that is no text, or cannot be had."""
    try:
        if not stat.S_ISREG(os.stat(name).st_mode):  # before it is opened: a pipe would block
            what = "a directory" if os.path.isdir(name) else "no regular file"
            raise DataError(f"{name}: Invalid path: it is {what}, must be a file.")
        with open(name, "rb") as file:
            # Looked at before it is read: a change meanwhile is seen as one later.
            seen = os.fstat(file.fileno())
            content = file.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        raise DataError(f"{name}: Invalid path: there is no such file.") from None
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error.strerror or error}.") from None
    if len(content) > _MOST_BYTES:
        raise DataError(f"{name}: is too large, must be at most {_MOST_BYTES} bytes.")
    try:
        text = content.decode("utf-8-sig")  # some editors put a mark there
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{name}: line {line}: is not UTF-8, must be text in UTF-8.") from None
    settled = seen.st_mtime < time.time() - _YOUNG
    return Content(text, sha256(content).digest(), _print(seen) if settled else None)


def parsed(name: str, text: str) -> dict[str, Any]:
    """The table that a file is. Raises `DataError` with line and column of what is no TOML, or no
    JSON."""
    try:
        return _json(text) if _suffix(name) == ".json" else _toml(text)
    except _SyntaxError as error:
        raise DataError(f"{name}: {error}") from None
    except RecursionError:
        raise DataError(f"{name}: is nested too deeply.") from None
    except ValueError:  # such as a number of more digits than are ever read
        raise DataError(f"{name}: holds a value that cannot be read.") from None


class _SyntaxError(Exception):
    """Where a file breaks the rules of its format, and how."""


def _toml(text: str) -> dict[str, Any]:
    import tomllib  # here and not above: most programs have no policy file

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        match = _TOML_PLACE.fullmatch(str(error))
        if match is None:
            raise _SyntaxError(f"{error}.") from None
        line, column = match[2] or text.count("\n") + 1, match[3]
        where = f"line {line}, column {column}" if column else f"line {line} (the end)"
        raise _SyntaxError(f"{where}: {match[1]}.") from None


def _json(text: str) -> dict[str, Any]:
    def table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                # The parser does not tell where it is.
                raise _SyntaxError(f"Invalid JSON: the key {shown(key)} is there twice.")
            found[key] = value
        return found

    def constant(name: str) -> Any:
        raise _SyntaxError(f"Invalid JSON: {name} is no number that JSON has.")

    try:
        found = json.loads(text, object_pairs_hook=table, parse_constant=constant)
    except json.JSONDecodeError as error:
        raise _SyntaxError(f"line {error.lineno}, column {error.colno}: {error.msg}.") from None
    if not isinstance(found, dict):
        raise _SyntaxError('Invalid JSON: must be an object, such as {"policies": {...}}.')
    return found
