"""What responses teach: reading their headers, guessing without any, and what holds of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import cycle
from math import inf
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.contrib.enforcing import Count, Kind
from throttled import MemoryStore, Throttled
from throttled.contrib.guessing import Guess
from throttled.contrib.learned import Learned
from throttled.contrib.learning import Lesson, Policy, read
from throttled.contrib.outbound import Client, Outbound, host_key
from throttled.exceptions import LimitedError
from throttled.quota import Rule
from throttled.store.policy import finished
from throttled.testing import FakeClock

#: Tue, 14 Nov 2023 22:13:20 GMT
NOW = 1_700_000_000.0
NUMBERS = ("limit", "remaining", "reset")


def lesson(*headers: tuple[str, str]) -> Lesson:
    return read(headers, lambda: NOW)


# -- headers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("120", 120.0),
        (" 7 ", 7.0),
        ("0", 0.0),
        ("1.5", 1.5),
        ("30, 60", 60.0),
        ("Tue, 14 Nov 2023 22:13:50 GMT", 30.0),
        ("Tue, 14 Nov 2023 22:13:10 GMT", 0.0),
        ("Tuesday, 14-Nov-23 22:13:50 GMT", 30.0),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str, seconds: float) -> None:
    assert lesson(("Retry-After", value)) == Lesson(seconds)


@pytest.mark.parametrize("field", ["RateLimit", "RateLimit-Policy", "X-RateLimit-Limit"])
@pytest.mark.parametrize(
    "value", [f'a;b={" " * 4000}!"', f'{"a;b=   ;" * 500}"', '"' * 4000, f'"{chr(92) * 4000}']
)
def test_nonsense_is_read_as_fast_as_sense(field: str, value: str) -> None:
    sense = ('"burst";q=10;w=1, ' * 200)[:4000].rstrip(", ")
    seconds = []
    for each in (sense, value):
        attempts = []
        for _ in range(5):
            begun = time.perf_counter()
            lesson((field, each))
            attempts.append(time.perf_counter() - begun)
        seconds.append(min(attempts))
    assert seconds[1] < 10 * seconds[0]


def test_a_date_counts_from_the_date_of_the_response() -> None:
    headers = [
        ("date", "Tue, 14 Nov 2023 20:00:00 GMT"),
        ("retry-after", "Tue, 14 Nov 2023 20:00:30 GMT"),
    ]
    assert read(headers, lambda: NOW).retry_after == 29.0  # the date is cut to whole seconds
    assert read(headers, lambda: NOW - 86_400).retry_after == 30.0


@pytest.mark.parametrize(
    ("headers", "policies"),
    [
        (
            {"RateLimit-Policy": '"p";q=100;w=60', "RateLimit": '"p";r=50;t=30'},
            [Policy(100, 60.0, 50, 30.0)],
        ),
        (
            {
                "RateLimit-Policy": '"burst";q=10;w=1, "day";q=1000;w=86400;qu="requests"',
                "RateLimit": '"day";r=7;t=600, "burst";r=9;t=1',
            },
            [Policy(10, 1.0, 9, 1.0), Policy(1000, 86_400.0, 7, 600.0)],
        ),
        (
            {"RateLimit-Policy": '"a,b;\\"c";q=5;w=2;pk=:cHNzdA==:', "RateLimit": '"a,b;\\"c";r=1'},
            [Policy(5, 2.0, 1, None)],
        ),
        ({"RateLimit": '"default";r=3;t=9'}, [Policy(None, None, 3, 9.0)]),
        ({"RateLimit-Policy": '"b";q=99;w=1;qu="content-bytes"', "RateLimit": '"b";r=0;t=1'}, []),
        (
            {"RateLimit-Policy": "100;w=60", "RateLimit": "limit=100, remaining=50, reset=30"},
            [Policy(100, 60.0, 50, 30.0)],
        ),
        (
            {
                "RateLimit-Policy": "100;w=60, 1000;w=3600",
                "RateLimit-Limit": "1000",
                "RateLimit-Remaining": "4",
                "RateLimit-Reset": "6",
            },
            [Policy(100, 60.0), Policy(1000, 3600.0, 4, 6.0)],
        ),
        (
            {
                "RateLimit-Limit": "100, 100;w=60",
                "RateLimit-Remaining": "4",
                "RateLimit-Reset": "6",
            },
            [Policy(100, 60.0, 4, 6.0)],
        ),
        (
            {"x-ratelimit-limit": "60", "x-ratelimit-remaining": "59", "x-ratelimit-reset": "3.5"},
            [Policy(60, None, 59, 3.5)],
        ),
        (
            {
                "X-RateLimit-Limit": "5000",
                "X-RateLimit-Remaining": "0",
                "X-RateLimit-Reset": str(int(NOW) + 60),
            },
            [Policy(5000, None, 0, 60.0)],
        ),
        (
            {
                "X-Rate-Limit-Limit": "15",
                "X-Rate-Limit-Remaining": "0",
                "X-Rate-Limit-Reset": str((int(NOW) + 60) * 1000),
            },
            [Policy(15, None, 0, 60.0)],
        ),
        (
            {
                "x-ratelimit-limit-requests": "60",
                "x-ratelimit-remaining-requests": "59",
                "x-ratelimit-reset-requests": "1s",
                "x-ratelimit-limit-tokens": "150000",
                "x-ratelimit-remaining-tokens": "0",
                "x-ratelimit-reset-tokens": "6m0.5s",
            },
            [Policy(60, None, 59, 1.0), Policy(None, None, 0, 360.5)],
        ),
    ],
)
def test_policies_are_read_in_every_style(headers: dict[str, str], policies: list[Policy]) -> None:
    assert lesson(*headers.items()).policies == tuple(policies)


@pytest.mark.parametrize(
    "header",
    [
        ("Retry-After", "soon"),
        ("Retry-After", "-5"),
        ("Retry-After", "inf"),
        ("Retry-After", "١٢"),
        ("Retry-After", "9" * 400),
        ("Retry-After", "Tue, 99 Nov 2023 22:13:50 GMT"),
        ("Retry-After", "Tue, 14 Nov 2023 22:13:50"),
        ("RateLimit", '"p;r=5'),
        ("RateLimit-Policy", "q=;;;,,,"),
        ("RateLimit-Policy", '"p";q=0;w=60'),
        ("RateLimit-Policy", '"p";q=-1;w=60'),
        ("X-RateLimit-Limit", "unlimited"),
        ("X-RateLimit-Limit", "1e9"),
        ("X-RateLimit-Reset", "60"),
        ("RateLimit-Policy", '"p";q=1;w=1,' * 1000),
    ],
)
def test_what_cannot_be_read_is_as_if_it_were_not_there(header: tuple[str, str]) -> None:
    assert lesson(header) == Lesson()


@given(
    st.dictionaries(
        st.sampled_from(
            ["date", "retry-after", "ratelimit", "ratelimit-policy"]
            + [f"{x}ratelimit-{each}" for x in ("", "x-") for each in NUMBERS]
        ),
        st.text() | st.text('"0123456789;,=rqtw. ') | st.integers().map(str),
    )
)
def test_no_header_makes_reading_fail(headers: dict[str, str]) -> None:
    read_ = lesson(*headers.items())
    for seconds in [read_.retry_after, *[each.reset for each in read_.policies]]:
        assert seconds is None or 0 <= seconds < inf


# -- a service that only refuses ------------------------------------------------------------------


class Service:
    """Someone else's, without a network: it counts by the clock of the test."""

    def __init__(self, clock: FakeClock, count: Count, tells: bool = False) -> None:
        self.clock = clock
        self.count = count
        self.tells = tells
        self.answers: list[tuple[float, int]] = []

    def __call__(self) -> tuple[int, list[tuple[str, str]]]:
        self.clock.advance(0.001)
        now = self.clock.now
        passed, left, wait = self.count.take(now)
        self.answers.append((now, 200 if passed else 429))
        self.clock.advance(0.001)
        told = [
            ("RateLimit-Policy", f'"p";q={self.count.limit};w={self.count.window:.0f}'),
            ("RateLimit", f'"p";r={left};t={max(wait, 1):.0f}'),
        ]
        return (200 if passed else 429), told if self.tells else []

    def figures(self, windows: float) -> tuple[float, int]:
        """Over the last so many windows: share of the allowed rate, most refusals in a window."""
        length = self.count.window
        begins = self.clock.now - windows * length
        passed = sum(status == 200 for at, status in self.answers if at >= begins)
        refused = [at for at, status in self.answers if at >= begins and status == 429]
        most = max([sum(at <= e < at + length for e in refused) for at in refused], default=0)
        return passed / (windows * self.count.limit), most


CLIENT = Client(
    host=lambda request: "host",
    read=lambda response: response,
    close=lambda response: None,
    repeatable=lambda request: True,
    refusal=LimitedError,
)


def outbound(clock: FakeClock, limit: Any = "100/s", **arguments: Any) -> Outbound:
    given: dict[str, Any] = {
        "key": None,
        "cost": 1,
        "timeout": inf,
        "retries": 0,
        "learn": True,
        "at_most": 3600.0,
        "options": {"store": MemoryStore(clock=clock)},
    }
    return Outbound(CLIENT, Throttled, limit, **{**given, **arguments})


def calls(front: Outbound, send: Callable[[], Any], times: int) -> list[int]:
    return [finished(front.exchanged(None, send))[0] for _ in range(times)]


@pytest.mark.parametrize("kind", ["fixed", "log", "bucket"])
@pytest.mark.parametrize(("guess", "limit"), [("100/s", 20), ("50/s", 49), ("1000/s", 7)])
def test_a_wrong_guess_settles_without_any_header(kind: Kind, guess: str, limit: int) -> None:
    clock = FakeClock()
    service = Service(clock, Count(kind, limit, 1.0))
    calls(outbound(clock, guess), service, 250 * limit)

    share, most = service.figures(200)

    assert share >= 0.9
    assert most <= 1


@pytest.mark.parametrize("kind", ["fixed", "log", "bucket"])
def test_a_policy_that_is_told_is_kept_to_without_any_refusal(kind: Kind) -> None:
    clock = FakeClock()
    service = Service(clock, Count(kind, 20, 1.0), tells=True)
    rules = ["100/s", Rule("1000/s", cost=1, name="requests")]
    calls(outbound(clock, rules), service, 60 * 20)

    share, most = service.figures(50)

    assert share >= 0.9
    assert most == 0


def test_a_limit_that_was_found_is_seldom_knocked_at() -> None:
    clock = FakeClock()
    service = Service(clock, Count("log", 20, 1.0))
    front = outbound(clock)

    # One to learn that there is a limit, one to learn that it is no higher.
    assert calls(front, service, 30 * 20).count(429) == 2
    assert calls(front, service, 220 * 20).count(429) <= 4


def test_a_limit_that_was_raised_is_found_again() -> None:
    clock = FakeClock()
    service = Service(clock, Count("log", 20, 1.0))
    front = outbound(clock)
    calls(front, service, 100 * 20)
    service.count.limit = 60
    calls(front, service, 200 * 60)

    assert service.figures(50)[0] >= 0.9


def test_a_limit_that_was_lowered_is_found_again() -> None:
    clock = FakeClock()
    service = Service(clock, Count("log", 60, 1.0))
    front = outbound(clock)
    calls(front, service, 50 * 60)
    service.count.limit = 12
    calls(front, service, 200 * 12)

    share, most = service.figures(50)

    assert share >= 0.9
    assert most <= 1


def test_a_service_that_lets_nobody_pass_is_asked_ever_less() -> None:
    clock = FakeClock()
    front = outbound(clock, "10/s")
    begun = clock.now

    assert set(calls(front, lambda: (429, []), 10)) == {429}
    assert 100 < clock.now - begun < 1000


def test_a_request_that_costs_more_than_the_guess_still_goes() -> None:
    clock = FakeClock()
    front = outbound(clock, "100/s", cost=5)

    assert calls(front, lambda: (429, []), 3) == [429, 429, 429]


def test_where_requests_count_apart_from_their_costs_they_are_what_is_learned() -> None:
    clock = FakeClock()
    service = Service(clock, Count("log", 20, 1.0))
    rules = [Rule("1000000/s", name="tokens"), Rule("100/s", cost=1, name="requests")]
    costs = cycle([1, 900, 30, 2000, 7])
    front = outbound(clock, rules, cost=lambda request: next(costs))
    calls(front, service, 100 * 20)

    assert front._learned is not None
    assert [rule.cost for rule in front._learned.rules("host")] == [1]
    share, most = service.figures(80)

    assert share >= 0.9
    assert most <= 1


def test_refusals_of_one_flight_lower_the_guess_to_what_has_passed() -> None:
    guess = Guess(100, 1.0)
    for _ in range(30):
        guess.sent(10.0, 1, False)
    for _ in range(10):
        guess.refused(10.0, 10.1, 1)

    assert guess.limit == 20


# -- what holds of it -----------------------------------------------------------------------------


def test_nothing_said_loosens_the_limit() -> None:
    clock = FakeClock()
    front = outbound(clock, "2/s", timeout=-1)
    told = [("RateLimit-Policy", '"p";q=1000000;w=1'), ("RateLimit", '"p";r=1000000;t=1')]

    assert calls(front, lambda: (200, told), 2) == [200, 200]
    with pytest.raises(LimitedError):
        calls(front, lambda: (200, told), 1)


@pytest.mark.parametrize(
    "headers",
    [
        [("Retry-After", "1000000000")],
        [("Retry-After", "Fri, 31 Dec 9999 23:59:59 GMT")],
        [("RateLimit-Policy", '"p";q=1;w=1000000000'), ("RateLimit", '"p";r=0;t=1000000000')],
        [("X-RateLimit-Remaining", "0"), ("X-RateLimit-Reset", "99999999999")],
    ],
)
def test_no_pause_is_longer_than_at_most(headers: list[tuple[str, str]]) -> None:
    clock = FakeClock()
    front = outbound(clock, at_most=30.0)
    begun = clock.now
    calls(front, lambda: (429, headers), 2)

    assert 29.0 <= clock.now - begun <= 32.0


def test_a_policy_holds_until_at_most_after_it_was_last_told() -> None:
    clock = FakeClock()
    front = outbound(clock, "100/s", timeout=-1, at_most=60.0)
    told = [("RateLimit-Policy", '"p";q=1;w=1')]

    calls(front, lambda: (200, told), 1)
    with pytest.raises(LimitedError):
        calls(front, lambda: (200, told), 2)
    clock.advance(61)
    assert calls(front, lambda: (200, []), 50) == [200] * 50


def test_what_others_use_of_the_same_account_is_counted_too() -> None:
    clock = FakeClock()
    front = outbound(clock, "100/s", timeout=-1)
    told = [("RateLimit-Policy", '"p";q=50;w=10'), ("RateLimit", '"p";r=3;t=5')]

    calls(front, lambda: (200, told), 1)
    assert calls(front, lambda: (200, []), 3) == [200] * 3
    with pytest.raises(LimitedError):
        calls(front, lambda: (200, []), 1)


def test_an_exhausted_budget_of_another_unit_is_waited_for() -> None:
    clock = FakeClock()
    front = outbound(clock)
    told = [("x-ratelimit-remaining-tokens", "0"), ("x-ratelimit-reset-tokens", "12s")]
    begun = clock.now
    calls(front, lambda: (200, told), 2)

    assert clock.now - begun == pytest.approx(12.0)


def test_without_learning_nothing_that_is_said_matters() -> None:
    clock = FakeClock()
    front = outbound(clock, "100/s", timeout=-1, learn=False)

    assert calls(front, lambda: (429, [("Retry-After", "60")]), 50) == [429] * 50


def test_as_many_services_are_remembered_as_there_is_room_for() -> None:
    learned = Learned(3600.0, lambda: 0.0)
    for number in range(5000):
        learned.asking(f"host-{number}", 1, [Rule("10/s")])

    assert len(learned._entries) == 4096


def test_a_live_quota_of_the_users_limit_is_heeded() -> None:
    clock = FakeClock()
    throttle = Throttled(quota="1/m", store=MemoryStore(clock=clock), using="sliding_window_log")
    front = outbound(clock, throttle, timeout=-1, options={})
    calls(front, lambda: (200, []), 1)
    throttle.quota = "3/m"

    assert calls(front, lambda: (200, []), 2) == [200, 200]


def test_a_quota_by_host_is_learned_for_each() -> None:
    clock = FakeClock()
    quotas = {"a": "1/m", "b": "3/m"}
    front = outbound(clock, quotas.__getitem__, key=lambda request: request, timeout=-1)

    def ask(host: str) -> int:
        status: int = finished(front.exchanged(host, lambda: (200, [])))[0]
        return status

    assert [ask("a"), ask("b"), ask("b"), ask("b")] == [200] * 4
    for host in quotas:
        with pytest.raises(LimitedError):
            ask(host)


@pytest.mark.parametrize(
    ("given", "key"),
    [
        (("https", "Example.COM", None), "example.com"),
        (("https", "example.com", 443), "example.com"),
        (("http", "example.com", 443), "example.com:443"),
        (("http", "::1", 8080), "[::1]:8080"),
    ],
)
def test_the_key_of_a_host_has_the_port_unless_it_is_the_usual_one(
    given: tuple[str, str, int | None], key: str
) -> None:
    assert host_key(*given) == key
