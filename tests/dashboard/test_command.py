"""`throttled dashboard`, and where it has its numbers."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import ssl
from collections.abc import Iterator
from contextlib import closing, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import trustme

from tests.cli.running import PATIENCE, invoke, run
from tests.dashboard.processes import POLICIES, dashboard, service
from tests.dashboard.sites import TOKEN, until
from tests.servers import HOST, Server, free_port
from throttled import RedisStore, load
from throttled.dashboard import ServiceStats
from throttled.dashboard.serving import Showing, show
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
            assert found["stored"]["error"].startswith("The service does not show what its store")
            assert found["hidden"] is False
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


@pytest.mark.server
def test_what_the_store_of_a_service_holds(tmp_path: Path, valkey: Server) -> None:
    with service(tmp_path, "--store", valkey.url) as (address, stats):
        of_it = ("--service", address, "--stats", stats, "--store", valkey.url)
        with dashboard(*of_it) as (_, site), Client(address) as client:
            api = client.policy("api")
            api.limit("ivy", 2)
            assert site.get("api/about").json()["bare"] is True
            named = site.post("api/key", {"policy": "api", "key": "ivy"}).json()
            assert named["rules"][0]["remaining"] == 3
            prefix = "throttled:api"
            bare = {"key": "ivy", "quota": "5/h", "using": "fixed_window", "prefix": prefix}
            (held,) = site.post("api/key", bare).json()["stored"]["held"]
            assert held["name"] == "throttled:api:v1:fixed_window:3600000000:{ivy}"
            assert [{**each, "ttl": held["ttl"]} for each in named["stored"]["held"]] == [held]
            assert {each["name"]: each["shown"] for each in held["fields"]}["count"] == "2"
            assert held["ttl"] > 0
            api.reset("ivy")


@pytest.mark.server
def test_what_the_store_of_a_service_holds_under_hidden_names(
    tmp_path: Path, valkey: Server
) -> None:
    said = f"""
        stores.main = {{ url = "{valkey.url}", hash_keys = true }}
        policies.api = {{ quota = "5/h", store = "main" }}
    """
    with service(tmp_path, said=said) as (address, stats):
        watching = ("--service", address, "--stats", stats, "--store", valkey.url)
        with dashboard(*watching) as (_, site):
            found = site.post("api/key", {"policy": "api", "key": "ivy"}).json()
            assert found["hidden"] is True
            assert found["stored"]["held"] is None
            assert "hides its keys" in found["stored"]["error"]


def test_a_service_is_asked_by_tls(tmp_path: Path) -> None:
    authority = trustme.CA()
    paths = {name: tmp_path / f"{name}.pem" for name in ("ca", "cert", "key", "own", "own_key")}
    authority.cert_pem.write_to_path(paths["ca"])
    for names, issued in (
        (("cert", "key"), authority.issue_cert("localhost")),
        (("own", "own_key"), authority.issue_cert("dashboard@example.org")),
    ):
        issued.cert_chain_pems[0].write_to_path(paths[names[0]])
        issued.private_key_pem.write_to_path(paths[names[1]])
    secured = ("--tls-cert", paths["cert"], "--tls-key", paths["key"], "--tls-client-ca")
    with service(tmp_path, *secured, paths["ca"], "--token", TOKEN) as (address, stats):
        address = address.replace(HOST, "localhost")
        trusting = ("--ca", paths["ca"], "--client-cert", paths["own"])
        asked = {"policy": "api", "key": "ann"}
        of_it = ("--service", address, "--stats", stats)
        with dashboard(
            *of_it, *trusting, "--client-key", paths["own_key"], "--service-token", TOKEN
        ) as (_, site):
            assert until(lambda: site.told("api/live")[0])["error"] is None
            assert site.post("api/key", asked).json()["rules"][0]["remaining"] == 5
        # Without, it is not let in.
        with dashboard(*of_it, THROTTLED_TOKEN=TOKEN) as (_, site):
            assert site.post("api/key", asked).status_code == 503


def test_where_others_can_reach_it_it_warns() -> None:
    named = ("--host", "any.example")
    with dashboard("--listen", "0.0.0.0:0", "--token", TOKEN, *named) as (running, site):
        for host, status in (("any.example", 200), ("192.0.2.1:8080", 200), ("evil.example", 403)):
            assert site.get("api/about", headers={"Host": host}).status_code == status, host
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
        (["--service", "x:1", "--policies", "x"], "--service and --policies exclude one another"),
        (["--token", "a", "--token-file", "b"], "--token and --token-file exclude one another."),
        (["--token", "a b"], "Invalid tokens[0]: must be text without spaces."),
        (["--tls"], "--tls goes with --service."),
        (["--tls", "--stats", "http://x:1/stats"], "--tls goes with --service."),
        (["--ca", "x.pem"], "--ca goes with --service or --stats."),
        (["--service-token", "a", "--service-token-file", "b"], "exclude one another."),
        (["--service", "x:1", "--ca", "nowhere.pem"], "Invalid ca: 'nowhere.pem', "),
        (["--service", "x:1", "--tls", "--service-token", "a"], "would travel in the clear."),
        (["--host", "http://x"], "Invalid host: 'http://x', must be a name such as"),
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


async def test_nobody_holds_a_connection_who_neither_asks_nor_reads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("throttled.dashboard.serving._STALLED", 0.3)
    started: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def ready(address: str, stop: Any) -> None:
        started.set_result((address.rpartition(":")[2], stop))

    task = asyncio.ensure_future(show(Showing(listen=f"{HOST}:0"), ready))
    port, stop = await asyncio.wait_for(started, PATIENCE)
    silent, writer = await asyncio.open_connection(HOST, port)
    with suppress(ConnectionError):
        assert await asyncio.wait_for(silent.read(), PATIENCE) == b""
    writer.close()
    ask = f"GET /static/vendor/uPlot.iife.min.js HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()
    with socket.create_connection((HOST, int(port))) as deaf:
        number = 600  # the answers fill more than all that is between the two
        deaf.sendall(number * ask)
        await asyncio.sleep(3 * 0.3)
        deaf.setblocking(False)
        loop, got = asyncio.get_running_loop(), b""
        async with asyncio.timeout(PATIENCE):
            with suppress(ConnectionError):
                while more := await loop.sock_recv(deaf, 1 << 20):
                    got += more
        assert 0 < got.count(b"HTTP/1.1 200 OK") < number
    stop()
    await asyncio.wait_for(task, PATIENCE)


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


async def test_what_a_service_tells_by_tls(server: str, tmp_path: Path) -> None:
    authority = trustme.CA()
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    made = HTTPServer((HOST, 0), Answering)
    made.socket = context.wrap_socket(made.socket, server_side=True)
    thread = Thread(target=made.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        url = f"https://localhost:{made.server_port}/stats"
        assert await ServiceStats(url, ca=path).stats() == {"policies": {}, "stores": {}}
        with pytest.raises(ServiceUnavailableError, match="certificate verify failed"):
            await ServiceStats(url).stats()
    finally:
        made.shutdown()
        made.server_close()
        thread.join(PATIENCE)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"ca": "nowhere.pem"}, "Invalid ca: 'nowhere.pem', No such file"),
        ({"cert": "nowhere.pem"}, "Invalid cert: 'nowhere.pem', No such file"),
        ({"key": "nowhere.pem"}, "Invalid key: 'nowhere.pem', is of no use without cert"),
        ({"ca": __file__}, "Invalid ca: .*test_command.py', "),
        ({"cert": __file__}, "Invalid cert: .*test_command.py', "),
    ],
)
def test_files_that_cannot_be_used(files: dict[str, str], said: str) -> None:
    with pytest.raises(SetUpError, match=said):
        ServiceStats("https://localhost/stats", **files)


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
