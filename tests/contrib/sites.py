"""The same little site in Starlette, FastAPI, Litestar and Quart, behind the ASGI middleware."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI
from litestar import Litestar, Request, get, post
from litestar.exceptions import HTTPException
from litestar.middleware import DefineMiddleware
from litestar.response import Stream
from quart import Quart, request
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request as StarletteRequest
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

from tests.contrib.calling import RateLimitMiddleware


@dataclass
class Site:
    """What the same little site is in each framework."""

    app: Any
    #: The handlers that ran.
    ran: list[str] = field(default_factory=list)
    #: Set when the first chunk of a stream was taken.
    first: asyncio.Event = field(default_factory=asyncio.Event)


async def chunks(site: Site) -> AsyncIterator[bytes]:
    yield b"first"
    # A middleware that buffers would wait for ever.
    await asyncio.wait_for(site.first.wait(), 5)
    yield b"last"


def starlette(**options: Any) -> Site:
    async def login(request: Any) -> Any:
        site.ran.append("login")
        await request.body()
        return PlainTextResponse("ok", 401 if "bad" in request.query_params else 200)

    async def item(request: Any) -> Any:
        site.ran.append("item")
        return PlainTextResponse("item")

    async def stream(request: Any) -> Any:
        return StreamingResponse(chunks(site))

    async def upload(request: Any) -> Any:
        async for part in request.stream():
            site.ran.append(part.decode())
        return PlainTextResponse("ok")

    async def broken(request: Any) -> Any:
        site.ran.append("broken")
        raise ZeroDivisionError

    routes = [
        Route("/login", login, methods=["POST"]),
        Route("/items/{id}", item),
        Route("/stream", stream),
        Route("/upload", upload, methods=["POST"]),
        Route("/broken", broken),
    ]
    site = Site(Starlette(routes=routes, middleware=[Middleware(RateLimitMiddleware, **options)]))
    return site


def fastapi(**options: Any) -> Site:
    app = FastAPI()
    site = Site(app)
    app.add_middleware(RateLimitMiddleware, **options)

    @app.post("/login")
    async def login(bad: int = 0) -> Any:
        site.ran.append("login")
        return PlainTextResponse("ok", 401 if bad else 200)

    @app.get("/items/{id}")
    async def item(id: str) -> str:  # noqa: A002
        site.ran.append("item")
        return "item"

    @app.get("/stream")
    async def stream() -> Any:
        return StreamingResponse(chunks(site))

    async def upload(request: StarletteRequest) -> Any:
        async for part in request.stream():
            site.ran.append(part.decode())
        return PlainTextResponse("ok")

    app.add_route("/upload", upload, methods=["POST"])

    @app.get("/broken")
    async def broken() -> None:
        site.ran.append("broken")
        raise ZeroDivisionError

    return site


def litestar(**options: Any) -> Site:
    @post("/login", status_code=200)
    async def login(request: Request[Any, Any, Any]) -> str:
        site.ran.append("login")
        if "bad" in request.query_params:
            raise HTTPException(status_code=401)
        return "ok"

    @get("/items/{id:str}")
    async def item() -> str:
        site.ran.append("item")
        return "item"

    @get("/stream")
    async def stream() -> Stream:
        return Stream(chunks(site))

    @post("/upload", status_code=200)
    async def upload(request: Request[Any, Any, Any]) -> str:
        async for part in request.stream():
            site.ran.append(part.decode())
        return "ok"

    @get("/broken")
    async def broken() -> None:
        site.ran.append("broken")
        raise ZeroDivisionError

    app = Litestar(
        [login, item, stream, upload, broken],
        logging_config=None,  # which would be that of all tests
        middleware=[DefineMiddleware(RateLimitMiddleware, **options)],
    )
    site = Site(app)
    return site


def litestar_wrapped(**options: Any) -> Site:
    site = litestar(rules={})
    site.app = RateLimitMiddleware(site.app, **options)
    return site


def quart(**options: Any) -> Site:
    app = Quart(__name__)
    site = Site(app)
    app.asgi_app = RateLimitMiddleware(app.asgi_app, **options)  # type: ignore[method-assign]

    @app.post("/login")
    async def login() -> Any:
        site.ran.append("login")
        return "ok", 401 if "bad" in request.args else 200

    @app.get("/items/<id>")
    async def item(id: str) -> str:  # noqa: A002
        site.ran.append("item")
        return "item"

    @app.get("/stream")
    async def stream() -> Any:
        return chunks(site), 200

    @app.post("/upload")
    async def upload() -> str:
        async for part in request.body:
            site.ran.append(part.decode())
        return "ok"

    @app.get("/broken")
    async def broken() -> None:
        site.ran.append("broken")
        raise ZeroDivisionError

    return site
