"""The store of many processes: decisions taken by a script on a Redis or Valkey server.

`RedisCalls` holds what a store does, once for sync and async, as flows (see `exchange.py`).
`RedisStore` drives them here, the asyncio one in `aioredis.py`.
"""

from __future__ import annotations

import os
import socket
import struct
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Self

from throttled.exceptions import BaseThrottledError, SetUpError
from throttled.store.base import Call, Reply, Sleeper, Steps, Store, Ticket, Waiting
from throttled.store.connection import (
    DEFAULT_SERVER,
    ConnectionFactory,
    Shared,
    checked_options,
    frozen,
    load_redis,
    make_factory,
    masked,
)
from throttled.store.exchange import (
    GRACE,
    SERVER_TIME,
    Attempt,
    ClusterRoad,
    Failure,
    Flow,
    HeldLane,
    Interrupted,
    Lane,
    Line,
    Road,
    Wording,
    bulk,
    delete,
    exchange,
    failures,
    group_error,
    is_list,
    many,
    one,
    whole,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence
    from types import TracebackType

    from throttled.algorithms.plan import Plan

__all__ = ["RedisStore"]

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
        if clock is not None and not callable(clock):
            raise SetUpError(
                f"Invalid clock: {clock!r}, must be a callable that returns seconds, "
                f"such as throttled.testing.FakeClock()."
            )
        self._clock: Any = clock
        sleeper: Any = clock if hasattr(clock, "sleep_until") else None
        self.sleeper = sleeper
        self._waiting = Waiting()
        self._wordings: dict[Plan, Wording] = {}
        self._road: Road | None = None
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
        """What a forked child does, to make connections of its own."""
        self._road = None

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
            yield from self._give_back([call], [name], gone.reply)
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
                yield from self._give_back(
                    [calls[i] for i in part], [names[i] for i in part], gone.reply
                )
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

    def _give_back(self, calls: Sequence[Call], names: list[bytes], reply: Any) -> Flow[None]:
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
        request = one(name, group, self._now())
        try:
            reply = yield from exchange(self._ready(), self._where, request, name)
        except Interrupted as gone:
            raise gone.interrupt from None
        found = _group(reply, 0)
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
        try:
            yield from exchange(self._ready(), self._where, delete(name), name)
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


class SyncLine(Line):
    """A connection of redis-py's sync flavour."""

    __slots__ = ("buffer", "parser", "reader")

    def watch(self) -> bool:
        # What redis-py does around the socket and the parser is bookkeeping of retries, which have
        # no place here.
        self.parser: Any = getattr(self.conn, "_parser", None)
        # hiredis, where it is installed. A new connection has a new one, and is a new line.
        self.buffer: Any = getattr(self.parser, "_buffer", None)
        reader = getattr(self.parser, "_reader", None)
        plain = isinstance(self.buffer, bytearray) and hasattr(reader, "gets")
        self.reader: Any = reader if plain else None
        if self.poll is not None:
            return True
        if self.parser is None or not super().watch():
            return False
        _leave_timeout_to_the_kernel(self.sock)
        return True

    def socket(self) -> Any:
        sock = getattr(self.conn, "_sock", None)
        return sock if type(sock) is _socket else None

    def reply(self) -> Any:
        """The reply to a request, in as few steps as can be; the parser does whatever is rarer."""
        reader = self.reader
        if reader is not None:
            size = self.sock.recv_into(self.buffer)
            if size:
                reader.feed(self.buffer, 0, size)
                reply = reader.gets(False)
                if reply.__class__ is list or isinstance(reply, BaseException):
                    return reply
                # Not all of it has come yet: the parser goes on from here.
        return self.parser.read_response(disable_decoding=True)

    def send(self, request: bytes) -> Any:
        self.conn.send_packed_command((request,))

    def read(self) -> Any:
        return self.conn.read_response(disable_decoding=True, disconnect_on_error=False)

    def read_soon(self) -> Any:
        if not self.conn.can_read(timeout=GRACE):
            raise TimeoutError
        return self.read()

    def disconnect(self) -> Any:
        self.conn.disconnect()

    def abandon(self) -> None:
        self.conn.disconnect()


def _leave_timeout_to_the_kernel(sock: Any) -> None:
    """The same timeout, without the poll() that Python makes before each send and receive.

    For connections that stay with us: a tenth of the time of a call.
    """
    timeout = sock.gettimeout()
    if not timeout or os.name != "posix":
        return
    seconds, part = divmod(timeout, 1.0)
    packed = struct.pack("@ll", int(seconds), int(part * 1e6))
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, packed)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, packed)
    except OSError:
        return  # not on this system: Python goes on polling
    sock.settimeout(None)


_socket: type = socket.socket


def _driven(flow: Flow[Any]) -> Any:
    """Run a flow to its end: its steps have done their work when they are yielded."""
    value = None
    send: Callable[[Any], Any] = flow.send
    try:
        while True:
            value = send(value)
    except StopIteration as stop:
        return stop.value


class RedisStore(RedisCalls, Store):
    """Keeps limits on a Redis or Valkey server, shared by all processes that use it.

    Most callers write `RedisStore(server="redis://localhost:6379/0")`. Takes `redis://`,
    `rediss://`, `unix://`, `redis+sentinel://host:26379,host:26379/service` and
    `redis+cluster://host,host`; `options` as documented; or `client=`, a redis-py client of yours,
    which is used as it is and never closed. `clock` is for tests: see
    `throttled.testing.FakeClock`; without one, the server's time counts.

    Never connects when it is made. Stores of equal server and options share their connections.
    Threads may share a store; a forked child makes its own connections.

    Raises `SetUpError` for a URL or options that cannot work; its calls raise
    `StoreUnavailableError` when the server cannot be asked, and `StateError` for a key that holds
    something else.
    """

    asynchronous = False
    line = SyncLine
    _shared = Shared()

    def __init__(
        self,
        server: str | None = DEFAULT_SERVER,
        options: Mapping[str, Any] | None = None,
        *,
        client: Any = None,
        clock: Any = None,
    ) -> None:
        #: The idle lines of the road, if they are held. See `run`.
        self._idle: list[Any] = []
        super().__init__(server, options, client=client, clock=clock)

    def _ready(self) -> Road:
        road = self._road
        if road is None:
            road = self._road = self._open(None)
            self._idle = road.idle
        return road

    def forget(self) -> None:
        super().forget()
        self._idle = []

    def run(self, plan: Plan, key: str, cost: int, patience: float) -> Reply:
        """Decide one call; `patience` in µs, `LOOK` to change nothing."""
        # The flow of `_run` for a connection at hand and a reply that is in order, written out:
        # driving it costs as much time as the rest. Everything else is left to it.
        attempt: Attempt | None = None
        try:
            line = self._idle.pop()
        except IndexError:
            pass
        else:
            if self._clock is None and line.conn._sock is line.sock and not line.poll(0):
                wording = self._wordings.get(plan) or self._wording(plan)
                request = wording.asking(key, cost, patience)
                sent = False
                line.unread = True
                try:
                    line.sock.sendall(request)
                    sent = True
                    reply: Any = line.reply()
                except BaseException as error:
                    attempt = Attempt(line, error, sent)
                else:
                    line.unread = False
                    # Not `type(...)`, by which type checkers forget what a reply is.
                    if reply.__class__ is list and reply and reply[0].__class__ is list:
                        self._idle.append(line)
                        return self._admitted(plan, key, cost, reply[0])
                    attempt = Attempt(line, reply, sent)
            else:
                self._idle.append(line)  # The flow knows what to do with it.
        decided: Reply = _driven(self._run(plan, key, cost, patience, attempt))
        return decided

    def run_many(self, calls: Sequence[Call]) -> list[Any]:
        """Decide several calls in one round trip; an error stands in the place of its call."""
        replies: list[Any] = _driven(self._run_many(calls))
        return replies

    def adjust(self, plan: Plan, key: str, delta: int, slot: float | None = None) -> bool:
        """Charge (`delta > 0`) or give back; says whether anything was changed."""
        return bool(_driven(self._adjust(plan, key, delta, slot)))

    def undo(self, ticket: Ticket) -> bool:
        """Put back the state before a promise, if nobody came after; says whether it did."""
        return bool(_driven(self._undo(ticket)))

    def withdraw(self, ticket: Ticket) -> None:
        """Give back a promised slot, as if it had never been asked for where that is possible."""
        _driven(self._withdraw(ticket))

    def arrived(self, ticket: Ticket) -> None:
        """A promised slot was used: return what those gave up who stood before it."""
        _driven(self._arrived(ticket))

    def reset(self, plan: Plan, key: str) -> None:
        """Forget a key."""
        _driven(self._reset(plan, key))

    def close(self) -> None:
        """Close the connections, if no other store uses them. A later call opens new ones."""
        self.forget()
        _driven(self._leave(None))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
