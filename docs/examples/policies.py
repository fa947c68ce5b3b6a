"""Limits that a file says, and that follow it: `python -m docs.examples.policies`.

The file is `policies.toml` beside this one. Time is moved by hand; with a real clock leave `store`
out, and let `watch=1.0` see what is changed.
"""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import throttled
from throttled import MemoryStore
from throttled.exceptions import DataError
from throttled.testing import FakeClock

SALE_ENDS = datetime(2026, 12, 1, tzinfo=UTC)


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "policies.toml")
        text = Path(__file__).with_suffix(".toml").read_text("utf-8")
        path.write_text(text, "utf-8")

        clock = FakeClock((SALE_ENDS - timedelta(minutes=1)).timestamp())
        policies = throttled.load(path, store=MemoryStore(clock=clock))
        api = policies["api"]

        def ask(key: str, calls: int = 50) -> None:
            admitted = sum([api.limit(key).allowed for _ in range(calls)])
            print(f"  {key}: {admitted} of {calls} admitted")

        print("a minute before the sale ends")
        for key in ("bob", "pro:eve", "pro:ann", "health-check"):
            ask(key)

        clock.advance(60)
        print("a minute later, when it has ended")
        for key in ("bob", "pro:ann"):
            ask(key)

        path.write_text(text.replace("5/m burst 5", "5/m burst 9"), "utf-8")
        policies.reload()
        clock.advance(120)
        print("after two minutes, with a larger burst in the file")
        ask("bob")

        path.write_text(text.replace("gcra", "grca"), "utf-8")
        try:
            policies.reload()
        except DataError as error:
            print("after a slip, everything stays as it was:", str(error).partition(": ")[2])

        @policies.policy("login", key="{name}")
        def log_in(name: str) -> str:
            return f"welcome, {name}"

        print(f"{log_in('bob')}; attempts left: {policies['login'].peek('bob').remaining}")


if __name__ == "__main__":
    main()
