"""The command line: `throttled`, or `python -m throttled`.

Needs the extra `cli`. Nothing here is imported by the rest of the package.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import NoReturn

__all__ = ["main"]


def main() -> NoReturn:
    """Run the command that `sys.argv` asks for, and end the process with its exit code."""
    try:
        try:
            for package in ("click", "rich"):
                import_module(package)
        except ModuleNotFoundError as error:
            print(
                f"throttled: the command line needs the package {error.name}: "
                f"pip install 'throttled-core[cli]'",
                file=sys.stderr,
            )
            sys.exit(2)
        from throttled.cli.commands import throttled

        throttled.main(prog_name="throttled")
    except KeyboardInterrupt:  # while it was still loading
        sys.exit(130)
    raise AssertionError("a command always ends the process")
