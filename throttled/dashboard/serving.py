"""The dashboard as a program: `throttled dashboard`."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import uvicorn

from throttled._text import shown
from throttled.asyncio.policies import load
from throttled.asyncio.throttled import Throttled
from throttled.dashboard.app import Dashboard
from throttled.dashboard.demo import Demo
from throttled.dashboard.guard import LOOPBACK
from throttled.dashboard.sources import OwnLimits, ServiceStats, Source
from throttled.dashboard.streams import ended
from throttled.exceptions import SetUpError
from throttled.service.logs import logger, say, write_to_stderr
from throttled.service.serving import (
    _is_loopback,
    _listening,
    _parsed,
    _shown_address,
    _store_at,
)
from throttled.service.side import Server
from throttled.store.base import AsyncStore

__all__ = ["Showing", "run", "show"]

#: Where a service has its side port, if nobody says otherwise.
SIDE_PORT: Final = 9464
#: Seconds between looks at the policy file.
_EVERY: Final = 1.0
#: Connections at once.
_MOST: Final = 256
#: Limits of a service that are held at once.
_MOST_POLICIES: Final = 1_000


@dataclass(frozen=True, slots=True)
class Showing:
    """What the dashboard shows, and where. With nothing said, a demonstration."""

    #: "host:port" or "[::1]:port"; port 0: any that is free.
    listen: str = "127.0.0.1:8080"
    #: With any of them one may reset keys; none: nothing can be changed.
    tokens: Sequence[str] = field(default=(), repr=False)
    #: A URL: where keys are looked at, and where policies count that name no store.
    store: str | None = field(default=None, repr=False)
    #: The path of a policy file, whose keys may be looked at.
    policies: str | None = None
    #: The address of a service, whose keys may be looked at.
    service: str | None = None
    #: Where its /stats are; by default those of `service`, on port 9464.
    stats: str | None = None
    #: What the service wants to be shown.
    service_token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.service is not None and self.policies is not None:
            raise SetUpError("Invalid policies: with service, which has its own; leave one out.")
        if self.service is not None and self.store is not None:
            raise SetUpError("Invalid store: with service, which has its own; leave one out.")
        try:
            _parsed("listen", self.listen)
        except SetUpError:
            raise SetUpError(
                f"Invalid listen: {shown(self.listen)}, must be such as '127.0.0.1:8080' or "
                f"'[::1]:8080'."
            ) from None
        self.source()

    def source(self) -> Source | None:
        """Where the numbers of a service are had; None without one."""
        if self.stats is not None:
            return ServiceStats(self.stats, token=self.service_token)
        return None if self.service is None else _side_of(self.service, self.service_token)


def run(showing: Showing) -> int:
    """Show until a signal says to stop: SIGTERM or SIGINT.

    Prints the address, and logs to stderr. Returns the exit status. Raises `SetUpError` or
    `DataError` for what cannot be shown: a port that is taken, a policy file with errors.
    """
    write_to_stderr("text")

    def ready(address: str, stop: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        # Not on Windows, where Ctrl-C interrupts `asyncio.run` instead.
        with suppress(NotImplementedError):
            for each in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(each, stop)
        print(f"Dashboard on http://{address}/", flush=True)

    asyncio.run(show(showing, ready))
    return 0


async def show(
    showing: Showing, ready: Callable[[str, Callable[[], None]], Any] | None = None
) -> None:
    """Show until told to stop; `ready` is called with the address and with what stops it."""
    async with AsyncExitStack() as stack:
        arguments = await _what(showing, stack)
        listening = _listening("listen", showing.listen)
        stack.callback(listening.close)
        host, port = listening.getsockname()[:2]
        local = _is_loopback(showing.listen)
        address = _shown_address((host, port))
        hosts = (*LOOPBACK, address.rpartition(":")[0]) if local else None
        app = Dashboard(tokens=showing.tokens, hosts=hosts, **arguments)
        config = uvicorn.Config(
            app,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            log_level="error",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=_MOST,
            timeout_graceful_shutdown=1,
        )
        server = Server(config)
        _warn(showing, local)
        task = asyncio.ensure_future(server.serve(sockets=[listening]))
        try:
            await server.ready.wait()
            say("started", "Shows %s", _shown_source(arguments))

            def stop() -> None:
                server.should_exit = True

            if ready is not None:
                ready(address, stop)
            await asyncio.shield(task)
        finally:
            server.should_exit = True
            await asyncio.gather(task, return_exceptions=True)


async def _what(showing: Showing, stack: AsyncExitStack) -> dict[str, Any]:
    """What a `Dashboard` is to show, all of it closed at the end of the stack."""
    store: Any = None
    if showing.store is not None:
        store = _store_at(showing.store)
        if isinstance(store, AsyncStore):
            stack.push_async_callback(store.close)
    source = showing.source()
    if showing.service is not None:
        from throttled.asyncio.service import Client

        client = Client(showing.service, token=showing.service_token)
        stack.push_async_callback(client.close)
        return {"policies": _OfService(client), "source": source}
    if showing.policies is not None:
        policies = load(Path(showing.policies), store=store)
        stack.push_async_callback(policies.close)
        watching = asyncio.ensure_future(policies.watching(_EVERY))
        stack.push_async_callback(ended, watching)
        return {"policies": policies, "source": source, "store": store}
    if source is not None or store is not None:
        return {"source": source, "store": store}
    demo = Demo()
    stack.push_async_callback(ended, asyncio.ensure_future(demo.run()))
    return {"policies": demo.limits, "source": OwnLimits(demo.limits, made_up=True)}


def _side_of(service: str, token: str | None) -> ServiceStats:
    """The /stats of a service, where they are by default."""
    host, colon, port = service.rpartition(":")
    if not colon or not host or not port.isdecimal() or "/" in host:
        raise SetUpError(
            f"Invalid service: {shown(service)}, must be such as 'localhost:50051'; for "
            f"any other, say where its /stats are."
        )
    return ServiceStats(f"http://{host}:{SIDE_PORT}/stats", token=token)


class _OfService(Mapping[str, Throttled]):
    """The policies of a service, which says itself what it has not."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._policies: dict[str, Throttled] = {}

    def __getitem__(self, name: str) -> Throttled:
        if name not in self._policies:
            if len(self._policies) >= _MOST_POLICIES:
                self._policies = {}
            self._policies[name] = self._client.policy(name)
        return self._policies[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._policies)

    def __len__(self) -> int:
        return len(self._policies)


def _shown_source(arguments: Mapping[str, Any]) -> str:
    source = arguments.get("source")
    return "limits of its own" if source is None else str(source.name)


def _warn(showing: Showing, local: bool) -> None:
    """Say what an operator would want to know."""
    if local:
        return
    logger.warning(
        "Listens on %s, without TLS: whoever reaches it sees limits and keys%s",
        showing.listen,
        ", and tokens travel in the clear" if showing.tokens else "",
        extra={"throttled_event": "unprotected"},
    )
