"""The contract that is exported: what it consists of, that it is true, that it does not change."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from datetime import timedelta
from hashlib import sha1, sha256
from pathlib import Path
from typing import Any

import pytest

import throttled
from tests.contract_clients.by_layout import ByLayout
from tests.servers import Server
from throttled import contract, quota
from throttled.algorithms import sliding_window_log
from throttled.algorithms.plan import ALGORITHMS, DEFAULT_PREFIX, HOLD, RULES, hold_plan, make_plan
from throttled.arguments import EVER, check_cost
from throttled.exceptions import DataError
from throttled.store.flight import BATCH
from throttled.store.script import SCRIPT, SCRIPT_SHA
from throttled.store.wire import Wording, escaped

PACKAGE = Path(throttled.__file__).parent


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("contract")
    contract.export(directory)
    return directory


# -- what is exported -----------------------------------------------------------------------------


def test_it_consists_of_what_is_used(tmp_path: Path) -> None:
    written = contract.export(tmp_path / "not" / "there yet")
    names = [path.relative_to(tmp_path / "not" / "there yet").as_posix() for path in written]
    vectors = [f"vectors/{name}.json" for name in (*ALGORITHMS, "joints")]
    assert sorted(names) == sorted(["decide.lua", "layout.json", "manifest.json", *vectors])
    content = {path.name: path.read_bytes() for path in written}
    assert content["decide.lua"] == SCRIPT.encode()
    assert sha1(content["decide.lua"]).hexdigest() == SCRIPT_SHA
    assert json.loads(content["layout.json"]) == contract.layout()
    assert json.loads(content["manifest.json"]) == contract.manifest()
    for name in vectors:
        assert content[Path(name).name] == (PACKAGE / "contract" / name).read_bytes()


def test_an_export_replaces_its_own_files_and_no_others(tmp_path: Path) -> None:
    (tmp_path / "decide.lua").write_text("old")
    (tmp_path / "mine.txt").write_text("kept")
    contract.export(str(tmp_path))
    contract.export(tmp_path)
    assert (tmp_path / "decide.lua").read_text("utf-8") == SCRIPT
    assert (tmp_path / "mine.txt").read_text() == "kept"


def test_a_bad_directory_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "vectors").write_text("the file of somebody else")
    for given in (file, file / "below", tmp_path / "taken"):
        with pytest.raises(DataError, match=r"Invalid directory: '.*', must be one to write into"):
            contract.export(given)
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["vectors"]
    for given in ("", None, 3):
        with pytest.raises(DataError, match=f"Invalid directory: {given!r}, must be the path"):
            contract.export(given)  # type: ignore[arg-type]


# -- that it does not change ----------------------------------------------------------------------


def test_it_is_the_one_recorded() -> None:
    assert contract.manifest() == contract.recorded(), "run `make contract`"
    assert [*contract.recorded()["history"]] == [str(n) for n in range(1, contract.VERSION + 1)]
    assert 0 <= contract.RELEASED <= contract.VERSION


def test_the_manifest_has_the_digests_that_sha256sum_prints(exported: Path) -> None:
    manifest = contract.manifest()
    names = sorted(
        path.relative_to(exported).as_posix()
        for path in exported.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    )
    lines = [f"{sha256((exported / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    assert [f"{digest}  {name}\n" for name, digest in manifest["sha256"].items()] == lines
    whole = sha256("".join(lines).encode()).hexdigest()
    assert manifest["history"][str(contract.VERSION)] == whole
    assert manifest["script_sha1"] == contract.layout()["script_sha1"] == SCRIPT_SHA
    assert manifest["version"] == contract.layout()["version"] == contract.VERSION


class Copy:
    """A copy of the package, to tamper with."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(PACKAGE, directory / "throttled", ignore=ignored)

    def change(self, path: str, old: str, new: str) -> None:
        file = self.directory / "throttled" / path
        text = file.read_text("utf-8")
        assert old in text
        file.write_text(text.replace(old, new, 1), "utf-8")

    def record(self, *words: str) -> tuple[int, str]:
        """`python -m throttled.contract`: how it ends, and what it says."""
        done = subprocess.run(
            [sys.executable, "-m", "throttled.contract", *words],
            cwd=self.directory,
            # Or an edit of the same size within a second would find the bytecode of before.
            env={
                **os.environ,
                "PYTHONPATH": str(self.directory),
                "PYTHONDONTWRITEBYTECODE": "1",
            },
            capture_output=True,
            encoding="utf-8",
            timeout=60,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    @property
    def recorded(self) -> dict[str, Any]:
        path = self.directory / "throttled" / "contract" / "manifest.json"
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return found


@pytest.mark.parametrize(
    ("file", "old", "new", "named"),
    [
        ("store/decide.lua", "slowest > 0 and", "slowest >= 0 and", "decide.lua, layout.json"),
        ("algorithms/hold.lua", "The twin of", "The Lua twin of", "decide.lua, layout.json"),
        ("contract/layout.json", '"rule", "limit"', '"limit", "rule"', "layout.json"),
        ("contract/vectors/gcra.json", '"wait": "0"', '"wait": "1"', "vectors/gcra.json"),
    ],
    ids=["script", "comment", "layout", "vectors"],
)
def test_what_is_changed_without_a_version_is_noticed(
    tmp_path: Path, file: str, old: str, new: str, named: str
) -> None:
    copy = Copy(tmp_path)
    before = copy.recorded
    assert copy.record("--check")[0] == 0
    copy.change(file, old, new)
    code, said = copy.record("--check")
    assert (code, said) == (
        1,
        f"The contract is not the one recorded: {named} changed. Run `make contract`.\n",
    )
    code, said = copy.record()
    assert code == 1
    assert said.startswith(f"Version 1 of the contract was recorded with other content: {named}")
    assert copy.recorded == before


def test_an_unpublished_version_may_be_recorded_again_and_a_published_one_may_not(
    tmp_path: Path,
) -> None:
    copy = Copy(tmp_path)
    before = copy.recorded
    (tmp_path / "throttled" / "contract" / "vectors" / "gcra.json").unlink()
    assert copy.record("--unreleased")[0] == 0
    assert copy.recorded["history"]["1"] != before["history"]["1"]
    assert copy.record("--check")[0] == 0

    copy.change("contract/__init__.py", "RELEASED: Final = 0", "RELEASED: Final = 1")
    copy.change("contract/layout.json", "byte for byte", "as it is")
    for words in ([], ["--unreleased"]):
        code, said = copy.record(*words)
        assert code == 1
        assert "was published, and is not what it was: layout.json changed. Raise VERSION" in said
    once = copy.recorded
    copy.change("contract/__init__.py", "VERSION: Final = 1", "VERSION: Final = 2")
    assert copy.record("--check")[0] == 1
    assert copy.record()[0] == 0
    assert copy.recorded["history"]["1"] == once["history"]["1"]
    assert [*copy.recorded["history"]] == ["1", "2"]

    copy.change("contract/__init__.py", "VERSION: Final = 2", "VERSION: Final = 1")
    code, said = copy.record("--unreleased")
    assert (code, said) == (1, "Version 1 of the contract is older than the newest recorded.\n")


# -- that it is true ------------------------------------------------------------------------------

LAYOUT = contract.layout()


def test_every_algorithm_and_rule_is_laid_out() -> None:
    rules = {name: rule.__name__.rpartition(".")[2] for name, rule in ALGORITHMS.items()}
    assert {name: each["rule"] for name, each in LAYOUT["algorithms"].items()} == rules
    assert LAYOUT["hold"]["name"] == LAYOUT["hold"]["rule"] == HOLD
    hold = hold_plan("p")
    assert [LAYOUT["hold"][name] for name in ("limit", "period", "burst")] == [
        hold.limit,
        hold.period,
        hold.burst,
    ]
    assert set(RULES) <= set(LAYOUT["states"])


def test_every_operation_is_laid_out() -> None:
    header = SCRIPT[SCRIPT.index("-- op, rule,") : SCRIPT.index("-- A group's reply")]
    assert LAYOUT["group"] == re.findall(r"\w+", header.splitlines()[0])
    operations = re.findall(r"^--   (\w+)[ +,]", header, re.MULTILINE)
    assert [*dict.fromkeys(operations)] == [*LAYOUT["operations"]]
    for operation in LAYOUT["operations"].values():
        assert {operation["a"], operation["b"]} <= set(LAYOUT["arguments"])
        assert operation["reply"] in LAYOUT["replies"]
    assert set(LAYOUT["together"]["operations"]) <= set(LAYOUT["operations"])


def test_the_ranges_are_those_of_the_library() -> None:
    arguments = LAYOUT["arguments"]
    most = quota.MAX_LIMIT
    assert (arguments["limit"]["from"], arguments["limit"]["to"]) == (1, most)
    assert (arguments["burst"]["from"], arguments["burst"]["to"]) == (1, most)
    assert (arguments["delta"]["from"], arguments["delta"]["to"]) == (-most, most)
    assert (arguments["cost"]["from"], arguments["cost"]["to"]) == (0, check_cost(10**12))
    assert int(arguments["patience"]["to"]) == EVER
    microsecond = timedelta(microseconds=1)
    shortest, longest = quota.MIN_PERIOD // microsecond, quota.MAX_PERIOD // microsecond
    assert (arguments["period"]["from"], arguments["period"]["to"]) == (shortest, longest)
    assert LAYOUT["algorithms"]["sliding_window_log"]["most"] == sliding_window_log.MOST
    assert LAYOUT["key"]["default_prefix"] == DEFAULT_PREFIX
    units = {names[0]: unit for unit, names in quota._UNITS}
    assert LAYOUT["quota"]["units"] == units


def test_the_states_in_the_vectors_have_the_fields_of_the_layout() -> None:
    states = LAYOUT["states"]
    for algorithm, each in LAYOUT["algorithms"].items():
        form = states[each["rule"]]
        vectors = json.loads(contract.files()[f"vectors/{algorithm}.json"])
        steps = [step for timeline in vectors["timelines"] for step in timeline["steps"]]
        found = [step["state"] for step in steps if step["state"] is not None]
        if form["type"] == "list":
            size = len(form["entry"])
            ends = {(state[-1].startswith("-"), len(state) % size) for state in found}
            assert ends == {(False, len(form["end"]) % size), (True, len(form["behind"]) % size)}
        else:
            counts = {len(line.split(states["separator"])) for (line,) in found}
            assert counts == {len(form[name]) for name in ("fields", "promised") if name in form}


@pytest.mark.server
def test_replies_and_expiry_are_as_laid_out(exported: Path, server: Server) -> None:
    by = ByLayout(exported)
    replies, expiry = by.layout["replies"], by.layout["expiry"]
    forms = replies["decision"]
    with server.client(decode_responses=True) as client:

        def ask(op: str, quota_text: str, a: Any, b: Any = 0) -> Any:
            plan = by.plan("gcra", quota_text, "laid-out")
            groups = [by.group(op, plan, a, b)]
            # The whole script each time: whether the server knows it is not the subject.
            return client.execute_command(*by.words([by.key(plan, "k")], groups, source=True))[0]

        assert ask("admit", "10/h", 4) == [0, 6, 1_440_000_000]
        name = "laid-out:v1:gcra:3600000000:{k}"
        assert 0 < client.pttl(name) <= 1_440_000
        booked = dict(zip(forms["booked"], ask("ticket", "10/h", 2), strict=True))
        assert booked["wait"] == 0
        assert booked["written"] == client.get(name)
        assert booked["written"].split()[0] == str(booked["slot"])
        assert ask("undo", "10/h", booked["written"], booked["before"]) == 1
        assert client.get(name) == booked["before"]
        assert ask("undo", "10/h", booked["written"], booked["before"]) == 0
        assert len(ask("ticket", "10/h", 0)) == len(forms["told"])
        never = ask("admit", "10/h", 11, by.layout["arguments"]["patience"]["to"])
        assert never[:2] == ["inf", 6]
        assert never[2].isdigit()
        assert ask("reset", "10/h", "", "") == 1
        assert ask("reset", "10/h", "", "") == 0
        # The longest that anything lasts, beyond what an integer of the script can hold.
        far = "laid-out:v1:gcra:31622400000000:{k}"
        assert ask("admit", "1/366d burst 1000000000", 10**9) == ["0", 0, "3.16224e+22"]
        assert 0 <= expiry["most"] - client.pttl(far) < 60_000
        client.set(name, "not a state")
        assert ask("admit", "10/h", 1).startswith(replies["damaged"][0])
        client.delete(name)
        client.rpush(name, "x")
        assert ask("admit", "10/h", 1).startswith(replies["damaged"][1])
        client.delete(name, far)


# -- what docs/contract.md says -------------------------------------------------------------------

DOCUMENT = (Path(__file__).parents[1] / "docs" / "contract.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", DOCUMENT, re.DOTALL | re.MULTILINE)


def printed(reply: Any, indent: str = "") -> str:
    """A reply as redis-cli prints it."""
    if isinstance(reply, int):
        return f"(integer) {reply}\n"
    if not isinstance(reply, list):
        return f'"{reply}"\n'
    lines = [f"{place}) {printed(item, indent + '   ')}" for place, item in enumerate(reply, 1)]
    return indent.join(lines)


@pytest.mark.server
def test_the_calls_of_the_document_are_answered_as_it_says(server: Server) -> None:
    text = "".join(blocks("console"))
    asked = re.findall(r"^\$ redis-cli (EVALSHA .*)\n((?:[^$\n].*\n)*)", text, re.MULTILINE)
    assert len(asked) == text.count("$ redis-cli EVALSHA") == 6
    with server.client(decode_responses=True) as client:
        client.delete("throttled:v1:token_bucket:60000000:{alice}")
        sha = client.script_load(SCRIPT)
        for command, expected in asked:
            reply = client.execute_command(*shlex.split(command.replace("$sha", sha)))
            assert printed(reply) == expected
        for command, _ in asked:
            _, _, width, *words = shlex.split(command)
            client.delete(*words[: int(width)])


def test_the_bytes_of_the_document_are_those_sent() -> None:
    (block,) = blocks("text")
    plan = make_plan("token_bucket", quota.per_min(60))
    sent = Wording(plan).asking("alice", 1, 0.0).decode()
    assert block.replace("\n", "").replace("<script_sha1>", SCRIPT_SHA) == sent.replace(
        "\r\n", r"\r\n"
    )


def test_the_keys_of_the_document_are_those_made() -> None:
    rows = re.findall(r"^\| .* \| `(\w+:v1:.*)` \|$", DOCUMENT, re.MULTILINE)
    day = quota.per_day(5)
    assert rows == [
        f"{plan.prefix}{{{escaped(key)}}}"
        for plan, key in (
            (make_plan("gcra", quota.per_sec(5)), "alice"),
            (make_plan("fixed_window", day, "app", "tokens"), "50%{x}"),
            (hold_plan("app"), "alice"),
        )
    ]
    mark = Wording(make_plan("gcra", quota.per_sec(5), "app")).mark("carol", "charge-17")
    assert f"`{mark.decode().splitlines()[1]}`" in DOCUMENT


def test_the_numbers_of_the_document_are_right() -> None:
    timelines = [
        timeline
        for name, content in contract.files().items()
        if name.startswith("vectors/")
        for timeline in json.loads(content)["timelines"]
    ]
    steps = sum(len(timeline["steps"]) for timeline in timelines)
    assert f"{steps:,} steps" in DOCUMENT
    assert f'{{"timelines":{len(timelines)},"steps":{steps},"failures":[]}}' in DOCUMENT
    assert f"at most {BATCH} at once" in DOCUMENT
    assert f"{int(EVER)}" in DOCUMENT
    for name, each in LAYOUT["algorithms"].items():
        burst = "the limit again" if each["burst"] == "limit" else "the (?:burst|same)"
        assert re.search(rf"^\| `{name}` +\| `{each['rule']}` +\| {burst}", DOCUMENT, re.MULTILINE)
    for name in LAYOUT["operations"]:
        assert re.search(rf"^\| `{name}` ", DOCUMENT, re.MULTILINE)
