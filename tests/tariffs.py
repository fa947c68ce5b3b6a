"""Quotas by key as users write them, and tiers made of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from inspect import isawaitable
from typing import Any

from anyio.lowlevel import checkpoint

from tests.flavours import Flavour
from throttled.quota import Rule
from throttled.testing import FakeClock
from throttled.tiers import Tiers


class Tariff:
    """A callable of a user's, and what it was asked."""

    def __init__(self, quotas: dict[str, Any] | None = None, default: Any = "1/m") -> None:
        self.quotas = quotas or {}
        self.default = default
        self.asked: list[str] = []

    def __call__(self, key: str) -> Any:
        self.asked.append(key)
        quota = self.quotas.get(key, self.default)
        if isinstance(quota, BaseException):
            raise quota
        return quota

    async def slowly(self, key: str) -> Any:
        await checkpoint()
        return self(key)


class Made(list[tuple[Rule, ...]]):
    """Makes entries that can be told apart, and notes of what."""

    def __call__(self, rules: tuple[Rule, ...]) -> Any:
        self.append(rules)
        return ["entry", rules]


def tiers_of(
    resolve: Any, ttl: float = 60.0, *, asynchronous: bool = False, **arguments: Any
) -> Tiers[Any]:
    arguments.setdefault("make", Made())
    arguments.setdefault("timer", FakeClock())
    return Tiers(resolve, ttl, asynchronous=asynchronous, **arguments)


def kinds(flavour: Flavour, tariff: Tariff) -> list[Callable[[str], Any]]:
    """The kinds of callables that a flavour takes."""
    if not flavour.asynchronous:
        return [tariff]
    return [tariff, tariff.slowly, partial(tariff.slowly), lambda key: tariff.slowly(key)]


def ask(flavour: Flavour, tiers: Tiers[Any], key: str) -> Any:
    """The entry of a key, as a `Throttled` gets it."""
    if not flavour.asynchronous:
        return tiers.of(key)

    async def main() -> Any:
        entry = tiers.of(key)
        return await entry if isawaitable(entry) else entry

    return flavour.run(main)
