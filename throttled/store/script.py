"""The one script that decides on the server, put together from the rules' `.lua` files."""

from __future__ import annotations

from hashlib import sha1
from pathlib import Path

from throttled.algorithms.plan import RULES


def _assemble() -> str:
    store = Path(__file__).parent
    rules = store.parent / "algorithms"
    parts = [(store / "prelude.lua").read_text("utf-8")]
    for name in RULES:
        # A function each: a run builds only the rules that it needs.
        body = (rules / f"{name}.lua").read_text("utf-8")
        parts.append(f"rules.{name} = function()\n{body}end\n")
    parts.append((store / "decide.lua").read_text("utf-8"))
    return "\n".join(parts)


SCRIPT = _assemble()
SCRIPT_SHA = sha1(SCRIPT.encode("utf-8"), usedforsecurity=False).hexdigest()
