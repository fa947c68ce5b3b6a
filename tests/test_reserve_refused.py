"""Reservations that come to nothing after the store has admitted them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.flavours import Flavour, flavour
from throttled.algorithms.plan import ALGORITHMS
from throttled.exceptions import LimitedError
from throttled.result import RateLimitResult

__all__ = ["flavour"]


def take(flavour: Flavour, throttle: Any) -> Any:
    """A reservation of 7."""

    async def take() -> Any:
        return await throttle.reserve("key", 7)

    return flavour.run(take) if flavour.asynchronous else throttle.reserve("key", 7)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_a_hook_refuses_after_all_is_given_back(flavour: Flavour, algorithm: str) -> None:
    async def refuse(call_next: Any, context: Any) -> RateLimitResult:
        result = await call_next()
        return RateLimitResult(True, result.state)

    throttle = flavour.limiter(using=algorithm, quota="10/m", hooks=[flavour.hook(refuse)])
    with pytest.raises(LimitedError):
        take(flavour, throttle)
    assert flavour.run(throttle.peek, "key").remaining == 10


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_is_interrupted_after_the_decision_is_given_back(
    flavour: Flavour, algorithm: str
) -> None:
    def interrupt(event: Any) -> None:
        raise KeyboardInterrupt

    for on in ("on_allow", "on_wait"):
        throttle = flavour.limiter(using=algorithm, quota="10/m", timeout=600, **{on: interrupt})
        if on == "on_wait":
            flavour.run(throttle.debit, "key", 10)
        before = flavour.run(throttle.peek, "key", 7)
        with pytest.raises(KeyboardInterrupt):
            take(flavour, throttle)
        assert flavour.run(throttle.peek, "key", 7) == before
