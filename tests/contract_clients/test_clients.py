"""Programs that know of nothing but an exported contract, against this library."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha1, sha256
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.contract_clients.by_layout import HERE, ByLayout, Node
from tests.servers import Server
from throttled import Throttled, contract
from throttled.algorithms.plan import ALGORITHMS, LOOK, Joint, Plan, hold_plan, make_plan
from throttled.arguments import EVER, Key
from throttled.quota import Quota, Rule
from throttled.store import RedisStore
from throttled.store.wire import (
    SERVER_TIME,
    JointWording,
    Wording,
    bulk,
    digest_of,
    many,
    one,
    whole,
    with_source,
)

NODE = shutil.which("node") or ""
needs_node = pytest.mark.skipif(not NODE, reason="node is not on PATH")
QUOTA = "7/10ms burst 5"
KEYS = ["alice", "100%", "{u}%7D}", "ключ 鍵 🔑", " ", "a:b\r\n\0", "k" * 300]

_numbers = count(1)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("contract")
    contract.export(directory)
    return directory


@pytest.fixture(scope="module")
def node_on(exported: Path) -> Iterator[Callable[[Server], Node]]:
    """The Node program on a server."""
    started: dict[int, Node] = {}

    def get(server: Server) -> Node:
        if server.port not in started:
            started[server.port] = Node(NODE, exported, server.port)
        return started[server.port]

    yield get
    for node in started.values():
        node.close()


# -- the bytes ------------------------------------------------------------------------------------

BY = [
    pytest.param(False, id="python"),
    pytest.param(True, id="node", marks=[needs_node, pytest.mark.server]),
]


@pytest.fixture(params=BY)
def by(request: pytest.FixtureRequest, exported: Path) -> ByLayout | Node:
    """What builds requests from the layout alone."""
    if request.param:
        node: Node = request.getfixturevalue("node_on")(request.getfixturevalue("valkey"))
        return node
    return ByLayout(exported)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_operation_has_the_bytes_of_the_library(by: ByLayout | Node, algorithm: str) -> None:
    plan = make_plan(algorithm, Quota.parse(QUOTA), "app%1", "tokens")
    wording = Wording(plan)
    laid = [algorithm, QUOTA, "app%1", "tokens"]

    def asked(op: str, a: Any, b: Any) -> bytes:
        return by.request([{"plan": laid, "key": "alice", "op": op, "a": a, "b": b}])

    head = wording.bulk("alice")
    for cost, patience in ((0, 0.0), (1, 1.0), (10**9 + 1, EVER), (3, LOOK)):
        laid_patience = "-inf" if patience == LOOK else int(patience)
        assert asked("admit", cost, laid_patience) == one(head, wording.to_admit(cost, patience))
        assert asked("ticket", cost, laid_patience) == one(
            head, wording.to_join(cost, patience, ticket=True, last=True)
        )
    assert asked("adjust", -3, "") == one(head, wording.to_adjust(-3, None))
    assert asked("adjust", 3, 1_700_000_000_123_457) == one(
        head, wording.to_adjust(3, 1_700_000_000_123_457.0)
    )
    assert asked("undo", "1 2 3", "") == one(head, wording.to_undo(b"1 2 3", b""))
    assert asked("reset", "", "") == one(head, wording.to_reset)
    assert asked("once", 86_400_000_000, 2) == one(head, wording.to_mark(86_400e6, 2))
    assert wording.asking("alice", 1, 0.0) == asked("admit", 1, 0)


def test_what_is_infinite_is_written_alike(exported: Path) -> None:
    laid = ByLayout(exported)
    for value in (float("inf"), float("-inf"), 0, -1, EVER):
        assert laid.whole(value).encode() == whole(value)


def test_a_call_by_its_source_and_at_a_given_time(by: ByLayout | Node) -> None:
    plan = make_plan("gcra", Quota.parse(QUOTA), "p")
    wording = Wording(plan)
    call = {"plan": ["gcra", QUOTA, "p"], "key": "k", "op": "admit", "a": 1, "b": 0}
    request = one(wording.bulk("k"), wording.to_admit(1, 0.0), bulk(b"1700000000123457"))
    assert by.request([call], now=1_700_000_000_123_457) == request
    assert by.request([call], now=1_700_000_000_123_457, source=True) == with_source(request)


def test_groups_that_go_together(by: ByLayout | Node) -> None:
    quotas = ("10/s", "100/m", "5/s")
    plans = [
        make_plan(algorithm, Quota.parse(text), "p", f"rule{place}")
        for place, (algorithm, text) in enumerate(zip(ALGORITHMS, quotas, strict=False))
    ]
    rules = [Rule(text, algorithm) for algorithm, text in zip(ALGORITHMS, quotas, strict=False)]
    joint = Joint(plans, rules, [hold_plan("p")])
    wording = JointWording(joint, [Wording(plan) for plan in joint.members])
    laid = [
        *(
            [name, text, "p", f"rule{place}"]
            for place, (name, text) in enumerate(zip(ALGORITHMS, quotas, strict=False))
        ),
        ["hold", "", "p", ""],
    ]
    for op, ticket in (("admit", False), ("ticket", True)):
        calls = [
            {"plan": plan, "key": "k", "op": op, "a": 2, "b": 9, "more": place < len(laid) - 1}
            for place, plan in enumerate(laid)
        ]
        groups = wording.to_ask(2, 9.0, ticket)
        assert by.request(calls) == many([wording.bulk("k")], [groups], SERVER_TIME, len(laid))


@pytest.mark.parametrize("secret", [None, True, "a long secret"], ids=["plain", "sha256", "hmac"])
@pytest.mark.parametrize("key", KEYS, ids=range(len(KEYS)))
def test_keys(by: ByLayout | Node, key: str, secret: Any) -> None:
    plans = {
        ("fixed_window", "5/m", "throttled", ""): make_plan("fixed_window", Quota.parse("5/m")),
        ("gcra", "5/w", "a:b", "x:y"): make_plan("gcra", Quota.parse("5/w"), "a:b", "x:y"),
        ("hold", "", "p", ""): hold_plan("p"),
    }
    for laid, plan in plans.items():
        wording = Wording(plan, digest_of(secret))
        names = [wording.bulk(key), wording.bulk(Key(key, "t{e}%")), wording.mark(key, "m")]
        names.append(wording.mark(Key(key, "t{e}%"), "m"))
        keyed: list[dict[str, Any]] = [{}, {"slot": "t{e}%"}]
        keyed += [{**each, "mark": "m"} for each in keyed]
        for name, each in zip(names, keyed, strict=True):
            call = {"plan": laid, "key": key, "op": "reset", "a": "", "b": ""}
            given = by.request([{**call, "keyed": {**each, "secret": secret}}])
            assert given == one(name, wording.to_reset)


def test_a_lone_surrogate_is_its_three_bytes(exported: Path) -> None:
    wording = Wording(make_plan("gcra", Quota.parse("5/m"), "p"))
    call = {"plan": ["gcra", "5/m", "p"], "key": "\ud800", "op": "reset", "a": "", "b": ""}
    assert ByLayout(exported).request([call]) == one(wording.bulk("\ud800"), wording.to_reset)


# -- the vectors ----------------------------------------------------------------------------------


def replayed(directory: Path, server: Server) -> tuple[int, dict[str, Any]]:
    """How the replay of an export ends, and what it says."""
    done = subprocess.run(
        [NODE, str(HERE / "replay.mjs"), str(directory), str(server.port)],
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    assert not done.stderr, done.stderr
    return done.returncode, json.loads(done.stdout)


@needs_node
@pytest.mark.server
def test_all_vectors_hold_in_another_language(exported: Path, server: Server) -> None:
    timelines = [
        timeline
        for path in (exported / "vectors").glob("*.json")
        for timeline in json.loads(path.read_text("utf-8"))["timelines"]
    ]
    steps = sum(len(timeline["steps"]) for timeline in timelines)
    assert steps > 10_000
    code, summary = replayed(exported, server)
    assert summary["failures"] == []
    assert (summary["timelines"], summary["steps"]) == (len(timelines), steps)
    assert code == 0
    with server.client() as client:
        assert not list(client.scan_iter("contract-*"))


def keep_vectors(directory: Path, *names: str) -> None:
    for path in (directory / "vectors").glob("*.json"):
        if path.stem not in names:
            path.unlink()


def sign(directory: Path) -> None:
    """Make an export look as if it had always been like this."""
    for name in ("layout.json", "manifest.json"):
        document = json.loads((directory / name).read_text("utf-8"))
        script = (directory / "decide.lua").read_bytes()
        document["script_sha1"] = sha1(script, usedforsecurity=False).hexdigest()
        if "sha256" in document:
            document["sha256"] = {
                each: sha256((directory / each).read_bytes()).hexdigest()
                for each in document["sha256"]
                if (directory / each).exists()
            }
        (directory / name).write_text(json.dumps(document), "utf-8")


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), "utf-8")


@needs_node
@pytest.mark.server
@pytest.mark.parametrize(
    ("file", "old", "new", "algorithms"),
    [
        # A rule that forgets to round up, and one that counts a window twice.
        (
            "decide.lua",
            "own = at - floor(left / limit)",
            "own = at + floor(-left / limit)",
            ["gcra"],
        ),
        (
            "decide.lua",
            "count, booked = taken, 0",
            "count, booked = taken + 1, 0",
            ["fixed_window"],
        ),
        ("decide.lua", "ticket and wait == 0", "ticket and wait < 0", ["joints"]),
        ("layout.json", '"wait", "remaining"', '"remaining", "wait"', ["gcra"]),
        ("layout.json", '"limit", "period"', '"period", "limit"', ["gcra"]),
        ("layout.json", '"burst": "burst"', '"burst": "limit"', ["token_bucket"]),
        ("layout.json", '"+"', '""', ["joints"]),
        ("vectors/gcra.json", '"wait": "0"', '"wait": "1"', ["gcra"]),
    ],
)
def test_what_is_wrong_is_found(
    tmp_path: Path, valkey: Server, file: str, old: str, new: str, algorithms: list[str]
) -> None:
    contract.export(tmp_path)
    keep_vectors(tmp_path, *algorithms)
    sign(tmp_path)
    assert replayed(tmp_path, valkey)[0] == 0
    change(tmp_path / file, old, new)
    sign(tmp_path)
    code, summary = replayed(tmp_path, valkey)
    assert code == 1
    assert any("expected" in failure for failure in summary["failures"])


@needs_node
@pytest.mark.server
@pytest.mark.parametrize("file", ["decide.lua", "layout.json", "vectors/gcra.json"])
def test_a_file_that_is_not_the_published_one_is_found(
    tmp_path: Path, valkey: Server, file: str
) -> None:
    contract.export(tmp_path)
    keep_vectors(tmp_path, "gcra")
    sign(tmp_path)
    path = tmp_path / file
    path.write_text(path.read_text("utf-8") + " ", "utf-8")
    code, summary = replayed(tmp_path, valkey)
    assert code == 1
    assert {"file": file, "reason": "not as in the manifest"} in summary["failures"]


# -- the same keys at the same time ---------------------------------------------------------------


class Shared:
    """One limit, of this process and of the Node program."""

    def __init__(
        self, store: RedisStore, node: Node, algorithm: str, quota: str, secret: Any = None
    ) -> None:
        self.node = node
        self.store = store
        prefix = f"shared{next(_numbers)}"
        self.plan: Plan = make_plan(algorithm, Quota.parse(quota), prefix)
        self.throttle = Throttled(using=algorithm, quota=quota, store=store, key_prefix=prefix)
        self._call = {"plan": [algorithm, quota, prefix], "key": "k", "keyed": {"secret": secret}}

    def send(self, do: str, **call: Any) -> None:
        self.node.send(do, **self._call, **call)

    def ask(self, do: str, **call: Any) -> Any:
        return self.node.ask(do, **self._call, **call)

    def promise(self) -> Any:
        """A slot for this process, however far; its ticket."""
        return self.store.run(self.plan, "k", 1, EVER)[0]


@pytest.fixture
def shared(server: Server, node_on: Callable[[Server], Node]) -> Iterator[Callable[..., Shared]]:
    if not NODE:
        pytest.skip("node is not on PATH")
    stores: list[RedisStore] = []

    def make(algorithm: str, quota: str, secret: Any = None) -> Shared:
        options = {"DECISION_TIMEOUT": 15.0}
        stores.append(RedisStore(server.url, options, hash_keys=secret or False))
        return Shared(stores[-1], node_on(server), algorithm, quota, secret)

    yield make
    for store in stores:
        store.close()


@pytest.mark.server
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_one_has_taken_the_other_cannot(shared: Callable[..., Shared], algorithm: str) -> None:
    both = shared(algorithm, "10/d")
    assert all(both.throttle.limit("k").allowed for _ in range(5))
    decisions = [both.ask("limit") for _ in range(8)]
    assert [each["admitted"] for each in decisions] == [True] * 5 + [False] * 3
    assert [each["remaining"] for each in decisions] == [4, 3, 2, 1, 0, 0, 0, 0]
    refusal = both.throttle.limit("k")
    assert refusal.limited
    assert refusal.state.retry_after * 1e6 <= decisions[-1]["wait"] + 1
    assert both.ask("reset") is True
    assert both.throttle.peek("k").remaining == 10


@pytest.mark.server
@pytest.mark.parametrize("secret", [True, "a long secret of our own"], ids=["sha256", "hmac"])
def test_hashed_keys_are_shared_as_well(shared: Callable[..., Shared], secret: Any) -> None:
    both = shared("token_bucket", "10/d", secret)
    assert all(both.throttle.limit("k").allowed for _ in range(5))
    assert [both.ask("limit")["admitted"] for _ in range(8)] == [True] * 5 + [False] * 3


@pytest.mark.server
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_both_at_once_are_admitted_exactly_the_quota(
    shared: Callable[..., Shared], algorithm: str
) -> None:
    both = shared(algorithm, "200/d")
    both.send("crowd", attempts=300)
    with ThreadPoolExecutor(4) as threads:
        ours = sum(threads.map(lambda _: both.throttle.limit("k").allowed, range(300)))
    assert ours + both.node.answer() == 200
    assert both.throttle.peek("k").remaining == 0


@pytest.mark.server
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_waiters_of_both_stand_in_one_line(shared: Callable[..., Shared], algorithm: str) -> None:
    both = shared(algorithm, "1/h")
    assert both.throttle.limit("k").allowed
    forecast = both.throttle.peek("k").retry_after
    theirs = both.ask("limit", patience=str(2**62))
    assert theirs["admitted"]
    assert theirs["wait"] <= forecast * 1e6 + 1
    ours = both.promise()
    assert ours.slot >= theirs["slot"] + 3_600_000_000 * (algorithm not in _UNEVEN)
    # Who is no longer the last cannot undo; the last can, and then so can the one before it.
    assert both.ask("undo", promise=theirs) is False
    assert both.store.undo(ours) is True
    assert both.ask("undo", promise=theirs) is True
    assert both.throttle.peek("k").retry_after <= forecast


#: Their slots are those of windows, or of a share that slides out of sight.
_UNEVEN = {"sliding_window"}


@pytest.mark.server
def test_a_waiter_in_node_sleeps_until_its_slot(shared: Callable[..., Shared]) -> None:
    both = shared("gcra", "1/s")
    assert both.throttle.limit("k").allowed
    theirs = both.ask("wait", patience=2_000_000)
    assert theirs["admitted"]
    assert 0 < theirs["wait"] <= 1_000_000
    ours = both.promise()
    assert ours.slot == theirs["slot"] + 1_000_000
    assert ours.wait < 1_000_000  # for it asked after that slot had come
    assert both.ask("limit", patience=1)["admitted"] is False


@pytest.mark.server
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_is_adjusted_by_one_is_seen_by_the_other(
    shared: Callable[..., Shared], algorithm: str
) -> None:
    both = shared(algorithm, "10/d")
    both.throttle.limit("k", cost=4)
    assert both.ask("adjust", delta=3, slot="") is True
    assert both.throttle.peek("k").remaining == 3
    assert both.ask("adjust", delta=-2, slot="") is True
    assert both.throttle.peek("k").remaining == 5
    both.throttle.debit("k", 7)
    assert both.ask("limit")["admitted"] is False
    both.throttle.refund("k", 3)
    assert both.ask("limit", patience="-inf")["remaining"] == 1


@pytest.mark.server
def test_what_has_a_mark_is_done_once(shared: Callable[..., Shared]) -> None:
    both = shared("fixed_window", "10/d")
    assert both.ask("once", mark="m", length=60_000_000, delta=3) == [1, 1]
    assert both.ask("once", mark="m", length=60_000_000, delta=3) == [0, 0]
    changes = [(both.plan, "k", 3, None)]
    assert both.store.adjust_once(both.plan, "k", "m", 60.0, changes) is None
    assert both.store.adjust_once(both.plan, "k", "n", 60.0, changes) == [True]
    assert both.ask("once", mark="n", length=60_000_000, delta=3) == [0, 0]
    assert both.throttle.peek("k").remaining == 4


@pytest.mark.server
def test_a_key_that_holds_something_else_is_said_in_its_place(
    shared: Callable[..., Shared], server: Server
) -> None:
    both = shared("gcra", "10/d")
    with server.client() as client:
        client.set(both.plan.prefix + "{k}", "x")
    assert both.ask("limit") == {"error": "damaged state: x"}
