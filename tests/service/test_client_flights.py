"""Checks that travel together, and settlements, which may be sent twice."""

from __future__ import annotations

from typing import Any

import pytest

from tests.servers import wait_until
from tests.service.clients import (
    Caller,
    Service,
    Team,
    caller,
    client,
    held,
    service,
    team,
)
from throttled.exceptions import (
    DataError,
    PolicyNotFoundError,
    ServiceUnavailableError,
    StoreUnavailableError,
)
from throttled.service.flights import MOST, MOST_TEXT, parted

__all__ = ["caller", "client", "held", "service", "team"]


def test_those_who_come_meanwhile_leave_together(team: Team) -> None:
    held = team.service.servicer
    many, api = team.client.policy("many"), team.client.policy("api")
    held.hold()
    team.off(many.limit, "k")
    for _ in range(5):
        team.gather(many.limit, "k")
    team.gather(api.limit, "k", 3)
    team.gather(api.limit, "k", 3)
    team.gather(api.limit_many, ["other", "k", "other"])
    answers = team.done()
    assert held.sizes == [1, 10]
    assert sorted([answers[place].state.remaining for place in range(6)]) == list(range(994, 1000))
    assert [answers[place].limited for place in (6, 7)] == [False, True]
    assert [each.limited for each in answers[8]] == [False, True, False]


def test_an_error_is_for_its_caller_alone(team: Team) -> None:
    held = team.service.servicer
    many, nobody = team.client.policy("many"), team.client.policy("nobody")
    held.hold()
    team.off(many.limit, "k")
    team.gather(many.limit, "k")
    team.gather(nobody.limit, "k")
    team.begin(many.limit, "\ud800")
    team.begin(many.limit, "k" * 5000)
    team.gather(many.limit, "k")
    answers = team.done()
    assert [answers[place].limited for place in (0, 1, 5)] == [False] * 3
    assert isinstance(answers[2], PolicyNotFoundError)
    assert isinstance(answers[3], DataError)
    assert isinstance(answers[4], DataError)
    assert held.sizes == [1, 3]


def test_a_flight_that_fails_is_heard_of_by_all_aboard(team: Team) -> None:
    held = team.service.servicer
    many = team.client.policy("many")
    held.failing["CheckMany"] = 1
    held.hold()
    team.off(many.limit, "k")
    for _ in range(4):
        team.gather(many.limit, "k")
    answers = team.done()
    assert not answers[0].limited
    for place in range(1, 5):
        assert isinstance(answers[place], ServiceUnavailableError), answers[place]
        assert "not just now" in str(answers[place])
    assert isinstance(answers[1], StoreUnavailableError)
    assert len({id(answers[place]) for place in range(1, 5)}) == 4
    assert many.store.health().failures == 4
    assert "not just now" in str(many.store.health().last_error)
    # It was the service that said so, and it is asked again.
    team.begin(many.limit, "k")
    assert not team.done()[5].limited
    assert many.store.health().failures == 0
    assert many.store.health().last_error_at is not None


def test_a_message_is_never_too_large(caller: Caller, service: Service) -> None:
    many = caller.client(service.target).policy("many")
    results = caller.wait(many.limit_many([f"{number}" for number in range(MOST * 2 + 1)]))
    assert [each.limited for each in results] == [False] * (MOST * 2 + 1)
    assert service.asked == ["CheckMany", "CheckMany", "Check"]
    wide = [f"{number:04}" + "\N{GRINNING FACE}" * 4092 for number in range(MOST)]
    assert len(caller.wait(many.limit_many(wide))) == MOST
    assert len(service.asked) == 3 + -(-MOST // (MOST_TEXT // 4096))


def test_parts_keep_their_order() -> None:
    class Request:
        def __init__(self, key: str) -> None:
            self.key = key

    requests = [Request("k" * size) for size in (1, MOST_TEXT, MOST_TEXT * 2, 1, 1)]
    parts = parted(requests)
    assert [[len(each.key) for each in part] for part in parts] == [
        [1],
        [MOST_TEXT],
        [MOST_TEXT * 2],
        [1, 1],
    ]
    assert [each for part in parts for each in part] == requests


def test_a_late_flight_holds_nobody_up(held: Service, request: pytest.FixtureRequest) -> None:
    for asynchronous in (False, True):
        with Team(asynchronous, held, decision_timeout=3.0) as team:
            many, other = team.client.policy("many"), team.client.policy("api")
            held.servicer.hold()
            team.off(many.limit, "k")
            begun = held.servicer.held
            for _ in range(3):
                team.gather(other.limit, "k")
            # They leave although nothing has landed.
            wait_until(lambda: held.servicer.held == begun + 1, "the next flight")  # noqa: B023
            assert held.servicer.sizes[-1] == 3
            team.gather(other.limit, "k")
            answers = team.done()
            assert not any(isinstance(each, Exception) for each in answers.values()), answers


def test_what_takes_too_long_is_not_known(held: Service, caller: Caller) -> None:
    many = caller.client(held.target, decision_timeout=0.2).policy("many")
    held.servicer.hold()
    with pytest.raises(
        ServiceUnavailableError, match=r"did not answer within 0\.2 s; .* not known"
    ):
        caller.wait(many.limit("k"))
    held.do(held.servicer.release())
    # It counts as taken, and was not sent again.
    assert held.asked == ["Check"]
    assert held.used("many", "k") == 1


def test_callers_at_once_get_exactly_the_quota(caller: Caller, service: Service) -> None:
    many = caller.client(service.target).policy("many")
    if caller.asynchronous:
        calls = [lambda: many.limit("k")] * 1300
        results = caller.at_once(calls)
        # One alone, then as many as fit.
        assert len(service.asked) == 4
    else:

        def ask() -> list[Any]:
            return [many.limit("k") for _ in range(80)]

        results = [each for answers in caller.at_once([ask] * 16) for each in answers]
        assert len(service.asked) < len(results) / 2
    assert sum(not each.limited for each in results) == 1000


# -- settling -------------------------------------------------------------------------------------


def test_a_settlement_is_sent_again(held: Service, caller: Caller) -> None:
    many = caller.client(held.target).policy("many")
    reservation = caller.wait(many.reserve("k", 10))
    # Both times it was done, and the answer did not say so.
    held.servicer.failing["Settle"] = 2
    caller.wait(reservation.settle(4))
    assert held.asked == ["Reserve", "Settle", "Settle", "Settle"]
    assert held.used("many", "k") == 4
    again = caller.wait(many.reserve("k", 10))
    held.servicer.failing["Settle"] = 3
    with pytest.raises(ServiceUnavailableError, match="not just now"):
        caller.wait(again.cancel())


def test_only_settlements_are_sent_again(held: Service, caller: Caller) -> None:
    many = caller.client(held.target, on_store_error="allow").policy("many")
    held.servicer.failing["Check"] = 1
    assert caller.wait(many.limit("k")).source == "allowed-by-policy"
    assert held.asked == ["Check"]
