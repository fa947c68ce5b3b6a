"""What was learned of each service, as the rules that hold beside the user's own.

Rules are only ever added, so nothing that a service says can loosen what the user has set. Each
lasts a twentieth longer than the window it stands for: what reaches a service within a window has
left here within that and the difference that two ways through the network make.

Nothing learned holds for longer than `at_most` seconds, whatever was said. A policy holds so long
after it was last told, a window counts as no longer, and so does a pause.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from math import inf
from typing import TYPE_CHECKING, Final, NamedTuple

from cachetools import LRUCache

from throttled.contrib.guessing import Guess
from throttled.quota import MIN_PERIOD, Rule, per_duration
from throttled.store.base import new_lock

if TYPE_CHECKING:
    from throttled.contrib.learning import Lesson, Policy
    from throttled.result import RateLimitResult

__all__ = ["REFUSED", "UNAVAILABLE", "Deeds", "Learned", "Sent"]

#: The statuses that say "not now".
REFUSED: Final = 429
UNAVAILABLE: Final = 503

#: Services that something is known of; the one not called for longest is forgotten first.
_MOST_KEYS: Final = 4096
#: Policies of one service.
_MOST_POLICIES: Final = 8

_LONGER: Final = 1.05
_EXACT: Final = "sliding_window_log"
#: The most that the exact algorithm counts.
_MOST: Final = 10**6

_TOLD: Final = "told"
_GUESSED: Final = "guessed"


class Sent(NamedTuple):
    """A request that was let go."""

    at: float
    cost: int
    result: RateLimitResult


class Deeds(NamedTuple):
    """What a response asks to be done: seconds in which nobody may pass, and rules that have no
    more left than so much."""

    pause: float = 0.0
    left: Sequence[tuple[Rule, int]] = ()


class _Told(NamedTuple):
    limit: int
    window: float
    until: float


@dataclass(slots=True)
class _Entry:
    """What is known of one service."""

    guess: Guess | None = None
    # By the window told; None for the one policy of those that tell none.
    told: dict[float | None, _Told] = field(default_factory=dict)
    # The most that one request has cost: no rule may shut it out for good.
    costliest: int = 1
    # What every request costs to the service; None: as much as to the user.
    fixed: int | None = None
    rules: tuple[Rule, ...] = ()
    expires: float = inf
    # Somebody brings the counts into line with what a response has said.
    aligning: bool = False


class Learned:
    """What responses have taught, key by key; for any number of threads and tasks."""

    def __init__(self, at_most: float, clock: Callable[[], float]) -> None:
        """`at_most`: seconds that anything learned holds. `clock`: seconds."""
        self._at_most = at_most
        self._clock = clock
        self._entries: LRUCache[str, _Entry] = LRUCache(_MOST_KEYS)
        self._lock = new_lock()

    def rules(self, key: str) -> tuple[Rule, ...]:
        """What holds for a key beside the user's own rules."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return ()
            if entry.expires <= self._clock():
                self._make(entry)
            return entry.rules

    def asking(self, key: str, cost: int, asked: Sequence[Rule]) -> None:
        """A request of that cost is about to wait, under rules of the user's."""
        # One with a fixed cost counts requests, and so do services. Of several, the one with the
        # shortest window is refused by first.
        rule = min(asked, key=lambda each: (each.cost is None, each.quota.period_us))
        period, most = _longer(rule.quota.period_us / 1e6), rule.quota.limit
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                entry = self._entries[key] = _Entry()
            if entry.guess is None or entry.guess.period != period or entry.guess.most != most:
                entry.guess, entry.fixed, entry.costliest = Guess(most, period), rule.cost, 1
                self._make(entry)
            if (rule.cost or cost) > entry.costliest:
                entry.costliest = rule.cost or cost
                self._make(entry)

    def sent(self, key: str, cost: int, result: RateLimitResult) -> Sent:
        """A request goes out."""
        now = self._clock()
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None and entry.guess is not None:
                before, cost = entry.guess.limit, entry.fixed or cost
                left = _left(result, _GUESSED, None)
                entry.guess.sent(now, cost, left < cost)
                if entry.guess.limit != before:
                    self._make(entry)
        return Sent(now, cost, result)

    def heard(self, key: str, sent: Sent, status: int, lesson: Lesson) -> Deeds:
        """A response has come. Whoever is given rules to bring into line says `aligned` after."""
        with self._lock:
            entry, now = self._entries.get(key), self._clock()
            if entry is None or entry.guess is None:
                return Deeds()
            known = len(entry.told)
            periods = [self._told(entry, policy, now) for policy in lesson.policies]
            pause, guessed = 0.0, entry.guess.limit
            exhausted = [policy for policy in lesson.policies if policy.exhausted]
            if status == REFUSED:
                if not exhausted and len(entry.told) == known:
                    # By a limit that it does not tell of.
                    pause = entry.guess.refused(sent.at, now, sent.cost)
                if lesson.retry_after is None and exhausted:
                    pause = max([policy.reset or 0.0 for policy in exhausted])
            else:
                entry.guess.passed(sent.at)
                # What has a limit is kept by its rule.
                pauses = [policy.reset or 0.0 for policy in exhausted if not policy.limit]
                pause = max(pauses, default=0.0)
            if status in (REFUSED, UNAVAILABLE):
                pause = max(pause, lesson.retry_after or 0.0)
            self._make(entry)
            left = self._overrated(entry, sent, dict(zip(periods, lesson.policies, strict=True)))
            if guessed is None and entry.guess.limit is not None:
                # Its count begins, and what it counts was used already.
                left.append((entry.rules[-1], 0))
            if entry.aligning:
                left = []
            entry.aligning = entry.aligning or bool(left)
            return Deeds(min(pause, self._at_most), left)

    def aligned(self, key: str) -> None:
        """The counts of a key are in line."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                entry.aligning = False

    # -- with the lock held -----------------------------------------------------------------------

    def _told(self, entry: _Entry, policy: Policy, now: float) -> int | None:
        """Note a policy; the period in µs of its rule, if it comes to one."""
        window = policy.window
        if not policy.limit or (window is None and policy.reset is None):
            return None
        if window is None:
            # No window is told. It is at least as long as any wait for its end has been, of which
            # an instant in whole seconds makes up to one second more.
            before = entry.told.get(None)
            window = max(int(policy.reset or 0), 1, 0.0 if before is None else before.window)
        window = min(window, self._at_most)
        if policy.window not in entry.told and len(entry.told) >= _MOST_POLICIES:
            return None
        entry.told[policy.window] = _Told(policy.limit, window, now + self._at_most)
        return _rule(policy.limit, window).quota.period_us

    def _overrated(
        self, entry: _Entry, sent: Sent, policies: Mapping[int | None, Policy]
    ) -> list[tuple[Rule, int]]:
        """The rules that believe to have more left than the service says, and what it says."""
        overrated: list[tuple[Rule, int]] = []
        for rule in entry.rules:
            policy = policies.get(rule.quota.period_us) if rule.name == _TOLD else None
            if policy is None:
                continue
            # As of when the request was let go: what was let go before it is counted here and
            # there, so a service that counts nobody else never has less left.
            believed, left = _left(sent.result, _TOLD, rule), policy.remaining
            if left is None and believed == inf:
                left = max(rule.quota.limit - sent.cost, 0)  # a new count, that of this request
            if left is not None and left < believed:
                overrated.append((rule, left))
        return overrated

    def _make(self, entry: _Entry) -> None:
        """Make the rules anew."""
        now, rules = self._clock(), dict[int, Rule]()
        entry.told = {each: told for each, told in entry.told.items() if told.until > now}
        for told in entry.told.values():
            rule = _rule(max(told.limit, entry.costliest), told.window, entry.fixed)
            period = rule.quota.period_us
            # Of two with one window the tighter.
            if period not in rules or rule.quota.limit < rules[period].quota.limit:
                rules[period] = rule
        entry.rules = tuple(rules.values())
        entry.expires = min([told.until for told in entry.told.values()], default=inf)
        guess = entry.guess
        if guess is not None and guess.limit is not None:
            limit = max(guess.limit, entry.costliest)
            entry.rules += (_exact(limit, guess.period, _GUESSED, entry.fixed),)


def _rule(limit: int, window: float, cost: int | None = None) -> Rule:
    """The rule that keeps to a limit of a service."""
    if limit > _MOST:  # as fast, and more even
        limit, window = _MOST, window * _MOST / limit
    return _exact(limit, _longer(window), _TOLD, cost)


def _longer(window: float) -> float:
    return max(window * _LONGER, MIN_PERIOD.total_seconds())


def _exact(limit: int, period: float, name: str, cost: int | None) -> Rule:
    return Rule(per_duration(timedelta(seconds=period), min(limit, _MOST)), _EXACT, cost, name)


def _left(result: RateLimitResult, name: str, rule: Rule | None) -> float:
    """What a learned rule had left after a call; infinite if it did not decide about it."""
    for each, state in zip(result.rules, result.states, strict=False):
        if each.name == name and (rule is None or each.quota.period_us == rule.quota.period_us):
            return state.remaining
    return inf
