"""Limits in the OpenAPI document of FastAPI; for `throttled.contrib.fastapi` alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any, Final

from fastapi import FastAPI, routing

from throttled.contrib.asgi import RateLimitMiddleware
from throttled.contrib.headers import PROBLEM_TYPE, Style
from throttled.contrib.inbound import Replies
from throttled.contrib.limit import BaseRateLimit
from throttled.store.memory import MemoryStore

__all__ = ["document", "routes_of"]


def routes_of(routes: Any) -> Iterator[Any]:
    """Routes by their whole paths, those of included routers too."""
    # Where FastAPI has no such thing, all routes know their whole paths themselves.
    contexts: Any = getattr(routing, "iter_route_contexts", iter)
    found: Iterator[Any] = contexts(routes)
    return found


_PROBLEM: Final = "RateLimitProblem"
_PROBLEM_SCHEMA: Final = {
    "title": _PROBLEM,
    "description": "Problem details of RFC 9457.",
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "format": "uri-reference"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "retry_after": {"type": "integer", "minimum": 1, "description": "In seconds."},
        "violated-policies": {"type": "array", "items": {"type": "string"}},
    },
}
_RETRY_AFTER: Final = {"Retry-After": ("integer", "Seconds until the request may come again.")}
_NUMBERS: Final = {
    "Limit": ("integer", "How many requests the limit admits."),
    "Remaining": ("integer", "How many requests are left."),
    "Reset": ("integer", "When there are more, in seconds."),
}
_FIELDS: Final[dict[Style | None, dict[str, tuple[str, str]]]] = {
    None: {},
    "ietf": {
        "RateLimit-Policy": ("string", "The limits."),
        "RateLimit": ("string", "What is left of them."),
    },
    "legacy": {f"RateLimit-{name}": field for name, field in _NUMBERS.items()},
    "x": {f"X-RateLimit-{name}": field for name, field in _NUMBERS.items()},
}


def document(app: FastAPI, schema: dict[str, Any], middleware: RateLimitMiddleware) -> None:
    """Add to each operation how it may be refused, unless the application has said it itself."""
    replies = middleware._replies
    limited = False
    for method, path, operation, limits in _operations(app, schema):
        request = middleware._incoming(
            {"type": "http", "method": method, "path": path, "headers": []}
        )
        limits += [limit for limit, _ in middleware._rules.of(request)]
        if not limits:
            continue
        limited = True
        responses = operation.setdefault("responses", {})
        fields = {**_RETRY_AFTER, **_FIELDS[replies._style]}
        responses.setdefault("429", _refusal("Too Many Requests", fields, replies))
        if any(_may_fail(limit) for limit in limits):
            responses.setdefault("503", _refusal("Service Unavailable", _RETRY_AFTER, replies))
    if limited and replies._problem is None:
        schemas = schema.setdefault("components", {}).setdefault("schemas", {})
        schemas.setdefault(_PROBLEM, deepcopy(_PROBLEM_SCHEMA))


def _operations(
    app: FastAPI, schema: dict[str, Any]
) -> Iterator[tuple[str, str, dict[str, Any], list[BaseRateLimit]]]:
    """Method, path and document of each operation, and the limits that it depends on."""
    for route in routes_of(app.routes):
        dependant = getattr(route, "dependant", None)
        described = schema.get("paths", {}).get(getattr(route, "path_format", None), {})
        for method in getattr(route, "methods", None) or () if dependant else ():
            operation = described.get(method.lower())
            if operation is not None:
                yield method, route.path_format, operation, list(_limits(dependant))


def _limits(dependant: Any) -> Iterator[BaseRateLimit]:
    if isinstance(dependant.call, BaseRateLimit):
        yield dependant.call
    for each in dependant.dependencies:
        yield from _limits(each)


def _may_fail(limit: BaseRateLimit) -> bool:
    """Whether a request may be answered with 503."""
    policy: Any = limit.on_store_error
    while not isinstance(policy, str):
        policy = policy.on_store_error
    return policy in ("raise", "deny") and not isinstance(limit.store, MemoryStore)


def _refusal(
    description: str, fields: Mapping[str, tuple[str, str]], replies: Replies
) -> dict[str, Any]:
    documented: dict[str, Any] = {
        "description": description,
        "headers": {
            name: {"description": text, "schema": {"type": kind}}
            for name, (kind, text) in fields.items()
        },
    }
    if replies._problem is None:
        schema = {"$ref": f"#/components/schemas/{_PROBLEM}"}
        documented["content"] = {PROBLEM_TYPE: {"schema": schema}}
    return documented
