"""The process of the service: addresses, certificates, signals, and stopping in order.

    sys.exit(run(Serving("policies.toml", listen="0.0.0.0:50051", tokens=(token,))))

Stopping
--------
1. Health says NOT_SERVING, `/healthz` 503, and no new calls are taken.
2. Who waits for a slot that comes too late is sent away at once (UNAVAILABLE) and gives it back;
   what is under way may end, for so many seconds (`grace`). A second signal: not one more.
3. What is left is cancelled, which gives back slots; then side port, policies and stores close.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import signal
import socket
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_address
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Final, get_args

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc  # type: ignore[import-untyped]
from prometheus_client import CollectorRegistry, ProcessCollector

from throttled._text import shown
from throttled.asyncio.policies import load
from throttled.asyncio.store import MemoryStore, RedisStore
from throttled.asyncio.throttled import Throttled
from throttled.contrib.prometheus import Metrics
from throttled.exceptions import SetUpError
from throttled.service.certificates import credentials_of
from throttled.service.logs import LogFormat, logger, say, write_to_stderr
from throttled.service.server import SERVICE, Servicer
from throttled.service.side import Side, SideServer
from throttled.service.tickets import Tickets
from throttled.service.tokens import Guard, Tokens
from throttled.service.told import told
from throttled.store.base import AsyncStore, Store

__all__ = ["Running", "Serving", "run", "serve"]

#: Bytes that a message may have.
MOST_BYTES: Final = 4 * 1024 * 1024

#: Seconds between looks at the policy file.
_EVERY: Final = 1.0
#: Seconds that answers have to leave, once they are made.
_LEAVING: Final = 0.2
#: Seconds that giving back may take at the end.
_GIVING_BACK: Final = 6.0

#: Addresses, for messages.
_SUCH: Final = {
    "listen": "'127.0.0.1:50051', '[::1]:50051' or 'unix:/path'",
    "http": "'127.0.0.1:9464' or '[::1]:9464'",
}

_OPTIONS: Final = (
    # Or two processes would share the port, each with half of the calls and its own memory.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", MOST_BYTES),
    # Clients may look every ten seconds whether we are there, also when they ask for nothing.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    # What one connection may have under way, waits included: its answers are kept until it reads.
    ("grpc.max_concurrent_streams", 4_096),
    # One that does not read any more is given up.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
)


@dataclass(frozen=True, slots=True)
class Serving:
    """How the service is to run."""

    #: A policy file, or limits of `throttled.asyncio` by name.
    policies: str | PathLike[str] | Mapping[str, Throttled]
    #: Where policies count that name no store: a URL, a store of `throttled.asyncio`, or None: as
    #: the file says, else in memory.
    store: str | Store | AsyncStore | None = field(default=None, repr=False)
    #: "host:port", "[::1]:port" or "unix:/path"; port 0: any that is free.
    listen: str = "127.0.0.1:50051"
    #: The side port, "host:port"; None: none.
    http: str | None = "127.0.0.1:9464"
    #: Bearer tokens, any of which will do; none: whoever reaches the service may call it.
    tokens: Sequence[str] = field(default=(), repr=False)
    #: Paths of PEM files: the server's certificate and key, and whose clients are let in.
    tls_cert: str | PathLike[str] | None = None
    tls_key: str | PathLike[str] | None = None
    tls_client_ca: str | PathLike[str] | None = None
    #: Seconds that calls under way get when the service stops.
    grace: float = 10.0
    log_format: LogFormat = "text"
    #: What signs tickets; by default the tokens.
    ticket_secret: str | None = field(default=None, repr=False)
    #: Seconds for which a reservation may be settled.
    ticket_ttl: float = 3600.0

    def __post_init__(self) -> None:
        if not isinstance(self.grace, int | float) or isinstance(self.grace, bool):
            raise SetUpError(f"Invalid grace: {shown(self.grace)}, must be seconds of 0 or more.")
        if not 0 <= self.grace <= 3600:
            raise SetUpError(f"Invalid grace: {shown(self.grace)}, must be seconds from 0 to 3600.")
        if self.log_format not in get_args(LogFormat):
            raise SetUpError(
                f"Invalid log_format: {shown(self.log_format)}, must be 'text' or 'json'."
            )
        if (self.tls_cert is None) != (self.tls_key is None):
            given, missing = ("tls_cert", "tls_key") if self.tls_cert else ("tls_key", "tls_cert")
            raise SetUpError(f"Invalid {given}: it is of no use without {missing}.")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise SetUpError(
                "Invalid tls_client_ca: it is of no use without tls_cert and tls_key, for clients "
                "show certificates only to a server that has one."
            )


def run(serving: Serving) -> int:
    """Serve until a signal says to stop: SIGTERM or SIGINT; SIGHUP reads the policy file again.

    Prints a line for each address, and logs to stderr. Returns the exit status. Raises `SetUpError`
    or `DataError` for what cannot be served: a port that is taken, a certificate that does not
    hold, a policy file with errors.
    """
    write_to_stderr(serving.log_format)

    def ready(running: Running) -> None:
        _listen_to_signals(running)
        for address in running.told_addresses():
            print(address, flush=True)

    asyncio.run(serve(serving, ready))
    return 0


async def serve(serving: Serving, ready: Callable[[Running], Any] | None = None) -> None:
    """Serve until `ready`, which is called with what runs, has it stopped: `await running.stop()`.

    A task that is cancelled stops at once.
    """
    running = Running(serving)
    try:
        await running.start()
        if ready is not None:
            ready(running)
        await running.stopped.wait()
    finally:
        await running.stop(0.0)


class Running:
    """A service that runs."""

    def __init__(self, serving: Serving) -> None:
        self.serving = serving
        #: Where it listens: with the port, if that was left open.
        self.address = ""
        self.http_address: str | None = None
        #: Set when it has stopped.
        self.stopped = asyncio.Event()
        self.servicer: Servicer
        self.policies: Any = None
        self.tokens = Tokens(serving.tokens)
        secret = serving.ticket_secret
        self.tickets = Tickets([secret] if secret else serving.tokens, serving.ticket_ttl)
        self.began = time.monotonic()
        self._started = False
        self._store: Any = None
        self._server: Any = None
        # What gRPC accepts calls by.
        self._accepting: list[asyncio.Task[Any]] = []
        self._side: SideServer | None = None
        self._health: Any = None
        self._metrics: Any = None
        self._tasks: list[asyncio.Task[Any]] = []
        # Set when the grace is over.
        self._hurry = asyncio.Event()
        self._stopping: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Load the policies and listen. Raises `SetUpError` or `DataError` if that cannot be."""
        serving = self.serving
        credentials = credentials_of(serving)
        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._metrics = Metrics(registry)
        self.policies = self._loaded()
        self.servicer = Servicer(self.policies, tickets=self.tickets, watch=[self._measure])
        self.servicer.begin()
        interceptors = [Guard(self.tokens)] if self.tokens else []
        self._server = grpc.aio.server(interceptors=interceptors, options=_OPTIONS)
        self.servicer.add_to(self._server)
        self._health = _aio(health).HealthServicer()
        await self._health.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self.address = _bound(self._server, serving.listen, credentials)
        if serving.http is not None:
            listening = _listening("http", serving.http)
            self.http_address = _shown_address(listening.getsockname())
            stats, healthy = partial(told, self), lambda: self._stopping is None
            self._side = SideServer(Side(registry, stats, healthy, self.tokens), listening)
            await self._side.start()
        others = asyncio.all_tasks()
        await self._server.start()
        self._accepting = [each for each in asyncio.all_tasks() - others if _accepts(each)]
        if hasattr(self.policies, "watching"):
            self._tasks = [
                asyncio.ensure_future(each)
                for each in (self.policies.watching(_EVERY), self._follow())
            ]
        self._started = True
        self._warn()
        fields = {"address": self.address, "http": self.http_address, "tls": bool(credentials)}
        names = sorted(self.policies)
        say("started", "Has started, policies in force: %d", len(names), policies=names, **fields)

    def _loaded(self) -> Any:
        serving = self.serving
        if isinstance(serving.policies, Mapping):
            return serving.policies
        self._store = serving.store
        if isinstance(serving.store, str):
            self._store = _store_at(serving.store)
        return load(Path(fspath(serving.policies)), store=self._store)

    def _measure(self, name: str, throttle: Throttled) -> None:
        """Measure a policy from its first call on."""
        # There may have been another limit of that name, which is not in use any more.
        self._metrics.watch(throttle, name, replace=True)

    async def _follow(self) -> None:
        """Watch policies that were loaded anew, also before somebody asks for them."""
        loaded = self.policies.loaded_at
        while True:
            await asyncio.sleep(_EVERY / 4)
            if self.policies.loaded_at != loaded:
                loaded = self.policies.loaded_at
                self.servicer.begin()

    def _warn(self) -> None:
        """Say what an operator would want to know."""
        serving = self.serving
        local = self.address.startswith("unix:") or _is_loopback(self.address)
        if not local and not self.tokens and serving.tls_client_ca is None:
            logger.warning(
                "Listens on %s without a token and without client certificates: whoever reaches "
                "it may ask, charge and reset",
                self.address,
                extra={"throttled_event": "unprotected"},
            )
        elif not local and serving.tls_cert is None:
            logger.warning(
                "Listens on %s without TLS: tokens and keys travel in the clear",
                self.address,
                extra={"throttled_event": "unencrypted"},
            )

    def told_addresses(self) -> list[str]:
        """A line for each address."""
        kind = "gRPC" if self.serving.tls_cert is None else "gRPC over TLS"
        lines = [f"{kind} on {self.address}"]
        if self.http_address is not None:
            lines.append(f"HTTP on http://{self.http_address}/ (metrics, stats, healthz)")
        return lines

    def reload(self) -> None:
        """Look at the policy file now, whether or not it seems to have changed."""
        if hasattr(self.policies, "touch"):
            self.policies.touch()

    @property
    def draining(self) -> bool:
        """Whether it is about to stop."""
        return self._stopping is not None

    async def stop(self, grace: float | None = None) -> None:
        """Stop in order, see the top of this module. Said again, with less grace: sooner."""
        grace = self.serving.grace if grace is None else grace
        asyncio.get_running_loop().call_later(grace, self._hurry.set)
        if self._stopping is None:
            self._stopping = asyncio.ensure_future(self._stop(grace))
        await asyncio.shield(self._stopping)

    async def _stop(self, grace: float) -> None:
        try:
            if self._started:
                await self._drain(grace)
            elif self._server is not None:
                await self._server.stop(None)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            if self._side is not None:
                await self._side.stop()
            await self._close()
            self.stopped.set()
        if self._started:
            say("stopped", "Has stopped")

    async def _drain(self, grace: float) -> None:
        under_way = self.servicer.running
        say("draining", "Stops within %g s, %d calls under way", grace, under_way, calls=under_way)
        await self._health.enter_graceful_shutdown()
        # `asyncio.run` cancels all tasks in the end, those of gRPC too, and to stop a server after
        # that breaks the process off. Nobody is answered any more: it is left as it is.
        if any(task.cancelling() for task in self._accepting):
            _left_behind(self._server.__dict__.pop("_server"))
        else:
            await self._leave(grace)
        # Calls that were cancelled give back what they took.
        await _first_of(self.servicer.ended(), asyncio.sleep(_GIVING_BACK))

    async def _leave(self, grace: float) -> None:
        """Let calls under way end."""
        stopping = asyncio.ensure_future(self._server.stop(grace))
        self.servicer.leave(grace)
        await _first_of(self.servicer.idle(), self._hurry.wait())
        # Answers that are made have yet to leave. Those who watch our health never end.
        await asyncio.wait([stopping], timeout=_LEAVING)
        await self._server.stop(None)
        await stopping

    async def _close(self) -> None:
        if self.policies is not self.serving.policies and self.policies is not None:
            await self.policies.close()
        if isinstance(self.serving.store, str) and isinstance(self._store, AsyncStore):
            await self._store.close()


def _left_behind(server: Any) -> None:
    """Have nobody let go of a server, not even Python at its end: that would stop it."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(server))


def _accepts(task: asyncio.Task[Any]) -> bool:
    """Whether that is the task by which gRPC accepts calls, as long as it serves."""
    return getattr(task.get_coro(), "__name__", "") == "_server_main_loop"


async def _first_of(*waits: Coroutine[Any, Any, Any]) -> None:
    """Wait for whichever is over first."""
    tasks = [asyncio.ensure_future(each) for each in waits]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _listen_to_signals(running: Running) -> None:
    loop = asyncio.get_running_loop()
    stops: list[asyncio.Task[None]] = []

    def stop() -> None:
        # The first in order, the second at once.
        grace = 0.0 if stops else None
        stops.append(asyncio.ensure_future(running.stop(grace)))

    # Not on Windows, where Ctrl-C interrupts `asyncio.run` instead.
    with suppress(NotImplementedError):
        for each in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(each, stop)
        loop.add_signal_handler(signal.SIGHUP, running.reload)


def _aio(module: Any) -> Any:
    """The part of a module for `grpc.aio`, which types do not know of."""
    return module.aio


def _store_at(url: str) -> Any:
    """The store that a URL means."""
    if url == "memory":
        return MemoryStore()
    return RedisStore(url)


# -- addresses -------------------------------------------------------------------------------------


def _parsed(what: str, address: str) -> tuple[str, int]:
    host, colon, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        colon = ""
    if not colon or not host or not port.isdecimal() or int(port) > 65_535:
        raise SetUpError(f"Invalid {what}: {shown(address)}, must be such as {_SUCH[what]}.")
    return host, int(port)


def _listening(what: str, address: str) -> socket.socket:
    """A socket that listens there; `SetUpError` says why not."""
    host, port = _parsed(what, address)
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise _unable(address, error) from None


def _unable(address: str, error: OSError) -> SetUpError:
    # What asyncio and `socket` add to the text says the address once more.
    number = error.errno or 0
    why = os.strerror(number) if number > 0 else error.strerror or error
    return SetUpError(f"Cannot listen on {address}: {why}.")


def _check_socket(address: str) -> None:
    """`SetUpError` if nobody can listen at a path, or somebody does.

    gRPC would take it from a service that runs, for it removes what is left of those that do not.
    """
    path = Path(address.removeprefix("unix:").removeprefix("//"))
    if not path.name:
        raise SetUpError(f"Invalid listen: {shown(address)}, must be such as {_SUCH['listen']}.")
    if not path.parent.is_dir():
        raise _unable(address, FileNotFoundError(errno.ENOENT, ""))
    try:
        if path.exists() and not path.is_socket():
            raise FileExistsError(errno.EEXIST, "")
        with socket.socket(socket.AF_UNIX) as probe, suppress(FileNotFoundError):
            probe.connect(str(path))
            raise OSError(errno.EADDRINUSE, "")
    except ConnectionRefusedError:
        pass  # it was left behind
    except OSError as error:
        raise _unable(address, error) from None


def _shown_address(name: Any) -> str:
    host, port = name[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _bound(server: Any, address: str, credentials: Any) -> str:
    """Have the server listen, and say where."""
    if not isinstance(address, str):
        raise SetUpError(f"Invalid listen: {shown(address)}, must be text: '127.0.0.1:50051'.")
    unix = address.startswith("unix:")
    # gRPC does not say why it could not, so somebody who does is asked first.
    if unix:
        _check_socket(address)
    else:
        _listening("listen", address).close()
    try:
        if credentials is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
    except RuntimeError:
        raise SetUpError(f"Cannot listen on {address}.") from None
    return address if unix else f"{address.rpartition(':')[0]}:{port}"


def _is_loopback(address: str) -> bool:
    host = _parsed("listen", address)[0]
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
