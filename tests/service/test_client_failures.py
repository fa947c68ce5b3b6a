"""A service that fails, refuses, or is not what it should be."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import grpc
import pytest
import trustme

from tests.failing import DOWN, LocalFailingStore
from tests.servers import HOST, free_port, wait_until
from tests.service.clients import PATIENT, Caller, Service, caller, client, service
from throttled import MemoryStore, Rule
from throttled.exceptions import (
    DataError,
    LimitedError,
    OperationNotSupportedError,
    ServiceUnavailableError,
    SetUpError,
    StateError,
    StoreUnavailableError,
)
from throttled.service.remote import error_of, result_of
from throttled.service.tokens import Guard, Tokens
from throttled.service.v1 import throttled_pb2 as v1
from throttled.testing import FakeClock

pytestmark = pytest.mark.realtime

__all__ = ["caller", "client", "service"]

WORDS = ["raise", "allow", "deny", "local"]

#: What is said of calls while there is no service.
FAILED = {"raised", "allowed-by-policy", "denied-by-policy", "fallback"}

SERVER = """
import asyncio, sys, grpc
from throttled import MemoryStore
from throttled.asyncio import Throttled
from throttled.service.server import Servicer

async def main():
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    Servicer({"api": Throttled(quota="1000000/d", store=MemoryStore())}).add_to(server)
    server.add_insecure_port(sys.argv[1])
    await server.start()
    print("ready", flush=True)
    await server.wait_for_termination()

asyncio.run(main())
"""


class Process:
    """A service in a process of its own, always at the same port."""

    def __init__(self) -> None:
        self.target = f"{HOST}:{free_port()}"
        self._child: Any = None

    def start(self) -> Self:
        self._child = subprocess.Popen(
            [sys.executable, "-c", SERVER, self.target],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert self._child.stdout.readline() == "ready\n"
        return self

    def send(self, sign: signal.Signals) -> None:
        self._child.send_signal(sign)

    def kill(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.wait(PATIENT)
            self._child.stdout.close()
            self._child = None


@pytest.fixture
def process() -> Iterator[Process]:
    process = Process()
    yield process
    process.kill()


@pytest.fixture
def nowhere() -> str:
    """Where nobody listens."""
    return f"{HOST}:{free_port()}"


# -- on_store_error -------------------------------------------------------------------------------


def test_what_is_done_when_there_is_no_service(caller: Caller, nowhere: str) -> None:
    client = caller.client(nowhere)
    heard: list[Any] = []
    with pytest.raises(ServiceUnavailableError, match=f"The service at {nowhere} is not ava"):
        caller.wait(client.policy("api", on_error=heard.append).limit("k"))
    assert [type(event.error) for event in heard] == [ServiceUnavailableError]
    with pytest.raises(StoreUnavailableError):
        caller.wait(client.policy("api").limit("k", timeout=5))
    allowing = client.policy("api", on_store_error="allow")
    result = caller.wait(allowing.limit("k"))
    assert (result.limited, result.source, result.rules) == (False, "allowed-by-policy", ())
    assert caller.wait(allowing.limit("k", timeout=5)).source == "allowed-by-policy"
    assert caller.wait(allowing.peek("k")).remaining == 0
    assert caller.wait(allowing.forecast("k")).next_replenish_at is None
    caller.wait(allowing.debit("k", 1))
    assert not caller.wait(allowing.refund("k", 1))
    caller.wait(allowing.reset("k"))
    caller.wait(caller.wait(allowing.reserve("k", 3)).settle(1))
    denying = client.policy("api", on_store_error="deny")
    results = caller.wait(denying.limit_many(["a", "b"]))
    assert [each.source for each in results] == ["denied-by-policy"] * 2
    assert results[0].state.retry_after == 1.0
    with pytest.raises(LimitedError, match="on_store_error='deny'"):
        caller.wait(denying.reserve("k"))
    assert caller.wait(denying.forecast("k")).spendable_now == 0
    health = denying.store.health()
    assert not health.ok
    assert "is not available" in str(health.last_error)


def test_who_stands_in(caller: Caller, nowhere: str) -> None:
    client = caller.client(nowhere)
    clock = FakeClock()
    store = MemoryStore(clock=clock)
    for instead in ("local", store):
        api = client.policy("api", quota="2/m; 100/d", using="gcra", on_store_error=instead)
        results = [caller.wait(api.limit("k")) for _ in range(3)]
        assert [each.limited for each in results] == [False, False, True]
        assert {each.source for each in results} == {"fallback"}
        assert results[0].rules[0] == Rule("2/m", using="gcra")
        assert caller.wait(api.forecast("k")).spendable_now == 0
        assert caller.wait(api.peek("k")).remaining == 0
        assert caller.wait(api.refund("k", 1))
        caller.wait(api.debit("k", 1))
        caller.wait(api.reset("k"))
        reservation = caller.wait(api.reserve("k", 2))
        assert reservation.result.source == "fallback"
        caller.wait(reservation.settle(1))
        assert caller.wait(api.peek("k")).remaining == 1
        nothing = caller.wait(api.reserve("k", 0))
        assert nothing.result.source == "fallback"
    fixed = client.policy("api", quota=Rule("9/m", cost=1), on_store_error=store)
    with pytest.raises(DataError, match="Invalid use of debit: every rule has a cost of its own"):
        caller.wait(fixed.debit("k", 1))
    waiting = client.policy("api", quota="1/m burst 1", on_store_error=store, timeout=90)
    caller.wait(waiting.limit("waits"))
    before = clock.now
    assert not caller.wait(waiting.limit("waits")).limited
    assert clock.now == before + 60
    # Under the keys that the policy file gives the policy, so that it may be the same Redis.
    assert any(name.startswith("throttled:api:v1:") for name in store._cells)


@pytest.mark.slow
def test_killed_and_started_again_under_load(process: Process, caller: Caller) -> None:
    process.start()
    client = caller.client(process.target, decision_timeout=5.0)
    policies = {
        word: client.policy("api", on_store_error=word, quota="1000000/d") for word in WORDS
    }
    seen: dict[str, list[Any]] = {word: [] for word in WORDS}
    stop = threading.Event()

    def ask_on(word: str) -> None:
        while not stop.is_set():
            try:
                seen[word].append(policies[word].limit(word).source)
            except ServiceUnavailableError:
                seen[word].append("raised")
                time.sleep(0.005)

    async def aask_on(word: str) -> None:
        while not stop.is_set():
            try:
                seen[word].append((await policies[word].limit(word)).source)
            except ServiceUnavailableError:
                seen[word].append("raised")
                await asyncio.sleep(0.005)
            await asyncio.sleep(0)

    def everybody(answer: set[str]) -> bool:
        return all(each and each[-1] in answer for each in seen.values())

    def happen() -> None:
        try:
            for _ in range(2):
                wait_until(lambda: everybody({"memory"}), "decisions")
                process.kill()
                wait_until(lambda: everybody(FAILED), "failures")
                process.start()
                since = {word: len(each) for word, each in seen.items()}
                wait_until(
                    lambda: all("memory" in seen[word][since[word] :] for word in WORDS),  # noqa: B023
                    "decisions again",
                )
        finally:
            stop.set()

    with ThreadPoolExecutor(16) as pool:
        happening = pool.submit(happen)
        if caller.asynchronous:

            async def all_ask() -> None:
                await asyncio.gather(*[aask_on(word) for word in WORDS for _ in range(4)])

            caller.wait(all_ask())
        else:
            asking = [pool.submit(ask_on, word) for word in WORDS for _ in range(2)]
            for each in asking:
                each.result(PATIENT * 2)
        happening.result(PATIENT)
    assert {word: set(each) - {"memory"} for word, each in seen.items()} == {
        "raise": {"raised"},
        "allow": {"allowed-by-policy"},
        "deny": {"denied-by-policy"},
        "local": {"fallback"},
    }


def test_a_service_that_hangs(process: Process, caller: Caller) -> None:
    process.start()
    client = caller.client(process.target, decision_timeout=0.3)
    api = client.policy("api", on_store_error="allow")
    wait_until(lambda: caller.wait(api.limit("k")).source == "memory", "a decision")
    process.send(signal.SIGSTOP)
    try:
        assert caller.wait(api.limit("k")).source == "allowed-by-policy"
        assert "whether it was counted is not known" in str(api.store.health().last_error)
        assert caller.wait(api.limit_many(["k"]))[0].source == "allowed-by-policy"
        assert caller.wait(api.limit("k", timeout=0.1)).source == "allowed-by-policy"
    finally:
        process.send(signal.SIGCONT)
    wait_until(lambda: caller.wait(api.limit("k")).source == "memory", "a decision")


def test_a_service_that_hangs_is_left_alone(
    process: Process, caller: Caller, caplog: pytest.LogCaptureFixture
) -> None:
    process.start()
    client = caller.client(process.target, decision_timeout=0.4)
    api, other = client.policy("api", on_store_error="allow"), client.policy("api")
    wait_until(lambda: caller.wait(api.limit("k")).source == "memory", "a decision")
    process.send(signal.SIGSTOP)
    try:
        for _ in range(3):
            caller.wait(api.limit("k"))
        began = time.monotonic()
        sources = [caller.wait(api.limit("k")).source for _ in range(20)]
        # Two of them at most were probes: none would have waited for 8 s.
        assert time.monotonic() - began < 4
        assert set(sources) == {"allowed-by-policy"}
        assert api.store.health().state in ("open", "half-open")
        for call in (other.limit, other.peek, other.reset):
            with pytest.raises(ServiceUnavailableError, match=r"left alone|within 0\.4 s"):
                caller.wait(call("k"))
        assert "failed 3 times in a row and is left alone" in caplog.text
    finally:
        process.send(signal.SIGCONT)
    wait_until(lambda: caller.wait(api.limit("k")).source == "memory", "a decision")
    assert api.store.health().state == "closed"


def test_the_first_call_waits_for_the_connection(process: Process, caller: Caller) -> None:
    process.start()
    for _ in range(5):
        api = caller.client(process.target).policy("api")
        assert caller.wait(api.limit("k")).source == "memory"


def test_a_client_that_is_closed_meanwhile(caller: Caller, service: Service) -> None:
    client = caller.client(service.target)
    one = client.policy("one")
    service.store.sleeper = None  # it really waits
    caller.wait(one.limit("k", 1))
    if caller.asynchronous:

        async def main() -> Any:
            waiter = asyncio.create_task(one.limit("k", timeout=PATIENT))
            await asyncio.to_thread(wait_until, service.servicer.waiting, "waiting")
            await client.close()
            return (await asyncio.gather(waiter, return_exceptions=True))[0]

        error = caller.wait(main())
    else:
        with ThreadPoolExecutor() as pool:
            waiter = pool.submit(one.limit, "k", timeout=PATIENT)
            wait_until(service.servicer.waiting, "waiting")
            client.close()
            error = waiter.exception(PATIENT)
    assert isinstance(error, ServiceUnavailableError)
    assert "was closed" in str(error)


# -- who may call, and over what ------------------------------------------------------------------


def test_tokens(caller: Caller) -> None:
    with Service(interceptors=[Guard(Tokens(["sesame-open-the-door"]))]) as service:
        right = caller.client(service.target, token="sesame-open-the-door")
        assert not caller.wait(right.policy("api").limit("k")).limited
        for token in (None, "sesame"):
            wrong = caller.client(service.target, token=token, on_store_error="allow")
            api = wrong.policy("api")
            # It fails open for nobody who is not let in.
            for ask in (
                lambda: api.limit("k"),  # noqa: B023
                lambda: api.limit_many(["a", "b"]),  # noqa: B023
                lambda: api.limit("k", timeout=1),  # noqa: B023
                lambda: api.reserve("k"),  # noqa: B023
                lambda: api.peek("k"),  # noqa: B023
            ):
                with pytest.raises(SetUpError, match=r"says: .*token") as caught:
                    caller.wait(ask())
                assert "sesame" not in str(caught.value)


def test_encrypted(caller: Caller, tmp_path: Path) -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    served, own = authority.issue_cert(HOST), authority.issue_cert("client")
    files = {
        "ca": authority.cert_pem,
        "stranger": stranger.cert_pem,
        "cert": own.cert_chain_pems[0],
        "key": own.private_key_pem,
    }
    paths = {name: tmp_path / f"{name}.pem" for name in files}
    for name, blob in files.items():
        blob.write_to_path(str(paths[name]))
    credentials = grpc.ssl_server_credentials(
        [(served.private_key_pem.bytes(), served.cert_chain_pems[0].bytes())],
        root_certificates=authority.cert_pem.bytes(),
        require_client_auth=True,
    )
    with Service(credentials=credentials) as service:
        mutual = caller.client(
            service.target, ca=paths["ca"], cert=str(paths["cert"]), key=paths["key"], token="t"
        )
        assert not caller.wait(mutual.policy("api").limit("k")).limited
        for options in (
            {"ca": paths["stranger"], "cert": paths["cert"], "key": paths["key"]},
            {"ca": paths["ca"]},
            {"tls": True},
            {},
        ):
            other = caller.client(service.target, **options).policy("api")
            with pytest.raises(ServiceUnavailableError):
                caller.wait(other.limit("k"))


def test_options_of_the_channel_come_last(caller: Caller, service: Service) -> None:
    client = caller.client(service.target, options={"grpc.max_receive_message_length": 1})
    with pytest.raises(ServiceUnavailableError, match="RESOURCE_EXHAUSTED"):
        caller.wait(client.policy("api").limit("k"))


# -- answers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "error", "text"),
    [
        (1, ServiceUnavailableError, "failed with CANCELLED: why"),
        (3, DataError, "The service at h:1 says: why"),
        (4, ServiceUnavailableError, "did not answer within 0.5 s"),
        (7, SetUpError, "says: why"),
        (8, ServiceUnavailableError, "failed with RESOURCE_EXHAUSTED: why"),
        (12, OperationNotSupportedError, "says: why"),
        (13, ServiceUnavailableError, "failed with INTERNAL: why"),
        (14, ServiceUnavailableError, "is not available: why"),
        (15, StateError, "says: why"),
        (16, SetUpError, "says: why"),
        (99, ServiceUnavailableError, "failed with 99: why"),
    ],
)
def test_errors_by_their_status(code: int, error: type[Exception], text: str) -> None:
    made = error_of(code, "why", "h:1", 0.5)
    assert type(made) is error
    assert text in str(made)


class Ahead:
    """A service of a later version."""

    def __init__(self, policies: Any) -> None:
        self.answer = v1.Decision()

    def add_to(self, server: Any) -> None:
        async def check(request: bytes, context: Any) -> bytes:
            return bytes(self.answer.SerializeToString())

        async def check_many(request: bytes, context: Any) -> bytes:
            return bytes(v1.CheckManyResponse().SerializeToString())

        methods = {
            "Check": grpc.unary_unary_rpc_method_handler(check),
            "CheckMany": grpc.unary_unary_rpc_method_handler(check_many),
        }
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("throttled.v1.RateLimiter", methods),)
        )


def test_answers_that_cannot_be_read(caller: Caller) -> None:
    with Service(servicer=Ahead) as service:
        api = caller.client(service.target).policy("api")
        state = v1.State(limit=1)
        for answer in (
            v1.Decision(),
            v1.Decision(states=[state], binding=1),
            v1.Decision(states=[state], rules=[v1.Rule(quota="1/s", algorithm="magic")]),
            v1.Decision(states=[state], rules=[v1.Rule(quota="1 a fortnight")]),
        ):
            service.servicer.answer = answer
            with pytest.raises(ServiceUnavailableError, match="this version cannot read"):
                caller.wait(api.limit("k"))
            with pytest.raises(ServiceUnavailableError, match="this version cannot read"):
                caller.wait(api.limit("k", timeout=1))
        with pytest.raises(ServiceUnavailableError, match="0 results for 2 checks"):
            caller.wait(api.limit_many(["a", "b"]))
        with pytest.raises(OperationNotSupportedError, match="Method not found"):
            caller.wait(api.reset("k"))


def test_a_source_of_a_later_version_is_the_service() -> None:
    decision = v1.Decision(allowed=True, states=[v1.State(limit=1)])
    decision.MergeFromString(b"\x10\x63")  # source = 99
    assert result_of(decision).source == "server"


def test_a_store_that_fails_behind_the_service(caller: Caller) -> None:
    with Service({"api": {"quota": "3/m"}}, store=LocalFailingStore()) as service:
        client = caller.client(service.target)
        service.store.fail()
        api, allowing = client.policy("api"), client.policy("api", on_store_error="allow")
        with pytest.raises(ServiceUnavailableError, match=DOWN):
            caller.wait(api.limit("k"))
        with pytest.raises(ServiceUnavailableError, match=DOWN) as caught:
            caller.wait(api.limit_many(["a", "b"]))
        assert len(caught.value.outcomes) == 2
        assert caller.wait(allowing.limit("k")).source == "allowed-by-policy"
        service.store.recover()
        service.store.bad_keys["bad"] = StateError("The state of a key is damaged")
        with pytest.raises(StateError, match="says: The state of a key is damaged"):
            caller.wait(api.limit("bad"))
        assert [each.source for each in caller.wait(allowing.limit_many(["a", "bad"]))] == [
            "memory",
            "allowed-by-policy",
        ]
