"""What a policy of a service does otherwise than a `Throttled` of counts it can reach itself."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn

from throttled import adjusting, switch
from throttled._text import shown
from throttled.algorithms.plan import NOW
from throttled.arguments import check_key
from throttled.exceptions import DataError, OperationNotSupportedError
from throttled.hooks import HookContext, store_type_of
from throttled.outcomes import nothing_taken
from throttled.quota import Rule
from throttled.result import Forecast, RateLimitResult
from throttled.service.remote import ServicePlan
from throttled.store.base import Answer, AsyncStore, Store
from throttled.store.policy import Flow, afinished, finished

if TYPE_CHECKING:
    from throttled.base import BaseThrottled
    from throttled.reservation import Taken
    from throttled.settings import Terms
    from throttled.store.policy import Level


class Told:
    """Stands where other limits have the quota of a key: the service has it."""

    def __init__(self, rules: tuple[Rule, ...] | None) -> None:
        #: What stores that stand in go by; None: there is nothing.
        self.rules = rules
        self.terms: Terms

    def of(self, key: str) -> Terms:
        return self.terms

    def __repr__(self) -> str:
        return "the service"


class OfService:
    """What a policy of a service does otherwise than a `Throttled`, of either flavour."""

    __slots__ = ()

    if TYPE_CHECKING:
        _asynchronous: bool
        _ask: Callable[[str, int, float], Any]
        _off: Callable[[str, int, float], Any]
        _prefix: str
        _quota: Any
        _terms: Any
        _tiers: Any
        _using: str
        enforce: bool
        key: Any
        on_store_error: Any
        store: Any

        def _bind(self) -> None: ...
        def _made(self, rules: tuple[Rule, ...]) -> Terms: ...
        def _terms_by(self, plan: Any) -> Terms: ...
        def _terms_of(self, key: str) -> Flow[Terms]: ...

    @property
    def name(self) -> str:
        """The name of the policy."""
        name: str = self.store.policy
        return name

    def __repr__(self) -> str:
        key = "" if self.key is None else f"key={shown(self.key)}, "
        return f"{type(self).__name__}({self.name!r}, {key}service={self.store._client.target!r})"

    @property
    def quota(self) -> Any:
        """Raises `DataError`: it is the service's. Results have the rules that decided."""
        raise self._theirs()

    @quota.setter
    def quota(self, quota: Any) -> None:
        raise self._theirs()

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Raises `DataError`: they are the service's. Results have those that decided."""
        raise self._theirs()

    def _theirs(self) -> DataError:
        return DataError(
            f"Invalid use of quota and rules: those of policy {self.name!r} are the service's, "
            f"where they are changed; a result has the rules that decided."
        )

    def _set_quota(self, quota: Told) -> None:
        stands_in = self.on_store_error == "local" or isinstance(
            self.on_store_error, Store | AsyncStore
        )
        if quota.rules is not None:
            quota.terms = self._made(quota.rules)
        elif stands_in:
            raise DataError(
                f"Invalid on_store_error: {shown(self.on_store_error)} needs quota= for what is to "
                f"stand in, such as client.policy({self.name!r}, quota='100/s'): the client does "
                f"not know that of the service."
            )
        else:
            quota.terms = self._terms_by(ServicePlan(self._prefix))
        # As of a limit whose quota depends on the key: nobody may rely on the plan.
        self._quota, self._tiers, self._terms = quota, quota, None
        self._bind()

    def _asking(self, tiers: Any) -> Callable[[str, int, float], Any]:
        ask: Callable[[str, int, float], Any] = tiers.terms.ask
        return ask

    def _asked(self, key: str, cost: int, patience: float, taken: Taken | None) -> Flow[Answer]:
        """The answer of the stores; its ticket goes to `taken`, if one is wanted."""
        if not self.enforce:
            patience = min(patience, NOW)  # The service would wait, which nobody is to do.
        if taken is None or not taken.ticketed:
            answer: Answer = yield self._ask(key, cost, patience)
            return answer
        terms = yield from self._terms_of(key)

        def ask(level: Level) -> Any:
            if level.store is self.store:
                return level.store.reserve(key, cost, patience)
            joint = level.plan.joint
            return level.store.admit_all(joint, joint.keys(key), cost, patience)

        policy = terms.policy
        answer, ticket = yield from policy.tried(
            ask, lambda: (policy.by_word(cost), None), key, cost
        )
        if ticket is None and not cost:
            ticket = nothing_taken(policy.levels[0], key)
        taken.ticket = ticket if isinstance(answer, RateLimitResult) else None
        return answer

    def _context(self, key: str, cost: int) -> HookContext:
        return HookContext(key, cost, "service", store_type_of(self.store))

    def _forecasting(self, throttle: BaseThrottled[Any], key: object) -> Flow[Forecast]:
        """What a key can spend; what stands in for the service is looked at several times."""
        if not switch.enabled():
            return (yield from adjusting.forecast(throttle, key))
        key = throttle._key() if key is None else check_key(key)
        policy = (yield from self._terms_of(key)).policy
        done: Any = afinished if self._asynchronous else finished

        def looking(decide: Callable[[str, int, float], Any], store: Any) -> Any:
            looks: Any = SimpleNamespace(_ask=decide, _off=self._off, store=store)
            return adjusting.forecast(looks, key)

        def ask(level: Level) -> Any:
            if level.store is self.store:
                return level.store.forecast(key)
            return done(looking(level.decide, level.store))

        def otherwise() -> Forecast:
            forecast: Forecast = finished(
                looking(lambda _, cost, __: policy.by_word(cost), self.store)
            )
            return forecast

        forecast: Forecast = yield from policy.tried(ask, otherwise, key, 1)
        return forecast

    def _no_penalty(self) -> NoReturn:
        raise OperationNotSupportedError(
            f"penalize() is not what a service does, so policy {self.name!r} cannot; it takes a "
            f"Throttled(hold=True) on a MemoryStore or a RedisStore."
        )
