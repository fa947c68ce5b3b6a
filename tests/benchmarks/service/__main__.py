"""Measures how many decisions a second the service takes, as a multiple of a bare gRPC echo.

    python -m tests.benchmarks.service              # counts in memory
    python -m tests.benchmarks.service --server     # on a Redis or Valkey server, started for it

The servers run on one core and the load on another, in short rounds that take turns; the numbers
are medians of the ratios of a round.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import grpc

from tests.servers import Server, binaries
from tests.servers.process import free_port
from throttled.asyncio.service import Client
from throttled.service.v1.throttled_pb2 import CheckManyRequest, CheckRequest
from throttled.service.v1.throttled_pb2_grpc import RateLimiterStub

#: Calls under way at once.
WIDTH = 64
#: Decisions in one message.
BATCH = 100
CHECK = CheckRequest(policy="api", key="user:1")
MANY = CheckManyRequest(checks=[CheckRequest(policy="api", key=f"user:{n}") for n in range(BATCH)])
POLICIES = '[policies.api]\nquota = "1_000_000_000/s"\n'

#: One call, and how many decisions it is.
Call = Callable[[], Awaitable[Any]]


async def echoed(request: Any, context: Any) -> Any:
    return request


async def serve_echo(port: int) -> None:
    """The bare echo: the least that a service over gRPC can do."""
    server = grpc.aio.server()
    handlers = {
        "Echo": grpc.unary_unary_rpc_method_handler(
            echoed,
            request_deserializer=CheckRequest.FromString,
            response_serializer=CheckRequest.SerializeToString,
        )
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bare", handlers),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


@contextmanager
def process(*arguments: str) -> Iterator[None]:
    """A server of its own, on the first core."""
    quiet = subprocess.DEVNULL
    running = subprocess.Popen([sys.executable, *arguments], stdout=quiet, stderr=quiet)
    os.sched_setaffinity(running.pid, {0})
    try:
        yield
    finally:
        running.send_signal(signal.SIGTERM)
        running.wait(timeout=30)


async def rate(call: Call, decisions: int, seconds: float) -> float:
    """Decisions a second."""
    done = 0
    end = time.perf_counter() + seconds

    async def ask() -> None:
        nonlocal done
        while time.perf_counter() < end:
            await call()
            done += decisions

    began = time.perf_counter()
    await asyncio.gather(*[ask() for _ in range(WIDTH)])
    return done / (time.perf_counter() - began)


async def measure(arguments: argparse.Namespace, url: str | None) -> None:
    ports = free_port(), free_port()
    with tempfile.TemporaryDirectory() as folder:
        policies = Path(folder) / "policies.toml"
        policies.write_text(POLICIES, "utf-8")
        address = f"127.0.0.1:{ports[1]}"
        ours = ["-m", "throttled", "serve", str(policies), "--listen", address, "--http", "off"]
        async with AsyncExitStack() as stack:
            enter = stack.enter_async_context
            stack.enter_context(process("-m", __spec__.name, "--echo", str(ports[0])))
            stack.enter_context(process(*ours, *(["--store", url] if url else [])))
            bare = await enter(grpc.aio.insecure_channel(f"127.0.0.1:{ports[0]}"))
            channel = await enter(grpc.aio.insecure_channel(address))
            for each in (bare, channel):
                await asyncio.wait_for(each.channel_ready(), 30)
            client = await enter(Client(address))
            stub, throttle = RateLimiterStub(channel), client.policy("api")
            echo = bare.unary_unary(
                "/bare/Echo", CheckRequest.SerializeToString, CheckRequest.FromString
            )
            cases: dict[str, tuple[Call, int]] = {
                "a bare echo": (lambda: echo(CHECK), 1),
                "Check": (lambda: stub.Check(CHECK), 1),
                f"CheckMany of {BATCH}": (lambda: stub.CheckMany(MANY), BATCH),
                f"the client, {WIDTH} tasks": (lambda: throttle.limit("user:1"), 1),
            }
            assert (await stub.Check(CHECK)).allowed
            answers = (await stub.CheckMany(MANY)).results
            assert [each.decision.allowed for each in answers] == [True] * BATCH
            rounds: list[dict[str, float]] = []
            for number in range(arguments.rounds + 1):
                rates = {
                    name: await rate(call, decisions, arguments.seconds)
                    for name, (call, decisions) in cases.items()
                }
                if number:  # the first one is for warming up
                    rounds.append(rates)
            print(f"{'':24}{'decisions/s':>12}{'to the echo':>12}   lowest to highest")
            for name in cases:
                ratios = sorted(each[name] / each["a bare echo"] for each in rounds)
                speed = median(each[name] for each in rounds)
                print(
                    f"{name:24}{speed:>12,.0f}{median(ratios):>12.2f}"
                    f"   {ratios[0]:.2f} to {ratios[-1]:.2f}"
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--server", action="store_true", help="count on a server")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--echo", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.echo:
        asyncio.run(serve_echo(arguments.echo))
        return
    os.sched_setaffinity(0, {1})
    with ExitStack() as stack:
        url = None
        if arguments.server:
            url = stack.enter_context(Server(next(iter(binaries().values())))).url
        asyncio.run(measure(arguments, url))


if __name__ == "__main__":
    main()
