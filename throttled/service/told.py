"""What `/stats` shows: one JSON object, described in docs/service.md."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from throttled import __version__
from throttled.exceptions import PolicyNotFoundError
from throttled.hooks import store_type_of
from throttled.policies import described
from throttled.quota import Rule
from throttled.store.base import AsyncStore, Store
from throttled.store.memory import MemoryStore

if TYPE_CHECKING:
    from throttled.asyncio.throttled import Throttled
    from throttled.service.serving import Running


def told(running: Running) -> dict[str, Any]:
    """All that there is to tell of a service."""
    servicer, policies = running.servicer, running.policies
    waiting = servicer.waiting()
    stores = Stores()
    by_policy: dict[str, Any] = {}
    for name, throttle in servicer.begin().items():
        with suppress(PolicyNotFoundError):  # a reload has just taken it away
            by_policy[name] = {
                **policy_says(policies, name, throttle, stores),
                "operations": sorted(servicer.operations(name)),
                "waiting": waiting.get(name, 0),
                **servicer.stats[name].told(throttle.store.hides_keys),
            }
    return {
        "version": __version__,
        "uptime": round(time.monotonic() - running.began, 3),
        "draining": running.draining,
        "under_way": servicer.running,
        "policies": by_policy,
        "stores": stores.told(),
        "policy_file": file_says(policies),
        "tickets": {"issued": running.tickets.issued, "settled": running.tickets.settled},
    }


def policy_says(policies: Any, name: str, throttle: Throttled, stores: Stores) -> dict[str, Any]:
    """What holds for a policy, by its file or without one."""
    spec: Any = policies.spec(name) if hasattr(policies, "spec") else None
    says = {"tiers": [], "overrides": []} if spec is None else described(spec)
    if throttle._terms is not None:
        rules = throttle._terms.plan.rules
    else:
        rules = getattr(spec, "rules", ())
    return {
        "rules": [_rule(rule, throttle) for rule in rules],
        "by_key": throttle._terms is None,
        "tiers": says["tiers"],
        "overrides": says["overrides"],
        "store": stores.name(throttle.store, getattr(spec, "store", None)),
        "key_prefix": throttle._prefix,
        "hides_keys": throttle.store.hides_keys,
        "on_store_error": stores.instead(throttle),
        "enforce": throttle.enforce,
    }


def _rule(rule: Rule, throttle: Throttled) -> dict[str, Any]:
    return {
        "quota": str(rule.quota),
        "algorithm": rule.using or throttle._using,
        "cost": rule.cost,
        "name": rule.name,
    }


def file_says(policies: Any) -> dict[str, Any] | None:
    """Of the policy file, if there is one: the error of what is not in force."""
    path = getattr(policies, "path", None)
    if path is None:
        return None
    return {"path": str(path), "loaded_at": policies.loaded_at, "error": policies.error}


class Stores:
    """The stores of all policies, each under one name."""

    def __init__(self) -> None:
        self._named: dict[str, Any] = {}

    def name(self, store: Any, wanted: str | None = None) -> str:
        """The name of a store: as the file calls it, else by its kind, the second "redis-2"."""
        for name, each in self._named.items():
            if each is store:
                return name
        kind = wanted or store_type_of(store)
        name, number = kind, 1
        while name in self._named:
            number += 1
            name = f"{kind}-{number}"
        self._named[name] = store
        return name

    def instead(self, throttle: Throttled) -> str:
        """What is done when its store fails: a word, or the name of a store."""
        other: Any = throttle.on_store_error
        if isinstance(other, Store | AsyncStore):
            name = self.name(other)
            while isinstance(other.on_store_error, Store | AsyncStore):
                other = other.on_store_error
                self.name(other)
            return name
        return str(other)

    def told(self) -> dict[str, Any]:
        """How each of them gets on."""
        return {name: _health(store) for name, store in self._named.items()}


def _health(store: Any) -> dict[str, Any]:
    health = store.health()
    known: dict[str, Any] = {
        "kind": store_type_of(store),
        "state": health.state,
        "failures": health.failures,
        "last_error": health.last_error,
        "last_error_at": health.last_error_at,
    }
    if isinstance(store, MemoryStore):
        known |= {"keys": len(store), "evicted": store.evicted}
    return known
