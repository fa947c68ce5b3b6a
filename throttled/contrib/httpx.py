"""httpx transports that keep to a limit, and learn the service's own.

client = httpx.Client(transport=RateLimitTransport("100/s"))
client = httpx.AsyncClient(transport=AsyncRateLimitTransport("100/s"))
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import inf
from typing import Any

import httpx

from throttled import Throttled
from throttled.asyncio import Throttled as AsyncThrottled
from throttled.contrib.outbound import AT_MOST, Client, Outbound, host_key
from throttled.exceptions import LimitedError
from throttled.settings import Quotas
from throttled.store.policy import afinished, finished

__all__ = ["AsyncRateLimitTransport", "RateLimitTransport", "RefusedError"]


class RefusedError(LimitedError, httpx.TransportError):
    """A request was not sent: its limit has no room for it within the timeout.

    Caught as `LimitedError`, and as `httpx.TransportError` and what that is.
    """


class RateLimitTransport(httpx.BaseTransport):
    """Sends each request of a `httpx.Client` when its limit has room for it.

        client = httpx.Client(transport=RateLimitTransport("100/s"))

    What the client would do by its own arguments (proxy, certificates, HTTP/2) is done by the
    transport behind: `RateLimitTransport("100/s", httpx.HTTPTransport(http2=True))`.
    """

    def __init__(
        self,
        limit: Throttled | Quotas | Callable[[str], Any],
        transport: httpx.BaseTransport | None = None,
        *,
        key: str | Callable[[httpx.Request], str] | None = None,
        cost: int | Callable[[httpx.Request], int] = 1,
        timeout: float = inf,
        retries: int = 0,
        learn: bool = True,
        at_most: float = AT_MOST,
        **options: Any,
    ) -> None:
        """
        :param limit: a `Throttled`, or what its `quota=` takes; then kept by a sliding window log
            unless `using=` says otherwise.
        :param transport: what sends; a `httpx.HTTPTransport` by default. Closed with this one.
        :param key: what is counted together: a key, or a function of the request; by default all
            requests to one host and port.
        :param cost: what a request takes, or a function of the request.
        :param timeout: seconds that a request may wait, in the order of asking and with all its
            retries; -1: it is refused at once. What the server takes to answer does count once the
            request is sent again, else not.
        :param retries: how often a request is sent again that was answered with 429, or 503 and
            `Retry-After`, if its body can be sent again.
        :param learn: whether what responses say of the service's limits tightens this one.
        :param at_most: seconds that anything learned holds, whatever was said.
        :param options: those of `Throttled` (`store=`, `using=`, `on_store_error=`, ...) where
            `limit` is a quota.
        :raises DataError: for a bad argument; the message names it.
        :raises SetUpError: for a limit or store of the other flavour.
        """
        self._outbound = Outbound(
            _SYNC,
            Throttled,
            limit,
            key=key,
            cost=cost,
            timeout=timeout,
            retries=retries,
            learn=learn,
            at_most=at_most,
            options=options,
        )
        self._transport = httpx.HTTPTransport() if transport is None else transport

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """The response to a request.

        Raises `RefusedError` when there is no room within the timeout, `DataError` for a key or
        cost that is none, `StoreUnavailableError` or `StateError` when the store cannot decide;
        then nothing was sent.
        """
        response: httpx.Response = finished(
            self._outbound.exchanged(request, lambda: self._transport.handle_request(request))
        )
        return response

    def close(self) -> None:
        """Close the transport behind."""
        self._transport.close()


class AsyncRateLimitTransport(httpx.AsyncBaseTransport):
    """Sends each request of a `httpx.AsyncClient` when its limit has room for it.

        client = httpx.AsyncClient(transport=AsyncRateLimitTransport("100/s"))

    The same as `RateLimitTransport`; `limit` and `store` are those of `throttled.asyncio`, and
    functions of the request may be async. Works in asyncio, and in trio with a `MemoryStore`.
    """

    def __init__(
        self,
        limit: AsyncThrottled | Quotas | Callable[[str], Any],
        transport: httpx.AsyncBaseTransport | None = None,
        *,
        key: str | Callable[[httpx.Request], Any] | None = None,
        cost: int | Callable[[httpx.Request], Any] = 1,
        timeout: float = inf,
        retries: int = 0,
        learn: bool = True,
        at_most: float = AT_MOST,
        **options: Any,
    ) -> None:
        """See `RateLimitTransport`."""
        self._outbound = Outbound(
            _ASYNC,
            AsyncThrottled,
            limit,
            key=key,
            cost=cost,
            timeout=timeout,
            retries=retries,
            learn=learn,
            at_most=at_most,
            options=options,
        )
        self._transport = httpx.AsyncHTTPTransport() if transport is None else transport

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """The response to a request: see `RateLimitTransport.handle_request`."""
        response: httpx.Response = await afinished(
            self._outbound.exchanged(request, lambda: self._transport.handle_async_request(request))
        )
        return response

    async def aclose(self) -> None:
        """Close the transport behind."""
        await self._transport.aclose()


def _host(request: httpx.Request) -> str:
    url = request.url
    return host_key(url.scheme, url.host, url.port)


def _read(response: httpx.Response) -> tuple[int, Iterable[tuple[str, str]]]:
    return response.status_code, response.headers.multi_items()


def _repeatable(request: httpx.Request) -> bool:
    # Bytes, JSON, forms, nothing; not files and generators, which may be used up.
    return isinstance(request.stream, httpx.ByteStream)


_SYNC = Client(_host, _read, httpx.Response.close, _repeatable, RefusedError)
_ASYNC = Client(_host, _read, httpx.Response.aclose, _repeatable, RefusedError)
