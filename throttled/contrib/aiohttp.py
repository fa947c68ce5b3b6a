"""A client middleware for aiohttp that keeps to a limit, and learns the service's own.

session = aiohttp.ClientSession(middlewares=[RateLimitMiddleware("100/s")])
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import inf
from typing import Any

import aiohttp
from aiohttp import ClientHandlerType, ClientRequest, ClientResponse
from aiohttp.payload import BytesPayload

from throttled.asyncio import Throttled
from throttled.contrib.outbound import AT_MOST, Client, Outbound, host_key
from throttled.exceptions import LimitedError
from throttled.settings import Quotas
from throttled.store.policy import afinished

__all__ = ["RateLimitMiddleware", "RefusedError"]


class RefusedError(LimitedError, aiohttp.ClientError):
    """A request was not sent: its limit has no room for it within the timeout.

    Caught as `LimitedError`, and as `aiohttp.ClientError`.
    """


class RateLimitMiddleware:
    """Sends each request of an `aiohttp.ClientSession` when its limit has room for it.

        session = aiohttp.ClientSession(middlewares=[RateLimitMiddleware("100/s")])

    May be used by any number of sessions. The session's own `ClientTimeout(total=...)`, five
    minutes by default, goes on while a request waits; one that it cuts off gives back its slot.
    """

    def __init__(
        self,
        limit: Throttled | Quotas | Callable[[str], Any],
        *,
        key: str | Callable[[ClientRequest], Any] | None = None,
        cost: int | Callable[[ClientRequest], Any] = 1,
        timeout: float = inf,
        retries: int = 0,
        learn: bool = True,
        at_most: float = AT_MOST,
        **options: Any,
    ) -> None:
        """
        :param limit: a `Throttled` of `throttled.asyncio`, or what its `quota=` takes; then kept by
            a sliding window log unless `using=` says otherwise.
        :param key: what is counted together: a key, or a function of the request, async or not; by
            default all requests to one host and port.
        :param cost: what a request takes, or a function of the request, async or not.
        :param timeout: seconds that a request may wait, in the order of asking and with all its
            retries; -1: it is refused at once.
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
            _CLIENT,
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

    async def __call__(self, request: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
        """The response to a request.

        Raises `RefusedError` when there is no room within the timeout, `DataError` for a key or
        cost that is none, `StoreUnavailableError` or `StateError` when the store cannot decide;
        then nothing was sent.
        """
        response: ClientResponse = await afinished(
            self._outbound.exchanged(request, lambda: handler(request))
        )
        return response


def _host(request: ClientRequest) -> str:
    url = request.url
    return host_key(url.scheme, url.host or "", url.port)


def _read(response: ClientResponse) -> tuple[int, Iterable[tuple[str, str]]]:
    return response.status, response.headers.items()


def _repeatable(request: ClientRequest) -> bool:
    # Bytes, JSON, forms, nothing; not files and generators, which may be used up.
    return not request.body or isinstance(request.body, BytesPayload)


_CLIENT = Client(_host, _read, ClientResponse.close, _repeatable, RefusedError)
