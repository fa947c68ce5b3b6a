"""A decision as HTTP headers, and a refusal as a problem body."""

from __future__ import annotations

import json
import re
from math import inf
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.failing import FailingStore
from throttled import MemoryStore, RateLimitResult, Rule, Throttled
from throttled.contrib.headers import check_style, merge, problem, render, unavailable
from throttled.exceptions import DataError
from throttled.result import RateLimitState, Source, View
from throttled.testing import FakeClock, disabled

NOW = 1_700_000_000.0

#: What RFC 9651 takes for a list of strings with integer parameters, and nothing besides.
ITEM = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\])*)"((?:;[a-z*][a-z0-9_.*-]*=-?[0-9]{1,15})*)')


def read(field: str) -> list[tuple[str, dict[str, int]]]:
    """The policies of a field, read strictly: names and parameters."""
    items: list[tuple[str, dict[str, int]]] = []
    place = 0
    while True:
        match = ITEM.match(field, place)
        assert match, f"not a structured list: {field!r} at {place}"
        numbers = [each.split("=") for each in match[2].split(";") if each]
        name = re.sub(r"\\(.)", r"\1", match[1])
        items.append((name, {key: int(value) for key, value in numbers}))
        place = match.end()
        if place == len(field):
            return items
        assert field[place : place + 2] == ", "
        place += 2


def limiter(quota: Any, using: str = "token_bucket", **arguments: Any) -> Throttled:
    return Throttled(quota=quota, using=using, store=MemoryStore(clock=FakeClock(NOW)), **arguments)


def told(
    state: RateLimitState, *, limited: bool = True, source: Source = "memory", quota: str = "9/m"
) -> RateLimitResult:
    return RateLimitResult.told(limited, source, View((Rule(quota),), (state,), 0, False))


# -- the fields of the IETF draft -----------------------------------------------------------------


def test_the_policy_and_what_it_leaves_are_told() -> None:
    throttle = limiter(Rule("100/m", name="default"))
    assert render(throttle.limit("key", 50)) == [
        ("RateLimit-Policy", '"default";q=100;w=60'),
        ("RateLimit", '"default";r=50;t=30'),
    ]


def test_the_example_of_the_docstring_holds() -> None:
    result = limiter("60/m").limit("key", 10)
    assert render(result) == [
        ("RateLimit-Policy", '"60/m";q=60;w=60'),
        ("RateLimit", '"60/m";r=50;t=10'),
    ]
    assert [value for _, value in render(result, "legacy")] == ["60", "50", "10"]


def test_of_several_policies_the_binding_one_is_first_in_both_fields() -> None:
    throttle = limiter([Rule("10/s", name="burst"), Rule("12/h", name="hourly"), Rule("99/d")])
    first = dict(render(throttle.limit("key")))
    assert first == {
        "RateLimit-Policy": '"burst";q=10;w=1, "hourly";q=12;w=3600, "99/d";q=99;w=86400',
        "RateLimit": '"burst";r=9;t=1, "hourly";r=11;t=300, "99/d";r=98;t=873',
    }
    throttle.limit("key", 9)
    clock: Any = throttle.store._clock
    clock.advance(1)
    later = dict(render(throttle.limit("key", 2)))
    assert [name for name, _ in read(later["RateLimit-Policy"])] == ["hourly", "burst", "99/d"]
    assert [name for name, _ in read(later["RateLimit"])] == ["hourly", "burst", "99/d"]


def test_a_refusal_says_when_and_no_window_outlasts_it() -> None:
    throttle = limiter("60/m")
    throttle.limit("key", 60)
    refused = throttle.limit("key", 5)
    assert refused.state.reset_after == 60
    assert render(refused)[1:] == [("RateLimit", '"60/m";r=0;t=5'), ("Retry-After", "5")]


def test_seconds_are_rounded_up_and_a_retry_is_at_least_one_away() -> None:
    throttle = limiter("30/500ms")
    throttle.limit("key", 29)
    assert render(throttle.limit("key")) == [
        ("RateLimit-Policy", '"30/500ms";q=30;w=1'),
        ("RateLimit", '"30/500ms";r=0;t=1'),
    ]
    assert render(throttle.limit("key"))[-1] == ("Retry-After", "1")
    for seconds, whole in [(1.000001, "2"), (2.0, "2"), (1e-6, "1"), (0.0, "1")]:
        assert render(told(RateLimitState(9, 0, 0.0, seconds)))[-1] == ("Retry-After", whole)


def test_sleeping_what_retry_after_says_is_enough() -> None:
    for using in ("fixed_window", "sliding_window", "sliding_window_log", "gcra"):
        clock = FakeClock(NOW + 0.3)
        throttle = Throttled(quota="7/10s", using=using, store=MemoryStore(clock=clock))
        throttle.limit("key", 7)
        clock.advance(0.4)
        headers = dict(render(throttle.limit("key", 3)))
        clock.advance(int(headers["Retry-After"]))
        assert throttle.limit("key", 3).allowed


def test_what_can_never_fit_names_no_time() -> None:
    refused = limiter("10/m").limit("key", 11)
    assert refused.state.retry_after == inf
    assert render(refused) == [
        ("RateLimit-Policy", '"10/m";q=10;w=60'),
        ("RateLimit", '"10/m";r=10;t=0'),
    ]


def test_a_burst_changes_what_is_left_but_not_the_rate_that_is_told() -> None:
    result = limiter("10/s burst 20").limit("key")
    assert render(result) == [
        ("RateLimit-Policy", '"10/s burst 20";q=10;w=1'),
        ("RateLimit", '"10/s burst 20";r=19;t=1'),
    ]


def test_policies_of_the_same_name_are_numbered_and_keep_their_numbers() -> None:
    rules = [Rule("10/s", "fixed_window"), Rule("10/s", "gcra"), Rule("9/m", name="10/s 2")]
    fields = dict(render(limiter(rules).limit("key", 2)))
    names = {name for name, _ in read(fields["RateLimit"])}
    assert names == {"10/s", "10/s 2", "10/s 2 2"}
    assert dict(read(fields["RateLimit-Policy"]))["10/s 2 2"] == {"q": 9, "w": 60}


@pytest.mark.parametrize(
    ("name", "told_as"),
    [
        ('a "b" \\ c', 'a "b" \\ c'),
        ("café", "caf%C3%A9"),
        ("line\r\nSet-Cookie: a=b", "line%0D%0ASet-Cookie: a=b"),
        ("\udc80", "%ED%B2%80"),
        ("a;r=0, b", "a;r=0, b"),
    ],
)
def test_any_rule_name_becomes_a_structured_string(name: str, told_as: str) -> None:
    fields = dict(render(limiter(Rule("5/m", name=name)).limit("key")))
    assert read(fields["RateLimit-Policy"]) == [(told_as, {"q": 5, "w": 60})]
    assert read(fields["RateLimit"]) == [(told_as, {"r": 4, "t": 12})]


numbers = st.integers(-(10**20), 10**20)
seconds = st.floats(0, inf) | st.floats(-1, 1)
sources = st.sampled_from(["memory", "server", "fallback", "denied-by-policy"])


@given(numbers, numbers, seconds, seconds, st.booleans(), sources)
def test_no_number_is_negative_or_wider_than_a_structured_integer(
    limit: int, left: int, reset_after: float, retry_after: float, limited: bool, source: Source
) -> None:
    state = RateLimitState(limit, left, reset_after, retry_after)
    for result in (told(state, limited=limited, source=source), RateLimitResult(limited, state)):
        fields = dict(render(result))
        for name in ("RateLimit-Policy", "RateLimit"):
            for _, parameters in read(fields.pop(name, '"none";r=0')):
                assert all(0 <= value < 10**15 for value in parameters.values())
        for reset in ("delta", "epoch"):
            fields |= dict(render(result, "x", reset=reset, now=lambda: NOW))
            assert all(re.fullmatch("[0-9]{1,15}", value) for value in fields.values())


@given(st.lists(st.text(min_size=1).filter(lambda text: not {*"{}"} & {*text}), max_size=5))
def test_names_of_any_text_stay_distinct(names: list[str]) -> None:
    rules = [Rule(f"{n}/m", name=name) for n, name in enumerate(names, 1)]
    states = (RateLimitState(1, 1, 0.0, 0.0),) * len(rules)
    if rules:
        result = RateLimitResult.told(False, "memory", View(tuple(rules), states, 0, False))
        policies = read(render(result)[0][1])
        assert len({name for name, _ in policies}) == len(rules)
        assert [numbers["q"] for _, numbers in policies] == [*range(1, len(rules) + 1)]


def test_a_result_without_rules_is_told_as_the_default_policy() -> None:
    result = RateLimitResult(True, RateLimitState(5, 0, 9.5, 1.5))
    assert render(result) == [
        ("RateLimit-Policy", '"default";q=5'),
        ("RateLimit", '"default";r=0;t=2'),
        ("Retry-After", "2"),
    ]
    assert problem(result)["violated-policies"] == ["default"]


# -- the single numbers ---------------------------------------------------------------------------


def test_the_single_numbers_are_those_of_the_binding_rule() -> None:
    throttle = limiter("10/s; 5/m")
    assert render(throttle.limit("key", 2), "legacy") == [
        ("RateLimit-Limit", "5"),
        ("RateLimit-Remaining", "3"),
        ("RateLimit-Reset", "24"),
    ]
    assert render(throttle.limit("key", 4), "x") == [
        ("X-RateLimit-Limit", "5"),
        ("X-RateLimit-Remaining", "3"),
        ("X-RateLimit-Reset", "12"),
        ("Retry-After", "12"),
    ]


def test_a_reset_can_be_an_instant() -> None:
    throttle = limiter("10/s")
    result = throttle.limit("key", 7)
    assert result.state.reset_after == 0.7

    def reset(now: float) -> str:
        return dict(render(result, "x", reset="epoch", now=lambda: now))["X-RateLimit-Reset"]

    assert reset(NOW) == "1700000001"
    assert reset(NOW + 0.3) == "1700000001"
    assert reset(NOW + 0.301) == "1700000002"


def test_an_unknown_style_is_refused_with_what_would_be_right() -> None:
    result = limiter("10/s").limit("key")
    with pytest.raises(DataError, match=r"style: 'github', must be 'ietf' .* 'legacy' .* 'x'"):
        render(result, "github")  # type: ignore[arg-type]
    for style in (None, ["ietf"], "IETF", b"x"):
        with pytest.raises(DataError, match="header style"):
            check_style(style)
    with pytest.raises(DataError, match=r"reset: 'unix', must be 'delta' .* or 'epoch'"):
        check_style("x", "unix")
    with pytest.raises(DataError, match=r"'epoch' with header style 'ietf'.* the style 'x'"):
        render(result, reset="epoch")
    check_style("x", "epoch")


# -- what is not told -----------------------------------------------------------------------------


def test_limits_that_do_not_bind_the_caller_are_not_told() -> None:
    watching = limiter("1/m", enforce=False)
    exempt = limiter("1/m", exempt=lambda key: True)
    for style in ("ietf", "legacy", "x"):
        for throttle in (watching, exempt):
            assert render(throttle.limit("key", 2), style) == []
        with disabled():
            assert render(limiter("1/m").limit("key"), style) == []


def test_what_nobody_could_decide_tells_the_limit_alone() -> None:
    def answer(word: Any) -> RateLimitResult:
        store = FailingStore()
        store.fail()
        return Throttled(quota="7/m", store=store, on_store_error=word).limit("key")

    assert render(answer("allow")) == [("RateLimit-Policy", '"7/m";q=7;w=60')]
    assert render(answer("allow"), "x") == [("X-RateLimit-Limit", "7")]
    denied = answer("deny")
    names = [name for name, _ in render(denied)]
    assert names == ["RateLimit-Policy", "Retry-After"]
    body = problem(denied)
    assert body["status"] == 503
    assert body == unavailable(denied.state.retry_after)
    assert str(body["retry_after"]) == dict(render(denied))["Retry-After"]


# -- merging --------------------------------------------------------------------------------------


def test_lists_of_two_limiters_are_joined_the_tighter_first() -> None:
    loose = limiter([Rule("10/m", name="a"), Rule("20/h", name="b")]).limit("key")
    tight = limiter([Rule("3/m", name='c";r=9')]).limit("key")
    for one, other, order in (
        (loose, tight, ['c";r=9', "a", "b"]),
        (tight, loose, ['c";r=9', "a", "b"]),
        (loose, loose, ["a", "b", "a", "b"]),
    ):
        both = merge(render(one), render(other))
        assert [name for name, _ in both] == ["RateLimit-Policy", "RateLimit"]
        assert [[name for name, _ in read(value)] for _, value in both] == [order] * 2


def test_everything_else_stays_where_it_is() -> None:
    existing = [
        ("Set-Cookie", "a=1"),
        ("ratelimit", '"a";pk=:Y2E=:;r=5;t=3'),
        ("Set-Cookie", "b=2"),
        ("RateLimit", '"b";r=6'),
        ("RateLimit", " "),
        ("vary", "*"),
    ]
    new = [("RateLimit-Policy", '"n";q=9'), ("RateLimit", '"n";r=5;t=1'), ("Retry-After", "3")]
    assert merge(existing, new) == [
        ("Set-Cookie", "a=1"),
        ("ratelimit", '"a";pk=:Y2E=:;r=5;t=3, "b";r=6, "n";r=5;t=1'),
        ("Set-Cookie", "b=2"),
        ("vary", "*"),
        ("RateLimit-Policy", '"n";q=9'),
        ("Retry-After", "3"),
    ]
    assert merge(existing, []) == existing
    assert merge([], new) == new


@pytest.mark.parametrize("style", ["legacy", "x"])
def test_of_single_numbers_the_tighter_set_stands_whole(style: Any) -> None:
    loose, tight = limiter("10/m").limit("key"), limiter("90/h").limit("key", 89)
    assert merge(render(loose, style), render(tight, style)) == render(tight, style)
    assert merge(render(tight, style), render(loose, style)) == render(tight, style)
    lower = [(name.lower(), value) for name, value in render(loose, style)]
    assert merge(lower, render(tight, style)) == render(tight, style)
    # As much left in both: the one that resets later. Nothing said of what is left: the other.
    later = limiter("10/h").limit("key")
    assert merge(render(loose, style), render(later, style)) == render(later, style)
    assert merge(render(later, style), render(loose, style)) == render(later, style)
    unknown = render(loose, style)[:1]
    assert merge(unknown, render(loose, style)) == render(loose, style)
    assert merge(render(loose, style), unknown) == render(loose, style)


def test_sets_of_different_styles_stand_side_by_side() -> None:
    result = limiter("10/m").limit("key")
    every = merge(merge(render(result), render(result, "legacy")), render(result, "x"))
    assert every == [*render(result), *render(result, "legacy"), *render(result, "x")]


@pytest.mark.parametrize(
    ("standing", "new", "kept"),
    [
        ("3", "7", "7"),
        ("7", "3", "7"),
        ("Fri, 31 Dec 1999 23:59:59 GMT", "3", "Fri, 31 Dec 1999 23:59:59 GMT"),
    ],
)
def test_the_longer_wait_stands(standing: str, new: str, kept: str) -> None:
    merged = merge([("retry-after", standing)], [("Retry-After", new)])
    assert [value for _, value in merged] == [kept]


# -- the problem body -----------------------------------------------------------------------------


def test_a_refusal_has_a_problem_body_that_agrees_with_its_headers() -> None:
    throttle = limiter([Rule("5/m", name="é"), Rule("9/s")])
    throttle.limit("key", 5)
    refused = throttle.limit("key", 2)
    body = problem(refused)
    assert json.loads(json.dumps(body, allow_nan=False)) == {
        "type": "https://iana.org/assignments/http-problem-types#quota-exceeded",
        "title": "Quota Exceeded",
        "status": 429,
        "detail": "Too many requests. Try again in 24 seconds.",
        "retry_after": 24,
        "violated-policies": ["%C3%A9"],
    }
    headers = dict(render(refused))
    assert headers["Retry-After"] == "24"
    assert read(headers["RateLimit-Policy"])[0][0] == "%C3%A9"


def test_a_problem_that_no_waiting_solves_names_no_time() -> None:
    body = problem(limiter("5/m").limit("key", 6))
    assert "retry_after" not in body
    assert "can ever hold" in body["detail"]
    assert body["violated-policies"] == ["5/m"]
    assert "retry_after" not in unavailable()
    json.dumps(unavailable(), allow_nan=False)


def test_a_penalty_violates_no_policy() -> None:
    throttle = limiter("5/m", hold=True)
    throttle.penalize("key", 7.5)
    refused = throttle.limit("key")
    body = problem(refused)
    assert body["retry_after"] == 8
    assert "violated-policies" not in body
    assert dict(render(refused))["Retry-After"] == "8"


def test_an_admitted_call_has_no_problem() -> None:
    with pytest.raises(DataError, match="must be a refusal"):
        problem(limiter("5/m").limit("key"))
