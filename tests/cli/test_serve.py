"""`throttled serve`, and the other commands against it."""

from __future__ import annotations

import re
import signal
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from tests.cli.running import PATIENCE, Done, environment, invoke, run, started
from tests.servers import HOST, free_port
from throttled import RedisStore, Throttled

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from tests.servers import Server

POLICIES = """
[policies.api]
quota = "5/h burst 3"
using = "gcra"
operations = ["check", "peek"]

[policies.llm]
rules = [
    { quota = "500/m", cost = 1, name = "calls" },
    { quota = "200_000/m", name = "tokens", using = "sliding_window_log" },
]
tiers.pro = { keys = ["pro:*"], quota = "1000/s" }

[policies.kind]
quota = "1/h"
store = "redis://127.0.0.1:1"
on_store_error = "allow"
"""


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("policies") / "policies.toml"
    path.write_text(POLICIES, "utf-8")
    return path


@contextmanager
def served(policies: Path, *arguments: object, **more: str) -> Generator[tuple[Any, str]]:
    """A service as a process, and its address."""
    process = started(
        *("serve", policies, "--listen", f"{HOST}:0", "--http", "off", *arguments),
        env=environment(**more),
    )
    try:
        line = process.stdout.readline().decode()
        found = re.search(r"on (\S+:\d+)$", line)
        assert found, line + process.stderr.read().decode()
        yield process, found[1]
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE)
        assert process.returncode == 0
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def service(policies: Path) -> Iterator[tuple[str, ...]]:
    """The options that say where a service is."""
    with served(policies) as (_, address):
        yield "--service", address


def test_calls_are_decided_by_the_service(service: tuple[str, ...]) -> None:
    policy = (*service, "--policy", "api")
    done = run("check", "u", *policy, "--cost", 3)
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[:3] == [
        "allowed",
        "rule         5/h burst 3 by gcra",
        "remaining    0 of 3",
    ]
    refused = run("check", "u", *policy, "--json")
    assert refused.code == 1
    assert 700 < refused.json["retry_after"] <= 720
    assert run("check", "v", *policy, "--cost", 4, "--json").json["never"] is True


def test_what_a_policy_does_not_permit_is_wrong_use(service: tuple[str, ...]) -> None:
    policy = (*service, "--policy", "api")
    done = run("debit", "w", 1, *policy)
    assert (done.code, done.out) == (2, "")
    assert "does not permit debit, only check, peek" in done.err
    # A forecast is one more question; without leave to ask it, there is the state alone.
    peeked = run("peek", "w", *policy, "--json")
    assert (peeked.code, peeked.json["remaining"], peeked.json["forecast"]) == (0, 3, None)
    done = run("check", "w", *service, "--policy", "ap")
    assert (done.code, done.out) == (2, "")
    assert "There is no policy 'ap'" in done.err


def test_several_rules_and_tiers_of_a_service(service: tuple[str, ...]) -> None:
    policy = (*service, "--policy", "llm")
    lines = run("check", "x", *policy, "--cost", 50).out.splitlines()
    assert [line[:3].strip() for line in lines[2:]] == [">", ""]
    assert "calls: 500/m by token_bucket, 1 a call" in lines[2]
    assert "tokens: 200000/m by sliding_window_log" in lines[3]
    assert run("check", "pro:x", *policy, "--json").json["limit"] == 1000
    assert run("debit", "y", 200_000, *policy, "--json").json == {"key": "y", "debited": 200_000}
    assert run("peek", "y", *policy).code == 1
    assert run("reset", "y", *policy).code == 0
    assert run("peek", "y", *policy, "--json").json["forecast"]["spendable_now"] == 200_000


def test_a_service_that_is_down_is_not_a_refusal() -> None:
    done = run("check", "k", "--service", f"{HOST}:{free_port()}", "--policy", "api")
    assert (done.code, done.out) == (3, "")
    assert done.err.startswith("throttled: The service at ")
    assert done.err.count("\n") == 1


def test_tokens_come_from_files_and_the_environment(policies: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("old-token\n\nnew-token\n", "utf-8")
    own = tmp_path / "own"
    own.write_text("new-token\r\n", "utf-8-sig")  # some editors put a mark there
    with served(policies, "--token-file", tokens) as (_, address):
        ask = ("peek", "k", "--service", address, "--policy", "llm")
        assert run(*ask, THROTTLED_TOKEN="old-token").code == 0
        assert run(*ask, "--token-file", own).code == 0
        assert run(*ask, "--token", "new-token", THROTTLED_TOKEN="wrong").code == 0
        for wrong in (run(*ask), run(*ask, "--token", "wrong-token")):
            assert (wrong.code, wrong.out) == (2, "")
            assert wrong.err.count("\n") == 1
            assert "token" in wrong.err
            assert "new-token" not in wrong.err
    with served(policies, THROTTLED_TOKEN="secret") as (_, address):
        ask = ("peek", "k", "--service", address, "--policy", "llm")
        assert run(*ask).code == 2
        assert run(*ask, THROTTLED_TOKEN="secret").code == 0


def test_tls_with_certificates_of_clients(policies: Path, tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert(HOST, "localhost")
    names = {name: tmp_path / f"{name}.pem" for name in ("ca", "cert", "key")}
    authority.cert_pem.write_to_path(str(names["ca"]))
    certificate.private_key_pem.write_to_path(str(names["key"]))
    certificate.cert_chain_pems[0].write_to_path(str(names["cert"]))
    tls = ("--tls-cert", names["cert"], "--tls-key", names["key"], "--tls-client-ca", names["ca"])
    with served(policies, *tls) as (_, address):
        ask = ("peek", "k", "--service", address, "--policy", "llm", "--ca", names["ca"])
        done = run(*ask, "--client-cert", names["cert"], "--client-key", names["key"])
        assert (done.code, done.err) == (0, "")
        for wrong in (run(*ask), run(*ask[:-2])):
            assert (wrong.code, wrong.out) == (3, "")
            assert wrong.err.count("\n") == 1


@pytest.mark.server
def test_a_service_counts_where_its_store_is(policies: Path, valkey: Server) -> None:
    with served(policies, THROTTLED_STORE=valkey.url, THROTTLED_TICKET_SECRET="signs") as (
        process,
        address,
    ):
        assert run("check", "served", "--service", address, "--policy", "api").code == 0
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0
        assert b"Traceback" not in err
    store = RedisStore(server=valkey.url)
    throttle = Throttled(quota="5/h burst 3", using="gcra", store=store, key_prefix="throttled:api")
    assert throttle.peek("served").remaining == 2
    store.close()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--listen", "nowhere"], "Invalid listen: 'nowhere'"),
        (["--grace", "-1"], "Invalid grace: -1.0"),
        (["--ticket-ttl", "0"], "Invalid ticket_ttl: 0.0"),
        (["--tls-cert", "cert.pem"], "Invalid tls_cert: it is of no use without tls_key."),
        (["--store", "odd"], "Invalid Redis URL: 'odd'"),
        # As they are written with a variable that is not set.
        (["--store", ""], "Invalid Redis URL: ''"),
        (["--token", ""], "Invalid tokens[0]: it is empty, must be text."),
    ],
)
def test_what_cannot_be_served_is_said(policies: Path, arguments: list[str], said: str) -> None:
    done = run("serve", policies, "--listen", f"{HOST}:0", "--http", "off", *arguments)
    assert (done.code, done.out) == (2, "")
    assert f"throttled: {said}" in done.err
    assert "Traceback" not in done.err


def test_a_secret_is_one_line(policies: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("one\ntwo\n", "utf-8")
    done = invoke("serve", policies, "--ticket-secret-file", secret)
    assert (done.code, done.err) == (2, f"throttled: {secret}: must hold one line, the secret.\n")
    secret.write_bytes(b"\xff\xfe")
    done = invoke("serve", policies, "--ticket-secret-file", secret)
    assert done.code == 2
    assert done.err == f"throttled: {secret}: is not text in UTF-8, must hold one line or more.\n"
    secret.write_text("\n")
    done = invoke("serve", policies, "--token-file", secret)
    assert (done.code, done.err) == (
        2,
        f"throttled: {secret}: is empty, must hold one line or more.\n",
    )


# --- policy files --------------------------------------------------------------------------------


def test_check_shows_the_policies(policies: Path) -> None:
    done = invoke("serve", policies, "--check")
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0] == f"{policies}: 3 policies, all in order"
    assert [line.split()[0] for line in lines[2:]] == ["policy", "api", "llm", "kind"]
    assert "500/m token_bucket; 200000/m sliding_window_log" in lines[4]
    assert "allow" in lines[5]


def test_check_has_them_for_programs(policies: Path) -> None:
    said = invoke("serve", policies, "--check", "--json").json
    assert said["path"] == str(policies)
    assert [policy["name"] for policy in said["policies"]] == ["api", "llm", "kind"]
    assert said["policies"][0]["operations"] == ["check", "peek"]


def test_every_problem_of_a_file_has_its_line(tmp_path: Path) -> None:
    path = tmp_path / "policies.toml"
    path.write_text('[policies.a]\nquota = "1/parsec"\n[policies.b]\nquotta = "1/s"\n', "utf-8")
    for command in (["serve", "--check"], ["check", "k", "--policy", "a", "--policies"]):
        done: Done = invoke(*command, path)
        assert (done.code, done.out) == (2, "")
        lines = done.err.splitlines()
        assert all(line.startswith(f"throttled: {path}: policies.") for line in lines), lines
        assert len(lines) >= 2


def test_policies_of_a_file_decide_without_a_service(policies: Path) -> None:
    policy = ("--policies", policies, "--policy")
    assert invoke("check", "k", *policy, "api", "--cost", 3).code == 0
    assert invoke("check", "k", *policy, "api", "--cost", 4).code == 1
    # Which operations a policy permits is for those who ask a service.
    assert invoke("debit", "k", 1, *policy, "api").code == 0
    done = invoke("check", "k", *policy, "ap")
    assert (done.code, done.out) == (2, "")
    assert "Invalid policy: 'ap', did you mean 'api'?" in done.err


def test_a_policy_says_what_happens_when_its_store_is_down(policies: Path) -> None:
    done = invoke("check", "k", "--policies", policies, "--policy", "kind")
    assert done.code == 0
    assert done.out.splitlines()[-1].split() == ["decided", "by", "allowed-by-policy"]
    assert all(line.startswith("throttled: warning: ") for line in done.err.splitlines())


@pytest.mark.server
def test_policies_without_a_store_take_the_one_that_is_given(
    policies: Path, valkey: Server
) -> None:
    policy = ("--policies", policies, "--policy", "llm", "--store", valkey.url)
    assert invoke("check", "given", *policy, "--cost", 200_000).code == 0
    assert invoke("check", "given", *policy).code == 1
    assert invoke("reset", "given", *policy).code == 0
    assert invoke("check", "given", *policy).code == 0
