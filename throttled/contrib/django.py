"""Limits in front of a Django site: a middleware for all of it, a decorator for views.

    MIDDLEWARE = [..., "throttled.contrib.django.RateLimitMiddleware"]
    THROTTLED = {
        "LIMIT": "100/minute",                        # every request, by client address
        "RULES": {"POST /login": "5/minute"},
        "EXCLUDE": ["/health"],
        "STORE": "redis://localhost:6379/0",          # for the middleware, decorators and DRF
    }

    @rate_limit("10/minute", key=by_user())           # sync and async views
    def search(request): ...

Given a quota, sync and async code share the counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import wraps
from typing import Any, Final, cast

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.views import View

from throttled._callables import name_of
from throttled._text import shown
from throttled.base import BaseThrottled
from throttled.contrib._django import KINDS, OUTCOMES, Request, Site, naming, served, site
from throttled.contrib.keys import Key
from throttled.contrib.limit import BaseRateLimit
from throttled.contrib.rules import Rules, check_apart, checked_patterns
from throttled.exceptions import DataError, SetUpError
from throttled.store.policy import Flow, afinished, finished

__all__ = ["RateLimit", "RateLimitMiddleware", "Request", "rate_limit"]


class RateLimitMiddleware:
    """Limits requests as `settings.THROTTLED` says; see the top of this module.

    - `LIMIT`: what every request has to pass: a quota, a `RateLimit`, or a list of those.
    - `RULES`: by pattern (`throttled.contrib.rules`), what matching requests have to pass.
    - `EXCLUDE`: patterns of requests that pass uncounted; `EXEMPT`: a callable, called with the
      request, that says so.
    - `COST`, `COUNT_WHEN`: as of `RateLimit`, for the limits of the middleware.
    - `HEADERS` ("ietf", "legacy", "x" or None), `RESET` ("delta" or "epoch"), `PROBLEM` (called
      with the request and the problem body): how it is answered.
    - `KEY`, `STORE`, `USING`, `KEY_PREFIX`, `ON_STORE_ERROR`, `ENFORCE`: what all limits take that
      do not say otherwise. `STORE` is a URL, the arguments of a `RedisStore`, or a store.

    Callables and stores may be dotted paths. Raises `ImproperlyConfigured` when the site starts
    with a setting that is wrong; it names it. In a sync stack it is sync, in an async one async.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[Any], Any]) -> None:
        self.get_response = get_response
        self._asynchronous = _is_async(get_response)
        if self._asynchronous:
            markcoroutinefunction(cast("Any", self))
        self._rules = _rules(site(), self._asynchronous)
        self._replies = site().replies(self._asynchronous)

    def __call__(self, request: Any) -> Any:
        flow = served(
            self._asynchronous,
            request,
            self._rules.of(Request(request, self._asynchronous)),
            self._rules.exempt,
            self._replies,
            lambda: self.get_response(request),
        )
        return afinished(flow) if self._asynchronous else finished(flow)


def _rules(here: Site, asynchronous: bool) -> Rules:
    """The limits of the middleware."""
    said, kind = here.said, KINDS[asynchronous]
    defaults = here.checked(OUTCOMES, asynchronous, **here.defaults(asynchronous))
    exclude, exempt = said.get("EXCLUDE", ()), said.get("EXEMPT")
    with naming("EXCLUDE"):
        checked_patterns("exclude", exclude)
    with naming("EXEMPT"):
        Rules(kind, exempt=exempt)
    with naming("RULES"):
        rules = said.get("RULES")
        if isinstance(rules, Mapping):
            rules = {text: _flavoured(found, asynchronous) for text, found in rules.items()}
        Rules(kind, None, rules, **defaults)
    with naming("LIMIT"):
        limit = _flavoured(said.get("LIMIT"), asynchronous)
        return Rules(kind, limit, rules, exclude, exempt, **defaults)


def _flavoured(found: Any, asynchronous: bool) -> Any:
    """A limit or a list of them, with those of this module made for a flavour."""
    if isinstance(found, RateLimit):
        return found.of(asynchronous)
    if isinstance(found, list | tuple):
        return [_flavoured(each, asynchronous) for each in found]
    return found


class RateLimit:
    """A limit of a view, as a decorator, or of the middleware, where a quota does not say enough.

        @rate_limit("5/minute", count_when=lambda response: response.status_code == 401)
        async def login(request): ...

        @method_decorator(rate_limit("10/minute"), name="dispatch")
        class Search(View): ...

    A quota counts by the view's route (`/items/<int:id>/`), whatever the method; on a handler such
    as `post`, by route and handler. What `THROTTLED` says for all limits holds for it as well.
    """

    def __init__(
        self,
        limit: Any,
        *,
        key: Key | None = None,
        cost: int | Callable[[Any], Any] = 1,
        count_when: Callable[[Any], Any] | None = None,
        exempt: Callable[[Any], Any] | None = None,
        scope: str | None = None,
        **options: Any,
    ) -> None:
        """
        :param limit: a quota ("10/minute", a list of rules, or a callable that returns any of that
            for a key), which sync and async code share. Or a `Throttled` of yours, for code of its
            own flavour only.
        :param key: whom it counts, by default what `THROTTLED["KEY"]` says, else `client_ip()`.
        :param cost: what a request takes, or a callable that is given the request.
        :param count_when: called with the response; a request counts if it returns true.
        :param exempt: called with the request, which passes uncounted if it returns true.
        :param scope: limits of one scope, quota and prefix share their counts.
        :param options: what else `Throttled` takes, such as `store`, `using`, `on_store_error`.
            A `store=` of Redis is for code of its own flavour; for both, say it in the settings.
        :raises DataError: for a bad argument; in `settings.py`, where it is too early to tell,
            when the site starts.
        """
        self._limit = limit
        self._arguments: dict[str, Any] = {
            **({} if key is None else {"key": key}),
            "cost": cost,
            "count_when": count_when,
            "exempt": exempt,
            "scope": scope,
            **options,
        }
        self._observers: list[Any] = []
        # By flavour, for the settings of then.
        self._made: tuple[Site | None, dict[bool, BaseRateLimit]] = (None, {})
        if settings.configured:
            self._check()

    def __repr__(self) -> str:
        return f"RateLimit({shown(self._limit)})"

    def _check(self) -> None:
        """`DataError` unless it is good for one flavour at least."""
        if not isinstance(self._limit, BaseThrottled):
            with suppress(DataError, SetUpError, ImproperlyConfigured):
                self.of(False)
                return
        self.of(getattr(self._limit, "_asynchronous", True))

    def of(self, asynchronous: bool) -> BaseRateLimit:
        """What it is in code of a flavour; `DataError` or `SetUpError` if that cannot take it."""
        here = site()
        made = self._made
        if made[0] is not here:
            made = self._made = here, {}
        found = made[1].get(asynchronous)
        if found is None:
            defaults = here.defaults(asynchronous)
            if isinstance(self._limit, BaseThrottled):
                defaults = {"key": defaults["key"]}  # it brings the rest
            new = KINDS[asynchronous](self._limit, **{**defaults, **self._arguments})
            for observer in self._observers:
                new.observe(observer)
            found = made[1].setdefault(asynchronous, new)
        return found

    def throttle(self, scope: str = "all") -> Any:
        """The `Throttled` that counts for a scope, such as "/items/<int:id>/": to reset a key, say.

        Its own `scope`, if it has one, comes before.
        """
        return self.of(False).throttle(scope)

    def athrottle(self, scope: str = "all") -> Any:
        """The same for async code."""
        return self.of(True).throttle(scope)

    def observe(self, observer: Any) -> None:
        """Let an observer hear of its decisions, in every scope: see `Throttled.observe`."""
        self._observers.append(observer)
        for made in self._made[1].values():
            made.observe(observer)

    def __call__(self, view: Any) -> Any:
        """Limit a view, a handler of a class, or what `method_decorator` makes of one."""
        if isinstance(view, type) or not callable(view):
            raise DataError(
                f"Invalid view: {shown(view)}, must be a function; for a class say "
                f"@method_decorator(rate_limit(...), name='dispatch')."
            )
        asynchronous = _is_async(view) or _answers_later(view)
        limits: tuple[RateLimit, ...] = (*getattr(view, _LIMITS, ()), self)
        together: tuple[bool | RateLimit, ...] = (asynchronous, *limits)
        if settings.configured and view.__module__ != _STAND_IN and together not in _checked:
            check_apart([(each.of(asynchronous), "all") for each in limits])
            _checked.add(together)

        async def alimited(*args: Any, **kwargs: Any) -> Any:
            return await afinished(self._called(True, view, args, kwargs))

        def limited(*args: Any, **kwargs: Any) -> Any:
            if _answers_later(view, *args):
                return alimited(*args, **kwargs)
            return finished(self._called(False, view, args, kwargs))

        wrapper: Any = wraps(view)(alimited if asynchronous else limited)
        setattr(wrapper, _LIMITS, limits)
        return wrapper

    def _called(
        self, asynchronous: bool, view: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Flow[Any]:
        """The response to a call of a view."""
        native = next((each for each in args[:2] if hasattr(each, "META")), None)
        if native is None:
            raise TypeError(f"{name_of(view)} was not called with a request, and cannot be limited")
        scope = Request(native, asynchronous).route
        if _class_of(view, *args) is not None and view.__name__ in View.http_method_names:
            scope = f"{view.__name__.upper()} {scope}"
        replies = site().replies(asynchronous)
        limits = [(self.of(asynchronous), scope)]
        return served(asynchronous, native, limits, None, replies, lambda: view(*args, **kwargs))


#: `RateLimit`, as decorators are called.
rate_limit = RateLimit

# The limits of a view, outermost last.
_LIMITS: Final = "throttled_limits"
# Those that were seen to be good for a flavour, and not to share their counts.
_checked: set[tuple[bool | RateLimit, ...]] = set()
# Where the function is from on which `method_decorator` tries what a decorator does to attributes.
_STAND_IN: Final = "django.utils.decorators"


def _is_async(func: Any) -> bool:
    # Django's marks, which the one of `inspect` does not know before Python 3.12.
    return iscoroutinefunction(func)  # pyright: ignore[reportDeprecated]


def _class_of(view: Any, *args: Any) -> Any:
    """The class-based view that a handler belongs to; None if it is no handler."""
    # `method_decorator` hands over a partial of a bound method.
    owner = getattr(getattr(view, "func", view), "__self__", args[0] if args else None)
    return owner if isinstance(owner, View) else None


def _answers_later(view: Any, *args: Any) -> bool:
    """Whether it is plain code of an async class, such as `dispatch`, that returns a coroutine."""
    owner: Any = _class_of(view, *args)
    return owner is not None and owner.view_is_async
