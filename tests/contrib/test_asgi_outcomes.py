"""The ASGI middleware where the outcome decides what counts, and where the store is down."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from tests.contract import PATIENT
from tests.contrib.calling import (
    App,
    any_store,
    call,
    dead_store,
    errors,
    limited,
    statuses,
)
from tests.servers import Server
from throttled.asyncio import MemoryStore, RedisStore
from throttled.contrib.asgi import RateLimit
from throttled.hooks import Event

if TYPE_CHECKING:
    pass

LOGIN = {"POST /login": "5/m"}

__all__ = ["any_store"]


# -- counting by the outcome ------------------------------------------------------------------


def failed(response: Any) -> bool:
    return bool(response.status_code == 401)


async def test_only_failures_count(any_store: Any) -> None:
    inner = App(200)
    app = limited(None, inner, rules=LOGIN, count_when=failed, store=any_store)
    answers = [await call(app, "/login", "POST") for _ in range(8)]
    assert [each.status for each in answers] == [200] * 8
    assert {each.left for each in answers} == {5}, "what did not count is told as not taken"
    inner.status = 401
    assert await statuses(app, 7, "/login", "POST") == [401] * 5 + [429] * 2


async def test_of_failures_at_once_only_the_quota_reaches_the_application(any_store: Any) -> None:
    inner = App(401)
    app = limited(None, inner, rules=LOGIN, count_when=failed, store=any_store)
    answers = await asyncio.gather(*[call(app, "/login", "POST") for _ in range(50)])
    assert sorted(each.status for each in answers) == [401] * 5 + [429] * 45
    assert len(inner.seen) == 5


async def test_successes_at_once_give_back_all_that_they_took(any_store: Any) -> None:
    inner = App(200)
    app = limited(None, inner, rules=LOGIN, count_when=failed, store=any_store)
    await asyncio.gather(*[call(app, "/login", "POST") for _ in range(50)])
    inner.status = 401
    assert await statuses(app, 6, "/login", "POST") == [401] * 5 + [429]


async def test_the_response_is_seen_with_its_headers_by_an_async_function_too(
    store: MemoryStore,
) -> None:
    async def cached(response: Any) -> bool:
        await asyncio.sleep(0)
        return bool(response.headers["x-cache"] == "miss")

    inner = App(headers=[(b"X-Cache", b"hit")])
    app = limited("1/m", inner, count_when=cached, store=store)
    assert await statuses(app, 2) == [200, 200]
    inner.headers = [(b"x-cache", b"miss")]
    assert await statuses(app, 2) == [200, 429]


async def test_an_exception_of_the_application_counts_as_a_500(store: MemoryStore) -> None:
    seen: list[int] = []

    def note(response: Any) -> bool:
        seen.append(response.status_code)
        return bool(response.status_code == 401)

    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise ZeroDivisionError

    limit = RateLimit("1/m", count_when=note, store=store)
    app = limited(limit, limited("100/h", broken, store=store))
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            await call(app)
    assert seen == [500] * 3


async def test_what_fails_after_its_response_began_is_asked_for_once(store: MemoryStore) -> None:
    """Else whoever hangs up in the middle would have his failure back."""
    seen: list[int] = []

    def note(response: Any) -> bool:
        seen.append(response.status_code)
        return bool(response.status_code == 401)

    async def late(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 401, "headers": []})
        raise OSError("the client has gone")

    app = limited("2/m", late, count_when=note, store=store)
    for _ in range(2):
        with pytest.raises(OSError, match="gone"):
            await call(app)
    assert (await call(app)).status == 429
    assert seen == [401, 401]


async def test_a_request_that_is_cancelled_or_never_answered_stays_counted(
    store: MemoryStore,
) -> None:
    async def hangs(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/hang":
            await asyncio.Event().wait()

    app = limited("2/m", hangs, count_when=failed, store=store)
    task = asyncio.create_task(call(app, "/hang"))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await call(app, "/nothing")
    assert (await call(app)).status == 429


async def test_a_count_when_that_raises_counts_and_is_named(
    store: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(response: Any) -> bool:
        raise ZeroDivisionError

    app = limited("1/m", count_when=broken, store=store)
    assert await statuses(app, 2) == [200, 429]
    assert "broken" in errors(caplog)[0]


async def test_what_was_refused_by_another_limit_is_not_asked_for_its_outcome(
    store: MemoryStore,
) -> None:
    seen: list[Any] = []
    counting = RateLimit("5/m", store=store, count_when=lambda r: seen.append(r) or True)
    app = limited([counting, RateLimit("1/h", store=store, scope="all2")])
    assert await statuses(app, 3) == [200, 429, 429]
    assert len(seen) == 1
    assert (await counting.throttle().peek("203.0.113.5")).remaining == 4


async def test_observers_hear_of_a_request_once_though_it_is_given_back(
    store: MemoryStore,
) -> None:
    heard: list[Event] = []
    app = limited("5/m", count_when=failed, store=store, on_allow=heard.append)
    assert (await call(app)).left == 5
    assert len(heard) == 1


# -- when the store is down -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("raise", [503, 503, 503]),
        ("deny", [503, 503, 503]),
        ("allow", [200, 200, 200]),
        ("local", [200, 200, 429]),
    ],
)
@pytest.mark.parametrize("shape", ["one", "several", "by outcome"])
async def test_a_dead_store_is_what_the_policy_says_and_never_a_429_or_a_traceback(
    policy: Any, expected: list[int], shape: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = dead_store(policy)
    first = RateLimit("2/m", store=store, count_when=bool if shape == "by outcome" else None)
    more = [RateLimit("9/h", store=store)] if shape == "several" else []
    inner = App()
    app = limited([first, *more], inner)
    answers = [await call(app) for _ in range(3)]
    assert [each.status for each in answers] == expected
    assert len(inner.seen) == expected.count(200)
    for answer in answers:
        if answer.status == 503:
            assert answer.problem["status"] == 503
            assert "ratelimit" not in answer.headers
    assert not [record for record in caplog.records if record.exc_info]
    await store.close()


@pytest.mark.server
async def test_a_store_that_dies_before_the_outcome_leaves_the_answer_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with Server() as server:
        store = RedisStore(server.url, options=PATIENT)

        async def dying(scope: Any, receive: Any, send: Any) -> None:
            server.stop()
            await App()(scope, receive, send)

        app = limited("5/m", dying, store=store, count_when=failed)
        assert (await call(app)).status == 200
        await store.close()
    assert "could not be given back" in "".join(errors(caplog))
    assert not [record for record in caplog.records if record.exc_info]
