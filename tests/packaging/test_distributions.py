"""What the wheel and the source distribution hold, and a first program with the wheel alone."""

from __future__ import annotations

import sys
from email import message_from_bytes
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import throttled
from tests.packaging.building import (
    EXTRAS,
    FIRST,
    ROOT,
    Distributions,
    Environment,
    build,
    done,
    extras,
    in_source,
    in_wheel,
    project,
)

if TYPE_CHECKING:
    from email.message import Message

PACKAGE = ROOT / "throttled"
INFO = f"throttled_core-{throttled.__version__}.dist-info"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Distributions:
    return build(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def wheel(built: Distributions) -> dict[str, bytes]:
    return in_wheel(built.wheel)


@pytest.fixture(scope="module")
def metadata(wheel: dict[str, bytes]) -> Message:
    return message_from_bytes(wheel[f"{INFO}/METADATA"])


def files_below(place: Path) -> set[str]:
    """The files of the tree, but for what tools leave there."""
    return {
        str(path.relative_to(ROOT))
        for path in place.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_every_extra_is_tried_by_itself() -> None:
    assert set(extras()) <= set(EXTRAS), "say in tests.packaging.building what it is there for"


def test_the_version_is_the_same_wherever_it_stands() -> None:
    assert throttled.__version__ == project()["version"]
    assert f"\n{throttled.__version__} (" in (ROOT / "CHANGELOG.rst").read_text("utf-8")


@pytest.mark.slow
def test_the_wheel_is_the_package_and_nothing_else(wheel: dict[str, bytes]) -> None:
    told = ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")
    assert {*wheel} == files_below(PACKAGE) | {f"{INFO}/{name}" for name in told}


@pytest.mark.slow
def test_the_wheel_has_what_is_not_python(wheel: dict[str, bytes]) -> None:
    expected = {"throttled/py.typed", "throttled/service/v1/throttled.proto"}
    for where, what in {
        "algorithms": "*.lua",
        "contract": "*.json",
        "contract/vectors": "*.json",
        "service/v1": "*_pb2*.py*",
        "dashboard/static": "**/*.*",
    }.items():
        found = {path for path in (PACKAGE / where).glob(what) if path.is_file()}
        assert found or where.startswith("dashboard"), where
        expected |= {str(path.relative_to(ROOT)) for path in found}
    assert {f"throttled/algorithms/{name}.lua" for name in ("bucket", "hold")} <= expected
    assert {f"throttled/contract/{name}.json" for name in ("layout", "manifest")} <= expected
    for name in expected:
        assert wheel[name] == (ROOT / name).read_bytes(), name


@pytest.mark.slow
def test_the_source_distribution_makes_the_same_wheel(
    built: Distributions, wheel: dict[str, bytes], tmp_path: Path
) -> None:
    """The one above was made from the source distribution; this one is made from the tree."""
    done(sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path, ROOT)
    (other,) = tmp_path.glob("*.whl")
    assert other.name == built.wheel.name
    assert in_wheel(other) == wheel


@pytest.mark.slow
def test_the_source_distribution_is_all_that_development_needs(built: Distributions) -> None:
    held = in_source(built.source)
    alone = {"CHANGELOG.rst", "LICENSE", "Makefile", "README.md", "pyproject.toml"}
    for folder in ("throttled", "tests", "docs"):
        assert files_below(ROOT / folder) <= {*held}
    assert alone <= {*held}
    assert {name for name in held if "/" not in name} <= alone | {"PKG-INFO", ".gitignore"}
    assert not [name for name in held if name.endswith(".pyc")]


@pytest.mark.slow
def test_what_an_index_shows(metadata: Message) -> None:
    told = project()
    assert metadata["Name"] == "throttled-core"
    assert metadata["Version"] == throttled.__version__
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "MIT"
    assert metadata.get_all("License-File") == ["LICENSE"]
    assert metadata["Summary"] == told["description"]
    assert metadata["Description-Content-Type"] == "text/markdown"
    shown = metadata.get_payload(decode=True)
    assert isinstance(shown, bytes)
    assert shown.decode("utf-8").startswith("# throttled\n")
    assert metadata.get_all("Classifier") == told["classifiers"]
    assert set(metadata.get_all("Provides-Extra") or ()) == set(told["optional-dependencies"])


@pytest.mark.slow
def test_a_plain_install_brings_two_packages(metadata: Message) -> None:
    plain = [each for each in metadata.get_all("Requires-Dist") or () if "extra ==" not in each]
    assert sorted(each.partition(">")[0] for each in plain) == ["anyio", "cachetools"]


@pytest.mark.slow
def test_the_wheel_alone_is_enough_for_a_first_program(
    built: Distributions, tmp_path: Path
) -> None:
    fresh = Environment(Path(sys.executable), tmp_path / "fresh")
    fresh.install(built.wheel)
    fresh.check()
    fresh.run("-W", "error", "-c", FIRST)
    where = fresh.run("-c", "import throttled; print(throttled.__file__)").strip()
    assert Path(where).is_relative_to(tmp_path)
    with pytest.raises(AssertionError, match=r"pip install 'throttled-core\[cli\]'"):
        fresh.run("-m", "throttled", "--help")
    with pytest.raises(AssertionError, match=r"throttled-core\[client\]"):
        fresh.run("-c", "import throttled.service; throttled.service.Client('localhost:1')")
    assert (fresh.python.parent / "throttled").exists()
