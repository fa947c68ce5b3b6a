"""The store of many processes: decisions taken by a script on a Redis or Valkey server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from throttled._closing import Closing
from throttled.algorithms.plan import Joint
from throttled.exceptions import BaseThrottledError
from throttled.result import RateLimitResult
from throttled.store.base import Answer, Call, Health, Outcome, Reply, Store, Ticket
from throttled.store.calls import RedisCalls
from throttled.store.denials import again
from throttled.store.failure import failures
from throttled.store.flight import Part
from throttled.store.shared import Shared
from throttled.store.threads import Late, SyncAsk, SyncLane, SyncLine, SyncWaiter, driven
from throttled.store.waiting import follow

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from throttled.algorithms.plan import Plan
    from throttled.store.base import Change
    from throttled.store.roads import Road

__all__ = ["RedisStore"]

_new = object.__new__


class RedisStore(RedisCalls[SyncAsk], Closing, Store):
    """Keeps limits on a Redis or Valkey server, shared by all processes that use it.

    Most callers write `RedisStore(server="redis://localhost:6379/0")`. Takes `redis://`,
    `rediss://`, `unix://`, `redis+sentinel://host:26379,host:26379/service` and
    `redis+cluster://host,host`; `options` as documented; or `client=`, a redis-py client of yours,
    which is used as it is and never closed. `clock` is for tests: see
    `throttled.testing.FakeClock`; without one, the server's time counts. `on_store_error` is what
    a `Throttled` of this store does when the server fails, unless it says otherwise itself.
    `hash_keys=True` stores the SHA-256 of keys in their place, a secret their HMAC with it.

    Never connects when it is made. Stores of equal server and options share their connection.
    Threads may share a store, and their calls share round trips; a forked child makes connections
    of its own.

    Raises `SetUpError` for a URL or options that cannot work; its calls raise
    `StoreUnavailableError` when the server cannot be asked, and `StateError` for a key that holds
    something else.
    """

    asynchronous = False
    line = SyncLine
    lane = SyncLane
    ask = SyncAsk
    _shared = Shared()

    def forget(self) -> None:
        self._road: Road | None = None
        #: The lane of all calls, where there is only one, and once there is.
        self._lane: Any = None

    def _ready(self) -> Road:
        road = self._road
        if road is None:
            road = self._road = self._open(None)
            self._lane = road.only
        return road

    # -- decisions --------------------------------------------------------------------------------

    def bind(self, plan: Plan | Joint) -> Callable[[str, int, float], Answer]:
        """`(key, cost, patience)` -> the answer by one plan, or by a joint."""
        # A closure: what does not change from call to call is at hand, with nothing to look up.
        asking, prefix, denials = self._wording(plan).asking, plan.prefix, self._denials
        at_hand, tick, alone, new_result = denials.at_hand, denials.tick, self._alone, _new
        slowly, answered, real = self._decide, self._answered, self._clock is None
        decided = self._joint_reply if isinstance(plan, Joint) else None

        def decide(key: str, cost: int, patience: float) -> Answer:
            sent_at = tick()
            denial = None
            if at_hand:
                denial = at_hand.get(prefix + key)
                if denial is not None:
                    refusal: RateLimitResult | None = again(denial, plan, cost, patience, sent_at)
                    if refusal is not None:
                        return refusal
            lane = self._lane
            # Nobody else is calling, and the line is in order: then it takes no more than this.
            if real and lane is not None and lane.acquire(False):
                line = lane.ready
                if line is None or line.reader is None or lane.queue:
                    lane.hand_over()
                else:
                    seen = denials.taken_back
                    raised: BaseException | None = None
                    reply: Any = None
                    try:
                        reply = line.ask(asking(key, cost, patience), sent_at)
                    except BaseException as error:
                        raised = error
                    if reply.__class__ is list and reply[0].__class__ is list:
                        lane.release()
                        if lane.queue:
                            lane.kick()
                        found = reply[0]
                        if decided is not None:
                            call: Any = plan, key, cost, patience
                            return decided(reply, call, sent_at, seen)
                        wait = found[0]
                        if denial is not None and wait == 0:
                            denials.forget(plan, key)
                        if wait == 0 or (patience < 0.0 and wait.__class__ is int):
                            result = new_result(RateLimitResult)
                            result.limited = wait != 0 and cost > 0
                            result._plan = plan
                            result._seen = found
                            result._now = None
                            result._source = "server"
                            return result
                        call = plan, key, cost, patience
                        return answered(self._reply_of(found, b"", call), call, sent_at, seen)
                    call = plan, key, cost, patience
                    return alone(lane, line, reply, raised, call, sent_at, seen)
            return slowly((plan, key, cost, patience), sent_at)

        return decide

    def _decide(self, call: Call, sent_at: float) -> Answer:
        """The answer to a call that goes the way of all."""
        seen = self._denials.taken_back
        asks = self._sent([self._to_admit(call, sent_at)], [call])
        return self._decided(asks[0], call, sent_at, seen)

    def _alone(
        self,
        lane: SyncLane,
        line: SyncLine,
        reply: Any,
        raised: BaseException | None,
        call: Call,
        sent_at: float,
        seen: int,
    ) -> Answer:
        """Go on from a call that went its own way, with the lane held, and got no answer."""
        ask = self._to_admit(call)
        ask.lane = lane
        waiter = SyncWaiter([ask], self._timeout)
        waiter.asked_at, waiter.until = sent_at, sent_at + self._timeout
        lane.air.append(Part([ask]))
        try:
            if raised is None:
                lane.landed(reply)
            elif isinstance(raised, Late):
                lane.lost(TimeoutError("timed out"), True)
            elif isinstance(raised, failures()):
                lane.lost(raised, line.sent)
            elif not line.sent:
                lane.air.clear()
                lane.spoil()
        except BaseException:
            lane.hand_over()
            raise
        waiter.lead.append(lane)
        if raised is not None and not isinstance(raised, (Late, *failures())):
            self._see_out(waiter, [call])
            raise raised
        self._wait(waiter, [call])
        return self._decided(ask, call, sent_at, seen)

    def run(self, plan: Plan, key: str, cost: int, patience: float) -> Reply:
        """Decide one call; `patience` in µs, `LOOK` to change nothing."""
        call = plan, key, cost, patience
        return self._replied(self._sent([self._to_admit(call)], [call])[0], call)

    def run_many(self, calls: Sequence[Call]) -> list[Any]:
        """Decide several calls in one round trip; an error stands in the place of its call."""
        asks = self._sent(self._to_admit_all(calls), calls)
        return [self._outcome(ask, call) for ask, call in zip(asks, calls, strict=True)]

    def decide_many(self, plan: Plan, calls: Sequence[tuple[str, int]]) -> list[Outcome]:
        """Answers to several calls that do not wait; an error stands in the place of its call."""
        sent_at, seen = self._denials.tick(), self._denials.taken_back
        answers, asked = self._recalled(plan, calls, sent_at)
        asks = self._sent(self._to_admit_all(asked, sent_at), asked)
        return self._filled(answers, asks, asked, sent_at, seen)

    def _sent(self, asks: Sequence[SyncAsk], calls: Sequence[Call] = ()) -> Sequence[SyncAsk]:
        """The same asks, answered. `calls`: what has to be given back in case of an interrupt."""
        waiter = SyncWaiter(asks, self._timeout)
        lane = self._lane
        if lane is None or lane.breaker.opened:
            road = self._ready()
            for ask in asks:
                self._submit(road, ask)
        else:
            for ask in asks:
                ask.lane = lane
            lane.queue.extend(asks)
        self._wait(waiter, calls)
        return asks

    def _wait(self, waiter: SyncWaiter, calls: Sequence[Call]) -> None:
        try:
            waiter.wait()
        except BaseException:
            self._see_out(waiter, calls)
            raise

    def _see_out(self, waiter: SyncWaiter, calls: Sequence[Call]) -> None:
        """The caller has been interrupted: give back what it took meanwhile."""
        waiter.interrupted()
        for ask, call in zip(waiter.asks, calls, strict=False):
            try:
                ticket, changes = self._undone(ask, call)
                if ticket is not None:
                    self.withdraw(ticket)
                if changes:
                    self.adjust_all(changes)
            except BaseThrottledError:
                pass  # The interrupt is what the caller has to hear of.

    # -- everything else --------------------------------------------------------------------------

    def adjust(self, plan: Plan, key: str, delta: int, slot: float | None = None) -> bool:
        """Charge (`delta > 0`) or give back; says whether anything was changed."""
        return self._changed(self._sent([self._to_adjust(plan, key, delta, slot)])[0], plan, key)

    def adjust_all(self, changes: Sequence[Change]) -> list[bool]:
        """Charge or give back several in one round trip; says of each whether it changed."""
        return self._changed_all(self._sent(self._to_adjust_all(changes)), changes)

    def adjust_once(
        self, plan: Plan, key: str, mark: str, seconds: float, changes: Sequence[Change]
    ) -> list[bool] | None:
        """The same, unless it was done before: see `Store.adjust_once`."""
        ask = self._to_adjust_once(plan, key, mark, seconds, changes)
        return self._changed_once(self._sent([ask])[0], changes)

    def reset_all(self, names: Sequence[tuple[Plan, str]]) -> None:
        """Forget several in one round trip."""
        self._changed_all(self._sent(self._to_reset_all(names)), names)

    def admit_all(
        self, joint: Joint, keys: Sequence[str], cost: int, patience: float
    ) -> tuple[Answer, Ticket | None]:
        """Decide a call that has to keep several plans at once: see `Store.admit_all`."""
        call: Any = joint, keys, cost, patience
        ask = self._sent([self._to_ticket(*call)], [call])[0]
        return self._joint_answer(ask.groups, ask.name, call)

    def undo(self, ticket: Ticket) -> bool:
        """Put back the state before a promise, if nobody came after; says whether it did."""
        return self._changed(self._sent([self._to_undo(ticket)])[0], ticket.plan, ticket.key)

    def reset(self, plan: Plan, key: str) -> None:
        """Forget a key."""
        self._changed(self._sent([self._to_reset(plan, key)])[0], plan, key)

    def withdraw(self, ticket: Ticket) -> None:
        """Give back a promised slot, as if it had never been asked for where that is possible."""
        follow(self, self._waiting.leave(ticket))

    def arrived(self, ticket: Ticket) -> None:
        """A promised slot was used: return what those gave up who stood before it."""
        follow(self, self._waiting.arrive(ticket))

    def health(self) -> Health:
        """How the store gets on with its server, without asking it."""
        return self._health(self._road)

    def close(self) -> None:
        """Close the connection, if no other store uses it. A later call opens a new one."""
        self.forget()
        driven(self._leave(None))
