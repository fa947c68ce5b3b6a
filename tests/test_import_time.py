"""What importing the library takes: other packages, and time."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from importlib import import_module
from math import inf
from pathlib import Path
from statistics import median
from time import perf_counter

import pytest

import throttled
import throttled.asyncio
import throttled.asyncio.store

pytestmark = pytest.mark.realtime

ROOT = Path(throttled.__file__).parents[1]

#: What an import may bring along, beside the standard library.
NEEDED = {
    "throttled": {"cachetools", "throttled"},
    "throttled.store": {"cachetools", "throttled"},
    "throttled.asyncio": {
        "anyio",
        "cachetools",
        "idna",
        "sniffio",
        "throttled",
        "typing_extensions",
    },
}


def said(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    return done.stdout


def loaded_by(statement: str) -> set[str]:
    """The modules that a statement loads in a fresh interpreter."""
    return set(
        said(
            f"import sys; before = {{*sys.modules}}; {statement}; "
            f"print(*[each for each in sys.modules if each not in before])"
        ).split()
    )


@pytest.mark.parametrize("name", NEEDED)
def test_an_import_loads_no_package_that_it_could_do_without(name: str) -> None:
    packages = {module.partition(".")[0] for module in loaded_by(f"import {name}")}
    assert packages - sys.stdlib_module_names <= NEEDED[name]


#: Package -> what is loaded when it is asked for: name -> one of the modules that come with it.
LATE = {
    "throttled": {
        "RedisStore": "throttled.store.redis",
        "load": "throttled.policies.base",
        "policies": "throttled.policies.base",
        "utils": "throttled.utils",
    },
    "throttled.store": {
        "ClusterConnectionFactory": "throttled.store.connection",
        "ConnectionFactory": "throttled.store.connection",
        "RedisStore": "throttled.store.redis",
        "SentinelConnectionFactory": "throttled.store.connection",
        "connection": "throttled.store.connection",
        "redis": "throttled.store.redis",
    },
    "throttled.asyncio": {
        "RedisStore": "throttled.store.aioredis",
        "load": "throttled.policies.base",
        "policies": "throttled.asyncio.policies",
        "utils": "throttled.utils",
    },
    "throttled.asyncio.store": {
        "ClusterConnectionFactory": "throttled.store.connection",
        "ConnectionFactory": "throttled.store.connection",
        "RedisStore": "throttled.store.aioredis",
        "SentinelConnectionFactory": "throttled.store.connection",
    },
}


@pytest.mark.parametrize("package", LATE)
def test_what_few_programs_use_is_loaded_when_it_is_asked_for(package: str) -> None:
    late = LATE[package]
    assert loaded_by(f"import {package}").isdisjoint(late.values())
    assert loaded_by(f"from {package} import {', '.join(late)}") >= {*late.values()}
    first, module = next(iter(late.items()))
    assert module in loaded_by(f"import {package}; {package}.{first}")


@pytest.mark.parametrize("package", LATE)
def test_what_is_loaded_late_is_there_for_those_who_look(package: str) -> None:
    listed = said(f"import {package}; print(*dir({package}))").split()
    assert {*LATE[package], *sys.modules[package].__all__} <= {*listed}
    assert said(f"from {package} import *; print(RedisStore.__name__)").strip() == "RedisStore"


def test_a_name_that_is_loaded_late_is_the_object_of_its_module() -> None:
    home = import_module("throttled.store.redis")
    assert throttled.RedisStore is throttled.store.RedisStore is home.RedisStore
    assert throttled.asyncio.RedisStore is throttled.asyncio.store.RedisStore
    assert throttled.load is import_module("throttled.policies").load
    assert vars(throttled)["RedisStore"] is throttled.RedisStore  # asked for once, it stays
    assert pickle.loads(pickle.dumps(throttled.RedisStore)) is throttled.RedisStore


@pytest.mark.parametrize("package", LATE)
def test_a_name_that_there_is_not_is_said_as_for_any_module(package: str) -> None:
    module = sys.modules[package]
    words = f"module '{package}' has no attribute 'RedisStor'"
    with pytest.raises(AttributeError, match=words) as raised:
        _ = module.RedisStor
    assert (raised.value.name, raised.value.obj) == ("RedisStor", module)
    with pytest.raises(ImportError, match="cannot import name 'RedisStor'"):
        exec(f"from {package} import RedisStor")


def seconds(statement: str, environment: dict[str, str]) -> float:
    """How long a whole process takes that does no more than that."""
    start = perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True, timeout=60, env=environment)
    return perf_counter() - start


def ratio(one: str, other: str, bytecode: Path, most: float) -> float:
    """How many times as long as the other one takes, as processes that take turns.

    Measured for longer if it seems to be more than `most`: others use the machine too.
    """
    # What is installed has been compiled, and so is this.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONPYCACHEPREFIX": str(bytecode)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    times: dict[str, list[float]] = {one: [], other: []}
    for statement in times:
        seconds(statement, environment)
    found = inf
    for _ in range(5):
        for _ in range(11):
            for statement, taken in times.items():
                taken.append(seconds(statement, environment))
        found = median(times[one]) / median(times[other])
        if found <= most:
            break
    return found


@pytest.mark.slow
def test_importing_it_takes_no_longer_than_one_and_a_half_asyncio(tmp_path: Path) -> None:
    assert ratio("import throttled", "import asyncio", tmp_path, 1.5) <= 1.5


@pytest.mark.slow
def test_importing_the_async_half_takes_little_more_than_what_it_runs_on(tmp_path: Path) -> None:
    below = "import anyio._backends._asyncio"
    assert ratio("import throttled.asyncio", below, tmp_path, 1.5) <= 1.5
