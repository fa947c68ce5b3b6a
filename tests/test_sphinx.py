"""The site is built without a warning, and what its pages promise to contributors holds."""

from __future__ import annotations

import enum
import importlib
import inspect
import os
import re
import shutil
import subprocess
import sys
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import pytest

from tests import test_contract
from tests.contract import Kind, Rig
from throttled.exceptions import SetUpError, StoreUnavailableError
from throttled.store import AsyncStore, Store

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
ARCHITECTURE = (DOCS / "architecture.md").read_text("utf-8")

#: Modules whose names are public; that of REST framework cannot be imported without a site.
MODULES = [
    "throttled",
    *[
        f"throttled.{name}"
        for name in (
            *("asyncio", "asyncio.hooks", "asyncio.policies", "asyncio.service", "asyncio.store"),
            *("contract", "dashboard", "exceptions", "hooks", "policies", "rate_limiter"),
            *("service", "service.serving", "simulation", "store", "testing", "utils"),
        )
    ],
    *[
        f"throttled.contrib.{path.stem}"
        for path in sorted((ROOT / "throttled" / "contrib").glob("*.py"))
        if path.stem
        in {
            *("aiohttp", "asgi", "django", "fastapi", "flask", "grpc", "headers", "httpx"),
            *("identity", "keys", "logging", "mcp", "otel", "prometheus", "requests", "wsgi"),
        }
    ],
]


#: What a class may have besides functions that is called, or read like a call.
OURS = (property, classmethod, staticmethod)


def block(language: str, beginning: str) -> str:
    """The block of the page on the architecture that begins like this."""
    found: list[str] = re.findall(
        rf"^```{language}\n(.*?)^```", ARCHITECTURE, re.DOTALL | re.MULTILINE
    )
    return next(each for each in found if each.startswith(beginning))


def python(*arguments: str, cwd: Path) -> str:
    """What a fresh interpreter says in a folder; it must end well."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(cwd)},
        capture_output=True,
        encoding="utf-8",
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5_000:] + done.stderr[-5_000:]
    return done.stdout + done.stderr


# -- the site -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` does."""
    makefile = (ROOT / "Makefile").read_text("utf-8")
    recipe = re.search(r"-m sphinx (.+) docs build/docs\n", makefile)
    assert recipe is not None
    out = tmp_path_factory.mktemp("site")
    said = python("-m", "sphinx", "-q", *recipe[1].split(), "docs", str(out), cwd=ROOT)
    assert not said
    return out


@pytest.mark.slow
def test_every_page_is_in_the_site(site: Path) -> None:
    pages = {path.relative_to(DOCS).with_suffix("") for path in DOCS.rglob("*.md")}
    assert len(pages) > 40
    for page in pages:
        assert (site / page.with_suffix(".html")).exists(), page


class Links(HTMLParser):
    """What a page links to, and what in it can be linked to."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.anchors: set[str] = set()
        self.feed(page.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.targets.append(value)
            elif name == "id" and value:
                self.anchors.add(value)


@pytest.mark.slow
def test_every_link_of_the_site_leads_somewhere(site: Path) -> None:
    pages = {page: Links(page) for page in site.rglob("*.html")}
    dead = []
    for page, links in pages.items():
        for target in links.targets:
            url = urlsplit(target)
            if url.scheme:
                continue
            file = (page.parent / unquote(url.path)).resolve() if url.path else page
            there = pages[file].anchors if file in pages else set()
            if not file.exists() or (file in pages and url.fragment and url.fragment not in there):
                dead.append(f"{page.name}: {target}")
    assert not dead


@pytest.mark.slow
def test_every_public_name_is_in_the_site(site: Path) -> None:
    inventory = (site / "objects.inv").read_bytes().split(b"\n", 4)
    names = [line.split()[0] for line in zlib.decompress(inventory[4]).decode().splitlines()]
    here = {name for name in names if name.startswith("throttled.")}
    public = [
        (f"{module.__name__}.{name}", getattr(module, name))
        for module in map(importlib.import_module, MODULES)
        for name in module.__all__
    ]
    # Once is enough for what several modules offer.
    documented = {id(value) for name, value in public if name in here}
    assert not [
        name
        for name, value in public
        if name not in here and id(value) not in documented and not inspect.ismodule(value)
    ]


def undocumented(name: str, value: Any) -> Iterator[str]:
    """What has no docstring of its own: a function, a class, or what can be called of it."""
    if not inspect.getdoc(value):
        yield name
    if not inspect.isclass(value) or issubclass(value, enum.Enum):
        return
    for each, member in vars(value).items():
        if each.startswith("_") or not (callable(member) or isinstance(member, OURS)):
            continue
        # An async store does what its sync twin does.
        twin = Store if value is AsyncStore else value
        if not inspect.getdoc(getattr(twin, each)):
            yield f"{name}.{each}"


def test_every_public_name_says_what_it_is_for() -> None:
    found = [
        missing
        for module in map(importlib.import_module, MODULES)
        for name in module.__all__
        if inspect.isclass(value := getattr(module, name)) or inspect.isroutine(value)
        for missing in undocumented(f"{module.__name__}.{name}", value)
    ]
    assert not found
    modules = [module for module in MODULES if not importlib.import_module(module).__doc__]
    assert not modules


def test_every_example_is_on_the_page_of_examples() -> None:
    page = (DOCS / "examples.md").read_text("utf-8")
    for example in (DOCS / "examples").glob("*.py"):
        assert f"](examples/{example.name})" in page


# -- the store of the page on the architecture ----------------------------------------------------


@pytest.fixture(scope="module")
def store_class() -> Any:
    names: dict[str, Any] = {}
    exec(block("python", "import json"), names)
    return names["SqliteStore"]


def test_the_examples_are_short() -> None:
    for language, beginning in [
        ("python", "import json"),
        ("python", '"""Anchored window'),
        ("lua", "-- The twin of anch"),
    ]:
        lines = [line for line in block(language, beginning).splitlines() if line.strip()]
        assert len(lines) < 60, beginning


@pytest.mark.parametrize(
    "test",
    [
        test_contract.test_admits_exactly_the_capacity_at_once,
        test_contract.test_promises_count_against_those_who_come_later,
        test_contract.test_retry_after_and_reset_after_are_exact_in_any_state,
        test_contract.test_remaining_is_admitted_and_one_more_is_not,
        test_contract.test_hammering_does_not_push_the_next_slot_away,
        test_contract.test_waiters_get_slots_in_the_order_of_asking,
        test_contract.test_a_waiting_call_moves_the_clock_to_its_slot,
        test_contract.test_a_wait_that_cannot_fit_returns_at_once,
        test_contract.test_a_cancelled_wait_does_not_block_a_fresh_key,
        test_contract.test_the_first_of_three_cancels_and_nobody_shares_a_slot,
        test_contract.test_what_was_given_up_returns_once_those_behind_are_served,
        test_contract.test_a_refund_of_what_was_taken_returns_it,
    ],
)
@pytest.mark.parametrize("algorithm", ["fixed_window", "sliding_window", "gcra"])
def test_the_store_keeps_the_contract(
    algorithm: str, test: Any, store_class: Any, tmp_path: Path
) -> None:
    rig = Rig(Kind("memory"), algorithm)
    rig.store = store_class(tmp_path / "limits.db", clock=rig.clock)
    test(rig)
    rig.close()


def test_two_connections_share_the_store(store_class: Any, tmp_path: Path) -> None:
    rig = Rig(Kind("memory"), "fixed_window")
    stores = [store_class(tmp_path / "limits.db", clock=rig.clock) for _ in range(2)]
    plan = rig.plan("5/m")
    taken = [stores[n % 2].run(plan, "key", 1, 0.0)[1] == 0 for n in range(8)]
    assert taken == [True] * 5 + [False] * 3
    for store in stores:
        store.close()


def test_the_store_says_what_it_cannot_do(store_class: Any, tmp_path: Path) -> None:
    rig = Rig(Kind("memory"))
    rig.store = store_class(tmp_path / "limits.db", clock=rig.clock)
    with pytest.raises(SetUpError, match="keeps no logs; use 'sliding_window'"):
        rig.limiter("5/m", using="sliding_window_log").limit("key")
    with pytest.raises(SetUpError, match="one rule at a time"):
        rig.limiter("5/m; 9/h")
    limiter = rig.limiter("5/m")
    rig.close()
    with pytest.raises(StoreUnavailableError, match="closed database"):
        limiter.limit("key")


# -- the algorithm of the page on the architecture ------------------------------------------------


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source, with the algorithm put in as the page says."""
    root = tmp_path_factory.mktemp("copy")
    for name in ("throttled", "tests", "docs"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", root)
    rules = root / "throttled" / "algorithms"
    (rules / "anchored_window.py").write_text(block("python", '"""Anchored window'), "utf-8")
    (rules / "anchored_window.lua").write_text(block("lua", "-- The twin of anch"), "utf-8")
    path = root
    before = ""
    for line in block("diff", "---").splitlines():
        if line.startswith("+++ b/"):
            path = root / line.removeprefix("+++ b/")
        elif line.startswith("+"):
            text = path.read_text("utf-8")
            old, new = f"{before[1:]}\n", f"{line[1:]}\n"
            assert text.count(old) == 1, before
            new = new if before.startswith("-") else old + new
            path.write_text(text.replace(old, new), "utf-8")
        before = line
    return root


@pytest.mark.slow
def test_the_algorithm_keeps_the_contract(copy: Path) -> None:
    said = python(
        *("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_contract.py"),
        *("-k", "anchored_window and (memory or fakeredis) and not async"),
        cwd=copy,
    )
    assert int(re.findall(r"(\d+) passed", said)[0]) > 40


HISTORIES = """
import random
import fakeredis
from throttled import MemoryStore, Throttled
from throttled.algorithms.plan import make_plan
from throttled.quota import Quota
from throttled.store import RedisStore
from throttled.testing import FakeClock

dice = random.Random(7)
decided = 0
with fakeredis.FakeRedis() as client:
    for number in range(40):
        clock = FakeClock()
        stores = MemoryStore(clock=clock), RedisStore(
            client=client, clock=clock, options={"DECISION_TIMEOUT": 30}
        )
        quota = Quota.parse(dice.choice(["5/s", "1/m", "7/100ms", "1000/h"]))
        plan = make_plan("anchored_window", quota)
        for _ in range(40):
            cost, patience = dice.choice([0, 1, 1, 2, 5]), dice.choice([0.0, 0.0, 2e6, 1e12])
            if dice.random() < 0.2:
                call = ("adjust", plan, f"key {number}", dice.choice([-3, -1, 1, 4]))
            else:
                call = ("run", plan, f"key {number}", cost, patience)
            answers = [getattr(store, call[0])(*call[1:]) for store in stores]
            if call[0] == "run":
                answers = [answer[1:4] for answer in answers]
                decided += 1
            assert answers[0] == answers[1], (call, answers)
            clock.advance(dice.choice([0, 0, 0.05, 0.3, 1.7, 90]))
            if dice.random() < 0.02:
                clock.set(clock.now - dice.choice([0.01, 3_600]))
        for store in stores:
            store.close()
print("decided alike:", decided)
"""


@pytest.mark.slow
def test_the_algorithm_answers_alike_in_python_and_lua(copy: Path) -> None:
    assert "decided alike: 1" in python("-W", "error", "-c", HISTORIES, cwd=copy)
