"""What a Redis store does, once for sync and async, as flows: see `exchange.py`.

`RedisStore` drives them in `redis.py`, the asyncio one in `aioredis.py`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

from throttled.exceptions import BaseThrottledError, SetUpError
from throttled.store.base import Call, Reply, Sleeper, Steps, Ticket, Waiting, sleeper_of
from throttled.store.connection import (
    DEFAULT_SERVER,
    ConnectionFactory,
    checked_options,
    load_redis,
    make_factory,
    masked,
)
from throttled.store.exchange import (
    Attempt,
    Failure,
    Interrupted,
    exchange,
    failures,
    group_error,
    is_list,
)
from throttled.store.lanes import ClusterRoad, Flow, HeldLane, Lane, Line, Road
from throttled.store.shared import Shared, frozen
from throttled.store.wire import SERVER_TIME, Wording, bulk, delete, many, one, whole

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence

    from throttled.algorithms.plan import Plan

#: More plans than this at once, and their bytes are put together anew.
_WORDINGS = 1024


class Link:
    """A client of ours and the way over it to the servers."""

    def __init__(self, client: Any, road: Road) -> None:
        self.client = client
        self.road = road

    def close(self) -> Flow[None]:
        yield from self.road.close()
        pool = getattr(self.client, "connection_pool", None)
        sentinels = getattr(getattr(pool, "sentinel_manager", None), "sentinels", ())
        for client in (*sentinels, self.client):
            yield client.aclose() if hasattr(client, "aclose") else client.close()
        if pool is not None:
            yield pool.disconnect()


class RedisCalls:
    """What a Redis store does, whoever drives it."""

    asynchronous: ClassVar[bool]
    line: ClassVar[type[Line]]
    _shared: ClassVar[Shared]

    local = False
    #: The clock, when it can sleep as well.
    sleeper: Sleeper | None

    def __init__(
        self,
        server: str | None = DEFAULT_SERVER,
        options: Mapping[str, Any] | None = None,
        *,
        client: Any = None,
        clock: Any = None,
    ) -> None:
        load_redis()
        self.sleeper = sleeper_of(clock)
        self._clock: Any = clock
        self._waiting = Waiting()
        self._wordings: dict[Plan, Wording] = {}
        self.forget()
        self._factory: ConnectionFactory | None = None
        self._options = checked_options(options)
        if client is not None:
            if options or server not in (DEFAULT_SERVER, None):
                raise SetUpError(
                    "A RedisStore takes either client= or a server with options, not both."
                )
            self._own_road = self._road_over(self._checked_client(client))
            self._server = self._where = _client_name(client)
        else:
            self._server = DEFAULT_SERVER if server is None else server
            self._factory = make_factory(self._server, self._options, self.asynchronous)
            self._where = self._factory.name(self._server)
            self._factory.check(self._server)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({masked(self._server)!r})"

    # -- clients ----------------------------------------------------------------------------------

    def _checked_client(self, client: Any) -> Any:
        kinds = [
            (import_module("redis"), "redis", "throttled.store.RedisStore"),
            (import_module("redis.asyncio"), "redis.asyncio", "throttled.asyncio.store.RedisStore"),
        ]
        for flavour, (module, name, store) in enumerate(kinds):
            if isinstance(client, module.Redis | module.RedisCluster):
                if flavour == self.asynchronous:
                    return client
                raise SetUpError(f"Invalid client: one of {name} belongs to a {store}.")
        wanted = kinds[self.asynchronous][1]
        raise SetUpError(
            f"Invalid client: {type(client).__module__}.{type(client).__qualname__}, must be a "
            f"{wanted}.Redis or {wanted}.RedisCluster, or a subclass of one."
        )

    def _road_over(self, client: Any, hold: bool = False) -> Road:
        pool = getattr(client, "connection_pool", None)
        if pool is None:
            return ClusterRoad(client, self.line, self.asynchronous)
        return Road((HeldLane if hold and _holdable(pool) else Lane)(pool, self.line))

    def _open(self, scope: Hashable) -> Road:
        """The road of this store, within a scope that pools may not leave: an event loop."""
        factory = self._factory
        if factory is None:
            return self._own_road

        def make() -> Link:
            client = factory.connect(self._server)
            return Link(client, self._road_over(client, hold=True))

        try:
            link = self._shared.obtain(self._key(scope), self, make, self._options)
        except failures() as error:  # redis-py's cluster client connects when it is made.
            raise Failure(error, False).as_error(self._where) from error
        road: Road = link.road
        return road

    def _key(self, scope: Hashable) -> Hashable:
        return (scope, type(self._factory), self._server, frozen(self._options))

    def _leave(self, scope: Hashable) -> Flow[None]:
        link = self._shared.leave(self._key(scope), self) if self._factory else None
        if link is not None:
            yield from link.close()

    def forget(self) -> None:
        """Start without connections: when made, and in a forked child, which makes its own."""
        raise NotImplementedError

    def _ready(self) -> Road:
        raise NotImplementedError

    # -- calls ------------------------------------------------------------------------------------

    def _now(self) -> bytes:
        clock = self._clock
        if clock is None:
            return SERVER_TIME
        exact: Any = getattr(clock, "now_us", None)
        return bulk(whole(round(clock() * 1e6) if exact is None else exact()))

    def _wording(self, plan: Plan) -> Wording:
        try:
            return self._wordings[plan]
        except KeyError:
            if len(self._wordings) >= _WORDINGS:
                self._wordings = {}
            wording = self._wordings[plan] = Wording(plan)
            return wording

    def _run(
        self, plan: Plan, key: str, cost: int, patience: float, attempt: Attempt | None = None
    ) -> Flow[Reply]:
        wording = self._wording(plan)
        name = wording.key(key)
        request = one(name, wording.to_admit(cost, patience), self._now())
        try:
            reply = yield from exchange(self._ready(), self._where, request, name, attempt)
        except Interrupted as gone:
            call = (plan, key, cost, patience)
            yield from self._give_back([call], gone.reply)
            raise gone.interrupt from None
        found = _group(reply, 0)
        if is_list(found):
            return self._admitted(plan, key, cost, found)
        raise group_error(name, found)

    def _run_many(self, calls: Sequence[Call]) -> Flow[list[Any]]:
        road, now = self._ready(), self._now()
        names = [self._wording(plan).key(key) for plan, key, _, _ in calls]
        groups = [self._wording(plan).to_admit(cost, patience) for plan, _, cost, patience in calls]
        results: list[Any] = [None] * len(calls)
        parts = (yield from road.split(names)) if len(calls) > 1 else [range(len(calls))]
        for part in parts:
            if not part:
                continue
            request = many([(names[i], groups[i]) for i in part], now)
            try:
                reply = yield from exchange(road, self._where, request, names[part[0]])
            except Interrupted as gone:
                yield from self._give_back([calls[i] for i in part], gone.reply)
                for call, result in zip(calls, results, strict=True):
                    if result is not None and not isinstance(result, BaseException):
                        yield from self._return(call, result)
                raise gone.interrupt from None
            except BaseThrottledError as error:
                if len(parts) == 1:
                    raise
                for i in part:
                    results[i] = error
                continue
            for place, i in enumerate(part):
                plan, key, cost, _ = calls[i]
                found = _group(reply, place)
                results[i] = (
                    self._admitted(plan, key, cost, found)
                    if is_list(found)
                    else group_error(names[i], found)
                )
        return results

    def _give_back(self, calls: Sequence[Call], reply: Any) -> Flow[None]:
        """Return what the reply of an interrupted request had taken."""
        for place, call in enumerate(calls):
            found = _group(reply, place)
            if is_list(found):
                yield from self._return(call, self._admitted(*call[:3], found))

    def _return(self, call: Call, reply: Reply) -> Flow[None]:
        plan, key, cost, patience = call
        try:
            if isinstance(reply[0], Ticket):
                yield from self._withdraw(reply[0])
            elif cost and reply[1] <= patience:
                yield from self._adjust(plan, key, -cost, None)
        except BaseThrottledError:
            pass  # The interrupt is what the caller has to hear of.

    def _change(self, plan: Plan, key: str, group: bytes) -> Flow[bool]:
        name = self._wording(plan).key(key)
        found = _group((yield from self._sent(one(name, group, self._now()), name)), 0)
        if type(found) is int:
            return bool(found)
        raise group_error(name, found)

    def _adjust(self, plan: Plan, key: str, delta: int, slot: float | None) -> Flow[bool]:
        return self._change(plan, key, self._wording(plan).to_adjust(delta, slot))

    def _undo(self, ticket: Ticket) -> Flow[bool]:
        wording = self._wording(ticket.plan)
        return self._change(ticket.plan, ticket.key, wording.to_undo(ticket.written, ticket.before))

    def _withdraw(self, ticket: Ticket) -> Flow[None]:
        yield from self._go(self._waiting.leave(ticket))

    def _arrived(self, ticket: Ticket) -> Flow[None]:
        yield from self._go(self._waiting.arrive(ticket))

    def _go(self, steps: Steps) -> Flow[None]:
        try:
            undo, ticket = next(steps)
            while True:
                changed = yield from (
                    self._undo(ticket)
                    if undo
                    else self._adjust(ticket.plan, ticket.key, -ticket.cost, ticket.slot)
                )
                undo, ticket = steps.send(changed)
        except StopIteration:
            return

    def _admitted(self, plan: Plan, key: str, cost: int, found: list[Any]) -> Reply:
        if len(found) == 3:
            wait, remaining, reset_after = found
            return None, float(wait), float(remaining), float(reset_after)
        wait, remaining, reset_after, slot, before, written = found
        ticket = Ticket(plan, key, cost, float(wait), float(slot), before, written)
        self._waiting.add(ticket)
        return ticket, ticket.wait, float(remaining), float(reset_after)

    def _reset(self, plan: Plan, key: str) -> Flow[None]:
        name = self._wording(plan).key(key)
        yield from self._sent(delete(name), name)

    def _sent(self, request: bytes, name: bytes) -> Flow[Any]:
        """The reply to a request that takes nothing which would have to be given back."""
        try:
            return (yield from exchange(self._ready(), self._where, request, name))
        except Interrupted as gone:
            raise gone.interrupt from None


def _group(reply: Any, place: int) -> Any:
    """A group's part of the reply, or what was found in its stead."""
    return reply[place] if is_list(reply) and place < len(reply) else reply


def _holdable(pool: Any) -> bool:
    """Whether connections may stay checked out of a pool of ours between calls.

    Not of a pool that does more than keep them (blocks, follows a master, or is a user's own), nor
    where redis-py has something to do with a connection between two calls.
    """
    plain = any(
        type(pool) is import_module(module).ConnectionPool
        for module in ("redis.connection", "redis.asyncio.connection")
    )
    kwargs: Mapping[str, Any] = pool.connection_kwargs if plain else {}
    busy = kwargs.get("credential_provider") or kwargs.get("health_check_interval")
    return plain and str(kwargs.get("protocol")) == "2" and not busy


def _client_name(client: Any) -> str:
    pool = getattr(client, "connection_pool", None)
    if pool is None:
        return "the cluster of the given client"
    kwargs: Mapping[str, Any] = pool.connection_kwargs
    if "path" in kwargs:
        return str(kwargs["path"])
    if hasattr(pool, "service_name"):
        return f"{pool.service_name} (Sentinel)"
    return f"{kwargs.get('host', 'localhost')}:{kwargs.get('port', 6379)}"
