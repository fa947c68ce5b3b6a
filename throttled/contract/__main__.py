"""Records this version of the contract in its manifest: `python -m throttled.contract`.

With `--check`, says whether that was done, and changes nothing.
"""

from __future__ import annotations

import argparse
import sys

from throttled import contract


def main(arguments: list[str] | None = None) -> str | None:
    """Record the version, or check that it is; returns what is wrong."""
    parser = argparse.ArgumentParser(prog="python -m throttled.contract", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument(
        "--unreleased",
        action="store_true",
        help="record it again with other content: only a version that was never published",
    )
    options = parser.parse_args(arguments)

    now, before = contract.manifest(), contract.recorded()
    if now == before:
        print(f"Version {contract.VERSION} of the contract is as it was recorded.")
        return None
    changed = _changed(now, before)
    if options.check:
        return f"The contract is not the one recorded: {changed}. Run `make contract`."
    version = str(contract.VERSION)
    known = before.get("history", {})
    if max(map(int, known), default=0) > contract.VERSION:
        return f"Version {version} of the contract is older than the newest recorded."
    if known.get(version, now["history"][version]) != now["history"][version]:
        if contract.VERSION <= contract.RELEASED:
            return (
                f"Version {version} of the contract was published, and is not what it was: "
                f"{changed}. Raise VERSION in throttled/contract/__init__.py."
            )
        if not options.unreleased:
            return (
                f"Version {version} of the contract was recorded with other content: {changed}. "
                f"Raise VERSION in throttled/contract/__init__.py, or if nobody has that version "
                f"yet: make contract ARGS=--unreleased"
            )
    (contract.HERE / contract.MANIFEST).write_bytes(contract._document(now))
    print(f"Version {version} of the contract is recorded: {changed}.")
    return None


def _changed(now: dict[str, object], before: dict[str, object]) -> str:
    """What differs, in words."""
    ours, theirs = now["sha256"], before.get("sha256", {})
    assert isinstance(ours, dict)
    assert isinstance(theirs, dict)
    names = sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))
    return f"{', '.join(names)} changed" if names else "the same files, another manifest"


if __name__ == "__main__":
    sys.exit(main())
