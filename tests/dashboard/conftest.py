"""The browser, for tests that look at the page as its users do."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

#: As root a browser has no sandbox of its own; and it is to ask for nothing but the page.
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WIDE, NARROW = (1280, 900), (360, 740)


def chromium() -> str | None:
    """Where the browser is."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = ["/usr/bin/chromium", *[path for name in names if (path := shutil.which(name))]]
    return next((path for path in found if os.access(path, os.X_OK)), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, with a fresh profile."""
    path = chromium()
    if path is None:
        pytest.skip("there is no Chromium here: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        made = driver.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield made
        made.close()


class Looked:
    """A page, and whatever went wrong on it."""

    def __init__(self, page: Any, own: str) -> None:
        self.page = page
        self.wrong: list[str] = []
        page.on("pageerror", lambda error: self.wrong.append(f"error: {error}"))
        page.on("console", self._said)
        page.on("request", lambda each: self._asked(each.url, own))

    def _said(self, message: Any) -> None:
        # That an answer says no, or that there is none, is seen by the page, which shows it.
        failed = message.text.startswith("Failed to load resource")
        if message.type in ("error", "warning") and not failed:
            self.wrong.append(f"{message.type}: {message.text}")

    def _asked(self, url: str, own: str) -> None:
        if not url.startswith((own, "data:", "blob:")):
            self.wrong.append(f"asked for {url}")


Open = Callable[..., Any]


@pytest.fixture
def open_page(browser: Any) -> Iterator[Open]:
    """Opens a view of a dashboard; whatever went wrong on the page fails the test."""
    looked: list[Looked] = []
    with ExitStack() as stack:

        def open_view(
            url: str, view: str = "", size: tuple[int, int] = WIDE, **options: Any
        ) -> Any:
            width, height = size
            options["viewport"] = {"width": width, "height": height}
            script = options.pop("script", None)
            context = browser.new_context(**options)
            stack.callback(context.close)
            page = context.new_page()
            page.set_default_timeout(15_000)
            if script is not None:
                page.add_init_script(script)
            looked.append(Looked(page, url.partition("#")[0]))
            page.goto(f"{url}{view}")
            return page

        yield open_view
    assert [wrong for each in looked for wrong in each.wrong] == []


def number(page: Any, selector: str) -> int:
    """The number that an element shows."""
    text: str = page.locator(selector).first.inner_text()
    return int(text.replace(",", "").split()[0])


def admitted(page: Any, using: str) -> int:
    return number(page, f'[data-using="{using}"] dd >> nth=0')


def ready(page: Any) -> None:
    """Wait until a view has something to show."""
    page.wait_for_function(
        """() => {
            const text = (selector) => document.querySelector(selector)?.textContent ?? "";
            if (location.hash.startsWith("#/live")) return text("#limits tbody") !== "";
            if (location.hash.startsWith("#/key")) return text("#verdict") !== "";
            return !["", "–"].includes(text("#cards dd"));
        }"""
    )
