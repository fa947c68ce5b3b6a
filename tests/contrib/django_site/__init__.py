"""A Django site for the tests: configured once, its URLs and settings as each test wants them."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from atexit import register
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any

import django
from django.conf import settings
from django.core.management import call_command
from django.http import HttpResponse
from django.test import AsyncClient, Client, override_settings
from django.urls import path

from throttled import MemoryStore
from throttled.testing import FakeClock

MIDDLEWARE = "throttled.contrib.django.RateLimitMiddleware"
SESSIONS = "django.contrib.sessions.middleware.SessionMiddleware"
USERS = "django.contrib.auth.middleware.AuthenticationMiddleware"

_directory = Path(tempfile.mkdtemp(prefix="throttled-django-"))
register(shutil.rmtree, _directory, ignore_errors=True)

if not settings.configured:
    settings.configure(
        SECRET_KEY="of no use to anybody",
        ALLOWED_HOSTS=["*"],
        ROOT_URLCONF=__name__,
        INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "rest_framework"],
        DATABASES={
            "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": _directory / "database"}
        },
        SESSION_ENGINE="django.contrib.sessions.backends.signed_cookies",
        USE_TZ=True,
        LOGGING_CONFIG=None,
    )
    django.setup()

urlpatterns: list[Any] = []


def with_users() -> Any:
    """Two users in a database of files, which threads share."""
    from django.contrib.auth.models import User

    call_command("migrate", verbosity=0)
    return [User.objects.get_or_create(username=name)[0] for name in ("ann", "bob")]


@contextmanager
def site(*urls: Any, middleware: Any = (MIDDLEWARE,), **others: Any) -> Iterator[None]:
    """A site with these URLs and settings."""
    module = ModuleType("urls")
    module.urlpatterns = list(urls)  # type: ignore[attr-defined]
    with override_settings(ROOT_URLCONF=module, MIDDLEWARE=list(middleware), **others):
        yield


def view(kind: str, body: Callable[[Any], Any] = lambda request: HttpResponse("fine")) -> Any:
    """A sync or async view that answers what `body` does."""

    def plain(request: Any, **_: Any) -> Any:
        """Answers."""
        return body(request)

    async def awaited(request: Any, **_: Any) -> Any:
        """Answers."""
        await asyncio.sleep(0)
        return body(request)

    return plain if kind == "sync" else awaited


def home(kind: str = "sync") -> Any:
    """The URL of a view without a limit of its own."""
    return path("", view(kind))


class _AsyncClient(AsyncClient):
    """One that comes from an address: Django's can only be told headers."""

    def __init__(self, peer: str, **options: Any) -> None:
        super().__init__(**options)
        self.peer = peer

    def _base_scope(self, **request: Any) -> Any:
        return {**super()._base_scope(**request), "client": [self.peer, 1]}


class Caller:
    """A client of a sync (`wsgi`) or an async stack (`asgi`)."""

    def __init__(self, stack: str, user: Any = None, peer: str = "127.0.0.1") -> None:
        self.asynchronous = stack == "asgi"
        self.client: Any
        if self.asynchronous:
            self.client = _AsyncClient(peer, raise_request_exception=False)
        else:
            self.client = Client(raise_request_exception=False, REMOTE_ADDR=peer)
        if user is not None:
            self.client.force_login(user)

    def __call__(self, target: str = "/", method: str = "get", **more: Any) -> Any:
        """The response to a request; its body is read."""
        if not self.asynchronous:
            return getattr(self.client, method)(target, **more)
        return asyncio.run(getattr(self.client, method)(target, **more))

    def statuses(self, number: int, target: str = "/", **more: Any) -> list[int]:
        return [self(target, **more).status_code for _ in range(number)]

    async def at_once(self, number: int, target: str) -> list[int]:
        """The statuses of requests that run side by side (of an async stack)."""
        responses = await asyncio.gather(*[self.client.get(target) for _ in range(number)])
        return [response.status_code for response in responses]


def problem(response: Any) -> dict[str, Any]:
    """The problem body of a response."""
    assert response["Content-Type"] == "application/problem+json"
    found: dict[str, Any] = json.loads(response.content)
    assert found["status"] == response.status_code
    return found


def remaining(response: Any) -> int:
    """What the first policy of the `RateLimit` header leaves."""
    return int(response["RateLimit"].split(";r=")[1].split(";")[0])


_prefixes = (f"site-{n}" for n in count())


class Where:
    """Where a site counts: what its settings say, and the clock."""

    def __init__(self, url: str | None = None) -> None:
        self.clock = FakeClock()
        store: Any = MemoryStore(clock=self.clock)
        if url is not None:
            # Patient: the tests are about counts, and many threads may share few processors.
            options = {"DECISION_TIMEOUT": 10, "SOCKET_TIMEOUT": 10}
            store = {"server": url, "clock": self.clock, "options": options}
        self.said: dict[str, Any] = {"STORE": store, "KEY_PREFIX": next(_prefixes)}
