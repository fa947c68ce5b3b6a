"""The httpx transports, against a server that enforces its limit."""

from __future__ import annotations

import asyncio
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import httpx
import pytest
from anyio.lowlevel import checkpoint

import throttled.asyncio
from tests.contract import PATIENT
from tests.contrib.enforcing import Enforcing, Kind, Tells
from tests.servers import Server, free_port
from throttled import MemoryStore, Throttled
from throttled.contrib.httpx import AsyncRateLimitTransport, RateLimitTransport, RefusedError
from throttled.exceptions import DataError, LimitedError, SetUpError, StoreUnavailableError
from throttled.store import RedisStore
from throttled.testing import FakeClock

pytestmark = pytest.mark.realtime


def answers(*statuses: int, headers: dict[str, str] | None = None) -> Callable[[int], Any]:
    """What a server answers, one after the other, the last one for good."""

    def answer(number: int) -> tuple[int, dict[str, str]]:
        status = statuses[min(number, len(statuses) - 1)]
        return status, headers or {} if status != 200 else {}

    return answer


@pytest.fixture
def server() -> Iterator[Enforcing]:
    with Enforcing(limit=1000) as server:
        yield server


def client(limit: Any = "100/s", **arguments: Any) -> httpx.Client:
    if not isinstance(limit, Throttled):
        arguments.setdefault("store", MemoryStore())
    return httpx.Client(transport=RateLimitTransport(limit, **arguments))


def async_client(limit: Any = "100/s", **arguments: Any) -> httpx.AsyncClient:
    arguments.setdefault("store", MemoryStore())
    return httpx.AsyncClient(transport=AsyncRateLimitTransport(limit, **arguments))


# -- the figure -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("tells", ["ietf", "legacy", "epoch", "retry", "nothing"])
@pytest.mark.parametrize("kind", ["fixed", "log", "bucket"])
async def test_a_wrong_guess_settles_near_the_allowed_rate(kind: Kind, tells: Tells) -> None:
    with Enforcing(kind, 20, 1.0, tells) as server:
        late = 0.0
        async with async_client("100/s") as http:
            until = time.monotonic() + 9.0

            async def work() -> None:
                while time.monotonic() < until:
                    await http.get(server.url)

            async def watch() -> None:
                nonlocal late
                while (now := time.monotonic()) < until:
                    await asyncio.sleep(0.005)
                    late = max(late, time.monotonic() - now - 0.005)

            await asyncio.gather(watch(), *[work() for _ in range(8)])
        share, most, _ = server.figures(after=3.0, until=9.0)

    assert share >= 0.9
    allowed = 0 if tells in ("ietf", "legacy", "epoch") else 1
    # Where the machine stood still for a slot's length, two may have been on their way.
    assert most <= allowed + (late > 0.05)


def test_many_threads_settle_too() -> None:
    # A connection that one thread takes up may be closed by another as idle (httpcore: "Bad file
    # descriptor"), so none is idle here.
    fresh = httpx.HTTPTransport(limits=httpx.Limits(max_keepalive_connections=0))
    with Enforcing("log", 20, 1.0, "retry") as server, client("100/s", transport=fresh) as http:
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda _: http.get(server.url), range(160)))
        share, most, _ = server.figures(after=3.0, until=60.0)

    assert share >= 0.8
    assert most <= 1


# -- waiting and refusing -------------------------------------------------------------------------


def test_requests_to_one_host_wait_and_those_to_another_do_not(server: Enforcing) -> None:
    with Enforcing(limit=1000) as other, client("2/500ms") as http:
        begun = time.monotonic()
        for _ in range(2):
            http.get(server.url)
            http.get(other.url)
        quick = time.monotonic() - begun
        http.get(server.url)
        slow = time.monotonic() - begun

    assert quick < 0.5 <= slow


def test_a_request_without_room_is_refused_before_it_is_sent(server: Enforcing) -> None:
    with client("1/m", timeout=-1) as http:
        http.get(server.url)
        with pytest.raises(httpx.TransportError) as caught:
            http.get(server.url)

    error = caught.value
    assert isinstance(error, RefusedError)
    assert isinstance(error, LimitedError)
    assert error.rate_limit_result is not None
    assert 50 < error.rate_limit_result.state.retry_after <= 60
    assert error.request.url == server.url
    assert "Rate limit exceeded" in str(error)
    assert isinstance(pickle.loads(pickle.dumps(error)), RefusedError)
    assert len(server.seen) == 1


def test_a_slot_beyond_the_timeout_is_refused_at_once(server: Enforcing) -> None:
    with client("1/m", timeout=5) as http:
        http.get(server.url)
        begun = time.monotonic()
        with pytest.raises(RefusedError):
            http.get(server.url)

    assert time.monotonic() - begun < 4


def test_those_who_wait_are_served_in_the_order_of_asking(server: Enforcing) -> None:
    with client("1/100ms") as http:

        def ask(number: int) -> None:
            http.get(f"{server.url}/{number}")

        threads = [threading.Thread(target=ask, args=[number]) for number in range(6)]
        for thread in threads:
            thread.start()
            time.sleep(0.03)
        for thread in threads:
            thread.join()

    assert [each.path for each in server.seen] == [f"/{number}" for number in range(6)]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_tasks_wait_in_the_order_of_asking(server: Enforcing, backend: str) -> None:
    async def main() -> None:
        async with async_client("5/100ms") as http, anyio.create_task_group() as tasks:
            for number in range(15):
                tasks.start_soon(http.get, f"{server.url}/{number // 5}")
                await anyio.sleep(0.002)

    anyio.run(main, backend=backend)
    assert [each.path for each in server.seen] == [f"/{number // 5}" for number in range(15)]
    assert server.seen[-1].at - server.seen[0].at >= 0.19


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_request_that_is_cancelled_gives_its_slot_back(server: Enforcing, backend: str) -> None:
    async def main() -> None:
        async with async_client("1/s") as http:
            await http.get(server.url)
            async with anyio.create_task_group() as tasks:
                for _ in range(5):
                    tasks.start_soon(http.get, server.url)
                await anyio.sleep(0.1)
                tasks.cancel_scope.cancel()
            begun = time.monotonic()
            await http.get(server.url)
            assert time.monotonic() - begun < 1.5

    anyio.run(main, backend=backend)
    assert len(server.seen) == 2


def test_one_transport_serves_one_event_loop_after_the_other(server: Enforcing) -> None:
    store = MemoryStore()
    transport = AsyncRateLimitTransport("2/300ms", store=store)

    async def main() -> None:
        transport._transport = httpx.AsyncHTTPTransport()
        async with httpx.AsyncClient(transport=transport) as http:
            await asyncio.gather(*[http.get(server.url) for _ in range(3)])

    asyncio.run(main())
    asyncio.run(main())
    assert len(server.seen) == 6


# -- key and cost ---------------------------------------------------------------------------------


def test_key_and_cost_are_what_functions_of_the_request_say(server: Enforcing) -> None:
    with client(
        "10/m",
        key=lambda request: request.url.path,
        cost=lambda request: int(request.headers["cost"]),
        timeout=-1,
    ) as http:
        http.get(f"{server.url}/a", headers={"cost": "8"})
        http.get(f"{server.url}/b", headers={"cost": "8"})
        with pytest.raises(RefusedError):
            http.get(f"{server.url}/a", headers={"cost": "3"})
        http.get(f"{server.url}/a", headers={"cost": "2"})


async def test_key_and_cost_may_be_said_by_async_functions(server: Enforcing) -> None:
    async def key(request: httpx.Request) -> str:
        await checkpoint()
        return "all"

    async def cost(request: httpx.Request) -> int:
        return 2

    async with async_client("5/m", key=key, cost=cost, timeout=-1) as http:
        await http.get(server.url)
        await http.get(server.url)
        with pytest.raises(RefusedError):
            await http.get(server.url)


def no_key(request: httpx.Request) -> Any:
    return None


def broken(request: httpx.Request) -> Any:
    raise KeyError("account")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"key": no_key}, r"Invalid key: None.*no_key returned it"),
        ({"key": broken}, r"Invalid key: broken raised KeyError: 'account'"),
        ({"cost": no_key}, r"Invalid cost: None.*no_key returned it"),
        ({"cost": broken}, r"Invalid cost: broken raised KeyError"),
    ],
)
def test_a_function_that_says_nothing_is_named_before_anything_is_sent(
    server: Enforcing, arguments: dict[str, Any], message: str
) -> None:
    with client(**arguments) as http, pytest.raises(DataError, match=message):
        http.get(server.url)
    assert not server.seen


async def later(request: httpx.Request) -> str:
    return "key"


@pytest.mark.parametrize(
    "arguments",
    [
        {"limit": "often"},
        {"key": ""},
        {"key": later},
        {"cost": -1},
        {"timeout": -2},
        {"retries": -1},
        {"retries": True},
        {"retries": 1, "learn": False},
        {"learn": "yes"},
        {"at_most": 0},
        {"at_most": 1e9},
        {"limit": Throttled(), "using": "gcra"},
    ],
)
def test_bad_arguments_are_refused_when_the_transport_is_made(arguments: dict[str, Any]) -> None:
    with pytest.raises(DataError):
        RateLimitTransport(**{"limit": "1/s", **arguments})


def test_a_limit_of_the_other_flavour_is_refused() -> None:
    with pytest.raises(SetUpError, match=r"throttled\.asyncio"):
        AsyncRateLimitTransport(Throttled())  # type: ignore[arg-type]
    with pytest.raises(SetUpError):
        RateLimitTransport(throttled.asyncio.Throttled())  # type: ignore[arg-type]


def test_a_limit_of_the_users_is_shared_with_its_other_uses(server: Enforcing) -> None:
    throttle = Throttled(quota="3/m", store=MemoryStore(), using="fixed_window")
    with client(throttle, key="api", timeout=-1) as http:
        http.get(server.url)

    assert throttle.peek("api").remaining == 2
    assert throttle.hold is False


# -- sending again --------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 503])
def test_a_refused_request_is_sent_again_when_the_service_is_ready(status: int) -> None:
    with (
        Enforcing(answer=answers(status, 200, headers={"Retry-After": "1"})) as server,
        client(retries=2) as http,
    ):
        response = http.post(server.url, json={"a": 1})

    assert response.status_code == 200
    assert [each.body for each in server.seen] == [b'{"a":1}'] * 2
    assert 1.0 <= server.seen[1].at - server.seen[0].at < 3.0


async def test_async_requests_are_sent_again_too() -> None:
    with Enforcing(answer=answers(429, 429, 200)) as server:
        async with async_client("5/100ms", retries=2) as http:
            response = await http.post(server.url, content=b"body")

    assert response.text == "ok"
    assert [each.body for each in server.seen] == [b"body"] * 3


def test_a_request_is_sent_again_no_more_often_than_said() -> None:
    with (
        Enforcing(answer=answers(429, headers={"Retry-After": "0"})) as server,
        client("5/50ms", retries=2) as http,
    ):
        assert http.get(server.url).status_code == 429
        assert len(server.seen) == 3


def test_a_request_is_not_sent_again_if_that_is_beyond_its_timeout() -> None:
    with (
        Enforcing(answer=answers(429, headers={"Retry-After": "60"})) as server,
        client(retries=5, timeout=2) as http,
    ):
        begun = time.monotonic()
        assert http.get(server.url).text == "too much"
        assert time.monotonic() - begun < 2
        assert len(server.seen) == 1


def test_a_body_that_is_used_up_is_not_sent_again() -> None:
    with (
        Enforcing(answer=answers(429, headers={"Retry-After": "0"})) as server,
        client(retries=5) as http,
    ):
        headers = {"Content-Length": "3"}
        assert http.post(server.url, content=iter([b"abc"]), headers=headers).status_code == 429
        assert len(server.seen) == 1


@pytest.mark.parametrize("answer", [answers(503), answers(500, headers={"Retry-After": "0"})])
def test_what_the_service_does_not_ask_to_repeat_is_not_repeated(
    answer: Callable[[int], Any],
) -> None:
    with Enforcing(answer=answer) as server, client(retries=5) as http:
        http.get(server.url)
        assert len(server.seen) == 1


def test_a_response_is_closed_before_the_request_is_sent_again() -> None:
    closed: list[int] = []

    class Body(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            yield b"body"

        def close(self) -> None:
            closed.append(1)

    statuses = iter([429, 200])
    behind = httpx.MockTransport(lambda request: httpx.Response(next(statuses), stream=Body()))
    with client("5/50ms", transport=behind, retries=1) as http:
        with http.stream("GET", "http://service.test/") as response:
            assert response.status_code == 200
            assert closed == [1]
        assert closed == [1, 1]


# -- what surrounds a request ---------------------------------------------------------------------


def test_every_hop_of_a_redirect_takes_from_its_host(server: Enforcing) -> None:
    store = MemoryStore()
    with client("10/m", store=store) as http:
        http.follow_redirects = True
        assert http.get(f"{server.url}/redirect").text == "ok"

    counted = Throttled(quota="10/m", store=store, using="sliding_window_log")
    assert counted.peek(f"127.0.0.1:{server.server_port}").remaining == 8


def test_a_streamed_response_teaches_before_it_is_read() -> None:
    headers = {"RateLimit-Policy": '"p";q=1;w=60'}
    with (
        Enforcing(answer=lambda number: (200, headers)) as server,
        client(timeout=-1) as http,
        http.stream("GET", server.url) as response,
    ):
        with pytest.raises(RefusedError):
            http.get(server.url)
        assert response.read() == b"ok"


def test_a_request_that_cannot_connect_keeps_its_slot() -> None:
    with Enforcing() as server:
        url = server.url
    with client("1/m", timeout=-1) as http:
        with pytest.raises(httpx.ConnectError):
            http.get(url)
        with pytest.raises(RefusedError):
            http.get(url)


def test_a_store_that_fails_does_as_its_policy_says(server: Enforcing) -> None:
    store = RedisStore(f"redis://127.0.0.1:{free_port()}")
    with client(store=store) as http, pytest.raises(StoreUnavailableError):
        http.get(server.url)
    assert not server.seen
    with client(store=store, on_store_error="allow") as http:
        assert http.get(server.url).status_code == 200
    denying = client(store=store, on_store_error="deny", timeout=-1)
    with denying as http, pytest.raises(RefusedError, match="Store unavailable"):
        http.get(server.url)
    store.close()


def test_an_answer_is_not_lost_with_the_store(caplog: pytest.LogCaptureFixture) -> None:
    class Forgetful(MemoryStore):
        def adjust_all(self, *args: Any) -> Any:
            raise StoreUnavailableError("The store at example:1 did not answer")

    headers = {"Retry-After": "60"}
    with (
        Enforcing(answer=answers(429, headers=headers)) as server,
        client(store=Forgetful()) as http,
    ):
        assert http.get(server.url).text == "too much"

    assert "could not be stored" in caplog.text


def test_closing_the_client_closes_the_transport_behind() -> None:
    class Behind(httpx.BaseTransport):
        closed = False

        def close(self) -> None:
            self.closed = True

    behind = Behind()
    client(transport=behind).close()

    assert behind.closed


def test_a_fake_clock_moves_instead_of_waiting() -> None:
    clock = FakeClock()
    behind = httpx.MockTransport(lambda request: httpx.Response(200))
    with client("1/m", store=MemoryStore(clock=clock), transport=behind) as http:
        begun = clock.now
        for _ in range(4):
            http.get("http://service.test/")

    assert clock.now - begun == 180.0


# -- a limit that processes share -----------------------------------------------------------------


@pytest.mark.server
def test_what_one_process_is_told_holds_for_all_on_its_server(valkey: Server) -> None:
    with (
        Enforcing(answer=answers(429, headers={"Retry-After": "60"})) as server,
        RedisStore(valkey.url, options=PATIENT) as one,
        RedisStore(valkey.url, options=PATIENT) as other,
        client(store=one, key_prefix="httpx-hold", timeout=-1) as http,
        client(store=other, key_prefix="httpx-hold", timeout=-1) as another,
    ):
        assert http.get(server.url).status_code == 429
        with pytest.raises(RefusedError) as caught:
            another.get(server.url)

    result = caught.value.rate_limit_result
    assert result is not None
    assert result.held
    assert 50 < result.state.retry_after <= 60


@pytest.mark.server
async def test_a_wrong_guess_settles_on_a_server(valkey: Server) -> None:
    store = throttled.asyncio.RedisStore(valkey.url, options=PATIENT)
    with Enforcing("log", 20, 1.0, "ietf") as server:
        async with async_client("100/s", store=store, key_prefix="httpx-settle") as http:
            await asyncio.gather(*[http.get(server.url) for _ in range(140)])
        await store.close()
        share, most, _ = server.figures(after=3.0, until=60.0)

    assert share >= 0.8
    assert most == 0
