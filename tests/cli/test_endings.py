"""How commands end: wrong use is told in a line, nobody is told of what they know."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.cli.running import PATIENCE, ROOT, environment, invoke, run, started, terminal
from throttled import __version__, exceptions
from throttled.cli.commands import COMMANDS
from throttled.cli.endings import code_of, ended

#: What is wrong, and what is said of it after "throttled: ".
WRONG_USE = {
    "chek": "No such command 'chek', did you mean 'check'? See throttled -h.",
    "check": "Missing argument 'KEY'. See throttled check -h.",
    "check k": (
        "No limit is given: give one of --quota TEXT, --policies FILE with --policy NAME, "
        "or --service HOST:PORT with --policy NAME. See throttled check -h."
    ),
    "peek k --quota 1/s --service h:1": (
        "--quota and --service exclude one another: give one of --quota TEXT, --policies "
        "FILE with --policy NAME, or --service HOST:PORT with --policy NAME. See throttled "
        "peek -h."
    ),
    "reset k --policies f.toml": (
        "--policies needs --policy NAME: which of its policies is meant. See throttled reset -h."
    ),
    "check k --service h:1": (
        "--service needs --policy NAME: which of its policies is meant. See throttled check -h."
    ),
    "check k --quota 1/s --policy api": (
        "--policy does not go with --quota, only with --policies or --service. See "
        "throttled check -h."
    ),
    "check k --policies f.toml --policy p --using gcra": (
        "--using does not go with --policies, only with --quota. See throttled check -h."
    ),
    "check k --service h:1 --policy p --store memory": (
        "--store does not go with --service, only with --quota or --policies. See throttled"
        " check -h."
    ),
    "check k --quota 1/s --token-file t": (
        "--token-file does not go with --quota, only with --service. See throttled check -h."
    ),
    "check k --quota 1/s --tls": (
        "--tls does not go with --quota, only with --service. See throttled check -h."
    ),
    "check k --service h:1 --policy p --token a --token-file b": (
        "--token and --token-file exclude one another. See throttled check -h."
    ),
    "check k --quota 1/s --using magic": (
        "Invalid value for '--using': 'magic' is not one of 'fixed_window', "
        "'sliding_window', 'sliding_window_log', 'token_bucket', 'leaking_bucket', 'gcra'. "
        "See throttled check -h."
    ),
    "check k --quota 1/s --cost much": (
        "Invalid value for '--cost': 'much' is not a valid integer. See throttled check -h."
    ),
    "check k --quota 1/parsec": (
        "Invalid quota: '1/parsec', unknown unit 'parsec', must be one of ms, s, m, h, d, "
        "w, or second, minute, hour, day, week."
    ),
    "check '' --quota 1/s": "Invalid key: '', must be a non-empty string.",
    "check k --quota 1/s --cost -1": "Invalid cost: -1, must be an integer of 0 or more.",
    "check k --quota 1/s --timeout -2": (
        "Invalid timeout: -2.0, must be seconds of 0 or more, or -1 not to wait."
    ),
    "check k --quota 1/s --prefix '{a}'": (
        "Invalid key_prefix: '{a}', must be a non-empty string without braces (they mark "
        "the part of a key that Redis Cluster hashes)."
    ),
    "check k --quota 1/s --store localhost": (
        "Invalid Redis URL: 'localhost', must begin with one of redis://, rediss://, "
        "unix://, redis+sentinel://, redis+cluster://."
    ),
    "check k --quota 1/s --store http://me:secret@host": (
        "Invalid Redis URL: 'http://me:***@host', must begin with one of redis://, "
        "rediss://, unix://, redis+sentinel://, redis+cluster://."
    ),
    "debit k --quota 1/s": "Missing argument 'N'. See throttled debit -h.",
    "debit --quota 1/s -- k -1": "Invalid n: -1, must be an integer from 0 to 1000000000.",
    "serve": "Missing argument 'FILE'. See throttled serve -h.",
    "serve f.toml --json": (
        "--json goes with --check; the log has --log-format json. See throttled serve -h."
    ),
    "serve f.toml --token a --token-file b": (
        "--token and --token-file exclude one another. See throttled serve -h."
    ),
    "serve f.toml --token-file /nowhere/tokens": ("/nowhere/tokens: No such file or directory"),
    # As it is written with a variable that is not set.
    "check k --quota 1/s --store ''": (
        "Invalid Redis URL: '', must begin with one of redis://, rediss://, unix://, "
        "redis+sentinel://, redis+cluster://."
    ),
    "check k --service localhost:1 --policy api --token ''": (
        "Invalid token: must be printable ASCII text, as the service was given it."
    ),
    "simulate": "Missing option '--quota'. See throttled simulate -h.",
    "simulate --quota 1/s --rate 5/parsec": (
        "Invalid value for '--rate': '5/parsec' is not a rate such as 150/s, 90/m or 0.5. "
        "See throttled simulate -h."
    ),
    "simulate --quota 1/s --rate 0": "Invalid rate: 0.0, must be calls per second above 0.",
    "simulate --quota 1/s --duration nan": (
        "Invalid duration: nan, must be seconds above 0, at most 366 days."
    ),
    "simulate --quota 1/s --rate 1e6 --duration 2": (
        "Invalid duration: 2.0 at a rate of 1000000.0 makes 2,000,000 calls, must be at "
        "most 1,000,000."
    ),
    "simulate --quota 2000000/s": (
        "Invalid limit for sliding_window_log: 2000000, must be at most 1000000 because it "
        "remembers every call; use sliding_window, which takes the same space for any "
        "limit."
    ),
    "bench --concurrency 1,none": (
        "Invalid value for '--concurrency': '1,none' is not a list of whole numbers from 1 "
        "to 10000, such as 1,10,50. See throttled bench -h."
    ),
    "bench --chart chart.gif": (
        "Invalid chart: 'chart.gif', must be a file that ends in .svg or .png."
    ),
    "bench --csv /nowhere/table.csv": (
        "/nowhere/table.csv: there is no such directory to write it to."
    ),
    "bench --quota 1": "Invalid quota: '1', must look like '100/s', ",
}


@pytest.mark.parametrize("line", WRONG_USE)
def test_wrong_use_is_told_in_a_line(line: str) -> None:
    said = WRONG_USE[line]
    done = invoke(*shlex.split(line))
    assert (done.code, done.out) == (2, "")
    assert done.err.count("\n") == 1
    if said.endswith(" "):
        assert done.err.startswith(f"throttled: {said}")
    else:
        assert done.err == f"throttled: {said}\n"


def test_a_wrong_option_is_told_what_was_meant() -> None:
    done = invoke("check", "k", "--quotas", "1/s")
    assert done.code == 2
    assert done.err.startswith("throttled: No such option")
    assert "--quota" in done.err.replace("--quotas", "")
    assert "?." not in done.err


def test_a_wrong_command_is_told_what_was_meant() -> None:
    done = invoke("chek", "k")
    assert (done.code, done.out) == (2, "")
    assert (
        done.err == "throttled: No such command 'chek', did you mean 'check'? See throttled -h.\n"
    )
    done = invoke("limit", "k")
    assert done.err == (
        "throttled: No such command 'limit', must be one of check, peek, debit, reset, serve, "
        "dashboard, simulate, bench, contract. See throttled -h.\n"
    )


def test_without_a_command_there_is_help() -> None:
    done = invoke()
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("Usage: throttled [OPTIONS] COMMAND [ARGS]...\n")
    assert invoke("-h").out == done.err


@pytest.mark.parametrize("command", list(COMMANDS))
def test_every_command_has_help_that_the_list_quotes(command: str) -> None:
    done = invoke(command, "-h")
    assert (done.code, done.err) == (0, "")
    assert COMMANDS[command][1] in " ".join(done.out.split())
    assert done.out == invoke(command, "--help").out


def test_every_line_of_a_message_is_marked() -> None:
    def fails() -> None:
        raise exceptions.DataError("one\ntwo")

    assert ended(fails) == 2


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (exceptions.LimitedError(), 1),
        (exceptions.DataError(), 2),
        (exceptions.SetUpError(), 2),
        (exceptions.PolicyNotFoundError(), 2),
        (exceptions.OperationNotSupportedError(), 2),
        (exceptions.StoreUnavailableError(), 3),
        (exceptions.ServiceUnavailableError(), 3),
        (exceptions.StateError(), 3),
    ],
    ids=lambda each: type(each).__name__,
)
def test_each_error_has_its_exit_code(error: exceptions.BaseThrottledError, code: int) -> None:
    assert code_of(error) == code


def test_a_mistake_of_ours_is_no_refusal(capsys: pytest.CaptureFixture[str]) -> None:
    def fails() -> None:
        raise ZeroDivisionError("a mistake")

    assert ended(fails) == 70
    assert "ZeroDivisionError: a mistake" in capsys.readouterr().err


# --- as a process --------------------------------------------------------------------------------


def test_the_version() -> None:
    done = run("--version")
    assert (done.code, done.out, done.err) == (0, f"throttled {__version__}\n", "")


def test_the_command_is_installed_as_an_entry_point() -> None:
    from importlib.metadata import entry_points

    from throttled.cli import main

    found = [each for each in entry_points(group="console_scripts") if each.name == "throttled"]
    assert found
    assert found[0].load() is main


def test_exit_codes_of_the_process() -> None:
    assert run("check", "k", "--quota", "1/s").code == 0
    assert run("check", "k", "--quota", "1/s", "--cost", 2).code == 1
    assert run("check", "k", "--quota", "1").code == 2
    assert run("check", "k", "--quota", "1/s", "--store", "redis://127.0.0.1:1").code == 3


def test_nobody_who_reads_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    with started("simulate", "--quota", "1/s", "--using", "gcra", stdout=write) as process:
        os.close(write)
        _, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (141, b"")


def test_a_closed_stdout_is_no_error() -> None:
    done = subprocess.run(
        ["sh", "-c", '"$0" -m throttled check k --quota 1/s >&-', sys.executable],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device")
def test_a_full_disk_is_said() -> None:
    with (
        Path("/dev/full").open("wb") as full,
        started("check", "k", "--quota", "1/s", stdout=full) as process,
    ):
        _, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (2, b"throttled: No space left on device\n")


def python(code: str) -> subprocess.CompletedProcess[str]:
    """A program that may end badly."""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        encoding="utf-8",
        timeout=PATIENCE,
        check=False,
    )


def without(package: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line where a package is not installed."""
    return python(
        f"import sys; sys.modules[{package!r}] = None; sys.argv = {['throttled', *arguments]!r}; "
        f"from throttled.cli import main; main()"
    )


@pytest.mark.parametrize("package", ["click", "rich"])
def test_without_its_packages_the_command_line_says_what_to_install(package: str) -> None:
    done = without(package, "check", "k", "--quota", "1/s")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"throttled: the command line needs the package {package}: "
        f"pip install 'throttled-core[cli]'\n"
    )


def test_without_matplotlib_a_chart_is_refused_before_anything_is_measured() -> None:
    done = without("matplotlib", "bench", "--chart", "a.svg")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "throttled: this needs the package matplotlib: pip install 'throttled-core[plot]'\n"
    )


def test_without_redis_a_store_of_this_process_will_do() -> None:
    assert without("redis", "check", "k", "--quota", "1/s").returncode == 0
    done = without("redis", "check", "k", "--quota", "1/s", "--store", "redis://h")
    assert (done.returncode, done.stdout) == (2, "")
    assert "pip install" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_library_does_without_the_packages_of_the_command_line() -> None:
    modules = "throttled, throttled.asyncio, throttled.simulation"
    done = python(
        f"import sys, {modules}; print({{'click', 'rich', 'matplotlib'}} & {{*sys.modules}})"
    )
    assert (done.returncode, done.stdout) == (0, "set()\n")


def test_names_are_completed() -> None:
    words = {
        "throttled che": ("1", ["check"]),
        "throttled check k --us": ("3", ["--using"]),
        "throttled simulate --traffic ": ("3", ["steady", "bursty", "spike", "poisson"]),
    }
    for line, (place, expected) in words.items():
        done = run(
            COMP_WORDS=line,
            COMP_CWORD=place,
            _THROTTLED_COMPLETE="bash_complete",
        )
        assert [each.partition(",")[2] for each in done.out.splitlines()] == expected


def test_ctrl_c_ends_a_question() -> None:
    with terminal("reset", "k", "--quota", "1/s") as screen:
        screen.until("[y/N]")
        while screen.process.poll() is None:
            # One that comes just before Python begins to read is heeded when it has read.
            screen.process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                screen.process.wait(2)
        assert screen.end() == 130
    assert "Traceback" not in screen.seen
    assert "Aborted" not in screen.seen
