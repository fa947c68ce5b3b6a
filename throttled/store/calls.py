"""What a Redis store has and does, in `redis.py` and in `aioredis.py`."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar

from throttled.algorithms.plan import NOW, Joint
from throttled.exceptions import (
    BaseThrottledError,
    SetUpError,
    StoreUnavailableError,
)
from throttled.result import RateLimitResult
from throttled.store.base import (
    Answer,
    Call,
    Change,
    Health,
    Outcome,
    Reply,
    Sleeper,
    Ticket,
    answer_of,
    calls_of,
    sleeper_of,
)
from throttled.store.connection import (
    DEFAULT_SERVER,
    ConnectionFactory,
    checked_options,
    load_redis,
    make_factory,
    masked,
)
from throttled.store.denials import Denials, again
from throttled.store.failure import Failure, failures, group_error, is_list
from throttled.store.flight import Ask, Lane
from throttled.store.joint_calls import AskT, JointCalls
from throttled.store.lines import Flow, Line, Source
from throttled.store.policy import checked_policy
from throttled.store.roads import ClusterRoad, Road
from throttled.store.shared import Shared, frozen
from throttled.store.waiting import Waiting
from throttled.store.wire import SERVER_TIME, JointWording, Wording, bulk, digest_of, whole

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence

    from throttled.algorithms.plan import Plan

_new = object.__new__


#: More plans than this at once, and their bytes are put together anew.
_WORDINGS = 1024
#: Options that are about decisions rather than connections: they go with `client=` as well.
CALM: dict[str, Any] = {"DECISION_TIMEOUT": 0.25, "LOCAL_DENY_SECONDS": 1.0, "LOCAL_SHARE": 1}


class Link:
    """The way to a server or a cluster, and the client to be closed with it, if it is ours."""

    def __init__(self, road: Road, client: Any = None, own: bool = True) -> None:
        self.road = road
        self._client = client
        self._own = own

    def close(self) -> Flow[None]:
        for lane in self.road.lanes():
            yield from lane.close()
        own = self._client if self._client is not None else getattr(self.road, "client", None)
        if own is None or not self._own:
            return
        pool = getattr(own, "connection_pool", None)
        sentinels = getattr(getattr(pool, "sentinel_manager", None), "sentinels", ())
        for client in (*sentinels, own):
            yield client.aclose() if hasattr(client, "aclose") else client.close()
        if pool is not None:
            yield pool.disconnect()


class RedisCalls(JointCalls[AskT]):
    """What a Redis store has and does, whichever way its calls travel."""

    asynchronous: ClassVar[bool]
    line: ClassVar[type[Line]]
    lane: ClassVar[type[Lane]]
    ask: type[AskT]
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
        on_store_error: Any = "raise",
        hash_keys: bool | str | bytes = False,
    ) -> None:
        load_redis()
        self.sleeper = sleeper_of(clock)
        self._clock: Any = clock
        self._waiting = Waiting()
        self._wordings: dict[Plan | Joint, Any] = {}
        self._digest = digest_of(hash_keys)
        self.hides_keys = self._digest is not None
        self._options = {**CALM, **checked_options(options)}
        self._timeout: float = self._options["DECISION_TIMEOUT"]
        self.local_share: int = self._options["LOCAL_SHARE"]
        self.on_store_error = checked_policy(on_store_error, self.asynchronous)
        self._denials = Denials(self._options["LOCAL_DENY_SECONDS"], clock)
        self._client = client
        self._factory: ConnectionFactory | None = None
        if client is not None:
            if set(options or ()) - set(CALM) or server not in (DEFAULT_SERVER, None):
                raise SetUpError(
                    "A RedisStore takes either client= or a server with options, not both "
                    f"({', '.join(CALM)} go with both)."
                )
            self._check_client(client)
            self._server = self._where = _client_name(client)
        else:
            self._server = DEFAULT_SERVER if server is None else server
            self._factory = make_factory(self._server, self._options, self.asynchronous)
            self._where = self._factory.name(self._server)
            self._factory.check(self._server)
        self.forget()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({masked(self._server)!r})"

    # -- clients ----------------------------------------------------------------------------------

    def _check_client(self, client: Any) -> None:
        kinds = [
            (import_module("redis"), "redis", "throttled.store.RedisStore"),
            (import_module("redis.asyncio"), "redis.asyncio", "throttled.asyncio.store.RedisStore"),
        ]
        for flavour, (module, name, store) in enumerate(kinds):
            if isinstance(client, module.Redis | module.RedisCluster):
                if flavour == self.asynchronous:
                    return
                raise SetUpError(f"Invalid client: one of {name} belongs to a {store}.")
        wanted = kinds[self.asynchronous][1]
        raise SetUpError(
            f"Invalid client: {type(client).__module__}.{type(client).__qualname__}, must be a "
            f"{wanted}.Redis or {wanted}.RedisCluster, or a subclass of one."
        )

    def _road_over(self, client: Any, connect: Callable[[], Any] | None = None) -> Road:
        """The way over a client, or over one that has yet to be made."""
        pool = getattr(client, "connection_pool", None)
        if pool is None:
            return ClusterRoad(
                connect or (lambda: client),
                self.line,
                self.asynchronous,
                self._where,
                self._timeout,
                self.lane,
            )
        # The last connection of a user's pool is left to the user between calls.
        hold = self._client is None or getattr(pool, "max_connections", None) != 1
        return Road(Source(pool, self.line, hold), self._where, self._timeout, self.lane)

    def _open(self, scope: Hashable) -> Road:
        """The road of this store, within a scope that pools may not leave: an event loop."""
        factory = self._factory

        def make() -> Link:
            if factory is None:
                return Link(self._road_over(self._client), own=False)
            connect = partial(factory.connect, self._server)
            if factory.cluster:
                return Link(self._road_over(None, connect))
            client = connect()
            return Link(self._road_over(client), client)

        try:
            link = self._shared.obtain(self._key(scope), self, make, (self._options, self._client))
        except failures() as error:
            raise Failure(error, False).as_error(self._where) from error
        road: Road = link.road
        return road

    def _key(self, scope: Hashable) -> Hashable:
        if self._factory is None:
            return (scope, id(self._client), self._timeout)
        return (scope, type(self._factory), self._server, frozen(self._options))

    def _leave(self, scope: Hashable) -> Flow[None]:
        link = self._shared.leave(self._key(scope), self)
        if link is not None:
            yield from link.close()

    def forget(self) -> None:
        """Start without connections: when made, and in a forked child, which makes its own."""
        raise NotImplementedError

    # -- calls ------------------------------------------------------------------------------------

    def _now(self, at: float | None = None) -> bytes:
        """The instant as the script reads it; `at`: what the clock, if there is one, has shown."""
        clock = self._clock
        if clock is None:
            return SERVER_TIME
        exact: Any = getattr(clock, "now_us", None)
        if exact is not None:
            return bulk(whole(exact()))
        return bulk(whole(round((clock() if at is None else at) * 1e6)))

    def _wording(self, plan: Plan | Joint) -> Any:
        """How a plan (`Wording`) or a joint (`JointWording`) is put."""
        try:
            return self._wordings[plan]
        except KeyError:
            if len(self._wordings) >= _WORDINGS:
                self._wordings = {}
            wording: Any
            if isinstance(plan, Joint):
                wording = JointWording(plan, [self._wording(each) for each in plan.members])
            else:
                wording = Wording(plan, self._digest)
            self._wordings[plan] = wording
            return wording

    def _to_admit(self, call: Call, at: float | None = None) -> AskT:
        plan, key, cost, patience = call
        wording = self._wording(plan)
        ask = self.ask(wording.bulk(key), wording.to_admit(cost, patience), self._now(at))
        ask.width = wording.width
        return ask

    def _to_admit_all(self, calls: Sequence[Call], at: float | None = None) -> list[AskT]:
        asks: list[AskT] = []
        make, now = self.ask, self._now(at)
        of: Any = None
        wording: Any = None
        for plan, key, cost, patience in calls:
            if wording is None or plan is not of:
                of, wording = plan, self._wording(plan)
            ask = make(wording.bulk(key), wording.to_admit(cost, patience), now)
            ask.width = wording.width
            asks.append(ask)
        return asks

    def _to_adjust(self, plan: Plan, key: str, delta: int, slot: float | None) -> AskT:
        self._denials.forget(plan, key)
        wording = self._wording(plan)
        return self.ask(wording.bulk(key), wording.to_adjust(delta, slot), self._now())

    def _to_undo(self, ticket: Ticket) -> AskT:
        self._denials.forget(ticket.plan, ticket.key)
        wording = self._wording(ticket.plan)
        group = wording.to_undo(ticket.written, ticket.before)
        return self.ask(wording.bulk(ticket.key), group, self._now())

    def _to_reset(self, plan: Plan, key: str) -> AskT:
        self._waiting.forget(plan, key)
        self._denials.forget(plan, key)
        wording = self._wording(plan)
        return self.ask(wording.bulk(key), wording.to_reset, self._now())

    def _to_adjust_all(self, changes: Sequence[Change]) -> list[AskT]:
        return [self._to_adjust(*change) for change in changes]

    def _to_adjust_once(
        self, plan: Plan, key: str, mark: str, seconds: float, changes: Sequence[Change]
    ) -> AskT:
        wording = self._wording(plan)
        names = [wording.mark(key, mark)]
        groups = [wording.to_mark(seconds * 1e6, len(changes))]
        for each, name, delta, slot in changes:
            self._denials.forget(each, name)
            wording = self._wording(each)
            names.append(wording.bulk(name))
            groups.append(wording.to_adjust(delta, slot))
        ask = self.ask(b"".join(names), b"".join(groups), self._now())
        ask.width = len(names)
        return ask

    def _changed_once(self, ask: Ask, changes: Sequence[Change]) -> list[bool] | None:
        """What came of adjustments with a mark; raises what stands in the place of one."""
        for each in changes:
            self._denials.forget(each[0], each[1])
        groups = ask.groups
        if not is_list(groups):
            raise (
                groups if isinstance(groups, BaseThrottledError) else group_error(ask.name, groups)
            )
        for name, found in zip(ask.names, groups, strict=True):
            if type(found) is not int:
                raise found if isinstance(found, BaseThrottledError) else group_error(name, found)
        return [bool(found) for found in groups[1:]] if groups[0] else None

    def _to_reset_all(self, names: Sequence[tuple[Plan, str]]) -> list[AskT]:
        return [self._to_reset(plan, key) for plan, key in names]

    def _changed_all(self, asks: Sequence[Ask], named: Sequence[tuple[Any, ...]]) -> list[bool]:
        """What came of each; `named`: tuples that begin with their plans and keys."""
        return [self._changed(ask, each[0], each[1]) for ask, each in zip(asks, named, strict=True)]

    def hold(self, hold: Plan, key: str) -> None:
        """A penalty was set: see `Waiting.hold`."""
        self._waiting.hold(hold, key)

    def _changed(self, ask: Ask, plan: Plan, key: str) -> bool:
        """What came of an adjustment, undoing or reset."""
        self._denials.forget(plan, key)
        found = ask.answer
        if type(found) is int:
            return bool(found)
        raise found if isinstance(found, BaseThrottledError) else group_error(ask.name, found)

    def _submit(self, road: Road, ask: AskT) -> None:
        """Put an ask in line, if its server may be asked."""
        lane = ask.lane = road.lane_of(ask)
        if lane.breaker.admits(ask.asked_at, self._timeout):
            lane.queue.append(ask)
        else:
            ask.settle(StoreUnavailableError(lane.breaker.refusal(ask.asked_at)))

    def _replied(self, ask: Ask, call: Call) -> Reply:
        """The reply to a call to admit; raises what stands in its place."""
        return self._reply_of(ask.answer, ask.name, call)

    def _reply_of(self, found: Any, name: bytes, call: Call) -> Reply:
        if not is_list(found):
            raise found if isinstance(found, BaseThrottledError) else group_error(name, found)
        plan, key, cost, _ = call
        if len(found) == 3:
            wait, remaining, reset_after = found
            return None, float(wait), float(remaining), float(reset_after)
        self._denials.outdated(plan, key)
        wait, remaining, reset_after, slot, before, written = found
        ticket = Ticket(plan, key, cost, float(wait), float(slot), before, written, self)
        self._waiting.add(ticket)
        return ticket, ticket.wait, float(remaining), float(reset_after)

    def _outcome(self, ask: Ask, call: Call) -> Any:
        """The same, with an error in place of the reply."""
        try:
            return self._replied(ask, call)
        except BaseThrottledError as error:
            return error

    def _decided(self, ask: Ask, call: Call, sent_at: float, seen: int) -> Answer:
        """What the answer to a call comes to; a refusal is remembered."""
        found = ask.answer
        if call[0].__class__ is Joint:
            return self._joint_decided(ask.groups, ask.name, call, sent_at, seen)
        if found.__class__ is list and found[0] == 0:  # admitted at once, as most are
            if self._denials.at_hand:
                self._denials.outdated(call[0], call[1])
            result = _new(RateLimitResult)
            result.limited = False
            result._plan = call[0]
            result._seen = found
            result._now = None
            result._source = "server"
            return result
        return self._answered(self._reply_of(found, ask.name, call), call, sent_at, seen)

    def _answered(self, reply: Reply, call: Call, sent_at: float, seen: int) -> Answer:
        plan, key, cost, patience = call
        answer = answer_of(reply, plan, cost, patience, "server")
        if patience >= 0.0 and isinstance(answer, RateLimitResult) and answer.limited:
            self._denials.refused(plan, key, cost, sent_at, reply, seen)
        return answer

    def _recalled(
        self, plan: Plan | Joint, calls: Sequence[tuple[str, int]], now: float
    ) -> tuple[list[Outcome | None], list[Call]]:
        """Refusals that the server need not repeat, None in the place of others, and the others."""
        at_hand = self._denials.at_hand
        answers: list[Outcome | None] = [None] * len(calls)
        if at_hand:
            for place, (key, cost) in enumerate(calls):
                denial = at_hand.get(plan.prefix + key)
                if denial is not None:
                    answers[place] = again(denial, plan, cost, NOW, now)
        asked = calls_of(plan, [c for c, answer in zip(calls, answers, strict=True) if not answer])
        return answers, asked

    def _filled(
        self,
        answers: list[Outcome | None],
        asks: Sequence[AskT],
        asked: Sequence[Call],
        sent_at: float,
        seen: int,
    ) -> list[Outcome]:
        """The answers, with those of the server in their places."""
        rest = zip(asks, asked, strict=True)
        filled: list[Outcome] = []
        for answer in answers:
            if answer is None:
                ask, call = next(rest)
                try:
                    answer = self._decided(ask, call, sent_at, seen)
                except BaseThrottledError as error:
                    answer = error
            filled.append(answer)
        return filled

    def _health(self, road: Road | None) -> Health:
        return Health() if road is None else road.health(monotonic())


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
