"""Tickets by themselves: what they say survives, and nothing else is taken for one."""

from __future__ import annotations

import json
import re
from base64 import urlsafe_b64decode
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from throttled import MemoryStore, Quota, Rule, Throttled
from throttled.algorithms.plan import ALGORITHMS, Joint, make_joint, make_plan
from throttled.exceptions import DataError, SetUpError
from throttled.service.tickets import LONGEST, Tickets
from throttled.store.base import Ticket, changes_of
from throttled.testing import FakeClock

TEXT = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=40)
COSTS = st.integers(0, 1_000_000_000)


def taken(joint: Joint, key: str, cost: int, patience: float = 0.0) -> Ticket:
    """What a memory gives for a call that it admits."""
    _, ticket = MemoryStore().admit_all(joint, joint.keys(key), cost, patience)
    assert ticket is not None
    return ticket


def joint(*rules: Rule, prefix: str = "throttled") -> Joint:
    plans = [make_plan(rule.using, rule.quota, prefix, rule.name) for rule in rules]
    return make_joint(plans, rules)


@given(
    key=TEXT,
    policy=TEXT,
    prefix=st.text("abc:v1._", min_size=1, max_size=20),
    name=st.none() | st.text("abc:", min_size=1, max_size=8),
    algorithm=st.sampled_from(sorted(ALGORITHMS)),
    quota=st.sampled_from(["1000/s", "1000/7m burst 2000", "5000/366d", "1000/ms"]),
    fixed=st.none() | st.integers(1, 1000),
    actual=st.none() | COSTS,
)
def test_what_is_read_is_what_was_issued(
    key: str,
    policy: str,
    prefix: str,
    name: str | None,
    algorithm: str,
    quota: str,
    fixed: int | None,
    actual: int | None,
) -> None:
    tickets = Tickets(["secret"])
    whole = joint(Rule(quota, algorithm, fixed, name), Rule("900/9h", "gcra"), prefix=prefix)
    ticket = taken(whole, key, 500)
    issued = tickets.issue(policy, key, 500, 2, "home", ticket)
    text = tickets.text(issued)
    assert re.fullmatch(r"v1\.[\w-]+\.[\w-]{43}", text)
    assert tickets.read(text) == issued
    assert (issued.policy, issued.key, issued.level, issued.home) == (policy, key, 2, "home")
    assert [each.prefix for each in issued.joint().plans] == [each.prefix for each in whole.plans]
    plan, changes = tickets.read(text).changes(actual, ticket.store)

    def told(changes: Any) -> Any:
        return [(plan.prefix, plan.quota, key, delta, slot) for plan, key, delta, slot in changes]

    assert plan.prefix == whole.plans[0].prefix
    assert told(changes) == told(changes_of(ticket, actual))


def test_those_of_a_slot_to_come() -> None:
    whole = joint(Rule("5/m", "sliding_window_log"))
    store = MemoryStore(clock=FakeClock())
    store.admit_all(whole, whole.keys("k"), 5, 0.0)
    answer, ticket = store.admit_all(whole, whole.keys("k"), 2, 1e9)
    assert isinstance(answer, tuple)
    tickets = Tickets()
    read = tickets.read(tickets.text(tickets.issue("api", "k", 2, 0, "", ticket)))
    assert read.changes(0, store)[1][0][2:] == (-2, ticket.slot)  # type: ignore[union-attr]


def test_what_stands_in_has_keys_of_its_own() -> None:
    """A share of a plan is kept under the whole plan's own keys."""
    prefix = make_plan("gcra", Quota.parse("10/s"), "p").prefix
    whole = make_plan("gcra", Quota.parse("5/s"), prefix).joint
    issued = Tickets().issue("api", "k", 1, 1, "", taken(whole, "k", 1))
    assert issued.joint().plans[0].prefix == whole.plans[0].prefix


def test_nothing_taken() -> None:
    tickets = Tickets()
    issued = tickets.issue("api", "k", 3, 0, "", None)
    assert tickets.read(tickets.text(issued)).parts == ()


@given(place=st.integers(0, 399), bit=st.integers(0, 6))
def test_one_changed_character_is_enough(place: int, bit: int) -> None:
    tickets = Tickets(["secret"])
    text = tickets.text(
        tickets.issue("api", "k", 5, 0, "", taken(joint(Rule("9/s", "gcra")), "k", 5))
    )
    place %= len(text)
    changed = text[:place] + chr(ord(text[place]) ^ 1 << bit) + text[place + 1 :]
    with pytest.raises(DataError, match="Invalid ticket: ") as caught:
        tickets.read(changed)
    assert changed not in str(caught.value)


@given(st.text(max_size=200) | st.text("v1.abcDEF_-", max_size=200))
def test_any_text_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="Invalid ticket: "):
        Tickets().read(text)


def test_of_another_version_but_signed() -> None:
    tickets = Tickets()
    for payload in ([], {}, 7, ["api", "k"], ["api", "k", 1, 2, 3, "id", 0, "", [["x"] * 7]]):
        issued: Any = payload
        with pytest.raises(DataError, match="by a version that differs"):
            tickets.read(tickets.text(issued))


def test_of_somebody_who_knows_that_there_is_no_secret() -> None:
    tickets = Tickets()
    issued = tickets.issue("api", "k", 3, 0, "", taken(joint(Rule("9/s", "gcra")), "k", 3))
    assert tickets.read(tickets.text(issued)) == issued
    (part,) = issued.parts
    bad: dict[str, list[Any]] = {
        "policy": [None, [], 1],
        "key": [None, "", 1, {}],
        "issued": [None, "1", []],
        "expires": [None, "9", [], float("inf"), float("nan"), issued.expires + 400 * 86_400],
        "id": [None, 1, []],
        "level": [None, -1, "0", 0.5, True],
        "home": [None, 1],
        "parts": [
            (part._replace(**{name: value}),)
            for name, values in {
                "algorithm": [None, "x", []],
                "quota": [None, "x", 1],
                "prefix": [None, "", "{", 1],
                "name": ["{", 1],
                "fixed": [-1, "1", 1.5],
                "cost": [None, -1, "1", 1.5, float("inf"), 10**12, True],
                "slot": [None, "x", [], float("inf"), float("nan")],
            }.items()
            for value in values
        ],
    }
    for name, values in bad.items():
        for value in values:
            forged = tickets.text(issued._replace(**{name: value}))
            with pytest.raises(DataError, match="by a version that differs"):
                tickets.read(forged)


def test_it_expires_to_the_millisecond() -> None:
    clock = FakeClock()
    tickets = Tickets(ttl=2.5, clock=clock)
    issued = tickets.issue("api", "k", 1, 0, "", None)
    text = tickets.text(issued)
    clock.advance(2.499)
    assert tickets.read(text) == issued
    assert tickets.mark_for(issued) == pytest.approx(60.001)
    clock.advance(0.001)
    with pytest.raises(DataError, match="it expired 0 s ago; the estimate stays taken"):
        tickets.read(text)
    clock.advance(90)
    with pytest.raises(DataError, match="it expired 90 s ago"):
        tickets.read(text)
    assert tickets.mark_for(issued) == 60.0


def test_it_is_signed_and_not_encrypted() -> None:
    tickets = Tickets(["secret"])
    payload = tickets.text(tickets.issue("api", "ann", 1, 0, "", None)).split(".")[1]
    said = json.loads(urlsafe_b64decode(payload + "=="))
    assert said[:3] == ["api", "ann", 1]
    assert "secret" not in str(said)


@pytest.mark.parametrize("ttl", [0, -1, LONGEST + 1, float("nan"), float("inf"), True, "60", None])
def test_a_time_that_is_none(ttl: Any) -> None:
    with pytest.raises(SetUpError, match=r"Invalid ticket_ttl: .*, must be seconds above 0"):
        Tickets(ttl=ttl)


def test_the_longest_key_fits() -> None:
    tickets = Tickets()
    throttle = Throttled(quota="9/s", store=MemoryStore())
    key = "😀" * 4_096
    ticket = taken(throttle._terms.plan.joint, key, 1)  # type: ignore[union-attr]
    assert tickets.read(tickets.text(tickets.issue("p" * 64, key, 1, 0, "", ticket))).key == key
