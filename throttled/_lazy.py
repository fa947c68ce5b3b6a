"""Names of a package that are imported when somebody asks for them, and not before.

Most programs need one store and no policy file. Importing the rest as well would take longer than
importing what they need.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy(
    package: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The `__getattr__` and the `__dir__` of a package (PEP 562).

    `homes`: for each name the module that has it, or that is called so. Type checkers have to be
    told by imports of their own.
    """
    names = sys.modules[package].__dict__

    def ask(name: str) -> Any:
        home = homes.get(name)
        if home is None:
            raise AttributeError(
                f"module {package!r} has no attribute {name!r}",
                name=name,
                obj=sys.modules[package],  # for Python to suggest the name that was meant
            )
        module = import_module(home)
        found = module if home.rpartition(".")[2] == name else getattr(module, name)
        names[name] = found  # so that the next one does not come here
        return found

    def listed() -> list[str]:
        return sorted({*names, *homes})

    return ask, listed
