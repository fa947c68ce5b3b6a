"""What headroom costs and saves, the table of docs/llm.md: `python -m tests.llm [SECONDS ...]`."""

from __future__ import annotations

import sys

from docs.examples.llm_client import PERIOD
from tests.llm.fleet import SCALE, run
from tests.servers import Server

#: Seconds of a real minute.
HEADROOMS = ("0", "0.3", "1", "3", "6")


def main(*headrooms: str) -> None:
    print(
        "| headroom | of a minute | admitted | refused | most requests | most tokens | used |\n"
        "|----------|-------------|----------|---------|---------------|-------------|------|"
    )
    for headroom in map(float, headrooms or HEADROOMS):
        with Server() as server:
            report = run(server.url, headroom)
        requests, tokens = report.most
        print(
            f"| {headroom / SCALE * 1000:.0f} ms | {headroom / PERIOD:.1%} "
            f"| {report.admitted:,} | {report.refused:,} "
            f"| {requests:,} | {tokens:,} | {report.used:.1%} |"
        )
        for error in report.errors:
            print(error)


if __name__ == "__main__":
    main(*sys.argv[1:])
