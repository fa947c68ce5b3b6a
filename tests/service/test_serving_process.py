"""The service as a process: what it prints and logs, and what signals do."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.servers import HOST, Server, wait_until
from tests.service.sites import Code, prefix
from throttled.service.v1 import throttled_pb2 as v1
from throttled.service.v1.throttled_pb2_grpc import RateLimiterStub

pytestmark = pytest.mark.realtime

RUN = """
import sys
from throttled.exceptions import DataError, SetUpError
from throttled.service.serving import Serving, run
try:
    sys.exit(run(Serving({path!r}, listen={listen!r}, http={http!r}, **{options!r})))
except (DataError, SetUpError) as error:
    sys.exit(f"throttled: {{error}}")
"""

FILE = """
[policies.api]
quota = "{quota}"
using = "fixed_window"
key_prefix = "{prefix}"
"""


class Process:
    """A service of its own, and a channel to it."""

    def __init__(self, path: Path, logs: Path, options: dict[str, Any]) -> None:
        self._logs = logs
        given = {"listen": f"{HOST}:0", "http": f"{HOST}:0", "path": str(path)}
        code = RUN.format(**given, options=options)
        with logs.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "error", "-c", code],
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        assert self.process.stdout is not None
        self.lines = [self.process.stdout.readline().strip() for _ in range(2)]
        self.address = self.lines[0].rpartition(" ")[2]
        self.channel = grpc.insecure_channel(self.address)
        self.stub: Any = RateLimiterStub(self.channel)

    def log(self) -> list[dict[str, Any]]:
        """What was logged, as JSON."""
        return [json.loads(line) for line in self._logs.read_text().splitlines()]

    def events(self) -> list[str]:
        return [line["event"] for line in self.log()]

    def check(self, key: str = "k", **fields: Any) -> Any:
        return self.stub.Check(v1.CheckRequest(policy="api", key=key, **fields), timeout=20)

    def end(self) -> int:
        return self.process.wait(20)


@contextmanager
def process(path: Path, **options: Any) -> Iterator[Process]:
    options.setdefault("log_format", "json")
    running = Process(path, path.parent / f"{prefix()}.log".replace(":", "-"), options)
    try:
        yield running
    finally:
        running.channel.close()
        if running.process.poll() is None:
            running.process.kill()
            running.process.wait()
        assert running.process.stdout is not None
        running.process.stdout.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "policies.toml"
    path.write_text(FILE.format(quota="10/h", prefix="throttled"))
    return path


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_in_order(path: Path, number: int) -> None:
    with process(path) as running:
        assert running.lines[0].startswith(f"gRPC on {HOST}:")
        assert running.lines[1].startswith(f"HTTP on http://{HOST}:")
        assert running.check().allowed
        running.process.send_signal(number)
        assert running.end() == 0
        assert running.events() == ["started", "draining", "stopped"]
        started = running.log()[0]
        assert (started["address"], started["policies"]) == (running.address, ["api"])
        assert (started["level"], started["tls"]) == ("info", False)


def test_a_second_signal_stops_it_at_once(path: Path) -> None:
    with process(path, grace=600.0) as running:
        assert running.check(cost=10).allowed
        # Its slot comes within the grace, as windows go.
        waiting = running.stub.Check.future(
            v1.CheckRequest(policy="api", key="k", timeout=590), timeout=600
        )
        slow = running.stub.Check.future(v1.CheckRequest(policy="api", key="other"))
        assert slow.result(20).allowed
        running.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "draining" in running.events(), "draining")
        running.process.send_signal(signal.SIGTERM)
        assert running.end() == 0
        assert waiting.done() or waiting.exception(20) is not None


ENDS = """
import asyncio
from throttled import MemoryStore
from throttled.asyncio import Throttled
from throttled.asyncio.service import Client
from throttled.service.serving import Serving, serve

store = MemoryStore()
limit = Throttled(quota="1/h", store=store)

async def main():
    begun = asyncio.get_running_loop().create_future()
    serving = Serving({{"api": limit}}, listen="{host}:0", http="{host}:0")
    asyncio.create_task(serve(serving, begun.set_result))
    service = await begun
    api = Client(service.address, decision_timeout=20).policy("api")
    for _ in range({calls}):
        asyncio.create_task(api.limit("k", timeout=1e6))
    while sum(service.servicer.waiting().values()) < {calls} - 1:
        await asyncio.sleep(0.01)

asyncio.run(main())
print(asyncio.run(limit.peek("k")).reset_after <= 3600)
"""


@pytest.mark.parametrize("calls", [0, 3])
def test_a_loop_that_ends_takes_it_along(calls: int) -> None:
    # Nobody has stopped it: `asyncio.run` cancels what there is, the tasks of gRPC included.
    code = ENDS.format(host=HOST, calls=calls)
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr


def test_sighup_reads_the_policies_again(path: Path) -> None:
    with process(path) as running:
        assert running.check().states[0].remaining == 9
        path.write_text(FILE.format(quota="20/h", prefix="throttled"))
        running.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "reloaded" in running.events(), "reloading")
        assert running.check().states[0].remaining == 18
        path.write_text("nonsense")
        running.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "reload_failed" in running.events(), "noticing")
        failed = [line for line in running.log() if line["event"] == "reload_failed"]
        assert str(path) in failed[0]["error"]
        assert running.check().states[0].remaining == 17


def test_what_cannot_be_served_ends_it(path: Path) -> None:
    with process(path) as running:
        code = RUN.format(path=str(path), listen=running.address, http=None, options={})
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=False
        )
        assert done.returncode == 1
        assert (
            done.stderr
            == f"throttled: Cannot listen on {running.address}: Address already in use.\n"
        )
    path.write_text("[policies.api]\nquota = '1/parsec'")
    code = RUN.format(path=str(path), listen=f"{HOST}:0", http=None, options={})
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=False
    )
    assert done.returncode == 1
    assert "policies.api.quota: Invalid quota: '1/parsec'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.server
def test_two_processes_settle_what_either_reserved(path: Path, valkey: Server) -> None:
    path.write_text(FILE.format(quota="100/h", prefix=prefix()))
    options = {"store": valkey.url, "ticket_secret": "shared"}
    with process(path, **options) as one, process(path, **options) as two:
        request = v1.ReserveRequest(policy="api", key="k", cost=50)
        tickets = [one.stub.Reserve(request).ticket for _ in range(2)]
        done = [
            each.stub.Settle.future(v1.SettleRequest(ticket=tickets[0], actual=20))
            for each in (one, two) * 5
        ]
        assert sum([each.result(20).settled for each in done]) == 1
        # Also when the process that has issued it is gone.
        one.process.kill()
        one.end()
        assert two.stub.Settle(v1.SettleRequest(ticket=tickets[1])).settled
        assert two.check(cost=80).allowed
        assert not two.check().allowed
        with pytest.raises(grpc.RpcError) as caught:
            one.stub.Check(v1.CheckRequest(policy="api", key="k"), timeout=5)
        assert caught.value.code() is Code.UNAVAILABLE  # type: ignore[attr-defined]
