"""What docs/cli.md shows is what the commands print."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

import pytest

from tests.cli.running import ROOT, invoke
from throttled.cli.commands import COMMANDS, throttled

if TYPE_CHECKING:
    from tests.servers import Server

DOCUMENT = (ROOT / "docs" / "cli.md").read_text("utf-8")
ZONE = re.compile(r"[+-]\d\d:\d\d$")
WAIT = re.compile(r"\b\d+(?:\.\d+)? (?:µs|ms|s|min|h|d)\b")
NUMBER = re.compile(r"\d+(?:[.,]\d+)*(?:e-\d+)?")


def pattern(line: str) -> str:
    """A line but for its numbers, and the spaces that depend on them: time passes."""
    words = " ".join(WAIT.sub("wait", ZONE.sub("", line)).split()).replace("wait wait", "wait")
    return NUMBER.sub("#", words)


@pytest.mark.server
def test_what_is_shown_comes_out(valkey: Server) -> None:
    environment: dict[str, str] = {}
    code = 0
    commands = 0
    with valkey.client() as client:
        client.flushall()
    for block in re.findall(r"^```console\n(.*?)^```", DOCUMENT, re.DOTALL | re.MULTILINE):
        for entry in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            line, *expected = entry.splitlines()
            words = shlex.split(line)
            if words[0] == "export":
                name, _, url = words[1].partition("=")
                assert url == "redis://localhost:6379/0"
                environment[name] = valkey.url
                continue
            if words[0] == "echo":
                assert expected == [str(code)]
                continue
            done = invoke(*words[1:], **environment)
            code = done.code
            assert done.err == ""
            shown = [pattern(each) for each in done.out.splitlines()]
            assert shown == [pattern(each) for each in expected], line
            if words[1] == "simulate":  # where no time passes
                assert done.out.splitlines() == expected
            commands += 1
    assert commands == 9


def test_every_command_and_option_is_in_the_document() -> None:
    context = throttled.make_context("throttled", ["check"])
    for name in COMMANDS:
        assert f"`{name}`" in DOCUMENT or f"`throttled {name} " in DOCUMENT
        command = throttled.get_command(context, name)
        assert command is not None
        for option in command.params:
            for each in option.opts:
                assert not each.startswith("--") or each in DOCUMENT, each
