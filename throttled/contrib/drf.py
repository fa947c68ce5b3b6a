"""Throttles of Django REST framework that are exact, also when requests come at once.

    REST_FRAMEWORK = {
        "DEFAULT_THROTTLE_CLASSES": [
            "throttled.contrib.drf.AnonRateThrottle",
            "throttled.contrib.drf.UserRateThrottle",
        ],
        "DEFAULT_THROTTLE_RATES": {"anon": "100/day", "user": "10/s burst 20; 1000/day"},
        "EXCEPTION_HANDLER": "throttled.contrib.drf.exception_handler",    # for problem bodies
    }

    class Burst(Throttle):
        rate = "10/min"

The classes of this module stand in for those of DRF that have the same names. Stores, keys and
headers are as `settings.THROTTLED` says: see `throttled.contrib.django`.

Theory of operation
-------------------
* DRF asks one throttle after the other, whatever the first ones say. So the first that is asked
  decides for all throttles of the view that are of this module: each is taken, or none, and
  `Retry-After` is that of the slowest.
* Headers stand on every response, and a response decides what counts by its outcome, so that the
  throttle attends the end of the view, unless a middleware or decorator around it does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import inf
from typing import Any, ClassVar, Final, cast

from django.core.exceptions import ImproperlyConfigured
from django.http import HttpResponse
from rest_framework import exceptions
from rest_framework.settings import api_settings
from rest_framework.throttling import BaseThrottle
from rest_framework.views import exception_handler as default_handler

from throttled._text import shown
from throttled.contrib._django import Request, Visit, site
from throttled.contrib.django import RateLimit
from throttled.contrib.inbound import Refusal
from throttled.contrib.keys import Key, by_user
from throttled.contrib.limit import BaseRateLimit
from throttled.exceptions import DataError, SetUpError
from throttled.store.policy import finished

__all__ = [
    "AnonRateThrottle",
    "RefusedError",
    "ScopedRateThrottle",
    "Throttle",
    "UserRateThrottle",
    "exception_handler",
]

# Where a request of DRF keeps the throttles for which it was decided before they were asked.
_DECIDED: Final = "_throttled_decided"


class RefusedError(exceptions.APIException):
    """A request could not be decided: 503 where the store is why, 500 where code of the site is."""

    def __init__(self, refusal: Refusal) -> None:
        self.status_code = refusal.status
        super().__init__(refusal.problem["detail"], refusal.problem["title"])
        #: What there is to know.
        self.refusal = refusal


class Throttle(BaseThrottle):
    """Limits the requests of a view; a subclass says how, by its attributes.

    Throttles of one scope and rate share their counts, over all views. Callables are given DRF's
    request.
    """

    #: How much: all that a quota may be. By default the one of `scope` in DEFAULT_THROTTLE_RATES,
    #: where None means no limit.
    rate: ClassVar[Any] = None
    #: The name of the rate, by default the view's `throttle_scope`. With a `rate` it is what
    #: counts are kept by, by default the class.
    scope: ClassVar[str | None] = None
    #: Whom it counts; by default as `THROTTLED["KEY"]` says, else by user, nobody by address.
    key: ClassVar[Key | None] = None
    cost: ClassVar[int | Callable[[Any], Any]] = 1
    count_when: ClassVar[Callable[[Any], Any] | None] = None
    exempt: ClassVar[Callable[[Any], Any] | None] = None
    #: What else `RateLimit` takes, such as {"using": "sliding_window_log"}.
    options: ClassVar[Mapping[str, Any]] = {}

    _made: ClassVar[dict[str, tuple[Any, RateLimit]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._made = {}

    def __init__(self) -> None:
        self._wait: float | None = None

    def allow_request(self, request: Any, view: Any) -> bool:
        """Take from all throttles of the view, or from none and say so.

        Raises `RefusedError` if it cannot be decided, and `ImproperlyConfigured` for a wrong rate.
        """
        decided: list[type[Throttle]] | None = getattr(request, _DECIDED, None)
        kind = type(self)
        if decided is not None and kind in decided:
            decided.remove(kind)
            return True
        visit, outermost = Visit.of(request)
        if visit.refusal is not None:
            return True  # another one has refused: nothing is to be taken any more
        if outermost:
            _attend(visit, view)
        throttles = [self, *self._beside(view)]
        setattr(request, _DECIDED, [type(each) for each in throttles[1:]])
        limits = [found for each in throttles if (found := each.limit_of(view)) is not None]
        if not limits:
            return True
        refusal = finished(visit.enter(False, limits, Request(request, False)))
        if refusal is None:
            return True
        if refusal.status != 429:
            raise RefusedError(refusal)
        # DRF rounds it up, which it cannot for what can never pass.
        self._wait = None if refusal.retry_after == inf else refusal.retry_after
        return False

    def wait(self) -> float | None:
        """Seconds until the refused request fits; None if it never does."""
        return self._wait

    def _beside(self, view: Any) -> list[Throttle]:
        """The other throttles of the view for which it can be decided now."""
        return [
            each
            for each in (view.get_throttles() if view is not None else ())
            if isinstance(each, Throttle)
            and type(each) is not type(self)
            # One that says more itself has to be asked.
            and type(each).allow_request is Throttle.allow_request
        ]

    def limit_of(self, view: Any) -> tuple[BaseRateLimit, str] | None:
        """The limit of a view, and the scope in which it counts; None: it has none."""
        kind = type(self)
        rate, scope = kind.rate, kind.scope
        if rate is None:
            scope = scope or getattr(view, "throttle_scope", None)
            if scope is None:
                return self._unnamed()
            rates = api_settings.DEFAULT_THROTTLE_RATES
            if scope not in rates:
                raise ImproperlyConfigured(
                    f"Invalid scope of {kind.__name__}: {shown(scope)}, is not in "
                    f"DEFAULT_THROTTLE_RATES."
                )
            rate = rates[scope]
            if rate is None:
                return None
        scope = scope or f"{kind.__module__}.{kind.__qualname__}"
        found, limit = kind._made.get(scope, (None, None))
        if limit is None or found != rate:
            limit = kind._limit(rate, scope)
            kind._made[scope] = rate, limit
        return limit.of(False), scope

    def _unnamed(self) -> tuple[BaseRateLimit, str] | None:
        """The limit where neither the throttle nor the view names one."""
        raise ImproperlyConfigured(
            f"Invalid throttle: {type(self).__name__} has no rate and no scope, and the view has "
            f"no throttle_scope."
        )

    @classmethod
    def _limit(cls, rate: Any, scope: str) -> RateLimit:
        key = cls.key
        if key is None and "KEY" not in site().said:
            key = by_user()
        try:
            return RateLimit(
                rate,
                key=key,
                # From the class: a function is not to become a method.
                cost=cls.cost,
                count_when=cls.count_when,
                exempt=cls.exempt,
                # Apart from those of the middleware and of views.
                scope=f"drf:{scope}",
                **cls.options,
            )
        except (DataError, SetUpError) as error:
            raise ImproperlyConfigured(f"Invalid throttle {cls.__name__}: {error}") from error


def _logged_in(request: Any) -> bool:
    return bool(request.user and request.user.is_authenticated)


class UserRateThrottle(Throttle):
    """Limits each user, and who is not logged in by address; the rate is that of "user"."""

    scope = "user"


class AnonRateThrottle(Throttle):
    """Limits those who are not logged in; the rate is that of "anon"."""

    scope = "anon"
    exempt = _logged_in


class ScopedRateThrottle(Throttle):
    """Limits views that have a `throttle_scope`, by the rate of that name, and no others."""

    def _unnamed(self) -> None:
        return


def _attend(visit: Visit, view: Any) -> None:
    """See to what a view answers: what counts by it, and the headers."""
    if view is None:
        return
    finalize = view.finalize_response

    def finalized(*args: Any, **kwargs: Any) -> Any:
        response = finalize(*args, **kwargs)
        finished(visit.leave(False, response))
        visit.tell(response, site().replies(False))
        return response

    view.finalize_response = finalized


def exception_handler(exc: Exception, context: Mapping[str, Any]) -> Any:
    """DRF's own, but what this module refuses has the problem body of `THROTTLED["PROBLEM"]`."""
    response: Any = default_handler(exc, cast("Any", context))
    if isinstance(exc, exceptions.Throttled | RefusedError):
        request = context["request"]
        refusal = Visit.of(request)[0].refusal
        if refusal is not None:
            answered = site().replies(False).body(refusal, Request(request, False))
            kind, body = finished(answered)
            return HttpResponse(body, content_type=kind, status=refusal.status)
    return response
