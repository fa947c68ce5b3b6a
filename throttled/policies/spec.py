"""What a policy file says, checked: plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from throttled.quota import Rule

#: What a policy may permit to those who ask by its name.
OPERATIONS: Final = ("check", "peek", "forecast", "debit", "reserve", "refund", "reset")


@dataclass(frozen=True, slots=True)
class Tier:
    """The rules of all keys that match one of its patterns."""

    name: str
    #: Shell patterns, case sensitive.
    keys: tuple[str, ...]
    rules: tuple[Rule, ...]


@dataclass(frozen=True, slots=True)
class Override:
    """What holds for one key, before all tiers."""

    #: Not in the repr: keys may be secret.
    key: str = field(repr=False)
    #: None if the key is exempt, or not counted at all.
    rules: tuple[Rule, ...] | None
    #: From this instant on it does not count; None: it stays.
    until: datetime | None = None
    reason: str | None = None

    @property
    def exempt(self) -> bool:
        """Whether calls of the key pass uncounted."""
        return self.rules is None


@dataclass(frozen=True, slots=True)
class PolicySpec:
    """One policy of a file: `policies.spec("api")`."""

    name: str
    rules: tuple[Rule, ...]
    #: The algorithm of rules that name none.
    using: str
    key_prefix: str
    #: The name of its store, or its URL without the password; None: the one given to `load`.
    store: str | None
    #: "raise", "allow", "deny", "local" or the name of a store; None: as the store says.
    on_store_error: str | None
    enforce: bool
    hold: bool
    operations: frozenset[str]
    tiers: tuple[Tier, ...]
    overrides: tuple[Override, ...]
    #: Whether its store keeps keys as digests, and they are to be shown nowhere.
    hides_keys: bool = False


@dataclass(frozen=True, slots=True)
class StoreSpec:
    """One store of a file. What may be secret is not in its repr."""

    name: str
    #: "memory" or a URL.
    url: str = field(repr=False)
    options: Mapping[str, Any] = field(repr=False, default_factory=dict[str, Any])
    hash_keys: bool | str = field(repr=False, default=False)
    #: A word, the name of a store, or None: "raise".
    on_store_error: str | None = None

    @property
    def place(self) -> object:
        """Equal for stores that would count under the same keys."""
        return self.name if self.url == MEMORY else (self.url, self.hash_keys)


#: The name of the store that is always there, and the URL of any other in memory.
MEMORY: Final = "memory"


@dataclass(frozen=True, slots=True)
class FileSpec:
    """What one file says."""

    policies: dict[str, PolicySpec]
    #: By name; those that a policy says the URL of, by URL.
    stores: dict[str, StoreSpec] = field(repr=False)
    #: Policy -> its store among them; None: the one given to `load`.
    places: dict[str, str | None] = field(repr=False)
    #: Where each store is said: the path to its table, or to where its URL stands first.
    said: dict[str, tuple[str | int, ...]] = field(repr=False, compare=False)


def described(spec: PolicySpec) -> dict[str, Any]:
    """A policy as JSON has it. Keys of overrides are left out where the store hides keys."""
    return {
        "name": spec.name,
        "rules": _rules(spec.rules),
        "using": spec.using,
        "key_prefix": spec.key_prefix,
        "store": spec.store,
        "on_store_error": spec.on_store_error,
        "enforce": spec.enforce,
        "hold": spec.hold,
        "operations": [each for each in OPERATIONS if each in spec.operations],
        "tiers": [
            {"name": tier.name, "keys": list(tier.keys), "rules": _rules(tier.rules)}
            for tier in spec.tiers
        ],
        "overrides": [
            {
                **({} if spec.hides_keys else {"key": each.key}),
                "rules": None if each.rules is None else _rules(each.rules),
                "exempt": each.exempt,
                "until": None if each.until is None else each.until.isoformat(),
                "reason": each.reason,
            }
            for each in spec.overrides
        ],
    }


def _rules(rules: tuple[Rule, ...]) -> list[dict[str, Any]]:
    return [
        {"quota": str(rule.quota), "using": rule.using, "cost": rule.cost, "name": rule.name}
        for rule in rules
    ]
