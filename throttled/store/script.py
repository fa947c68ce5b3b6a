"""The one script that decides on the server, put together from the rules' `.lua` files."""

from __future__ import annotations

from hashlib import sha1
from pathlib import Path

from throttled.algorithms.plan import RULES


def _assemble() -> str:
    store = Path(__file__).parent
    rules = store.parent / "algorithms"
    prelude = (store / "prelude.lua").read_text("utf-8")
    decide = (store / "decide.lua").read_text("utf-8")
    # A branch each: a run makes the functions of the rules that it needs, and no others.
    branches = "else".join(
        f"if name == '{name}' then\n{(rules / f'{name}.lua').read_text('utf-8')}" for name in RULES
    )
    return prelude + decide.replace("--[[ the rules ]]", f"{branches}end", 1)


SCRIPT = _assemble()
SCRIPT_SHA = sha1(SCRIPT.encode("utf-8"), usedforsecurity=False).hexdigest()
