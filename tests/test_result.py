"""Results that were decided elsewhere."""

from __future__ import annotations

import copy
import pickle
from dataclasses import FrozenInstanceError

import pytest

from throttled import MemoryStore, RateLimitResult, Throttled
from throttled.outcomes import shadowed
from throttled.result import FrozenResult


@pytest.fixture
def plain() -> RateLimitResult:
    return Throttled(quota="1/s; 100/h", store=MemoryStore()).limit("k")


@pytest.fixture
def frozen(plain: RateLimitResult) -> FrozenResult:
    return FrozenResult.told(plain.limited, plain.source, plain._views(), plain.would_limit)


def test_is_the_same_in_every_field(plain: RateLimitResult, frozen: FrozenResult) -> None:
    assert frozen == plain
    assert hash(frozen) == hash(plain)
    names = ("limited", "allowed", "would_limit", "source", "state", "states", "rules", "rule")
    for name in (*names, "binding", "held"):
        assert getattr(frozen, name) == getattr(plain, name)


@pytest.mark.parametrize("name", ["limited", "state", "_source", "other"])
def test_nothing_can_be_set(frozen: FrozenResult, name: str) -> None:
    with pytest.raises(FrozenInstanceError, match=name):
        setattr(frozen, name, True)
    with pytest.raises(FrozenInstanceError, match=name):
        delattr(frozen, name)
    assert not frozen.limited


def test_stays_what_it_is_when_it_travels(frozen: FrozenResult) -> None:
    for other in (copy.copy(frozen), pickle.loads(pickle.dumps(frozen))):
        assert type(other) is FrozenResult
        assert other == frozen


def test_shadow_mode_lets_it_pass(frozen: FrozenResult) -> None:
    refused = FrozenResult.told(True, "server", frozen._views())
    shadowed(refused)
    assert (refused.limited, refused.would_limit, refused.source) == (False, True, "shadow")
