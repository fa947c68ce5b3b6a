"""Through every fault callers are answered in time, and no more is admitted than there is.

What holds for all faults alike is checked by `watch`; here is what is special about each.
"""

from __future__ import annotations

import pytest

from tests.faults import failovers, stages
from tests.faults.fleet import FAILOVERS, QUOTA, hammer
from tests.faults.space import growth
from tests.faults.stages import FEW, LONGEST, Report, Scene, watch
from tests.servers import Server, binaries

pytestmark = pytest.mark.server

BINARIES = pytest.mark.parametrize("binary", list(binaries().values()), ids=list(binaries()))


def rehearse(scene: Scene, binary: str | None = None) -> list[Report]:
    with scene(binary) as stage:
        return watch(stage)


def saw_only(report: Report, *kinds: str) -> bool:
    """Whether these were all that was seen, but for the odd call that a busy machine held up."""
    others = sum(number for kind, number in report.figures.calls.items() if kind not in kinds)
    return others <= 0.02 * report.figures.calls.total()


# --- one server ----------------------------------------------------------------------------------


@BINARIES
def test_a_server_that_is_killed_loses_what_it_counted_and_no_more(binary: str) -> None:
    for report in rehearse(stages.kill, binary):
        assert report.counted == FEW, report
        assert report.admitted + report.figures.unknown >= 2 * FEW, report
        assert report.figures.calls["not sent"], report
        assert report.figures.calls["left alone"], report


def test_a_persistent_server_that_is_killed_loses_nothing() -> None:
    for report in rehearse(stages.kill_persistent):
        assert report.figures.calls["not sent"] + report.figures.unknown, report


@BINARIES
def test_a_server_that_is_loading_says_so(binary: str) -> None:
    reports = rehearse(stages.load_snapshot, binary)
    assert sum(report.figures.calls["refused"] for report in reports), reports
    assert {report.counted for report in reports} == {FEW}, reports


@BINARIES
def test_calls_do_not_hang_with_their_server(binary: str) -> None:
    for report in rehearse(stages.hang, binary):
        calls = report.figures.calls
        assert calls["unknown"], report
        assert calls["left alone"] > calls["unknown"] + calls["not sent"], report
        assert report.figures.gap >= 1.9, report


def test_a_paused_server_answers_in_the_end() -> None:
    for report in rehearse(stages.pause):
        assert report.figures.calls["unknown"], report
        assert report.figures.gap >= 0.9, report


def test_a_connection_that_is_killed_costs_what_was_under_way_on_it() -> None:
    for report in rehearse(stages.kill_clients):
        assert saw_only(report, "server", "unknown"), report
        assert report.figures.calls["server"] > 10 * report.figures.unknown, report


def test_nobody_notices_that_scripts_are_flushed() -> None:
    for report in rehearse(stages.flush_scripts):
        assert saw_only(report, "server"), report


@pytest.mark.parametrize("scene", [stages.no_memory, stages.busy])
def test_a_server_that_says_no_has_counted_nothing(scene: Scene) -> None:
    for report in rehearse(scene):
        assert saw_only(report, "server", "refused", "left alone"), report
        assert report.figures.calls["refused"], report


def test_a_reply_cut_in_the_middle_is_an_unknown_outcome() -> None:
    for report in rehearse(stages.cut):
        assert saw_only(report, "server", "unknown"), report
        assert report.figures.unknown > 0, report
        # All that was cut had been counted.
        assert report.counted > report.admitted, report


def test_a_pool_that_is_used_up_is_no_reason_to_wait_long() -> None:
    for report in rehearse(stages.full_pool):
        assert saw_only(report, "server", "not sent", "left alone"), report
        assert report.figures.calls["not sent"], report


# --- servers that stand in for one another -------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("scene", [failovers.sentinel_kill, failovers.cluster_kill])
def test_callers_find_the_replica_that_was_promoted(scene: Scene) -> None:
    for report in rehearse(scene):
        assert report.counted <= report.admitted + report.figures.unknown, report
        assert report.figures.gap > 0.5, report


@pytest.mark.slow
@pytest.mark.parametrize(
    "scene", [failovers.sentinel_switch, failovers.cluster_switch, failovers.cluster_move]
)
def test_nobody_notices_what_is_done_in_good_order(scene: Scene) -> None:
    for report in rehearse(scene):
        assert saw_only(report, "server"), report


@pytest.mark.slow
def test_four_processes_share_a_quota_through_two_failovers() -> None:
    members = hammer()
    assert sum(member.admitted["server"] for member in members) <= QUOTA * (1 + FAILOVERS)
    for member in members:
        assert member.longest < LONGEST, member
        assert member.admitted["server"], member


# --- policies ------------------------------------------------------------------------------------


@pytest.mark.parametrize("scene", [stages.kill, stages.hang])
def test_each_policy_does_what_it_says_through_a_fault(scene: Scene) -> None:
    processes = 4
    with scene(None) as stage:
        reports = watch(
            stage,
            policies=["raise", "allow", "deny", "local"],
            quota=FEW,
            options={"LOCAL_SHARE": processes},
        )
    errors = {"unknown", "not sent", "left alone"}
    for report in reports:
        calls, admitted = report.figures.calls, report.figures.admitted
        seen = {kind for kind, number in calls.items() if number} - {"server"}
        if report.policy == "raise":
            assert seen <= errors, report
            continue
        source = {"allow": "allowed-by-policy", "deny": "denied-by-policy", "local": "fallback"}
        assert seen == {source[report.policy]}, report
        if report.policy == "allow":
            assert admitted["allowed-by-policy"] == calls["allowed-by-policy"], report
        elif report.policy == "deny":
            assert not admitted["denied-by-policy"], report
        else:
            assert 0 < admitted["fallback"] <= report.quota // processes, report


# --- space ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_store_stays_as_small_as_it_is(valkey: Server, asynchronous: bool) -> None:
    # A single pointer for each key would be 400 kB.
    assert growth(valkey.url, asynchronous, keys=50_000) < 300_000
