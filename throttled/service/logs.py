"""Log lines of the service: text for people, or one JSON object a line."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Final, Literal

logger = logging.getLogger("throttled")

LogFormat = Literal["text", "json"]

_FIELD: Final = "throttled_"


class TextLines(logging.Formatter):
    """`2026-11-21T21:07:10.123Z INFO Serves limits on 127.0.0.1:50051`"""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802
        return _instant(record)


class JSONLines(logging.Formatter):
    """`{"ts": ..., "level": ..., "logger": ..., "event": ..., "message": ...}` and what else is
    said in fields."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "ts": _instant(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": "log",
            "message": record.getMessage(),
        }
        for name, value in vars(record).items():
            if name.startswith(_FIELD):
                line[name.removeprefix(_FIELD)] = value
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def _instant(record: logging.LogRecord) -> str:
    instant = datetime.fromtimestamp(record.created, UTC)
    return instant.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def write_to_stderr(log_format: LogFormat) -> None:
    """Have all that is logged in this process written that way, from INFO up."""
    lines = logging.StreamHandler(sys.stderr)
    lines.setFormatter(JSONLines() if log_format == "json" else TextLines())
    root = logging.getLogger()
    root.addHandler(lines)
    root.setLevel(logging.INFO)


def say(event: str, message: str, *arguments: object, **fields: object) -> None:
    """Log an event in the life of the service."""
    extra = {f"{_FIELD}{name}": value for name, value in {"event": event, **fields}.items()}
    logger.info(message, *arguments, extra=extra)
