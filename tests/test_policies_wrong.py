"""Policy files that are wrong: every problem is named, at its place, with what would be right."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import throttled
import throttled.asyncio
from throttled import MemoryStore
from throttled.exceptions import DataError
from throttled.policies import OPERATIONS, Policies

API = 'policies.api = { quota = "5/m" }\n'


def problems(path: Path, load: Any = throttled.load) -> list[str]:
    """What is wrong with a file, without its name."""
    with pytest.raises(DataError) as raised:
        load(path)
    lines = str(raised.value).split("\n")
    assert all(line.startswith(f"{path}: ") for line in lines)
    return [line.removeprefix(f"{path}: ") for line in lines]


def wrong(directory: Path, text: str, load: Any = throttled.load) -> list[str]:
    path = directory / "policies.toml"
    path.write_text(text, "utf-8")
    return problems(path, load)


def cases() -> Iterator[object]:
    """The files of `test_policies_wrong.txt`, and what is wrong with each."""
    for block in Path(__file__).with_suffix(".txt").read_text("utf-8").split("\n\n")[1:]:
        lines = block.strip("\n").split("\n")
        told = [line.removeprefix("! ") for line in lines if line.startswith("! ")]
        text = [line for line in lines if not line.startswith("! ")]
        yield pytest.param("\n".join(text), told, id=told[0][:60])


@pytest.mark.parametrize("suffix", ["toml", "json"])
@pytest.mark.parametrize(("text", "told"), list(cases()))
def test_every_problem_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, told: list[str], suffix: str
) -> None:
    monkeypatch.setenv("THROTTLED_EMPTY", "")
    path = tmp_path / f"policies.{suffix}"
    if suffix == "json":
        text = json.dumps(tomllib.loads(text), default=str)
        told = [re.sub(r"^(.*until: .*') must", r"\1 must", each) for each in told]
    path.write_text(text, "utf-8")
    assert problems(path) == told
    assert problems(path, throttled.asyncio.load) == told


def test_all_at_once_but_not_too_many(tmp_path: Path) -> None:
    text = "".join([f'policies.p{number}.quota = "x"\n' for number in range(25)])
    told = wrong(tmp_path, text)
    assert len(told) == 21
    assert told[0].startswith("policies.p0.quota: Invalid quota: 'x'")
    assert told[-1] == "and 5 more"


def test_a_store_that_is_wrong_is_one_problem(tmp_path: Path) -> None:
    text = """
    stores.main = { url = "nowhere" }
    stores.other = { url = "redis://x", on_store_error = "main" }
    policies.one = { quota = "1/s", store = "main" }
    policies.two = { quota = "1/s", store = "other", on_store_error = "main" }
    policies.three = { quota = "1/s", store = "other" }
    """
    assert [line.partition(":")[0] for line in wrong(tmp_path, text)] == ["stores.main.url"]


@pytest.mark.parametrize("secret", ["sesame", "open sesame", "s'e%40same", "x" * 300, "sésame\\"])
def test_what_comes_from_the_environment_is_not_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, secret: str
) -> None:
    monkeypatch.setenv("SECRET", secret)
    for text in (
        'stores.main.url = "${SECRET}"',
        'stores.main.url = "redis://:${SECRET}@host:port"',
        'stores.main.url = "redis://${SECRET}:1:2"',
        'stores.main.url = "redis://host?password=${SECRET}&socket_timeout=x"',
        'stores.main = { url = "redis://x", options = { SOCKET_TIMEOUT = "${SECRET}" } }',
        'stores.main = { url = "redis://x", options = { SENTINELS = [["${SECRET}"]] } }',
        'stores.main = { url = "redis://x", options = { PARSER_CLASS = "${SECRET}" } }',
        'policies.b = { quota = "1/s", store = "${SECRET}" }',
        'policies.b = { quota = "1/s", store = "redis://${SECRET}:1:2" }',
        'defaults.store = "redis://${SECRET}:1:2"',
        'policies.b = { quota = "${SECRET}" }',
        'policies.b = { quota = "1/s", on_store_error = "${SECRET}" }',
    ):
        told = "\n".join(wrong(tmp_path, API + text))
        assert secret not in told
        assert secret[:20] not in told
        assert repr(secret)[1:-1] not in told


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.toml", b"policies = {", r"line 1 \(the end\): Invalid initial character for a key"),
        ("a.toml", b"x = 1\ny = \n", r"line 2, column 5: Invalid value"),
        ("a.toml", b"[x]\n[x]", r"line 2, column 3: Cannot declare \('x',\) twice"),
        ("a.toml", b"x = 1\nx = 2", r"Cannot overwrite a value"),
        ("a.toml", b"x = " + b"1" * 10_000, "holds a value that cannot be read"),
        ("a.toml", b"x = " + b"[" * 100_000, "is nested too deeply"),
        ("a.toml", b"x = 1\ny = '\xff'", "line 2: is not UTF-8"),
        ("a.json", b"{\n  x", r"line 2, column 3: Expecting property name"),
        ("a.json", b"", r"line 1, column 1: Expecting value"),
        ("a.json", b"[]", r"must be an object"),
        ("a.json", b'{"x": {"y": 1, "y": 2}}', "the key 'y' is there twice"),
        ("a.json", b'{"x": NaN}', "NaN is no number"),
        ("a.json", b"[" * 100_000, "is nested too deeply"),
        ("a.json", b"1" * 10_000, "holds a value that cannot be read"),
    ],
)
def test_what_is_no_file_of_its_format(
    tmp_path: Path, name: str, content: bytes, told: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=told) as raised:
        throttled.load(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert str(raised.value).endswith(".")
    assert "\n" not in str(raised.value)


def test_a_file_that_cannot_be_had(tmp_path: Path) -> None:
    assert problems(tmp_path / "no.toml") == ["Invalid path: there is no such file."]
    (tmp_path / "dir.toml").mkdir()
    assert problems(tmp_path / "dir.toml") == ["Invalid path: it is a directory, must be a file."]
    os.mkfifo(tmp_path / "pipe.toml")
    assert problems(tmp_path / "pipe.toml") == [
        "Invalid path: it is no regular file, must be a file."
    ]
    (tmp_path / "loop.toml").symlink_to(tmp_path / "loop.toml")
    assert (
        "cannot be read: Too many levels of symbolic links" in problems(tmp_path / "loop.toml")[0]
    )
    with open(tmp_path / "large.toml", "wb") as large:
        large.truncate(2**24 + 1)
    assert problems(tmp_path / "large.toml") == ["is too large, must be at most 16777216 bytes."]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_must_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "policies.toml"
    path.write_text(API)
    path.chmod(0)
    assert problems(path) == ["cannot be read: Permission denied."]


@pytest.mark.parametrize("path", ["policies", "policies.yaml", "", None, 5, b"a.toml", "\0.toml"])
def test_what_is_no_path(path: Any) -> None:
    with pytest.raises(
        DataError, match=r"Invalid path: .*, must be that of a file whose name ends"
    ):
        throttled.load(path)


@pytest.mark.parametrize("every", [0, -1, True, "1", float("nan"), float("inf")])
def test_what_is_no_time_between_looks(tmp_path: Path, every: Any) -> None:
    path = tmp_path / "policies.toml"
    path.write_text(API)
    with pytest.raises(DataError, match=r"Invalid every: .*, must be seconds above 0"):
        throttled.load(path, watch=every)


# -- whatever is in it ----------------------------------------------------------------------------

KEYS = [
    *("defaults", "stores", "policies", "using", "store", "key_prefix", "on_store_error"),
    *("enforce", "url", "hash_keys", "options", "quota", "rules", "hold", "operations"),
    *("tiers", "overrides", "keys", "key", "exempt", "until", "reason", "cost", "name"),
    *("memory", "api", "main", "DECISION_TIMEOUT", "MAX_SIZE"),
]
TEXTS = st.sampled_from(
    [
        *("5/s", "5/s; 6/m", "memory", "redis://x", "gcra", "local", "2026-12-31T23:59:59Z"),
        *("${X}", "main", "", "{", "pro:*", "[", *OPERATIONS),
    ]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=3), inner, max_size=5)
    ),
    max_leaves=20,
)
RULED = st.fixed_dictionaries(
    {"quota": TEXTS | VALUES}, optional={key: VALUES for key in KEYS if key != "quota"}
)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("policies") / "policies.json"


@settings(max_examples=250)
@given(
    document=st.fixed_dictionaries(
        {},
        optional={
            "policies": st.dictionaries(st.sampled_from(["api", "b"]), RULED, max_size=2) | VALUES,
            "stores": st.dictionaries(
                st.sampled_from(["main", "memory", "b"]),
                st.fixed_dictionaries(
                    {"url": TEXTS}, optional={key: VALUES for key in KEYS if key != "url"}
                ),
                max_size=2,
            )
            | VALUES,
            "defaults": st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=3) | VALUES,
        },
    )
)
def test_whatever_is_in_a_file_is_fine_or_a_data_error(scratch: Path, document: Any) -> None:
    scratch.write_text(json.dumps(document), "utf-8", "surrogatepass")
    try:
        policies = Policies(scratch)
    except DataError:
        return
    for name in policies:
        if isinstance(policies[name].store, MemoryStore):
            policies[name].limit("key")
    policies.close()
