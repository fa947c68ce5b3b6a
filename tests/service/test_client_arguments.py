"""What clients and their policies take, and say of what they do not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

import throttled
import throttled.asyncio.service as async_service
from tests.service.clients import POLICIES, Caller, Service, caller, client, service
from throttled import MemoryStore
from throttled.exceptions import (
    DataError,
    OperationNotSupportedError,
    PolicyNotFoundError,
    SetUpError,
)
from throttled.service import Client

__all__ = ["caller", "client", "service"]


WRONG: list[tuple[Callable[[Any], Any], type[Exception], str]] = [
    (lambda api: api.quota, DataError, "those of policy 'api' are the service's"),
    (lambda api: api.rules, DataError, "those of policy 'api' are the service's"),
    (lambda api: setattr(api, "quota", "1/s"), DataError, "are the service's, where they"),
    (lambda api: api.penalize("k", 1), OperationNotSupportedError, "hold=True"),
    (lambda api: api.limit_all([(api, "a"), (api, "b")]), OperationNotSupportedError, "at once"),
    (lambda api: api.limit("k" * 4097), DataError, "must be at most 4096 characters"),
    (lambda api: api.limit("\ud800"), DataError, "must be text that UTF-8 can say"),
    (lambda api: api.limit("k", -1), DataError, "Invalid cost: -1"),
    (lambda api: api.limit_many(["a", ""]), DataError, "Invalid calls"),
    (lambda api: api.limit("k", timeout=-2), DataError, "Invalid timeout: -2"),
    (lambda api: api.debit("k", 10**10), DataError, "Invalid n: 10000000000"),
    (lambda api: api.reserve("k", on_error="x"), DataError, "Invalid on_error: 'x'"),
]


@pytest.mark.parametrize("place", range(len(WRONG)))
def test_what_cannot_be(caller: Caller, client: Any, service: Service, place: int) -> None:
    wrong, error, text = WRONG[place]
    with pytest.raises(error, match=text):
        caller.wait(wrong(client.policy("api")))
    assert service.asked == []


def test_what_the_service_refuses_to_do(caller: Caller, client: Any, service: Service) -> None:
    nobody = client.policy("nobody", on_store_error="allow")
    with pytest.raises(
        PolicyNotFoundError, match=f"at {service.target} says: .*'nobody'"
    ) as caught:
        caller.wait(nobody.limit("k"))
    assert isinstance(caught.value, KeyError)
    with pytest.raises(PolicyNotFoundError):
        caller.wait(nobody.limit_many(["a", "b"]))
    service.servicer.operations = lambda name: frozenset({"check"})
    api = client.policy("api", on_store_error="allow")
    for refused in (
        lambda: api.peek("k"),
        lambda: api.forecast("k"),
        lambda: api.debit("k", 1),
        lambda: api.refund("k", 1),
        lambda: api.reserve("k"),
        lambda: api.reset("k"),
    ):
        with pytest.raises(OperationNotSupportedError, match="does not permit"):
            caller.wait(refused())
    assert not caller.wait(api.limit("k", 0)).limited


WRONG_CLIENTS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"target": None}, DataError, "Invalid target: None, must be host:port"),
    ({"target": "localhost"}, DataError, "must be host:port such as 'localhost:50051'"),
    ({"target": "https://localhost:50051"}, DataError, "tls=True encrypts"),
    ({"token": "secret\n"}, DataError, "Invalid token: must be printable ASCII"),
    ({"token": ""}, DataError, "Invalid token: must be printable ASCII"),
    ({"tls": "yes"}, DataError, "Invalid tls: 'yes', must be True or False"),
    ({"cert": "a.pem"}, SetUpError, "cert and key go together"),
    ({"ca": "/nowhere/ca.pem"}, SetUpError, "Invalid ca: '/nowhere/ca.pem', must be a file"),
    ({"ca": __file__}, SetUpError, "must be in PEM"),
    ({"decision_timeout": 0}, DataError, "Invalid decision_timeout: 0, must be seconds above 0"),
    ({"on_store_error": "pass"}, DataError, "Invalid on_store_error: 'pass'"),
    ({"options": ["x"]}, DataError, r"Invalid options: \['x'\]"),
]


@pytest.mark.parametrize("place", range(len(WRONG_CLIENTS)))
@pytest.mark.parametrize("made", [Client, async_service.Client], ids=["sync", "async"])
def test_clients_that_cannot_be(made: Any, place: int) -> None:
    arguments, error, text = WRONG_CLIENTS[place]
    with pytest.raises(error, match=text) as caught:
        made(**{"target": "localhost:1", **arguments})
    assert "secret" not in str(caught.value)


def test_policies_that_cannot_be(client: Any) -> None:
    for name in ("", 5, "a\nb"):
        with pytest.raises(DataError, match="Invalid name"):
            client.policy(name)
    for instead in ("local", MemoryStore()):
        with pytest.raises(DataError, match="needs quota= for what is to stand in"):
            client.policy("api", on_store_error=instead)
    with pytest.raises(DataError, match="Invalid on_store_error: 'pass'"):
        client.policy("api", on_store_error="pass")
    with pytest.raises(DataError, match="Invalid quota: '1/parsec'"):
        client.policy("api", quota="1/parsec")
    with pytest.raises(DataError, match="Invalid per"):
        client.policy("api", per="day")


def test_a_secret_is_shown_nowhere() -> None:
    client = Client("localhost:1", token="my-secret")
    assert "my-secret" not in repr(client) + repr(client.policy("api")) + repr(
        client.policy("a").store
    )


def test_the_names_are_those_of_the_other_flavour() -> None:
    import throttled.service as sync_service

    assert sync_service.__all__ == async_service.__all__
    assert {*POLICIES} > {"api"}
    assert issubclass(sync_service.Policy, throttled.Throttled)


WITHOUT = """
import sys
sys.modules["grpc"] = None
from throttled.exceptions import SetUpError
from throttled.service import Client
from throttled.asyncio.service import Client as AsyncClient
for made in (Client, AsyncClient):
    try:
        made("localhost:50051")
    except SetUpError as error:
        print(error)
"""


def test_without_grpc_it_is_said_what_to_install() -> None:
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT], capture_output=True, text=True, timeout=60, check=True
    )
    lines = run.stdout.splitlines()
    assert len(lines) == 2
    assert all("pip install 'throttled-core[client]'" in line for line in lines)


def test_nothing_is_loaded_or_connected_before_it_is_used() -> None:
    look = "import sys, throttled.service, throttled.asyncio.service; print('grpc' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, timeout=60)
    assert run.stdout.strip() == "False", run.stderr
    client = Client("localhost:1")
    client.policy("api")
    assert client._channel is None
