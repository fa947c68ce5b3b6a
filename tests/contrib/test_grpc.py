"""gRPC interceptors in real servers, sync and aio, called over a real channel."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import Any

import grpc
import grpc.aio
import pytest
import trustme
from google.rpc import error_details_pb2
from grpc_status import rpc_status

import throttled.asyncio
from tests.contract import PATIENT
from tests.flavours import faults
from tests.servers import HOST, Server, free_port
from throttled import MemoryStore, RedisStore, Throttled
from throttled.contrib.grpc import (
    AsyncRateLimit,
    AsyncRateLimitInterceptor,
    Call,
    RateLimit,
    RateLimitInterceptor,
)
from throttled.contrib.keys import by_header, by_user
from throttled.exceptions import DataError
from throttled.testing import FakeClock

pytestmark = pytest.mark.realtime

KINDS = ["unary_unary", "unary_stream", "stream_unary", "stream_stream"]
FLAVOURS = ["sync", "aio", "aio-plain"]
LIMITED = grpc.StatusCode.RESOURCE_EXHAUSTED


class Shop:
    """What is served: it answers every request with itself, or fails as that asks for."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []
        self.held = threading.Event()
        #: Whether a held call is over for the server, done or cancelled.
        self.over = threading.Event()

    def act(self, request: bytes, context: Any) -> bytes:
        if request == b"hold":
            context.add_callback(self.over.set)
        self.seen.append(request)
        if request == b"hold":
            assert self.held.wait(20)
        if request == b"missing":
            context.set_code(grpc.StatusCode.NOT_FOUND)
        if request == b"crash":
            raise ZeroDivisionError("secret")
        if request == b"abort":
            context.set_trailing_metadata((("of-the", "application"),))
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "no")
        return request

    def unary_unary(self, request: bytes, context: Any) -> bytes:
        return self.act(request, context)

    def unary_stream(self, request: bytes, context: Any) -> Iterator[bytes]:
        for _ in range(3):
            yield self.act(request, context)

    def stream_unary(self, requests: Any, context: Any) -> bytes:
        return b",".join([self.act(request, context) for request in requests])

    def stream_stream(self, requests: Any, context: Any) -> Iterator[bytes]:
        for request in requests:
            yield self.act(request, context)


class AsyncShop(Shop):
    async def aact(self, request: bytes, context: Any) -> bytes:
        if request == b"hold":
            self.seen.append(request)
            try:
                assert await asyncio.to_thread(self.held.wait, 20)
            finally:
                self.over.set()
            return request
        if request == b"abort":
            self.seen.append(request)
            trailing = (("of-the", "application"),)
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "no", trailing)
        return self.act(request, context)

    async def unary_unary(self, request: bytes, context: Any) -> bytes:
        return await self.aact(request, context)

    async def unary_stream(self, request: bytes, context: Any) -> Any:
        for _ in range(3):
            yield await self.aact(request, context)

    async def stream_unary(self, requests: Any, context: Any) -> bytes:
        return b",".join([await self.aact(request, context) async for request in requests])

    async def stream_stream(self, requests: Any, context: Any) -> Any:
        async for request in requests:
            yield await self.aact(request, context)


class ReadingShop(AsyncShop):
    """Handlers of aio that read and write."""

    async def unary_stream(self, request: bytes, context: Any) -> None:
        for _ in range(3):
            await context.write(await self.aact(request, context))

    async def stream_unary(self, requests: Any, context: Any) -> bytes:
        parts = []
        while (request := await context.read()) is not grpc.aio.EOF:
            parts.append(await self.aact(request, context))
        return b",".join(parts)

    async def stream_stream(self, requests: Any, context: Any) -> None:
        while (request := await context.read()) is not grpc.aio.EOF:
            await context.write(await self.aact(request, context))


class Client:
    """Calls the shop, and reads how each call came out."""

    def __init__(self, target: str, credentials: grpc.ChannelCredentials | None = None) -> None:
        self.channel = (
            grpc.secure_channel(target, credentials)
            if credentials
            else grpc.insecure_channel(target)
        )

    def begin(self, kind: str = "unary_unary", *requests: bytes, **options: Any) -> Any:
        """A call that is under way."""
        callee = getattr(self.channel, kind)(f"/shop.Shop/{kind}")
        sent: Any = iter(requests) if kind.startswith("stream") else (requests or (b"x",))[0]
        return (callee if kind.endswith("stream") else callee.future)(sent, **options)

    def __call__(self, kind: str = "unary_unary", *requests: bytes, **options: Any) -> Answer:
        call = self.begin(kind, *requests, **{"timeout": 30, **options})
        return Answer(call, kind.endswith("stream"))

    def codes(self, n: int, kind: str = "unary_unary", *requests: bytes, **options: Any) -> str:
        """The first letters of how several calls came out: "OOR"."""
        return "".join([self(kind, *requests, **options).code.name[0] for _ in range(n)])


class Answer:
    """How a call came out."""

    def __init__(self, call: Any, streams: bool = True) -> None:
        self.responses: list[bytes] = []
        with suppress(grpc.RpcError):
            if streams:
                self.responses.extend(call)
            else:
                self.responses.append(call.result())
        self.code: grpc.StatusCode = call.code()
        self.details: str = call.details()
        self.trailing = dict(call.trailing_metadata() or ())
        self.rich = rpc_status.from_call(call)

    def detail(self, kind: Any) -> Any:
        """A message of the rich status."""
        for packed in self.rich.details:
            message = kind()
            if packed.Unpack(message):
                return message
        return None


class Rig:
    """A server of one flavour, and what is made for it."""

    def __init__(self, flavour: str, stack: ExitStack) -> None:
        self.flavour = flavour
        self.asynchronous = flavour != "sync"
        self.interceptor: Any = (
            AsyncRateLimitInterceptor if self.asynchronous else RateLimitInterceptor
        )
        self.limit: Any = AsyncRateLimit if self.asynchronous else RateLimit
        self.throttled: Any = throttled.asyncio.Throttled if self.asynchronous else Throttled
        self.shop: Any = {"aio": AsyncShop, "aio-rw": ReadingShop}.get(flavour, Shop)()
        self.clock = FakeClock()
        self.stores: list[Any] = []
        self._stack = stack

    def redis(self, url: str) -> Any:
        store: Any = (throttled.asyncio.RedisStore if self.asynchronous else RedisStore)(
            url, options=PATIENT
        )
        self.stores.append(store)
        return store

    def memory(self) -> MemoryStore:
        return MemoryStore(clock=self.clock)

    def serve(self, *interceptors: Any, workers: int = 16) -> Client:
        handlers = {
            kind: getattr(grpc, f"{kind}_rpc_method_handler")(getattr(self.shop, kind))
            for kind in KINDS
        }
        generic = grpc.method_handlers_generic_handler("shop.Shop", handlers)
        serve = self._serve_async if self.asynchronous else self._serve_sync
        client = Client(f"{HOST}:{serve([generic], [*interceptors], workers)}")
        self._stack.callback(client.channel.close)
        return client

    def limited(self, *arguments: Any, **options: Any) -> Client:
        options.setdefault("store", self.memory())
        return self.serve(self.interceptor(*arguments, **options))

    def _serve_sync(self, generic: Any, interceptors: Any, workers: int) -> int:
        pool = self._stack.enter_context(ThreadPoolExecutor(workers))
        server = grpc.server(pool, generic, interceptors)
        port = server.add_insecure_port(f"{HOST}:0")
        server.start()
        self._stack.callback(lambda: [store.close() for store in self.stores])
        self._stack.callback(lambda: server.stop(5).wait())
        return port

    def _serve_async(self, generic: Any, interceptors: Any, workers: int) -> int:
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        pool = self._stack.enter_context(ThreadPoolExecutor(workers))

        async def start() -> tuple[Any, int]:
            server = grpc.aio.server(pool, generic, interceptors)
            port = server.add_insecure_port(f"{HOST}:0")
            await server.start()
            return server, port

        def run(coroutine: Any) -> Any:
            return asyncio.run_coroutine_threadsafe(coroutine, loop).result(30)

        async def stop(server: Any) -> None:
            await server.stop(5)
            for store in self.stores:
                await store.close()
            # A call that was aborted is over before its handler is.
            calls = [task for task in asyncio.all_tasks() if task.get_name() == "rpc_task"]
            if calls:
                await asyncio.wait(calls, timeout=5)

        def close() -> None:
            run(stop(server))
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

        server, port = run(start())
        self._stack.callback(close)
        return port


@pytest.fixture
def make() -> Iterator[Callable[[str], Rig]]:
    with ExitStack() as stack:
        yield lambda flavour: Rig(flavour, stack)


@pytest.fixture(params=FLAVOURS)
def rig(request: pytest.FixtureRequest, make: Callable[[str], Rig]) -> Rig:
    return make(request.param)


@pytest.mark.parametrize("flavour", [*FLAVOURS, "aio-rw"])
@pytest.mark.parametrize("kind", KINDS)
def test_calls_of_all_kinds_are_limited(
    make: Callable[[str], Rig], flavour: str, kind: str
) -> None:
    rig = make(flavour)
    client = rig.limited("2/m")
    first = client(kind, b"a", b"b")
    assert first.code is grpc.StatusCode.OK
    assert (
        first.responses
        == {
            "unary_unary": [b"a"],
            "unary_stream": [b"a"] * 3,
            "stream_unary": [b"a,b"],
            "stream_stream": [b"a", b"b"],
        }[kind]
    )
    assert first.trailing["ratelimit-policy"] == '"2/m";q=2;w=60'
    assert first.trailing["ratelimit"] == '"2/m";r=1;t=30'
    assert client(kind, b"a").code is grpc.StatusCode.OK
    rig.shop.seen.clear()
    refused = client(kind, b"a")
    assert refused.code is LIMITED
    assert refused.responses == []
    assert rig.shop.seen == []
    assert refused.trailing["ratelimit"] == '"2/m";r=0;t=30'
    assert refused.trailing["retry-after"] == "30"
    rig.clock.advance(30)
    assert client(kind, b"a").code is grpc.StatusCode.OK


def test_a_refusal_says_when_to_retry_in_its_rich_status(rig: Rig) -> None:
    client = rig.limited("7/s")
    assert client.codes(7) == "O" * 7
    refused = client()
    assert refused.rich.code == LIMITED.value[0]
    assert refused.details == refused.rich.message == "Too many requests. Try again in 1 second."
    delay = refused.detail(error_details_pb2.RetryInfo).retry_delay
    assert (delay.seconds, delay.nanos) == (0, 142_858_000)  # a seventh, in whole microseconds
    [violation] = refused.detail(error_details_pb2.QuotaFailure).violations
    assert (violation.quota_id, violation.quota_value) == ("7/s", 7)
    assert not violation.subject
    rig.clock.advance(0.142_857)
    assert client().code is LIMITED
    rig.clock.advance(0.000_001)
    assert client().code is grpc.StatusCode.OK


def test_what_can_never_fit_has_no_time_to_retry(rig: Rig) -> None:
    refused = rig.limited("2/m", cost=lambda call: 3)()
    assert refused.code is LIMITED
    assert refused.detail(error_details_pb2.RetryInfo) is None
    assert "retry-after" not in refused.trailing


def test_rules_are_for_methods_and_services_and_excluded_ones_pass(rig: Rig) -> None:
    client = rig.limited(
        None,
        rules={"/shop.Shop/unary_unary": "1/m", "/shop.Shop/*": "3/m", "/other.Shop/*": "1/h"},
        exclude=["/shop.Shop/stream_unary"],
    )
    assert client.codes(3) == "ORR"
    assert client.codes(3, "unary_stream") == "OOR"
    assert client.codes(5, "stream_unary", b"a") == "OOOOO"
    told = client("unary_stream").trailing
    assert told["ratelimit-policy"] == '"3/m";q=3;w=60'


def test_counts_are_kept_by_scope_under_the_address_of_the_caller(rig: Rig) -> None:
    store = rig.memory()
    limit = rig.limit("1/m", store=store)
    client = rig.limited("9/m", rules={"/shop.Shop/*": limit})
    assert client.codes(2) == "OR"
    throttle = limit.throttle("/shop.Shop/*")
    reset = throttle.reset(HOST)
    if rig.asynchronous:
        asyncio.run(reset)
    assert client.codes(2) == "OR"


def test_callers_are_told_apart_by_metadata(rig: Rig) -> None:
    client = rig.limited("1/m", key=by_header("X-API-Key"))
    assert client.codes(2, metadata=[("x-api-key", "a")]) == "OR"
    assert client.codes(2, metadata=[("x-api-key", "b")]) == "OR"
    assert client.codes(2) == "OR"


def test_callers_are_told_apart_by_their_certificates() -> None:
    authority = trustme.CA()
    own = authority.issue_cert(HOST)
    pairs = [(own.private_key_pem.bytes(), own.cert_chain_pems[0].bytes())]
    trusted = authority.cert_pem.bytes()
    handler = grpc.unary_unary_rpc_method_handler(lambda request, context: request)
    with ExitStack() as stack:
        server = grpc.server(
            stack.enter_context(ThreadPoolExecutor(2)),
            [grpc.method_handlers_generic_handler("shop.Shop", {"unary_unary": handler})],
            [RateLimitInterceptor("1/m", key=by_user(), store=MemoryStore(clock=FakeClock()))],
        )
        credentials = grpc.ssl_server_credentials(pairs, trusted, require_client_auth=True)
        port = server.add_secure_port(f"{HOST}:0", credentials)
        server.start()
        stack.callback(lambda: server.stop(5).wait())
        for name in ("ann", "bob"):
            cert = authority.issue_cert(common_name=name)
            chain = cert.cert_chain_pems[0].bytes()
            client_credentials = grpc.ssl_channel_credentials(
                trusted, cert.private_key_pem.bytes(), chain
            )
            client = Client(f"{HOST}:{port}", client_credentials)
            assert client.codes(2) == "OR"
            client.channel.close()


def test_functions_are_given_the_call(rig: Rig) -> None:
    seen: list[Any] = []

    def key(call: Call) -> str:
        seen.append((call.path, call.method, call.peer, call.request, call.user))
        return str(call.request)

    client = rig.limited("10/m", key=key, cost=lambda call: len(call.request or "12345"))
    assert client("unary_unary", b"abcdefg").code is grpc.StatusCode.OK
    assert client("unary_unary", b"abcdefg").code is LIMITED
    assert client.codes(3, "stream_unary", b"abc") == "OOR"
    assert seen[0] == ("/shop.Shop/unary_unary", "GRPC", HOST, b"abcdefg", None)
    assert seen[-1] == ("/shop.Shop/stream_unary", "GRPC", HOST, None, None)


def test_exempt_calls_pass_uncounted(rig: Rig) -> None:
    client = rig.limited("1/m", exempt=lambda call: call.header("vip") == "yes")
    assert client.codes(4, metadata=[("vip", "yes")]) == "OOOO"
    assert client.codes(2) == "OR"


def test_two_interceptors_take_all_or_nothing_and_tell_together(rig: Rig) -> None:
    outer = rig.interceptor("3/m", store=rig.memory())
    inner = rig.interceptor(None, rules={"/shop.Shop/unary_unary": "1/m"}, store=rig.memory())
    client = rig.serve(outer, Untouching.of(rig), inner)
    first = client()
    assert first.trailing["ratelimit-policy"] == '"1/m";q=1;w=60, "3/m";q=3;w=60'
    assert first.trailing["ratelimit"] == '"1/m";r=0;t=60, "3/m";r=2;t=20'
    refused = client()
    assert refused.code is LIMITED
    assert refused.trailing["ratelimit"] == '"1/m";r=0;t=60'
    assert refused.rich.code == LIMITED.value[0]
    # What the outer one took for the refused call is given back.
    assert client.codes(3, "unary_stream") == "OOR"


class Untouching(grpc.ServerInterceptor):
    """Another interceptor, which rebuilds the details as many do."""

    @staticmethod
    def of(rig: Rig) -> Any:
        return AsyncUntouching() if rig.asynchronous else Untouching()

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        return continuation(details._replace(method=details.method))


class AsyncUntouching(grpc.aio.ServerInterceptor):
    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        return await continuation(type(details)(details.method, details.invocation_metadata))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (b"missing", grpc.StatusCode.NOT_FOUND),
        (b"abort", grpc.StatusCode.PERMISSION_DENIED),
        (b"crash", grpc.StatusCode.UNKNOWN),
        (b"fine", grpc.StatusCode.OK),
    ],
)
def test_calls_count_by_their_code(
    rig: Rig, kind: str, request_: bytes, code: grpc.StatusCode
) -> None:
    codes: list[grpc.StatusCode] = []

    def count_when(code: grpc.StatusCode) -> bool:
        codes.append(code)
        return code is grpc.StatusCode.NOT_FOUND

    client = rig.limited("2/m", count_when=count_when)
    counts = code is grpc.StatusCode.NOT_FOUND
    for left in (1, 0, None):
        answer = client(kind, request_)
        if counts and left is None:
            assert answer.code is LIMITED
            break
        assert answer.code is code
        assert answer.trailing["ratelimit"].startswith(f'"2/m";r={left if counts else 2};')
        assert (answer.trailing.get("of-the") == "application") is (request_ == b"abort")
    assert codes == [code] * (2 if counts else 3)


def test_an_abort_and_an_exception_tell_of_the_limits(rig: Rig) -> None:
    client = rig.limited("5/m")
    for request, left in [(b"abort", 4), (b"crash", 3), (b"missing", 2)]:
        answer = client("unary_unary", request)
        assert answer.trailing["ratelimit"].startswith(f'"5/m";r={left};')
        assert answer.rich is None


@pytest.mark.parametrize("flavour", [*FLAVOURS, "aio-rw"])
def test_messages_of_a_stream_are_limited(make: Callable[[str], Rig], flavour: str) -> None:
    rig = make(flavour)
    client = rig.limited(None, messages="5/m", cost=lambda call: len(call.request))
    assert client("stream_stream", b"aa", b"b").responses == [b"aa", b"b"]
    answer = client("stream_stream", b"c", b"dd", b"e")
    assert answer.responses == [b"c"]
    assert answer.code is LIMITED
    assert answer.detail(error_details_pb2.RetryInfo) is not None
    assert answer.trailing["retry-after"] == "12"
    assert b"dd" not in rig.shop.seen
    assert client.codes(3) == "OOO"  # requests that are no stream


def test_a_refused_message_ends_a_call_that_still_counts_by_its_code(rig: Rig) -> None:
    client = rig.limited("3/m", messages="1/m", count_when=lambda code: code is not LIMITED)
    answer = client("stream_unary", b"a", b"b")
    assert answer.code is LIMITED
    assert answer.trailing["ratelimit-policy"] == '"1/m";q=1;w=60, "3/m";q=3;w=60'
    assert answer.trailing["ratelimit"] == '"1/m";r=0;t=60, "3/m";r=3;t=0'


def test_streams_are_not_held_back(rig: Rig) -> None:
    client = rig.limited("5/m", messages="50/m")
    turn = threading.Semaphore(0)

    def requests() -> Iterator[bytes]:
        for number in range(3):
            yield b"%d" % number
            assert turn.acquire(timeout=20)

    call = client.channel.stream_stream("/shop.Shop/stream_stream")(requests(), timeout=30)
    for number in range(3):
        # The next request is only sent after this response has come.
        assert next(call) == b"%d" % number
        turn.release()
    assert call.code() is grpc.StatusCode.OK


def test_a_stream_is_refused_before_anything_of_it_is_read(rig: Rig) -> None:
    client = rig.limited("1/m")
    assert client.codes(1, "stream_stream", b"a") == "O"
    waiting = threading.Event()

    def requests() -> Iterator[bytes]:
        assert waiting.wait(20)
        yield b"never"

    call = client.channel.stream_stream("/shop.Shop/stream_stream")(requests(), timeout=30)
    assert Answer(call).code is LIMITED
    waiting.set()
    assert rig.shop.seen == [b"a"]


@pytest.mark.parametrize("where", ["memory", "valkey", "redis"])
def test_concurrent_calls_are_admitted_exactly(
    rig: Rig, where: str, request: pytest.FixtureRequest
) -> None:
    store = rig.memory() if where == "memory" else rig.redis(url_of(where, request))
    client = rig.limited("25/d", store=store, key_prefix=f"grpc-{rig.flavour}")
    kinds = KINDS * 20
    calls = [client.begin(kind, b"x", timeout=30) for kind in kinds]
    answers = [
        Answer(call, kind.endswith("stream")) for kind, call in zip(kinds, calls, strict=True)
    ]
    assert [answer.code for answer in answers].count(grpc.StatusCode.OK) == 25


def url_of(where: str, request: pytest.FixtureRequest) -> str:
    server: Server = request.getfixturevalue("server_named")(where)
    return server.url


def test_what_may_not_count_is_held_while_it_runs(rig: Rig) -> None:
    client = rig.limited("2/m", count_when=lambda code: code is not grpc.StatusCode.OK)
    held = [client.begin("unary_unary", b"hold", timeout=30) for _ in range(2)]
    while rig.shop.seen.count(b"hold") < 2:
        threading.Event().wait(0.01)
    assert client().code is LIMITED
    rig.shop.held.set()
    assert [call.code() for call in held] == [grpc.StatusCode.OK] * 2
    assert client.codes(3) == "OOO"


# A plain handler may take a cancelled stream of requests for one that has ended, and so may we.
@pytest.mark.parametrize(
    ("flavour", "kind"),
    [("sync", "unary_stream"), ("aio", "unary_stream"), ("aio", "stream_unary")],
)
def test_a_call_that_its_client_cancels_counts(
    make: Callable[[str], Rig], flavour: str, kind: str
) -> None:
    rig = make(flavour)
    client = rig.limited("1/m", count_when=lambda code: False)
    over = threading.Event()

    def requests() -> Iterator[bytes]:
        yield b"x"
        over.wait(20)  # meanwhile the handler reads

    if kind == "unary_stream":
        held = client.begin(kind, b"hold", timeout=30)
    else:
        held = client.channel.stream_unary(f"/shop.Shop/{kind}").future(requests(), timeout=30)
    while not rig.shop.seen:
        threading.Event().wait(0.01)
    held.cancel()
    if kind == "unary_stream":
        # Else the handler may be done before the server hears of it, and that is no cancelled call.
        assert rig.shop.over.wait(20)
    over.set()
    rig.shop.held.set()
    for _ in range(10):  # also when the handler has heard of it
        assert client().code is LIMITED
        threading.Event().wait(0.02)


def test_a_call_whose_deadline_passes_while_it_waits_takes_nothing(
    make: Callable[[str], Rig],
) -> None:
    rig = make("aio")
    limit = rig.limit("1/h", timeout=7200)
    client = rig.serve(rig.interceptor(limit))
    assert client().code is grpc.StatusCode.OK
    late = client("unary_unary", timeout=0.3)
    assert late.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert len(rig.shop.seen) == 1

    def taken() -> float:
        return float(asyncio.run(limit.throttle().peek(HOST)).reset_after)

    while taken() > 3600:  # the server hears of it a little later
        threading.Event().wait(0.01)


@pytest.mark.parametrize(
    ("policy", "code"),
    [
        ("raise", grpc.StatusCode.UNAVAILABLE),
        ("deny", grpc.StatusCode.UNAVAILABLE),
        ("allow", grpc.StatusCode.OK),
        ("local", grpc.StatusCode.OK),
    ],
)
def test_a_dead_store_is_treated_as_the_policy_says(
    rig: Rig, policy: str, code: grpc.StatusCode, caplog: pytest.LogCaptureFixture
) -> None:
    store = rig.redis(f"redis://{HOST}:{free_port()}/0")
    answer = rig.limited("5/m", store=store, on_store_error=policy)()
    assert answer.code is code
    assert "Traceback" not in (answer.details or "")
    retry = answer.rich and answer.detail(error_details_pb2.RetryInfo)
    assert bool(retry) is (policy == "deny")
    assert any("503" in record.getMessage() for record in faults(caplog)) is (policy == "raise")


@pytest.mark.parametrize("what", ["key", "cost", "exempt"])
def test_a_function_that_fails_is_internal_and_named(
    rig: Rig, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(call: Call) -> Any:
        raise ZeroDivisionError("secret")

    answer = rig.limited("5/m", **{what: broken})()
    assert answer.code is grpc.StatusCode.INTERNAL
    assert "secret" not in answer.details
    assert any("broken" in record.getMessage() for record in faults(caplog))
    assert rig.shop.seen == []


def test_a_key_that_is_none_is_internal(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    assert rig.limited("5/m", key=lambda call: None)().code is grpc.StatusCode.INTERNAL
    assert "non-empty" in faults(caplog)[-1].getMessage()


def test_the_status_of_a_refusal_can_be_replaced(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    def status(call: Call, status: Any) -> Any:
        if call.header("junk"):
            return "junk"
        status.message = f"Slow down, {call.path}"
        return status

    client = rig.limited("1/m", status=status)
    client()
    refused = client()
    assert refused.code is LIMITED
    assert refused.details == refused.rich.message == "Slow down, /shop.Shop/unary_unary"
    assert refused.detail(error_details_pb2.RetryInfo) is not None
    refused = client("unary_unary", metadata=[("junk", "1")])
    assert refused.details == "Too many requests. Try again in 60 seconds."
    assert "status" in faults(caplog)[-1].getMessage()


def test_headers_come_in_the_style_that_is_asked_for(rig: Rig) -> None:
    told = rig.limited("3/m", headers="x")().trailing
    assert told["x-ratelimit-limit"] == "3"
    assert "ratelimit" not in told
    assert "ratelimit" not in rig.limited("3/m", headers=None)().trailing


def test_methods_that_do_not_exist_are_unimplemented(rig: Rig) -> None:
    client = rig.limited("1/m")
    call = client.channel.unary_unary("/shop.Shop/Nothing").future(b"x", timeout=30)
    assert call.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize(
    "wrong",
    [
        {"rules": {"GET /shop.Shop/Get": "1/m"}},
        {"rules": {"shop.Shop/Get": "1/m"}},
        {"rules": {"/shop.Shop": "1/m"}},
        {"rules": {"/shop.Shop/Get*": "1/m"}},
        {"rules": {"/shop.Shop/Get": "often"}},
        {"rules": "1/m"},
        {"exclude": ["/health"]},
        {"exclude": "/shop.Shop/Get"},
        {"exempt": True},
        {"status": "no"},
        {"headers": "loud"},
        {"reset": "epoch"},
        {"limit": "1/m", "key": "address"},
        {"limit": "1/m", "count_when": 5},
    ],
    ids=str,
)
@pytest.mark.parametrize("interceptor", [RateLimitInterceptor, AsyncRateLimitInterceptor])
def test_wrong_configuration_is_an_error_at_once(interceptor: Any, wrong: Any) -> None:
    with pytest.raises(DataError):
        interceptor(**wrong)


def test_a_limit_of_the_other_flavour_is_an_error() -> None:
    with pytest.raises(DataError):
        RateLimitInterceptor(AsyncRateLimit("1/m"))
    with pytest.raises(DataError):
        AsyncRateLimitInterceptor(Throttled(quota="1/m"))

    async def key(call: Call) -> str:
        return "key"

    with pytest.raises(DataError, match="async"):
        RateLimitInterceptor("1/m", key=key)


class Peer:
    """As much of a context as tells the peer."""

    def __init__(self, peer: str) -> None:
        self._peer = peer

    def peer(self) -> str:
        return self._peer


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:203.0.113.5:50051", "203.0.113.5"),
        ("ipv6:%5B::1%5D:5", "::1"),
        ("ipv6:[2001:db8::1]:443", "2001:db8::1"),
        ("ipv6:%5Bfe80::1%25eth0%5D:5", "fe80::1%eth0"),
        ("unix:", None),
        ("unix:/run/server.sock", None),
        ("junk", None),
    ],
)
def test_a_peer_is_its_address_without_scheme_and_port(peer: str, address: str | None) -> None:
    assert Call("/shop.Shop/Get", Peer(peer)).peer == address
