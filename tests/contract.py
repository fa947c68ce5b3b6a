"""What the contract tests run on: every kind of store, sync and async, behind one sync face."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from itertools import count
from typing import Any

import fakeredis
import pytest

from tests.servers import PATIENCE, binaries
from throttled import MemoryStore, Throttled
from throttled.algorithms.plan import LOOK, Plan, make_plan
from throttled.asyncio.throttled import Throttled as AsyncThrottled
from throttled.quota import Quota
from throttled.result import RateLimitResult, RateLimitState
from throttled.store.aioredis import RedisStore as AsyncRedisStore
from throttled.store.redis import RedisStore
from throttled.store.wire import escaped
from throttled.testing import FakeClock

#: More patience than any wait takes, in µs; never infinite, for what never fits waits infinitely.
FOREVER = 2.0**62

#: What is decided is the subject, not how fast a busy machine connects.
PATIENT = {"DECISION_TIMEOUT": PATIENCE}

_numbers = count(1)


@dataclass(frozen=True)
class Kind:
    """A store and a flavour: memory, fakeredis, or the name of a server's binary."""

    where: str
    asynchronous: bool = False

    def __str__(self) -> str:
        return self.where + ("-async" if self.asynchronous else "")

    @property
    def memory(self) -> bool:
        return self.where == "memory"

    @property
    def real(self) -> bool:
        return self.where in binaries()


KINDS = [
    Kind(where, flavour)
    for where in ("memory", "fakeredis", *binaries())
    for flavour in (False, True)
]
#: For `parametrize`: every kind, those on a real server with the mark for it.
STORES = [
    pytest.param(kind, id=str(kind), marks=[pytest.mark.server] if kind.real else [])
    for kind in KINDS
]


class Rig:
    """A store of some kind on a fake clock, and one algorithm.

    Offers what a store offers, without `await` whatever the flavour, and `limiter`.
    """

    def __init__(
        self, kind: Kind, algorithm: str = "token_bucket", url: str = "", raw: Any = None
    ) -> None:
        self.kind = kind
        self.algorithm = algorithm
        self.clock = FakeClock(1_700_000_000.123457)
        #: No two rigs share a key, whatever server they share. The user of the documents may touch
        #: keys that begin like this.
        self.prefix = f"throttled:rig{next(_numbers)}"
        self._runner = asyncio.Runner() if kind.asynchronous else None
        #: A plain client to look at a server with.
        self.raw = raw
        self.store: Any
        if kind.memory:
            self.store = MemoryStore(clock=self.clock)
        elif kind.where == "fakeredis":
            server = fakeredis.FakeServer()
            self.raw = fakeredis.FakeRedis(server=server)
            if kind.asynchronous:
                client = fakeredis.FakeAsyncRedis(server=server)
                self.store = AsyncRedisStore(client=client, options=PATIENT, clock=self.clock)
            else:
                client = fakeredis.FakeRedis(server=server)
                self.store = RedisStore(client=client, options=PATIENT, clock=self.clock)
            self._client = client
        else:
            self._url = url
            self.store = self._on_server(clock=self.clock)

    def _on_server(self, **arguments: Any) -> Any:
        made = AsyncRedisStore if self.kind.asynchronous else RedisStore
        return made(self._url, PATIENT, **arguments)

    def wall_store(self) -> Any:
        """A store on the same server that goes by the server's time; close it."""
        return self._on_server()

    def close(self) -> None:
        self.wait(self.store.close())
        if self.kind.where == "fakeredis":
            self.wait(self._client.aclose() if self.kind.asynchronous else self._client.close())
            self.raw.close()
        if self._runner is not None:
            self._runner.close()

    def wait(self, value: Any) -> Any:
        """The value, awaited if it has to be."""
        if isinstance(value, Coroutine):
            assert self._runner is not None
            return self._runner.run(value)
        return value

    # -- the store --------------------------------------------------------------------------------

    @property
    def now(self) -> float:
        """µs since the epoch."""
        return self.clock.now_us()

    def after(self, microseconds: float) -> None:
        """Let time pass."""
        self.clock.sleep_until(self.clock.now_us() + microseconds)

    def plan(self, quota: str, algorithm: str | None = None) -> Plan:
        return make_plan(algorithm or self.algorithm, Quota.parse(quota), self.prefix)

    def run(self, plan: Plan, key: str, cost: int = 1, patience: float = 0.0) -> Any:
        return self.wait(self.store.run(plan, key, cost, patience))

    def look(self, plan: Plan, key: str, cost: int = 1) -> tuple[float, float, float]:
        """wait, remaining, reset_after."""
        return tuple(self.run(plan, key, cost, LOOK)[1:4])  # type: ignore[return-value]

    def free(self, plan: Plan, key: str) -> int:
        return int(self.look(plan, key)[1])

    def drain(self, plan: Plan, key: str) -> None:
        """Take all that is free."""
        free = self.free(plan, key)
        if free:
            assert self.run(plan, key, free)[1] == 0

    def promise(self, plan: Plan, key: str, cost: int = 1) -> Any:
        """A slot however far; the ticket, which must exist."""
        ticket, wait, *_ = self.run(plan, key, cost, FOREVER)
        assert 0 < wait <= FOREVER
        assert ticket.slot == self.now + wait
        return ticket

    def adjust(self, plan: Plan, key: str, delta: int, slot: float | None = None) -> bool:
        return bool(self.wait(self.store.adjust(plan, key, delta, slot)))

    def undo(self, ticket: Any) -> bool:
        return bool(self.wait(self.store.undo(ticket)))

    def withdraw(self, ticket: Any) -> None:
        self.wait(self.store.withdraw(ticket))

    def arrived(self, ticket: Any) -> None:
        self.wait(self.store.arrived(ticket))

    def reset(self, plan: Plan, key: str) -> None:
        self.wait(self.store.reset(plan, key))

    # -- what is stored ---------------------------------------------------------------------------

    def name(self, plan: Plan, key: str) -> str:
        return plan.prefix + "{" + escaped(key) + "}"

    def dump(self, plan: Plan, key: str) -> tuple[str, ...] | None:
        """The stored state as text; None when there is none."""
        if self.kind.memory:
            found: tuple[str, ...] | None = self.store.dump(plan, key)
            return found
        name = self.name(plan, key)
        if self.raw.type(name) == b"list":
            return tuple(item.decode() for item in self.raw.lrange(name, 0, -1))
        value = self.raw.get(name)
        return None if value is None else (value.decode(),)

    def ttl(self, plan: Plan, key: str) -> int:
        """Milliseconds; -2 when there is no key."""
        assert not self.kind.memory
        return int(self.raw.pttl(self.name(plan, key)))

    # -- the public face --------------------------------------------------------------------------

    def limiter(self, quota: str, **arguments: Any) -> Limiter:
        made = AsyncThrottled if self.kind.asynchronous else Throttled
        arguments.setdefault("using", self.algorithm)
        arguments.setdefault("key_prefix", self.prefix)
        return Limiter(self, made(quota=quota, store=self.store, **arguments))


class Limiter:
    """A `Throttled` of either flavour, called without `await`."""

    def __init__(self, rig: Rig, throttled: Any) -> None:
        self._rig = rig
        self.throttled = throttled

    def limit(self, *args: Any, **kwargs: Any) -> RateLimitResult:
        result: RateLimitResult = self._rig.wait(self.throttled.limit(*args, **kwargs))
        return result

    def peek(self, *args: Any, **kwargs: Any) -> RateLimitState:
        state: RateLimitState = self._rig.wait(self.throttled.peek(*args, **kwargs))
        return state


MakeRig = Callable[..., Rig]
