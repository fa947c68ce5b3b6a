"""How a command ends: its exit code, and the line on stderr that says why."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, TextIO

import click

from throttled.exceptions import (
    BaseThrottledError,
    LimitedError,
    StateError,
    StoreUnavailableError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

ALLOWED: Final = 0
REFUSED: Final = 1
#: Something is wrong with what was asked for.
WRONG: Final = 2
#: The store or the service did not answer, or holds something else under that key.
DOWN: Final = 3
#: A mistake of ours, by the convention of sysexits.h.
BROKEN: Final = 70
INTERRUPTED: Final = 130
#: Nobody reads on. As a program that SIGPIPE ends, so that it is not taken for a refusal.
UNREAD: Final = 141

#: The packages of each extra, for when one is missing.
_EXTRAS: Final = {
    "matplotlib": "plot",
    "redis": "redis",
    "grpc": "service",
    "grpc_health": "service",
    "google": "service",
    "uvicorn": "service",
    "prometheus_client": "service",
    "starlette": "dashboard",
}


class CommandError(Exception):
    """A command cannot go on; its message is for the user."""


class EndedError(Exception):
    """A command was ended from outside. Click has its own ways with what this stands for."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@contextmanager
def ending() -> Generator[None]:
    """Raises an `EndedError` when nobody reads on, and when somebody wants no more."""
    try:
        yield
    except BrokenPipeError:
        raise EndedError(UNREAD) from None
    except (KeyboardInterrupt, click.Abort):
        if at_terminal(sys.stderr):
            click.echo(err=True)  # below the ^C
        raise EndedError(INTERRUPTED) from None


def ended(command: Callable[[], Any]) -> int:
    """Run a command: its exit code. What goes wrong is said on stderr, in a line."""
    try:
        code = command()
        if sys.stdout is not None:  # as it is when whoever started us has closed it
            with ending():
                sys.stdout.flush()
    except Exception as error:
        code = _explained(error)
    return _flushed(code if isinstance(code, int) else ALLOWED)


def _explained(error: Exception) -> int:
    if isinstance(error, EndedError):
        return error.code
    if isinstance(error, BaseThrottledError):
        say(str(error))
        return code_of(error)
    if isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx else "throttled"
        text = error.format_message()
        say(f"{text}{'' if text.endswith(('.', '?')) else '.'} See {path} -h.")
    elif isinstance(error, click.ClickException):
        say(error.format_message())
    elif isinstance(error, CommandError):
        say(str(error))
    elif isinstance(error, OSError):
        what = f"{error.filename}: " if error.filename else ""
        say(f"{what}{error.strerror or error}")
    elif isinstance(error, ModuleNotFoundError) and (name := package_of(error)) in _EXTRAS:
        say(f"this needs the package {name}: pip install 'throttled-core[{_EXTRAS[name]}]'")
    else:
        # A mistake of ours. Python would exit with 1, and that is a refusal.
        traceback.print_exception(error)
        return BROKEN
    return WRONG


def package_of(error: ModuleNotFoundError) -> str:
    """The package that is not installed."""
    return (error.name or "").partition(".")[0]


def code_of(error: BaseThrottledError) -> int:
    """The exit code for an error of the library."""
    if isinstance(error, LimitedError):
        return REFUSED
    return DOWN if isinstance(error, StoreUnavailableError | StateError) else WRONG


def say(text: str) -> None:
    """Tell the user on stderr, each line marked as ours."""
    with suppress(OSError):  # nobody to tell
        for line in text.splitlines():
            click.echo(f"throttled: {line}", err=True)


@contextmanager
def warnings_said() -> Generator[None]:
    """What the library warns of meanwhile is said as everything else is."""
    logger = logging.getLogger("throttled")
    saying = _Saying(logging.WARNING)
    logger.addHandler(saying)
    try:
        yield
    finally:
        logger.removeHandler(saying)


class _Saying(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(f"{record.levelname.lower()}: {record.getMessage()}")


def note(text: str) -> None:
    """Tell whoever sits in front of it; scripts have no use for that."""
    if at_terminal(sys.stderr):
        say(text)


def at_terminal(stream: TextIO | None) -> bool:
    """Whether somebody sits at the other end; a stream that was closed is None."""
    return stream is not None and stream.isatty()


def _flushed(code: int) -> int:
    """The code, with nothing left to write: at the exit of Python it could only fail loudly."""
    for stream in (sys.stdout, sys.stderr):
        if stream is None:
            continue
        try:
            stream.flush()
        except OSError:
            with suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return code
