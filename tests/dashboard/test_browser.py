"""The page in a real browser: what it shows, and how it is used."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.dashboard.conftest import NARROW, WIDE, Open, admitted, number, ready
from tests.dashboard.processes import dashboard, service
from tests.dashboard.sites import TOKEN, Site, site, until
from tests.servers import HOST, free_port
from throttled import MemoryStore, RedisStore, Throttled
from throttled.dashboard import Dashboard
from throttled.exceptions import StoreUnavailableError
from throttled.quota import RateLimiterType
from throttled.service import Client

pytestmark = [pytest.mark.slow, pytest.mark.realtime]

VIEWS = ("#/simulator", "#/live", "#/key?policy=search&key=user%3A1")
AXE = Path(__file__).parent / "vendor" / "axe.min.js"


@pytest.fixture(scope="module")
def demo() -> Iterator[str]:
    """With nothing given but a token."""
    with dashboard("--token", TOKEN) as (_, made):
        yield made.url


@pytest.fixture(scope="module")
def own() -> Iterator[tuple[Site, dict[str, Any]]]:
    """An application's own limits."""
    store = MemoryStore()
    limits: dict[str, Any] = {
        "api": Throttled(quota="5/h", using="fixed_window", store=store),
        "both": Throttled(quota="2/s; 100/h", using="gcra", store=store),
    }
    with site(Dashboard(limits, tokens=(TOKEN,))) as made:
        yield made, limits


# -- the simulator ---------------------------------------------------------------------------------


def test_with_nothing_given_there_is_life(demo: str, open_page: Open) -> None:
    page = open_page(demo)
    until(lambda: page.title() == "Simulator · throttled")
    ready(page)
    until(lambda: all(admitted(page, using) > 3 for using in RateLimiterType.choice()))
    assert "of 20 tokens" in page.locator('[data-using="token_bucket"] .words').inner_text()
    inked = page.evaluate(
        """() => [...document.querySelectorAll("canvas")].map((each) =>
            each.getContext("2d").getImageData(0, 0, each.width, each.height).data.some(Boolean))"""
    )
    assert len(inked) == 9  # six pictures, two charts, and that of the live view
    assert all(inked[:8])
    page.get_by_role("link", name="Live").click()
    until(lambda: page.locator("#limits tbody tr").count() == 4)
    until(lambda: float(page.locator("#tiles dd").first.inner_text().replace("–", "0")) > 5)


def test_the_setting_is_changed(demo: str, open_page: Open) -> None:
    page = open_page(demo, "#/simulator")
    ready(page)
    page.get_by_role("checkbox", name="GCRA").uncheck()
    until(lambda: page.locator("[data-using]").count() == 5)
    page.locator("#setting [name=quota]").fill("3/m")
    page.locator("#setting [name=burst]").fill("")
    page.get_by_label("Traffic").select_option("steady")
    until(lambda: "of 3 tokens" in page.locator('[data-using="token_bucket"]').inner_text())
    assert "quota=3%2Fm&burst=&traffic=steady" in page.url
    page.locator("#setting [name=quota]").fill("lots")
    problem = page.locator("#setting-problem")
    until(lambda: "'lots" in problem.inner_text())
    assert page.locator("#setting [name=quota]").get_attribute("aria-invalid") == "true"
    page.locator("#setting [name=quota]").fill("4/m")
    until(lambda: not problem.inner_text())


def test_calls_are_sent_by_hand_and_the_scene_pauses(demo: str, open_page: Open) -> None:
    page = open_page(demo, "#/simulator?quota=5/h&burst=5&traffic=none")
    ready(page)
    page.get_by_role("button", name="Send a call").click()
    until(lambda: admitted(page, "gcra") == 1)
    page.get_by_role("button", name="Send 10").click()
    until(lambda: admitted(page, "gcra") == 5)
    assert number(page, '[data-using="fixed_window"] dd >> nth=1') == 6
    assert "min" in page.locator('[data-using="gcra"] dd').nth(3).inner_text()
    pause = page.get_by_role("button", name="Pause")
    pause.click()
    assert pause.get_attribute("aria-pressed") == "true"
    page.get_by_role("button", name="Send a call").click()
    until(lambda: number(page, '[data-using="fixed_window"] dd >> nth=1') == 7)


def test_a_link_brings_the_scene_back(demo: str, open_page: Open) -> None:
    page = open_page(demo, "#/simulator")
    ready(page)
    page.get_by_label("Traffic").select_option("poisson")
    page.get_by_label("Seed").fill("42")
    page.get_by_role("checkbox", name="leaking bucket").uncheck()
    address = "location.href"
    until(lambda: "seed=42" in page.evaluate(address) and "leaking" not in page.evaluate(address))
    other = open_page(page.evaluate(address))
    ready(other)
    for each in (page, other):
        assert each.get_by_label("Seed").input_value() == "42"
        assert each.get_by_label("Traffic").input_value() == "poisson"
        assert each.locator("[data-using]").count() == 5
    # So does coming back from another view.
    page.get_by_role("link", name="Live").click()
    page.get_by_role("link", name="Simulator").click()
    until(lambda: "seed=42" in page.evaluate(address))
    wrong = open_page(demo, "#/simulator?quota=oops&speed=7")
    until(lambda: "'oops" in wrong.locator("#setting-problem").inner_text())
    assert wrong.get_by_label("Speed").input_value() == "7"
    wrong = open_page(demo, "#/simulator?using=gcra,magic")
    until(lambda: "'magic'" in wrong.locator("#setting-problem").inner_text())
    wrong.get_by_role("checkbox", name="token bucket").check()
    until(lambda: wrong.locator("[data-using]").count() == 2)


# -- live ------------------------------------------------------------------------------------------


def test_a_service_is_watched(tmp_path: Path, open_page: Open) -> None:
    with (
        service(tmp_path) as (address, stats),
        dashboard("--service", address, "--stats", stats) as (_, made),
        Client(address) as client,
    ):
        api = client.policy("api")
        for _ in range(7):
            api.limit("ann")
        page = open_page(made.url)
        until(lambda: page.title() == "Live · throttled")
        row = page.locator("#limits tbody tr", has_text="api").first
        until(lambda: row.locator("td").nth(3).inner_text() == "2")
        assert row.locator("td").nth(2).inner_text() == "5"
        assert "5/h fixed window" in row.inner_text()
        assert "closed" in page.locator("#stores").inner_text()
        page.locator("#keys").get_by_role("link", name="ann").click()
        until(lambda: "fits in" in page.locator("#verdict").inner_text())
        assert page.locator("#look [name=key]").input_value() == "ann"
        assert page.locator("#reset").is_hidden()  # there is no token
        assert "does not show" in page.locator("#stored").inner_text()
        page.close()  # before what it watches


def test_a_thousand_keys_are_listed_a_few_at_a_time(open_page: Open) -> None:
    store = MemoryStore()
    limits = {f"limit{n}": Throttled(quota="5/h", store=store) for n in range(50)}
    app = Dashboard(limits)  # which counts from now on
    for name, limit in limits.items():
        for each in range(20):
            limit.limit(f"{name}-user{each}")
    with site(app) as made:
        page = open_page(made.url, "#/live")
        until(lambda: "25 of 1,000 keys" in page.locator("#keys-count").inner_text())
        assert page.locator("#keys tbody tr").count() == 25
        page.get_by_role("button", name="Show more").click()
        until(lambda: page.locator("#keys tbody tr").count() == 100)
        page.get_by_role("button", name="Show more").click()
        until(lambda: page.locator("#keys tbody tr").count() == 400)
        page.get_by_role("button", name="Show more").press("Enter")
        until(lambda: page.locator("#keys tbody tr").count() == 1000)
        # Whoever uses the keyboard goes on with the next of them.
        assert page.evaluate("document.activeElement.closest('tr').rowIndex") == 401
        page.get_by_label("Find").fill("limit7-")
        until(lambda: "20 of 20 keys" in page.locator("#keys-count").inner_text())
        assert page.get_by_role("button", name="Show more").is_hidden()
        page.get_by_label("Show").select_option("refused")
        until(lambda: "No keys" in page.locator("#keys-count").inner_text())
        page.close()


def test_nothing_slips_away_under_the_pointer(open_page: Open) -> None:
    limit = Throttled(quota="5/h", store=MemoryStore())
    app = Dashboard({"api": limit})
    for calls in (3, 2):
        for _ in range(calls):
            limit.limit(f"user{calls}")
    with site(app) as made:
        page = open_page(made.url, "#/live")
        rows = page.locator("#keys tbody tr")
        until(lambda: rows.count() == 2)

        def order() -> list[str]:
            return [line.split()[0] for line in rows.all_inner_texts()]

        def told() -> bool:
            return bool("9" in rows.all_inner_texts()[order().index("user2")])

        rows.nth(1).hover()
        for _ in range(7):
            limit.limit("user2")
        until(told)
        assert order() == ["user3", "user2"]
        page.mouse.move(1, 1)
        until(lambda: order() == ["user2", "user3"])
        page.close()


def test_a_dashboard_that_is_gone_is_missed_until_it_is_back(open_page: Open) -> None:
    listen = ("--listen", f"{HOST}:{free_port()}")
    views = (
        ("#/simulator", "#status"),
        ("#/live", "#live-problem"),
        ("#/key?policy=search&key=nobody", "#look-problem"),
    )
    with dashboard(*listen) as (_, made):
        opened = [(open_page(made.url, view), where) for view, where in views]
        for page, _ in opened:
            ready(page)
            page.locator("body").evaluate("() => { globalThis.same = true }")
    for page, where in opened:
        until(lambda p=page, w=where: "does not answer" in p.locator(w).inner_text())
    assert opened[1][0].locator("#live-seen").get_attribute("class") == "stale"
    with dashboard(*listen):
        for page, where in opened:
            until(lambda p=page, w=where: not p.locator(w).inner_text())
            assert page.evaluate("same")
            page.close()


def test_what_goes_on_is_announced_once(open_page: Open) -> None:
    store = RedisStore(f"redis://{HOST}:{free_port()}/0")
    limit = Throttled(quota="5/h", store=store)
    for _ in range(3):
        with pytest.raises(StoreUnavailableError):
            limit.limit("ann")
    with site(Dashboard({"api": limit})) as made:
        page = open_page(made.url, "#/key?policy=api&key=ann")
        problem = page.locator("#look-problem")
        until(lambda: "left alone" in problem.inner_text())
        page.evaluate(
            """() => {
                globalThis.said = 0;
                for (const each of document.querySelectorAll("[role=alert], [role=status]")) {
                    const watch = new MutationObserver((list) => (said += list.length));
                    watch.observe(each, { childList: true, characterData: true, subtree: true });
                }
            }"""
        )
        page.wait_for_timeout(2200)
        # The breaker tries now and then, which is another text.
        assert page.evaluate("said") <= 2
        page.close()
    store.close()


# -- keys ------------------------------------------------------------------------------------------


def test_a_key_is_looked_up_and_counts_down(own: Any, open_page: Open) -> None:
    made, limits = own
    limits["both"].limit("cid", 2)
    page = open_page(made.url, "#/key")
    page.locator("#look [name=policy]").select_option("both")
    page.locator("#look [name=key]").fill("cid")
    page.locator("#look [name=cost]").fill("100")
    page.get_by_role("button", name="Look up").click()
    until(lambda: "never" in page.locator("#verdict").inner_text())
    assert "policy=both&key=cid&cost=100" in page.url or "key=cid" in page.url
    rows = page.locator("#rules tbody tr")
    assert [rows.nth(n).locator("th").inner_text() for n in (0, 1)] == ["2/s", "100/h"]
    until(lambda: "98" in rows.nth(1).inner_text())
    full = rows.nth(1).locator("td").nth(4)
    first = full.inner_text()
    assert first.startswith("1 min")
    until(lambda: full.inner_text() != first)
    held = page.locator("#stored").inner_text()
    assert "throttled:v1:gcra:3600000000:cid" in held
    assert "credit" in held
    page.locator("#look [name=cost]").fill("x")
    page.get_by_role("button", name="Look up").click()
    until(lambda: "Invalid cost: 'x'" in page.locator("#look-problem").inner_text())


def test_what_is_no_ordinary_key(own: Any, open_page: Open) -> None:
    made, limits = own
    page = open_page(made.url, "#/key?policy=nowhere&key=ann")
    until(lambda: "no limit 'nowhere'" in page.locator("#look-problem").inner_text())
    keys = ("<script>wrong()</script>", "ünïcode \u202e ☃", "k" * 4000)
    for key in keys:
        limits["api"].limit(key)
        page.locator("#look [name=policy]").select_option("api")
        page.locator("#look [name=key]").fill(key)
        page.get_by_role("button", name="Look up").click()
        ready(page)
        until(lambda k=key: k[:9] in page.locator("#stored code").inner_text())
        assert len(page.locator("#stored").inner_text()) < 400
        assert page.evaluate("document.documentElement.scrollWidth") <= WIDE[0]
    page.get_by_role("button", name="Reset this key").click()
    assert "(4,000 characters)" in page.get_by_role("dialog").inner_text()


def test_keys_of_a_service_whose_limits_nobody_tells(tmp_path: Path, open_page: Open) -> None:
    nowhere = f"http://{HOST}:{free_port()}/stats"
    with (
        service(tmp_path) as (address, _),
        dashboard("--service", address, "--stats", nowhere) as (_, made),
    ):
        page = open_page(made.url)
        until(lambda: "cannot be had" in page.locator("#live-problem").inner_text())
        page.get_by_role("link", name="Keys").click()
        page.get_by_role("textbox", name="Limit").fill("api")
        page.locator("#look [name=key]").fill("ann")
        page.keyboard.press("Enter")
        ready(page)
        assert "fits now" in page.locator("#verdict").inner_text()
        page.close()


def test_a_key_is_reset_with_the_token_alone(own: Any, open_page: Open) -> None:
    made, limits = own
    limits["api"].limit("dan", 5)
    page = open_page(made.url, "#/key?policy=api&key=dan")
    ready(page)
    page.get_by_role("button", name="Reset this key").click()
    dialog = page.get_by_role("dialog")
    assert 'Key "dan" of api.' in dialog.inner_text()
    dialog.get_by_role("button", name="Leave it").click()
    assert dialog.is_hidden()
    page.get_by_role("button", name="Reset this key").click()
    dialog.get_by_label("Token").fill("wrong")
    dialog.get_by_role("button", name="Reset", exact=True).click()
    until(lambda: "missing or wrong" in dialog.inner_text())
    assert limits["api"].peek("dan").remaining == 0
    dialog.get_by_label("Token").fill(TOKEN)
    dialog.get_by_role("button", name="Reset", exact=True).click()
    until(lambda: "fits now" in page.locator("#verdict").inner_text())
    assert limits["api"].peek("dan").remaining == 5
    assert "reset" in page.locator("#status").inner_text()
    kept = page.evaluate("JSON.stringify([localStorage, sessionStorage, document.cookie])")
    assert TOKEN not in kept


def test_by_keyboard_alone(own: Any, open_page: Open) -> None:
    made, limits = own
    limits["api"].reset("eve")
    limits["api"].limit("eve", 5)
    page = open_page(made.url, "#/live")
    ready(page)
    press = page.keyboard.press

    def at(selector: str) -> None:
        """Press Tab until there."""
        for _ in range(40):
            press("Tab")
            if page.evaluate("(it) => document.activeElement.matches(it)", selector):
                shape = "getComputedStyle(document.activeElement).outlineStyle"
                assert page.evaluate(shape) != "none"
                return
        raise AssertionError(f"no way to {selector}")

    press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    at('a[data-view="key"]')
    press("Enter")
    until(lambda: page.locator("#look select option").count() >= 2)
    page.locator("#look input[name=key]").focus()
    page.keyboard.type("eve")
    press("Enter")
    ready(page)
    at("#reset")
    press("Enter")
    assert page.evaluate("document.activeElement.name") == "token"
    press("Escape")
    assert page.get_by_role("dialog").is_hidden()
    assert page.evaluate("document.activeElement.id") == "reset"
    press("Enter")
    page.keyboard.type(TOKEN)
    press("Enter")
    until(lambda: "fits now" in page.locator("#verdict").inner_text())


def test_the_simulator_by_keyboard_alone(demo: str, open_page: Open) -> None:
    page = open_page(demo, "#/simulator?traffic=none")
    ready(page)
    press = page.keyboard.press

    def at(name: str) -> None:
        for _ in range(40):
            press("Tab")
            if page.evaluate("(it) => document.activeElement.matches(it)", name):
                return
        raise AssertionError(f"no way to {name}")

    at("[name=quota]")
    page.keyboard.type("7/m")
    at("[name=burst]")
    press("Delete")
    until(lambda: "of 7 tokens" in page.locator('[data-using="token_bucket"]').inner_text())
    at("[value=gcra]")
    press("Space")
    until(lambda: page.locator("[data-using]").count() == 5)
    at("[data-send='10']")
    press("Enter")
    until(lambda: admitted(page, "token_bucket") == 7)
    at("#pause")
    press("Space")
    assert page.locator("#pause").get_attribute("aria-pressed") == "true"
    # There is a way out, too: to the end of the page and to its beginning again.
    at(".skip")


# -- how it looks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_every_view_is_sound(
    demo: str, open_page: Open, size: tuple[int, int], scheme: str
) -> None:
    page = open_page(
        demo,
        size=size,
        color_scheme=scheme,
        script="""
            globalThis.shifts = 0;
            new PerformanceObserver((list) => {
                for (const each of list.getEntries()) {
                    if (!each.hadRecentInput) shifts += each.value;
                }
            }).observe({ type: "layout-shift", buffered: true });""",
    )
    for view in VIEWS:
        page.evaluate("(to) => (location.hash = to)", view)
        ready(page)
        page.evaluate("shifts = 0")
        page.wait_for_timeout(1200 if scheme == "light" else 400)
        assert page.evaluate("shifts") < 0.01, view
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0], view
        beyond = "(all) => all.filter((each) => each.scrollWidth > each.clientWidth).length"
        assert page.locator(".scroll").evaluate_all(beyond) == 0, view
        page.evaluate(AXE.read_text("utf-8"))
        found = page.evaluate("axe.run(document)")
        assert [(each["id"], each["nodes"][0]["html"]) for each in found["violations"]] == [], view
    light = page.evaluate("getComputedStyle(document.body).backgroundColor").split("(")[1]
    assert (int(light.split(",")[0]) > 128) == (scheme == "light")


def test_little_motion_for_those_who_want_little(demo: str, open_page: Open) -> None:
    drawn: list[int] = []
    for wish in ("no-preference", "reduce"):
        page = open_page(
            demo,
            "#/simulator?using=gcra",
            reduced_motion=wish,
            script="""
                globalThis.drawn = 0;
                const draw = CanvasRenderingContext2D.prototype.setTransform;
                CanvasRenderingContext2D.prototype.setTransform = function (...given) {
                    globalThis.drawn++;
                    return draw.apply(this, given);
                };""",
        )
        ready(page)
        before = page.evaluate("drawn")
        page.wait_for_timeout(1200)
        drawn.append(page.evaluate("drawn") - before)
        page.close()
    assert drawn[0] > 5 > 3 > drawn[1]


def test_memory_stays_as_it_is(demo: str, open_page: Open) -> None:
    page = open_page(demo, "#/simulator?quota=50/s&burst=60&traffic=steady&rate=150")
    ready(page)
    session = page.context.new_cdp_session(page)

    def used() -> int:
        for _ in range(3):
            session.send("HeapProfiler.collectGarbage")
        size: int = session.send("Runtime.getHeapUsage")["usedSize"]
        return size

    page.wait_for_timeout(2000)
    first = admitted(page, "gcra")  # the tool that looks takes room as well
    before = used()
    page.wait_for_timeout(6000)
    after = used()
    assert admitted(page, "gcra") - first > 200
    assert after - before < 300_000
