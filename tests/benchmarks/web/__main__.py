"""Measures how many requests per second of a trivial route are left behind limiters.

    python -m tests.benchmarks.web              # in memory
    python -m tests.benchmarks.web --plain      # the same by uvicorn without uvloop and httptools
    python -m tests.benchmarks.web --server     # on a Redis or Valkey server, started for it

Each limiter gets an environment of its own under `.benchmarks/`, made once. The servers run on one
core and the load on another, in short rounds that take turns; the numbers are medians of the ratios
of a round.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import subprocess
import sys
import time
import venv
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from tests.servers import Server, binaries

ROOT = Path(__file__).parents[3]
APPS = Path(__file__).parent / "apps"
ENVIRONMENTS = ROOT / ".benchmarks" / "web"
COMMON = ["fastapi", "uvicorn[standard]", "redis[hiredis]"]

#: A name: the environment, the application and its argument, and what it is compared with.
CASES = {
    "Starlette": ("throttled", "starlette_route.py", "bare", None),
    "Starlette, middleware": ("throttled", "starlette_route.py", "middleware", "Starlette"),
    "Starlette, middleware without headers": (
        "throttled",
        "starlette_route.py",
        "no-headers",
        "Starlette",
    ),
    "FastAPI": ("throttled", "fastapi_route.py", "bare", None),
    "FastAPI, throttled, middleware": ("throttled", "fastapi_route.py", "middleware", "FastAPI"),
    "FastAPI, throttled, dependency": ("throttled", "fastapi_route.py", "dependency", "FastAPI"),
    "FastAPI, slowapi": ("slowapi", "fastapi_route.py", "slowapi", "FastAPI"),
    "FastAPI, fastapi-limiter": (
        "fastapi-limiter",
        "fastapi_route.py",
        "fastapi-limiter",
        "FastAPI",
    ),
}

REQUEST = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: */*\r\nUser-Agent: load\r\n\r\n"


def environment(name: str, packages: list[str]) -> Path:
    """The Python of an environment, made if it is not there yet."""
    place = ENVIRONMENTS / name
    python = place / "bin" / "python"
    done = place / "done"
    if not done.exists():
        print(f"making {place}", file=sys.stderr)
        venv.create(place, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
        done.touch()
    return python


class Client(asyncio.Protocol):
    """Asks again as soon as it has an answer."""

    def __init__(self) -> None:
        self.answers = 0
        self._answer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(REQUEST)

    def data_received(self, data: bytes) -> None:
        self._answer += data
        if self._answer.endswith(b"\r\n\r\nhi"):
            if not self._answer.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(self._answer)
            self.answers += 1
            self._answer = b""
            self._transport.write(REQUEST)


async def load(port: int, connections: int, seconds: float) -> float:
    """Requests per second that a server answers to so many connections."""
    loop = asyncio.get_running_loop()
    made = [await loop.create_connection(Client, "127.0.0.1", port) for _ in range(connections)]
    start = loop.time()
    await asyncio.sleep(seconds)
    rate = sum(client.answers for _, client in made) / (loop.time() - start)
    for transport, _ in made:
        transport.abort()
    return rate


def started(python: Path, app: str, kind: str, stack: ExitStack, **variables: str) -> int:
    """The port of a server that is ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    process = subprocess.Popen(
        [python, APPS / app, kind, str(port)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        preexec_fn=lambda: os.sched_setaffinity(0, {0}),
    )
    stack.callback(process.wait)
    stack.callback(process.terminate)
    while process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            time.sleep(0.05)
        else:
            return port
    raise RuntimeError(f"{app} {kind} did not start")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--server", action="store_true", help="keep counts on a server")
    parser.add_argument("--plain", action="store_true", help="uvicorn without its extras")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    chosen = parser.parse_args()
    needs = {
        "throttled": ["cachetools", "anyio"],
        "slowapi": ["slowapi"],
        "fastapi-limiter": ["fastapi-limiter<0.2" if chosen.server else "fastapi-limiter>=0.2"],
    }
    with ExitStack() as stack:
        variables = {
            "BENCH_HTTP": "h11" if chosen.plain else "httptools",
            "BENCH_LOOP": "asyncio" if chosen.plain else "uvloop",
        }
        if chosen.server:
            server = stack.enter_context(Server(next(iter(binaries().values()))))
            variables["BENCH_SERVER"] = server.url
        ports = {}
        for name, (env, app, kind, _) in CASES.items():
            if chosen.server and not name.startswith("FastAPI"):
                continue
            if chosen.only in name or kind == "bare":
                place = f"{env}-server" if chosen.server else env
                python = environment(place, [*COMMON, *needs[env]])
                ports[name] = started(python, app, kind, stack, **variables)
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        rates: dict[str, list[float]] = {name: [] for name in ports}
        for turn in range(chosen.rounds + 1):
            for name, port in ports.items():
                rate = asyncio.run(load(port, chosen.connections, chosen.seconds))
                if turn:  # the first warms up
                    rates[name].append(rate)
    for name, found in rates.items():
        bare = CASES[name][3]
        share = (
            f"{median(mine / whole for mine, whole in zip(found, rates[bare], strict=True)):.2f}"
            if bare
            else "1"
        )
        print(f"{name:40} {median(found):8.0f} requests/s, {share} of the bare route")


if __name__ == "__main__":
    main()
