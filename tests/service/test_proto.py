"""What is generated of the protocol is what it says today."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from throttled.service.agreed import SOURCES
from throttled.service.v1 import throttled_pb2 as v1

ROOT = Path(__file__).parents[2]
PROTOCOL = Path("throttled/service/v1/throttled.proto")
STUBS = ("throttled_pb2.py", "throttled_pb2.pyi", "throttled_pb2_grpc.py")


def generate(root: Path, out: Path) -> None:
    outs = [f"--{kind}={out}" for kind in ("python_out", "pyi_out", "grpc_python_out")]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{root}", *outs, str(PROTOCOL)]
    subprocess.run(command, cwd=root, check=True, timeout=60)


def test_stubs_are_current(tmp_path: Path) -> None:
    generate(ROOT, tmp_path)
    for name in STUBS:
        fresh, ours = (root / PROTOCOL.with_name(name) for root in (tmp_path, ROOT))
        assert fresh.read_text("utf-8") == ours.read_text("utf-8"), f"{name}: run `make proto`"


def test_another_protocol_makes_others(tmp_path: Path) -> None:
    changed = tmp_path / "changed"
    (changed / PROTOCOL).parent.mkdir(parents=True)
    text = (ROOT / PROTOCOL).read_text("utf-8")
    (changed / PROTOCOL).write_text(text.replace("bool held = 6;", "bool held = 60;"), "utf-8")
    generate(changed, tmp_path)
    fresh, ours = (root / PROTOCOL.with_name(STUBS[0]) for root in (tmp_path, ROOT))
    assert fresh.read_text("utf-8") != ours.read_text("utf-8")


def test_sources_have_the_numbers_of_the_protocol() -> None:
    names = {
        number: "SOURCE_" + source.upper().replace("-", "_") for number, source in SOURCES.items()
    }
    assert {0: "SOURCE_UNSPECIFIED", **names} == {n: name for name, n in v1.Source.items()}
