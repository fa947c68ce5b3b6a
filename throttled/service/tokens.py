"""Who may call: bearer tokens, for the methods and for what the side port shows of keys."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from hmac import compare_digest
from typing import Any, Final

import grpc
import grpc.aio

from throttled.exceptions import SetUpError
from throttled.store.memory import MemoryStore
from throttled.throttled import Throttled

logger = logging.getLogger("throttled")

#: Whoever balances load may ask for the health of the service without a token.
_OPEN: Final = "/grpc.health.v1.Health/"
_SCHEME: Final = "bearer "


class Tokens:
    """The tokens that are accepted; none: everybody is.

    Raises `SetUpError` for one that no header can carry; it is not quoted.
    """

    def __init__(self, tokens: Iterable[str] = ()) -> None:
        if isinstance(tokens, str):
            raise SetUpError("Invalid tokens: a str, must be several, such as (token,).")
        self._tokens: list[bytes] = []
        for place, token in enumerate(tokens):
            if not isinstance(token, str) or not token.isascii() or not token.isprintable():
                raise SetUpError(f"Invalid tokens[{place}]: must be printable ASCII text.")
            if not token:
                raise SetUpError(f"Invalid tokens[{place}]: it is empty, must be text.")
            if " " in token:
                raise SetUpError(f"Invalid tokens[{place}]: must be text without spaces.")
            self._tokens.append(token.encode())
        # A flood of wrong tokens is not to be a flood of lines.
        self._said = Throttled(quota="10/m", store=MemoryStore(options={"MAX_SIZE": 1}))
        self._unsaid = 0

    def __bool__(self) -> bool:
        return bool(self._tokens)

    def __repr__(self) -> str:
        return f"Tokens({len(self._tokens)})"

    def accept(self, authorization: str | bytes | None) -> bool:
        """Whether that is what a caller with a token says."""
        if not self._tokens:
            return True
        given = (
            authorization if isinstance(authorization, bytes) else (authorization or "").encode()
        )
        if given[: len(_SCHEME)].lower() != _SCHEME.encode():
            return False
        token = given[len(_SCHEME) :].strip()
        # All of them, each in the same time, whichever it is.
        return sum([compare_digest(token, each) for each in self._tokens]) > 0

    def refused(self, peer: str, what: str) -> None:
        """Log that somebody had no token, or a wrong one."""
        if self._said.limit("refused").limited:
            self._unsaid += 1
            return
        extra = {
            "throttled_event": "unauthenticated",
            "throttled_peer": peer,
            "throttled_method": what,
            "throttled_suppressed": self._unsaid,
        }
        self._unsaid = 0
        logger.warning("Refused %s from %s: no token, or a wrong one", what, peer, extra=extra)


class Guard(grpc.aio.ServerInterceptor):
    """Lets calls pass that have a token, and those that ask for the health of the service."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """See `grpc.aio.ServerInterceptor`."""
        method: str = handler_call_details.method
        if not method.startswith(_OPEN):
            for name, value in handler_call_details.invocation_metadata or ():
                if name == "authorization" and self._tokens.accept(value):
                    break
            else:
                return self._refusing(method)
        return await continuation(handler_call_details)

    def _refusing(self, method: str) -> Any:
        async def refuse(request: Any, context: Any) -> None:
            self._tokens.refused(context.peer(), method)
            text = "The bearer token is missing or wrong."
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, text)

        return grpc.unary_unary_rpc_method_handler(refuse)
