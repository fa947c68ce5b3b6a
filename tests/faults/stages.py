"""What befalls a single server, and what is held to be true of every fault."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import redis
import redis.asyncio

from tests.faults.load import FLAVOURS, OPTIONS, Figures, Flavour, Load, Tasks, Threads, store_of
from tests.servers import Proxy, Server, wait_until
from throttled.asyncio import store as astore
from throttled.store import RedisStore

#: A quota that is used up before the fault, one that is used up after it, and one that never is.
FEW, SOME, MANY = 100, 1500, 1_000_000
#: Seconds that the callers have to themselves before and after a fault.
QUIET = 0.3
#: Seconds: no call takes longer, on a machine that is busy with other things as well …
LONGEST = 1.0
#: … and so long after the end of a fault the server decides again.
SOON = 5.0


@dataclass
class Stage:
    """Servers, how to reach them, and what befalls them."""

    servers: Sequence[Server]
    url: str
    #: Does it, for so many seconds where that is for us to say.
    strike: Callable[[Sequence[Load], float], None]
    #: How often one strike may make the server lose its state.
    losses: int = 0
    keys: Sequence[str] = ("key",)
    #: Of each key; as good as nothing of it comes back.
    quota: int = MANY
    #: Called before the next strike.
    mend: Callable[[], None] = lambda: None

    def store(self, asynchronous: bool, options: dict[str, Any]) -> Any:
        return store_of(self.url, asynchronous, **options)

    def connections(self) -> list[str]:
        """The connections to the servers, but for this one and those that servers make."""
        return [
            line
            for server in self.servers
            if server.running
            for line in server.ask("CLIENT", "LIST", "TYPE", "normal").decode().splitlines()
            # A node that moved keys to another is connected to it for a while.
            if not any(ours in line for ours in ("cmd=client", "cmd=restore", "name=sentinel-"))
        ]


Scene = Callable[[str | None], AbstractContextManager[Stage]]


@dataclass
class Report:
    """What came of a fault for the callers of one flavour and policy."""

    flavour: Flavour
    policy: str
    figures: Figures
    quota: int
    #: How often the server may have lost its state.
    losses: int
    #: What the server has counted at the end.
    counted: int
    #: Seconds from the end of each fault to the next decision of the server.
    recoveries: list[float]
    keys: int = 1

    @property
    def admitted(self) -> int:
        """What the server admitted, by the callers' count."""
        return self.figures.admitted["server"]

    @property
    def bound(self) -> int:
        """The most that the server may have admitted."""
        return self.keys * self.quota * (1 + self.losses)

    def check(self) -> None:
        """What has to be true of every fault."""
        assert self.figures.longest < LONGEST, self
        assert max(self.recoveries) < SOON, self
        assert self.admitted <= self.bound, self
        if not self.losses:
            assert self.admitted <= self.counted, self
        if not self.losses and self.policy == "raise":
            assert self.counted <= self.admitted + self.figures.unknown, self


def watch(
    stage: Stage,
    *,
    policies: Sequence[str] = ("raise",),
    seconds: float = 1.0,
    times: int = 1,
    quota: int = 0,
    options: dict[str, Any] | None = None,
) -> list[Report]:
    """Hammer the servers of a stage with threads and tasks at once, through a fault.

    Checks what has to be true of every fault: who asks is served again, nothing is left behind,
    and no more was admitted than there was.
    """
    threads, connections = set(threading.enumerate()), len(stage.connections())
    loads = [
        kind(
            stage.store(kind.asynchronous, options or {}),
            quota or stage.quota,
            stage.keys,
            policy=policy,
            key_prefix=f"{kind.flavour}-{policy}",
        )
        for kind in FLAVOURS
        for policy in policies
    ]
    recoveries: list[list[float]] = [[] for _ in loads]
    with ExitStack() as stack:
        for load in loads:
            load.start()
            stack.callback(load.stop)
        for load in loads:
            load.await_service(0.0)
        for number in range(times):
            if number:
                stage.mend()
            time.sleep(QUIET)
            stage.strike(loads, seconds)
            ended = time.monotonic()
            for load, found in zip(loads, recoveries, strict=True):
                found.append(load.await_service(ended))
        time.sleep(QUIET)
    wait_until(lambda: set(threading.enumerate()) <= threads, "the end of all threads")
    wait_until(lambda: len(stage.connections()) <= connections, "the end of all connections")
    assert not [task for load in loads for task in load.left_behind]
    losses = times * stage.losses
    reports = [
        Report(
            load.flavour,
            load.policy,
            load.figures(),
            load.quota,
            losses,
            load.counted,
            found,
            len(stage.keys),
        )
        for load, found in zip(loads, recoveries, strict=True)
    ]
    for report in reports:
        report.check()
    return reports


@contextmanager
def kill(binary: str | None = None) -> Iterator[Stage]:
    """kill -9, half a second of nothing, and a start with nothing remembered."""
    with Server(binary) as server:

        def strike(_: Sequence[Load], __: float) -> None:
            server.kill()
            time.sleep(0.5)
            server.start()

        yield Stage([server], server.url, strike, losses=1, quota=FEW)


@contextmanager
def kill_persistent(binary: str | None = None) -> Iterator[Stage]:
    """kill -9, and a start with every write read from disk."""
    with Server(binary, persistent=True) as server:

        def strike(_: Sequence[Load], __: float) -> None:
            server.kill()
            time.sleep(0.5)
            server.start()

        yield Stage([server], server.url, strike)


@contextmanager
def load_snapshot(binary: str | None = None) -> Iterator[Stage]:
    """kill -9, and a start that takes its time to read a snapshot of a moment ago (LOADING)."""
    # It looks up after every 1024 bytes, and rests for 2 ms at every key.
    slow = ["--key-load-delay", "2000", "--loading-process-events-interval-bytes", "1024"]
    with Server(binary, *slow) as server:
        with server.client() as client:
            client.mset({f"filler-{number}": f"{number:0200}" for number in range(1000)})

        def strike(_: Sequence[Load], __: float) -> None:
            server.ask("SAVE")
            server.kill()
            server.start()

        yield Stage([server], server.url, strike, losses=1, quota=FEW)


@contextmanager
def hang(binary: str | None = None) -> Iterator[Stage]:
    """SIGSTOP for two seconds."""
    with Server(binary) as server:

        def strike(_: Sequence[Load], __: float) -> None:
            with server.hung():
                time.sleep(2)

        yield Stage([server], server.url, strike)


def _again_and_again(
    pause: float, *command: str
) -> Callable[[str | None], AbstractContextManager[Stage]]:
    """The fault that is a command, in a loop."""

    @contextmanager
    def scene(binary: str | None = None) -> Iterator[Stage]:
        with Server(binary) as server, server.client() as client:
            client.ping()

            def strike(_: Sequence[Load], seconds: float) -> None:
                end = time.monotonic() + seconds
                while time.monotonic() < end:
                    client.execute_command(*command)
                    time.sleep(pause)

            yield Stage([server], server.url, strike)

    return scene


kill_clients = _again_and_again(0.05, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
flush_scripts = _again_and_again(0.005, "SCRIPT", "FLUSH")


@contextmanager
def no_memory(binary: str | None = None) -> Iterator[Stage]:
    """No memory left, and nothing that may be evicted."""
    with Server(binary, "--maxmemory-policy", "noeviction") as server:

        def strike(_: Sequence[Load], seconds: float) -> None:
            server.ask("CONFIG", "SET", "maxmemory", 1)
            time.sleep(seconds)
            server.ask("CONFIG", "SET", "maxmemory", 0)

        yield Stage([server], server.url, strike)


@contextmanager
def pause(binary: str | None = None) -> Iterator[Stage]:
    """CLIENT PAUSE: the server takes commands, and does none of them for a while."""
    with Server(binary) as server:

        def strike(_: Sequence[Load], seconds: float) -> None:
            server.ask("CLIENT", "PAUSE", round(seconds * 1000))
            time.sleep(seconds)

        yield Stage([server], server.url, strike)


@contextmanager
def busy(binary: str | None = None) -> Iterator[Stage]:
    """Somebody's script that does not end, until it is killed (BUSY)."""
    with Server(binary, "--lua-time-limit", "50") as server:

        def spin() -> None:
            with suppress(redis.ResponseError):  # killed
                server.ask("EVAL", "while true do end", 0)

        def strike(_: Sequence[Load], seconds: float) -> None:
            spinning = threading.Thread(target=spin)
            spinning.start()
            time.sleep(seconds)
            server.ask("SCRIPT", "KILL")
            spinning.join()

        yield Stage([server], server.url, strike)


@contextmanager
def cut(binary: str | None = None) -> Iterator[Stage]:
    """A network that cuts every tenth reply or so in half, and the connection with it."""
    with Server(binary) as server, Proxy(server) as proxy:

        def strike(loads: Sequence[Load], seconds: float) -> None:
            begin = time.monotonic()
            # Chance may spare one of them for as long: then until it was hit as well.
            while (now := time.monotonic()) < begin + seconds or (
                now < begin + 20 and not all(load.figures().unknown for load in loads)
            ):
                proxy.caught, proxy.mode = threading.Event(), "half"
                proxy.caught.wait(1)
                proxy.mode = "pass"
                time.sleep(0.05)

        yield Stage([server], proxy.url, strike)


class _Lent(RedisStore):
    """A store over a client of ours, which is closed with it."""

    def close(self) -> None:
        super().close()
        self._client.close()


class _AsyncLent(astore.RedisStore):
    async def close(self) -> None:
        await super().close()
        await self._client.aclose()


@dataclass
class _LentStage(Stage):
    def store(self, asynchronous: bool, options: dict[str, Any]) -> Any:
        kind = redis.asyncio.Redis if asynchronous else redis.Redis
        client: Any = kind.from_url(self.url, max_connections=1)
        return (_AsyncLent if asynchronous else _Lent)(
            client=client, options={**OPTIONS, **options}
        )


@contextmanager
def full_pool(binary: str | None = None) -> Iterator[Stage]:
    """A client of the user's, of whose pool the only connection is in use."""
    with Server(binary) as server:

        def strike(loads: Sequence[Load], seconds: float) -> None:
            holding = [
                threading.Thread(
                    target=_hold if isinstance(load, Threads) else _ahold, args=(load, seconds)
                )
                for load in loads
            ]
            for thread in holding:
                thread.start()
            for thread in holding:
                thread.join()

        yield _LentStage([server], server.url, strike)


def _hold(load: Load, seconds: float) -> None:
    pool = load.store._client.connection_pool
    while True:
        with suppress(redis.ConnectionError):
            held = pool.get_connection()
            break
    time.sleep(seconds)
    pool.release(held)


def _ahold(load: Tasks, seconds: float) -> None:
    async def hold() -> None:
        pool = load.store._client.connection_pool
        while True:
            with suppress(redis.ConnectionError):
                held = await pool.get_connection()
                break
            await asyncio.sleep(0)
        await asyncio.sleep(seconds)
        await pool.release(held)

    load.within(hold())


#: By what they are called in the tables.
SCENES: dict[str, Scene] = {
    "`kill -9`, restart, nothing kept": kill,
    "`kill -9`, restart, all on disk": kill_persistent,
    "`kill -9`, restart from a snapshot": load_snapshot,
    "`SIGSTOP` for two seconds": hang,
    "`CLIENT KILL` in a loop": kill_clients,
    "`SCRIPT FLUSH` in a loop": flush_scripts,
    "`maxmemory`, `noeviction`": no_memory,
    "`CLIENT PAUSE`": pause,
    "another script runs on": busy,
    "replies cut in the middle": cut,
    "the pool is used up": full_pool,
}
