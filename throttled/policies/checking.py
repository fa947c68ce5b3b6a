"""What a policy file may say, and what it comes to: a parsed file in, a `FileSpec` out.

Whether a store can be made and rules can be kept is for those to say who make them: see `making`.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime
from typing import Any, Final

from throttled._text import shown
from throttled.arguments import check_key
from throttled.policies.spec import (
    MEMORY,
    OPERATIONS,
    FileSpec,
    Override,
    PolicySpec,
    StoreSpec,
    Tier,
)
from throttled.policies.values import BadValueError, Path, Values, nearest
from throttled.quota import RateLimiterType, Rule, check_name, rules_of
from throttled.store.connection import OPTIONS, masked

#: What limits of a file begin their keys with, where it says nothing.
_PREFIX: Final = "throttled"
_WORDS: Final = ("raise", "allow", "deny", "local")

_FILE: Final = ("defaults", "stores", "policies")
_DEFAULTS: Final = ("using", "store", "key_prefix", "on_store_error", "enforce")
_STORE: Final = ("url", "on_store_error", "hash_keys", "options")
_POLICY: Final = ("quota", "rules", *_DEFAULTS, "hold", "operations", "tiers", "overrides")
_TIER: Final = ("keys", "quota", "rules")
_OVERRIDE: Final = ("key", "quota", "rules", "exempt", "until", "reason")
_RULE: Final = ("quota", "using", "cost", "name")

_QUOTA: Final = "text such as '100/s burst 200' or '10/s; 1000/h'"
_UNTIL: Final = "a date and time with its offset, such as 2026-12-31T23:59:59Z"
_URL: Final = "'memory' or a URL such as redis://localhost:6379/0"


def checked(values: Values, document: dict[str, Any]) -> FileSpec:
    """What a file says; what is wrong with it goes to the problems of `values`."""
    values.known((), document, _FILE)
    stores = _stores(values, document.get("stores", {}))
    reader = _Policies(values, stores)
    with suppress(BadValueError):  # the policies are read all the same
        reader.read_defaults(document.get("defaults", {}))
    if "policies" not in document or document["policies"] == {}:
        values.wrong(("policies",), "There are none, must be tables such as [policies.api].")
        return FileSpec({}, {}, {}, {})
    policies: dict[str, PolicySpec] = {}
    with suppress(BadValueError):
        for path, name, table in values.entries(("policies",), document["policies"]):
            with suppress(BadValueError):
                policies[name] = reader.policy(path, name, table)
    return FileSpec(policies, reader.stores, reader.places, reader.said)


# -- stores ---------------------------------------------------------------------------------------


def _stores(values: Values, given: object) -> dict[str, StoreSpec]:
    """The stores by name. One with a problem is there, so that what names it is no problem too."""
    found = {MEMORY: StoreSpec(MEMORY, MEMORY)}
    with suppress(BadValueError):
        for path, name, table in values.entries(("stores",), given):
            found[name] = StoreSpec(name, MEMORY)
            if name in _WORDS:
                values.wrong(path, f"Invalid name: {name!r} has a meaning in on_store_error.")
                continue
            with suppress(BadValueError):
                found[name] = _store(values, path, name, table)
    for name, store in found.items():
        if store.on_store_error is not None:
            path = ("stores", name, "on_store_error")
            with suppress(BadValueError):
                values.word(path, "on_store_error", store.on_store_error, (*_WORDS, *found))
                _check_ends(values, path, found, store)
    return found


def _store(values: Values, path: Path, name: str, table: dict[str, Any]) -> StoreSpec:
    values.known(path, table, _STORE)
    where = (*path, "url")
    url = values.text(where, "url", table.get("url"), _URL)
    if name == MEMORY and url != MEMORY:
        raise values.bad(where, "url", masked(url), "'memory' for the store of that name")
    if url != MEMORY and "://" not in url:
        raise values.bad(where, "url", masked(url), _URL)
    options = values.table((*path, "options"), table.get("options", {}))
    values.known((*path, "options"), options, OPTIONS if url != MEMORY else ("MAX_SIZE",))
    options = values.expanded_all((*path, "options"), options)
    if url == MEMORY:
        for key in ("on_store_error", "hash_keys"):
            if key in table:
                values.wrong((*path, key), f"Invalid {key}: it says nothing of a store in memory.")
        return StoreSpec(name, url, options)
    hash_keys = table.get("hash_keys", False)
    if isinstance(hash_keys, str):
        hash_keys = values.expanded((*path, "hash_keys"), "hash_keys", hash_keys)
    if not isinstance(hash_keys, bool | str) or hash_keys == "":
        # The value itself stays out of the message.
        values.wrong(
            (*path, "hash_keys"),
            f"Invalid hash_keys: got {type(hash_keys).__name__}, must be true, false or a secret "
            f"that is not empty.",
        )
        raise BadValueError
    word = table.get("on_store_error")
    if word is not None:
        word = values.text((*path, "on_store_error"), "on_store_error", word, _word_or_store())
    return StoreSpec(name, url, options, hash_keys, word)


def _word_or_store() -> str:
    return f"one of {', '.join(_WORDS)}, or the name of a store"


def _check_ends(values: Values, path: Path, stores: dict[str, StoreSpec], store: StoreSpec) -> None:
    """Stores stand in for one another; note a circle."""
    line = [store.name]
    after = store.on_store_error
    while after in stores:
        line.append(after)
        if after in line[:-1]:
            # Said of each store of the circle, and not of those that only lead there.
            if after == store.name:
                values.wrong(
                    path,
                    f"Invalid on_store_error: {after!r} would replace itself: {' -> '.join(line)}.",
                )
            return
        after = stores[after].on_store_error


# -- policies -------------------------------------------------------------------------------------


class _Policies:
    """Reads the policies of a file."""

    def __init__(self, values: Values, stores: dict[str, StoreSpec]) -> None:
        self._values = values
        self.stores = dict(stores)
        self.places: dict[str, str | None] = {}
        self.said: dict[str, Path] = {name: ("stores", name) for name in stores}
        self._defaults: dict[str, Any] = {}
        self._prefix = _PREFIX

    def read_defaults(self, given: object) -> None:
        """What policies come to that do not say otherwise."""
        path: Path = ("defaults",)
        table = self._values.table(path, given)
        self._values.known(path, table, _DEFAULTS)
        for key in _DEFAULTS:
            if key in table:
                with suppress(BadValueError):
                    self._defaults[key] = self._setting((*path, key), key, table[key])
        self._prefix = self._defaults.pop("key_prefix", _PREFIX)

    def _setting(self, path: Path, key: str, value: object) -> Any:
        """What may be said by default and in a policy."""
        values = self._values
        if key == "using":
            return values.word(path, "algorithm", value, RateLimiterType.choice())
        if key == "enforce":
            return values.flag(path, key, value)
        if key == "key_prefix":
            prefix = values.text(path, key, value)
            values.trying(path, lambda: check_name(key, prefix))
            return prefix
        if key == "on_store_error":
            return values.word(path, key, value, (*_WORDS, *self._named()))
        return self._place(path, value)

    def _named(self) -> list[str]:
        """The names of the stores that have one."""
        return [name for name in self.stores if "://" not in name]

    def _place(self, path: Path, value: object) -> str:
        """The store that is meant by a name or a URL."""
        values = self._values
        place = values.text(path, "store", value, f"the name of a store, {_URL}")
        if place in self.stores:
            return place
        if "://" not in place:
            values.wrong(path, f"Invalid store: {shown(place)}, {nearest(place, self._named())}")
            raise BadValueError
        self.stores[place] = StoreSpec(masked(place), place)
        self.said[place] = path
        return place

    def policy(self, path: Path, name: str, table: dict[str, Any]) -> PolicySpec:
        """One policy."""
        values = self._values
        values.known(path, table, _POLICY)
        settings: dict[str, Any] = dict(self._defaults)
        bad = False
        for key in _DEFAULTS:
            if key in table:
                try:
                    settings[key] = self._setting((*path, key), key, table[key])
                except BadValueError:
                    bad = True
        rules = self._or_none(self._rules, path, table)
        hold = self._or_none(values.flag, (*path, "hold"), "hold", table.get("hold", False))
        operations = self._or_none(self._operations, (*path, "operations"), table)
        tiers = self._or_none(self._tiers, (*path, "tiers"), table.get("tiers", {}))
        overrides = self._or_none(self._overrides, (*path, "overrides"), table)
        place = settings.get("store")
        self.places[name] = place
        if bad or None in (rules, hold, operations, tiers, overrides):
            raise BadValueError
        store = None if place is None else self.stores[place]
        return PolicySpec(
            name=name,
            rules=rules,
            using=settings.get("using", RateLimiterType.TOKEN_BUCKET.value),
            key_prefix=settings.get("key_prefix", f"{self._prefix}:{name}"),
            store=None if store is None else store.name,
            on_store_error=settings.get("on_store_error"),
            enforce=settings.get("enforce", True),
            hold=hold,
            operations=operations,
            tiers=tiers,
            overrides=overrides,
        )

    def _or_none(self, read: Any, *given: Any) -> Any:
        """What is read, or None: the rest is read all the same."""
        try:
            return read(*given)
        except BadValueError:
            return None

    def _rules(self, path: Path, table: dict[str, Any]) -> tuple[Rule, ...]:
        """The rules of a policy, a tier or an override."""
        values = self._values
        if ("quota" in table) == ("rules" in table):
            both = "not both" if "quota" in table else "such as quota = '100/s'"
            values.wrong(path, f"Invalid limit: must have a quota or rules, {both}.")
            raise BadValueError
        if "quota" in table:
            where = (*path, "quota")
            text = values.text(where, "quota", table["quota"], _QUOTA)
            return tuple(values.trying(where, lambda: rules_of(text)))
        items = values.items((*path, "rules"), "rules", table["rules"])
        found = [self._or_none(self._rule, *item) for item in items]
        if None in found:
            raise BadValueError
        return tuple(found)

    def _rule(self, path: Path, value: object) -> Rule:
        values = self._values
        if not isinstance(value, dict):
            raise values.bad(path, "rule", value, "a table such as { quota = '100/s', cost = 1 }")
        values.known(path, value, _RULE)
        given = {
            key: values.expanded_all((*path, key), each)
            for key, each in value.items()
            if key in _RULE
        }
        given["quota"] = values.text(
            (*path, "quota"), "quota", value.get("quota"), "text such as '100/s burst 200'"
        )
        rule: Rule = values.trying(path, lambda: Rule(**given))
        return rule

    def _operations(self, path: Path, table: dict[str, Any]) -> frozenset[str]:
        values = self._values
        if "operations" not in table:
            return frozenset(OPERATIONS)
        items = values.items(path, "operations", table["operations"])
        return frozenset(
            [values.word(where, "operation", item, OPERATIONS) for where, item in items]
        )

    def _tiers(self, path: Path, given: object) -> tuple[Tier, ...]:
        values = self._values
        found: list[Any] = []
        for where, name, table in values.entries(path, given):
            values.known(where, table, _TIER)
            found.append(self._or_none(self._tier, where, name, table))
        if None in found or not values.fine(path):
            raise BadValueError
        return tuple(found)

    def _tier(self, path: Path, name: str, table: dict[str, Any]) -> Tier:
        values, must = self._values, "a shell pattern of keys such as 'pro:*'"
        rules = self._or_none(self._rules, path, table)
        where = (*path, "keys")
        if not isinstance(table.get("keys"), list):
            raise values.bad(where, "keys", table.get("keys"), f"a list, each {must}")
        items = values.items(where, "keys", table["keys"])
        keys = tuple([values.plain(each, "pattern", item, must) for each, item in items])
        if rules is None:
            raise BadValueError
        return Tier(name, keys, rules)

    def _overrides(self, path: Path, table: dict[str, Any]) -> tuple[Override, ...]:
        values = self._values
        if "overrides" not in table or table["overrides"] == []:
            return ()
        found: list[Any] = []
        places: dict[str, int] = {}
        items = values.items(path, "overrides", table["overrides"])
        for place, (where, item) in enumerate(items):
            if not isinstance(item, dict):
                values.bad(where, "override", item, "a table with a key")
                found.append(None)
                continue
            values.known(where, item, _OVERRIDE)
            override = self._or_none(self._override, where, item)
            found.append(override)
            if override is not None:
                first = places.setdefault(override.key, place)
                if first != place:
                    # By its place, for keys may be secret.
                    values.wrong((*where, "key"), f"Invalid key: it is that of overrides[{first}].")
        if None in found or not values.fine(path):
            raise BadValueError
        return tuple(found)

    def _override(self, path: Path, table: dict[str, Any]) -> Override:
        values = self._values
        key = values.trying((*path, "key"), lambda: check_key(table.get("key")))
        exempt = table.get("exempt", False)
        if not isinstance(exempt, bool):
            raise values.bad((*path, "exempt"), "exempt", exempt, "true or false")
        if not exempt:
            rules = self._rules(path, table)
        elif "quota" in table or "rules" in table:
            values.wrong(path, "Invalid limit: an exempt key has none, must be one or the other.")
            raise BadValueError
        else:
            rules = None
        until = _instant(values, (*path, "until"), table["until"]) if "until" in table else None
        reason = table.get("reason")
        if reason is not None:
            reason = values.plain((*path, "reason"), "reason", reason)
        return Override(key, rules, until, reason)


def _instant(values: Values, path: Path, value: object) -> datetime:
    """A date and time that says where."""
    instant: Any = value
    if isinstance(value, str):
        try:
            instant = datetime.fromisoformat(value)
        except ValueError:
            instant = None
    if not isinstance(instant, datetime) or instant.tzinfo is None:
        given = value if isinstance(value, str) or not hasattr(value, "isoformat") else str(value)
        raise values.bad(path, "until", given, _UNTIL)
    return instant
