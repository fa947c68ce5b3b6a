"""One request, one reply, and what is done when that fails: the same for sync and async.

Everything here is written as a *flow*: a generator that yields the result of each step that may
touch the network. Under sync code that is the result itself, under asyncio an awaitable, which
whoever drives the flow awaits and sends back in. Errors appear at the same place either way, so
there is one copy of the rules:

1. A decision is sent once. redis-py's retries never come near it: the bytes go straight to a
   connection, and its reply is read from there.
2. It is sent again only where the first one cannot have run: the server did not know the script,
   it was a replica, the slot lives elsewhere, or the request could not be written out in full.
3. Where that cannot be known, `StoreUnavailableError` says so.
4. A connection with an unread reply is closed before it goes back to its pool.
5. An interrupt between request and reply (a cancelled task, Ctrl-C) is carried on as `Interrupted`
   together with the reply, which is waited for briefly, so that a slot taken can be given back.
"""

from __future__ import annotations

import select
from collections.abc import Generator
from functools import lru_cache
from math import inf
from typing import TYPE_CHECKING, Any, ClassVar, TypeGuard, TypeVar

from throttled.exceptions import BaseThrottledError, SetUpError, StateError, StoreUnavailableError
from throttled.store.script import SCRIPT, SCRIPT_SHA

if TYPE_CHECKING:
    from throttled.algorithms.plan import Plan

T = TypeVar("T")
Flow = Generator[Any, Any, T]

#: Seconds that an interrupted call waits for the reply that is under way.
GRACE = 1.0
#: How often a request follows a cluster that is moving slots about.
HOPS = 5


# --- requests ------------------------------------------------------------------------------------


def bulk(text: bytes) -> bytes:
    """A string as Redis reads it."""
    return b"$%d\r\n%b\r\n" % (len(text), text)


_EVALSHA = bulk(b"EVALSHA") + bulk(SCRIPT_SHA.encode())
_EVAL = bulk(b"EVAL") + bulk(SCRIPT.encode())
_ASKING = b"*1\r\n" + bulk(b"ASKING")
#: EVALSHA, sha, how many keys, the key, now, and the seven arguments of a group.
_SINGLE = b"*12\r\n" + _EVALSHA + bulk(b"1")
SERVER_TIME = bulk(b"")
_HEAD = _SINGLE.decode() + "$"


def with_source(request: bytes) -> bytes:
    """The same request with the whole script in it."""
    return request.replace(_EVALSHA, _EVAL, 1)


def one(key: bytes, group: bytes, now: bytes = SERVER_TIME) -> bytes:
    """The request for one group."""
    return b"%b$%d\r\n%b\r\n%b%b" % (_SINGLE, len(key), key, now, group)


def many(groups: list[tuple[bytes, bytes]], now: bytes = SERVER_TIME) -> bytes:
    """The request for any number of (key, group)."""
    count = len(groups)
    return b"".join(
        (
            b"*%d\r\n" % (4 + 8 * count),
            _EVALSHA,
            bulk(b"%d" % count),
            *(bulk(key) for key, _ in groups),
            now,
            *(group for _, group in groups),
        )
    )


def delete(key: bytes) -> bytes:
    """The request that forgets a key."""
    return b"*2\r\n" + bulk(b"DEL") + bulk(key)


def is_list(value: Any) -> TypeGuard[list[Any]]:
    """A list, its items still of any kind."""
    return type(value) is list


def whole(value: float) -> bytes:
    """A number of µs or of tokens as the script reads it."""
    if value in (inf, -inf):
        return b"inf" if value > 0 else b"-inf"
    return b"%d" % value


@lru_cache(maxsize=1024)
def _asked(cost: int, patience: float) -> str:
    return (bulk(whole(cost)) + bulk(whole(patience))).decode()


def escaped(key: str) -> str:
    """The key without the braces that mark the hash tag around it."""
    return key.replace("%", "%25").replace("{", "%7B").replace("}", "%7D")


class Wording:
    """A plan in bytes: all that does not change from call to call."""

    __slots__ = ("_length", "_middle", "_start", "adjust", "admit", "prefix", "undo")

    def __init__(self, plan: Plan) -> None:
        numbers = b"".join(bulk(b"%d" % n) for n in (plan.limit, plan.period, plan.burst))
        rest = bulk(plan.kind.encode()) + numbers
        self.prefix = plan.prefix.encode("utf-8", "surrogatepass") + b"{"
        self.admit = bulk(b"admit") + rest
        self.adjust = bulk(b"adjust") + rest
        self.undo = bulk(b"undo") + rest
        # The same as text, for `asking`.
        self._length = len(self.prefix) + 1
        self._start = "\r\n" + self.prefix.decode("utf-8", "surrogatepass")
        self._middle = "}\r\n" + (SERVER_TIME + self.admit).decode()

    def key(self, key: str) -> bytes:
        """The key in Redis. The caller's part is the hash tag, so that its rules share a slot."""
        if "%" in key or "{" in key or "}" in key:
            key = escaped(key)
        return self.prefix + key.encode("utf-8", "surrogatepass") + b"}"

    def asking(self, key: str, cost: int, patience: float) -> bytes:
        """The whole request to admit one call by the server's time, in as few steps as can be."""
        if not key.isascii() or "%" in key or "{" in key or "}" in key:
            return one(self.key(key), self.to_admit(cost, patience))
        return (
            f"{_HEAD}{self._length + len(key)}{self._start}{key}{self._middle}"
            f"{_asked(cost, patience)}"
        ).encode("utf-8", "surrogatepass")

    def to_admit(self, cost: int, patience: float) -> bytes:
        return self.admit + _asked(cost, patience).encode()

    def to_adjust(self, delta: int, slot: float | None) -> bytes:
        return self.adjust + bulk(whole(delta)) + bulk(b"" if slot is None else whole(slot))

    def to_undo(self, written: bytes, before: bytes) -> bytes:
        return self.undo + bulk(written) + bulk(before)


# --- errors --------------------------------------------------------------------------------------


class Interrupted(Exception):  # noqa: N818 - it carries an interrupt, it is no error of its own
    """The caller went away while a request was under way. `reply` is None if it never came."""

    def __init__(self, interrupt: BaseException, reply: Any) -> None:
        super().__init__(interrupt)
        self.interrupt = interrupt
        self.reply = reply


def group_error(key: bytes, text: object) -> BaseThrottledError:
    """The error that stands in a group's place."""
    if isinstance(text, bytes | str):
        words = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        if words.startswith(("damaged state", "WRONGTYPE")):
            return StateError(
                f"The state under the Redis key {key.decode('utf-8', 'replace')!r} cannot be "
                f"used: {words}. Deleting the key starts it afresh."
            )
        return StoreUnavailableError(f"The Redis script failed: {words}")
    return StoreUnavailableError(f"Unexpected reply of the Redis script: {text!r}")


class Failure:
    """What went wrong with one request, as far as the next step depends on it."""

    __slots__ = ("code", "counted", "error")

    def __init__(self, error: BaseException, sent: bool) -> None:
        from redis import exceptions

        self.error = error
        text = str(error)
        #: The kind of failure, as the step to take depends on it.
        self.code = ""
        #: True if the request may have run although there is no reply.
        self.counted = False
        cause = error.__cause__ or error.__context__
        if isinstance(error, exceptions.NoScriptError) or text.startswith("NOSCRIPT"):
            self.code = "NOSCRIPT"
        elif isinstance(error, exceptions.ReadOnlyError) or text.startswith("READONLY"):
            self.code = "READONLY"
        elif isinstance(cause, exceptions.ReadOnlyError):
            self.code = "READONLY"  # How redis-py's Sentinel connections put it.
        elif isinstance(error, exceptions.MovedError) or text.startswith("MOVED "):
            self.code = "MOVED"
        elif isinstance(error, exceptions.AskError) or text.startswith("ASK "):
            self.code = "ASK"
        elif isinstance(error, exceptions.ClusterDownError | exceptions.TryAgainError):
            self.code = "MOVING"
        elif isinstance(
            error,
            exceptions.ResponseError | exceptions.AuthenticationError | exceptions.BusyLoadingError,
        ):
            self.code = "REFUSED"
        elif not sent:
            self.code = "UNSENT"
        else:
            self.code = "UNKNOWN"
            self.counted = True

    @property
    def answered(self) -> bool:
        """The server replied, if only with an error, so that nothing is left to read."""
        return self.code not in ("UNSENT", "UNKNOWN")

    def as_error(self, where: str) -> BaseThrottledError:
        """What the caller gets to see."""
        if self.code in ("MOVED", "ASK"):
            return SetUpError(
                f"Redis at {where} belongs to a cluster: give the URL as redis+cluster://host:port."
            )
        if self.counted:
            return StoreUnavailableError(
                f"Redis at {where} did not answer ({self.error}); the call may have been counted "
                f"and was not sent again."
            )
        if self.answered:
            return StoreUnavailableError(f"Redis at {where} refused the call: {self.error}")
        return StoreUnavailableError(f"Redis at {where} is unreachable: {self.error}")


# --- connections ---------------------------------------------------------------------------------


class Line:
    """A connection of a pool, checked out by one call at a time."""

    __slots__ = ("conn", "poll", "sock", "unread")

    #: The pool's own look at an idle connection may miss that the server has closed it.
    doubtful: ClassVar[bool] = False

    def __init__(self, conn: Any) -> None:
        self.conn = conn
        #: A reply may be under way on it: it must not be used again.
        self.unread = False
        self.sock: Any = None
        self.poll: Any = None

    def watch(self) -> bool:
        """Get ready for `quiet`; False if that cannot be told of this kind of connection."""
        if self.poll is None:
            sock = self.socket()
            if sock is None or not hasattr(select, "poll"):
                return False
            poll = select.poll()
            poll.register(sock.fileno(), select.POLLIN)
            self.sock, self.poll = sock, poll.poll
        return True

    def quiet(self) -> bool:
        """Nothing waits to be read, not even the end: fit for a new request."""
        return self.socket() is self.sock and not self.poll(0)

    def socket(self) -> Any:
        """The socket, or None where it is hidden, as by TLS: readable says nothing there."""
        raise NotImplementedError

    def send(self, request: bytes) -> Any:
        """Write a request. A step of a flow, as are those below."""
        raise NotImplementedError

    def read(self) -> Any:
        """Read a reply, its strings as bytes. An error leaves the connection open."""
        raise NotImplementedError

    def read_soon(self) -> Any:
        """The same within `GRACE` seconds."""
        raise NotImplementedError

    def disconnect(self) -> Any:
        """Close the connection; its pool opens it again."""
        raise NotImplementedError

    def abandon(self) -> None:
        """Close the connection without waiting: nobody will drive this flow any more."""
        raise NotImplementedError


class Lane:
    """Where lines come from and go back to: here a redis-py pool, asked every time."""

    def __init__(self, pool: Any, line: type[Line]) -> None:
        self.pool = pool
        self.line = line
        #: Lines at hand: none but in a `HeldLane`.
        self.idle: list[Line] = []

    def take(self) -> Flow[Line]:
        """A line that is fit for a request."""
        conn = yield self.pool.get_connection()
        line = self.line(conn)
        if line.doubtful and line.watch() and not line.quiet():
            line = yield from self._again(line)
        return line

    def _again(self, line: Line) -> Flow[Line]:
        """The same connection, made anew."""
        conn = line.conn
        try:
            yield line.disconnect()
            yield conn.connect()
        except BaseException:
            line.unread = True
            yield from self.give(line)
            raise
        return self.line(conn)

    def give(self, line: Line) -> Flow[None]:
        """Take a line back."""
        if line.unread:
            yield line.disconnect()
        yield self.pool.release(line.conn)

    def close(self) -> Flow[None]:
        yield from ()


class HeldLane(Lane):
    """A lane that keeps idle lines at hand, which saves a third of the time of a call.

    They stay checked out of the pool, so this is only for pools that nobody else uses. All use of
    the list is one operation at a time: several threads need no lock.
    """

    def take(self) -> Flow[Line]:
        while self.idle:
            try:
                line = self.idle.pop()
            except IndexError:  # Another thread was faster.
                break
            if line.quiet():
                return line
            line.unread = True
            yield from super().give(line)
        line = yield from super().take()
        return line

    def give(self, line: Line) -> Flow[None]:
        if not line.unread and line.watch():
            self.idle.append(line)
        else:
            yield from super().give(line)

    def close(self) -> Flow[None]:
        while self.idle:
            line = self.idle.pop()
            line.unread = True
            yield from super().give(line)


class NodeLane(Lane):
    """A node of redis-py's asyncio cluster client, which is its own pool."""

    def take(self) -> Flow[Line]:
        conn = self.pool.acquire_connection()
        line = self.line(conn)
        if not (conn.is_connected and line.watch() and line.quiet()):
            line = yield from self._again(line)
        return line

    def give(self, line: Line) -> Flow[None]:
        if line.unread:
            yield line.disconnect()
        # Older redis-py has no method for it.
        release = getattr(self.pool, "release", None) or self.pool._free.append
        release(line.conn)


class Road:
    """To the one server there is."""

    #: The idle lines, where they are held.
    idle: list[Line]

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self.idle = lane.idle

    def lane(self, key: bytes) -> Flow[Lane]:
        """The lane for a key."""
        yield from ()
        return self._lane

    def redirected(self, error: Any) -> Flow[Lane | None]:
        """The lane that a MOVED or ASK points to, if this road knows any other."""
        yield from ()
        return None

    def failed(self) -> bool:
        """A server was out of reach, or no master. True if the next try may go to another one."""
        return False

    def split(self, keys: list[bytes]) -> Flow[list[list[int]]]:
        """The positions of the keys, in groups that one request may hold."""
        yield from ()
        return [list(range(len(keys)))]

    def close(self) -> Flow[None]:
        yield from self._lane.close()


class ClusterRoad(Road):
    """To the node that serves a key's slot. The client is asked for its map, and for no more."""

    def __init__(self, client: Any, line: type[Line], asynchronous: bool) -> None:
        self._client = client
        self._line = line
        self.idle = []
        self._asynchronous = asynchronous
        self._outdated = False

    def _to(self, node: Any) -> Lane:
        if self._asynchronous:
            return NodeLane(node, self._line)
        return Lane(self._client.get_redis_connection(node).connection_pool, self._line)

    def _refreshed(self) -> Flow[None]:
        if self._asynchronous:
            yield self._client.initialize()
        if self._outdated:
            self._outdated = False
            try:
                yield self._client.nodes_manager.initialize()
            except BaseException:
                self._outdated = True
                raise

    def lane(self, key: bytes) -> Flow[Lane]:
        yield from self._refreshed()
        return self._to(self._client.get_node_from_key(key))

    def redirected(self, error: Any) -> Flow[Lane | None]:
        if type(error).__name__ == "MovedError":
            self._outdated = True
            yield from self._refreshed()
        node = self._client.get_node(error.host, error.port)
        if node is None:  # An ASK to a node that is new to the client.
            self._outdated = True
            yield from self._refreshed()
            node = self._client.get_node(error.host, error.port)
        return None if node is None else self._to(node)

    def failed(self) -> bool:
        self._outdated = True
        return True

    def split(self, keys: list[bytes]) -> Flow[list[list[int]]]:
        yield from self._refreshed()
        slots: dict[int, list[int]] = {}
        for position, key in enumerate(keys):
            slots.setdefault(self._client.keyslot(key), []).append(position)
        return list(slots.values())

    def close(self) -> Flow[None]:
        yield from ()


# --- the exchange --------------------------------------------------------------------------------


class Attempt:
    """A request that was sent on its own, and what came of it: a reply, or an exception."""

    __slots__ = ("line", "outcome", "sent")

    def __init__(self, line: Line, outcome: Any, sent: bool) -> None:
        self.line = line
        self.outcome = outcome
        self.sent = sent


def exchange(
    road: Road, where: str, request: bytes, key: bytes, attempt: Attempt | None = None
) -> Flow[Any]:
    """Send a request, and return the reply to it. Goes on from a first attempt, if there was one.

    Raises `StoreUnavailableError`, or `Interrupted`.
    """
    asking = False
    done: set[str] = set()
    hops = 0
    if attempt is None:
        lane, line = yield from _take(road, where, key)
    else:
        lane, line = (yield from road.lane(key)), attempt.line
    while True:
        try:
            if attempt is not None:
                outcome = yield from _came_of(attempt)
                attempt = None
            else:
                outcome = yield from _ask(line, _ASKING, request) if asking else _ask(line, request)
        except Interrupted:
            yield from lane.give(line)
            raise
        if not isinstance(outcome, Failure):
            # A reply that is all a replica's refusals looks like any other from outside.
            if not _read_only(outcome):
                try:
                    yield from lane.give(line)
                except GeneratorExit:
                    raise
                except BaseException as interrupt:
                    raise Interrupted(interrupt, outcome) from interrupt
                return outcome
            outcome = Failure(RuntimeError(outcome[0].decode("utf-8", "replace")), True)

        code = outcome.code
        if code == "NOSCRIPT" and code not in done:
            request = with_source(request)
        elif code in ("READONLY", "UNSENT") and code not in done:
            line.unread = True  # Not the reply is wanted gone, but the connection.
            yield from lane.give(line)
            road.failed()
            lane, line = yield from _take(road, where, key)
            asking = False
        elif code in ("MOVED", "ASK") and hops < HOPS:
            hops += 1
            yield from lane.give(line)
            try:
                other = yield from road.redirected(outcome.error)
                if other is None:
                    raise outcome.as_error(where) from outcome.error
                lane, line = other, (yield from other.take())
            except failures() as error:
                raise Failure(error, False).as_error(where) from error
            asking = code == "ASK"
        else:
            yield from lane.give(line)
            if not outcome.answered or code == "MOVING":
                road.failed()
            raise outcome.as_error(where) from outcome.error
        done.add(code)


def _take(road: Road, where: str, key: bytes) -> Flow[tuple[Lane, Line]]:
    for again in (True, False):
        try:
            lane = yield from road.lane(key)
            line = yield from lane.take()
        except TypeError as error:
            raise SetUpError(f"Invalid connection options for {where}: {error}") from error
        except failures() as error:
            # Nothing was sent yet: a cluster may have put another node in the place of this one.
            if not (again and road.failed()):
                raise Failure(error, False).as_error(where) from error
        else:
            return lane, line
    raise AssertionError  # pragma: no cover


def _ask(line: Line, *requests: bytes) -> Flow[Any]:
    """The reply to the last of the requests, or a `Failure`."""
    reply: Any = None
    sent = False
    line.unread = True
    try:
        for request in requests:
            yield line.send(request)
            sent = True
            reply = yield line.read()
    except GeneratorExit:
        line.abandon()
        raise
    except BaseException as error:
        return (yield from _came_of(Attempt(line, error, sent)))
    line.unread = False
    return reply


def _came_of(attempt: Attempt) -> Flow[Any]:
    """The reply, or a `Failure`; raises `Interrupted`."""
    error, line = attempt.outcome, attempt.line
    if not isinstance(error, BaseException):
        line.unread = False
        return error
    if isinstance(error, failures()):
        failure = Failure(error, attempt.sent)
        line.unread = not failure.answered
        return failure
    # Whatever it is, it did not come from the connection: a cancelled task, Ctrl-C, a time limit
    # of somebody's. The request may be under way.
    reply = (yield from _see_out(line)) if attempt.sent else None
    raise Interrupted(error, reply) from error


def _see_out(line: Line) -> Flow[Any]:
    """Wait for the reply to an interrupted request, or give the connection up."""
    for _ in range(2):  # A loop that shuts down cancels what it finds, this here included.
        try:
            reply = yield line.read_soon()
        except GeneratorExit:
            line.abandon()
            raise
        except Exception:
            break
        except BaseException:
            continue
        line.unread = False
        return reply
    return None


@lru_cache(maxsize=1)
def failures() -> tuple[type[Exception], ...]:
    """What redis-py raises, as against what may come from anywhere else, such as an interrupt."""
    from redis.exceptions import RedisClusterException, RedisError

    return (RedisError, RedisClusterException, OSError)


def _read_only(reply: Any) -> bool:
    return (
        is_list(reply)
        and bool(reply)
        and all(type(group) is bytes and group.startswith(b"READONLY") for group in reply)
    )
