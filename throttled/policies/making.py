"""From what a file says to stores and limits: made for real, so that what cannot work is known."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from fnmatch import translate
from functools import partial
from typing import Any, Final

from throttled.arguments import Key
from throttled.base import BaseThrottled
from throttled.policies.spec import MEMORY, FileSpec, Override, PolicySpec, StoreSpec
from throttled.policies.values import BadValueError, Path, Values
from throttled.quota import Rule
from throttled.settings import _observing
from throttled.store.memory import MemoryStore

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


class Made:
    """What a file came to: its stores, and of each policy a limit that others are made like."""

    def __init__(self, spec: FileSpec) -> None:
        self.spec = spec
        #: By the names that `spec.stores` has.
        self.stores: dict[str, Any] = {}
        #: The stores that were not there before.
        self.new: list[Any] = []
        self.limits: dict[str, BaseThrottled[Any]] = {}


def made_of(
    spec: FileSpec,
    values: Values,
    kind: type[BaseThrottled[Any]],
    redis: Callable[..., Any],
    given: Any,
    before: Made | None,
) -> Made:
    """The stores and limits of a file; what cannot be made goes to the problems of `values`.

    `kind` and `redis`: the `Throttled` and the `RedisStore` of the flavour. `given`: the store of
    policies that name none; None: the one in memory. A store that `before` has and that is to be
    the same again is the same object.
    """
    made = Made(spec)
    for name in spec.stores:
        _make_store(made, name, values, redis, before)
    # What the keys in a place begin with -> the first policy that has it.
    seen: dict[tuple[object, str], str] = {}
    for name, policy in spec.policies.items():
        place = spec.places[name] or (MEMORY if given is None else None)
        store = given if place is None else made.stores.get(place)
        word = policy.on_store_error
        fallback = made.stores.get(word) if word in spec.stores else word
        if store is None or (word is not None and fallback is None):
            continue  # the store is the problem
        path: Path = ("policies", name)
        if any(each is store for each in _standing_in(fallback)):
            values.wrong(
                (*path, "on_store_error"), f"Invalid on_store_error: {word!r} would replace itself."
            )
            continue
        try:
            made.limits[name] = _limit(values, path, policy, kind, store, fallback)
        except BadValueError:
            continue
        where = None if place is None else spec.stores[place].place
        for prefix in _prefixes(policy, made.limits[name]):
            first = seen.setdefault((where, prefix), name)
            if first != name:
                values.wrong(
                    (*path, "key_prefix"),
                    f"Invalid key_prefix: {policy.key_prefix!r} is that of policies.{first} as "
                    f"well, and both would count under {prefix}..., must be another one, or name "
                    f"the rules.",
                )
                break
    return made


def _make_store(
    made: Made, name: str, values: Values, redis: Callable[..., Any], before: Made | None
) -> Any:
    """The store of a name, after the one that it falls back to; None if it cannot be made."""
    if name in made.stores:
        return made.stores[name]
    spec = made.spec.stores[name]
    path = made.spec.said[name]
    if not values.fine(path):
        return None
    word: Any = spec.on_store_error
    if word in made.spec.stores:
        word = _make_store(made, word, values, redis, before)
        if word is None:
            return None
    if before is not None and before.spec.stores.get(name) == spec:
        old = before.stores[name]
        if old.on_store_error == ("raise" if word is None else word):
            made.stores[name] = old
            return old
    try:
        if spec.url == MEMORY:
            store = values.trying(path, lambda: MemoryStore(options=spec.options))
        else:
            store = values.trying(path, lambda: _redis_store(redis, spec, word))
    except BadValueError:
        return None
    made.stores[name] = store
    made.new.append(store)
    return store


def _redis_store(redis: Callable[..., Any], spec: StoreSpec, word: Any) -> Any:
    return redis(
        spec.url,
        spec.options or None,
        on_store_error="raise" if word is None else word,
        hash_keys=spec.hash_keys,
    )


def _limit(
    values: Values,
    path: Path,
    policy: PolicySpec,
    kind: type[BaseThrottled[Any]],
    store: Any,
    fallback: Any,
) -> BaseThrottled[Any]:
    """The limit of a policy; every quota in it has been tried."""
    plain = values.trying(
        path,
        lambda: kind(
            using=policy.using,
            quota=policy.rules,
            store=store,
            key_prefix=policy.key_prefix,
            on_store_error=fallback,
            hold=policy.hold,
            enforce=policy.enforce,
        ),
    )
    limited = [((*path, "tiers", tier.name), tier.rules) for tier in policy.tiers]
    limited += [
        ((*path, "overrides", place), override.rules)
        for place, override in enumerate(policy.overrides)
        if override.rules is not None
    ]
    for where, rules in limited:
        values.trying(where, partial(plain._made, rules))
    clock: Callable[[], float] = getattr(store, "_clock", None) or time.time
    if limited:
        plain._quota_ttl = 0
        plain._set_quota(Tariff(policy, clock))
    exempt = Exempt(policy.overrides, clock)
    if exempt.until:
        plain.exempt = exempt
        plain._bind()
    limit: BaseThrottled[Any] = plain
    return limit


def _prefixes(policy: PolicySpec, limit: BaseThrottled[Any]) -> list[str]:
    """What the keys of a policy begin with, in the order of the file."""
    every = [policy.rules, *[tier.rules for tier in policy.tiers]]
    every += [each.rules for each in policy.overrides if each.rules is not None]
    found = [plan.prefix for rules in every for plan in limit._made(rules).plan.joint.plans]
    return list(dict.fromkeys(found))


# -- what depends on the key ----------------------------------------------------------------------


class Tariff:
    """The quota of each key: that of its override as long as it counts, of the first tier that has
    it, or the policy's own. What `quota=` is for a policy that has some of those."""

    __slots__ = ("_clock", "_name", "_overrides", "_own", "_tiers")

    def __init__(self, policy: PolicySpec, clock: Callable[[], float]) -> None:
        """`clock`: seconds since the epoch, by which overrides end."""
        self._name = policy.name
        self._clock = clock
        self._own = _terse(policy.rules)
        self._overrides = {
            each.key: (_terse(each.rules), _seconds(each.until))
            for each in policy.overrides
            if each.rules is not None
        }
        self._tiers = [
            (re.compile("|".join([translate(key) for key in tier.keys])).match, _terse(tier.rules))
            for tier in policy.tiers
        ]

    def __repr__(self) -> str:
        return f"the tiers and overrides of policy {self._name!r}"

    def __call__(self, key: str) -> Any:
        key = _plain(key)
        override = self._overrides.get(key)
        if override is not None:
            quota, until = override
            if until is None or self._clock() < until:
                return quota
        for matches, quota in self._tiers:
            if matches(key):
                return quota
        return self._own


class Exempt:
    """Whether a key is exempt for now."""

    __slots__ = ("_clock", "until")

    def __init__(self, overrides: tuple[Override, ...], clock: Callable[[], float]) -> None:
        self._clock = clock
        #: Key -> seconds since the epoch, or None: for ever.
        self.until = {each.key: _seconds(each.until) for each in overrides if each.exempt}

    def __call__(self, key: str) -> bool:
        key = _plain(key)
        if key not in self.until:
            return False
        until = self.until[key]
        return until is None or self._clock() < until


class Either:
    """Exempts whom the file exempts, and whom the program does."""

    __slots__ = ("_by_file", "_by_program")

    def __init__(self, by_file: Callable[[str], Any], by_program: Callable[[str], Any]) -> None:
        self._by_file = by_file
        self._by_program = by_program

    def __call__(self, key: str) -> Any:
        # In async code the program's answer may be one to await.
        return self._by_file(key) or self._by_program(key)


def _plain(key: str) -> str:
    """A key as the file has it: without the slot that it lives in."""
    return key.text if type(key) is Key else key


def _terse(rules: tuple[Rule, ...]) -> Any:
    """Rules as text where text says it all: an entry is found faster by it."""
    if any(rule.using or rule.cost or rule.name for rule in rules):
        return rules
    return "; ".join([str(rule.quota) for rule in rules])


def _seconds(until: datetime | None) -> float | None:
    """Seconds since the epoch: the float that a clock shows at that µs."""
    return None if until is None else (until - _EPOCH) // _MICROSECOND / 1e6


# -- following ------------------------------------------------------------------------------------

#: What a limit of a policy has of its file, but for what it asks: see `take_over`.
_OF_THE_FILE: Final = (
    "store",
    "on_store_error",
    "enforce",
    "hold",
    "_using",
    "_prefix",
    "_quota_ttl",
)


def take_over(
    throttle: BaseThrottled[Any], like: BaseThrottled[Any], exempt: Callable[[str], Any] | None
) -> None:
    """Let a limit go on as another, which was made for real and cannot fail any more.

    Key, cost, timeout, hooks and observers stay its own; `exempt` is its own too, and holds as well
    as the file's. Calls under way meanwhile go by what was or by what is: what they are decided by
    is put in place last, and at once.
    """
    with _observing:
        for name in _OF_THE_FILE:
            setattr(throttle, name, getattr(like, name))
        if exempt is None or like.exempt is None:
            throttle.exempt = like.exempt if exempt is None else exempt
        else:
            throttle.exempt = Either(like.exempt, exempt)
        throttle._set_quota(like._quota)


def stores_of(throttle: BaseThrottled[Any]) -> list[Any]:
    """The stores that a limit may ask."""
    return [throttle.store, *_standing_in(throttle.on_store_error)]


def _standing_in(word: Any) -> Iterator[Any]:
    """The stores that stand in one for the other, by an `on_store_error`."""
    while word is not None and not isinstance(word, str):
        yield word
        word = word.on_store_error
