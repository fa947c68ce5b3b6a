"""Where the service listens, and what keeps it from that."""

from __future__ import annotations

import socket
from contextlib import closing
from pathlib import Path

import pytest

from tests.service.sites import HOST, Code, connected, refused
from tests.service.test_serving import SERVING, check, events, health, running
from throttled.exceptions import SetUpError
from throttled.service.server import SERVICE


async def test_it_listens_where_it_says(tmp_path: Path) -> None:
    addresses = [f"{HOST}:0", "localhost:0", f"unix:{tmp_path}/socket"]
    if socket.has_dualstack_ipv6():
        addresses.append("[::1]:0")
    for listen in addresses:
        async with running(listen=listen) as service, connected(service.address) as channel:
            assert not service.address.endswith(":0")
            assert service.told_addresses() == [f"gRPC on {service.address}"]
            assert (await check(channel)).allowed
            for name in ("", SERVICE):
                assert (await health(channel, name)).status == SERVING
            await refused(health(channel, "other"), Code.NOT_FOUND)


@pytest.mark.parametrize("what", ["listen", "http"])
async def test_an_address_that_cannot_be(what: str, caplog: pytest.LogCaptureFixture) -> None:
    such = {"listen": "'127.0.0.1:50051'", "http": "'127.0.0.1:9464' or"}[what]
    for wrong in ("", "50051", ":50051", "host:", "host:x", "host:65536", "::1:50051", "a:1:b"):
        with pytest.raises(SetUpError, match=f"Invalid {what}: '{wrong}', must be such as {such}"):
            async with running(**{what: wrong}):
                pass
    with closing(socket.create_server((HOST, 0))) as taken:
        address = f"{HOST}:{taken.getsockname()[1]}"
        text = rf"Cannot listen on {address}: Address already in use\."
        with pytest.raises(SetUpError, match=text):
            async with running(**{what: address}):
                pass
    with pytest.raises(SetUpError, match=r"Cannot listen on nowhere\.invalid:1: "):
        async with running(**{what: "nowhere.invalid:1"}):
            pass
    assert "started" not in events(caplog)


async def test_two_services_do_not_share_a_port() -> None:
    async with running() as service:
        with pytest.raises(SetUpError, match="Address already in use"):
            async with running(listen=service.address):
                pass


async def test_services_of_one_loop_stop_each_by_itself() -> None:
    async with running() as first, running() as second:
        await first.stop(0)
        async with connected(second.address) as channel:
            assert (await check(channel)).allowed
    for service in (first, second):
        host, _, port = service.address.rpartition(":")
        with pytest.raises(OSError, match=r"refused"):
            socket.create_connection((host, int(port)))


async def test_two_services_do_not_share_a_socket(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/socket"
    async with running(listen=address) as service, connected(service.address) as channel:
        for same in (address, f"unix://{tmp_path}/socket"):
            with pytest.raises(SetUpError, match=r"socket: Address already in use\."):
                async with running(listen=same):
                    pass
        assert (await check(channel)).allowed


async def test_a_socket_that_was_left_behind_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with closing(socket.socket(socket.AF_UNIX)) as gone:
        gone.bind(str(path))
    assert path.is_socket()
    async with running(listen=f"unix:{path}") as service, connected(service.address) as channel:
        assert (await check(channel)).allowed


async def test_a_path_that_cannot_be(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for wrong in ("unix:", "unix://", "unix:."):
        with pytest.raises(SetUpError, match=f"Invalid listen: '{wrong}', must be such as"):
            async with running(listen=wrong):
                pass
    for path, why in (
        (tmp_path / "none" / "socket", "No such file or directory"),
        (file, "File exists"),
        (tmp_path, "File exists"),
        (tmp_path / ("x" * 200), "AF_UNIX path too long"),
    ):
        with pytest.raises(SetUpError, match=rf"Cannot listen on unix:{path}: {why}\."):
            async with running(listen=f"unix:{path}"):
                pass
    assert file.read_bytes() == b""
