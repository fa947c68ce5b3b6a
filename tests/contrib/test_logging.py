"""Logging: what `LogDecisions` writes, and that nobody sees it who has not asked for it."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from hashlib import sha256
from typing import Any

import pytest

from tests import flavours, servers
from tests.contract import PATIENT
from tests.failing import LocalFailingStore
from tests.flavours import Flavour
from tests.servers import Server
from throttled import MemoryStore, RedisStore, Throttled
from throttled.contrib.logging import LogDecisions
from throttled.exceptions import DataError, StateError
from throttled.testing import FakeClock

flavour = flavours.flavour
valkey = servers.valkey
on_server = pytest.mark.server

LOGGER = "throttled.decisions"


def fields(record: logging.LogRecord) -> dict[str, Any]:
    """What the record says beside its message."""
    start = "throttled_"
    return {
        name.removeprefix(start): value
        for name, value in vars(record).items()
        if name.startswith(start)
    }


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    found = [record for record in caplog.records if record.name == LOGGER]
    return [(record.levelname, record.getMessage()) for record in found]


def logged(flavour: Flavour, observer: LogDecisions, **arguments: Any) -> Any:
    throttle = flavour.limiter(**arguments)
    throttle.observe(observer)
    return throttle


def test_refusals_are_info_and_the_rest_is_detail(
    flavour: Flavour, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, LOGGER)
    throttle = logged(flavour, LogDecisions("login"), quota="1/m")
    for _ in range(2):
        flavour.run(throttle.limit, "ann")
    flavour.run(throttle.limit, "ann", timeout=120)
    flavour.run(throttle.limit, "ann", 9)
    shadow = logged(flavour, LogDecisions("search"), quota="1/m", enforce=False)
    for _ in range(2):
        flavour.run(shadow.limit, "ann")
    assert lines(caplog) == [
        ("DEBUG", "login: allowed"),
        ("INFO", "login: refused, fits in 60 s"),
        ("DEBUG", "login: waits 60 s"),
        ("DEBUG", "login: allowed"),
        ("INFO", "login: refused, never fits"),
        ("DEBUG", "search: allowed"),
        ("INFO", "search: would be refused, fits in 60 s"),
    ]


def test_what_a_line_says_are_fields_of_its_record(
    flavour: Flavour, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, LOGGER)
    throttle = logged(flavour, LogDecisions("login"), quota="2/m", timeout=30)
    flavour.run(throttle.limit, "ann", 2)
    flavour.run(throttle.limit, "ann")
    flavour.run(throttle.limit, "ann", 2)
    flavour.run(throttle.limit, "ann", 3)
    common = {"limit": "login", "suppressed": 0}
    allowed = {**common, "outcome": "allowed", "source": "memory"}
    refused = {**allowed, "outcome": "refused", "remaining": 0, "waited": 0.0, "rule": "2/m"}
    assert [fields(record) for record in caplog.records] == [
        {**allowed, "cost": 2, "remaining": 0, "waited": 0.0},
        {**common, "outcome": "waits", "cost": 1, "wait": 30.0},
        {**allowed, "cost": 1, "remaining": 0, "waited": 30.0},
        {**refused, "cost": 2, "retry_after": 60.0},
        {**refused, "cost": 3, "retry_after": None},
    ]
    for record in caplog.records:
        json.dumps(fields(record), allow_nan=False)


def test_failures_of_a_store_are_warnings_without_the_error_text(
    flavour: Flavour, caplog: pytest.LogCaptureFixture
) -> None:
    store = flavour.failing_store()
    throttle = logged(flavour, LogDecisions("login"), store=store, on_store_error="deny")
    caplog.set_level(logging.INFO, LOGGER)
    store.fail(StateError("damaged state of ann"))
    flavour.run(throttle.limit, "ann")
    assert lines(caplog)[0] == ("WARNING", "login: not decided, StateError")
    assert lines(caplog)[1][1].startswith("login: refused, ")
    told = [record for record in caplog.records if record.name == LOGGER]
    assert fields(told[0])["error"] == "StateError"
    assert fields(told[1])["source"] == "denied-by-policy"
    assert "ann" not in str([vars(record) for record in told])


# -- keys -----------------------------------------------------------------------------------------


def test_keys_are_fields_only_when_asked_for_and_never_in_the_message(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, LOGGER)
    for keys in (False, True):
        store = LocalFailingStore(FakeClock())
        throttle = Throttled(quota="1/m", store=store, on_store_error="allow", timeout=60)
        throttle.observe(LogDecisions("login", keys=keys))
        for _ in range(2):
            throttle.limit("ann")
        store.fail(StateError("damaged state of ann"))
        throttle.limit("ann")
        mine = [record for record in caplog.records if record.name == LOGGER]
        caplog.clear()
        assert len(mine) == 5
        assert "ann" not in str([record.getMessage() for record in mine])
        assert [fields(record).get("key") for record in mine] == ["ann" if keys else None] * 5
        assert ("ann" in str([vars(record) for record in mine])) is keys
        [failed] = [fields(r) for r in mine if fields(r)["outcome"] == "failed"]
        assert failed["error"] == ("damaged state of ann" if keys else "StateError")


@on_server
def test_keys_that_a_store_hides_are_hidden_here(
    valkey: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, LOGGER)
    with RedisStore(valkey.url, options=PATIENT, hash_keys=True) as store:
        throttle = Throttled(store=store)
        throttle.observe(LogDecisions("login", keys=True))
        throttle.limit("a key to be hidden")
    [record] = [record for record in caplog.records if record.name == LOGGER]
    assert fields(record)["key"] == sha256(b"a key to be hidden").hexdigest()
    assert "a key to be hidden" not in str(vars(record))


# -- floods ---------------------------------------------------------------------------------------


def test_a_flood_is_a_few_lines_that_say_how_many_they_stand_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, LOGGER)
    clock, observer = FakeClock(), LogDecisions("login", at_most="2/s")
    observer._bound = Throttled(quota="2/s", store=MemoryStore(clock=clock))
    throttle = Throttled(quota="3/366d", store=MemoryStore())
    throttle.observe(observer)
    for _ in range(103):
        throttle.limit("ann")
    clock.advance(1)
    throttle.limit("bob")
    throttle.limit("ann")
    throttle.limit("ann")
    told = [(fields(record)["outcome"], fields(record)["suppressed"]) for record in caplog.records]
    assert told == [
        *[("allowed", 0)] * 2,
        *[("refused", 0)] * 2,
        ("allowed", 1),
        ("refused", 98),
        ("refused", 0),
    ]


def test_without_a_bound_every_line_is_written(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    throttle = Throttled(quota="1/366d", store=MemoryStore())
    throttle.observe(LogDecisions("login", at_most=None))
    for _ in range(101):
        throttle.limit("ann")
    assert len(lines(caplog)) == 100


def test_lines_that_nobody_wants_are_not_among_those_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    throttle = Throttled(quota="1/366d", store=MemoryStore())
    throttle.observe(LogDecisions("login", at_most="1/366d"))
    caplog.set_level(logging.WARNING, LOGGER)
    for _ in range(10):
        throttle.limit("ann")
    caplog.set_level(logging.INFO, LOGGER)
    throttle.limit("ann")
    [record] = [record for record in caplog.records if record.name == LOGGER]
    assert fields(record)["suppressed"] == 0


# -- quiet ----------------------------------------------------------------------------------------

QUIET = """
import logging
from throttled import MemoryStore, RedisStore, Throttled
from throttled.contrib.logging import LogDecisions

store = RedisStore("redis://localhost:1/0", on_store_error=MemoryStore())
throttle = Throttled(quota="1/h", store=store)
throttle.observe(LogDecisions("login"))
assert not throttle.limit("ann").limited
assert throttle.limit("ann").limited
"""
LOUD = (
    QUIET
    + """
logging.basicConfig(level="INFO", format="%(levelname)s %(name)s %(message)s")
throttle.limit("ann")
"""
)


def said(script: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        check=True,
        timeout=60,
        capture_output=True,
        text=True,
    )
    assert not done.stdout
    return done.stderr.splitlines()


def test_a_program_that_has_not_configured_logging_sees_none_of_it() -> None:
    assert said(QUIET) == []


def test_a_program_that_has_sees_it_without_further_ado() -> None:
    assert any(line.startswith("INFO throttled.decisions login: refused, ") for line in said(LOUD))


def test_what_the_library_itself_warns_of_is_printed_as_ever() -> None:
    script = (
        "import throttled.contrib.logging, logging; logging.getLogger('throttled').warning('x')"
    )
    assert said(script) == ["x"]


@pytest.mark.parametrize("bad", [None, 7, "", " ", b"login"])
def test_a_name_that_is_no_text_is_an_error(bad: Any) -> None:
    with pytest.raises(DataError, match=r"^Invalid name: .*must be text such as 'login'"):
        LogDecisions(bad)


def test_a_bad_bound_is_an_error() -> None:
    with pytest.raises(DataError, match=r"^Invalid quota"):
        LogDecisions("login", at_most="often")
