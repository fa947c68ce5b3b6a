"""Fixtures that several test files share."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from hypothesis import HealthCheck, settings

from tests import acl
from tests.contract import Kind, Rig
from tests.realtime import RERUNS, WATCH
from tests.servers import Server, binaries, server, valkey

__all__ = ["make_rig", "server", "server_named", "valkey"]

# Servers are stopped with calls open, of which gRPC writes to stderr.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # So it is for what runs in the background of a shell, and would be for programs that tests
    # start and interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile(
    "tests",
    deadline=None,
    max_examples=60,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
#: For a long look now and then: pytest --hypothesis-profile=search
settings.register_profile(
    "search", settings.get_profile("tests"), max_examples=5000, derandomize=False
)
settings.load_profile("tests")


def in_real_time(item: pytest.Item) -> bool:
    """Whether a test waits in real time; what asks a server does, for as long as that may take."""
    return any(item.get_closest_marker(name) for name in ("realtime", "server"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if in_real_time(item):
            item.add_marker(pytest.mark.flaky(reruns=RERUNS, condition=WATCH.stood_still))


@pytest.fixture(autouse=True)
def _watch(request: pytest.FixtureRequest) -> Iterator[None]:
    """Watches whether time goes on, where a test waits in it."""
    if not in_real_time(request.node):
        yield
        return
    with WATCH():
        yield


@pytest.fixture(scope="session")
def server_named() -> Iterator[Callable[[str], Server]]:
    """A server by the name of its binary, started when first asked for.

    It knows the user of the documents; who connects without a name may do anything.
    """
    started: dict[str, Server] = {}
    with ExitStack() as stack:

        def get(name: str) -> Server:
            if name not in started:
                started[name] = stack.enter_context(Server(binaries()[name]))
                acl.SERVER.enter(started[name])
            return started[name]

        yield get


@pytest.fixture
def make_rig(server_named: Callable[[str], Server]) -> Iterator[Callable[..., Rig]]:
    """Makes rigs, and closes them after the test.

    On a real server their stores have the rights that the documents grant, and no others.
    """
    with ExitStack() as stack:

        def make(kind: Kind, algorithm: str = "token_bucket") -> Rig:
            if kind.real:
                server = server_named(kind.where)
                raw = stack.enter_context(server.client())
                rig = Rig(kind, algorithm, acl.SERVER.url(server.url), raw)
            else:
                rig = Rig(kind, algorithm)
            stack.callback(rig.close)
            return rig

        yield make
