"""What both flavours of `Throttled` do, in which order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from throttled import switch
from throttled.algorithms.plan import LOOK, NOW
from throttled.hooks import HookContext, Stopwatch, store_type_of
from throttled.outcomes import nothing_taken, served, shadowed
from throttled.quota import MAX_LIMIT
from throttled.reservation import Taken
from throttled.result import RateLimitResult, RateLimitState, View
from throttled.settings import Settings, StoreT, Terms
from throttled.store.base import Answer, Outcome, Reply, Ticket
from throttled.store.policy import FAILURES, Flow
from throttled.tiers import Tiers


class BaseThrottled(Settings[StoreT]):
    """What both flavours share, beside the arguments. No sleeping.

    What may have to wait for a store, a user's callable or time comes out as the steps of a flow,
    which sync code takes as they are (`finished`) and async code awaits (`afinished`).
    """

    __slots__ = ("_ask", "_at_once", "_decide")

    def _bind(self) -> None:
        """Put together what decides."""
        terms = self._terms
        if terms is not None:
            #: `(key, cost, patience)` -> the answer of the stores, or what to await for it.
            self._ask: Callable[[str, int, float], Any] = terms.ask
        else:
            self._ask = self._asking(self._tiers)
        switch.register(self)

    def _asking(self, tiers: Tiers[Terms]) -> Callable[[str, int, float], Any]:
        """What asks by a quota that depends on the key."""
        raise NotImplementedError

    def _switch(self, enabled: bool) -> None:
        """Limits are switched on or off: see `throttled.testing.disabled`."""
        watched = self.hooks or self._events or self.exempt is not None or not self.enforce
        #: `(key, cost, patience)` -> the answer of a call, or in async code what to await for it.
        #: Whatever not every limit has is behind it, so that calls of the others do not ask for it.
        if not enabled:
            self._decide: Callable[[str, int, float], Any] = self._off
        elif watched:
            self._decide = self._watched
        else:
            self._decide = self._ask
        local = self._terms is not None and not self._terms.policy.awaits
        #: The same where it gives a result at once, with nothing to wait for and nobody to tell;
        #: else None.
        self._at_once = (
            self._ask if local and self._decide is self._ask and self._patience == NOW else None
        )

    def _off(self, key: str, cost: int, patience: float) -> RateLimitResult:
        return self._free("disabled")

    def _free(self, source: Literal["disabled", "exempt", "shadow"]) -> RateLimitResult:
        """A result of nobody having been asked."""
        terms = self._terms
        plan = None if terms is None else terms.plan.joint
        limits = [MAX_LIMIT] if plan is None else [each.capacity for each in plan.plans]
        states = tuple([RateLimitState(limit, limit, 0.0, 0.0) for limit in limits])
        rules = () if plan is None else plan.rules
        return RateLimitResult.told(False, source, View(rules, states, 0, False))

    def _watched(self, key: str, cost: int, patience: float) -> Any:
        """The result of a call that more has to be done for than to decide."""
        raise NotImplementedError

    # -- what is done -----------------------------------------------------------------------------

    def _asked(self, key: str, cost: int, patience: float, taken: Taken | None) -> Flow[Answer]:
        """The answer of the stores; its ticket goes to `taken`, if one is wanted."""
        if taken is None or not taken.ticketed:
            answer: Answer = yield self._ask(key, cost, patience)
        else:
            terms = yield from self._terms_of(key)
            answer, ticket = yield from terms.policy.admit_all(key, cost, patience)
            # While it waits, it is not yet the caller's to give back.
            taken.ticket = ticket if isinstance(answer, RateLimitResult) else None
            if not cost:
                taken.ticket = nothing_taken(terms.policy.levels[0], key)
        return answer

    def _served(
        self, key: str, cost: int, patience: float, reply: Reply, taken: Taken | None = None
    ) -> Flow[RateLimitResult]:
        """Wait for the slot that was promised, and for others if a penalty takes it away."""
        while True:
            ticket: Ticket = reply[0]
            yield self._wait(ticket)
            if taken is not None:
                taken.waited += ticket.wait / 1e6
            held = self.hold and any(part.held for part in ticket.parts)
            if held:
                try:
                    look: RateLimitResult = yield self._ask(key, cost, LOOK)
                except BaseException:
                    yield self._give_back(ticket)
                    raise
                held = look.held  # else it is over by now
            if not held:
                if taken is not None:
                    taken.ticket = ticket
                return served(reply)
            yield self._give_back(ticket)
            patience = max(patience - ticket.wait, NOW)
            answer = yield from self._asked(key, cost, patience, taken)
            if isinstance(answer, RateLimitResult):
                return answer
            reply = answer

    def _wait(self, ticket: Ticket) -> Any:
        """Sleep until a slot; whoever is woken before gives it back."""
        raise NotImplementedError

    def _give_back(self, ticket: Ticket) -> Any:
        """Give a promised slot back."""
        raise NotImplementedError

    def _sleep(self, store: Any, microseconds: float) -> Any:
        """Sleep, by a store's clock."""
        raise NotImplementedError

    def _watch(
        self, key: str, cost: int, patience: float, taken: Taken, deciding: Stopwatch
    ) -> Flow[RateLimitResult]:
        """A decision, with whom it exempts and what it only pretends."""
        # Read once: a quota may be replaced meanwhile, and a policy with all that it says.
        exempt, enforce = self.exempt, self.enforce
        if exempt is not None and (yield exempt(key)):
            return self._free("exempt")
        try:
            with deciding:
                answer = yield from self._asked(key, cost, patience, taken)
            if isinstance(answer, RateLimitResult):
                result = answer
            elif enforce:
                if self._events is not None:
                    try:
                        yield self._events.waits(self, key, cost, answer[1] / 1e6)
                    except BaseException:
                        yield self._give_back(answer[0])
                        raise
                result = yield from self._served(key, cost, patience, answer, taken)
            else:
                taken.ticket = answer[0]
                yield answer[0].store.arrived(answer[0])
                result = served(answer)
        except FAILURES:
            if enforce:
                raise
            result = self._free("shadow")
        if not enforce:
            shadowed(result)
        return result

    def _told(
        self, key: str, cost: int, result: RateLimitResult, taken: Taken, deciding: Stopwatch
    ) -> Any:
        """A decision is over, hooks and all."""
        if self._events is None:
            return None
        return self._events.decided(self, key, cost, result, taken.waited, deciding.seconds)

    def _context(self, key: str, cost: int) -> HookContext:
        """What hooks are told of a call."""
        terms = self._terms
        rules = () if terms is None else terms.plan.rules
        names = dict.fromkeys([rule.using or self._using for rule in rules]) or [self._using]
        return HookContext(key, cost, ", ".join(names), store_type_of(self.store))

    def _many(self, asked: Sequence[tuple[str, int]]) -> Flow[list[Outcome]]:
        """The outcomes of calls that do not wait."""
        if not switch.enabled():
            return [self._free("disabled") for _ in asked]
        terms, exempt, enforce = self._terms, self.exempt, self.enforce
        if terms is not None and exempt is None and self._events is None and enforce:
            return (yield from terms.policy.outcomes(asked))
        outcomes: list[Any] = [None] * len(asked)
        # By quota, each in the order of the calls: one key has one quota.
        groups: dict[int, tuple[Terms, list[int]]] = {}
        for place, (key, _) in enumerate(asked):
            if exempt is not None and (yield exempt(key)):
                outcomes[place] = self._free("exempt")
            else:
                terms = yield from self._terms_of(key)
                groups.setdefault(id(terms), (terms, []))[1].append(place)
        deciding = Stopwatch()
        for terms, places in groups.values():
            with deciding:
                answers = yield from terms.policy.outcomes([asked[place] for place in places])
            for place, answer in zip(places, answers, strict=True):
                outcomes[place] = answer
        for place, (key, cost) in enumerate(asked):
            outcome = outcomes[place]
            if isinstance(outcome, FAILURES) and not enforce:
                outcomes[place] = outcome = self._free("shadow")
            if isinstance(outcome, RateLimitResult):
                if not enforce and outcome.source != "exempt":
                    shadowed(outcome)
                if self._events is not None:
                    took = 0.0 if outcome.source == "exempt" else deciding.seconds
                    yield self._events.decided(self, key, cost, outcome, took=took)
        return outcomes
