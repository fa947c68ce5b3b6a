"""What is done when a store fails: `on_store_error`.

Rules
-----
* A store fails when it cannot decide: it raises `StoreUnavailableError`, or `StateError` for a key
  that holds something else. Any other error is the caller's to see, whatever the policy.
* `"raise"` is no policy at all: what the store binds is called as it is.
* Stores stand in one after the other: the one that `on_store_error` names, then the one that its
  own `on_store_error` names, until a word ends the line. `"local"` adds a last one, in memory.
* Every call asks the store first, so once it works again it decides again, at once. What was
  counted in its stead stays where it is: nothing is copied, in either direction.

What to ask comes out as steps, so that sync and async code share it: `finished` and `afinished`
take them. A store that works does without them.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Generator, Sequence
from datetime import timedelta
from math import inf
from typing import Any, Literal, NamedTuple, TypeVar, cast

from throttled._text import shown
from throttled.algorithms.plan import Joint, Plan, make_plan
from throttled.exceptions import DataError, SetUpError, StateError, StoreUnavailableError
from throttled.quota import MAX_PERIOD, Quota, Rate, Rule
from throttled.result import RateLimitResult, RateLimitState, Source, View
from throttled.store.base import Answer, AsyncStore, Outcome, Store, Ticket, misplaced, new_lock
from throttled.store.memory import MemoryStore

T = TypeVar("T")

logger = logging.getLogger("throttled")

#: What `on_store_error` says, where it does not name a store.
Word = Literal["raise", "allow", "deny", "local"]
_WORDS = ("raise", "allow", "deny", "local")

#: How a store says that it could not decide.
FAILURES = (StoreUnavailableError, StateError)

#: Seconds until a call that was denied may come back, where the store does not know.
_RETRY_AFTER = 1.0
#: Prefixes whose damaged keys one store warns of, at most.
_MOST_WARNINGS = 1024

#: Yields what stores answer, as it is or to be awaited, and is sent the answers.
Flow = Generator[Any, Any, T]

_making = new_lock()


def checked_policy(value: Any, asynchronous: bool) -> Any:
    """An `on_store_error` that code of that flavour can follow.

    Raises `DataError` for what is none, and `SetUpError` for a store of the other flavour.
    """
    if isinstance(value, Store | AsyncStore):
        why = misplaced(value, asynchronous)
        if why:
            raise SetUpError(f"Invalid on_store_error: {shown(value)} {why}")
    elif not isinstance(value, str) or value not in _WORDS:
        raise DataError(
            f"Invalid on_store_error: {shown(value)}, must be 'raise', 'allow', 'deny', 'local' "
            f"or a store to fall back to."
        )
    return value


def share(quota: Quota, n: int) -> Quota:
    """The part of a quota for each of `n` processes that cannot see what the others admit.

    Limit and burst are divided by `n` and rounded down, so that in any stretch of time all of them
    together admit no more than the quota would. Two shares are too small for that:

    - Of a limit below `n` each gets 1 in `ceil(n / limit)` periods. Together they keep to the
      quota over so many periods, though not in each of them.
    - Of a burst below `n` each gets 1: together `n` at once, and the quota's rate from then on.

    No period is longer than 366 days: a limit that would need one is exceeded. Raises `DataError`
    unless `n` is a whole number of at least 1.
    """
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise DataError(f"Invalid LOCAL_SHARE: {shown(n)}, must be a whole number of at least 1.")
    if n == 1:
        return quota
    limit, period = quota.limit // n, quota.rate.period
    if not limit:
        limit = 1
        # In integers: not every product is a timedelta.
        periods = quota.period_us * -(-n // quota.limit)
        period = timedelta(microseconds=min(periods, MAX_PERIOD // timedelta(microseconds=1)))
    return Quota(Rate(period, limit), max(quota.burst // n, 1))


class Level(NamedTuple):
    """One store of a policy, and what it decides by."""

    store: Any
    plan: Plan | Joint
    decide: Callable[[str, int, float], Any]


class Policy:
    """A plan on a store, and what is done when the store fails."""

    __slots__ = ("_report", "_word", "awaits", "levels")

    def __init__(
        self,
        store: Any,
        plan: Plan | Joint,
        on_store_error: Any,
        asynchronous: bool,
        report: Callable[[str, int, Exception], Any] | None = None,
    ) -> None:
        """`report` hears of every failure of a store: key, cost, error."""
        stores = [store]
        word = checked_policy(on_store_error, asynchronous)
        while not isinstance(word, str):
            if any(word is each for each in stores):
                raise SetUpError(f"Invalid on_store_error: {shown(word)} would replace itself.")
            stores.append(word)
            word = checked_policy(word.on_store_error, asynchronous)
        #: Whether decisions have to be awaited.
        self.awaits = any(isinstance(each, AsyncStore) for each in stores) or (
            asynchronous and report is not None
        )
        #: Who is asked, in this order, before the word is followed.
        self.levels = [Level(each, plan, each.bind(plan)) for each in stores]
        if word == "local":
            local, part = _local_store(stores[-1]), _part_of(plan, stores[-1].local_share)
            self.levels.append(Level(local, part, local.bind(part)))
            word = "raise"
        self._word: str = word
        self._report = report

    def bind(self) -> Callable[[str, int, float], Any]:
        """`(key, cost, patience)` -> the answer, to be awaited if the policy `awaits`."""
        first = self.levels[0]
        ask, instead = first.decide, self._instead
        if self._word == "raise" and len(self.levels) == 1 and self._report is None:
            return ask

        def decide(key: str, cost: int, patience: float) -> Answer:
            try:
                answer: Answer = ask(key, cost, patience)
            except FAILURES as error:
                return finished(instead(key, cost, patience, error))
            return answer

        at_once = isinstance(first.store, Store)

        async def adecide(key: str, cost: int, patience: float) -> Answer:
            try:
                asked = ask(key, cost, patience)
                answer: Answer = asked if at_once else await asked
            except FAILURES as error:
                return await afinished(instead(key, cost, patience, error))
            return answer

        return adecide if self.awaits else decide

    def _instead(self, key: str, cost: int, patience: float, error: Exception) -> Flow[Answer]:
        """The answer when the first store has failed with an error."""

        def ask(level: Level) -> Any:
            return level.decide(key, cost, patience)

        def otherwise() -> Answer:
            return self.by_word(cost)

        answer: Answer = yield from self._others(ask, otherwise, key, cost, error)
        return answer

    def admit_all(self, key: str, cost: int, patience: float) -> Flow[tuple[Answer, Ticket | None]]:
        """The answer with a ticket, if there is something to give back."""

        def ask(level: Level) -> Any:
            joint = level.plan.joint
            return level.store.admit_all(joint, joint.keys(key), cost, patience)

        answer: tuple[Answer, Ticket | None] = yield from self.tried(
            ask, lambda: (self.by_word(cost), None), key, cost
        )
        return answer

    def tried(
        self, ask: Callable[[Level], Any], otherwise: Callable[[], Any], key: str, cost: int
    ) -> Flow[Any]:
        """What the first store says that does not fail, or what the word comes to otherwise."""
        try:
            return (yield ask(self.levels[0]))
        except FAILURES as error:
            failed = error
        return (yield from self._others(ask, otherwise, key, cost, failed))

    def _others(
        self,
        ask: Callable[[Level], Any],
        otherwise: Callable[[], Any],
        key: str,
        cost: int,
        error: Exception,
    ) -> Flow[Any]:
        first, failed = error, self.levels[0]
        if self._report is not None:
            yield self._report(key, cost, error)
        for level in self.levels[1:]:
            _warn(failed, error)
            try:
                return _stood_in((yield ask(level)))
            except FAILURES as another:
                failed, error = level, another
        if self._word == "raise":
            raise error from (None if error is first else first)
        _warn(failed, error)
        return otherwise()

    def outcomes(self, calls: Sequence[tuple[str, int]]) -> Flow[list[Outcome]]:
        """Answers to calls that do not wait; an error that is to be raised stands in its place."""
        outcomes: list[Any] = [None] * len(calls)
        places: Sequence[int] = range(len(calls))
        for level in self.levels:
            asked = [calls[place] for place in places]
            try:
                answers: Sequence[Any] = yield level.store.decide_many(level.plan, asked)
            except FAILURES as error:
                answers = [error] * len(asked)
            if level is self.levels[0] and set(map(type, answers)) == {RateLimitResult}:
                return list(answers)
            for place, answer in zip(places, answers, strict=True):
                outcomes[place] = answer if level is self.levels[0] else _stood_in(answer)
            places = [place for place in places if isinstance(outcomes[place], FAILURES)]
            if level is self.levels[0] and self._report is not None:
                for place in places:
                    yield self._report(*calls[place], outcomes[place])
            if not places or (self._word == "raise" and level is self.levels[-1]):
                return outcomes
            for place in places:
                _warn(level, outcomes[place])
        for place in places:
            outcomes[place] = self.by_word(calls[place][1])
        return outcomes

    def by_word(self, cost: int, plan: Plan | Joint | None = None) -> RateLimitResult:
        """The result where nobody could decide, by a plan other than the policy's own if need be;
        what is not known of the state is 0."""
        plan, last = plan or self.levels[0].plan, self.levels[-1]
        if self._word == "allow" or not cost:
            return undecided(plan, "allowed-by-policy")
        wait = inf if cost > plan.capacity else last.store.health().retry_after or _RETRY_AFTER
        return undecided(plan, "denied-by-policy", wait)


def undecided(plan: Plan | Joint, source: Source, wait: float | None = None) -> RateLimitResult:
    """A result without a decision: of the state only the limit is known. Refused if it has a
    `wait`, in seconds."""
    states = tuple(
        [RateLimitState(each.capacity, 0, 0.0, wait or 0.0) for each in plan.joint.plans]
    )
    return RateLimitResult.told(wait is not None, source, View(plan.rules, states, 0, False))


def _stood_in(answer: Any) -> Any:
    """The answer of a store that stands in, which says so; an error as it is."""
    if isinstance(answer, RateLimitResult):
        answer._source = "fallback"
    elif type(answer) is tuple:
        for each in answer:
            if isinstance(each, RateLimitResult):
                each._source = "fallback"
            elif isinstance(each, Ticket):
                each.source = "fallback"
            elif type(each) is tuple:
                _stood_in(each)
    return answer


def _local_store(store: Any) -> MemoryStore:
    """The memory that stands in for a store, on its clock; the same for all limits on it."""
    with _making:
        if store._local_store is None:
            clock = store.sleeper if store._clock is None else store._clock
            store._local_store = MemoryStore(clock=clock)
        local: MemoryStore = store._local_store
        return local


def _part_of(plan: Plan | Joint, n: int) -> Plan | Joint:
    """The share of one of `n` processes in a plan, under the plan's own keys."""
    if isinstance(plan, Joint):
        parts = [cast("Plan", _part_of(each, n)) for each in plan.plans]
        return Joint(parts, [_shared(rule, n) for rule in plan.rules], plan.holds)
    quota = share(plan.quota, n)
    # The prefix of the whole plan tells apart in one memory what it tells apart in the store.
    return plan if quota is plan.quota else make_plan(plan.algorithm, quota, plan.prefix)


def _shared(rule: Rule, n: int) -> Rule:
    return Rule(share(rule.quota, n), rule.using, rule.cost, rule.name)


def _warn(level: Level, error: Exception) -> None:
    """Log that a policy answers for a damaged key: once for a store and prefix.

    That a store cannot be reached is not for each limit on it to log.
    """
    store, prefix = level.store, level.plan.prefix
    warned: frozenset[str] = store._warned
    if isinstance(error, StateError) and prefix not in warned and len(warned) < _MOST_WARNINGS:
        store._warned = warned | {prefix}
        logger.warning("on_store_error decides instead, said once for such keys: %s", error)


def finished(flow: Flow[T]) -> T:
    """What a flow comes to whose steps are answers already."""
    try:
        answer = next(flow)
        while True:
            answer = flow.send(answer)
    except StopIteration as stop:
        result: T = stop.value
        return result


async def afinished(flow: Flow[T]) -> T:
    """What a flow comes to of whose steps some have to be awaited."""
    try:
        step = next(flow)
        while True:
            try:
                answer = await step if isinstance(step, Awaitable) else step
            except BaseException as error:
                step = flow.throw(error)
            else:
                step = flow.send(answer)
    except StopIteration as stop:
        result: T = stop.value
        return result
