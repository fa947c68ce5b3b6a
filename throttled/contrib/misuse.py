"""Mistakes that can be seen from inside an application, each said once, with a code.

TH001 to TH004 are about the client's address: see `throttled.contrib.identity`.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from throttled._text import shown
from throttled.store.memory import MemoryStore

if TYPE_CHECKING:
    from throttled.contrib.keys import Incoming

logger = logging.getLogger("throttled")

_SEVERAL: Final = (
    "TH005: a limit counts in a MemoryStore, but this server runs %s workers, each with counts of "
    "its own, so that callers get more than the limit. Share a RedisStore."
)
_ONE_BUCKET: Final = (
    "TH006: the first %d requests counted under one key, %s, although they came from many "
    "addresses. If all callers should not share one limit, look at key=%s."
)

# Requests before it is said that all count under one key.
_ALIKE: Final = 100

# From so many addresses: one caller may well have two or three.
_SCATTERED: Final = 10

# Requests from a few addresses after which nobody else is expected.
_WATCHED: Final = 10_000

# What servers are told of their workers, on the command line or by variables.
_SERVERS: Final = re.compile(
    r"(?:^|[\s/\\])(?:uvicorn|gunicorn|hypercorn|granian|fastapi)(?:\.exe|[/\\]__main__\.py)?(?:\s|$)"
)
_WORKERS: Final = re.compile(r"(?:^|\s)(?:--workers|-w)[=\s]*(\d+)\b")

_said: set[str] = set()


def workers(argv: Sequence[str] | None = None, environ: Mapping[str, str] | None = None) -> int:
    """How many workers the server was told to run, as far as can be seen; at least 1."""
    # What a server starts its workers with is in the first; what it was told itself, in the second.
    argv = [*sys.orig_argv, *sys.argv] if argv is None else argv
    environ = os.environ if environ is None else environ
    line = " ".join(argv)
    found = [environ.get("WEB_CONCURRENCY", "").strip()]
    found += _WORKERS.findall(environ.get("GUNICORN_CMD_ARGS", ""))
    if _SERVERS.search(line):
        found += _WORKERS.findall(line)
    return max([int(each) for each in found if each.isdecimal()], default=1)


def warn_of_workers(store: object, several: str | int | None = None) -> None:
    """Say once that counts in memory are not shared by the workers that there are.

    `several`: how many, where the server says so; else what can be seen of the process.
    """
    if "TH005" in _said or not isinstance(store, MemoryStore):
        return
    if several is None:
        number = workers()
        several = number if number > 1 else None
    if several:
        _said.add("TH005")
        logger.warning(_SEVERAL, several)


class Alike:
    """Watches whether the callers of a limit can be told apart; over as soon as two can."""

    __slots__ = ("_count", "_key", "_name", "_peers")

    def __init__(self, name: str) -> None:
        self._name = name
        self._key: str | None = None
        self._peers: set[str | None] = set()
        self._count = 0

    def over(self, key: str, request: Incoming) -> bool:
        """Whether there is nothing more to watch after this request."""
        if self._key is None:
            self._key = key
        elif key != self._key:
            return True
        if len(self._peers) < _SCATTERED:
            self._peers.add(request.peer)
        self._count += 1
        if self._count < _ALIKE or len(self._peers) < _SCATTERED:
            return self._count >= _WATCHED
        logger.warning(_ONE_BUCKET, self._count, shown(key), self._name)
        return True
