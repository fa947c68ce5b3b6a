"""`throttled contract`: what is exported is what `throttled.contract` says."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.running import invoke
from throttled import contract


def test_without_a_directory_it_shows_the_manifest() -> None:
    manifest = contract.manifest()
    assert invoke("contract", "--json").json == manifest
    lines = invoke("contract").out.splitlines()
    assert lines[0].split() == ["version", str(contract.VERSION)]
    assert manifest["script_sha1"] in lines[1]
    assert [tuple(line.split()) for line in lines[2:]] == list(manifest["sha256"].items())


def test_it_exports_the_files_into_a_directory(tmp_path: Path) -> None:
    done = invoke("contract", "--out", tmp_path / "new" / "directory")
    assert (done.code, done.err) == (0, "")
    paths = [Path(line) for line in done.out.splitlines()]
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == {*paths}
    manifest = json.loads((tmp_path / "new" / "directory" / "manifest.json").read_text("utf-8"))
    assert manifest == contract.manifest()

    said = invoke("contract", "--out", tmp_path / "other", "--json").json
    assert said["version"] == contract.VERSION
    assert len(said["files"]) == len(paths)


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = invoke("contract", "--out", tmp_path / "file")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("throttled: Invalid directory: ")
