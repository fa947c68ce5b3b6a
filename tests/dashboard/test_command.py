"""`throttled dashboard`, and where it has its numbers."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.cli.running import PATIENCE, invoke, run
from tests.dashboard.processes import POLICIES, dashboard, service
from tests.dashboard.sites import TOKEN, until
from tests.servers import HOST, Server, free_port
from throttled import RedisStore, load
from throttled.dashboard import ServiceStats
from throttled.exceptions import ServiceUnavailableError, SetUpError
from throttled.service import Client

pytestmark = pytest.mark.realtime


def test_with_nothing_given_there_is_life() -> None:
    with dashboard() as (running, site):
        assert site.get("api/about").json()["made_up"] is True
        first, last = site.told("api/live", 2)
        counts = [each["stats"]["policies"]["api"]["allowed"] for each in (first, last)]
        assert counts[0] < counts[1]
        with site.client.stream("GET", "api/live") as answer:
            # Who watches does not keep it from ending.
            next(answer.iter_lines())
            running.send_signal(signal.SIGINT)
            running.wait(PATIENCE)
        assert running.returncode == 0
        said = running.stderr.read().decode()
        assert "Traceback" not in said
        assert "WARNING" not in said


def test_a_service_is_watched_looked_at_and_reset(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("of the service\n".replace(" ", "-"), "utf-8")
    with service(tmp_path, "--token-file", token) as (address, stats):
        more = ("--service", address, "--stats", stats, "--service-token-file", token)
        with (
            dashboard(*more, THROTTLED_DASHBOARD_TOKEN=TOKEN) as (_, site),
            Client(address, token="of-the-service") as client,
        ):
            api = client.policy("api")
            assert [api.limit("ann").limited for _ in range(6)] == [False] * 5 + [True]
            told = until(lambda: site.told("api/live")[0])
            assert told["error"] is None
            assert told["stats"]["policies"]["api"]["refused"] == 1
            found = site.post("api/key", {"policy": "api", "key": "ann"}).json()
            assert found["rules"][0]["remaining"] == 0
            assert found["stored"]["error"] == "The service does not show what its store holds."
            assert site.reset({"policy": "api", "key": "ann"}).status_code == 200
            assert api.peek("ann").remaining == 5
            answer = site.reset({"policy": "looked", "key": "ann"})
            assert answer.status_code == 403
            assert "does not permit reset" in answer.json()["error"]
            assert site.post("api/key", {"policy": "none", "key": "ann"}).status_code == 404


@pytest.mark.server
def test_policies_on_a_server(tmp_path: Path, valkey: Server) -> None:
    path = tmp_path / "policies.toml"
    path.write_text(POLICIES, "utf-8")
    with (
        RedisStore(valkey.url) as store,
        load(path, store=store) as policies,
        dashboard("--policies", path, "--store", valkey.url) as (_, site),
    ):
        throttle = policies["api"]
        throttle.limit("gil", 2)
        told = site.post("api/key", {"policy": "api", "key": "gil"}).json()
        assert told["rules"][0]["remaining"] == 3
        assert told["stored"]["held"][0]["ttl"] > 0
        prefix = policies.spec("api").key_prefix
        bare = {"key": "gil", "quota": "5/h", "using": "fixed_window", "prefix": prefix}
        assert site.post("api/key", bare).json()["rules"][0]["remaining"] == 3
        assert site.reset({"policy": "api", "key": "gil"}).status_code == 403
        path.write_text(POLICIES.replace("5/h", "7/h"), "utf-8")
        body = {"policy": "api", "key": "gil"}
        until(lambda: site.post("api/key", body).json()["rules"][0]["limit"] == 7)
        throttle.reset("gil")


def test_where_others_can_reach_it_it_warns() -> None:
    with dashboard("--listen", "0.0.0.0:0", "--token", TOKEN) as (running, site):
        assert site.get("api/about", headers={"Host": "any.example"}).status_code == 200
        running.terminate()
        running.wait(PATIENCE)
        said = running.stderr.read().decode()
    assert "whoever reaches it sees limits and keys, and tokens travel in the clear" in said
    assert TOKEN not in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--listen", "8080"], "Invalid listen: '8080', must be such as '127.0.0.1:8080'"),
        (["--stats", "localhost:9464"], "Invalid stats: 'localhost:9464', must be such as 'http"),
        (["--service", "localhost"], "Invalid service: 'localhost', must be such as"),
        (["--service", "x:1", "--store", "memory"], "--service and --store exclude one another"),
        (["--service", "x:1", "--policies", "x"], "--service and --policies exclude one another"),
        (["--token", "a", "--token-file", "b"], "--token and --token-file exclude one another."),
        (["--token", "a b"], "Invalid tokens[0]: must be text without spaces."),
        (["--policies", "nowhere.toml"], "nowhere.toml"),
        (["--store", "nowhere"], "Invalid Redis URL: 'nowhere'"),
    ],
)
def test_wrong_use_is_said_in_a_line(arguments: list[str], said: str) -> None:
    # What is found out at the start is so in a process that logs.
    late = arguments[0] in ("--policies", "--store") or arguments[1:] == ["a b"]
    done = (run if late else invoke)("dashboard", *arguments)
    assert done.code == 2
    assert said in done.err
    assert done.err.startswith("throttled: ")
    assert not done.out


def test_a_port_that_is_taken() -> None:
    with closing(socket.create_server((HOST, 0))) as other:
        address = f"{HOST}:{other.getsockname()[1]}"
        done = run("dashboard", "--listen", address)
    assert done.code == 2
    assert done.err == f"throttled: Cannot listen on {address}: Address already in use.\n"


# -- the /stats of a service -----------------------------------------------------------------------


class Answering(BaseHTTPRequestHandler):
    """Answers as its path says."""

    seen: list[str | None]

    def do_GET(self) -> None:
        type(self).seen.append(self.headers.get("Authorization"))
        status, body = {
            "/stats": (200, {"policies": {}, "stores": {}}),
            "/list": (200, []),
            "/odd": (200, {"policies": {"api": 5}, "stores": {}}),
            "/moved": (302, {}),
            "/closed": (401, {}),
        }[self.path]
        content = json.dumps(body).encode()
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "/stats")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    Answering.seen = []
    made = HTTPServer((HOST, 0), Answering)
    thread = Thread(target=made.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://{HOST}:{made.server_port}"
    made.shutdown()
    made.server_close()
    thread.join(PATIENCE)


async def test_what_a_service_tells(server: str) -> None:
    for url in (server, f"{server}/", f"{server}/stats"):
        assert await ServiceStats(url, token="of-it").stats() == {"policies": {}, "stores": {}}
    assert Answering.seen == ["Bearer of-it"] * 3
    assert "of-it" not in repr(ServiceStats(server, token="of-it"))


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/list", "answers, but not as the /stats of a service does"),
        ("/odd", "answers, but not as the /stats of a service does"),
        ("/closed", "answered 401: it wants a token, or another one"),
        ("/moved", "answered 302"),
    ],
)
async def test_what_is_no_service(server: str, path: str, said: str) -> None:
    with pytest.raises(ServiceUnavailableError, match=said):
        await ServiceStats(f"{server}{path}", token="of-it").stats()
    assert len(Answering.seen) == 1  # it does not follow anybody elsewhere


async def test_a_service_that_is_not_there() -> None:
    url = f"http://{HOST}:{free_port()}/stats"
    with pytest.raises(ServiceUnavailableError, match=r"cannot be had: .*refused"):
        await ServiceStats(url).stats()


@pytest.mark.parametrize(
    "url", ["", "stats", "ftp://x/stats", "http://", "http://u:p@x/", "http://x:y/", None]
)
def test_what_is_no_url(url: Any) -> None:
    with pytest.raises(SetUpError, match="Invalid stats"):
        ServiceStats(url)
