"""Scenes: what is played, how many there are, and what they cannot be."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from time import monotonic
from typing import Any

import pytest

from tests.dashboard.sites import PATIENCE, Site, site, take, until
from throttled.dashboard import Dashboard
from throttled.dashboard.demo import Demo
from throttled.dashboard.scenes import (
    KEPT,
    MOST_SCENES,
    TRAFFICS,
    Scene,
    Scenes,
    ScenesFullError,
    Setting,
)
from throttled.dashboard.sources import OwnLimits
from throttled.dashboard.streams import ended
from throttled.exceptions import DataError
from throttled.quota import RateLimiterType
from throttled.simulation import Traffic, simulate

BUCKETS = ("token_bucket", "leaking_bucket", "gcra")


def played(setting: Setting, seconds: float, step: float = 0.1) -> dict[str, Any]:
    scene = Scene(setting)
    for _ in range(round(seconds / step) - 1):
        scene.advance(step)
    return scene.advance(step * 0.999)  # what comes at the very end belongs to what follows


@pytest.mark.parametrize("traffic", [each for each in TRAFFICS if each != "none"])
def test_a_scene_decides_what_a_simulation_decides(traffic: Any) -> None:
    told = played(Setting("3/s", 6, traffic=traffic, rate=9.0, seed=4), 20.0)
    result = simulate("3/s burst 6", Traffic(traffic, 9.0, 20.0, 4))
    assert told["offered"] == len(result.instants)
    for run, other in zip(told["runs"], result.runs, strict=True):
        assert (run["admitted"], run["refused"]) == (other.admitted, other.refused), other.using


def test_the_same_setting_plays_the_same_whoever_looks_how_often() -> None:
    setting = Setting("5/s", None, traffic="poisson", rate=20.0, seed=7)
    one, other = played(setting, 8.0, 0.1), played(setting, 8.0, 0.25)
    for what in ("admitted", "refused"):
        assert [run[what] for run in one["runs"]] == [run[what] for run in other["runs"]]
    assert one["offered"] == other["offered"]
    different = played(Setting("5/s", None, traffic="poisson", rate=20.0, seed=8), 8.0)
    assert different["offered"] != one["offered"]


@pytest.mark.parametrize("speed", [0.5, 1.0])
def test_rates_are_those_of_a_whole_second(speed: float) -> None:
    # So a chart shows an exact limit as what it is, and what the others let through beyond theirs.
    scene = Scene(Setting("5/s", None, traffic="poisson", rate=20.0, seed=3, speed=speed))
    most: dict[str, float] = {}
    for _ in range(200):
        told = scene.advance(0.1)
        for about, run in zip(scene.about()["runs"], told["runs"], strict=True):
            rate = run["per_second"]["admitted"]
            most[about["using"]] = max(most.get(about["using"], 0.0), rate)
    assert most["sliding_window_log"] == 5.0
    assert 5.0 < most["fixed_window"] <= 10.0
    both = [run["per_second"]["admitted"] + run["per_second"]["refused"] for run in told["runs"]]
    assert both == both[:1] * 6


def test_speed_is_how_fast_its_time_goes() -> None:
    slow = played(Setting(traffic="steady", rate=10.0, speed=0.5), 4.0)
    fast = played(Setting(traffic="steady", rate=10.0, speed=10.0), 0.2)
    assert slow["now"] == pytest.approx(2.0, abs=0.01)
    assert fast["now"] == pytest.approx(2.0, abs=0.01)
    assert slow["offered"] == fast["offered"] == 20


def test_traffic_goes_on_beyond_its_first_stretch() -> None:
    told = played(Setting(traffic="steady", rate=2.0, speed=5.0), 10.0)
    assert told["now"] == pytest.approx(50.0, abs=0.01)
    assert told["offered"] == pytest.approx(100, abs=2)


def test_what_is_drawn_is_the_state_of_the_key() -> None:
    scene = Scene(Setting("10/s", 20, traffic="none"))
    scene.advance(0.0)
    scene.send(15, 1)
    told = scene.advance(0.5)
    drawn = dict(zip(RateLimiterType.choice(), told["runs"], strict=True))
    for name in BUCKETS:
        assert drawn[name]["level"] == pytest.approx(10.0)  # 20 - 15, and 5 have flowed in
        assert (drawn[name]["admitted"], drawn[name]["remaining"]) == (15, 10)
    assert (drawn["fixed_window"]["current"], drawn["fixed_window"]["refused"]) == (10, 5)
    assert drawn["sliding_window_log"]["current"] == 10
    assert [call[2] for call in told["calls"]] == [0b111111] * 10 + [0b111000] * 5
    told = scene.advance(0.5)
    told = scene.advance(0.25)
    drawn = dict(zip(RateLimiterType.choice(), told["runs"], strict=True))
    assert drawn["fixed_window"]["current"] == 0
    assert drawn["sliding_window"] | {"current": 0, "previous": 10} == drawn["sliding_window"]
    assert drawn["sliding_window_log"]["current"] == 0


def test_a_cost_that_never_fits() -> None:
    told = played(Setting("5/s", None, traffic="steady", rate=5.0, cost=50), 2.0)
    assert [run["retry_after"] for run in told["runs"]] == [0.0] * 6
    assert [run["admitted"] for run in told["runs"]] == [0] * 6


def test_steps_are_bounded_whatever_time_has_passed() -> None:
    scene = Scene(Setting("1000/s", None, traffic="spike", rate=200.0))
    told = scene.advance(3600.0)
    assert told["now"] == pytest.approx(0.5)
    assert len(told["calls"]) <= 120
    assert told["offered"] == 101


def test_what_nobody_looks_at_is_not_kept_for_ever() -> None:
    scene = Scene(Setting("5/h", None, traffic="none", using=("gcra",)))
    for _ in range(100):
        scene.send(100, 1)
    assert len(scene._told) == 2_000
    told = scene.advance(0.1)
    assert told["offered"] == 10_000
    assert len(told["calls"]) <= 120


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"quota": "lots"}, "Invalid quota"),
        ({"quota": "5/s; 10/m"}, "must be one such as 10/s: a scene shows one"),
        ({"quota": ""}, "Invalid quota"),
        ({"quota": "5/s", "burst": "x"}, "Invalid burst: 'x', must be a whole number"),
        ({"quota": "5/s", "burst": "0"}, "Invalid"),
        ({"quota": "2000000/s", "using": "sliding_window_log"}, "sliding_window_log"),
        ({"using": "magic"}, "'magic'"),
        ({"using": ""}, "Invalid using: nothing, must name at least one algorithm."),
        ({"traffic": "jam"}, "Invalid traffic: 'jam', must be one of steady"),
        ({"rate": "nan"}, "Invalid rate: 'nan', must be a number."),
        ({"rate": "0"}, "Invalid rate: 0, must be from 0.001"),
        ({"rate": "300"}, "Invalid rate: 300 at a speed of 1, must be at most 200"),
        ({"rate": "30", "speed": "10"}, "Invalid rate: 30 at a speed of 10, must be at most 20"),
        ({"speed": "1e9"}, "Invalid speed: 1000000000, must be from 0.01 to 100."),
        ({"cost": "0"}, "Invalid cost: 0, must be at least 1"),
        ({"cost": "-1"}, "Invalid cost: '-1'"),
        ({"seed": "9" * 400}, "Invalid seed"),
    ],
)
def test_what_no_scene_can_be(asked: dict[str, str], said: str) -> None:
    with pytest.raises(DataError) as caught:
        Scene(Setting.of(asked))
    assert said in str(caught.value)


def test_what_a_query_leaves_out() -> None:
    assert Setting.of({}) == Setting()
    assert Setting.of({"quota": "5/m"}).burst is None
    assert Setting.of({"burst": ""}).burst is None
    assert Setting.of({"using": "gcra,gcra,token_bucket"}).using == ("gcra", "token_bucket")
    assert Setting.of({"else": "x"}) == Setting()


def test_so_many_scenes_and_no_more() -> None:
    scenes = Scenes()
    watched = [scenes.begin(Setting()) for _ in range(MOST_SCENES - 1)]
    for scene in watched:
        scene.left_at = None
    left = scenes.begin(Setting())
    # The one that nobody watches makes room.
    last = scenes.begin(Setting())
    assert len(scenes) == MOST_SCENES
    with pytest.raises(KeyError):
        scenes[left.id]
    last.left_at = None
    with pytest.raises(ScenesFullError, match=f"All {MOST_SCENES} scenes are being watched"):
        scenes.begin(Setting())
    scenes.end(last.id)
    assert scenes.begin(Setting())
    for scene in watched:
        scene.left_at = monotonic() - KEPT - 1
    scenes.begin(Setting())
    assert len(scenes) == 2


# -- as the page has them --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stage() -> Iterator[Site]:
    with site(Dashboard()) as made:
        yield made


def test_a_scene_moves_while_it_is_watched_ten_times_a_second(stage: Site) -> None:
    about = stage.scene(quota="20/s", traffic="steady", rate=50)
    assert [run["kind"] for run in about["runs"]][-1] == "bucket"
    begin = monotonic()
    told = stage.told(f"api/scenes/{about['id']}", 6)
    assert monotonic() - begin > 0.45
    assert told[-1]["now"] > told[0]["now"] >= 0
    assert told[-1]["offered"] > 0
    left = stage.told(f"api/scenes/{about['id']}")[0]
    again = stage.told(f"api/scenes/{about['id']}")[0]
    assert left["now"] == pytest.approx(again["now"], abs=0.2)  # nobody was watching in between


def test_calls_sent_by_hand(stage: Site) -> None:
    about = stage.scene(quota="3/h", traffic="none", using="fixed_window")
    path = f"api/scenes/{about['id']}"
    assert stage.post(f"{path}/calls", {"number": 2}).json() == {}
    assert stage.post(f"{path}/calls", {"number": 1, "cost": 2}).json() == {}
    (run,) = stage.told(path)[0]["runs"]
    assert (run["admitted"], run["refused"], run["remaining"]) == (2, 1, 1)
    for body, said in (
        ({"number": 0}, "Invalid number: 0, must be a whole number from 1 to 100."),
        ({"number": 1e9}, "Invalid number"),
        ({"cost": 0}, "Invalid cost: 0"),
        ({"cost": None}, "Invalid cost: None"),
    ):
        answer = stage.post(f"{path}/calls", body)
        assert answer.status_code == 400
        assert said in answer.json()["error"]
    assert stage.client.delete(path).status_code == 200
    assert stage.get(path).status_code == 404
    assert stage.post(f"{path}/calls", {"number": 1}).status_code == 404


def test_whoever_comes_last_sees_it_move(stage: Site) -> None:
    path = f"api/scenes/{stage.scene()['id']}"
    with stage.client.stream("GET", path) as one:
        lines = one.iter_lines()
        take(lines, 2)
        with stage.client.stream("GET", path) as other:
            assert len(take(other.iter_lines(), 3)) == 3
            assert len(take(lines, 10_000)) < 10


def test_a_bad_setting_is_said(stage: Site) -> None:
    answer = stage.post("api/scenes", params={"quota": "lots"})
    assert answer.status_code == 400
    assert "'lots'" in answer.json()["error"]


def test_all_places_taken(stage: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("throttled.dashboard.scenes.MOST_SCENES", 1)
    path = f"api/scenes/{stage.scene()['id']}"
    with stage.client.stream("GET", path) as one:
        lines = one.iter_lines()  # dropped, it would close the stream
        take(lines, 1)
        answer = stage.post("api/scenes")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "10")
    until(lambda: stage.post("api/scenes").status_code == 200)


async def test_the_demonstration_has_refusals_and_waits() -> None:
    demo = Demo()
    source = OwnLimits(demo.limits, made_up=True)
    task = asyncio.ensure_future(demo.run())
    deadline = monotonic() + PATIENCE
    while monotonic() < deadline:
        await asyncio.sleep(0.05)
        policies = (await source.stats())["policies"]
        if policies["api"]["refused"] and policies["reports"]["waiting"]:
            break
    await ended(task)
    assert policies["api"]["refused"] > 0
    assert policies["reports"]["waiting"] > 0
