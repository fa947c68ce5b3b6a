"""What a limit is told: its arguments, and the plans that its quota comes to."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, ClassVar, Generic, Literal, TypeAlias, TypeVar, cast

from throttled._callables import checked_callable
from throttled._text import shown
from throttled.algorithms.plan import (
    DEFAULT_PREFIX,
    LOOK,
    NOW,
    Joint,
    Plan,
    hold_plan,
    make_joint,
    make_plan,
)
from throttled.arguments import check_cost, check_key, patience_of, wait_of
from throttled.exceptions import DataError, SetUpError
from throttled.hooks import (
    Event,
    Events,
    Observer,
    checked_events,
    checked_hooks,
    checked_observer,
)
from throttled.quota import Quota, RateLimiterType, Rule, algorithm_name, per_min, rules_of
from throttled.store.base import AsyncStore, Store, misplaced, new_lock
from throttled.store.memory import MemoryStore
from throttled.store.policy import Flow, Policy, Word
from throttled.tiers import Tiers

StoreT = TypeVar("StoreT")

_observing = new_lock()

#: What says how much: a quota or its text, a rule, or several of them.
Quotas: TypeAlias = "Quota | str | Rule | Iterable[Quota | str | Rule]"


@lru_cache(maxsize=1)
def default_store() -> MemoryStore:
    """The MemoryStore that every `Throttled` without `store=` shares, sync and async."""
    return MemoryStore()


class Terms:
    """What a limit comes to for one quota: its plan on the store, and what is done on failure."""

    __slots__ = ("ask", "plan", "policy")

    def __init__(self, plan: Plan | Joint, policy: Policy) -> None:
        self.plan = plan
        self.policy = policy
        #: `(key, cost, patience)` -> the answer, to be awaited if the policy `awaits`.
        self.ask = policy.bind()


class Settings(Generic[StoreT]):
    """The arguments of a `Throttled` of either flavour, checked, and those of its calls."""

    #: Whether it is the flavour of async code.
    _asynchronous: ClassVar[bool]

    __slots__ = (
        "__weakref__",
        "_events",
        "_patience",
        "_prefix",
        "_quota",
        "_quota_ttl",
        "_terms",
        "_tiers",
        "_using",
        "cost",
        "enforce",
        "exempt",
        "hold",
        "hooks",
        "key",
        "on_store_error",
        "per",
        "store",
        "timeout",
    )

    def __init__(
        self,
        key: str | Callable[..., Any] | None = None,
        timeout: float | None = None,
        using: RateLimiterType | str | None = None,
        quota: Quotas | Callable[[str], Any] | None = None,
        store: StoreT | None = None,
        cost: int | Callable[..., Any] = 1,
        *,
        key_prefix: str = DEFAULT_PREFIX,
        on_store_error: Word | StoreT | None = None,
        hold: bool = False,
        enforce: bool = True,
        exempt: Callable[[str], Any] | None = None,
        per: Literal["call", "item"] = "call",
        quota_ttl: float = 60.0,
        hooks: Iterable[Any] = (),
        on_allow: Callable[[Event], Any] | None = None,
        on_deny: Callable[[Event], Any] | None = None,
        on_error: Callable[[Event], Any] | None = None,
        on_wait: Callable[[Event], Any] | None = None,
    ) -> None:
        """
        :param key: the key of `with`, and of calls without one. For the decorator it may be a
            template such as "user:{user_id}", or a callable that is given the call's arguments.
        :param timeout: seconds a call may wait for its slot; -1 (default): do not wait.
        :param using: the algorithm: a `RateLimiterType` or its name; token bucket by default.
        :param quota: a `Quota`, a `Rule`, text such as "100/s burst 200" or "10/s; 1000/h", or a
            list of those, which hold all at once; or a callable that returns any of that for a
            key. 60 per minute by default.
        :param store: where counts live; a MemoryStore shared by the whole process by default.
        :param cost: what one call of the decorated function or of `with` takes; for the decorator
            it may be a callable that is given the call's arguments.
        :param key_prefix: what the keys in the store begin with; limits of one prefix share keys.
        :param on_store_error: what to do when the store cannot decide: "raise", "allow", "deny",
            "local" (limit in this process) or a store to fall back to; the store's own by default.
        :param hold: whether `penalize` may be used; it makes each call look at one more key.
        :param enforce: False: decide and count, but let every call pass ("shadow").
        :param exempt: called with the key; a call passes uncounted if it returns true.
        :param per: for decorated generators: charge each "call" or each "item".
        :param quota_ttl: seconds for which the answer of a callable `quota` is kept: 60 by default;
            0: not at all, `math.inf`: as long as there is room.
        :param hooks: `Hook`s around every decision, the first one outermost.
        :param on_allow: called with an `Event` when a call was admitted.
        :param on_deny: called with an `Event` when a call was refused.
        :param on_error: called with an `Event` when a store has failed, whatever is done then.
        :param on_wait: called with an `Event` before a call waits for its slot.
        :raises DataError: for a bad argument; the message names it.
        :raises SetUpError: for a store that this flavour cannot use.
        """
        if callable(key) and not isinstance(key, str):
            rest = (timeout, using, quota, store, on_store_error)
            if cost == 1 and all(each is None for each in rest):
                raise DataError(
                    f"Invalid key: {shown(key)}; decorate with @Throttled(key=..., quota=...), "
                    f"not with @Throttled alone."
                )
            self.key: str | Callable[..., Any] | None = key
        else:
            self.key = None if key is None else check_key(key)
        self.cost: int | Callable[..., Any] = cost if callable(cost) else check_cost(cost)
        self._patience = NOW if timeout is None else patience_of(timeout)
        self.timeout = -1 if timeout is None else timeout
        self.store = cast("StoreT", self._checked(store))
        #: What is done when the store fails.
        self.on_store_error: Word | StoreT = (
            cast("Any", self.store).on_store_error if on_store_error is None else on_store_error
        )
        if per not in ("call", "item"):
            raise DataError(f"Invalid per: {shown(per)}, must be 'call' or 'item'.")
        self.per = per
        for name, flag in (("hold", hold), ("enforce", enforce)):
            if not isinstance(flag, bool):
                raise DataError(f"Invalid {name}: {shown(flag)}, must be True or False.")
        self.hold = hold
        self.enforce = enforce
        self.exempt = (
            None if exempt is None else checked_callable("exempt", exempt, self._asynchronous)
        )
        self.hooks = checked_hooks(hooks, self._asynchronous)
        self._events = checked_events(
            self._asynchronous,
            on_allow=on_allow,
            on_deny=on_deny,
            on_error=on_error,
            on_wait=on_wait,
        )
        self._using = algorithm_name("token_bucket" if using is None else using)
        self._prefix = key_prefix
        self._quota_ttl = quota_ttl
        self._set_quota(per_min(60) if quota is None else quota)

    def _checked(self, store: object) -> Store | AsyncStore:
        if store is None:
            return default_store()
        if not isinstance(store, Store | AsyncStore):
            raise SetUpError(
                f"Invalid store: {shown(store)}, must be a store such as MemoryStore() "
                f"or RedisStore(server=...){' from throttled.asyncio' * self._asynchronous}."
            )
        why = misplaced(store, self._asynchronous)
        if why:
            raise SetUpError(f"Invalid store: {shown(store)} {why}")
        return store

    def __repr__(self) -> str:
        hidden = self.key is None or cast("Any", self.store).hides_keys
        key = "" if hidden else f"key={shown(self.key)}, "
        if self._terms is None:
            quota = shown(self._quota)
        else:
            quota = repr("; ".join([str(rule.quota) for rule in self._terms.plan.rules]))
        return (
            f"{type(self).__name__}({key}using={self._using!r}, "
            f"quota={quota}, store={self.store!r})"
        )

    # -- what is asked ----------------------------------------------------------------------------

    @property
    def quota(self) -> Quota:
        """The quota, of several rules that of the first.

        May be set, to all that `quota=` may be: a new limit applies at once to what is counted.
        """
        return self.rules[0].quota

    @quota.setter
    def quota(self, quota: Quotas | Callable[[str], Any]) -> None:
        self._set_quota(quota)

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules that hold, each with its algorithm.

        Raises `DataError` where they depend on the key.
        """
        if self._terms is None:
            raise DataError(
                f"Invalid use of rules: they depend on the key, by {shown(self._quota)}; a result "
                f"has those that decided."
            )
        return self._terms.plan.rules

    def _set_quota(self, quota: Any) -> None:
        if callable(quota) and not isinstance(quota, str | Quota | Rule):
            clock = getattr(self.store, "_clock", None)
            # Before the terms go, so that a call meanwhile finds one or the other.
            self._tiers: Tiers[Terms] = Tiers(
                quota, self._quota_ttl, self._made, self._asynchronous, clock or time.monotonic
            )
            self._terms: Terms | None = None
        else:
            self._terms = self._made(rules_of(quota))
        self._quota = quota
        self._bind()

    def _made(self, rules: tuple[Rule, ...]) -> Terms:
        """The terms of a quota."""
        plan: Plan | Joint
        plans = [
            make_plan(rule.using or self._using, rule.quota, self._prefix, rule.name)
            for rule in rules
        ]
        if len(plans) == 1 and rules[0].cost is None and not self.hold:
            plan = plans[0]
        else:
            named = [
                Rule(rule.quota, plan.algorithm, rule.cost, rule.name)
                for rule, plan in zip(rules, plans, strict=True)
            ]
            plan = make_joint(plans, named, [hold_plan(self._prefix)] if self.hold else [])
        return self._terms_by(plan)

    def _terms_by(self, plan: Plan | Joint) -> Terms:
        report = self._report if self._events is not None and self._events.hear_errors else None
        return Terms(
            plan, Policy(self.store, plan, self.on_store_error, self._asynchronous, report)
        )

    def observe(self, observer: Observer) -> None:
        """Let an observer hear of every call from now on, as often as this is said: once.

        Raises `DataError` for what is no instance of `throttled.hooks.Observer`.
        """
        checked_observer(observer)
        with _observing:
            self._events = (self._events or Events(self._asynchronous)).heard_by(observer)
            # The terms were made when nobody listened to failures of the store.
            if self._terms is None:
                self._set_quota(self._quota)
            else:
                self._terms = self._terms_by(self._terms.plan)
                self._bind()

    def _report(self, key: str, cost: int, error: Exception) -> Any:
        """A store has failed."""
        assert self._events is not None
        return self._events.failed(self, key, cost, error)

    def _bind(self) -> None:
        """Put together what decides."""
        raise NotImplementedError

    # -- arguments --------------------------------------------------------------------------------

    def _call(
        self, key: object, cost: object, timeout: object, deadline: object = None
    ) -> tuple[str, int, float]:
        """The checked key, cost and patience of a call; cost 0 only looks."""
        key = self._key() if key is None else check_key(key)
        cost = check_cost(cost)
        return key, cost, self._wait_of(timeout, deadline) if cost else LOOK

    def _wait_of(self, timeout: object, deadline: object) -> float:
        """The patience that a timeout, by default the instance's, and a deadline leave."""
        return wait_of(timeout, deadline, self._patience, self._monotonic)

    @staticmethod
    def _monotonic() -> float:
        """The clock of deadlines."""
        return time.monotonic()

    def _key(self) -> str:
        key = self.key
        if key is None:
            raise DataError(
                "Invalid key: None, must be a non-empty string: pass key= to Throttled(...) to "
                "use it as a decorator or in a with statement."
            )
        if not isinstance(key, str):
            raise DataError(
                f"Invalid key: {shown(key)} is a callable, which decorated functions use; "
                f"name the key of this call."
            )
        if "{" in key or "}" in key:
            raise DataError(
                f"Invalid key: {shown(key)} is a template, which decorated functions fill; "
                f"name the key of this call."
            )
        return key

    def _own_cost(self) -> int:
        if not isinstance(self.cost, int):
            raise DataError(
                f"Invalid cost: {shown(self.cost)} is a callable, which decorated functions use; "
                f"name the cost of this call."
            )
        return self.cost

    def _terms_of(self, key: str) -> Flow[Terms]:
        """The terms for a key."""
        terms = self._terms
        if terms is not None:
            return terms
        found: Terms = yield self._tiers.of(key)
        return found
