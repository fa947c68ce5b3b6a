"""Processes that share the limits of an LLM service, and the service that judges them."""

from __future__ import annotations

import json
import math
from http.client import HTTPConnection
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from docs.examples.llm_client import HEADROOM, REQUESTS, TOKENS
from tests.llm.fleet import PROCESSES, SCALE, Program, most, run, used
from tests.llm.service import Arrival, Log, tokens_of

if TYPE_CHECKING:
    from tests.servers import Server

PERIOD = 100


def fits(admitted: list[tuple[int, int]], now: int, tokens: int) -> bool:
    """Whether a request keeps to 4 requests and 10 tokens, looking at all that came before."""
    within = [each for at, each in admitted if at > now - PERIOD]
    return len(within) < 4 and sum(within) + tokens <= 10


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 12)), max_size=60))
def test_the_service_admits_exactly_what_fits_and_says_when_the_rest_does(
    steps: list[tuple[int, int]],
) -> None:
    log = Log(requests=4, tokens=10, period=PERIOD)
    admitted: list[tuple[int, int]] = []
    now = 0
    for step, tokens in steps:
        now += step
        wait = log.arrive(now, tokens)
        assert (wait == 0) == fits(admitted, now, tokens)
        if not wait:
            admitted.append((now, tokens))
        elif wait == math.inf:
            assert tokens > 10
        else:
            assert fits(admitted, now + int(wait), tokens)
            assert not fits(admitted, now + int(wait) - 1, tokens)


@pytest.mark.parametrize(
    ("requests", "tokens", "sizes", "expected"),
    [
        (3, 1000, [1, 1, 1, 1, 1], [200, 200, 200, 429, 429]),
        (100, 10, [4, 4, 4, 2, 1, 0], [200, 200, 429, 200, 429, 200]),
        (100, 10, [11], [429]),
    ],
    ids=["requests", "tokens, of which a refusal takes none", "never"],
)
def test_the_service_answers_429_over_either_limit(
    requests: int, tokens: int, sizes: list[int], expected: list[int]
) -> None:
    with Program("service", requests, tokens, 60) as service:
        connection = HTTPConnection("127.0.0.1", int(service.ready()))
        for size, status in zip(sizes, expected, strict=True):
            body = json.dumps({"prompt": "word " * size, "max_tokens": 0})
            connection.request("POST", "/", body)
            response = connection.getresponse()
            assert response.status == status
            assert bool(json.load(response)) == (status == 200)
            after = response.headers.get("Retry-After")
            if status == 200 or size > tokens:
                assert after is None
            else:
                assert 30 < int(after or 0) <= 60
        connection.close()
        arrivals = [Arrival(*each) for each in service.end()]
    assert [(each.tokens, each.admitted) for each in arrivals] == [
        (size, status == 200) for size, status in zip(sizes, expected, strict=True)
    ]


def test_an_answer_has_40_to_100_percent_of_the_tokens_that_it_may_have() -> None:
    answers = [tokens_of("word " * size, 100) for size in range(200)]
    assert [prompt for prompt, _ in answers] == list(range(200))
    lengths = {answer for _, answer in answers}
    assert lengths <= set(range(40, 101))
    assert min(lengths) < 50 < 90 < max(lengths)


def test_what_is_used_is_the_mean_of_the_periods_after_the_first() -> None:
    # One request in each tenth of a period, a tenth of the quota each: always just full.
    full = [Arrival(at, TOKENS // 10, True) for at in range(7, 7 + 400, 10)]
    assert used(full, 100, 4) == pytest.approx(1)
    # What was refused, what came in the first period only and what came after the end, is none.
    assert used([Arrival(0, TOKENS, True), Arrival(250, TOKENS, False)], 100, 4) == 0
    assert used([Arrival(0, 0, True), Arrival(401, TOKENS, True)], 100, 4) == 0
    # All at once at the end of each period, or of each that is 5 % longer.
    assert used([Arrival(at, TOKENS, True) for at in range(0, 4000, 1000)], 1000, 4) == 1
    late = [Arrival(at, TOKENS, True) for at in range(0, 4000, 1050)]
    assert used(late, 1000, 4) == pytest.approx(1 / 1.05, abs=0.03)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 12), st.booleans()), max_size=60))
def test_the_most_within_any_period_is_found(steps: list[tuple[int, int, bool]]) -> None:
    now = 0
    arrivals = []
    for step, tokens, admitted in steps:
        now += step
        arrivals.append(Arrival(now, tokens, admitted))
    within = [
        [each.tokens for each in arrivals if each.admitted and end - PERIOD < each.at <= end]
        for end in range(now + 1)
    ]
    assert most(arrivals, PERIOD) == (max(map(len, within)), max(map(sum, within)))


@pytest.mark.server
@pytest.mark.slow
def test_four_processes_use_the_quota_of_a_service_and_are_never_refused(valkey: Server) -> None:
    # Once more where everything stood still for about the headroom: then that is what is measured.
    for _ in range(3):
        report = run(valkey.url)
        if report.stall < HEADROOM / SCALE / 3:
            break
    assert report.errors == []
    assert report.refused == 0
    assert report.used >= 0.9
    # It was the service that would have refused, and all of them that asked it.
    assert report.most[0] <= REQUESTS
    assert report.most[1] <= TOKENS
    assert len(report.workers) == PROCESSES
    assert all(worker["answers"] for worker in report.workers)
