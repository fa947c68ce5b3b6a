"""Real servers of the service in this process, and what the tests call them by."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import grpc
import grpc.aio
import pytest

from throttled.service.server import SERVICE, Servicer
from throttled.service.v1 import throttled_pb2 as v1
from throttled.service.v1.throttled_pb2_grpc import RateLimiterStub

HOST = "127.0.0.1"
Code = grpc.StatusCode

_numbers = count(1)


def prefix() -> str:
    """A key prefix that nobody else counts under; the user of the documents may touch it."""
    return f"throttled:service{next(_numbers)}"


class Site:
    """A server with its servicer, and a channel to it."""

    def __init__(self, servicer: Servicer, address: str, channel: Any) -> None:
        self.servicer = servicer
        self.address = address
        self.channel = channel
        self.stub: Any = RateLimiterStub(channel)

    def raw(self, method: str, content: bytes, **arguments: Any) -> Any:
        """A call with any bytes."""
        return self.channel.unary_unary(f"/{SERVICE}/{method}")(content, **arguments)

    def check(self, policy: str, key: str, **fields: Any) -> Any:
        return self.stub.Check(v1.CheckRequest(policy=policy, key=key, **fields))

    async def remaining(self, policy: str, key: str) -> int:
        """What a key can spend now."""
        decision = await self.stub.Peek(v1.PeekRequest(policy=policy, key=key))
        left: int = decision.states[decision.binding].remaining
        return left

    def reserve(self, policy: str, key: str, **fields: Any) -> Any:
        return self.stub.Reserve(v1.ReserveRequest(policy=policy, key=key, **fields))

    async def settle(self, ticket: str, actual: int | None = None) -> bool:
        """Whether this settled it."""
        answer = await self.stub.Settle(v1.SettleRequest(ticket=ticket, actual=actual))
        done: bool = answer.settled
        return done


def connected(address: str) -> Any:
    """A channel with connections of its own: channels may share them otherwise."""
    return grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])


@asynccontextmanager
async def site(policies: Mapping[str, Any], **arguments: Any) -> AsyncIterator[Site]:
    """A server of these policies for as long as the block runs."""
    server = grpc.aio.server()
    servicer = Servicer(policies, **arguments)
    servicer.add_to(server)
    port = server.add_insecure_port(f"{HOST}:0")
    await server.start()
    address = f"{HOST}:{port}"
    try:
        async with connected(address) as channel:
            yield Site(servicer, address, channel)
    finally:
        await server.stop(None)
        await servicer.ended()


async def refused(call: Awaitable[Any], code: grpc.StatusCode, text: str = "") -> str:
    """What is said with a call that ends with that status."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = caught.value
    assert error.code() is code, error
    details = error.details() or ""
    assert text in details
    return details


async def until(fine: Callable[[], Any]) -> None:
    """Wait until something is true."""
    for _ in range(2_000):
        if fine():
            return
        await asyncio.sleep(0.005)
    raise TimeoutError("it did not come true")
