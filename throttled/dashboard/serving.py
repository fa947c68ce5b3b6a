"""The dashboard as a program: `throttled dashboard`."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from socket import gethostname
from typing import Any, Final

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from throttled._text import shown
from throttled.asyncio.policies import load
from throttled.asyncio.throttled import Throttled
from throttled.dashboard.app import Dashboard
from throttled.dashboard.demo import Demo
from throttled.dashboard.guard import LOOPBACK, Names
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
#: Seconds after which a connection is broken off that is idle at its other end.
_STALLED: Final = 10.0
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
    #: Whether to ask it by TLS; so it is, too, if one of the next three is given.
    tls: bool = False
    #: The file of the authorities to trust, by default those of the system.
    ca: str | None = None
    #: The file of a certificate, for a service that asks for one, and that of its key.
    cert: str | None = None
    key: str | None = None
    #: Names that it is asked for by, besides addresses; "*": any.
    hosts: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.service is not None and self.policies is not None:
            raise SetUpError("Invalid policies: with service, which has its own; leave one out.")
        for host in self.hosts:
            if not host or not host.isprintable() or any(each in host for each in "/: "):
                raise SetUpError(
                    f"Invalid host: {shown(host)}, must be a name such as 'limits.example.org', "
                    f"or '*'."
                )
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
        if self.stats is None:
            if self.service is None:
                return None
            url = _side_of(self.service, self.encrypted and self.service_token is not None)
        else:
            url = self.stats
        return ServiceStats(url, token=self.service_token, ca=self.ca, cert=self.cert, key=self.key)

    @property
    def encrypted(self) -> bool:
        """Whether the service is asked by TLS."""
        return self.tls or any(each is not None for each in (self.ca, self.cert, self.key))

    def names(self, address: str) -> Container[str] | None:
        """What it answers to where it listens at an address; None: whatever it is called."""
        given = [host.lower() for host in self.hosts]
        if "*" in given:
            return None
        if _is_loopback(self.listen):
            return (*LOOPBACK, address.rpartition(":")[0], *given)
        own = [gethostname().lower(), "localhost"]
        return Names([*own, *given])


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
        address = _shown_address((host, port))
        app = Dashboard(tokens=showing.tokens, hosts=showing.names(address), **arguments)
        config = uvicorn.Config(
            app,
            http=_Heeding,
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
        _warn(showing)
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

        client = Client(
            showing.service,
            token=showing.service_token,
            tls=showing.tls,
            ca=showing.ca,
            cert=showing.cert,
            key=showing.key,
        )
        stack.push_async_callback(client.close)
        return {"policies": _OfService(client), "source": source, "store": store}
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


def _side_of(service: str, secret: bool) -> str:
    """The URL of the /stats of a service, where they are by default.

    `secret`: whether a token goes there that is to be seen by nobody on the way.
    """
    host, colon, port = service.rpartition(":")
    if not colon or not host or not port.isdecimal() or "/" in host:
        raise SetUpError(
            f"Invalid service: {shown(service)}, must be such as 'localhost:50051'; for "
            f"any other, say where its /stats are."
        )
    url = f"http://{host}:{SIDE_PORT}/stats"
    if secret and not _is_loopback(service):
        raise SetUpError(
            f"Invalid stats: None, must be said with TLS and a token: at {url}, where they are by "
            f"default, the token would travel in the clear."
        )
    return url


class _Heeding(H11Protocol):
    """A connection that is broken off when its other end does not ask, or does not read."""

    _patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait(lambda: getattr(self, "cycle", None) is None)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._wait(lambda: True)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._done()

    def connection_lost(self, exc: Exception | None) -> None:
        self._done()
        super().connection_lost(exc)

    def _wait(self, still: Callable[[], bool]) -> None:
        self._done()
        # Not closed: that would wait for the other end to read what was written.
        self._patience = self.loop.call_later(
            _STALLED, lambda: self.transport.abort() if still() else None
        )

    def _done(self) -> None:
        if self._patience is not None:
            self._patience.cancel()


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
    """What there is to look at, for the log."""
    source = arguments.get("source")
    if isinstance(source, OwnLimits):
        return "limits and callers that are made up"
    if source is not None:
        return str(source.name)
    if arguments.get("policies") is not None:
        return f"the policies of {arguments['policies'].path}"
    return f"keys of {arguments['store']!r}, and nothing live: no limits are given"


def _warn(showing: Showing) -> None:
    """Say what an operator would want to know."""
    if _is_loopback(showing.listen):
        return
    logger.warning(
        "Listens on %s, without TLS: whoever reaches it sees limits and keys%s",
        showing.listen,
        ", and tokens travel in the clear" if showing.tokens else "",
        extra={"throttled_event": "unprotected"},
    )
