"""What is generated of the protocol is what it says today, by a generator that is old enough."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
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


def said(root: Path, name: str) -> list[tuple[object, ...]]:
    """What a stub says, in whatever words: each generator has its own."""

    def each(node: ast.AST) -> Iterator[tuple[object, ...]]:
        if isinstance(node, ast.ClassDef):
            yield node.name, ast.get_docstring(node)
        elif isinstance(node, ast.FunctionDef):
            yield node.name, ast.get_docstring(node), [arg.arg for arg in node.args.args]
        elif isinstance(node, ast.AnnAssign):
            yield ast.unparse(node.target), ast.unparse(node.annotation)
        elif isinstance(node, ast.Constant) and (
            isinstance(node.value, bytes) or str(node.value).startswith("/")
        ):
            yield (node.value,)  # the protocol itself, and the paths of methods

    text = (root / PROTOCOL.with_name(name)).read_text("utf-8")
    return [words for node in ast.walk(ast.parse(text)) for words in each(node)]


def test_stubs_are_current(tmp_path: Path) -> None:
    generate(ROOT, tmp_path)
    for name in STUBS:
        assert said(tmp_path, name) == said(ROOT, name), f"{name}: run `make proto`"


def test_another_protocol_makes_others(tmp_path: Path) -> None:
    text = (ROOT / PROTOCOL).read_text("utf-8")
    changes = (
        ("bool held = 6;", "bool held = 60;", {"throttled_pb2.py"}),
        ("bool held = 6;", "bool kept = 6;", {"throttled_pb2.py", "throttled_pb2.pyi"}),
        ("// Forget a key:", "// Forget the key:", {"throttled_pb2_grpc.py"}),
        ("rpc Reset(", "rpc Forget(", {"throttled_pb2.py", "throttled_pb2_grpc.py"}),
    )
    for place, (before, after, which) in enumerate(changes):
        changed = tmp_path / str(place)
        (changed / PROTOCOL).parent.mkdir(parents=True)
        (changed / PROTOCOL).write_text(text.replace(before, after), "utf-8")
        generate(changed, changed)
        assert {name for name in STUBS if said(changed, name) != said(ROOT, name)} == which


def test_the_extras_ask_for_what_the_stubs_need() -> None:
    stubs = [(ROOT / PROTOCOL.with_name(name)).read_text("utf-8") for name in STUBS]
    (protobuf,) = re.findall(r"# Protobuf Python Version: (.+)", stubs[0])
    (grpc,) = re.findall(r"GRPC_GENERATED_VERSION = '(.+)'", stubs[2])
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    assert f'client = ["grpcio>={grpc},<2", "protobuf>={protobuf},<9"]' in project
    assert f'"grpcio-health-checking>={grpc},<2"' in project
    assert f"grpcio-tools=={grpc}\n" in (ROOT / "Makefile").read_text("utf-8")


def test_sources_have_the_numbers_of_the_protocol() -> None:
    names = {
        number: "SOURCE_" + source.upper().replace("-", "_") for number, source in SOURCES.items()
    }
    assert {0: "SOURCE_UNSPECIFIED", **names} == {n: name for name, n in v1.Source.items()}
