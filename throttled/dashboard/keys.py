"""One key: its state by every rule, what the store holds for it, and forgetting it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import isawaitable
from math import inf
from typing import Any

from anyio import to_thread

from throttled import switch
from throttled._text import shown
from throttled.algorithms.plan import DEFAULT_PREFIX, LOOK, make_plan
from throttled.arguments import check_cost, check_key
from throttled.asyncio.throttled import Throttled as AsyncThrottled
from throttled.base import BaseThrottled
from throttled.dashboard.sources import Limits, ServiceStats, Source, rule_told
from throttled.dashboard.stored import stored
from throttled.exceptions import (
    BaseThrottledError,
    DataError,
    OperationNotSupportedError,
    PolicyNotFoundError,
)
from throttled.quota import Rule
from throttled.result import RateLimitResult
from throttled.service.asked import key_of
from throttled.service.remote import BaseService, ServicePlan
from throttled.settings import Terms
from throttled.store.base import AsyncStore
from throttled.store.policy import afinished, finished
from throttled.throttled import Throttled


@dataclass(frozen=True, slots=True)
class Asked:
    """Which key of which limit is meant; `DataError` for what nobody can mean."""

    key: str
    #: The name of a limit; None: `quota` says it, on the store that was given.
    policy: str | None = None
    quota: str | None = None
    using: str | None = None
    prefix: str | None = None
    cost: int = 1

    @classmethod
    def of(cls, body: Any) -> Asked:
        """What the body of a request says."""
        if not isinstance(body, Mapping):
            raise DataError(f"Invalid body: {shown(body)}, must be a JSON object.")
        given: dict[str, Any] = {}
        for name in ("key", "policy", "quota", "using", "prefix"):
            value = body.get(name)
            if value is not None and not isinstance(value, str):
                raise DataError(f"Invalid {name}: {shown(value)}, must be text.")
            given[name] = value or None
        key = key_of(check_key(given.pop("key") or ""))
        cost = check_cost(body.get("cost", 1))
        if cost == 0:
            raise DataError("Invalid cost: 0, must be at least 1.")
        return cls(key=key, cost=cost, **given)


class Keys:
    """Looks at keys of limits, or of any quota on a store."""

    def __init__(self, source: Source | None, limits: Limits | None, store: Any = None) -> None:
        self._source = source
        self._limits = limits
        self._store = store

    @property
    def named(self) -> bool:
        """Whether limits are asked for by name."""
        return self._limits is not None

    @property
    def bare(self) -> bool:
        """Whether any quota may be asked for, on a store."""
        return self._store is not None

    def _limit(self, asked: Asked, operation: str) -> BaseThrottled[Any]:
        if asked.policy is None:
            if self._store is None:
                raise DataError("Invalid policy: None, must be the name of a limit.")
            if asked.quota is None:
                raise DataError("Invalid quota: None, must be such as '100/s burst 200'.")
            kind: Any = AsyncThrottled if isinstance(self._store, AsyncStore) else Throttled
            bare: BaseThrottled[Any] = kind(
                quota=asked.quota,
                using=asked.using,
                store=self._store,
                key_prefix=asked.prefix or DEFAULT_PREFIX,
            )
            return bare
        try:
            if self._limits is None:
                raise PolicyNotFoundError
            limit = self._limits[asked.policy]
            permitted = self._permitted(asked.policy)
        except KeyError:
            raise PolicyNotFoundError(f"There is no limit {shown(asked.policy)} here.") from None
        if permitted is not None and operation not in permitted:
            raise OperationNotSupportedError(
                f"The policy {shown(asked.policy)} does not permit {operation}."
            )
        return limit

    def _permitted(self, policy: str) -> frozenset[str] | None:
        """What a policy permits, as its file says, else its service; None: nobody says."""
        spec: Any = getattr(self._limits, "spec", None)
        if spec is not None:
            permitted: frozenset[str] = spec(policy).operations
            return permitted
        return None if self._source is None else self._source.operations(policy)

    def hides(self, asked: Asked) -> bool:
        """Whether the key is to be shown nowhere."""
        return self._hidden(self._limit(asked, "peek"), asked.policy)

    def _hidden(self, limit: Any, policy: str | None) -> bool:
        if not isinstance(limit.store, BaseService):
            return bool(limit.store.hides_keys)
        # Its store is elsewhere, and unless that is said to show keys, we do not either.
        return (
            policy is None
            or not isinstance(self._source, ServiceStats)
            or self._source.hides(policy)
        )

    async def look(self, asked: Asked) -> dict[str, Any]:
        """The state of a key by every rule, and what the store holds for it."""
        if isinstance(self._source, ServiceStats):
            await self._source.known()
        limit: Any = self._limit(asked, "peek")
        exempt = limit.exempt is not None and await _called(limit, limit.exempt, asked.key)
        ask = limit._ask if switch.enabled() else limit._off
        result: RateLimitResult = await _called(limit, ask, asked.key, asked.cost, LOOK)
        return {
            "hidden": self._hidden(limit, asked.policy),
            "enforced": limit.enforce,
            "exempt": bool(exempt),
            "held": result.held,
            "source": result.source,
            "binding": result.binding,
            "rules": [
                {
                    **rule_told(rule, limit._using),
                    "limit": state.limit,
                    "remaining": state.remaining,
                    "reset_after": state.reset_after,
                    "retry_after": None if state.retry_after == inf else state.retry_after,
                }
                for rule, state in zip(
                    result.rules or (None,) * len(result.states), result.states, strict=True
                )
            ],
            "stored": await self._stored(limit, asked, result.rules),
        }

    async def _stored(self, limit: Any, asked: Asked, rules: Sequence[Rule]) -> dict[str, Any]:
        """What the first store holds by each rule; why not, if it cannot be had."""
        terms: Terms = await _called(limit, _terms, limit, asked.key)
        plan: Any = terms.plan
        store, plans = limit.store, plan.joint.members
        if isinstance(plan, ServicePlan):
            name, source, store = asked.policy or "", self._source, self._store
            prefix = source.prefix(name) if isinstance(source, ServiceStats) else None
            if store is None or prefix is None:
                why = "The service does not show what its store holds; --store would."
                return {"held": None, "error": why}
            if self._hidden(limit, name) and not store.hides_keys:
                why = "The service hides its keys, so it is not known where this one is."
                return {"held": None, "error": why}
            plans = [
                make_plan(rule.using or limit._using, rule.quota, prefix, rule.name)
                for rule in rules
            ]
        try:
            held = await stored(store, plans, asked.key)
        except BaseThrottledError as error:
            return {"held": None, "error": str(error)}
        if held is None:
            return {"held": None, "error": "This kind of store does not show what it holds."}
        return {"held": held, "error": None}

    async def reset(self, asked: Asked) -> None:
        """Forget a key."""
        limit: Any = self._limit(asked, "reset")
        await _called(limit, limit.reset, asked.key)


def _terms(limit: Any, key: str) -> Any:
    flow = limit._terms_of(key)
    return afinished(flow) if limit._asynchronous else finished(flow)


async def _called(limit: Any, call: Callable[..., Any], *arguments: Any) -> Any:
    """What a call of a limit comes to, whichever its flavour is: nothing blocks the loop."""
    if limit._asynchronous:
        answer = call(*arguments)
        return await answer if isawaitable(answer) else answer
    if limit.store.local and limit._terms is not None and call != limit.exempt:
        return call(*arguments)
    return await to_thread.run_sync(partial(call, *arguments))
