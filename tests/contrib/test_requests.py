"""The requests adapter, against a server that enforces its limit."""

from __future__ import annotations

import io
import pickle
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests
from requests.adapters import HTTPAdapter
from requests.auth import HTTPDigestAuth

from tests.contract import PATIENT
from tests.contrib.enforcing import Enforcing
from tests.servers import Server
from throttled import MemoryStore
from throttled.contrib.requests import RateLimitAdapter, RefusedError
from throttled.exceptions import DataError, LimitedError
from throttled.store import RedisStore

pytestmark = pytest.mark.realtime


@pytest.fixture
def server() -> Iterator[Enforcing]:
    with Enforcing(limit=1000) as server:
        yield server


def session(limit: Any = "100/s", **arguments: Any) -> requests.Session:
    arguments.setdefault("store", MemoryStore())
    made = requests.Session()
    made.mount("http://", RateLimitAdapter(limit, **arguments))
    return made


def test_requests_wait_for_their_host(server: Enforcing) -> None:
    with Enforcing(limit=1000) as other, session("2/500ms") as http:
        begun = time.monotonic()
        for _ in range(2):
            http.get(server.url)
            http.get(other.url)
        quick = time.monotonic() - begun
        http.get(server.url)
        slow = time.monotonic() - begun

    assert quick < 0.5 <= slow


def test_a_wrong_guess_of_many_threads_settles() -> None:
    with Enforcing("log", 20, 1.0, "ietf") as server, session("100/s") as http:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: http.get(server.url), range(160)))
        share, most, _ = server.figures(after=3.0, until=60.0)

    assert share >= 0.8
    assert most == 0


def test_a_request_without_room_is_refused_before_it_is_sent(server: Enforcing) -> None:
    with session("1/m", timeout=-1) as http:
        http.get(server.url)
        with pytest.raises(requests.RequestException) as caught:
            http.get(server.url)

    error = caught.value
    assert isinstance(error, RefusedError)
    assert isinstance(error, LimitedError)
    assert error.rate_limit_result is not None
    assert 50 < error.rate_limit_result.state.retry_after <= 60
    assert error.request is not None
    assert error.request.url == f"{server.url}/"
    assert "Rate limit exceeded" in str(error)
    assert isinstance(pickle.loads(pickle.dumps(RefusedError())), RefusedError)
    assert len(server.seen) == 1


def test_key_and_cost_are_what_functions_of_the_request_say(server: Enforcing) -> None:
    with session(
        "10/m", key=lambda request: request.path_url, cost=lambda request: 6, timeout=-1
    ) as http:
        http.get(f"{server.url}/a")
        http.get(f"{server.url}/b")
        with pytest.raises(RefusedError):
            http.get(f"{server.url}/a")


def test_a_key_that_is_none_is_an_error_before_anything_is_sent(server: Enforcing) -> None:
    def nobody(request: requests.PreparedRequest) -> Any:
        return None

    with session(key=nobody) as http, pytest.raises(DataError, match="nobody returned it"):
        http.get(server.url)
    assert not server.seen


@pytest.mark.parametrize("body", [b"body", "body", {"a": "1"}, None])
def test_a_refused_request_is_sent_again(body: Any) -> None:
    def answer(number: int) -> tuple[int, dict[str, str]]:
        return (429, {"Retry-After": "1"}) if number == 0 else (200, {})

    with Enforcing(answer=answer) as server, session(retries=1) as http:
        response = http.post(server.url, data=body)

    assert response.text == "ok"
    assert len(server.seen) == 2
    assert server.seen[0].body == server.seen[1].body
    assert server.seen[1].at - server.seen[0].at >= 1.0


@pytest.mark.parametrize("body", [io.BytesIO(b"body"), iter([b"body"])])
def test_a_body_that_is_used_up_is_not_sent_again(body: Any) -> None:
    with (
        Enforcing(answer=lambda number: (429, {"Retry-After": "0"})) as server,
        session(retries=3) as http,
    ):
        assert http.post(server.url, data=body).status_code == 429
        assert len(server.seen) == 1


def test_every_hop_of_a_redirect_is_counted(server: Enforcing) -> None:
    with session("3/m", timeout=-1) as http:
        assert http.get(f"{server.url}/redirect").text == "ok"
        http.get(server.url)
        with pytest.raises(RefusedError):
            http.get(server.url)


def test_the_second_request_of_digest_authentication_is_counted() -> None:
    def answer(number: int) -> tuple[int, dict[str, str]]:
        if number:
            return 200, {}
        return 401, {"WWW-Authenticate": 'Digest realm="r", nonce="n", qop="auth"'}

    with Enforcing(answer=answer) as server, session("1/m", timeout=-1) as http:
        with pytest.raises(RefusedError):
            http.get(server.url, auth=HTTPDigestAuth("user", "secret"))
        assert len(server.seen) == 1


def test_a_streamed_response_is_left_unread(server: Enforcing) -> None:
    with session() as http, http.get(server.url, stream=True) as response:
        assert b"".join(response.iter_content(1)) == b"ok"


def test_closing_the_session_closes_the_adapter_behind() -> None:
    class Behind(HTTPAdapter):
        closed = False

        def close(self) -> None:
            self.closed = True

    behind = Behind()
    session(adapter=behind).close()

    assert behind.closed


@pytest.mark.server
def test_sessions_share_a_limit_on_a_server(server: Enforcing, valkey: Server) -> None:
    with (
        RedisStore(valkey.url, options=PATIENT) as one,
        RedisStore(valkey.url, options=PATIENT) as other,
    ):
        arguments = {"key_prefix": "requests", "key": "service", "timeout": -1}
        with session("3/m", store=one, **arguments) as http:
            http.get(server.url)
            http.get(server.url)
        with session("3/m", store=other, **arguments) as http:
            http.get(server.url)
            with pytest.raises(RefusedError):
                http.get(server.url)
