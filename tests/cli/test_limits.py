"""`throttled check`, `peek`, `debit` and `reset`: what they do and what they print."""

from __future__ import annotations

import signal
from itertools import count
from typing import TYPE_CHECKING

import pytest

from tests.cli.running import PATIENCE, invoke, run, started, terminal
from tests.servers import HOST, free_port, wait_until
from throttled import RedisStore, Throttled

if TYPE_CHECKING:
    from tests.servers import Server

_numbers = count()


@pytest.fixture
def key() -> str:
    """A key that no other test has used."""
    return f"cli:{next(_numbers)}"


def test_a_call_that_is_allowed_exits_with_0(key: str) -> None:
    done = invoke("check", key, "--quota", "5/m")
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines() == [
        "allowed",
        "rule         5/m by token_bucket",
        "remaining    4 of 5",
        "reset after  12 s",
    ]


def test_a_call_that_is_refused_exits_with_1_and_says_when(key: str) -> None:
    done = invoke("check", key, "--quota", "5/m", "--cost", 6, "--using", "fixed_window")
    assert (done.code, done.err) == (1, "")
    assert done.out.splitlines()[:4] == [
        "refused",
        "rule         5/m by fixed_window",
        "remaining    5 of 5",
        "retry after  never",
    ]


def test_json_has_no_infinity(key: str) -> None:
    done = invoke("check", key, "--quota", "5/m", "--cost", 6, "--json")
    assert done.code == 1
    said = done.json
    assert said["took"] >= 0
    del said["took"]
    state = {
        "limit": 5,
        "remaining": 5,
        "retry_after": None,
        "never": True,
        "reset_after": 0.0,
    }
    assert said == {
        "allowed": False,
        "key": key,
        "cost": 6,
        **state,
        "source": "memory",
        "would_limit": True,
        "held": False,
        "binding": 0,
        "rules": [
            {"quota": "5/m", "algorithm": "token_bucket", "name": None, "cost": None, **state}
        ],
    }


def test_of_several_rules_the_binding_one_is_marked(key: str) -> None:
    done = invoke("check", key, "--quota", "10/s; 2/m", "--using", "gcra")
    assert done.out.splitlines() == [
        "allowed",
        "   rule          remaining  limit  retry after  reset after",
        "   10/s by gcra          9     10          now       100 ms",
        ">  2/m by gcra           1      2          now         30 s",
    ]


def test_peek_says_what_can_be_spent_and_when_there_is_more(key: str) -> None:
    done = invoke("peek", key, "--quota", "5/m", "--cost", 6)
    assert done.code == 1
    assert done.out.splitlines()[:5] == [
        "would be refused",
        "remaining    5 of 5",
        "retry after  never",
        "reset after  now",
        "spendable    5",
    ]
    assert invoke("peek", key, "--quota", "5/m", "--cost", 5).code == 0


def test_a_key_cannot_steer_the_terminal() -> None:
    done = invoke("reset", "\x1b[31mred\nallowed", "--quota", "5/m")
    assert done.out == "reset \\x1b[31mred\\nallowed\n"


@pytest.mark.server
def test_counts_stay_on_a_server(valkey: Server, key: str) -> None:
    limit = ("--quota", "5/h", "--store", valkey.url)
    first = invoke("check", key, *limit, "--cost", 4, "--json").json
    assert (first["allowed"], first["remaining"], first["source"]) == (True, 1, "server")

    second = invoke("check", key, *limit, "--cost", 4, "--json")
    assert second.code == 1
    assert 0 < second.json["retry_after"] <= 2160
    assert second.json["never"] is False

    peeked = invoke("peek", key, *limit, "--json").json
    assert (peeked["fits"], peeked["remaining"]) == (True, 1)
    forecast = peeked["forecast"]
    assert forecast["spendable_now"] == 1
    assert forecast["next_replenish_at"] < forecast["full_at"]

    assert invoke("debit", key, 3, *limit).out == f"charged 3 to {key}\n"
    assert invoke("peek", key, *limit).code == 1
    assert invoke("reset", key, *limit).out == f"reset {key}\n"
    assert invoke("peek", key, *limit, "--cost", 5).code == 0


@pytest.mark.server
def test_the_store_may_come_from_the_environment(valkey: Server, key: str) -> None:
    done = invoke("check", key, "--quota", "5/h", "--json", THROTTLED_STORE=valkey.url)
    assert done.json["source"] == "server"
    # What the command line says is what counts.
    done = invoke(
        "check", key, "--quota", "5/h", "--json", "--store", "memory", THROTTLED_STORE=valkey.url
    )
    assert done.json["source"] == "memory"


@pytest.mark.server
def test_its_keys_are_those_of_the_library(valkey: Server, key: str) -> None:
    invoke("check", key, "--quota", "5/h", "--store", valkey.url, "--prefix", "mine")
    store = RedisStore(server=valkey.url)
    assert Throttled(quota="5/h", store=store, key_prefix="mine").peek(key).remaining == 4
    store.close()


@pytest.mark.server
def test_a_call_waits_for_its_slot(valkey: Server, key: str) -> None:
    limit = ("--quota", "10/s burst 1", "--store", valkey.url)
    assert invoke("check", key, *limit).code == 0
    done = invoke("check", key, *limit, "--timeout", 5)
    assert done.code == 0
    assert done.out.splitlines()[-1].startswith("took         ")


@pytest.mark.server
def test_ctrl_c_is_quiet_and_gives_the_slot_back(valkey: Server, key: str) -> None:
    store = RedisStore(server=valkey.url)
    throttle = Throttled(quota="1/h", store=store)
    assert throttle.limit(key).allowed
    with started(
        "check", key, "--quota", "1/h", "--store", valkey.url, "--timeout", 36_000
    ) as process:
        wait_until(lambda: throttle.peek(key).retry_after > 3600, "the wait")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out, err) == (130, b"", b"")
    assert throttle.peek(key).retry_after <= 3600
    store.close()


@pytest.mark.server
@pytest.mark.parametrize("command", ["check", "peek", "debit", "reset"])
def test_a_store_that_is_down_is_not_a_refusal(command: str, key: str) -> None:
    amount = ["1"] if command == "debit" else []
    url = f"redis://{HOST}:{free_port()}"
    done = invoke(command, key, *amount, "--quota", "5/m", "--store", url)
    assert done.code == 3
    assert done.out == ""
    assert done.err.startswith("throttled: Redis at ")
    assert done.err.count("\n") == 1


@pytest.mark.server
def test_a_key_that_holds_something_else_is_not_a_refusal(valkey: Server, key: str) -> None:
    name = f"throttled:v1:token_bucket:60000000:{{{key}}}"
    with valkey.client() as client:
        client.rpush(name, "something")
    done = invoke("check", key, "--quota", "5/m", "--store", valkey.url)
    assert done.code == 3
    assert done.out == ""
    assert done.err.startswith("throttled: ")
    assert done.err.count("\n") == 1
    assert invoke("reset", key, "--quota", "5/m", "--store", valkey.url).code == 0
    assert invoke("check", key, "--quota", "5/m", "--store", valkey.url).code == 0


# --- on a terminal -------------------------------------------------------------------------------


def test_colours_and_notes_are_for_terminals(key: str) -> None:
    limit = ("check", key, "--quota", "5/m")
    with terminal(*limit) as screen:
        assert screen.end() == 0
    assert "\x1b[32m\x1b[1mallowed\x1b[0m" in screen.seen
    assert "note: this limit lives in memory and begins anew with each command" in screen.seen
    piped = run(*limit)
    assert "\x1b" not in piped.out
    assert piped.err == ""


@pytest.mark.parametrize("variable", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_who_wants_no_colours_sees_none(variable: dict[str, str], key: str) -> None:
    with terminal("check", key, "--quota", "5/m", **variable) as screen:
        assert screen.end() == 0
    assert "allowed" in screen.seen
    assert "\x1b" not in screen.seen


@pytest.mark.server
def test_reset_asks_on_a_terminal(valkey: Server, key: str) -> None:
    limit = ("--quota", "5/h", "--store", valkey.url)
    invoke("check", key, *limit, "--cost", 5)
    with terminal("reset", key, *limit) as screen:
        screen.until(f"Forget what {key} has used? [y/N]")
        screen.type("n\n")
        assert screen.end() == 1
    assert "throttled: nothing was reset." in screen.seen
    assert invoke("peek", key, *limit).code == 1
    with terminal("reset", key, *limit) as screen:
        screen.until("[y/N]")
        screen.type("y\n")
        assert screen.end() == 0
    assert invoke("peek", key, *limit).code == 0
    with terminal("reset", key, *limit, "--yes") as screen:
        assert screen.end() == 0
    assert "[y/N]" not in screen.seen
