"""WebSocket routes of FastAPI: refused before they are accepted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
import pytest
from fastapi import Depends, FastAPI, WebSocket
from starlette.testclient import WebSocketDenialResponse
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.contrib.fastapi_apps import ANN, BOB, client, dead_store, limit, logged, served
from throttled.contrib.fastapi import RateLimit, install

if TYPE_CHECKING:
    from starlette.testclient import TestClient


async def chat(websocket: WebSocket, room: str) -> None:
    await websocket.accept()
    async for message in websocket.iter_text():
        await websocket.send_text(f"{room}: {message}")


def chats(once: RateLimit, installed: bool = False, **options: Any) -> FastAPI:
    app = FastAPI()
    if installed:
        install(app, **options)
    app.websocket("/chat/{room}", dependencies=[Depends(once)])(chat)
    app.websocket("/decorated/{room}")(once(chat))
    return app


def denied(test: TestClient, path: str) -> WebSocketDenialResponse:
    with pytest.raises(WebSocketDenialResponse) as caught, test.websocket_connect(path):
        pass
    return caught.value


@pytest.mark.parametrize("path", ["/chat", "/decorated"])
@pytest.mark.parametrize("installed", [False, True])
def test_a_connection_too_many_is_refused_before_it_is_accepted(path: str, installed: bool) -> None:
    once = limit("1/h")
    app = chats(once, installed)
    with client(app) as ann, client(app, BOB) as bob:
        with ann.websocket_connect(f"{path}/a") as connection:
            for _ in range(3):  # messages are not counted
                connection.send_text("hello")
                assert connection.receive_text() == "a: hello"
        answer = denied(ann, f"{path}/b")
        assert answer.status_code == 429
        assert answer.headers["Retry-After"] == "3600"
        assert answer.headers["RateLimit"] == '"1/h";r=0;t=3600'
        problem = answer.json() if installed else answer.json()["detail"]
        assert problem["retry_after"] == 3600
        assert (answer.headers["content-type"] == "application/problem+json") is installed
        with bob.websocket_connect(f"{path}/b"):
            pass
    assert set(once._throttles) == {f"WEBSOCKET {path}/{{room}}"}


async def closed_with(app: FastAPI) -> dict[str, Any]:
    """What a server without HTTP responses to WebSocket connections is told."""
    sent: list[dict[str, Any]] = []
    scope = {
        "type": "websocket",
        "path": "/chat/a",
        "raw_path": b"/chat/a",
        "query_string": b"",
        "headers": [],
        "client": ANN,
        "subprotocols": [],
    }
    coming = iter([{"type": "websocket.connect"}, {"type": "websocket.disconnect", "code": 1000}])

    async def receive() -> dict[str, Any]:
        return next(coming)

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent[0]


@pytest.mark.parametrize("installed", [False, True])
async def test_a_server_that_cannot_answer_by_http_is_told_to_close(installed: bool) -> None:
    app = chats(limit("1/h"), installed)
    assert (await closed_with(app))["type"] == "websocket.accept"
    assert await closed_with(app) == {
        "type": "websocket.close",
        "code": 1008,
        "reason": "Too many requests. Try again in 3600 seconds.",
    }


def test_a_connection_that_nobody_can_decide_on_is_told_to_try_again_later() -> None:
    with dead_store() as store:
        assert anyio.run(closed_with, chats(RateLimit("1/h", store=store)))["code"] == 1013


def test_a_function_that_fails_closes_with_an_error(caplog: pytest.LogCaptureFixture) -> None:
    app = chats(limit("1/h", key=lambda websocket: websocket.query_params["user"]))
    assert anyio.run(closed_with, app)["code"] == 1011
    assert "Key function" in logged(caplog)


def test_layers_of_a_connection_take_all_or_nothing() -> None:
    outer, middle = limit("9/h"), limit("8/h")
    app = FastAPI(dependencies=[Depends(middle)])
    install(app, outer)
    app.websocket("/chat/{room}")(limit("1/h")(chat))
    with client(app) as ann:
        with ann.websocket_connect("/chat/a"):
            pass
        assert denied(ann, "/chat/a").headers["RateLimit"] == '"1/h";r=0;t=3600'
    assert anyio.run(outer.throttle().peek, ANN[0]).remaining == 8
    assert anyio.run(middle.throttle("WEBSOCKET /chat/{room}").peek, ANN[0]).remaining == 7


def test_messages_are_limited_by_the_middleware() -> None:
    app = chats(limit("9/h"), installed=True, messages=limit("2/h"))
    with client(app) as ann, ann.websocket_connect("/chat/a") as connection:
        for _ in range(3):
            connection.send_text("hello")
        assert [connection.receive_text() for _ in range(2)] == ["a: hello"] * 2
        assert connection.receive()["code"] == 1008


@pytest.mark.parametrize("installed", [False, True])
def test_a_real_server_refuses_by_http(installed: bool) -> None:
    with served(chats(limit("1/h"), installed)) as address:
        with connect(f"ws://{address}/chat/a") as connection:
            connection.send("hello")
            assert connection.recv() == "a: hello"
        with pytest.raises(InvalidStatus) as caught, connect(f"ws://{address}/chat/a"):
            pass
        assert caught.value.response.status_code == 429
        assert caught.value.response.headers["Retry-After"] == "3600"
