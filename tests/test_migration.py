"""What the pages of docs/migration say of this library; what they say of others: `make migration`.

Their own blocks run with those of the other documents.
"""

from __future__ import annotations

import pytest

from tests.migration.calls import problems
from tests.migration.packages import OUR_IMPORTS, OURS, PACKAGES
from tests.migration.pages import FOLDER, Page

PAGES = [Page.read(FOLDER / f"{name}.md") for name in PACKAGES]


def test_every_page_is_about_a_package() -> None:
    pages = {path.stem for path in FOLDER.glob("*.md")} - {"README"}
    assert pages == set(PACKAGES)


def test_the_first_page_leads_to_all_others() -> None:
    text = (FOLDER / "README.md").read_text("utf-8")
    assert not [name for name in PACKAGES if f"({name}.md)" not in text]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path.stem)
def test_a_page_says_which_version_it_is_about(page: Page) -> None:
    assert PACKAGES[page.path.stem].version in page.text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path.stem)
def test_calls_in_a_table_could_be_made(page: Page) -> None:
    calls = page.calls(old=False)
    assert len(calls) > 5
    assert len(page.calls(old=True)) > 5
    assert not problems([*OUR_IMPORTS, *page.imports(old=False)], OURS, calls)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path.stem)
def test_what_prints_the_same_is_followed_by_its_successor(page: Page) -> None:
    assert all(old.old and not new.old for old, new in page.pairs())


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("throttle.limits('key')", "no 'limits' in Throttled"),
        ("throttle.limit('key', costs=2)", "unexpected keyword argument 'costs'"),
        ("throttle.limit('key').state.retries", "no 'retries' in RateLimitState"),
        ("thottle.limit('key')", "nobody says what 'thottle' is"),
        ("from throttled import Throttle", "no 'Throttle' in"),
        ("throttle.limit(", "'(' was never closed"),
        ("with throttle.reserv('key') as reservation:", "no 'reserv'"),
    ],
)
def test_a_call_that_could_not_be_made_is_found(text: str, complaint: str) -> None:
    [problem] = problems(OUR_IMPORTS, OURS, [text])
    assert complaint in problem


@pytest.mark.parametrize(
    "text",
    [
        "throttle.limit('key', cost=2).state.retry_after",
        "throttle.quota = '1/s'",
        "@throttle",
        "with throttle as result:",
        "await throttle.limit(key)",
        "from throttled.store import RedisStore",
    ],
)
def test_a_call_that_could_be_made_is_fine(text: str) -> None:
    assert not problems(OUR_IMPORTS, OURS, [text])
