"""Policy files: what each key means, in both formats and both flavours."""

from __future__ import annotations

import json
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import throttled
import throttled.asyncio
from tests import flavours
from tests.flavours import Flavour
from tests.policy_files import loaded
from throttled import Key, MemoryStore, Rule
from throttled.exceptions import DataError, LimitedError, PolicyNotFoundError, SetUpError
from throttled.policies import OPERATIONS, Override, Tier, described
from throttled.quota import rules_of
from throttled.testing import FakeClock

flavour = flavours.flavour


def file(directory: Path, text: str, name: str = "policies.toml") -> Path:
    path = directory / name
    path.write_text(text, "utf-8")
    return path


def admitted(flavour: Flavour, limit: Any, key: str, calls: int = 20, **options: Any) -> int:
    """How many calls of so many are admitted."""
    return sum(flavour.run(limit.limit, key, **options).allowed for _ in range(calls))


FULL = """
[defaults]
using = "fixed_window"
store = "main"
key_prefix = "acme"
on_store_error = "deny"
enforce = false

[stores.main]
url = "memory"
options = { MAX_SIZE = 1000 }

[stores.far]
url = "redis://user:${PASSWORD}@localhost:1/0"
on_store_error = "main"
hash_keys = "${SECRET}"
options = { DECISION_TIMEOUT = 0.2, LOCAL_SHARE = 4, PASSWORD = "${PASSWORD}" }

[policies.api]
quota = "100/s burst 200; 5000/h"
using = "gcra"
store = "far"
key_prefix = "acme-api"
on_store_error = "local"
enforce = true
hold = true
operations = ["check", "peek"]

[policies.api.tiers.pro]
keys = ["pro:*", "acme"]
quota = "1000/s"

[policies.api.tiers.staff]
keys = ["staff:?"]
rules = [{ quota = "1/s", using = "sliding_window_log", cost = 1, name = "calls" }]

[[policies.api.overrides]]
key = "user:42"
quota = "500/s"
until = 2026-12-31T23:59:59.000001+01:00
reason = "asked for it"

[[policies.api.overrides]]
key = "root"
exempt = true

[policies.plain]
rules = [
    { quota = "500/m", cost = 1 },
    { quota = "200_000/m", name = "tokens", using = "sliding_window" },
]
"""


@pytest.fixture(params=["toml", "json"])
def full(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PASSWORD", "sesame-1")
    monkeypatch.setenv("SECRET", "sesame-2")
    if request.param == "toml":
        return file(tmp_path, FULL)
    text = json.dumps(tomllib.loads(FULL), default=lambda instant: instant.isoformat())
    return file(tmp_path, text, "policies.json")


def test_every_key_has_its_effect(flavour: Flavour, full: Path) -> None:
    policies = loaded(flavour, full)
    assert list(policies) == ["api", "plain"]
    assert len(policies) == 2
    assert "api" in policies
    assert "else" not in policies
    api, spec = policies["api"], policies.spec("api")
    assert type(api) is flavour.made
    assert spec.name == "api"
    assert spec.rules == rules_of("100/s burst 200; 5000/h")
    assert (spec.using, spec.store, spec.key_prefix) == ("gcra", "far", "acme-api")
    assert (spec.on_store_error, spec.enforce, spec.hold) == ("local", True, True)
    assert spec.operations == {"check", "peek"}
    assert spec.hides_keys
    assert spec.tiers == (
        Tier("pro", ("pro:*", "acme"), rules_of("1000/s")),
        Tier("staff", ("staff:?",), (Rule("1/s", "sliding_window_log", 1, "calls"),)),
    )
    until = datetime(2026, 12, 31, 22, 59, 59, 1, tzinfo=UTC)
    assert spec.overrides == (
        Override("user:42", rules_of("500/s"), until, "asked for it"),
        Override("root", None),
    )
    assert spec.overrides[1].exempt
    assert (api.hold, api.enforce, api.on_store_error) == (True, True, "local")
    assert api.store.local_share == 4
    assert api.store.hides_keys
    plain, spec = policies["plain"], policies.specs["plain"]
    assert (spec.using, spec.store, spec.key_prefix) == ("fixed_window", "main", "acme:plain")
    assert (spec.on_store_error, spec.enforce, spec.hold) == ("deny", False, False)
    assert spec.operations == frozenset(OPERATIONS)
    assert not spec.hides_keys
    assert [str(rule.quota) for rule in plain.rules] == ["500/m", "200000/m"]
    assert [rule.using for rule in plain.rules] == ["fixed_window", "sliding_window"]
    assert plain.store is api.store.on_store_error
    assert (plain.enforce, plain.on_store_error, plain.hold) == (False, "deny", False)
    flavour.run(policies.close)


def test_both_formats_and_both_flavours_say_the_same(tmp_path: Path, full: Path) -> None:
    said = throttled.load(full).specs
    assert throttled.asyncio.load(full).specs == said
    other = tmp_path / "again.toml"
    other.write_text(FULL, "utf-8")
    assert throttled.load(other).specs == said


def test_a_policy_as_json(full: Path) -> None:
    policies = throttled.load(full)
    told = json.loads(json.dumps(described(policies.spec("api"))))
    assert told["operations"] == ["check", "peek"]
    assert told["tiers"][0] == {
        "name": "pro",
        "keys": ["pro:*", "acme"],
        "rules": [{"quota": "1000/s", "using": None, "cost": None, "name": None}],
    }
    assert told["overrides"][0]["until"] == "2026-12-31T23:59:59.000001+01:00"
    assert told["overrides"][1]["exempt"]
    assert "user:42" not in json.dumps(told)  # its store hides keys


def test_what_is_secret_is_shown_nowhere(full: Path) -> None:
    policies = throttled.load(full)
    told = [repr(policies), repr(policies.specs), repr(policies["api"]), repr(policies["plain"])]
    told += [repr(policies._made.spec), repr(policies._made.spec.stores["far"])]
    text = " ".join(told)
    assert "sesame" not in text
    assert "user:42" not in text


def test_without_a_word_about_it_everything_has_its_default(
    flavour: Flavour, tmp_path: Path
) -> None:
    path = file(tmp_path, '[policies.api]\nquota = "5/m"\n[policies.more]\nquota = "5/m"')
    load: Any = throttled.asyncio.load if flavour.asynchronous else throttled.load
    policies = load(path)
    spec, api = policies.spec("api"), policies["api"]
    assert (spec.using, spec.store, spec.key_prefix) == ("token_bucket", None, "throttled:api")
    assert (spec.on_store_error, spec.enforce, spec.hold) == (None, True, False)
    assert (spec.tiers, spec.overrides) == ((), ())
    # One memory for the file, and no other has it.
    assert isinstance(api.store, MemoryStore)
    assert policies["more"].store is api.store
    assert load(path)["api"].store is not api.store
    assert admitted(flavour, api, "key") == 5
    assert admitted(flavour, policies["more"], "key") == 5


def test_the_store_that_is_given_and_the_one_in_memory(flavour: Flavour, tmp_path: Path) -> None:
    text = '[policies.api]\nquota = "5/m"\n[policies.own]\nstore = "memory"\nquota = "5/m"'
    given = MemoryStore()
    policies = loaded(flavour, file(tmp_path, text), store=given)
    assert policies["api"].store is given
    assert policies["own"].store is not given
    assert policies.spec("own").store == "memory"


def test_a_store_by_its_url(flavour: Flavour, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("URL", "redis://:sesame@localhost:1/0")
    text = """
    policies.one = { quota = "5/m", store = "${URL}", on_store_error = "memory" }
    policies.two = { quota = "5/m", store = "${URL}", on_store_error = "local" }
    """
    policies = loaded(flavour, file(tmp_path, text))
    assert policies.spec("one").store == "redis://:***@localhost:1/0"
    assert policies["one"].store is policies["two"].store
    assert type(policies["one"].on_store_error) is MemoryStore


def test_what_is_like_a_variable_can_be_written(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("STAGE", "test")
    monkeypatch.setenv("QUOTA", "7/m")
    text = 'policies.api = { quota = "${QUOTA}", key_prefix = "$${STAGE}-${STAGE}-$x" }'
    with pytest.raises(DataError, match=r"key_prefix: Invalid key_prefix: .*without braces"):
        throttled.load(file(tmp_path, text))
    text = text.replace("$${STAGE}-", "")
    policies = throttled.load(file(tmp_path, text))
    assert policies.spec("api").key_prefix == "test-$x"
    assert str(policies["api"].quota) == "7/m"


def test_no_such_policy(flavour: Flavour, tmp_path: Path) -> None:
    policies = loaded(flavour, file(tmp_path, 'policies.api = { quota = "5/m" }'))
    with pytest.raises(PolicyNotFoundError, match=r"policies\.toml: .*'apo', did you mean 'api'\?"):
        policies["apo"]
    with pytest.raises(KeyError, match="'login', must be one of api"):
        policies.policy("login")
    for bad in (None, 5, ["api"], print):
        with pytest.raises(PolicyNotFoundError, match="must be the name of one"):
            policies[bad]
        with pytest.raises(PolicyNotFoundError):
            policies.spec(bad)
        with pytest.raises(PolicyNotFoundError):
            policies.policy(bad)
    assert policies.get("login") is None


def test_limits_with_options_of_their_own(flavour: Flavour, tmp_path: Path) -> None:
    policies = loaded(flavour, file(tmp_path, 'policies.api = { quota = "3/m" }'))
    refused: list[str] = []
    told = policies.policy("api", key="key", on_deny=lambda event: refused.append(event.key))
    assert told is not policies["api"]
    assert policies["api"] is policies["api"]
    assert admitted(flavour, policies["api"], "key", 2) == 2
    assert admitted(flavour, told, "key", 2) == 1  # they count together
    assert refused == ["key"]
    free = policies.policy("api", exempt=lambda key: key == "key")
    assert admitted(flavour, free, "key") == 20
    waiting = policies.policy("api", timeout=60, cost=2)
    assert (waiting.timeout, waiting.cost) == (60, 2)
    assert flavour.run(waiting.limit, "key").allowed  # after a wait
    with pytest.raises(DataError, match="Invalid timeout: 'soon'"):
        policies.policy("api", timeout="soon")
    with pytest.raises(DataError, match="Invalid exempt: 5"):
        policies.policy("api", exempt=5)


def test_a_decorator(flavour: Flavour, tmp_path: Path) -> None:
    policies = loaded(flavour, file(tmp_path, 'policies.api = { quota = "2/m" }'))
    decorate = policies.policy("api", key="user:{user}")
    if flavour.asynchronous:

        @decorate
        async def show(user: int) -> int:
            return user
    else:

        @decorate
        def show(user: int) -> Any:
            return user

    assert [flavour.run(show, 1), flavour.run(show, 1)] == [1, 1]
    with pytest.raises(LimitedError):
        flavour.run(show, 1)
    assert admitted(flavour, policies["api"], "user:1") == 0


def test_a_bad_store(flavour: Flavour, tmp_path: Path) -> None:
    path = file(tmp_path, 'policies.api = { quota = "2/m" }')
    with pytest.raises(SetUpError, match="Invalid store: 5"):
        loaded(flavour, path, store=5)


# -- tiers and overrides --------------------------------------------------------------------------

TIERS = """
[policies.api]
quota = "1/m"
[policies.api.tiers.pro]
keys = ["pro:*", "acme", "[ab]?"]
quota = "3/m"
[policies.api.tiers.all_pro]
keys = ["p*"]
rules = [{ quota = "4/m", name = "calls" }, { quota = "9/h" }]
[[policies.api.overrides]]
key = "pro:42"
quota = "5/m"
[[policies.api.overrides]]
key = "late"
quota = "7/m"
until = 2023-11-14T22:13:21.000001Z
[[policies.api.overrides]]
key = "root"
exempt = true
[[policies.api.overrides]]
key = "pro:guest"
exempt = true
until = "2023-11-14T23:13:21+01:00"
"""


@pytest.mark.parametrize(
    ("key", "calls"),
    [
        ("user", 1),
        ("pro:1", 3),
        ("pro:", 3),
        ("Pro:1", 1),
        ("acme", 3),
        ("acme2", 1),
        ("a1", 3),
        ("c1", 1),
        ("pr:1", 4),
        ("xpro:1", 1),
        ("pro:\n", 3),
        ("pro:42", 5),
        ("pro:421", 3),
        ("late", 7),
        ("root", 20),
        ("rooted", 1),
        ("pro:guest", 20),
    ],
)
def test_the_quota_of_a_key(flavour: Flavour, tmp_path: Path, key: str, calls: int) -> None:
    policies = loaded(flavour, file(tmp_path, TIERS))
    assert admitted(flavour, policies["api"], key) == calls
    # By its text, wherever it lives.
    assert admitted(flavour, policies["api"], Key(key, slot="slot")) == calls


def test_a_result_has_the_rules_of_its_key(flavour: Flavour, tmp_path: Path) -> None:
    policies = loaded(flavour, file(tmp_path, TIERS))
    result = flavour.run(policies["api"].limit, "pr:1")
    assert [(str(rule.quota), rule.name) for rule in result.rules] == [
        ("4/m", "calls"),
        ("9/h", None),
    ]
    with pytest.raises(DataError, match="the tiers and overrides of policy 'api'"):
        _ = policies["api"].rules
    # An exempt key has the quota of its tier in everything that is no call.
    assert flavour.run(policies["api"].peek, "pro:guest").limit == 3
    assert flavour.run(policies["api"].limit, "root").source == "exempt"


def test_an_override_ends_at_its_instant(flavour: Flavour, tmp_path: Path) -> None:
    clock = FakeClock(1_700_000_000)  # 2023-11-14T22:13:20Z
    policies = loaded(flavour, file(tmp_path, TIERS), store=MemoryStore(clock=clock))
    api = policies["api"]

    def limit_of(key: str) -> int:
        return int(flavour.run(api.peek, key).limit)

    assert limit_of("late") == 7
    clock.advance(1)
    assert limit_of("late") == 7
    assert flavour.run(api.limit, "pro:guest").source == "memory"  # until 22:13:21, which it is
    clock.advance(0.000001)
    assert limit_of("late") == 1
    clock.set(clock.now - 0.000002)
    assert limit_of("late") == 7
    assert flavour.run(api.limit, "pro:guest").source == "exempt"


@pytest.mark.parametrize("offset", [timedelta(0), timedelta(microseconds=1)])
@pytest.mark.parametrize("now", [1.0, 86_400.000001, 1_700_000_000.654321, 3_999_999_999.999998])
def test_the_instant_is_exact_whatever_it_is(tmp_path: Path, now: float, offset: timedelta) -> None:
    instant = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=round(now * 1e6)) + offset
    text = 'policies.api = { quota = "1/m", overrides = [{ key = "k", quota = "9/m", until = %s }]}'
    path = file(tmp_path, text % instant.isoformat())
    policies = throttled.load(path, store=MemoryStore(clock=FakeClock(now)))
    assert policies["api"].peek("k").limit == (9 if offset else 1)


def test_an_override_that_is_over_is_no_error(tmp_path: Path) -> None:
    text = """
    [policies.api]
    quota = "1/m"
    overrides = [{ key = "k", exempt = true, until = 1999-12-31T23:59:59Z }]
    """
    policies = throttled.load(file(tmp_path, text))  # by the time of the day
    assert policies["api"].limit("k").source == "memory"


def test_exempt_keys_alone_leave_the_quota_as_it_is(flavour: Flavour, tmp_path: Path) -> None:
    text = 'policies.api = { quota = "1/m", overrides = [{ key = "k", exempt = true }]}'
    policies = loaded(flavour, file(tmp_path, text))
    api = policies["api"]
    assert str(api.quota) == "1/m"
    asked: list[str] = []

    async def later(key: str) -> bool:
        asked.append(key)
        return key == "me"

    def now(key: str) -> bool:
        asked.append(key)
        return key == "me"

    mine = policies.policy("api", exempt=later if flavour.asynchronous else now)
    assert [admitted(flavour, mine, key, 3) for key in ("k", "me", "other")] == [3, 3, 1]
    assert asked == ["me"] * 3 + ["other"] * 3
    results = flavour.run(mine.limit_many, ["k", "me", "other"])
    assert [result.source for result in results] == ["exempt", "exempt", "memory"]


def test_a_penalty_by_a_policy(flavour: Flavour, tmp_path: Path) -> None:
    policies = loaded(flavour, file(tmp_path, 'policies.api = { quota = "5/m", hold = true }'))
    flavour.run(policies["api"].penalize, "key", 10)
    assert admitted(flavour, policies["api"], "key") == 0


def test_a_shadow_policy(flavour: Flavour, tmp_path: Path) -> None:
    policies = loaded(flavour, file(tmp_path, 'policies.api = { quota = "1/m", enforce = false }'))
    assert admitted(flavour, policies["api"], "key") == 20


def test_policies_may_share_a_prefix_where_they_do_not_meet(tmp_path: Path) -> None:
    text = """
    policies.one = { quota = "1/m", key_prefix = "p" }
    policies.two = { quota = "1/h", key_prefix = "p" }
    policies.three = { rules = [{ quota = "1/m", name = "x" }], key_prefix = "p" }
    policies.four = { quota = "1/m", key_prefix = "p", using = "gcra" }
    policies.five = { quota = "1/m", key_prefix = "p", store = "other" }
    stores.other.url = "memory"
    """
    assert len(throttled.load(file(tmp_path, text))) == 5


def test_what_editors_leave_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "POLICIES.TOML"
    path.write_bytes(b'\xef\xbb\xbf# comment\r\npolicies.api = { quota = "1/m" }\r\n')
    assert list(throttled.load(str(path))) == ["api"]


def test_a_file_of_many_policies(tmp_path: Path) -> None:
    lines = [f'policies.p{number} = {{ quota = "{number + 1}/m" }}' for number in range(300)]
    policies = throttled.load(file(tmp_path, "\n".join(lines)))
    assert policies["p299"].quota.limit == 300
    assert "295 more" in repr(policies)
    with pytest.raises(PolicyNotFoundError, match="and 280 more"):
        policies["zzzzz"]
