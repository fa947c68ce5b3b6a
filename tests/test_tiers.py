"""Quota by key: what a user's callable says, and for how long it is kept."""

from __future__ import annotations

from functools import partial
from math import inf, nan
from typing import Any

import anyio
import pytest

from tests import flavours
from tests.flavours import Flavour
from tests.tariffs import Made, Tariff, ask, kinds, tiers_of
from throttled import MemoryStore, per_min
from throttled.exceptions import DataError
from throttled.quota import Rule, rules_of
from throttled.testing import FakeClock
from throttled.tiers import MOST_KEYS, MOST_QUOTAS

flavour = flavours.flavour
backends = pytest.mark.parametrize("backend", ["asyncio", "trio"])


# -- what is kept ---------------------------------------------------------------------------------


def test_the_callable_says_the_quota_of_each_key(flavour: Flavour) -> None:
    tariff = Tariff({"pro": "100/m", "free": "5/m"})
    for resolve in kinds(flavour, tariff):
        tiers = tiers_of(resolve, asynchronous=flavour.asynchronous)
        assert ask(flavour, tiers, "pro") == ["entry", rules_of("100/m")]
        assert ask(flavour, tiers, "free") == ["entry", rules_of("5/m")]


def test_what_it_said_is_kept_for_the_time_to_live(flavour: Flavour) -> None:
    for number in range(len(kinds(flavour, Tariff()))):
        clock, tariff = FakeClock(), Tariff()
        resolve = kinds(flavour, tariff)[number]
        tiers = tiers_of(resolve, 60.0, timer=clock, asynchronous=flavour.asynchronous)
        first = ask(flavour, tiers, "key")
        clock.advance(59.999999)
        assert ask(flavour, tiers, "key") is first
        assert tariff.asked == ["key"]
        tariff.default = "2/m"
        clock.advance(0.000001)
        assert ask(flavour, tiers, "key") == ["entry", rules_of("2/m")]
        assert tariff.asked == ["key", "key"]


def test_without_a_time_to_live_it_is_asked_each_time(flavour: Flavour) -> None:
    for number in range(len(kinds(flavour, Tariff()))):
        tariff, made = Tariff(), Made()
        resolve = kinds(flavour, tariff)[number]
        tiers = tiers_of(resolve, 0, make=made, asynchronous=flavour.asynchronous)
        assert ask(flavour, tiers, "key") is ask(flavour, tiers, "key")
        tariff.default = "2/m"
        assert ask(flavour, tiers, "key") == ["entry", rules_of("2/m")]
        assert tariff.asked == ["key"] * 3
        assert len(made) == 2


def test_an_endless_time_to_live_ends_only_when_told_to() -> None:
    clock, tariff = FakeClock(), Tariff()
    tiers = tiers_of(tariff, inf, timer=clock)
    for _ in range(3):
        tiers.of("key")
        clock.advance(366 * 86_400)
    assert tariff.asked == ["key"]


def test_a_quota_has_one_entry_whoever_has_it(flavour: Flavour) -> None:
    made = Made()
    same = ["5/m", per_min(5), Rule("5/m"), ["5/m"], (per_min(5),), [Rule(per_min(5))], " 5 / m "]
    tariff = Tariff({str(number): quota for number, quota in enumerate(same)})
    for resolve in kinds(flavour, tariff):
        made.clear()
        tiers = tiers_of(resolve, make=made, asynchronous=flavour.asynchronous)
        entries = [ask(flavour, tiers, key) for key in tariff.quotas]
        assert all(entry is entries[0] for entry in entries)
        assert made == [rules_of("5/m")]


def test_every_way_to_write_a_quota_is_understood() -> None:
    quotas: list[Any] = [
        "10/s; 1000/h",
        ["10/s", per_min(60)],
        [Rule("10/s", using="gcra"), Rule("1000/d", using="fixed_window", cost=1, name="calls")],
        (each for each in ["1/s", "2/m"]),
    ]
    wanted = [rules_of(quota) for quota in quotas[:3]] + [rules_of(["1/s", "2/m"])]
    tiers = tiers_of(lambda key: quotas[int(key)])
    assert [tiers.of(str(number))[1] for number in range(4)] == wanted


def test_so_many_keys_and_quotas_are_kept_and_no_more() -> None:
    tariff, made = Tariff(), Made()
    tiers = tiers_of(tariff, inf, make=made)
    for number in range(MOST_KEYS + 1):
        tiers.of(f"user:{number}")
    assert len(tariff.asked) == MOST_KEYS + 1
    tiers.of("user:1")
    assert len(tariff.asked) == MOST_KEYS + 1
    tiers.of("user:0")  # the least recently used had to go
    assert len(tariff.asked) == MOST_KEYS + 2
    assert len(made) == 1

    tiers = tiers_of(lambda key: f"{key}/m", make=made)
    for number in range(1, 3 * MOST_QUOTAS):
        tiers.of(str(number))
    assert len(tiers._by_quota) <= MOST_QUOTAS


# -- forgetting -----------------------------------------------------------------------------------


def test_a_forgotten_key_is_asked_for_anew(flavour: Flavour) -> None:
    tariff = Tariff()
    for resolve in kinds(flavour, tariff):
        tariff.asked.clear()
        tiers = tiers_of(resolve, asynchronous=flavour.asynchronous)
        for key in ("a", "b"):
            ask(flavour, tiers, key)
        tiers.forget("a")
        tiers.forget("never seen")
        for key in ("a", "b"):
            ask(flavour, tiers, key)
        assert tariff.asked == ["a", "b", "a"]
        tiers.forget()
        for key in ("a", "b"):
            ask(flavour, tiers, key)
        assert tariff.asked == ["a", "b", "a", "a", "b"]


def test_an_answer_from_before_the_forgetting_is_not_kept() -> None:
    tariff = Tariff()

    def changes_while_asked(key: str) -> Any:
        quota = tariff(key)
        if len(tariff.asked) == 1:
            tariff.default = "2/m"
            tiers.forget("key")
        return quota

    tiers = tiers_of(changes_while_asked)
    assert tiers.of("key") == ["entry", rules_of("1/m")]
    assert tiers.of("key") == ["entry", rules_of("2/m")]


@backends
def test_who_asks_after_the_forgetting_joins_no_lookup_from_before(backend: str) -> None:
    async def main() -> None:
        gate = anyio.Event()
        quotas = iter(["1/m", "2/m"])
        answers: dict[str, Any] = {}

        async def resolve(key: str) -> Any:
            quota = next(quotas)
            await gate.wait()
            return quota

        tiers = tiers_of(resolve, asynchronous=True)

        async def note(name: str) -> None:
            answers[name] = (await tiers.of("key"))[1]

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(note, "before")
            await anyio.wait_all_tasks_blocked()
            tiers.forget("key")
            tasks.start_soon(note, "after")
            await anyio.wait_all_tasks_blocked()
            gate.set()
        assert answers == {"before": rules_of("1/m"), "after": rules_of("2/m")}
        assert tiers.of("key")[1] == rules_of("2/m")
        assert not tiers._lookups

    anyio.run(main, backend=backend)


# -- what goes wrong ------------------------------------------------------------------------------


def test_an_error_of_the_callable_comes_through_and_is_not_kept(flavour: Flavour) -> None:
    error = LookupError("no such user")
    tariff = Tariff({"key": error})
    for resolve in kinds(flavour, tariff):
        tariff.quotas["key"] = error
        tiers = tiers_of(resolve, asynchronous=flavour.asynchronous)
        for _ in range(2):
            with pytest.raises(LookupError) as raised:
                ask(flavour, tiers, "key")
            assert raised.value is error
        tariff.quotas["key"] = "3/m"
        assert ask(flavour, tiers, "key")[1] == rules_of("3/m")
        assert not tiers._lookups


@pytest.mark.parametrize("bad", [None, 5, "5", "5 per fortnight", b"5/m", [], [None], {}, object()])
def test_a_bad_quota_is_an_error_that_names_who_returned_it(flavour: Flavour, bad: Any) -> None:
    tariff = Tariff(default=bad)

    def tier_of(key: str) -> Any:
        return tariff(key)

    async def tier_looked_up(key: str) -> Any:
        return tariff(key)

    for resolve in (tier_of, tier_looked_up) if flavour.asynchronous else (tier_of,):
        tariff.default = bad
        tiers = tiers_of(resolve, asynchronous=flavour.asynchronous)
        with pytest.raises(DataError, match=r"^Invalid quota: .*must (be|look like) ") as raised:
            ask(flavour, tiers, "a secret key")
        assert f"{resolve.__qualname__} returned {bad!r}" in str(raised.value)
        assert "secret" not in str(raised.value)
        tariff.default = "3/m"
        assert ask(flavour, tiers, "a secret key")[1] == rules_of("3/m")


def test_what_cannot_be_made_of_a_quota_is_said_with_the_callable() -> None:
    def make(rules: tuple[Rule, ...]) -> Any:
        raise DataError("Invalid limit: too many for a log.")

    def tier_of(key: str) -> str:
        return "9/m"

    tiers = tiers_of(tier_of, make=make)
    with pytest.raises(DataError, match=r"tier_of returned '9/m'\. Invalid limit: too many"):
        tiers.of("key")


@pytest.mark.parametrize("bad", [-1, -0.001, nan, -inf, True, None, "60", 1j])
def test_a_time_to_live_is_seconds(bad: Any) -> None:
    with pytest.raises(DataError, match=r"^Invalid quota_ttl: .*seconds of 0 or more") as raised:
        tiers_of(Tariff(), bad)
    assert repr(bad) in str(raised.value)


def test_sync_code_takes_no_async_callable() -> None:
    class Asks:
        async def __call__(self, key: str) -> str:
            return "1/m"

    for resolve in (Tariff().slowly, partial(Tariff().slowly), Asks()):
        with pytest.raises(DataError, match=r"^Invalid quota: .*is async"):
            tiers_of(resolve)
        tiers_of(resolve, asynchronous=True)


def test_an_interrupt_within_the_callable_passes(flavour: Flavour) -> None:
    tariff = Tariff(default=KeyboardInterrupt())
    for resolve in kinds(flavour, tariff):
        tiers = tiers_of(resolve, asynchronous=flavour.asynchronous)
        with pytest.raises(KeyboardInterrupt):
            ask(flavour, tiers, "key")


# -- in a Throttled -------------------------------------------------------------------------------


def test_each_key_has_the_limit_of_its_tier(flavour: Flavour) -> None:
    tariff = Tariff({"pro": "3/m", "free": "1/m"})
    for resolve in kinds(flavour, tariff):
        throttle = flavour.limiter(quota=resolve, store=MemoryStore(clock=FakeClock()))
        limited = {
            key: [flavour.run(throttle.limit, key).limited for _ in range(4)]
            for key in ("pro", "free")
        }
        assert limited == {
            "pro": [False, False, False, True],
            "free": [False, True, True, True],
        }


def test_a_tier_that_changes_applies_to_what_was_counted(flavour: Flavour) -> None:
    tariff = Tariff(default="2/m")
    for resolve in kinds(flavour, tariff):
        tariff.default = "2/m"
        throttle = flavour.limiter(
            quota=resolve,
            quota_ttl=0,
            using="fixed_window",
            store=MemoryStore(clock=FakeClock()),
        )
        assert [flavour.run(throttle.limit, "key").limited for _ in range(3)] == [
            False,
            False,
            True,
        ]
        tariff.default = "4/m"
        answers = [flavour.run(throttle.limit, "key") for _ in range(3)]
        assert [answer.limited for answer in answers] == [False, False, True]
        assert answers[0].state.limit == 4


def test_a_bad_tier_is_an_error_of_the_call(flavour: Flavour) -> None:
    for resolve in kinds(flavour, Tariff(default=None)):
        throttle = flavour.limiter(quota=resolve)
        with pytest.raises(DataError, match=r"^Invalid quota: .*returned None"):
            flavour.run(throttle.limit, "key")


def test_an_error_of_the_callable_is_that_of_the_call(flavour: Flavour) -> None:
    error = LookupError("no such user")
    for resolve in kinds(flavour, Tariff(default=error)):
        throttle = flavour.limiter(quota=resolve)
        with pytest.raises(LookupError) as raised:
            flavour.run(throttle.limit, "key")
        assert raised.value is error


def test_a_limit_that_is_made_with_a_bad_tariff_is_an_error(flavour: Flavour) -> None:
    with pytest.raises(DataError, match="Invalid quota_ttl: -1"):
        flavour.limiter(quota=Tariff(), quota_ttl=-1)
    if not flavour.asynchronous:
        with pytest.raises(DataError, match="is async"):
            flavour.limiter(quota=Tariff().slowly)
