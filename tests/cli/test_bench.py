"""`throttled bench`: what it measures, writes and draws. How fast anything is, is not tested."""

from __future__ import annotations

import csv
import signal
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.cli.running import PATIENCE, invoke, started, terminal
from tests.servers import HOST, Server, free_port, wait_until
from throttled import RateLimiterType
from throttled.cli.measuring import Bench, label_of, measure

NAMES = RateLimiterType.choice()
QUICK = ("--calls", 60, "--concurrency", "1,3")


def keys_of(server: Server) -> list[bytes]:
    with server.client() as client:
        return list(client.scan_iter("throttled-bench*"))


@pytest.mark.parametrize("flavour", ["sync", "async"])
def test_a_row_for_each_algorithm_and_concurrency(flavour: str) -> None:
    done = invoke("bench", *QUICK, "--flavour", flavour)
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0] == f"memory, {flavour}, one key, 60 calls each; latency in µs"
    assert lines[2].split() == (
        "algorithm concurrency ops/s p50 p99 p99.9 refused".split()  # noqa: SIM905
    )
    rows = [line.split() for line in lines[3:]]
    assert [row[:2] for row in rows] == [[name, count] for name in NAMES for count in ("1", "3")]
    assert {row[-1] for row in rows} == {"0"}


@pytest.mark.parametrize("flavour", ["sync", "async"])
def test_all_calls_are_made_and_counted(flavour: str) -> None:
    said = invoke(
        *("bench", "--calls", 100, "--concurrency", "1,7,150", "--using", "gcra", "--json"),
        *("--keys", 5, "--quota", "1/d burst 10", "--flavour", flavour),
    ).json
    assert said["prefix"] == "throttled-bench"
    assert [cell["concurrency"] for cell in said["cells"]] == [1, 7, 150]
    for cell in said["cells"]:
        assert (cell["calls"], cell["keys"], cell["store"]) == (100, 5, "memory")
        # The 50 calls to warm up have taken it all.
        assert cell["refused"] == 100
        assert 0 < cell["p50_us"] <= cell["p99_us"] <= cell["p999_us"] <= cell["seconds"] * 1e6
        assert cell["ops_per_s"] == pytest.approx(100 / cell["seconds"])


def test_the_table_is_written_for_spreadsheets(tmp_path: Path) -> None:
    done = invoke("bench", *QUICK, "--using", "gcra", "--csv", tmp_path / "table.csv", "--json")
    with (tmp_path / "table.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [
        {name: str(value) for name, value in cell.items()} for cell in done.json["cells"]
    ] == rows


@pytest.mark.server
def test_charts_are_drawn(valkey: Server, tmp_path: Path) -> None:
    svg, png = tmp_path / "chart.svg", tmp_path / "chart.PNG"
    stores = ("--store", "memory", "--store", valkey.url)
    assert invoke("bench", *QUICK, *stores, "--chart", svg).code == 0
    assert ElementTree.parse(svg).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    assert (
        invoke("bench", *QUICK, "--using", "gcra", "--chart", png, "--flavour", "async").code == 0
    )
    assert png.read_bytes().startswith(b"\x89PNG")


@pytest.mark.server
@pytest.mark.parametrize("flavour", ["sync", "async"])
@pytest.mark.parametrize("keys", [1, 30])
def test_no_key_is_left_on_a_server(valkey: Server, flavour: str, keys: int) -> None:
    done = invoke(
        *("bench", *QUICK, "--store", valkey.url, "--flavour", flavour, "--keys", keys),
        *("--quota", "1000/d"),
    )
    assert (done.code, done.err) == (0, "")
    assert f"{valkey.url}, {flavour}, " in done.out
    assert keys_of(valkey) == []


@pytest.mark.server
@pytest.mark.parametrize("flavour", ["sync", "async"])
def test_ctrl_c_leaves_no_key_either(valkey: Server, flavour: str) -> None:
    with started(
        *("bench", "--store", valkey.url, "--calls", 10_000_000, "--using", "gcra"),
        *("--concurrency", "8", "--keys", 20, "--quota", "1000/d", "--flavour", flavour),
    ) as process:
        wait_until(lambda: len(keys_of(valkey)) == 20, "the first calls")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out, err) == (130, b"", b"")
    assert keys_of(valkey) == []


@pytest.mark.parametrize("flavour", ["sync", "async"])
def test_a_store_that_is_down_is_said(flavour: str) -> None:
    url = f"redis://{HOST}:{free_port()}"
    done = invoke("bench", *QUICK, "--store", url, "--flavour", flavour)
    assert (done.code, done.out) == (3, "")
    assert done.err.startswith("throttled: Redis at ")
    assert done.err.count("\n") == 1


@pytest.mark.server
@pytest.mark.parametrize("flavour", ["sync", "async"])
def test_a_store_that_fails_meanwhile_ends_it(flavour: str) -> None:
    with (
        Server() as server,
        started(
            *("bench", "--store", server.url, "--calls", 10_000_000, "--using", "gcra"),
            *("--concurrency", "8", "--quota", "1000/d", "--flavour", flavour),
        ) as process,
    ):
        wait_until(lambda: len(keys_of(server)) == 1, "the first calls")
        server.kill()
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (3, b"")
    lines = err.decode().splitlines()
    assert all(line.startswith("throttled: ") for line in lines), lines
    assert sum(not line.startswith("throttled: warning: ") for line in lines) == 1


def test_the_environment_names_no_store_for_it() -> None:
    done = invoke("bench", *QUICK, "--using", "gcra", THROTTLED_STORE="redis://127.0.0.1:1")
    assert done.code == 0


def test_passwords_are_not_printed() -> None:
    assert label_of("redis://user:secret@host:6379/0?password=x") == "redis://host:6379/0"
    assert label_of("redis+sentinel://:secret@a,b/name") == "redis+sentinel://a,b/name"
    assert label_of("unix:///run/redis.sock") == "unix:///run/redis.sock"
    assert label_of("memory") == "memory"


def test_progress_is_for_terminals_and_goes_away() -> None:
    with terminal("bench", *QUICK, "--using", "gcra", "--json") as screen:
        assert screen.end() == 0
    assert "measuring gcra at 3" in screen.seen
    assert "100%" in screen.seen


def test_it_tells_of_each_measurement() -> None:
    told: list[str] = []
    bench = Bench(("memory",), ("gcra",), (1, 2), "sync", 10, 1, "1/s")
    cells = measure(bench, told.append)
    assert told == ["gcra at 1", "gcra at 2"]
    assert [cell.concurrency for cell in cells] == [1, 2]
