"""A WebSocket chat that nobody can flood: `python -m docs.examples.websocket_chat`.

That talks to the application in this process, with time moved by hand. To serve it:
`uvicorn docs.examples.websocket_chat:app`
"""

from __future__ import annotations

from typing import Any

from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.websockets import WebSocket, WebSocketDisconnect

from throttled import MemoryStore
from throttled.contrib.asgi import RateLimit, RateLimitMiddleware, Request
from throttled.testing import FakeClock


def speaker(request: Request) -> str:
    """Who says something: a name in a room, `/rooms/{room}/{name}`."""
    return request.path


class Rooms:
    """Who is in which room."""

    def __init__(self) -> None:
        self._members: dict[str, set[WebSocket]] = {}

    async def chat(self, websocket: WebSocket) -> None:
        room, name = websocket.path_params["room"], websocket.path_params["name"]
        members = self._members.setdefault(room, set())
        await websocket.accept()
        members.add(websocket)
        try:
            async for text in websocket.iter_text():
                for member in list(members):
                    await member.send_text(f"{name}: {text}")
        finally:
            members.discard(websocket)


def make_app(store: MemoryStore | None = None) -> Any:
    app = Starlette(routes=[WebSocketRoute("/rooms/{room}/{name}", Rooms().chat)])
    return RateLimitMiddleware(
        app,
        # Connections, by address.
        RateLimit("3/minute", scope="connections", store=store),
        # What is said, by speaker, here and in all connections of his: a burst of three, then one
        # every two seconds. Up to a second early it waits, which the client does not notice;
        # who goes on beyond is shown the door.
        messages=RateLimit(
            "30/minute burst 3", key=speaker, timeout=1, scope="messages", store=store
        ),
    )


app = make_app()


def main() -> None:
    clock = FakeClock()
    client = TestClient(make_app(MemoryStore(clock=clock)), client=("203.0.113.5", 1))
    with client, client.websocket_connect("/rooms/tea/ann") as ann:
        with client.websocket_connect("/rooms/tea/bob") as bob:
            bob.send_text("Hello!")
            print(f"ann reads {ann.receive_text()!r}")
            bob.receive_text()

            for number in range(5):
                clock.advance(2)
                bob.send_text(str(number))
                bob.receive_text()
            print("bob says something every two seconds: nobody minds")

            for _ in range(10):
                bob.send_text("SPAM")
            heard = 0
            try:
                while bob.receive_text():
                    heard += 1
            except WebSocketDisconnect as gone:
                print(f"bob floods the room: {heard} lines, then {gone.code}, {gone.reason!r}")

        ann.send_text("Thank you.")
        while (line := ann.receive_text()) != "ann: Thank you.":
            pass
        print(f"ann goes on: {line!r}")

        try:
            for _ in range(2):
                with client.websocket_connect("/rooms/tea/bob"):
                    pass
        except WebSocketDenialResponse as refused:
            wait = refused.headers["Retry-After"]
            print(f"bob connects again and again: {refused.status_code}, again in {wait} s")


if __name__ == "__main__":
    main()
