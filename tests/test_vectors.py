"""The golden vectors: every store gives the recorded answers and states, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.contract import STORES, Kind, Rig
from tests.vectors.make import HERE, JOINTS, make
from tests.vectors.timeline import JointReplay, Replay
from throttled.algorithms.plan import ALGORITHMS

#: The async stores put the same bytes on the wire: on one server it shows.
REPLAYED = [
    param for param in STORES if not param.values[0].asynchronous or str(param.id) == "valkey-async"
]


@pytest.mark.parametrize("algorithm", [*ALGORITHMS, JOINTS])
def test_files_are_current(algorithm: str) -> None:
    written = (HERE / f"{algorithm}.json").read_text("utf-8")
    assert written == make(algorithm), "run `make vectors` and look at the difference"


def test_there_is_a_file_for_each_algorithm() -> None:
    assert {path.stem for path in HERE.glob("*.json")} == {*ALGORITHMS, JOINTS}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("kind", REPLAYED)
def test_vectors(make_rig: Callable[..., Rig], kind: Kind, algorithm: str) -> None:
    rig = make_rig(kind, algorithm)
    vectors = json.loads((HERE / f"{algorithm}.json").read_text("utf-8"))
    assert vectors["algorithm"] == algorithm
    for number, timeline in enumerate(vectors["timelines"]):
        replay = Replay(rig, rig.clock, rig.dump, algorithm, f"{rig.prefix}-{number}")
        replay.bind(timeline["quota"])
        for step in timeline["steps"]:
            answer = replay.do(step)
            expected = {name: step[name] for name in answer}
            assert answer == expected, (timeline["name"], step)


@pytest.mark.parametrize("kind", REPLAYED)
def test_vectors_of_several_rules(make_rig: Callable[..., Rig], kind: Kind) -> None:
    rig = make_rig(kind)
    if not kind.memory:
        rig.store._denials.seconds = 0.0  # it is the server that is to be heard
    vectors = json.loads((HERE / f"{JOINTS}.json").read_text("utf-8"))
    for number, timeline in enumerate(vectors["timelines"]):
        prefix = f"{rig.prefix}-{number}"
        replay = JointReplay(rig.store, rig.clock, rig.dump, rig.wait, prefix, timeline["quota"])
        for step in timeline["steps"]:
            answer = replay.do(step)
            expected = {name: step[name] for name in answer}
            assert answer == expected, (timeline["name"], step)
