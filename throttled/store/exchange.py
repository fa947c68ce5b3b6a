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

from functools import lru_cache
from typing import Any, TypeGuard

from throttled.exceptions import BaseThrottledError, SetUpError, StateError, StoreUnavailableError
from throttled.store.lanes import Flow, Lane, Line, Road
from throttled.store.wire import ASKING, with_source

#: Seconds that an interrupted call waits for the reply that is under way.
GRACE = 1.0
#: How often a request follows a cluster that is moving slots about.
HOPS = 5


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

    __slots__ = ("code", "counted", "error", "text")

    def __init__(self, error: BaseException, sent: bool) -> None:
        from redis import exceptions

        self.error = error
        # Sentinel's errors go on with the whole client; a timeout kept by the kernel has no words.
        text = str(error).partition(" : <")[0]
        self.text = "timed out" if isinstance(error, BlockingIOError) else text
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
                f"Redis at {where} did not answer ({self.text}); the call may have been counted "
                f"and was not sent again."
            )
        if self.answered:
            return StoreUnavailableError(f"Redis at {where} refused the call: {self.text}")
        return StoreUnavailableError(f"Redis at {where} is unreachable: {self.text}")


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
                outcome = yield from _ask(line, ASKING, request) if asking else _ask(line, request)
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


def is_list(value: Any) -> TypeGuard[list[Any]]:
    """A list, its items still of any kind."""
    return type(value) is list


def _read_only(reply: Any) -> bool:
    return (
        is_list(reply)
        and bool(reply)
        and all(type(group) is bytes and group.startswith(b"READONLY") for group in reply)
    )
