"""A real service in a thread of its own, and clients of both flavours behind one interface."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any, Self

import grpc
import pytest

from tests.servers import HOST, wait_until
from throttled import MemoryStore
from throttled.asyncio import Throttled as AsyncThrottled
from throttled.asyncio.service import Client as AsyncClient
from throttled.service import Client
from throttled.service.server import Servicer
from throttled.testing import FakeClock

#: A busy machine may take its time; what is tested is not how long.
PATIENT = 20.0

#: What the services of the tests limit by, unless a test has others.
POLICIES: dict[str, dict[str, Any]] = {
    "api": {"quota": "3/m"},
    "log": {"quota": "5/m; 100/d", "using": "sliding_window_log"},
    "one": {"quota": "1/s burst 1", "using": "gcra"},
    "many": {"quota": "1000/366d"},
}


class Service:
    """A server of `grpc.aio` with policies on one store, in an event loop of its own thread."""

    def __init__(
        self,
        policies: Mapping[str, Any] | None = None,
        *,
        store: Any = None,
        address: str = f"{HOST}:0",
        credentials: Any = None,
        interceptors: Any = (),
        servicer: Any = None,
    ) -> None:
        self.clock = FakeClock()
        self.store = MemoryStore(clock=self.clock) if store is None else store
        #: Its limits by name, as the service has them.
        self.policies = {
            name: AsyncThrottled(store=self.store, key_prefix=name, **arguments)
            for name, arguments in (POLICIES if policies is None else policies).items()
        }
        self.servicer = Servicer(self.policies) if servicer is None else servicer(self.policies)
        #: The messages that came, by method.
        self.asked: list[str] = []
        self._address = address
        self._credentials = credentials
        self._interceptors = interceptors
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)

    def __enter__(self) -> Self:
        self._thread.start()
        self.do(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    def do(self, work: Any) -> Any:
        """What a coroutine comes to in the loop of the service."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(PATIENT)

    async def _start(self) -> None:
        self._server = grpc.aio.server(interceptors=[*self._interceptors, _Ear(self.asked)])
        self.servicer.add_to(self._server)
        if self._credentials is None:
            port = self._server.add_insecure_port(self._address)
        else:
            port = self._server.add_secure_port(self._address, self._credentials)
        self.port = port
        #: What clients connect to.
        self.target = self._address if self._address.startswith("unix:") else f"{HOST}:{port}"
        await self._server.start()

    def stop(self, grace: float | None = None) -> None:
        self.do(self._server.stop(grace))

    def limit(self, policy: str, key: str, cost: int = 1) -> Any:
        """A call of the service's own limit."""
        return self.do(self.policies[policy].limit(key, cost))

    def used(self, policy: str, key: str) -> int:
        """How much of a key is used."""
        state = self.do(self.policies[policy].peek(key))
        return int(state.limit - state.remaining)

    def free(self, policy: str, key: str) -> float:
        """In how many seconds a call of a key fits."""
        return float(self.do(self.policies[policy].peek(key)).retry_after)


class _Ear(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Writes down which methods are called."""

    def __init__(self, asked: list[str]) -> None:
        self._asked = asked

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        self._asked.append(details.method.rpartition("/")[2])
        return await continuation(details)


class Caller:
    """Code of one flavour that has clients."""

    def __init__(self, asynchronous: bool) -> None:
        self.asynchronous = asynchronous
        self._runner = asyncio.Runner()
        self._clients = ExitStack()

    def client(self, target: str, **options: Any) -> Any:
        """A client, closed in the end."""
        options.setdefault("decision_timeout", PATIENT)
        made = (AsyncClient if self.asynchronous else Client)(target, **options)
        self._clients.callback(lambda: self.wait(made.close()))
        return made

    def wait(self, value: Any) -> Any:
        """The value, awaited if it has to be."""
        if not isinstance(value, Awaitable):
            return value

        async def awaited() -> Any:
            return await value

        return self._runner.run(awaited())

    def at_once(self, calls: list[Callable[[], Any]]) -> list[Any]:
        """What calls come to that are made at the same time, each by a thread or task."""
        if self.asynchronous:

            async def gathered() -> list[Any]:
                return await asyncio.gather(*[call() for call in calls], return_exceptions=True)

            return self._runner.run(gathered())
        answers: list[Any] = [None] * len(calls)
        barrier = threading.Barrier(len(calls))

        def run(place: int) -> None:
            barrier.wait(PATIENT)
            try:
                answers[place] = calls[place]()
            except Exception as error:
                answers[place] = error

        threads = [threading.Thread(target=run, args=(place,)) for place in range(len(calls))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENT * 2)
        return answers

    def close(self) -> None:
        self._clients.close()
        self._runner.close()


@pytest.fixture(params=["sync", "async"])
def caller(request: pytest.FixtureRequest) -> Iterator[Caller]:
    caller = Caller(request.param == "async")
    yield caller
    caller.close()


@pytest.fixture
def service() -> Iterator[Service]:
    with Service() as service:
        yield service


@pytest.fixture
def client(caller: Caller, service: Service) -> Any:
    return caller.client(service.target)


class Held(Servicer):
    """A service that holds what comes while it is told to."""

    def __init__(self, policies: Any) -> None:
        super().__init__(policies)
        self.held = 0
        self.sizes: list[int] = []
        #: How many times a method answers UNAVAILABLE without doing anything.
        self.failing: Counter[str] = Counter()
        self._open = asyncio.Event()
        self._open.set()

    def hold(self) -> None:
        self._open.clear()

    async def release(self) -> None:
        self._open.set()

    async def _passing(self, method: str, context: Any) -> None:
        if self.failing[method] > 0:
            self.failing[method] -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not just now")
        self.held += 1
        await self._open.wait()

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.sizes.append(1)
        answer = await super().Check(request, context)
        await self._passing("Check", context)
        return answer

    async def CheckMany(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.sizes.append(len(request.checks))
        answer = await super().CheckMany(request, context)
        await self._passing("CheckMany", context)
        return answer

    async def Settle(self, request: Any, context: Any) -> Any:  # noqa: N802
        answer = await super().Settle(request, context)
        await self._passing("Settle", context)
        return answer


@pytest.fixture
def held() -> Any:
    with Service(servicer=Held) as service:
        yield service
        service.do(service.servicer.release())


class Team:
    """Calls under way at the same time: threads, or tasks of a loop in a thread."""

    def __init__(self, asynchronous: bool, service: Service, **options: Any) -> None:
        self.asynchronous = asynchronous
        options.setdefault("decision_timeout", PATIENT)
        self.client: Any = (AsyncClient if asynchronous else Client)(service.target, **options)
        self.service = service
        self.answers: dict[int, Any] = {}
        self._count = 0
        self.loop = asyncio.new_event_loop()
        self.runner = threading.Thread(target=self.loop.run_forever)
        self.threads: list[threading.Thread] = []
        self.tasks: list[Any] = []

    def __enter__(self) -> Self:
        self.runner.start()
        return self

    def __exit__(self, *_: object) -> None:
        for thread in self.threads:
            thread.join(PATIENT)
        if self.asynchronous:
            asyncio.run_coroutine_threadsafe(self.client.close(), self.loop).result(PATIENT)
        else:
            self.client.close()
        asyncio.run_coroutine_threadsafe(self.loop.shutdown_asyncgens(), self.loop).result(PATIENT)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.runner.join(PATIENT)
        self.loop.close()

    def begin(self, function: Callable[..., Any], *args: Any) -> int:
        """Begin a call; its place among the answers."""
        place, self._count = self._count, self._count + 1
        if self.asynchronous:

            async def acall() -> None:
                try:
                    self.answers[place] = await function(*args)
                except BaseException as error:
                    self.answers[place] = error
                    if isinstance(error, asyncio.CancelledError):
                        raise

            self.tasks.append(asyncio.run_coroutine_threadsafe(acall(), self.loop))
            return place

        def call() -> None:
            try:
                self.answers[place] = function(*args)
            except BaseException as error:
                self.answers[place] = error

        self.threads.append(threading.Thread(target=call))
        self.threads[-1].start()
        return place

    @property
    def waiting(self) -> int:
        """How many asks have gathered."""
        if not self.asynchronous:
            return len(self.client._flights._queue)
        return sum(len(reach.flights._queue) for reach in self.client._reaches.values())

    def gather(self, function: Callable[..., Any], *args: Any) -> int:
        """Begin a call that has to wait for the flight under way."""
        before = self.waiting
        place = self.begin(function, *args)
        wait_until(lambda: self.waiting == before + 1, "gathering")
        return place

    def off(self, function: Callable[..., Any], *args: Any) -> int:
        """Begin a call that the service holds."""
        before = self.service.servicer.held
        place = self.begin(function, *args)
        wait_until(lambda: self.service.servicer.held == before + 1, "a call that is held")
        return place

    def done(self) -> dict[int, Any]:
        """Let the service answer, and what became of all calls."""
        self.service.do(self.service.servicer.release())
        wait_until(lambda: len(self.answers) == self._count, "all answers")
        return self.answers


@pytest.fixture(params=["sync", "async"])
def team(request: pytest.FixtureRequest, held: Service) -> Any:
    with Team(request.param == "async", held) as team:
        yield team
