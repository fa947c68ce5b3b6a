"""What the dashboard answers, to whom, and what it lets nobody do."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from tests.dashboard.sites import PATIENCE, TOKEN, Site, site, until
from throttled import MemoryStore, Throttled
from throttled.asyncio import Throttled as AsyncThrottled
from throttled.dashboard import Dashboard
from throttled.dashboard.guard import HEADER, LOOPBACK, Names
from throttled.dashboard.sources import OwnLimits
from throttled.exceptions import SetUpError


class Hiding(MemoryStore):
    """Keys on it are to be shown nowhere."""

    hides_keys = True


@pytest.fixture(scope="module")
def limits() -> dict[str, Any]:
    store = MemoryStore()
    return {
        "api": Throttled(quota="5/h", using="fixed_window", store=store),
        "both": AsyncThrottled(quota="2/s; 100/h", using="gcra", store=store),
        "secret": Throttled(quota="3/h", store=Hiding()),
    }


@pytest.fixture(scope="module")
def open_site(limits: dict[str, Any]) -> Iterator[Site]:
    """With a token."""
    with site(Dashboard(limits, tokens=(TOKEN,))) as made:
        yield made


@pytest.fixture(scope="module")
def read_only() -> Iterator[Site]:
    with site(Dashboard({"api": Throttled(quota="5/h", store=MemoryStore())})) as made:
        yield made


def said(caplog: pytest.LogCaptureFixture) -> str:
    """What the dashboard has logged, and nobody else: a client may log what it asks for."""
    ours = [each.getMessage() for each in caplog.records if each.name.startswith("throttled")]
    assert ours
    return "\n".join(ours)


def test_every_answer_lets_the_page_load_nothing_from_elsewhere(open_site: Site) -> None:
    paths = ["", "api/about", "static/style.css", "static/js/main.js", "nowhere", "static/nowhere"]
    for path in paths:
        answer = open_site.get(path)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "set-cookie" not in answer.headers
        assert "server" not in answer.headers or "/" not in answer.headers["server"]


def test_the_page_has_no_script_and_no_style_of_its_own(open_site: Site) -> None:
    page = open_site.get("").text
    assert "<style" not in page
    assert " style=" not in page
    assert page.count("<script") == page.count("<script src=")
    assert "http://" not in page
    assert "https://" not in page


def test_what_is_not_there(open_site: Site) -> None:
    assert open_site.get("nowhere").status_code == 404
    assert open_site.get("static/../app.py").status_code == 404
    assert open_site.get("static/%2e%2e/app.py").status_code == 404
    assert open_site.get("api/reset").status_code == 405
    assert open_site.get("api/scenes/none").json() == {
        "error": "This scene is over. Begin a new one."
    }


def test_mounted_in_an_application_of_somebody_elses() -> None:
    app = Starlette()
    app.mount("/throttled", Dashboard({"api": Throttled(quota="5/h", store=MemoryStore())}))
    with site(app, "/throttled") as made:
        assert "Simulator" in made.get("").text
        assert made.get("static/js/main.js").status_code == 200
        assert made.get("api/about").json()["source"] == "this process"
        bare = made.client.get(made.url.rstrip("/"))
        assert bare.status_code == 307
        assert bare.headers["location"].endswith("/throttled/")
        assert made.told("api/live")[0]["stats"]["policies"]["api"]["allowed"] == 0


# -- what is counted -------------------------------------------------------------------------------


def test_live_tells_what_stats_of_a_service_tells(open_site: Site, limits: Any) -> None:
    for _ in range(6):
        limits["api"].limit("ann")
    told = open_site.told("api/live")[0]
    assert told["error"] is None
    policies = told["stats"]["policies"]
    assert list(policies) == ["api", "both", "secret"]
    api = policies["api"]
    assert (api["allowed"], api["refused"], api["errors"], api["waiting"]) == (5, 1, 0, 0)
    assert api["rules"] == [
        {"quota": "5/h", "algorithm": "fixed_window", "cost": None, "name": None}
    ]
    assert api["keys"]["busiest"]["top"] == [{"key": "ann", "calls": 6}]
    assert api["keys"]["most_refused"]["top"] == [{"key": "ann", "refused": 1}]
    assert told["stats"]["stores"]["memory"]["state"] == "closed"


def test_hidden_keys_are_told_as_digests(open_site: Site, limits: Any) -> None:
    limits["secret"].limit("bob@example.org")
    with open_site.client.stream("GET", "api/live") as answer:
        line = next(each for each in answer.iter_lines() if each.startswith("data"))
    assert '"hides_keys":true' in line
    assert "sha256:" in line
    assert "bob" not in line


def test_one_look_a_second_serves_all_viewers() -> None:
    looks = 0

    class Counting(OwnLimits):
        async def stats(self) -> dict[str, Any]:
            nonlocal looks
            looks += 1
            return await super().stats()

    dashboard = Dashboard(source=Counting({}))
    with site(dashboard) as made:
        with made.client.stream("GET", "api/live") as one:
            with made.client.stream("GET", "api/live") as other:
                lines = one.iter_lines(), other.iter_lines()
                for _ in range(4):
                    assert all(next(line) is not None for line in lines)
            assert looks <= 3
        until(lambda: not len(dashboard._streams))
        before = looks
        assert dashboard._feed is not None
        assert dashboard._feed._task is None  # nobody watches, so nobody looks
        assert looks == before


def test_so_many_streams_and_no_more(open_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("throttled.dashboard.streams.MOST_STREAMS", 2)
    with (
        open_site.client.stream("GET", "api/live") as one,
        open_site.client.stream("GET", "api/live") as other,
    ):
        assert (one.status_code, other.status_code) == (200, 200)
        third = open_site.get("api/live")
        assert third.status_code == 503
        assert third.json() == {"error": "Too many are watching already."}

    def welcome() -> bool:
        with open_site.client.stream("GET", "api/live") as answer:
            return answer.status_code == 200

    until(welcome)


def test_a_stream_ends_so_that_no_server_waits_for_it(
    open_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("throttled.dashboard.streams.LASTING", 0.2)
    assert open_site.get("api/live").text.startswith("retry: 250\n\n")


async def test_a_stream_that_nobody_reads_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("throttled.dashboard.streams.LASTING", 0.1)
    monkeypatch.setattr("throttled.dashboard.streams._GRACE", 0.1)
    dashboard = Dashboard({"api": Throttled(quota="5/h", store=MemoryStore())})
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    async def receive() -> Any:
        await asyncio.Event().wait()

    scope = {"type": "http", "asgi": {"version": "3.0", "spec_version": "2.4"}, "method": "GET"}
    scope |= {"path": "/api/live", "raw_path": b"/api/live", "query_string": b"", "headers": []}
    scope |= {"root_path": "", "scheme": "http", "http_version": "1.1"}
    await asyncio.wait_for(dashboard(scope, receive, send), PATIENCE)
    assert [each["type"] for each in sent] == ["http.response.start", "http.response.body"]
    assert len(dashboard._streams) == 0
    assert dashboard._feed is not None
    assert dashboard._feed._task is None


def test_without_limits_there_is_only_the_simulator() -> None:
    with site(Dashboard()) as made:
        about = made.get("api/about").json()
        assert (about["source"], about["keys"], about["acts"]) == (None, None, False)
        assert made.get("api/live").status_code == 404
        assert made.post("api/key", {"key": "ann", "policy": "api"}).status_code == 404
        assert made.scene()["quota"] == "10/s burst 20"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"policies": [Throttled()]}, r"Invalid policies: \[.*must be limits by name"),
        ({"policies": {"api": "5/h"}}, r"Invalid policies\['api'\]: '5/h', must be a Throttled"),
        ({"tokens": "secret"}, "Invalid tokens: a str, must be several"),
        ({"tokens": ("a b",)}, r"Invalid tokens\[0\]: must be text without spaces"),
    ],
)
def test_what_cannot_be_shown_is_said_at_once(arguments: Any, said: str) -> None:
    with pytest.raises(SetUpError, match=said):
        Dashboard(**arguments)


# -- one key ---------------------------------------------------------------------------------------


def test_the_state_of_a_key_by_every_rule(open_site: Site, limits: Any) -> None:
    told = open_site.post("api/key", {"policy": "both", "key": "ann"}).json()
    assert [rule["quota"] for rule in told["rules"]] == ["2/s", "100/h"]
    assert [rule["remaining"] for rule in told["rules"]] == [2, 100]
    assert [each["type"] for each in told["stored"]["held"]] == [None, None]
    limits["api"].reset("cid")
    for left in (5, 4):
        told = open_site.post("api/key", {"policy": "api", "key": "cid", "cost": 5}).json()
        (rule,) = told["rules"]
        assert rule["remaining"] == left
        assert (rule["retry_after"] > 0) == (left < 5)
        limits["api"].limit("cid")
    (held,) = open_site.post("api/key", {"policy": "api", "key": "cid"}).json()["stored"]["held"]
    assert held["type"] == "string"
    assert {each["name"]: each["shown"] for each in held["fields"]}["count"] == "2"
    assert 0 < held["ttl"] <= 3600


def test_looking_is_no_call(open_site: Site, limits: Any) -> None:
    before = open_site.told("api/live")[0]["stats"]["policies"]["api"]
    open_site.post("api/key", {"policy": "api", "key": "nobody"})
    after = open_site.told("api/live")[0]["stats"]["policies"]["api"]
    assert after["allowed"] + after["refused"] == before["allowed"] + before["refused"]


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"policy": "api"}, 400, "Invalid key: ''"),
        ({"policy": "api", "key": 5}, 400, "Invalid key: 5, must be text."),
        ({"policy": "api", "key": "k" * 5000}, 400, "must have at most 4,096"),
        ({"policy": "api", "key": "ann", "cost": 0}, 400, "Invalid cost: 0, must be at least 1."),
        ({"policy": "api", "key": "ann", "cost": "x"}, 400, "Invalid cost: 'x'"),
        ({"policy": "apo", "key": "ann"}, 404, "There is no limit 'apo' here."),
        ({"policy": [], "key": "ann"}, 400, "Invalid policy: [], must be text."),
        ({"key": "ann"}, 400, "Invalid policy: None, must be the name of a limit."),
        ([], 400, "Invalid body: [], must be a JSON object."),
    ],
)
def test_what_cannot_be_looked_at(open_site: Site, body: Any, status: int, said: str) -> None:
    answer = open_site.post("api/key", body)
    assert answer.status_code == status, answer.text
    assert said in answer.json()["error"]


def test_a_body_that_is_none(open_site: Site) -> None:
    for content in (b"{", b"\xff", b"[" * 20_000):
        answer = open_site.client.post("api/key", content=content)
        assert answer.json()["error"] == "Invalid body: no JSON, must be a JSON object."
    answer = open_site.client.post("api/key", content=b" " * 100_000)
    assert answer.status_code == 400
    assert "too long" in answer.json()["error"]


def test_any_quota_where_a_store_is_given() -> None:
    store = MemoryStore()
    throttle = Throttled(quota="5/h", using="gcra", store=store, key_prefix="mine")
    throttle.limit("ann", 3)
    with site(Dashboard(store=store)) as made:
        assert made.get("api/about").json()["keys"] == "bare"
        asked = {"key": "ann", "quota": "5/h", "using": "gcra", "prefix": "mine"}
        assert made.post("api/key", asked).json()["rules"][0]["remaining"] == 2
        assert made.post("api/key", {"key": "ann"}).json()["error"].startswith("Invalid quota")
        wrong = made.post("api/key", {**asked, "using": "magic"}).json()["error"]
        assert "'magic'" in wrong
        assert made.post("api/key", {**asked, "quota": "lots"}).status_code == 400


# -- who may do what -------------------------------------------------------------------------------


def test_a_key_is_reset_with_the_token_and_logged(
    open_site: Site, limits: Any, caplog: pytest.LogCaptureFixture
) -> None:
    limits["api"].limit("dan", 5)
    asked = {"policy": "api", "key": "dan"}
    with caplog.at_level(logging.INFO, "throttled"):
        assert open_site.reset(asked).json() == {"reset": True}
    assert limits["api"].peek("dan").remaining == 5
    assert "Key 'dan' of 'api' was reset from the dashboard, by 127.0.0.1" in caplog.messages


def test_a_hidden_key_is_not_logged(
    open_site: Site, limits: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        assert open_site.reset({"policy": "secret", "key": "bob@example.org"}).status_code == 200
    digest = sha256(b"bob@example.org").hexdigest()[:16]
    assert f"Key sha256:{digest} of 'secret'" in caplog.text
    assert "bob" not in said(caplog)
    assert open_site.post("api/key", {"policy": "secret", "key": "bob"}).json()["hidden"] is True


@pytest.mark.parametrize("token", [None, "open", TOKEN + "x"])
def test_without_the_token_nothing_is_reset(
    open_site: Site, limits: Any, token: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    limits["api"].reset("eve")
    limits["api"].limit("eve", 2)
    with caplog.at_level(logging.WARNING):
        answer = open_site.reset({"policy": "api", "key": "eve"}, token)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert limits["api"].peek("eve").remaining == 3
    assert TOKEN not in said(caplog)


def test_without_any_token_it_is_read_only(read_only: Site) -> None:
    assert read_only.get("api/about").json()["acts"] is False
    answer = read_only.reset({"policy": "api", "key": "ann"}, "anything")
    assert answer.status_code == 403
    assert answer.json()["error"] == "Nothing can be changed here: the dashboard has no token."


def test_other_pages_can_do_nothing(open_site: Site, limits: Any) -> None:
    asked = {"policy": "api", "key": "fay"}
    limits["api"].reset("fay")
    limits["api"].limit("fay")
    own = open_site.url.rstrip("/")
    for origin in ("https://evil.example", "null", own.replace("http://", "http://x."), ""):
        answer = open_site.reset(asked, Origin=origin)
        assert answer.status_code == 403, origin
    for place in ("cross-site", "same-site"):
        headers = {"Sec-Fetch-Site": place, "Sec-Fetch-Mode": "cors"}
        assert open_site.reset(asked, **headers).status_code == 403
        assert open_site.get("api/live", headers=headers).status_code == 403
    with_link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert open_site.get("", headers=with_link).status_code == 200
    bare = {"Authorization": f"Bearer {TOKEN}"}
    del open_site.client.headers[HEADER]
    try:
        answer = open_site.client.post("api/reset", json=asked, headers=bare)
    finally:
        open_site.client.headers[HEADER] = "test"
    assert answer.json()["error"] == "The header X-Throttled is missing."
    assert limits["api"].peek("fay").remaining == 4
    assert open_site.reset(asked, Origin=own).status_code == 200
    assert "access-control-allow-origin" not in answer.headers


def test_a_token_in_the_address_is_none(
    open_site: Site, limits: Any, caplog: pytest.LogCaptureFixture
) -> None:
    limits["api"].reset("gus")
    limits["api"].limit("gus")
    with caplog.at_level(logging.DEBUG, "throttled"):
        for name in ("token", "access_token", "authorization"):
            path = f"api/reset?{name}={TOKEN}"
            assert open_site.post(path, {"policy": "api", "key": "gus"}).status_code == 401
    assert TOKEN not in said(caplog)
    assert limits["api"].peek("gus").remaining == 4


def test_a_form_of_another_page_does_nothing(open_site: Site, limits: Any) -> None:
    limits["api"].reset("hal")
    limits["api"].limit("hal")
    content = {"policy": "api", "key": "hal", "token": TOKEN}
    headers = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
    headers |= {"Sec-Fetch-Mode": "navigate"}
    with httpx.Client(base_url=open_site.url, headers=headers) as browser:
        for path in ("api/reset", "api/key", "api/scenes"):
            assert browser.post(path, data=content).status_code == 403, path
    assert limits["api"].peek("hal").remaining == 4


def test_elsewhere_addresses_and_known_names_are_answered_to() -> None:
    with site(Dashboard(hosts=Names(["limits.example"]))) as made:
        for host in ("192.0.2.1", "[2001:db8::1]:80", "limits.example", "LIMITS.example:8080"):
            assert made.get("api/about", headers={"Host": host}).status_code == 200, host
        for host in ("evil.example", "", "192.0.2.1.evil.example", "x.limits.example"):
            answer = made.get("api/about", headers={"Host": host})
            assert answer.status_code == 403, host
        assert "does not answer to the name" in answer.json()["error"]


def test_on_this_machine_only_its_names_are_answered_to() -> None:
    with site(Dashboard(hosts=LOOPBACK)) as made:
        for host in ("127.0.0.1", "localhost:8080", "[::1]:80", "LOCALHOST", "[::1]"):
            assert made.get("api/about", headers={"Host": host}).status_code == 200, host
        for host in ("evil.example", "evil.example:8080", "127.0.0.1.evil.example", "x@localhost"):
            assert made.get("api/about", headers={"Host": host}).status_code == 403, host
