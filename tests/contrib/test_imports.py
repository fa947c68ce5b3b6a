"""Which file may import which framework, and that everything else needs none."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "throttled"
CONTRIB = PACKAGE / "contrib"

#: What each file may import besides the standard library and what the library itself needs.
FRAMEWORKS = {
    "aiohttp": {"aiohttp"},
    "django": {"asgiref", "django"},
    "drf": {"django", "rest_framework"},
    "fastapi": {"fastapi", "starlette"},
    "flask": {"flask", "flask_login", "werkzeug"},
    "grpc": {"google", "grpc", "grpc_status"},
    "httpx": {"httpx"},
    "mcp": {"mcp", "mcp_types"},
    "otel": {"opentelemetry"},
    "prometheus": {"prometheus_client"},
    "requests": {"requests", "urllib3"},
}
EVERYTHING = sorted(set().union(*FRAMEWORKS.values()))
NEEDED = {"anyio", "cachetools", "redis", "throttled"}

FREE = sorted(
    path.stem
    for path in CONTRIB.glob("*.py")
    if path.stem.lstrip("_") not in {*FRAMEWORKS, "init__"}
)


def imported(path: Path) -> set[str]:
    """The top-level packages that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names - set(sys.stdlib_module_names)


@pytest.mark.parametrize("path", sorted(CONTRIB.glob("*.py")), ids=lambda path: path.stem)
def test_a_framework_is_imported_in_its_own_file_alone(path: Path) -> None:
    own = FRAMEWORKS.get(path.stem.removeprefix("_"), set())
    assert imported(path) - NEEDED <= own


def test_every_adapter_has_an_extra_of_its_name() -> None:
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text("utf-8"))["project"]
    extras = set(project["optional-dependencies"])
    assert {"asgi", *FRAMEWORKS} - {"drf"} <= extras  # REST framework is Django's own to bring


@pytest.mark.parametrize("name", FREE)
def test_what_is_shared_imports_where_no_framework_is_installed(name: str) -> None:
    blocked = "".join(f"sys.modules[{each!r}] = None; " for each in EVERYTHING)
    code = f"import sys; {blocked}import throttled.contrib.{name}"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


#: What frameworks bring along themselves, or can do without.
BROUGHT = {
    "drf": {"asgiref"},
    "fastapi": {"opentelemetry"},
    "mcp": {"httpx", "opentelemetry", "starlette"},
}
OPTIONAL = {"flask_login"}


@pytest.mark.parametrize("name", sorted(FRAMEWORKS))
def test_an_adapter_imports_with_its_own_framework_alone(name: str) -> None:
    needed = FRAMEWORKS[name] | BROUGHT.get(name, set())
    absent = OPTIONAL | (set(EVERYTHING) - needed)
    blocked = "".join(f"sys.modules[{each!r}] = None; " for each in sorted(absent))
    # REST framework reads the settings of its project when it is imported.
    project = "from django.conf import settings; settings.configure(); " if name == "drf" else ""
    code = f"import sys; {blocked}{project}import throttled.contrib.{name}"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
