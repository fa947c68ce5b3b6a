"""The application: the page, what it asks for, and what it may do."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator, Callable, Container, Iterable
from functools import wraps
from pathlib import Path
from time import monotonic
from typing import Any, Final

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from throttled import __version__
from throttled._text import shown
from throttled.arguments import check_cost
from throttled.dashboard.guard import Acting, Guard, problem
from throttled.dashboard.keys import Asked, Keys
from throttled.dashboard.scenes import MOST_SENT, Scene, Scenes, ScenesFullError, Setting
from throttled.dashboard.sources import Limits, OwnLimits, Source
from throttled.dashboard.streams import Feed, Streams, event, ticks
from throttled.exceptions import (
    BaseThrottledError,
    DataError,
    OperationNotSupportedError,
    PolicyNotFoundError,
)
from throttled.quota import RateLimiterType
from throttled.service.stats import hidden
from throttled.store.base import AsyncStore, Store

logger = logging.getLogger("throttled")

STATIC: Final = Path(__file__).parent / "static"

#: Seconds between two pictures of a scene.
_TICK: Final = 0.1
#: Bytes of the longest body that is read.
_MOST_BODY: Final = 32 * 1024

_STATUSES: Final = (
    (DataError, 400),
    (PolicyNotFoundError, 404),
    (OperationNotSupportedError, 403),
    (BaseThrottledError, 503),
)

_Endpoint = Callable[[Any, Request], Any]


def _answering(endpoint: _Endpoint) -> _Endpoint:
    """An endpoint that returns what JSON is made of, and whose errors are answers."""

    @wraps(endpoint)
    async def answer(self: Dashboard, request: Request) -> Response:
        try:
            told = await endpoint(self, request)
        except BaseThrottledError as error:
            status = next(status for kind, status in _STATUSES if isinstance(error, kind))
            return problem(status, str(error))
        if isinstance(told, Response):
            return told
        return JSONResponse(told, headers={"cache-control": "no-store"})

    return answer


class Dashboard:
    """An ASGI application to be mounted: `app.mount("/throttled", Dashboard({"api": throttle}))`.

    `policies`: limits of either flavour by name, or what `load()` gives; what they decide is
    counted from now on, unless `source` knows better, such as `ServiceStats(...)`. `store`: where
    keys of any quota may be looked at. `tokens`: with any of them one may reset keys; without,
    nothing can be changed. `hosts`: the names that it answers to, by default any.

    Whoever reaches it sees keys, except those of stores that hide them (`hash_keys`): let only
    those reach it who may.

    Raises `SetUpError` for what cannot be shown.
    """

    def __init__(
        self,
        policies: Limits | None = None,
        *,
        tokens: Iterable[str] = (),
        source: Source | None = None,
        store: Store | AsyncStore | None = None,
        hosts: Container[str] | None = None,
    ) -> None:
        if source is None and policies is not None:
            source = OwnLimits(policies)
        self._source = source
        self._keys = Keys(source, policies, store)
        self._acting = Acting(tokens)
        self._scenes = Scenes()
        self._streams = Streams()
        self._feed = None if source is None else Feed(source.stats)
        routes = [
            Route("/", self._page),
            Route("/api/about", self._about),
            Route("/api/live", self._live),
            Route("/api/key", self._look, methods=["POST"]),
            Route("/api/reset", self._reset, methods=["POST"]),
            Route("/api/scenes", self._begin, methods=["POST"]),
            Route("/api/scenes/{id}", self._watch),
            Route("/api/scenes/{id}", self._end, methods=["DELETE"]),
            Route("/api/scenes/{id}/calls", self._send, methods=["POST"]),
            Mount("/static", StaticFiles(directory=STATIC)),
        ]
        app = Starlette(routes=routes, exception_handlers={404: _nothing, 405: _nothing})
        self._app = Guard(app, hosts)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self._app(scope, receive, send)

    # -- the page ---------------------------------------------------------------------------------

    async def _page(self, request: Request) -> Response:
        return FileResponse(STATIC / "index.html", headers={"cache-control": "no-cache"})

    @_answering
    async def _about(self, request: Request) -> Any:
        return {
            "version": __version__,
            "algorithms": RateLimiterType.choice(),
            "source": None if self._source is None else self._source.name,
            "made_up": getattr(self._source, "made_up", False),
            "keys": "named" if self._keys.named else "bare" if self._keys.bare else None,
            "bare": self._keys.bare,
            "acts": bool(self._acting),
        }

    # -- what is counted --------------------------------------------------------------------------

    @_answering
    async def _live(self, request: Request) -> Any:
        if self._feed is None:
            return problem(404, "There are no limits to watch here.")
        return self._streams.answer(self._feed.events())

    # -- keys -------------------------------------------------------------------------------------

    @_answering
    async def _look(self, request: Request) -> Any:
        return await self._keys.look(Asked.of(await _body(request)))

    @_answering
    async def _reset(self, request: Request) -> Any:
        refused = self._acting.refused(request, "reset")
        if refused is not None:
            return refused
        asked = Asked.of(await _body(request))
        await self._keys.reset(asked)
        client = request.client
        logger.warning(
            "Key %s of %s was reset from the dashboard, by %s",
            # As the page shows it, so that the two can be matched.
            hidden(asked.key) if self._keys.hides(asked) else shown(asked.key),
            shown(asked.policy or asked.quota),
            "?" if client is None else client.host,
            extra={"throttled_event": "reset", "throttled_policy": asked.policy},
        )
        return {"reset": True}

    # -- scenes -----------------------------------------------------------------------------------

    def _scene(self, request: Request) -> Scene:
        try:
            return self._scenes[request.path_params["id"]]
        except KeyError:
            raise PolicyNotFoundError("This scene is over. Begin a new one.") from None

    @_answering
    async def _begin(self, request: Request) -> Any:
        try:
            return self._scenes.begin(Setting.of(request.query_params)).about()
        except ScenesFullError as error:
            return problem(503, str(error), retry_after="10")

    @_answering
    async def _watch(self, request: Request) -> Any:
        return self._streams.answer(_moving(self._scene(request)))

    @_answering
    async def _end(self, request: Request) -> Any:
        self._scenes.end(request.path_params["id"])
        return {}

    @_answering
    async def _send(self, request: Request) -> Any:
        scene, body = self._scene(request), await _body(request)
        number, cost = body.get("number", 1), check_cost(body.get("cost", scene.setting.cost))
        if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= MOST_SENT:
            raise DataError(
                f"Invalid number: {shown(number)}, must be a whole number from 1 to {MOST_SENT}."
            )
        if cost == 0:
            raise DataError("Invalid cost: 0, must be at least 1.")
        scene.send(number, cost)
        return {}


async def _moving(scene: Scene) -> AsyncGenerator[bytes]:
    """The pictures of a scene, which moves on meanwhile."""
    scene.viewer += 1
    viewer, scene.left_at = scene.viewer, None
    try:
        yield event(scene.advance(0.0))
        async for passed in ticks(_TICK):
            if scene.viewer != viewer:  # somebody has taken over, such as the same one anew
                return
            yield event(scene.advance(passed))
    finally:
        if scene.viewer == viewer:
            scene.left_at = monotonic()


async def _body(request: Request) -> dict[str, Any]:
    """The JSON object that a request carries. Raises `DataError` for anything else."""
    content = b""
    async for chunk in request.stream():
        content += chunk
        if len(content) > _MOST_BODY:
            raise DataError(f"Invalid body: too long, must have at most {_MOST_BODY:,} bytes.")
    try:
        body: Any = json.loads(content or b"{}")
    except (ValueError, RecursionError):
        raise DataError("Invalid body: no JSON, must be a JSON object.") from None
    if not isinstance(body, dict):
        raise DataError(f"Invalid body: {shown(body)}, must be a JSON object.")
    asked: dict[str, Any] = body
    return asked


async def _nothing(request: Request, error: Exception) -> Response:
    status: int = getattr(error, "status_code", 404)
    return problem(status, "There is nothing here." if status == 404 else "Not in that way.")
