"""Who gets an answer: hosts, origins, tokens; and the headers of all answers.

Rules
-----
* Nothing but what is served here is loaded by the page, and no other page may show it.
* Nobody who has lured a browser here can do anything: what is not a plain look needs a header that
  no foreign page can send, and comes from here if it says where it comes from. There are no
  cookies.
* Nobody's name leads here unless we know it: a page of theirs would be taken for one of ours (DNS
  rebinding). Where only this machine is meant, only its names are answered to.
* What changes something needs a token; without any token, nothing can be changed.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from ipaddress import ip_address
from typing import Any, Final
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from throttled._text import shown
from throttled.service.tokens import Tokens

#: What a page that was not served here cannot send.
HEADER: Final = "x-throttled"

#: The names of this machine.
LOOPBACK: Final = ("127.0.0.1", "localhost", "[::1]")

_POLICY: Final = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)
_HEADERS: Final = (
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


class Guard:
    """Answers in place of an application what that is not to be asked."""

    def __init__(self, app: Any, hosts: Container[str] | None) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *_HEADERS]}
            await send(message)

        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refused = self._refused(Request(scope))
        await (refused or self._app)(scope, receive, send_guarded)

    def _refused(self, request: Request) -> Response | None:
        """The answer to what is not to be asked; None: it may be."""
        headers = request.headers
        host = headers.get("host", "")
        if self._hosts is not None and _without_port(host) not in self._hosts:
            return problem(
                403,
                f"This dashboard does not answer to the name {shown(_without_port(host))}. Ask for "
                f"it by its address, or let it (--host, hosts).",
            )
        foreign = headers.get("sec-fetch-site", "none") not in ("same-origin", "none")
        # A link from elsewhere may lead here, and that is all.
        followed = headers.get("sec-fetch-mode") == "navigate" and request.method == "GET"
        if foreign and not followed:
            return problem(403, "This is for the page of the dashboard alone.")
        if request.method in ("GET", "HEAD"):
            return None
        if HEADER not in headers:
            return problem(403, "The header X-Throttled is missing.")
        origin = headers.get("origin")
        # The scheme is not compared: a proxy may have seen to TLS.
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return problem(403, "This is for the page of the dashboard alone.")
        return None


class Names:
    """The names of a dashboard that others reach: all addresses, and those that were given.

    A name that leads here is nobody else's only if we know it; an address is.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset(names)

    def __contains__(self, name: object) -> bool:
        try:
            ip_address(str(name).strip("[]"))
        except ValueError:
            return name in self._names
        return True


def _without_port(host: str) -> str:
    name, colon, port = host.lower().rpartition(":")
    return name if colon and port.isdecimal() else host.lower()


def problem(status: int, text: str, **headers: str) -> Response:
    """An answer that says what is wrong."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return JSONResponse({"error": text}, status, {"cache-control": "no-store", **named})


class Acting:
    """Who may change something."""

    def __init__(self, tokens: Iterable[str]) -> None:
        """Raises `SetUpError` for a token that no header can carry."""
        self._tokens = Tokens(tokens)

    def __bool__(self) -> bool:
        """Whether anybody may."""
        return bool(self._tokens)

    def refused(self, request: Request, what: str) -> Response | None:
        """The answer to one who may not."""
        if not self._tokens:
            return problem(403, "Nothing can be changed here: the dashboard has no token.")
        if self._tokens.accept(request.headers.get("authorization")):
            return None
        client = request.client
        self._tokens.refused("?" if client is None else client.host, what)
        return problem(401, "The token is missing or wrong.", www_authenticate="Bearer")
