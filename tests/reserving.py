"""All that a `Throttled` offers for a key, without `await` whatever the flavour."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.contract import STORES, Limiter, MakeRig, Rig
from throttled.algorithms.plan import ALGORITHMS
from throttled.result import Forecast, RateLimitResult

#: One name for each rule.
RULES = ("fixed_window", "sliding_window", "sliding_window_log", "token_bucket")
BUCKETS = tuple(name for name in ALGORITHMS if name not in RULES[:3])


@pytest.fixture(params=STORES)
def rig(request: pytest.FixtureRequest, make_rig: MakeRig, algorithm: str) -> Rig:
    return make_rig(request.param, algorithm)


@pytest.fixture(params=STORES)
def any_rig(request: pytest.FixtureRequest, make_rig: MakeRig) -> Rig:
    """A rig for what does not depend on the algorithm."""
    return make_rig(request.param)


class Held:
    """A reservation."""

    def __init__(self, rig: Rig, reservation: Any) -> None:
        self._rig = rig
        self.reservation = reservation

    @property
    def result(self) -> RateLimitResult:
        result: RateLimitResult = self.reservation.result
        return result

    @property
    def settled(self) -> bool:
        return bool(self.reservation.settled)

    def settle(self, actual: Any) -> None:
        self._rig.wait(self.reservation.settle(actual))

    def cancel(self) -> None:
        self._rig.wait(self.reservation.cancel())


class Face(Limiter):
    """A limiter with everything that can be done to a key."""

    def reserve(self, *args: Any, **kwargs: Any) -> Held:
        """A reservation outside of any block."""
        made = self.throttled.reserve(*args, **kwargs)
        if not self._rig.kind.asynchronous:
            return Held(self._rig, made)

        async def take() -> Any:
            return await made

        return Held(self._rig, self._rig.wait(take()))

    @contextmanager
    def reserved(self, *args: Any, **kwargs: Any) -> Iterator[Held]:
        """`with throttle.reserve(...)`, or `async with`."""
        made = self.throttled.reserve(*args, **kwargs)
        if not self._rig.kind.asynchronous:
            with made as reservation:
                yield Held(self._rig, reservation)
            return
        reservation = self._rig.wait(made.__aenter__())
        try:
            yield Held(self._rig, reservation)
        except BaseException as error:
            self._rig.wait(made.__aexit__(type(error), error, error.__traceback__))
            raise
        self._rig.wait(made.__aexit__(None, None, None))

    def __enter__(self) -> RateLimitResult:
        """`with throttle`, or `async with`."""
        entered = self.throttled.__aenter__ if self._rig.kind.asynchronous else None
        result: RateLimitResult = (
            self.throttled.__enter__() if entered is None else self._rig.wait(entered())
        )
        return result

    def __exit__(self, *_: object) -> None:
        return None

    def limit_many(self, calls: Any) -> list[RateLimitResult]:
        results: list[RateLimitResult] = self._rig.wait(self.throttled.limit_many(calls))
        return results

    def debit(self, key: Any, n: Any) -> None:
        self._rig.wait(self.throttled.debit(key, n))

    def refund(self, key: Any, n: Any) -> bool:
        changed: bool = self._rig.wait(self.throttled.refund(key, n))
        return changed

    def reset(self, key: Any) -> None:
        self._rig.wait(self.throttled.reset(key))

    def penalize(self, key: Any, seconds: Any) -> None:
        self._rig.wait(self.throttled.penalize(key, seconds))

    def forecast(self, *args: Any) -> Forecast:
        forecast: Forecast = self._rig.wait(self.throttled.forecast(*args))
        return forecast

    def free(self, key: str = "key") -> int:
        """What remains of a key."""
        return self.peek(key).remaining

    def drain(self, key: str = "key") -> None:
        """Take all that is free."""
        free = self.free(key)
        if free:
            assert self.limit(key, free).allowed


def face(rig: Rig, quota: Any, **arguments: Any) -> Face:
    """A limiter on a rig."""
    return Face(rig, rig.limiter(quota, **arguments).throttled)
