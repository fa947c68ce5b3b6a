"""What becomes of callers who are cancelled, interrupted, or forked."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from tests.servers import wait_until
from tests.service.clients import (
    PATIENT,
    Held,
    Service,
    caller,
    client,
    held,
    service,
    team,
)
from throttled import MemoryStore
from throttled.asyncio.service import Client as AsyncClient

pytestmark = pytest.mark.realtime

__all__ = ["caller", "client", "held", "service", "team"]


async def until(fine: Callable[[], Any]) -> None:
    """Wait for something that others do."""
    await asyncio.to_thread(wait_until, fine, "what was to come")


def gives_back(service: Service, policy: str, used: int) -> None:
    wait_until(lambda: service.used(policy, "k") == used, f"{used} used")


def test_cancelled_tasks_give_back_what_was_admitted(held: Service) -> None:
    async def main() -> None:
        async with AsyncClient(held.target, decision_timeout=PATIENT) as client:
            many = client.policy("many")
            held.servicer.hold()
            first = asyncio.create_task(many.limit("k"))
            await until(lambda: held.servicer.held)
            others = [asyncio.create_task(many.limit("k")) for _ in range(3)]
            group = asyncio.create_task(many.limit_many(["k", "k"]))
            await asyncio.sleep(0.01)
            # One in the air, one of those who have gathered, which is never sent.
            first.cancel()
            others[0].cancel()
            await asyncio.wait([first, others[0]])
            release(held)
            assert [(await each).limited for each in others[1:]] == [False, False]
            assert len(await group) == 2
            await until(lambda: sorted(held.asked) == ["Check", "CheckMany", "Refund"])
        assert held.servicer.sizes == [1, 4]

    asyncio.run(main())
    gives_back(held, "many", 4)


def release(held: Service) -> None:
    asyncio.run_coroutine_threadsafe(held.servicer.release(), held.loop)


def test_closing_waits_for_what_is_given_back(held: Service) -> None:
    async def main() -> None:
        async with AsyncClient(held.target, decision_timeout=PATIENT) as client:
            many = client.policy("many")
            held.servicer.hold()
            task = asyncio.create_task(many.limit_many(["k", "k"]))
            await until(lambda: held.servicer.held)
            task.cancel()
            await asyncio.wait([task])
            asyncio.get_running_loop().call_later(0.1, release, held)

    asyncio.run(main())
    gives_back(held, "many", 0)


def test_a_task_that_is_cancelled_as_its_answer_comes(service: Service) -> None:
    async def main() -> None:
        async with AsyncClient(service.target, decision_timeout=PATIENT) as client:
            many = client.policy("many")
            flights: Any = client._reached().flights
            land = flights._land

            def landing(*args: Any) -> None:
                land(*args)
                task.cancel()

            flights._land = landing
            for _ in range(3):
                task = asyncio.create_task(many.limit("k"))
                with pytest.raises(asyncio.CancelledError):
                    await task

    asyncio.run(main())
    gives_back(service, "many", 0)


def test_cancelled_waiters_give_back_their_slots(service: Service) -> None:
    real = Service({"one": {"quota": "1/h burst 1"}}, store=MemoryStore())
    with real:

        async def main() -> None:
            async with AsyncClient(real.target, decision_timeout=PATIENT) as client:
                one = client.policy("one", timeout=7200)
                await one.limit("k")
                before = await one.peek("k")
                waiter = asyncio.create_task(one.limit("k"))
                estimate = asyncio.create_task(take(one))
                await until(lambda: real.servicer.waiting() == {"one": 2})
                assert (await one.peek("k")).retry_after > before.retry_after
                for task in (estimate, waiter):
                    task.cancel()
                    await asyncio.wait([task])
                await until(lambda: real.free("one", "k") <= before.retry_after)

        asyncio.run(main())


async def take(policy: Any) -> Any:
    return await policy.reserve("k")


def test_a_timeout_around_a_wait(service: Service) -> None:
    async def main() -> None:
        async with AsyncClient(service.target, decision_timeout=PATIENT) as client:
            one = client.policy("one")
            await one.limit("k")
            with anyio.move_on_after(0.5):
                # Its slot lies beyond the scope: refused at once.
                assert (await one.limit("k", timeout=PATIENT)).limited

    asyncio.run(main())


INTERRUPTED = """
import signal, sys, threading, time
from throttled.service import Client
client = Client(sys.argv[1], decision_timeout=20)
many = client.policy("many")
mode = sys.argv[2]
if mode == "rider":
    threading.Thread(target=many.limit, args=("first",)).start()
    while client._flights._air is None:
        time.sleep(0.001)
print("ready", flush=True)
try:
    if mode == "waiter":
        one = client.policy("one")
        one.limit("k")
        print("waits", flush=True)
        one.limit("k", timeout=7200)
    else:
        many.limit("k")
except KeyboardInterrupt:
    print("interrupted", flush=True)
    started = time.monotonic()
while client._flights._air is not None:
    time.sleep(0.001)
"""


@pytest.mark.parametrize("mode", ["carrier", "rider", "waiter"])
def test_an_interrupted_thread_gives_back(mode: str) -> None:
    limits = {"many": {"quota": "1000/366d"}, "one": {"quota": "1/h burst 1"}}
    with Service(limits, store=MemoryStore(), servicer=Held) as service:
        held = service.servicer
        if mode != "waiter":
            held.hold()
        child = subprocess.Popen(
            [sys.executable, "-c", INTERRUPTED, service.target, mode],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert child.stdout is not None
        with child, child.stdout:
            assert child.stdout.readline() == "ready\n"
            if mode == "waiter":
                assert child.stdout.readline() == "waits\n"
                wait_until(lambda: service.servicer.waiting() == {"one": 1}, "waiting")
            else:
                wait_until(lambda: held.held == 1, "a call that is held")
            if mode == "rider":
                time.sleep(0.3)
            child.send_signal(signal.SIGINT)
            if mode == "carrier":
                # Its answer is waited for a moment longer.
                time.sleep(0.2)
                service.do(held.release())
            assert child.stdout.readline() == "interrupted\n"
            service.do(held.release())
            assert child.wait(PATIENT) == 0
        if mode == "waiter":
            wait_until(lambda: not service.servicer.waiting(), "nobody who waits")
            assert service.used("one", "k") == 1
        else:
            gives_back(service, "many", 0)


# -- forks ----------------------------------------------------------------------------------------


FORKING = """
import os, sys
from throttled.service import Client
many = Client(sys.argv[1], decision_timeout=20).policy("many")
many.limit("k")
children = []
for _ in range(2):
    child = os.fork()
    if not child:
        code = 1
        try:
            code = int(many.limit("k").limited)
        finally:
            os._exit(code)
    children.append(child)
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
print(codes, many.limit("k").state.remaining)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_child_connects_anew(service: Service) -> None:
    run = subprocess.run(
        [sys.executable, "-c", FORKING, service.target],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert run.stdout == "[0, 0] 996\n", run.stderr
