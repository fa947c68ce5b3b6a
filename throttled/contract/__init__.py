"""The contract: what a limiter in another language needs to share keys with this one.

Most callers want `export`, which writes all of it into a directory: the script that decides, how to
call it (`layout.json`), golden vectors to check oneself with, and a manifest of these files. What
is written comes from where it is used: the script is the one that a `RedisStore` sends.

A version of the contract is the bytes of its files. What was published is never changed: the
manifest keeps a digest of every version, and `python -m throttled.contract` adds to it.
"""

from __future__ import annotations

import json
from hashlib import sha256
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Final

from throttled._text import shown
from throttled.exceptions import DataError
from throttled.store.script import SCRIPT, SCRIPT_SHA

__all__ = ["RELEASED", "VERSION", "export", "files", "layout", "manifest", "recorded"]

#: The version of the contract that this code keeps. Raised by hand when any of its files changes.
VERSION: Final = 1
#: The newest version that was published; 0: none.
RELEASED: Final = 0

HERE: Final = Path(__file__).parent
MANIFEST: Final = "manifest.json"


def layout() -> dict[str, Any]:
    """How to call the script and what it replies, for programs to read: `layout.json`."""
    written: dict[str, Any] = json.loads((HERE / "layout.json").read_text("utf-8"))
    return {"version": VERSION, "script_sha1": SCRIPT_SHA, **written}


def files() -> dict[str, bytes]:
    """All that is exported but the manifest: the path of each file, and what it holds."""
    vectors = sorted((HERE / "vectors").glob("*.json"))
    return {
        "decide.lua": SCRIPT.encode("utf-8"),
        "layout.json": _document(layout()),
        **{f"vectors/{path.name}": path.read_text("utf-8").encode() for path in vectors},
    }


def manifest() -> dict[str, Any]:
    """What identifies this version of the contract: `manifest.json` of an export.

    `sha256` has the digest of every file. `history` has one for each version: the SHA-256 of what
    `sha256sum` prints of its files in the order of their names.
    """
    digests = {name: sha256(content).hexdigest() for name, content in sorted(files().items())}
    lines = "".join(f"{digest}  {name}\n" for name, digest in digests.items())
    own = sha256(lines.encode("utf-8")).hexdigest()
    return {
        "version": VERSION,
        "script_sha1": SCRIPT_SHA,
        "sha256": digests,
        "history": {**recorded().get("history", {}), str(VERSION): own},
    }


def recorded() -> dict[str, Any]:
    """The manifest as it was recorded; equal to `manifest()` unless something was changed."""
    try:
        written: dict[str, Any] = json.loads((HERE / MANIFEST).read_text("utf-8"))
    except FileNotFoundError:
        return {}
    return written


def export(directory: str | PathLike[str]) -> list[Path]:
    """Write the contract into a directory, which is made if need be; returns the files written.

    Files of the same names are replaced, others left alone: the manifest lists what belongs to it.

    Raises:
        DataError: it is no directory, or nothing can be written there.
    """
    given: object = directory
    if not isinstance(given, str | PathLike) or not fspath(given):
        raise DataError(f"Invalid directory: {shown(given)}, must be the path of one.")
    target = Path(directory)
    contents = {**files(), MANIFEST: _document(manifest())}
    try:
        (target / "vectors").mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            (target / name).write_bytes(content)
    except OSError as error:
        raise DataError(
            f"Invalid directory: {shown(str(target))}, must be one to write into: {error}"
        ) from error
    return [target / name for name in contents]


def _document(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8")
