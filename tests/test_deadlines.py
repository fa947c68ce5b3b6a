"""No wait outlasts a deadline: one that is given, or that of a cancel scope around the call."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from math import inf, nan
from typing import Any

import anyio
import pytest
import trio

from tests.contract import Kind, MakeRig, Rig
from tests.reserving import RULES, Face, face, rig
from tests.servers import PATIENCE, Server
from throttled import MemoryStore, RateLimitResult, Throttled
from throttled.asyncio import Throttled as AsyncThrottled
from throttled.asyncio.store import RedisStore
from throttled.exceptions import DataError, LimitedError
from throttled.testing import FakeClock

pytestmark = pytest.mark.realtime

#: Seconds. Deadlines are real time while slots are on a clock that stands: what lies between those
#: two is never short of a minute.
SOON, LATE = 100.0, 100_000.0
QUOTA = "1/h"

__all__ = ["rig"]


@pytest.fixture(params=RULES)
def algorithm(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def reserve(limiter: Face, **arguments: Any) -> RateLimitResult:
    try:
        return limiter.reserve("key", **arguments).result
    except LimitedError as error:
        refused: Any = error.rate_limit_result
    result: RateLimitResult = refused
    return result


def limit_all(limiter: Face, **arguments: Any) -> RateLimitResult:
    throttle = limiter.throttled
    result: RateLimitResult = limiter._rig.wait(
        throttle.limit_all([(throttle, "key")], **arguments)
    )
    return result


CALLS: dict[str, Callable[..., RateLimitResult]] = {
    "limit": lambda limiter, **arguments: limiter.limit("key", **arguments),
    "reserve": reserve,
    "limit_all": limit_all,
}
each_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


def used_up(rig: Rig, **arguments: Any) -> tuple[Face, float]:
    """A key that is used up, and the seconds to the next slot."""
    limiter = face(rig, QUOTA, **arguments)
    limiter.drain()
    wait = limiter.peek("key").retry_after
    assert SOON < wait < LATE
    return limiter, wait


# -- a deadline that is given ---------------------------------------------------------------------


@each_call
def test_a_slot_beyond_the_deadline_is_refused_at_once_and_booked_nowhere(
    rig: Rig, call: Callable[..., RateLimitResult]
) -> None:
    limiter, wait = used_up(rig)
    before, began = rig.dump(rig.plan(QUOTA), "key"), rig.now
    for seconds in (SOON, wait - 60, 0, -SOON):
        for timeout in (None, LATE):
            refused = call(limiter, deadline=time.monotonic() + seconds, timeout=timeout)
            assert refused.limited
            assert refused.state.retry_after == wait
    assert (rig.dump(rig.plan(QUOTA), "key"), rig.now) == (before, began)


@each_call
def test_a_deadline_alone_is_also_the_timeout(
    rig: Rig, call: Callable[..., RateLimitResult]
) -> None:
    limiter, wait = used_up(rig)
    began = rig.now
    assert call(limiter, deadline=time.monotonic() + wait + 60).allowed
    assert rig.now == began + round(wait * 1e6)
    assert limiter.limit("key").limited


@each_call
def test_of_timeout_and_deadline_the_nearer_counts(
    rig: Rig, call: Callable[..., RateLimitResult]
) -> None:
    limiter, wait = used_up(rig)
    began = rig.now
    far = time.monotonic() + LATE
    assert call(limiter, deadline=far, timeout=-1).limited
    assert call(limiter, deadline=far, timeout=0).limited
    assert call(limiter, deadline=far, timeout=wait - 0.001).limited
    assert rig.now == began
    assert call(limiter, deadline=far, timeout=wait).allowed
    assert rig.now > began


@each_call
def test_what_fits_now_passes_whatever_the_deadline(
    rig: Rig, call: Callable[..., RateLimitResult]
) -> None:
    for deadline in (time.monotonic() - SOON, 0, -1e300, time.monotonic()):
        limiter = face(rig, QUOTA)
        limiter.reset("key")
        assert call(limiter, deadline=deadline).allowed
        assert limiter.free() == 0


@each_call
def test_deadlines_without_end_are_none(rig: Rig, call: Callable[..., RateLimitResult]) -> None:
    limiter, wait = used_up(rig)
    began = rig.now
    assert call(limiter, deadline=-inf).limited
    assert rig.now == began
    assert call(limiter, deadline=inf).allowed
    assert rig.now == began + round(wait * 1e6)
    assert limiter.limit("key").limited


def test_the_timeout_of_the_instance_is_kept_below_a_deadline(rig: Rig) -> None:
    limiter, wait = used_up(rig, timeout=LATE)
    assert limiter.limit("key", deadline=time.monotonic() + SOON).limited
    assert limiter.limit("key", deadline=time.monotonic() + wait + 60).allowed
    impatient, _ = used_up(rig, timeout=SOON)
    assert impatient.limit("key", deadline=time.monotonic() + LATE).limited


@each_call
@pytest.mark.parametrize("deadline", ["soon", True, nan, 1j, b"1", [1]])
def test_a_bad_deadline_is_named_and_takes_nothing(
    make_rig: MakeRig, call: Callable[..., RateLimitResult], deadline: Any
) -> None:
    for kind in (Kind("memory"), Kind("memory", True), Kind("fakeredis")):
        rig = make_rig(kind)
        limiter = face(rig, QUOTA)
        with pytest.raises(DataError, match="Invalid deadline: "):
            call(limiter, deadline=deadline)
        assert rig.dump(rig.plan(QUOTA), "key") is None


def test_a_cost_of_0_needs_no_deadline(make_rig: MakeRig) -> None:
    limiter, _ = used_up(make_rig(Kind("memory")))
    assert limiter.limit("key", 0, deadline=time.monotonic()).allowed


# -- the scopes around a call ---------------------------------------------------------------------

Call = Callable[[AsyncThrottled], Awaitable[bool]]


async def by_limit(throttle: AsyncThrottled) -> bool:
    return (await throttle.limit("key", timeout=LATE)).allowed


async def by_instance(throttle: AsyncThrottled) -> bool:
    return (await throttle.limit("key")).allowed


async def by_limit_all(throttle: AsyncThrottled) -> bool:
    return (await AsyncThrottled.limit_all([(throttle, "key")], timeout=LATE)).allowed


async def by_reserve(throttle: AsyncThrottled) -> bool:
    try:
        return (await throttle.reserve("key")).result.allowed
    except LimitedError:
        return False


async def by_reserved_block(throttle: AsyncThrottled) -> bool:
    try:
        async with throttle.reserve("key", timeout=LATE) as reservation:
            return reservation.result.allowed
    except LimitedError:
        return False


async def by_block(throttle: AsyncThrottled) -> bool:
    try:
        async with throttle as result:
            return result.allowed
    except LimitedError:
        return False


async def by_decorator(throttle: AsyncThrottled) -> bool:
    @throttle
    async def function() -> bool:
        return True

    try:
        return await function()
    except LimitedError:
        return False


WAYS: list[Call] = [
    by_limit,
    by_instance,
    by_limit_all,
    by_reserve,
    by_reserved_block,
    by_block,
    by_decorator,
]
each_way = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
#: How scopes end in so many seconds.
Within = Callable[[float], Any]
SCOPES: dict[str, tuple[str, Within]] = {
    "asyncio-move_on_after": ("asyncio", anyio.move_on_after),
    "asyncio-fail_after": ("asyncio", anyio.fail_after),
    "trio-move_on_after": ("trio", anyio.move_on_after),
    "trio-its-own": ("trio", trio.move_on_after),
}
each_scope = pytest.mark.parametrize(("backend", "within"), SCOPES.values(), ids=SCOPES)


class Queue:
    """A key that is used up, on a clock of its own."""

    def __init__(self, **arguments: Any) -> None:
        self.clock = FakeClock()
        self.store = MemoryStore(clock=self.clock)
        self.throttle = AsyncThrottled(
            "key", LATE, quota=QUOTA, store=self.store, using="gcra", **arguments
        )
        Throttled(quota=QUOTA, store=self.store, using="gcra").limit("key")
        self.before = self.seen()

    def seen(self) -> Any:
        return self.store.dump(self.throttle._terms.plan.joint.plans[0], "key"), self.clock.now

    @property
    def untouched(self) -> bool:
        return bool(self.seen() == self.before)


async def asks(queue: Queue, way: Call, *scopes: Callable[[], Any]) -> bool:
    """Whether it is admitted in all of those scopes, the first one outermost."""
    with ExitStack() as stack:
        for scope in scopes:
            stack.enter_context(scope())
        return await way(queue.throttle)


@each_way
@each_scope
def test_nobody_sleeps_into_the_end_of_a_scope(backend: str, within: Within, way: Call) -> None:
    queue = Queue()
    near = [lambda: within(SOON)]
    far = [lambda: within(LATE)]
    nested = [*far, *near, *far]
    for scopes in (near, nested, near + far):
        assert not anyio.run(asks, queue, way, *scopes, backend=backend)
        assert queue.untouched
    assert anyio.run(asks, queue, way, *far, *far, backend=backend)
    assert queue.clock.now == queue.before[1] + 3600


@each_way
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_shielded_call_does_not_see_the_scopes_beyond(backend: str, way: Call) -> None:
    queue = Queue()

    def shield() -> Any:
        return anyio.CancelScope(shield=True)

    def near() -> Any:
        return anyio.move_on_after(SOON)

    assert not anyio.run(asks, queue, way, shield, near, backend=backend)
    assert queue.untouched
    assert anyio.run(asks, queue, way, near, shield, backend=backend)


@each_way
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_in_a_scope_that_is_cancelled_already_nobody_gets_in_line(backend: str, way: Call) -> None:
    queue = Queue()

    async def main() -> None:
        with anyio.CancelScope() as scope:
            scope.cancel()
            assert not await way(queue.throttle)
        assert queue.untouched

    anyio.run(main, backend=backend)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_deadline_of_anyio_is_one_of_its_clock(backend: str) -> None:
    queue = Queue()

    async def main() -> None:
        now = anyio.current_time()
        for deadline in (now, now + SOON, now + 3540):
            assert (await queue.throttle.limit("key", deadline=deadline)).limited
            with pytest.raises(LimitedError):
                await queue.throttle.reserve("key", deadline=deadline)
        assert queue.untouched
        with anyio.move_on_after(SOON):
            assert (await queue.throttle.limit("key", deadline=now + LATE)).limited
        assert (await queue.throttle.limit("key", deadline=now + LATE)).allowed

    anyio.run(main, backend=backend)


def test_the_scopes_that_count_are_those_where_a_reservation_is_awaited() -> None:
    queue = Queue()

    async def main() -> None:
        reserving = queue.throttle.reserve("key")
        with anyio.move_on_after(SOON), pytest.raises(LimitedError):
            await reserving
        assert queue.untouched

    anyio.run(main)


# -- real waiting ---------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_within_a_scope_it_waits_and_is_served(backend: str) -> None:
    throttle = AsyncThrottled("key", 60, quota="20/s burst 1", store=MemoryStore())

    async def main() -> None:
        await throttle.limit()
        began = time.monotonic()
        with anyio.fail_after(30):
            assert (await throttle.limit()).allowed
            waited = time.monotonic() - began
            assert (await throttle.limit(deadline=anyio.current_time() + 0.001)).limited
        assert 0.04 < waited < 20

    anyio.run(main, backend=backend)


def test_sync_code_waits_until_a_deadline_at_most() -> None:
    throttle = Throttled(quota="20/s burst 1", store=MemoryStore())
    throttle.limit("key")
    began = time.monotonic()
    assert throttle.limit("key", deadline=began + 30).allowed
    assert 0.04 < time.monotonic() - began < 20
    again = time.monotonic()
    assert throttle.limit("key", deadline=again + 0.001).limited
    assert time.monotonic() - again < 20


async def cut_off(throttle: Any, way: Call) -> None:
    """A wait that ends with `asyncio.timeout`, which nobody can see from inside."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            assert not await way(throttle)


SLEEPING = [way for way in WAYS if way is not by_limit_all]


@pytest.mark.parametrize("way", SLEEPING, ids=lambda way: way.__name__)
async def test_who_is_cut_off_by_asyncio_gives_the_slot_back(way: Call) -> None:
    store = MemoryStore()
    throttle = AsyncThrottled("key", LATE, quota=QUOTA, store=store)
    await throttle.limit()
    plan = throttle._terms.plan.joint.plans[0]
    before = store.dump(plan, "key")
    await cut_off(throttle, way)
    assert store.dump(plan, "key") == before


@pytest.mark.server
@pytest.mark.parametrize("way", SLEEPING, ids=lambda way: way.__name__)
async def test_who_is_cut_off_gives_the_slot_back_at_a_server(valkey: Server, way: Call) -> None:
    async with RedisStore(valkey.url, {"DECISION_TIMEOUT": PATIENCE}) as store:
        throttle = AsyncThrottled(
            "key", LATE, quota=QUOTA, store=store, key_prefix=f"cut-off-{way.__name__}"
        )
        await throttle.limit()
        before = (await throttle.peek()).retry_after
        await cut_off(throttle, way)
        assert 0 < (await throttle.peek()).retry_after <= before
        await throttle.reset("key")
