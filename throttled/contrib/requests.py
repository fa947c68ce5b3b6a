"""An adapter for requests that keeps to a limit, and learns the service's own.

session.mount("https://", RateLimitAdapter("100/s"))
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import inf
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import BaseAdapter, HTTPAdapter

from throttled import Throttled
from throttled.contrib.outbound import AT_MOST, Client, Outbound, host_key
from throttled.exceptions import LimitedError
from throttled.settings import Quotas
from throttled.store.policy import finished

__all__ = ["RateLimitAdapter", "RefusedError"]


class RefusedError(LimitedError, requests.RequestException):
    """A request was not sent: its limit has no room for it within the timeout.

    Caught as `LimitedError`, and as `requests.RequestException`.
    """


class RateLimitAdapter(BaseAdapter):
    """Sends each request of a `requests.Session` when its limit has room for it.

        adapter = RateLimitAdapter("100/s")
        session.mount("https://", adapter)
        session.mount("http://", adapter)

    May be mounted in any number of sessions, and used by any number of threads.
    """

    def __init__(
        self,
        limit: Throttled | Quotas | Callable[[str], Any],
        adapter: BaseAdapter | None = None,
        *,
        key: str | Callable[[requests.PreparedRequest], str] | None = None,
        cost: int | Callable[[requests.PreparedRequest], int] = 1,
        timeout: float = inf,
        retries: int = 0,
        learn: bool = True,
        at_most: float = AT_MOST,
        **options: Any,
    ) -> None:
        """
        :param limit: a `Throttled`, or what its `quota=` takes; then kept by a sliding window log
            unless `using=` says otherwise.
        :param adapter: what sends; a `requests.adapters.HTTPAdapter` by default. Its `max_retries`
            are unseen by the limit. Closed with this one.
        :param key: what is counted together: a key, or a function of the request; by default all
            requests to one host and port.
        :param cost: what a request takes, or a function of the request.
        :param timeout: seconds that a request may wait, in the order of asking and with all its
            retries; -1: it is refused at once. Not the one of `session.get(timeout=...)`, which
            begins when the request is sent.
        :param retries: how often a request is sent again that was answered with 429, or 503 and
            `Retry-After`, if its body can be sent again.
        :param learn: whether what responses say of the service's limits tightens this one.
        :param at_most: seconds that anything learned holds, whatever was said.
        :param options: those of `Throttled` (`store=`, `using=`, `on_store_error=`, ...) where
            `limit` is a quota.
        :raises DataError: for a bad argument; the message names it.
        :raises SetUpError: for a limit or store of the other flavour.
        """
        super().__init__()
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
        self._adapter = HTTPAdapter() if adapter is None else adapter

    def send(
        self, request: requests.PreparedRequest, *args: Any, **kwargs: Any
    ) -> requests.Response:
        """The response to a request.

        Raises `RefusedError` when there is no room within the timeout, `DataError` for a key or
        cost that is none, `StoreUnavailableError` or `StateError` when the store cannot decide;
        then nothing was sent.
        """

        def send() -> requests.Response:
            return self._adapter.send(request, *args, **kwargs)

        try:
            response: requests.Response = finished(self._outbound.exchanged(request, send))
        except RefusedError as error:
            error.request = request
            raise
        # Digest authentication answers over it.
        response.connection = self  # type: ignore[assignment]
        return response

    def close(self) -> None:
        """Close the adapter behind."""
        self._adapter.close()


def _host(request: requests.PreparedRequest) -> str:
    url = urlsplit(request.url or "")
    return host_key(url.scheme, url.hostname or "", url.port)


def _read(response: requests.Response) -> tuple[int, Iterable[tuple[str, str]]]:
    return response.status_code, response.headers.items()


def _repeatable(request: requests.PreparedRequest) -> bool:
    # Bytes, JSON, forms, nothing; not files and generators, which may be used up.
    return request.body is None or isinstance(request.body, bytes | str)


_CLIENT = Client(_host, _read, requests.Response.close, _repeatable, RefusedError)
