"""What strangers may send: each gets a clear answer, and the service does not grow of it."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ResponseReceived
from h2.settings import SettingCodes

from throttled.service.v1.throttled_pb2 import CheckManyRequest, CheckRequest
from throttled.service.v1.throttled_pb2_grpc import RateLimiterStub

pytestmark = [pytest.mark.slow, pytest.mark.realtime]

#: Not a leak: what a process grows to when it is first put to work, in MB.
SOME = 60
POLICIES = """
[policies.api]
quota = "100/h"
"""


class Running:
    """A server in a process of its own, without a store: it counts in memory."""

    def __init__(self, folder: Path) -> None:
        (folder / "policies.toml").write_text(POLICIES, "utf-8")
        command = [sys.executable, "-m", "throttled", "serve", str(folder / "policies.toml")]
        self.process = subprocess.Popen(
            [*command, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "GRPC_VERBOSITY": "NONE"},
        )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().split()[-1]
        self.http = self.process.stdout.readline().split("//")[1].split(":/")[0].split("/")[0]
        options = [("grpc.max_send_message_length", -1)]
        self.channel = grpc.insecure_channel(self.address, options=options)
        self.stub = RateLimiterStub(self.channel)

    def grown(self) -> float:
        """MB that it has in memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text("ascii")
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    def close(self) -> None:
        self.channel.close()
        self.process.terminate()
        assert self.process.wait(timeout=30) == 0
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    server = Running(tmp_path_factory.mktemp("service"))
    try:
        yield server
    finally:
        server.close()


def code_of(error: pytest.ExceptionInfo[grpc.RpcError]) -> grpc.StatusCode:
    code: grpc.StatusCode = error.value.code()  # type: ignore[attr-defined]
    return code


def flood(running: Running, keys: int, first: int) -> None:
    for start in range(first, first + keys, 1000):
        checks = [CheckRequest(policy="api", key=f"key:{n}") for n in range(start, start + 1000)]
        results = running.stub.CheckMany(CheckManyRequest(checks=checks)).results
        assert all(result.decision.allowed for result in results)


def test_a_million_keys(running: Running) -> None:
    flood(running, 200_000, 0)
    before = running.grown()
    flood(running, 800_000, 200_000)
    assert running.grown() - before < SOME
    with urllib.request.urlopen(f"http://{running.http}/stats") as answer:
        stats = json.load(answer)
    (memory,) = [store for store in stats["stores"].values() if store["kind"] == "memory"]
    assert memory["keys"] <= 65_536
    assert len(json.dumps(stats)) < 20_000


def test_keys_of_ten_megabytes(running: Running) -> None:
    check = CheckRequest(policy="api", key="k" * 10_000_000)
    before = running.grown()
    for _ in range(30):
        with pytest.raises(grpc.RpcError) as error:
            running.stub.Check(check)
        assert code_of(error) is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert running.grown() - before < SOME
    with pytest.raises(grpc.RpcError, match="4,097 characters") as error:
        running.stub.Check(CheckRequest(policy="api", key="k" * 4_097))
    assert code_of(error) is grpc.StatusCode.INVALID_ARGUMENT


def test_messages_that_are_none(running: Running) -> None:
    rng = random.Random(1)
    before = running.grown()
    for method in ("Check", "CheckMany", "Peek", "Debit", "Reserve", "Settle", "Reset"):
        call = running.channel.unary_unary(f"/throttled.v1.RateLimiter/{method}")
        for size in [1, 2, 3, 10, 100, 1_000, 100_000] * 10:
            # A field of a number that does not exist would be allowed: no message begins like this.
            with pytest.raises(grpc.RpcError) as error:
                call(b"\xff" + rng.randbytes(size))
            assert code_of(error) is grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(grpc.RpcError) as error:
        running.channel.unary_unary("/throttled.v1.RateLimiter/Chek")(b"")
    assert code_of(error) is grpc.StatusCode.UNIMPLEMENTED
    assert running.grown() - before < SOME


def test_bytes_that_are_no_protocol(running: Running) -> None:
    rng = random.Random(2)
    host, port = running.address.split(":")
    for address in ((host, int(port)), (host, int(running.http.split(":")[1]))):
        for size in (1, 24, 1_000, 100_000):
            with socket.create_connection(address, timeout=10) as line:
                try:
                    line.sendall(rng.randbytes(size))
                    line.shutdown(socket.SHUT_WR)
                    while line.recv(65_536):
                        pass
                except TimeoutError:
                    raise  # an answer that never comes
                except OSError:
                    pass  # it was hung up on, in whichever step
    assert running.stub.Check(CheckRequest(policy="api", key="after")).allowed


def test_slow_readers_of_the_side_port(running: Running) -> None:
    """Who never reads what they asked for holds up nobody else, and little memory."""
    before = running.grown()
    asked = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
    host, port = running.http.split(":")
    with ExitStack() as stack:
        for _ in range(60):
            line = stack.enter_context(socket.socket())
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            line.connect((host, int(port)))
            line.sendall(asked * 50)
        assert running.stub.Check(CheckRequest(policy="api", key="meanwhile"), timeout=20).allowed
        assert running.grown() - before < SOME


def test_slow_readers_of_answers(running: Running) -> None:
    """The same for calls: the other end lets not one byte of an answer through."""
    many = CheckManyRequest(checks=[CheckRequest(policy="api", key="k")] * 1000)
    message = many.SerializeToString()
    body = b"\0" + len(message).to_bytes(4, "big") + message
    headers = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/throttled.v1.RateLimiter/CheckMany"),
        (":authority", running.address),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
    ]
    host, port = running.address.split(":")
    sizes = []
    for _ in range(4):
        with socket.create_connection((host, int(port)), timeout=20) as line:
            wire = H2Connection(H2Configuration(client_side=True))
            wire.initiate_connection()
            wire.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 0})
            for _ in range(100):
                stream = wire.get_next_available_stream_id()
                wire.send_headers(stream, headers)
                line.sendall(wire.data_to_send())
                rest = body
                while rest:
                    room = min(wire.local_flow_control_window(stream), 16_384)
                    if not room:
                        wire.receive_data(line.recv(65_536))
                        line.sendall(wire.data_to_send())
                        continue
                    wire.send_data(stream, rest[:room], end_stream=len(rest) <= room)
                    rest = rest[room:]
                    line.sendall(wire.data_to_send())
            answered = 0
            while answered < 100:  # as far as their heads, which no window holds back
                events = wire.receive_data(line.recv(65_536))
                answered += len([each for each in events if isinstance(each, ResponseReceived)])
            check = CheckRequest(policy="api", key="meanwhile")
            assert running.stub.Check(check, timeout=20).allowed
        sizes.append(running.grown())
    assert sizes[-1] - sizes[0] < SOME


def test_threads_of_strangers(running: Running) -> None:
    """All of it at once, and a caller in the midst of it is answered."""
    stop = threading.Event()
    failed: list[BaseException] = []

    def disturb(seed: int) -> None:
        rng = random.Random(seed)
        call = running.channel.unary_unary("/throttled.v1.RateLimiter/Check")
        while not stop.is_set():
            try:
                call(b"\xff" + rng.randbytes(rng.choice([1, 1_000, 5_000_000])))
            except grpc.RpcError as error:
                code = error.code()  # type: ignore[attr-defined]
                if code not in (
                    grpc.StatusCode.INVALID_ARGUMENT,
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                ):
                    failed.append(error)

    threads = [threading.Thread(target=disturb, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    try:
        for number in range(200):
            check = CheckRequest(policy="api", key=f"calm:{number % 4}")
            assert running.stub.Check(check, timeout=20).allowed
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failed
