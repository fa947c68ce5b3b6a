"""`throttled.simulation`, and `throttled simulate`, which prints it."""

from __future__ import annotations

import math
import re
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cli.running import invoke
from throttled import MemoryStore, RateLimiterType, Rule, Throttled
from throttled.exceptions import DataError
from throttled.simulation import KINDS, Run, Traffic, simulate
from throttled.testing import FakeClock, disabled

SECOND = 1_000_000
NAMES = RateLimiterType.choice()


def trailing(instants: Any, period: int) -> int:
    """The most within (t - period, t] for any t, counted the slow way."""
    return max([sum(end - period < each <= end for each in instants) for end in instants])


@pytest.mark.parametrize("kind", KINDS)
def test_traffic_keeps_its_rate_and_its_bounds(kind: Any) -> None:
    traffic = Traffic(kind, rate=37.0, duration=40.0, seed=3)
    instants = traffic.instants()
    expected = 37 * 40 * (1.9 if kind == "spike" else 1)
    assert len(instants) == pytest.approx(expected, rel=0.1 if kind == "poisson" else 0.002)
    assert all(before <= after for before, after in pairwise(instants))
    assert instants[0] >= 0
    assert instants[-1] < 40 * SECOND
    assert instants == Traffic(kind, rate=37.0, duration=40.0, seed=3).instants()


def test_traffic_is_spread_as_its_kind_says() -> None:
    steady = Traffic("steady", 10, 100).instants()
    assert {after - before for before, after in pairwise(steady)} == {SECOND // 10}

    spike = Traffic("spike", 10, 100).instants()
    inside = [each for each in spike if 45 * SECOND <= each < 55 * SECOND]
    assert len(inside) == 1000
    assert len(spike) - len(inside) == 900

    bursty = Traffic("bursty", 10, 100).instants()
    for turn in range(10):
        burst = [each for each in bursty if turn * 10 * SECOND <= each < (turn + 1) * 10 * SECOND]
        assert len(burst) == 100
        assert burst[-1] - burst[0] < 2 * SECOND
    for kind in ("bursty", "poisson"):
        one, other = (Traffic(kind, 10, 100, seed=seed).instants() for seed in (1, 2))
        assert one != other


@given(
    kind=st.sampled_from(KINDS),
    rate=st.floats(0.01, 500),
    duration=st.floats(0.001, 50),
    seed=st.integers(),
)
def test_any_traffic_is_in_order_and_in_time(
    kind: Any, rate: float, duration: float, seed: int
) -> None:
    instants = Traffic(kind, rate, duration, seed).instants()
    assert all(before <= after for before, after in pairwise(instants))
    assert all(0 <= each < duration * SECOND for each in instants)


@given(
    kind=st.sampled_from(KINDS),
    rate=st.integers(1, 60),
    limit=st.integers(1, 30),
    timeout=st.sampled_from([None, 0.3, 2.0, math.inf]),
    cost=st.integers(1, 3),
)
@settings(max_examples=25)
def test_counts_add_up_and_no_promise_is_broken(
    kind: Any, rate: int, limit: int, timeout: float | None, cost: int
) -> None:
    result = simulate(f"{limit}/s", Traffic(kind, rate, 6.0), cost=cost, timeout=timeout)
    assert [run.using for run in result.runs] == NAMES
    for run in result.runs:
        assert run.offered == len(result.instants) == run.admitted + run.refused
        assert run.admitted == len(run.served)
        assert all(before <= after for before, after in pairwise(run.served))
        assert run.longest_wait <= (timeout or 0.0)
        if run.served:
            assert run.most == (trailing(run.served, SECOND) * cost,)
        if timeout == math.inf and cost <= limit:
            assert run.refused == 0
    by_name = {run.using: run for run in result.runs}
    assert by_name["sliding_window_log"].most <= (limit,)
    assert by_name["token_bucket"].served == by_name["gcra"].served
    timeline = result.timeline(7)
    assert sum(timeline.offered) == len(result.instants)
    for run in result.runs:
        assert sum(timeline.admitted[run.using]) == run.admitted


def test_it_decides_as_a_throttled_does() -> None:
    traffic = Traffic("poisson", 30, 20.0, seed=5)
    for run in simulate("20/s; 60/5s", traffic).runs:
        clock = FakeClock(1_700_000_000.0)
        throttle = Throttled(using=run.using, quota="20/s; 60/5s", store=MemoryStore(clock=clock))
        admitted = []
        for instant in traffic.instants():
            clock.set(1_700_000_000.0 + instant / SECOND)
            if throttle.limit("key").allowed:
                admitted.append(instant)
        assert list(run.served) == admitted


def test_who_waits_is_served_at_the_rate() -> None:
    (run,) = simulate(
        "10/s burst 1", Traffic("steady", 20, 5.0), using=["gcra"], timeout=math.inf
    ).runs
    assert list(run.served) == [number * SECOND // 10 for number in range(100)]
    assert run.longest_wait == pytest.approx(9.9 - 4.95)
    assert run.most == (10,)


def test_a_window_begins_with_the_traffic() -> None:
    (run,) = simulate("5/d", Traffic("steady", 1, 60), using=["fixed_window"]).runs
    assert list(run.served) == [number * SECOND for number in range(5)]


def test_rules_with_costs_of_their_own() -> None:
    rules = [Rule("3/s", cost=1), Rule("100/10s", name="tokens")]
    (run,) = simulate(rules, Traffic("steady", 10, 10), using=["sliding_window_log"], cost=7).runs
    assert run.most == (3, 98)


@given(
    kind=st.sampled_from(KINDS),
    rate=st.floats(0.01, 500),
    duration=st.floats(0.001, 50),
    quota=st.sampled_from(["1/ms", "10/s", "7/3s", "100/m; 5/s", "1000/366d"]),
    timeout=st.sampled_from([None, 2.0]),
)
@settings(max_examples=25)
def test_a_picture_has_few_bins_of_round_length(
    kind: Any, rate: float, duration: float, quota: str, timeout: float | None
) -> None:
    result = simulate(quota, Traffic(kind, rate, duration), using=["gcra"], timeout=timeout)
    timeline = result.timeline(None)
    bins = len(timeline.offered)
    assert 1 <= bins <= 60
    assert bins <= 12 or len(result.instants) / (bins - 1) >= 14
    assert sum(timeline.offered) == len(result.instants)
    assert sum(timeline.admitted["gcra"]) == result.runs[0].admitted
    last = max([*result.runs[0].served, *result.instants], default=0)
    assert timeline.bin * bins * SECOND >= min(last, duration * SECOND) * (1 - 1e-9)
    period = min(rule.quota.period_us for rule in result.rules) / SECOND
    unit = period if period <= timeline.bin * bins else 1.0
    digits = f"{timeline.bin / unit:.6e}"
    assert bins == 1 or digits[0] in "125", digits


def test_windows_end_where_bins_of_a_picture_do() -> None:
    (run,) = (result := simulate("10/3s", Traffic("steady", 40, 60), using=["fixed_window"])).runs
    timeline = result.timeline(None)
    assert timeline.bin == 1.5
    assert set(timeline.admitted[run.using]) == {10, 0}


def test_switching_limits_off_does_not_concern_it() -> None:
    with disabled():
        (run,) = simulate("1/m", Traffic("steady", 1, 10), using=["gcra"]).runs
    assert run.admitted == 1


def test_it_tells_of_each_run() -> None:
    told: list[Run] = []
    result = simulate("1/s", Traffic("steady", 1, 3), told=told.append)
    assert tuple(told) == result.runs


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Traffic("odd"), "Invalid traffic: 'odd', must be one of steady, bursty"),
        (lambda: Traffic(rate=True), "Invalid rate: True, must be calls per second above 0"),
        (lambda: Traffic(rate=math.inf), "Invalid rate: inf"),
        (lambda: Traffic(duration=0), "Invalid duration: 0, must be seconds above 0"),
        (lambda: Traffic(seed=1.5), "Invalid seed: 1.5, must be a whole number"),
        (lambda: Traffic("spike", 1e4, 60), "makes 1,140,000 calls, must be at most 1,000,000"),
        (lambda: simulate("1/s", Traffic(), using=[]), r"Invalid using: \[\], must name"),
        (lambda: simulate("1/s", Traffic(), using=["odd"]), "Invalid algorithm: 'odd'"),
        (lambda: simulate("1/s", Traffic(), cost=-1), "Invalid cost: -1"),
        (lambda: simulate("1/s", Traffic(), timeout=-3), "Invalid timeout: -3"),
        (lambda: simulate("odd", Traffic()), "Invalid quota: 'odd'"),
        (
            lambda: simulate("1/s", Traffic(duration=1)).timeline(0),
            "Invalid bins: 0, must be a whole number from 1 to 10000",
        ),
    ],
)
def test_wrong_arguments(wrong: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        wrong()


# --- the command ---------------------------------------------------------------------------------


def test_the_command_prints_a_row_an_algorithm() -> None:
    done = invoke("simulate", "--quota", "100/s burst 20", "--rate", "150/s", "--duration", 10)
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0] == "100/s burst 20, steady traffic, 1,500 calls"
    head = " ".join(lines[2].split())
    assert head == "algorithm offered admitted refused longest wait most in any 1s"
    assert [line.split()[0] for line in lines[3:]] == NAMES
    rows = {line.split()[0]: line.split()[1:] for line in lines[3:]}
    assert rows["sliding_window_log"] == ["1,500", "1,000", "500", "-", "100"]
    assert rows["gcra"] == rows["token_bucket"] == ["1,500", "1,019", "481", "-", "119"]


def test_the_command_takes_some_algorithms_and_rules() -> None:
    done = invoke(
        *("simulate", "--quota", "10/s; 50/10m", "--using", "gcra", "--using", "fixed_window"),
        *(
            "--rate",
            "1200/m",
            "--duration",
            10,
            "--timeout",
            0.5,
            "--traffic",
            "poisson",
            "--seed",
            7,
        ),
    )
    lines = done.out.splitlines()
    assert lines[0].startswith("10/s; 50/10m, poisson traffic, ")
    assert "most in any 1s  most in any 10m" in lines[2]
    assert [line.split()[0] for line in lines[3:]] == ["gcra", "fixed_window"]


def test_the_command_has_a_timeline_for_programs() -> None:
    arguments = ("simulate", "--quota", "10/s", "--rate", 20, "--duration", 4, "--using", "gcra")
    said = invoke(*arguments, "--json", "--bins", 4).json
    assert said == {
        "rules": [{"quota": "10/s", "algorithm": None, "name": None, "cost": None}],
        "traffic": {"kind": "steady", "rate": 20.0, "duration": 4.0, "seed": 0},
        "cost": 1,
        "timeout": -1,
        "runs": [
            {
                "using": "gcra",
                "offered": 80,
                "admitted": 49,
                "refused": 31,
                "longest_wait": 0.0,
                "most": [19],
            }
        ],
        "timeline": {
            "bin": 1.0,
            "offered": [20, 20, 20, 20],
            "admitted": {"gcra": [19, 10, 10, 10]},
        },
    }
    assert invoke(*arguments, "--json", "--timeout", "inf").json["timeout"] is None


# --- its picture ---------------------------------------------------------------------------------

SVG = "{http://www.w3.org/2000/svg}"
PLOT = ("simulate", "--quota", "100/s burst 20", "--rate", "150/s", "--duration", 10)


def words(path: Path) -> list[str]:
    """The texts of a picture, which are texts and no outlines."""
    return ["".join(text.itertext()) for text in ElementTree.parse(path).iter(f"{SVG}text")]


def test_a_picture_has_a_panel_an_algorithm(tmp_path: Path) -> None:
    path = tmp_path / "plot.svg"
    done = invoke(*PLOT, "--plot", path)
    assert (done.code, done.err) == (0, "")
    assert done.out == invoke(*PLOT).out
    said = words(path)
    assert [text for text in said if text in NAMES] == NAMES
    assert said.count("1,000 of 1,500") == 2
    assert said.count("1,019 of 1,500") == 3
    assert {"calls per second", "time (s)", "offered", "admitted", "limit"} <= {*said}
    root = ElementTree.parse(path).getroot()
    assert root.get("role") == "img"
    assert root.findtext(f"{SVG}title") == "100/s burst 20, steady traffic at 150/s"
    description = root.findtext(f"{SVG}desc") or ""
    assert "Of 1,500 calls in 10 s, fixed_window admitted 1,000; " in description


def test_a_picture_of_calls_that_wait(tmp_path: Path) -> None:
    path = tmp_path / "plot.svg"
    invoke(
        *("simulate", "--quota", "10/m; 100/h", "--using", "gcra", "--rate", "90/h"),
        *("--duration", 7200, "--timeout", "inf", "--plot", path, "--cost", 2),
    )
    said = words(path)
    assert "10/m; 100/h, steady traffic at 1.5/m, cost 2, any wait" in said
    # At a cost of 2 the limit per minute is at 5 calls, far above the traffic.
    assert {"limit 10/m (above)", "limit 100/h", "served"} <= {*said}
    assert {"calls per minute", "time (min)"} <= {*said}
    assert "admitted" not in said


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_the_same_input_draws_the_same_picture_whatever_the_settings(
    suffix: str, tmp_path: Path
) -> None:
    one, other = (tmp_path / f"{name}.{suffix}" for name in ("one", "other"))
    invoke(*PLOT, "--using", "gcra", "--plot", one)
    with mpl.rc_context({"font.size": 20, "axes.facecolor": "red", "savefig.facecolor": "red"}):
        invoke(*PLOT, "--using", "gcra", "--plot", other, TZ="Asia/Tokyo")
        assert mpl.rcParams["font.size"] == 20
    assert one.read_bytes() == other.read_bytes()
    assert one.read_bytes().startswith(b"\x89PNG" if suffix == "png" else b"<?xml")


def test_bins_are_those_of_the_picture_as_well(tmp_path: Path) -> None:
    pictures = []
    for bins in ((), ("--bins", 20)):
        arguments = (*PLOT, "--using", "gcra", "--plot", tmp_path / "a.svg", *bins)
        said = invoke(*arguments, "--json").json
        assert len(said["timeline"]["offered"]) == (20 if bins else 60)
        pictures.append((tmp_path / "a.svg").read_text("utf-8"))
    assert pictures[0] != pictures[1]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--quota", "1000000000/s", "--rate", 0.01, "--duration", 0.1, "--using", "gcra"),
        ("--quota", "5/366d", "--rate", "8000/s", "--duration", 0.001),
        ("--quota", "1/ms; 2/s; 3/m; 4/h; 5/d; 6/w", "--rate", "90/h", "--duration", 360_000),
        ("--quota", "10/s", "--rate", 5, "--cost", 0, "--bins", 10_000, "--using", "gcra"),
        ("--quota", "10/s", "--rate", 5, "--cost", 11, "--using", "gcra", "--using", "gcra"),
    ],
    ids=lambda arguments: str(arguments[1]),
)
def test_odd_traffic_is_drawn_as_well(arguments: Any, tmp_path: Path) -> None:
    done = invoke("simulate", *arguments, "--plot", tmp_path / "a.svg")
    assert (done.code, done.err) == (0, "")
    numbers = [text for text in words(tmp_path / "a.svg") if re.fullmatch(r"[\d,.]+", text)]
    # On the axes, none that a person could not read.
    assert max(len(number) for number in numbers) <= 7


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("plot.gif", "Invalid plot: 'plot.gif', must be a file that ends in .svg or .png."),
        ("/nowhere/plot.svg", "/nowhere/plot.svg: there is no such directory to write it to."),
    ],
)
def test_a_picture_that_cannot_be_drawn_is_refused_before(path: str, message: str) -> None:
    done = invoke(*PLOT, "--plot", path)
    assert (done.code, done.out, done.err) == (2, "", f"throttled: {message}\n")


def test_without_matplotlib_a_picture_is_refused_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = invoke(*PLOT, "--plot", "plot.svg")
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        "throttled: this needs the package matplotlib: pip install 'throttled-core[plot]'\n"
    )
    assert not Path("plot.svg").exists()
