"""The service as a whole: its addresses, who is let in, the side port, and how it stops."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.servers import Server
from tests.service.sites import HOST, Code, connected, prefix, refused, until
from throttled import MemoryStore
from throttled.asyncio import RedisStore, Throttled
from throttled.exceptions import DataError, SetUpError
from throttled.service.server import SERVICE
from throttled.service.serving import Running, Serving, serve
from throttled.service.v1 import throttled_pb2 as v1
from throttled.service.v1.throttled_pb2_grpc import RateLimiterStub

pytestmark = pytest.mark.realtime

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@asynccontextmanager
async def running(policies: Any = None, **options: Any) -> AsyncIterator[Running]:
    """A service for as long as the block runs; it is stopped at its end, if not before."""
    if policies is None:
        policies = {"api": Throttled(quota="100/h", store=MemoryStore())}
    options.setdefault("listen", f"{HOST}:0")
    options.setdefault("http", None)
    begun: asyncio.Future[Running] = asyncio.get_running_loop().create_future()
    task = asyncio.ensure_future(serve(Serving(policies, **options), begun.set_result))
    await asyncio.wait([task, begun], return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        await task
    service = begun.result()
    try:
        yield service
    finally:
        await service.stop(0)
        await task


def check(channel: Any, policy: str = "api", key: str = "k", **arguments: Any) -> Any:
    timeout = arguments.pop("wait", 0)
    request = v1.CheckRequest(policy=policy, key=key, timeout=timeout)
    return RateLimiterStub(channel).Check(request, **arguments)


def health(channel: Any, service: str = SERVICE) -> Any:
    request = health_pb2.HealthCheckRequest(service=service)
    return health_pb2_grpc.HealthStub(channel).Check(request)


def events(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.throttled_event for each in caplog.records if hasattr(each, "throttled_event")]


# -- how it is to run ------------------------------------------------------------------------------


async def test_everybody_may_reach_it(caplog: pytest.LogCaptureFixture) -> None:
    async with running(listen="0.0.0.0:0"):
        assert "unprotected" in events(caplog)
    caplog.clear()
    async with running(listen="0.0.0.0:0", tokens=["t"]):
        assert "unencrypted" in events(caplog)
    caplog.clear()
    async with running():
        assert not {"unprotected", "unencrypted"} & {*events(caplog)}


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"grace": -1}, r"Invalid grace: -1, must be seconds from 0 to 3600\."),
    ({"grace": "10"}, r"Invalid grace: '10', must be seconds"),
    ({"grace": float("nan")}, "Invalid grace: nan, must be seconds"),
    ({"log_format": "xml"}, r"Invalid log_format: 'xml', must be 'text' or 'json'\."),
    ({"ticket_ttl": 0}, "Invalid ticket_ttl: 0, must be seconds above 0"),
    ({"tokens": "secret"}, r"Invalid tokens: a str, must be several"),
    ({"tokens": ["fine", "with space"]}, r"Invalid tokens\[1\]: must be text without spaces"),
    ({"tokens": ["fine", "umläut"]}, r"Invalid tokens\[1\]: must be printable ASCII"),
    ({"tokens": [""]}, r"Invalid tokens\[0\]: it is empty, must be text"),
    ({"tokens": [None]}, r"Invalid tokens\[0\]: must be printable ASCII"),
    ({"tls_cert": "/nowhere"}, "Invalid tls_cert: it is of no use without tls_key"),
    ({"tls_key": "/nowhere"}, "Invalid tls_key: it is of no use without tls_cert"),
    ({"tls_client_ca": "/nowhere"}, "Invalid tls_client_ca: it is of no use without tls_cert"),
    (
        {"tls_cert": "/nowhere", "tls_key": "/nowhere"},
        r"Invalid tls_cert: '/nowhere', No such file or directory\.",
    ),
    ({"policies": "/nowhere.toml"}, "/nowhere.toml"),
    ({"store": "nonsense", "policies": "/nowhere.toml"}, "nonsense"),
]


@pytest.mark.parametrize(("options", "text"), WRONG)
async def test_what_cannot_be_served_is_said(options: dict[str, Any], text: str) -> None:
    with pytest.raises((SetUpError, DataError), match=text) as caught:
        async with running(**options):
            pass
    assert "secret" not in str(caught.value)
    assert "umläut" not in str(caught.value)


def test_secrets_are_not_shown() -> None:
    serving = Serving("p.toml", "redis://:hidden@h", tokens=["hidden"], ticket_secret="hidden")
    assert "hidden" not in repr(serving)


# -- who is let in ---------------------------------------------------------------------------------


async def test_a_token(caplog: pytest.LogCaptureFixture) -> None:
    async with running(tokens=["new", "old"]) as service, connected(service.address) as channel:
        for given in ("Bearer new", "bearer old"):
            assert (await check(channel, metadata=[("authorization", given)])).allowed
        wrong = [
            "",
            "new",
            "Bearer",
            "Bearer ",
            "Bearer newer",
            "Bearer ne",
            "Basic new",
            "Bearer x",
        ]
        for given in wrong:
            call = check(channel, metadata=[("authorization", given)])
            await refused(call, Code.UNAUTHENTICATED, "missing or wrong")
        await refused(check(channel), Code.UNAUTHENTICATED)
        # Of a method that is not there, nothing is told to strangers either.
        other = channel.unary_unary(f"/{SERVICE}/Other")
        await refused(other(b""), Code.UNAUTHENTICATED)
        await refused(other(b"", metadata=[("authorization", "Bearer old")]), Code.UNIMPLEMENTED)
        assert (await health(channel)).status == SERVING
        for _ in range(30):
            await refused(check(channel), Code.UNAUTHENTICATED)
    said = [each for each in caplog.records if events(caplog) and "Refused" in each.getMessage()]
    assert len(said) == 10
    assert "new" not in caplog.text.replace("newer", "").replace("anew", "")


async def test_tickets_are_signed_with_the_tokens_by_default() -> None:
    store = MemoryStore()
    policies = {"api": Throttled(quota="100/h", store=store)}
    for options, fits in (
        ({"tokens": ["b", "a"]}, True),
        ({"tokens": ["b"]}, False),
        ({}, False),
        ({"tokens": ["a"], "ticket_secret": "s"}, False),
    ):
        async with (
            running(policies, tokens=["a"]) as one,
            running(policies, **options) as two,
            connected(one.address) as here,
            connected(two.address) as there,
        ):
            request = v1.ReserveRequest(policy="api", key="k", cost=5)
            metadata = [("authorization", "Bearer a")]
            answer = await RateLimiterStub(here).Reserve(request, metadata=metadata)
            given = [("authorization", f"Bearer {[*options.get('tokens', ['']), 'x'][0]}")]
            call = RateLimiterStub(there).Settle(
                v1.SettleRequest(ticket=answer.ticket, actual=0), metadata=given
            )
            if fits:
                assert (await call).settled
            else:
                await refused(call, Code.INVALID_ARGUMENT, "another secret")


class Files:
    """Certificates, as files."""

    def __init__(self, directory: Path) -> None:
        self.ca, self.strangers = trustme.CA(), trustme.CA()
        server, client = self.ca.issue_cert("localhost"), self.ca.issue_cert("client@example.org")
        self.paths = {name: directory / f"{name}.pem" for name in ("cert", "key", "ca", "junk")}
        server.cert_chain_pems[0].write_to_path(self.paths["cert"])
        server.private_key_pem.write_to_path(self.paths["key"])
        self.ca.cert_pem.write_to_path(self.paths["ca"])
        self.paths["junk"].write_text("junk")
        self.client = client

    def channel(self, service: Running, client: Any = None, ca: Any = None) -> Any:
        given = {}
        if client is not None:
            given = {
                "private_key": client.private_key_pem.bytes(),
                "certificate_chain": client.cert_chain_pems[0].bytes(),
            }
        trusted = (ca or self.ca).cert_pem.bytes()
        credentials = grpc.ssl_channel_credentials(trusted, **given)
        options = [("grpc.use_local_subchannel_pool", 1)]
        return grpc.aio.secure_channel(service.address, credentials, options=options)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


async def test_tls(files: Files) -> None:
    given = {"tls_cert": files.paths["cert"], "tls_key": str(files.paths["key"])}
    async with running(listen="localhost:0", **given) as service:
        assert service.told_addresses() == [f"gRPC over TLS on {service.address}"]
        async with files.channel(service) as channel:
            assert (await check(channel)).allowed
        async with files.channel(service, ca=files.strangers) as channel:
            await refused(check(channel, timeout=5), Code.UNAVAILABLE)
        async with connected(service.address) as channel:
            await refused(check(channel, timeout=5), Code.UNAVAILABLE)


async def test_certificates_of_clients(files: Files) -> None:
    paths = {"tls_cert": "cert", "tls_key": "key", "tls_client_ca": "ca"}
    given = {name: files.paths[each] for name, each in paths.items()}
    async with running(listen="localhost:0", **given) as service:
        async with files.channel(service, files.client) as channel:
            assert (await check(channel)).allowed
        for client in (None, files.strangers.issue_cert("client@example.org")):
            async with files.channel(service, client) as channel:
                await refused(check(channel, timeout=5), Code.UNAVAILABLE)


@pytest.mark.parametrize(
    ("cert", "key", "ca", "text"),
    [
        ("junk", "key", None, "Invalid tls_cert: .*junk.pem', must be a certificate in PEM"),
        ("cert", "junk", None, "Invalid tls_cert: .*whose key is that of tls_key"),
        ("cert", "other", None, "Invalid tls_cert: .*whose key is that of tls_key"),
        ("cert", "key", "junk", "Invalid tls_client_ca: .*junk.pem', must be certificates in PEM"),
        ("cert", "key", "nowhere", "Invalid tls_client_ca: .*nowhere.pem', No such file"),
    ],
)
async def test_certificates_that_do_not_hold(
    files: Files, tmp_path: Path, cert: str, key: str, ca: str | None, text: str
) -> None:
    files.paths["nowhere"] = tmp_path / "nowhere.pem"
    files.paths["other"] = tmp_path / "other.pem"
    files.client.private_key_pem.write_to_path(files.paths["other"])
    given = {"tls_cert": cert, "tls_key": key, "tls_client_ca": ca}
    paths = {name: files.paths[each] for name, each in given.items() if each}
    with pytest.raises(SetUpError, match=text):
        async with running(**paths):
            pass


# -- stopping --------------------------------------------------------------------------------------


async def test_calls_under_way_may_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    policies = {
        "soon": Throttled(quota="4/s burst 1", store=MemoryStore()),
        "late": Throttled(quota="1/h", store=MemoryStore()),
    }
    async with (
        running(policies, http=f"{HOST}:0") as service,
        connected(service.address) as channel,
        httpx.AsyncClient() as client,
    ):
        for name in policies:
            await check(channel, name)
        watching = health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(service=SERVICE)
        )
        assert (await watching.read()).status == SERVING
        soon = asyncio.ensure_future(_awaited(check(channel, "soon", wait=60)))
        late = asyncio.ensure_future(_awaited(check(channel, "late", wait=7200)))
        await until(lambda: len(service.servicer._waiting) == 2)
        stopping = asyncio.ensure_future(service.stop(20))
        assert (await watching.read()).status == NOT_SERVING
        answer = await client.get(f"http://{service.http_address}/healthz")
        assert (answer.status_code, answer.text) == (503, "stopping\n")
        assert await late is Code.UNAVAILABLE
        assert await soon is Code.OK
        began = asyncio.get_running_loop().time()
        await stopping
        assert asyncio.get_running_loop().time() - began < 10
        assert (await policies["late"].peek("k")).retry_after <= 3600
        await refused(check(channel, "soon"), Code.UNAVAILABLE)
    assert events(caplog) == ["started", "draining", "stopped"]


async def test_what_does_not_end_in_time_is_cancelled() -> None:
    limit = Throttled(quota="1/h", store=MemoryStore())
    held = asyncio.Event()

    async def slow(key: str) -> bool:
        await held.wait()
        return False

    slow_one = Throttled(quota="1/h", store=MemoryStore(), exempt=slow)
    policies = {"api": limit, "slow": slow_one}
    async with running(policies) as service, connected(service.address) as channel:
        await check(channel)
        calls = [check(channel, wait=7200), check(channel, "slow")]
        tasks = [asyncio.ensure_future(_awaited(each)) for each in calls]
        await until(lambda: service.servicer.running == 2 and service.servicer._waiting)
        await service.stop(0.05)
        assert await asyncio.gather(*tasks) == [Code.UNAVAILABLE] * 2
        assert (await limit.peek("k")).retry_after <= 3600
        assert service.servicer.running == 0


async def test_said_again_it_stops_at_once() -> None:
    held = asyncio.Event()

    async def slow(key: str) -> bool:
        await held.wait()
        return False

    policies = {"slow": Throttled(quota="1/h", store=MemoryStore(), exempt=slow)}
    async with running(policies) as service, connected(service.address) as channel:
        task = asyncio.ensure_future(_awaited(check(channel, "slow")))
        await until(lambda: service.servicer.running)
        first = asyncio.ensure_future(service.stop(3600))
        await asyncio.sleep(0.01)
        assert not first.done()
        await service.stop(0)
        await first
        assert await task is Code.UNAVAILABLE


async def test_a_task_that_is_cancelled_stops_all_of_it() -> None:
    begun: asyncio.Future[Running] = asyncio.get_running_loop().create_future()
    policies = {"api": Throttled(quota="1/h", store=MemoryStore())}
    serving = Serving(policies, listen=f"{HOST}:0", http=f"{HOST}:0")
    task = asyncio.ensure_future(serve(serving, begun.set_result))
    service = await begun
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert service.stopped.is_set()
    for address in (service.address, service.http_address):
        assert address is not None
        host, _, port = address.rpartition(":")
        with pytest.raises(OSError, match=r"refused"):
            socket.create_connection((host, int(port)))


async def _awaited(call: Any) -> grpc.StatusCode:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return Code.OK


# -- policies of a file ----------------------------------------------------------------------------


FILE = """
[stores.main]
url = "{url}"

[policies.api]
quota = "{quota}"
using = "fixed_window"
store = "main"
key_prefix = "{prefix}"
operations = ["check", "peek"]

[policies.tiered]
quota = "5/h"

[policies.tiered.tiers.pro]
keys = ["pro:*"]
quota = "50/h"
"""


@pytest.mark.server
async def test_policies_of_a_file_that_changes(
    tmp_path: Path, valkey: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path, ours = tmp_path / "policies.toml", prefix()

    def write(quota: str, more: str = "") -> None:
        path.write_text(FILE.format(url=valkey.url, quota=quota, prefix=ours) + more)

    write("10/h")
    async with running(path, http=f"{HOST}:0") as service, connected(service.address) as channel:
        stub = RateLimiterStub(channel)
        assert (await check(channel)).states[0].remaining == 9
        debit = stub.Debit(v1.DebitRequest(policy="api", key="k", amount=1))
        await refused(debit, Code.UNIMPLEMENTED, "only check, peek")
        assert (await check(channel, "tiered", "pro:1")).rules[0].quota == "50/h"
        said = await refused(check(channel, "new"), Code.NOT_FOUND)
        assert str(tmp_path) not in said

        write("20/h", '[policies.new]\nquota = "3/h"\n')
        service.reload()
        await until(lambda: "reloaded" in events(caplog))
        assert (await check(channel)).states[0].remaining == 18
        assert (await check(channel, "new")).allowed

        path.write_text("[policies.api]\nquota = '1/parsec'")
        service.reload()
        await until(lambda: "reload_failed" in events(caplog))
        assert (await check(channel)).states[0].remaining == 17
        async with httpx.AsyncClient() as client:
            told = (await client.get(f"http://{service.http_address}/stats")).json()
            assert "parsec" in told["policy_file"]["error"]
            assert told["policy_file"]["path"] == str(path)
            assert sorted(told["policies"]) == ["api", "new", "tiered"]
            assert told["policies"]["api"]["store"] == "main"
            assert told["policies"]["tiered"]["by_key"] is True
            assert [each["quota"] for each in told["policies"]["tiered"]["rules"]] == ["5/h"]
            assert told["policies"]["tiered"]["tiers"][0]["keys"] == ["pro:*"]

        # What was in force all the time is there again.
        write("20/h", '[policies.new]\nquota = "3/h"\n')
        service.reload()
        await until(lambda: events(caplog).count("reloaded") == 2)
        assert service.policies.error is None

        write("30/h")
        service.reload()
        await until(lambda: events(caplog).count("reloaded") == 3)
        assert (await check(channel)).states[0].remaining == 26
        await refused(check(channel, "new"), Code.NOT_FOUND)
        write("30/h", '[policies.new]\nquota = "9/h"\n')
        service.reload()
        await until(lambda: events(caplog).count("reloaded") == 4)
        assert (await check(channel, "new")).states[0].limit == 9
        async with httpx.AsyncClient() as client:
            text = (await client.get(f"http://{service.http_address}/metrics")).text
        assert (
            'throttled_decisions_total{limit="new",outcome="allowed",source="memory"} 2.0' in text
        )


@pytest.mark.server
async def test_a_store_for_policies_that_name_none(tmp_path: Path, valkey: Server) -> None:
    path = tmp_path / "policies.toml"
    path.write_text(f'[policies.api]\nquota = "10/h"\nkey_prefix = "{prefix()}"\n')
    for store, source in (
        (valkey.url, v1.SOURCE_SERVER),
        ("memory", v1.SOURCE_MEMORY),
        (None, v1.SOURCE_MEMORY),
    ):
        async with running(path, store=store) as service, connected(service.address) as channel:
            assert (await check(channel)).source == source
    ours = RedisStore(valkey.url)
    async with running(path, store=ours) as service, connected(service.address) as channel:
        assert (await check(channel)).states[0].remaining == 8
    # A store that was given is not closed.
    assert (await Throttled(quota="10/h", store=ours).limit("k")).source == "server"
    await ours.close()


def test_json_lines_and_text_lines() -> None:
    from throttled.service.logs import JSONLines, TextLines

    record = logging.LogRecord("throttled", logging.INFO, "", 0, "Serves %d", (3,), None)
    record.created = 1_700_000_000.1234
    assert TextLines().format(record) == "2023-11-14T22:13:20.123Z INFO Serves 3"
    record.throttled_event = "started"
    record.throttled_policies = ["api"]
    line = json.loads(JSONLines().format(record))
    assert line == {
        "ts": "2023-11-14T22:13:20.123Z",
        "level": "info",
        "logger": "throttled",
        "event": "started",
        "message": "Serves 3",
        "policies": ["api"],
    }
    try:
        raise ZeroDivisionError("two\nlines")
    except ZeroDivisionError as error:
        failed: Callable[..., Any] = logging.LogRecord
        record = failed("x", logging.ERROR, "", 0, "no", (), (type(error), error, None))
    assert "\n" not in JSONLines().format(record)
    assert json.loads(JSONLines().format(record))["error"].startswith("ZeroDivisionError: two")
