"""Requests, routes and refusals as Flask has them; for `throttled.contrib.flask` alone."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, Final, cast

from flask import Response, current_app, request
from werkzeug.exceptions import (
    HTTPException,
    InternalServerError,
    ServiceUnavailable,
    TooManyRequests,
)

from throttled.contrib import wsgi
from throttled.contrib.inbound import Refusal


class RefusedError(HTTPException):
    """What a refusal tells the error handlers of the application."""

    def __init__(self, refusal: Refusal, response: Response) -> None:
        super().__init__(refusal.problem["detail"], response)
        self.refusal = refusal
        #: Whole seconds until the same request fits; None: never, or not known.
        self.retry_after: Any = refusal.problem.get("retry_after")


class RateLimitError(RefusedError, TooManyRequests):
    """A request was refused; `@app.errorhandler(429)` may answer it."""


class RateLimitUnavailableError(RefusedError, ServiceUnavailable):
    """The store cannot decide; `@app.errorhandler(503)` may answer it."""


class RateLimitFaultError(RefusedError, InternalServerError):
    """A function of the application, such as `key`, failed; the log names it."""


ERRORS: Final[dict[int, type[RefusedError]]] = {
    429: RateLimitError,
    500: RateLimitFaultError,
    503: RateLimitUnavailableError,
}


class Request(wsgi.Request):
    """A request as Flask sees it."""

    __slots__ = ("_request",)

    def __init__(self) -> None:
        self._request: Any = cast("Any", request)._get_current_object()
        super().__init__(self._request.environ)

    @property
    def native(self) -> Any:
        return self._request

    @property
    def path(self) -> str:
        path: str = self._request.path
        return path

    @property
    def route(self) -> str:
        rule = self._request.url_rule
        return super().route if rule is None else rule.rule

    @property
    def user(self) -> str | None:
        # Whoever else logs users in has to be asked by key=.
        flask_login: Any = sys.modules.get("flask_login")
        if flask_login is not None and hasattr(current_app, "login_manager"):
            user = flask_login.current_user
            name = user.get_id() if user.is_authenticated else None
            return None if name is None else str(name)
        return super().user


def chain(function: Any) -> Iterator[Any]:
    """A function, what it is a decoration of, and so on."""
    while function is not None:
        yield function
        function = getattr(function, "__wrapped__", None)


def automatic() -> bool:
    """Whether Flask answers by itself, without calling the view."""
    return request.method == "OPTIONS" and getattr(
        request.url_rule, "provide_automatic_options", False
    )


def route_scope() -> str:
    """What requests of a route count by: its methods, as far as it names them, and its rule."""
    rule: Any = request.url_rule
    methods: set[str] = set(rule.methods or [])
    if "GET" in methods:
        methods.discard("HEAD")
    if getattr(rule, "provide_automatic_options", False):
        methods.discard("OPTIONS")
    host = rule.host or rule.subdomain
    return f"{'|'.join(sorted(methods))} {f'//{host}' if host else ''}{rule.rule}"
