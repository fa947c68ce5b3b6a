"""What every adapter shares: passages, patterns, rules, keys and the misuse that can be seen."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import pytest

from tests.failing import FailingStore
from throttled import MemoryStore, Throttled
from throttled.contrib import misuse
from throttled.contrib.identity import client_ip
from throttled.contrib.inbound import Passage, Replies
from throttled.contrib.keys import Incoming, by_header, by_route, by_user, combined, reader
from throttled.contrib.limit import BaseRateLimit
from throttled.contrib.rules import Pattern, Rules, check_used
from throttled.exceptions import DataError, SetUpError
from throttled.store.policy import afinished, finished
from throttled.testing import FakeClock


class Limit(BaseRateLimit):
    _asynchronous: ClassVar[bool] = False


class Asked(Incoming):
    """A request as a test wants it."""

    def __init__(
        self,
        path: str = "/",
        method: str = "GET",
        user: str | None = None,
        peer: str | None = "203.0.113.5",
        headers: Any = (),
    ) -> None:
        self._of = (path, method, user, peer, headers)

    path = property(lambda self: self._of[0])  # type: ignore[assignment]
    method = property(lambda self: self._of[1])  # type: ignore[assignment]
    user = property(lambda self: self._of[2])  # type: ignore[assignment]
    peer = property(lambda self: self._of[3])  # type: ignore[assignment]
    headers = property(lambda self: self._of[4])  # type: ignore[assignment]


class Gone:
    """A response."""

    def __init__(self, status_code: int = 200) -> None:
        self.status_code = status_code


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore(clock=FakeClock())


def enter(passage: Passage, *limits: Limit, **request: Any) -> int:
    """The status that limits come to; 200 if they let the request pass."""
    refusal = finished(passage.enter([(each, "all") for each in limits], Asked(**request)))
    return refusal.status if refusal else 200


def left(limit: Limit, key: str = "203.0.113.5") -> int:
    return int(limit.throttle().peek(key).remaining)


# -- passages ---------------------------------------------------------------------------------


def test_layers_take_all_or_nothing(store: MemoryStore) -> None:
    outer, pair, inner = (Limit(f"{n}/m", store=store) for n in (9, 8, 1))
    for expected in (200, 429, 429):
        passage = Passage()
        assert enter(passage, outer, pair) == 200
        assert enter(passage, inner) == expected
        if expected == 429:
            assert passage.refusal is not None
            assert passage.refusal.retry_after == 60
            told = dict(passage.headers(Replies()))
            assert told["RateLimit-Policy"] == '"1/m";q=1;w=60', "of the one that refused alone"
    assert (left(outer), left(pair)) == (8, 7)


def test_what_is_given_back_is_what_was_taken(store: MemoryStore) -> None:
    last = Limit("1/m", store=store)
    enter(Passage(), last)
    shadow = Limit("1/h", store=store, enforce=False)
    enter(Passage(), shadow)
    others = [shadow, Limit("5/m", store=store, cost=3), Limit("5/s", store=store, cost=0)]
    for _ in range(3):
        passage = Passage()
        assert [enter(passage, each) for each in (*others, last)] == [200, 200, 200, 429]
    assert [left(each) for each in others] == [0, 5, 5]


def test_a_shadow_that_would_refuse_takes_nothing_and_is_given_nothing(store: MemoryStore) -> None:
    shadow, last = Limit("1/h", store=store, enforce=False), Limit("1/m", store=store)
    assert enter(Passage(), shadow, last) == 200
    assert enter(Passage(), shadow, last) == 429
    assert left(shadow) == 0


def test_whom_a_throttled_exempts_is_given_nothing_back(store: MemoryStore) -> None:
    exempt: set[str] = set()
    lenient = Limit(Throttled(quota="5/h", store=store, exempt=exempt.__contains__))
    wide, last = Limit("9/h", store=store), Limit("1/m", store=store)
    assert enter(Passage(), lenient, wide, last) == 200
    exempt.add("203.0.113.5")
    passage = Passage()
    assert enter(passage, lenient, wide) == 200
    assert enter(passage, last) == 429
    assert (left(lenient), left(wide)) == (4, 8)


def test_threads_admit_exactly_the_quota_through_layers(store: MemoryStore) -> None:
    outer, inner = Limit("1000/h", store=store), Limit("30/h", store=store)

    def ask(_: int) -> int:
        passage = Passage()
        enter(passage, outer)
        return enter(passage, inner)

    with ThreadPoolExecutor(16) as pool:
        statuses = list(pool.map(ask, range(200)))
    assert statuses.count(200) == 30
    assert (left(outer), left(inner)) == (970, 0)


def test_the_outcome_decides_once_what_counts(store: MemoryStore) -> None:
    seen: list[int] = []

    def failed(response: Gone) -> bool:
        seen.append(response.status_code)
        return response.status_code == 401

    limit = Limit("5/m", store=store, count_when=failed)
    for status, remaining in ((200, 5), (401, 4)):
        passage = Passage()
        assert enter(passage, limit) == 200
        assert passage.pending
        assert left(limit) == remaining - (status == 200), "while it runs, it counts"
        finished(passage.leave(Gone(status)))
        assert not passage.pending
        assert left(limit) == remaining
        assert f";r={remaining};" in dict(passage.headers(Replies()))["RateLimit"]
    assert seen == [200, 401]


def test_threads_that_fail_at_once_are_counted_and_those_that_do_not_are_not(
    store: MemoryStore,
) -> None:
    limit = Limit("40/h", store=store, count_when=lambda response: response.status_code == 401)

    def attempt(number: int) -> int:
        passage = Passage()
        status = enter(passage, limit)
        if status == 200:
            status = 401 if number % 2 else 204
            finished(passage.leave(Gone(status)))
        return status

    with ThreadPoolExecutor(16) as pool:
        statuses = list(pool.map(attempt, range(200)))
    assert left(limit) == 40 - statuses.count(401)
    assert statuses.count(401) <= 40


async def test_a_limit_of_async_code_is_entered_with_afinished(store: MemoryStore) -> None:
    async def who(request: Incoming) -> str:
        await asyncio.sleep(0)
        return "who"

    limit = BaseRateLimit("1/m", store=store, key=who)
    got = [await afinished(Passage().enter([(limit, "a")], Asked())) for _ in range(2)]
    assert [each and each.status for each in got] == [None, 429]


def test_scopes_keep_counts_apart_and_a_scope_of_ones_own_joins_them(store: MemoryStore) -> None:
    apart, joined = Limit("1/m", store=store), Limit("1/m", store=store, scope="one")
    for limit, expected in ((apart, [None, None, 429]), (joined, [None, 429, 429])):
        got = [
            finished(Passage().enter([(limit, scope)], Asked()))
            for scope in ("GET /a", "GET /{b}", "GET /{b}")
        ]
        assert [each and each.status for each in got] == expected
    assert apart.throttle("GET /{b}") is apart.throttle("GET /{b}")
    apart.throttle("GET /a").reset("203.0.113.5")


def test_a_store_that_decides_by_one_rule_at_a_time_is_asked_so() -> None:
    store = FailingStore(FakeClock())
    wide, narrow = Limit("9/m", store=store), Limit("1/m", store=store)
    assert [enter(Passage(), wide, narrow) for _ in range(3)] == [200, 429, 429]
    assert left(wide) == 8
    with pytest.raises(SetUpError, match="one rule at a time"):
        Limit("1/m", store=store, count_when=bool)


# -- patterns ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "yes", "no"),
    [
        ("/", ["GET /", "PUT ", "GET //"], ["GET /a"]),
        ("/a", ["GET /a", "WEBSOCKET /a/", "GET //a//", "GET /a\n"], ["GET /ab", "GET /a/b"]),
        ("/a.b", ["GET /a.b"], ["GET /axb"]),
        ("GET /a", ["GET /a", "HEAD /a"], ["POST /a", "WEBSOCKET /a"]),
        ("POST|PUT /a", ["POST /a", "PUT /a"], ["GET /a", "HEAD /a"]),
        ("WEBSOCKET /a", ["WEBSOCKET /a"], ["GET /a"]),
        ("/{x}", ["GET /1", "GET /a b", "GET /\n"], ["GET /", "GET /1/2"]),
        ("/a/{x}/b", ["GET /a/1/b", "GET /a//1/b"], ["GET /a/b", "GET /a/1/2/b"]),
        ("/a/*", ["GET /a", "GET /a/", "GET /a/b/c\nd", "GET //a"], ["GET /ab", "GET /"]),
        ("/*", ["GET /", "GET /a/b", "GET "], []),
        ("/caf\N{LATIN SMALL LETTER E WITH ACUTE}", ["GET /caf\xe9"], ["GET /caf%C3%A9"]),
    ],
)
def test_what_a_pattern_matches(text: str, yes: list[str], no: list[str]) -> None:
    pattern = Pattern(text)
    assert [each for each in yes if not pattern.matches(*each.split(" ", 1))] == []
    assert [each for each in no if pattern.matches(*each.split(" ", 1))] == []


def test_an_exact_pattern_matches_what_it_says() -> None:
    for text, yes, no in (
        ("GET /a", ["/a"], ["/a/", "//a", "/a\n"]),
        ("/a/", ["/a/"], ["/a", "/a//"]),
        ("/a/*", ["/a", "/a/", "/a/b"], ["//a", "/ab"]),
        ("/", ["/"], ["", "//"]),
    ):
        pattern = Pattern(text, exact=True)
        assert [each for each in yes if not pattern.matches("GET", each)] == []
        assert [each for each in no if pattern.matches("GET", each)] == []


def test_a_pattern_has_one_way_of_writing() -> None:
    texts = ["PUT|GET /a/{x}/", "GET|PUT   /a/{x}", " GET|PUT|GET /a/{x} "]
    assert {Pattern(text).text for text in texts} == {"GET|PUT /a/{x}"}
    assert Pattern("/").text == "/"


def test_matching_takes_no_longer_for_what_is_made_to() -> None:
    """Patterns are regular expressions, and callers choose paths."""
    pattern = Pattern("/a/{b}/{c}/{d}/e")
    path = "/a/" + "/" * 20_000 + "b/" * 20_000
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(pattern.matches, "GET", path).result(timeout=10) is False


# -- rules ------------------------------------------------------------------------------------


def test_rules_name_the_limits_of_a_request(store: MemoryStore) -> None:
    rules = Rules(Limit, "9/m", {"/a/*": "5/m", "POST /a/b": ["1/m", "2/h"]}, ["/a/free"])
    found = rules.of(Asked("/a/b", "POST"))
    assert [scope for _, scope in found] == ["all", "/a/*", "POST /a/b"]
    assert [scope for _, scope in rules.of(Asked("/x"))] == ["all"]
    assert not rules.of(Asked("/a/free"))
    assert len(rules.limits) == 3


def test_defaults_are_for_what_is_made_of_quotas_and_what_suits_a_throttled(
    store: MemoryStore,
) -> None:
    throttle, own = Throttled(quota="7/m"), Limit("8/m")
    rules = Rules(Limit, [throttle, own], {"/a": "9/m"}, store=store, cost=2, key=by_user())
    made, kept, quota = rules.limits
    assert (made.cost, made.throttle(), repr(made.key)) == (2, throttle, "by_user()")
    assert kept is own
    assert (quota.cost, quota.store) == (2, store)


def test_a_limit_of_the_other_flavour_is_refused() -> None:
    with pytest.raises(DataError, match="must be a"):
        Rules(Limit, BaseRateLimit("1/m"))


def test_an_async_function_is_refused_where_nobody_could_await_it() -> None:
    async def later(request: Any) -> Any: ...

    for options in (
        {"key": later},
        {"key": by_user(otherwise=later)},
        {"key": by_header("X-A", otherwise=combined(later))},
        {"key": combined(client_ip(), by_user(otherwise=later))},
        {"cost": later},
        {"count_when": later},
        {"exempt": later},
    ):
        with pytest.raises(DataError, match="async"):
            Limit("1/m", **options)
        BaseRateLimit("1/m", **options)


# -- keys -------------------------------------------------------------------------------------


def key_of(key: Any, **request: Any) -> Any:
    return reader(key, True)(Asked(**request))


def test_parts_of_different_requests_make_different_keys() -> None:
    key = combined(by_user(), by_route(), lambda request: request.header("X") or "none")
    requests: list[dict[str, Any]] = [
        {},
        {"user": "a"},
        {"user": "a|GET /"},
        {"user": "a", "path": "/|none"},
        {"user": "a", "headers": {"X": "none|"}},
        {"user": "203.0.113.5"},
        {"user": "|203.0.113.5"},
        {"user": "a", "method": "POST"},
        {"peer": "203.0.113.6"},
    ]
    assert len({key_of(key, **each) for each in requests}) == len(requests)


def test_a_route_is_one_however_it_is_written() -> None:
    for path in ("/a/b", "/a/b/", "//a///b", "/a/b\n"):
        for method in ("GET", "HEAD"):
            assert key_of(by_route(), path=path, method=method) == "GET /a/b"
    assert key_of(by_route(), path="") == "GET /"


def test_a_header_is_kept_as_its_digest_and_counts_if_it_came_once() -> None:
    key = by_header("x-api-KEY")
    once = key_of(key, headers=[(b"X-Api-Key", b"secret")])
    assert "secret" not in once
    assert once == key_of(key, headers={"X-API-Key": "secret"})
    assert once != key_of(by_header("X-API-Key", "pepper"), headers={"X-API-Key": "secret"})
    twice = [("X-API-Key", "secret"), ("X-API-Key", "other")]
    for headers in ([], [("X-API-Key", "")], twice, twice[::-1]):
        assert key_of(key, headers=headers) == "|203.0.113.5"


async def test_parts_may_be_awaited_and_one_that_fails_leaves_none_behind() -> None:
    ran: list[str] = []

    async def first(request: Any) -> str:
        ran.append("first")
        if request.method == "PUT":
            raise ZeroDivisionError
        return "1"

    async def second(request: Any) -> str:
        ran.append("second")
        return "2"

    key = combined(lambda request: "0", first, lambda request: "x", second)
    assert await key_of(key) == "0|1|x|2"
    assert await key_of(by_user(otherwise=second)) == "|2"
    ran.clear()
    with pytest.raises(ZeroDivisionError):
        await key_of(key, method="PUT")
    assert ran == ["first"]


@pytest.mark.parametrize("part", [None, "", 7, b"a"])
def test_a_part_that_is_no_text_is_an_error_and_no_bucket_for_all(part: Any) -> None:
    for key in (combined(by_route(), lambda request: part), by_user(otherwise=lambda r: part)):
        with pytest.raises(DataError, match="part"):
            key_of(key)


@pytest.mark.parametrize(
    "make",
    [
        lambda: by_header("X API Key"),
        lambda: by_header(""),
        lambda: by_header("X", ""),
        lambda: by_header("X", otherwise="ip"),  # type: ignore[arg-type]
        lambda: by_user(otherwise=5),  # type: ignore[arg-type]
        lambda: combined(),
        lambda: combined("user"),  # type: ignore[arg-type]
    ],
)
def test_keys_that_cannot_work_are_refused_when_they_are_made(make: Any) -> None:
    with pytest.raises(DataError):
        make()


# -- misuse -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "environ", "number"),
    [
        ("uvicorn app:app --workers 4", {}, 4),
        ("/usr/bin/python /venv/bin/uvicorn app:app --workers=3", {}, 3),
        ("/site-packages/uvicorn/__main__.py app:app --workers 2", {}, 2),
        ("python -m hypercorn -w 5 app:app", {}, 5),
        ("gunicorn -w4 -k uvicorn_worker.UvicornWorker app:app", {}, 4),
        ("fastapi run --workers 4 main.py", {}, 4),
        ("gunicorn app:app", {"GUNICORN_CMD_ARGS": "--bind=:80 --workers=6"}, 6),
        ("python main.py", {"WEB_CONCURRENCY": "3"}, 3),
        ("uvicorn app:app", {}, 1),
        ("uvicorn app:app --workers 1", {"WEB_CONCURRENCY": "junk"}, 1),
        ("pytest -w 4 tests/test_uvicorn_workers.py", {}, 1),
        ("python train.py --workers 8 --data /home/gunicorns", {}, 1),
    ],
)
def test_workers_are_seen_where_a_server_was_told_of_them(
    line: str, environ: dict[str, str], number: int
) -> None:
    assert misuse.workers(line.split(" "), environ) == number


def test_memory_under_several_workers_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, store: MemoryStore
) -> None:
    monkeypatch.setattr(misuse, "_said", set())
    caplog.set_level(logging.WARNING)
    Limit("1/m", store=store)
    assert "TH005" not in caplog.text
    monkeypatch.setenv("WEB_CONCURRENCY", "4")
    for _ in range(3):
        Limit("1/m", store=store)
    assert caplog.text.count("TH005") == 1
    assert "4 workers" in caplog.text


def test_one_key_for_all_is_said_when_many_addresses_had_it() -> None:
    watch = misuse.Alike("key")
    assert not any(watch.over("all", Asked(peer="203.0.113.1")) for _ in range(500))
    over = [watch.over("all", Asked(peer=f"203.0.113.{n}")) for n in range(20)]
    assert True in over
    apart = misuse.Alike("key")
    assert [apart.over(each, Asked()) for each in ("a", "a", "b")] == [False, False, True]


@pytest.mark.parametrize(
    ("limit", "options", "unused"),
    [
        (Limit("5/m"), {"store": MemoryStore()}, "store"),
        (Limit("5/m"), {"cost": 2, "using": "gcra"}, "cost, using"),
        (Throttled(quota="5/m"), {"key": by_route(), "timeout": 1}, "timeout"),
    ],
)
def test_what_would_be_without_effect_is_refused(
    limit: Any, options: dict[str, Any], unused: str
) -> None:
    with pytest.raises(DataError, match=f"^Invalid {unused}: no limit was made with it"):
        check_used(options, Rules(Limit, limit, **options))
    check_used(options, Rules(Limit, [limit, "9/s"], **options))


def test_a_cost_that_nobody_could_ever_pay_is_refused() -> None:
    with pytest.raises(DataError, match=r"^Invalid cost: 6, must be at most 5, .* 5/m ever holds"):
        Limit("10/s; 5/m", cost=6)
    Limit("10/s; 5/m", cost=5)
    Limit(Throttled(quota="5/m burst 6"), cost=6)


def test_an_outage_is_not_logged_at_every_request(caplog: pytest.LogCaptureFixture) -> None:
    store = FailingStore()
    store.fail()
    limit = Limit("5/m", store=store, on_store_error="raise")
    refusals = [finished(Passage().enter([(limit, "all")], Asked())) for _ in range(9)]
    assert [refusal.status for refusal in refusals if refusal] == [503] * 9
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
