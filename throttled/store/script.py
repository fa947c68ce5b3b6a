"""The one script that decides on the server, put together from the rules' `.lua` files."""

from __future__ import annotations

from hashlib import sha1
from pathlib import Path

from throttled.algorithms.plan import RULES


def _assemble() -> str:
    store = Path(__file__).parent
    rules = store.parent / "algorithms"
    parts = [(store / "prelude.lua").read_text("utf-8")]
    # A branch each: a run makes the functions of the rules that it needs, and no others.
    parts.append("local function open_rule(name, op)")
    for name in RULES:
        parts.append(f"if name == '{name}' then")
        parts.append((rules / f"{name}.lua").read_text("utf-8") + "end")
    parts.append("end")
    parts.append((store / "decide.lua").read_text("utf-8"))
    return "\n".join(parts)


SCRIPT = _assemble()
SCRIPT_SHA = sha1(SCRIPT.encode("utf-8"), usedforsecurity=False).hexdigest()
