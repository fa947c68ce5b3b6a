"""A limit in front of an application, and what it reads from a request."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from inspect import signature
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar, Final
from urllib.parse import quote

from throttled._callables import checked_callable
from throttled._text import shown
from throttled.algorithms.plan import DEFAULT_PREFIX
from throttled.arguments import check_cost
from throttled.asyncio.throttled import Throttled as AsyncThrottled
from throttled.base import BaseThrottled
from throttled.contrib.identity import ClientIP, client_ip
from throttled.contrib.keys import By, Incoming, Key, reader, repr_of
from throttled.contrib.misuse import Alike, warn_of_workers
from throttled.exceptions import DataError
from throttled.quota import check_name
from throttled.store.base import AsyncStore, Store, unable
from throttled.store.policy import Flow
from throttled.throttled import Throttled

if TYPE_CHECKING:
    from throttled.settings import Quotas

__all__ = ["Ask", "BaseRateLimit", "FaultError", "called", "check_options"]


class BaseRateLimit:
    """A limit in front of an application: how much, whom it counts, what a request costs.

    Made of a `Throttled`, which counts under its own prefix wherever it is used, or of a quota, in
    which case each `scope` (a route, a pattern) has counts of its own.
    """

    #: Whether it is for async code.
    _asynchronous: ClassVar[bool] = True

    def __init__(
        self,
        limit: BaseThrottled[Any] | Quotas | Callable[[str], Any],
        *,
        key: Key | None = None,
        cost: int | Callable[[Any], Any] = 1,
        count_when: Callable[[Any], Any] | None = None,
        exempt: Callable[[Any], Any] | None = None,
        scope: str | None = None,
        key_prefix: str = DEFAULT_PREFIX,
        **options: Any,
    ) -> None:
        """
        :param limit: a `Throttled`, or what its `quota` may be: "100/minute", a list of rules, or
            a callable that returns any of that for a key.
        :param key: whom it counts, by default `client_ip()`: what `throttled.contrib.keys` makes,
            or a callable that is given the request and returns a text.
        :param cost: what a request takes, or a callable that is given the request.
        :param count_when: called with the response; a request counts if it returns true.
        :param exempt: called with the request, which passes uncounted if it returns true.
        :param scope: limits of one scope, quota and prefix share their counts; by default each
            route or pattern is one.
        :param options: what else `Throttled` takes, such as `store`, `using`, `on_store_error`.
        :raises DataError: for a bad argument; the message names it.
        :raises SetUpError: for a store that cannot do what is asked.
        """
        asynchronous = self._asynchronous
        check_options(options)
        self.key: Key = client_ip() if key is None else key
        self._read = reader(self.key, asynchronous)
        if callable(cost):
            self.cost: int | Callable[[Any], Any] = checked_callable("cost", cost, asynchronous)
        else:
            self.cost = check_cost(cost)
        self.count_when = optional("count_when", count_when, asynchronous)
        self.exempt = optional("exempt", exempt, asynchronous)
        if scope is not None:
            check_name("scope", scope)
        self.scope = scope
        self._observers: list[Any] = []
        self._throttles: dict[str, BaseThrottled[Any]] = {}
        self._given: BaseThrottled[Any] | None = None
        if isinstance(limit, BaseThrottled):
            self._given = self._checked(limit, scope, key_prefix, options)
        else:
            self._quota: Any = limit
            self._prefix = key_prefix
            self._options = options
        self._first = first = self._given or self._made(key_prefix)
        self._amount = _amount(first)
        _check_fits(self.cost, first)
        # Whether the store may decide it together with others.
        single = type(self.store).admit_all in (Store.admit_all, AsyncStore.admit_all)
        if single and self.count_when is not None:
            raise unable(self.store)
        plain = not first.hooks and first.exempt is None
        joins = plain and not single and self.store.apart is None
        self._joins = joins and self.count_when is None
        # Whether a request says at once what is asked for it: see `at_hand`.
        self._plain = exempt is None and not callable(cost) and isinstance(self.key, ClientIP)
        self._told_at = -inf
        warn_of_workers(self.store)
        # What stands for all callers on purpose, or warns by itself, is not watched.
        self._alike = None if isinstance(self.key, By | ClientIP) else Alike(repr_of(self.key))

    def _checked(
        self, given: BaseThrottled[Any], scope: str | None, prefix: str, options: dict[str, Any]
    ) -> BaseThrottled[Any]:
        if given._asynchronous is not self._asynchronous:
            wanted = f"throttled{'.asyncio' * self._asynchronous}"
            raise DataError(f"Invalid limit: {shown(given)}, must be a Throttled of {wanted}.")
        more = [*options, *["scope"] * (scope is not None)]
        if more or prefix != DEFAULT_PREFIX:
            raise DataError(
                f"Invalid {', '.join(more or ['key_prefix'])}: a Throttled brings its own; say it "
                f"there, or give a quota instead."
            )
        return given

    def _made(self, prefix: str) -> BaseThrottled[Any]:
        kind: Any = AsyncThrottled if self._asynchronous else Throttled
        made: BaseThrottled[Any] = kind(quota=self._quota, key_prefix=prefix, **self._options)
        for observer in self._observers:
            made.observe(observer)
        return made

    # A `Throttled` of a policy file has others when the file says so.

    @property
    def store(self) -> Any:
        """Where it counts."""
        return self._first.store

    @property
    def on_store_error(self) -> Any:
        """What is done when the store fails."""
        return self._first.on_store_error

    def __repr__(self) -> str:
        limit = repr(self._given) if self._given else shown(self._quota)
        return f"{type(self).__name__}({limit}, key={repr_of(self.key)})"

    def throttle(self, scope: str = "all") -> Any:
        """The `Throttled` that counts for a scope, such as "GET /items/{id}": to reset a key, say.

        Its own `scope`, if it has one, comes before.
        """
        if self._given is not None:
            return self._given
        if self.scope is not None:
            scope = self.scope
        found = self._throttles.get(scope)
        if found is None:
            # With the quota, as the layers of an application often limit one scope: those of one
            # period would share their keys. Braces would mark what a cluster hashes of a key.
            named = quote(f"{scope}:{self._amount}", safe="/:*|")
            made = self._made(f"{self._prefix}:{named}")
            found = self._throttles.setdefault(scope, made)
        return found

    def observe(self, observer: Any) -> None:
        """Let an observer hear of its decisions, in every scope: see `Throttled.observe`."""
        self._observers.append(observer)
        for throttle in [self._given, *self._throttles.values()]:
            if throttle is not None:
                throttle.observe(observer)

    def tells_of_failure(self) -> bool:
        """Whether to log that its store cannot decide: once a second, not at every request."""
        now = monotonic()
        if now - self._told_at < 1.0:
            return False
        self._told_at = now
        return True

    # -- what is read from a request --------------------------------------------------------------

    def at_hand(self, request: Incoming, scope: str) -> Ask | None:
        """What to ask for a request, of a limit as most are; None where `ask` has to find out."""
        if not self._plain:
            return None
        key: str = self._read(request)
        cost: Any = self.cost
        return self, self.throttle(scope), key, cost

    def ask(self, request: Incoming, scope: str) -> Flow[Ask | None]:
        """What to ask for a request; None for one that is exempt."""
        if self.exempt is not None and (yield from called("exempt", self.exempt, request)):
            return None
        key: Any
        try:
            key = yield self._read(request)
        except Exception as error:
            raise FaultError("Key", self.key, "raised", error) from error
        if not isinstance(key, str) or not key:
            raise FaultError("Key", self.key, f"returned {shown(key)}, must be a non-empty string")
        if self._alike is not None and self._alike.over(key, request):
            self._alike = None
        cost: Any = self.cost
        if not isinstance(cost, int):
            function = cost
            cost = yield from called("cost", function, request)
            try:
                cost = check_cost(cost)
            except DataError:
                why = f"returned {shown(cost)}, must be an integer of 0 or more"
                raise FaultError("Cost", function, why) from None
        return self, self.throttle(scope), key, cost


#: What `Throttled` takes that makes sense for requests, and is not an argument by itself.
_OPTIONS: Final = frozenset(signature(AsyncThrottled).parameters) - {"cost", "key", "per", "quota"}


def check_options(options: Iterable[str]) -> None:
    """`DataError` names an option that there is not."""
    own = signature(BaseRateLimit).parameters
    known = sorted({*_OPTIONS, *own} - {"limit", "options"})
    for name in options:
        if name not in known:
            raise DataError(f"Invalid option: {name}, must be one of {', '.join(known)}.")


def _check_fits(cost: object, throttle: BaseThrottled[Any]) -> None:
    """`DataError` for a cost that no request could ever pay."""
    if not isinstance(cost, int) or throttle._terms is None:
        return
    joint = throttle._terms.plan.joint
    for plan, rule, each in zip(joint.plans, joint.rules, joint.costs(cost), strict=False):
        if each > plan.capacity:
            raise DataError(
                f"Invalid cost: {each}, must be at most {plan.capacity}, which is all that "
                f"{rule.quota} ever holds."
            )


def _amount(throttle: BaseThrottled[Any]) -> str:
    """How much a limit admits, as its keys say it: the same in every process."""
    if throttle._terms is None:
        resolve = throttle._quota
        return str(getattr(resolve, "__qualname__", type(resolve).__qualname__))
    return "; ".join([str(rule.quota) for rule in throttle.rules])


def optional(what: str, function: Any, asynchronous: bool) -> Any:
    return None if function is None else checked_callable(what, function, asynchronous)


def called(what: str, function: Any, request: Incoming) -> Flow[Any]:
    """What a function of the application says of a request; raises `FaultError` if it fails."""
    try:
        return (yield function(request.native))
    except Exception as error:
        raise FaultError(what.capitalize(), function, "raised", error) from error


class FaultError(Exception):
    """A function of the application failed to say what it is there to say."""

    def __init__(
        self, what: str, function: object, why: str, error: Exception | None = None
    ) -> None:
        super().__init__(f"{what} function {repr_of(function)} {why}")
        self.error = error


#: What is asked for one request: the limit, the `Throttled` that counts, the key and the cost.
Ask = tuple[BaseRateLimit, Any, str, int]
