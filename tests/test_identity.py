"""`hash_keys`: the server keeps digests, and the keys themselves are seen nowhere."""

from __future__ import annotations

import hashlib
import hmac
import logging
from typing import TYPE_CHECKING, Any

import pytest

from tests import callers as shared
from tests import servers
from tests.callers import Callers
from tests.servers import HOST, Server, free_port, slot_of
from throttled import Throttled
from throttled.algorithms.plan import ALGORITHMS, make_plan
from throttled.asyncio import Throttled as AsyncThrottled
from throttled.exceptions import DataError, LimitedError, StateError, StoreUnavailableError
from throttled.quota import Quota
from throttled.store.aioredis import RedisStore as AsyncRedisStore
from throttled.store.base import Ticket
from throttled.store.redis import RedisStore

if TYPE_CHECKING:
    from collections.abc import Iterator

valkey, callers = servers.valkey, shared.callers
on_server = pytest.mark.server

#: A user's key, in which nothing should be readable but by the program itself.
SECRET = "zebedee.quixote@xylophone.org"
#: Of which not one of these may appear.
PARTS = ("zebedee", "quixote", "xylo")
PREFIX = "throttled:v1:token_bucket:60000000:"
FLAVOURS = pytest.mark.parametrize("made", [RedisStore, AsyncRedisStore])
SALTS: tuple[tuple[Any, bytes], ...] = (
    (True, hashlib.sha256(SECRET.encode()).hexdigest().encode()),
    ("pepper", hmac.new(b"pepper", SECRET.encode(), "sha256").hexdigest().encode()),
    (b"\0\xff", hmac.new(b"\0\xff", SECRET.encode(), "sha256").hexdigest().encode()),
)


@pytest.fixture
def empty(valkey: Server) -> Server:
    """A server without any key."""
    valkey.ask("FLUSHALL")
    return valkey


def readable(text: object) -> bool:
    """Whether any of the key can be read in it."""
    found = text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
    return any(part in found.lower() for part in PARTS)


def everything(server: Server) -> Iterator[bytes]:
    """All that a server holds: keys and what is under them."""
    with server.client() as client:
        for name in client.keys("*"):
            yield name
            yield client.dump(name)


# --- what the server sees ------------------------------------------------------------------------


@on_server
@pytest.mark.parametrize(("hash_keys", "digest"), SALTS, ids=["sha", "secret", "bytes"])
def test_the_server_keeps_the_digest_in_place_of_the_key(
    empty: Server, callers: Callers, hash_keys: Any, digest: bytes
) -> None:
    store = callers.store(empty.url, hash_keys=hash_keys)
    limiter = callers.limiter(store, "5/m")
    assert callers.wait(limiter.limit, SECRET).state.remaining == 4
    assert callers.wait(limiter.limit_many, [SECRET] * 2)[1].state.remaining == 2
    assert empty.ask("KEYS", "*") == [PREFIX.encode() + b"{" + digest + b"}"]
    assert callers.wait(limiter.peek, SECRET).remaining == 2
    callers.wait(store.reset, limiter._terms.plan, SECRET)
    assert empty.ask("DBSIZE") == 0


@on_server
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_nothing_of_the_key_is_readable_in_the_server(
    empty: Server, callers: Callers, algorithm: str
) -> None:
    store = callers.store(empty.url, hash_keys=True)
    limiter = callers.limiter(store, "5/m", using=algorithm)
    callers.wait(limiter.limit, SECRET, 5)
    assert callers.wait(limiter.limit, SECRET).limited
    promised = callers.wait(store.run, limiter._terms.plan, SECRET, 1, 1e9)
    assert isinstance(promised[0], Ticket)
    assert not any(map(readable, everything(empty)))
    callers.wait(store.withdraw, promised[0])


@on_server
def test_both_flavours_and_other_processes_find_the_same_key(empty: Server) -> None:
    with Callers(False) as threads, Callers(True) as tasks:
        left = []
        for each in (threads, tasks, threads):
            limiter = each.limiter(each.store(empty.url, hash_keys="pepper"), "5/m")
            left.append(each.wait(limiter.limit, SECRET).state.remaining)
        assert left == [4, 3, 2]
        other = threads.limiter(threads.store(empty.url, hash_keys="salt"), "5/m")
        assert threads.wait(other.limit, SECRET).state.remaining == 4, "another secret"
        plain = threads.limiter(threads.store(empty.url), "5/m")
        assert threads.wait(plain.limit, SECRET).state.remaining == 4


@on_server
@pytest.mark.parametrize("hash_keys", [False, True, "pepper"])
def test_several_rules_of_a_key_live_in_one_slot(empty: Server, hash_keys: Any) -> None:
    plans = [
        make_plan(name, Quota.parse(quota), prefix, rule)
        for name in ALGORITHMS
        for quota, rule in (("5/m", "short"), ("50/d", "long"))
        for prefix in ("throttled", "other")
    ]
    keys = ["user", "{user}", "us{e}r", SECRET, "x" * 10_000]
    with RedisStore(empty.url, hash_keys=hash_keys) as store:
        for key in keys:
            store.run_many([(plan, key, 1, 0.0) for plan in plans])
    names = empty.ask("KEYS", "*")
    assert len(names) == len(keys) * len(plans)
    tags = {name[name.index(b"{") :] for name in names}
    assert len(tags) == len(keys)
    assert len({slot_of(name) for name in names}) == len(keys)


@on_server
def test_a_prefix_separates_limits(empty: Server, callers: Callers) -> None:
    store = callers.store(empty.url, hash_keys=True)
    one, two = (callers.limiter(store, "5/m", key_prefix=name) for name in ("logins", "mails"))
    assert [callers.wait(one.limit, SECRET).state.remaining for _ in range(2)] == [4, 3]
    assert callers.wait(two.limit, SECRET).state.remaining == 4
    callers.wait(store.reset, one._terms.plan, SECRET)
    [name] = empty.ask("KEYS", "*")
    assert name.startswith(b"mails:v1:token_bucket:60000000:{")


KEYS = [
    "a",
    "a b\r\n$1\r\n*",
    "\0",
    "\0\0",
    "{",
    "}{",
    "%7B",
    "é",
    "e\u0301",
    "\U0001f600",
    "\udcff",
    "\ud800",
    "".join(map(chr, range(256))),
    "x" * 100_000,
    "x" * 100_001,
    "*12\r\n$7\r\nEVALSHA\r\n" * 50,
]


@on_server
@pytest.mark.parametrize("hash_keys", [False, True, "pepper"])
def test_long_and_binary_looking_keys_are_keys_of_their_own(
    empty: Server, callers: Callers, hash_keys: Any
) -> None:
    limiter = callers.limiter(callers.store(empty.url, hash_keys=hash_keys), "5/m")
    for expected in (4, 3):
        found = [callers.wait(limiter.limit, key).state.remaining for key in KEYS]
        assert found == [expected] * len(KEYS)
    found = [answer.state.remaining for answer in callers.wait(limiter.limit_many, KEYS)]
    assert found == [2] * len(KEYS)
    names = empty.ask("KEYS", "*")
    assert len(names) == len(KEYS)
    if hash_keys:
        assert {len(name) for name in names} == {len(PREFIX) + 64 + 2}


# --- what people see -----------------------------------------------------------------------------


def shown(error: BaseException) -> str:
    """All that a report of an error shows, of those that it came from as well."""
    words = [str(error), repr(error), repr(error.args)]
    words += [repr(value) for value in vars(error).values()]
    words += getattr(error, "__notes__", [])
    for other in (error.__cause__, error.__context__):
        words += [shown(other)] if other is not None else []
    return "\n".join(words)


@on_server
def test_errors_do_not_show_the_key(empty: Server, callers: Callers) -> None:
    store = callers.store(empty.url, hash_keys=True)
    limiter = callers.limiter(store, "1/m")
    callers.wait(limiter.limit, SECRET)
    [name] = empty.ask("KEYS", "*")

    refused = callers.wait(limiter.limit, SECRET)
    assert refused.limited
    assert not readable(f"{refused!r} {refused.state!r}")
    assert not readable(shown(LimitedError(refused)))

    empty.ask("SET", name, "garbage")
    # Of a store that remembers no refusal.
    other = callers.limiter(callers.store(empty.url, hash_keys=True), "1/m")
    for function, args in (
        (other.limit, (SECRET,)),
        (other.limit_many, ([SECRET],)),
        (store.adjust, (limiter._terms.plan, SECRET, 1)),
    ):
        with pytest.raises(StateError) as raised:
            callers.wait(function, *args)
        assert name.decode() in str(raised.value), "it is found by what the server calls it"
        assert not readable(shown(raised.value))


def test_the_error_of_a_server_that_is_down_does_not_show_the_key(callers: Callers) -> None:
    store = callers.store(f"redis://{HOST}:{free_port()}/0", hash_keys=True)
    limiter = callers.limiter(store, "1/m")
    for function in (limiter.limit, limiter.peek):
        for _ in range(3):  # and then the server is left alone
            with pytest.raises(StoreUnavailableError) as raised:
                callers.wait(function, SECRET)
            assert not readable(shown(raised.value))
    with pytest.raises(StoreUnavailableError) as raised:
        callers.wait(limiter.limit_many, [SECRET, SECRET])
    assert not readable(shown(raised.value))


@on_server
def test_a_ticket_does_not_show_the_key(empty: Server, callers: Callers) -> None:
    store = callers.store(empty.url, hash_keys=True)
    plan = make_plan("token_bucket", Quota.parse("1/m"))
    callers.wait(store.run, plan, SECRET, 1, 0.0)
    reply = callers.wait(store.run, plan, SECRET, 1, 1e9)
    assert isinstance(reply[0], Ticket)
    assert not readable(reply)


@FLAVOURS
def test_a_limiter_does_not_show_its_key(made: Any) -> None:
    limiter = Throttled if made is RedisStore else AsyncThrottled
    assert SECRET in repr(limiter(key=SECRET, store=made()))
    assert SECRET not in repr(limiter(key=SECRET, store=made(hash_keys=True)))


@on_server
@pytest.mark.parametrize("policy", ["raise", "allow", "deny", "local"])
def test_the_log_does_not_show_the_key(
    callers: Callers, caplog: pytest.LogCaptureFixture, policy: str
) -> None:
    caplog.set_level(logging.DEBUG)
    with Server() as server:
        store = callers.store(server.url, hash_keys="pepper")
        limiter = callers.limiter(store, "2/m", on_store_error=policy)

        def limit() -> None:
            try:
                callers.wait(limiter.limit, SECRET)
            except (StateError, StoreUnavailableError):
                assert policy == "raise"

        limit()
        [name] = server.ask("KEYS", "*")
        server.ask("SET", name, "garbage")
        limit()
        server.kill()
        for _ in range(5):
            limit()
    assert caplog.records, "something was said"
    for record in caplog.records:
        assert not readable(record.getMessage())
        assert not readable(record.exc_text or "")
        assert "pepper" not in record.getMessage()


# --- what hash_keys may be -----------------------------------------------------------------------


@FLAVOURS
@pytest.mark.parametrize("bad", ["", b"", 1, 0, 1.5, ["sesame"], bytearray(b"sesame"), object()])
def test_what_cannot_be_a_secret_is_refused(made: Any, bad: Any) -> None:
    with pytest.raises(DataError, match=r"^Invalid hash_keys: got \w+, must be True, False") as no:
        made(hash_keys=bad)
    assert "sesame" not in str(no.value)


@FLAVOURS
def test_a_store_does_not_show_its_secret(made: Any) -> None:
    store = made("redis://localhost:1/0", hash_keys="sesame")
    assert "sesame" not in repr(store)
    assert "sesame" not in str(store)
    assert repr(made(hash_keys=False)) == repr(made())
