"""The policies of a file, in what is the same for sync and async code."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Generic, Literal, TypeVar
from weakref import WeakKeyDictionary, WeakValueDictionary

from throttled._callables import checked_callable
from throttled._text import shown
from throttled.base import BaseThrottled
from throttled.exceptions import DataError, PolicyNotFoundError
from throttled.hooks import Event
from throttled.policies.checking import checked
from throttled.policies.making import Made, made_of, stores_of, take_over
from throttled.policies.reading import Print, file_name, parsed, print_of, read
from throttled.policies.spec import PolicySpec
from throttled.policies.values import Values, nearest
from throttled.policies.watching import Watch, checked_every
from throttled.store.base import new_lock

T = TypeVar("T", bound=BaseThrottled[Any])

logger = logging.getLogger("throttled")

#: Seconds after which nobody is still being served by a store that a reload has replaced.
GRACE = 60.0


class BasePolicies(Mapping[str, T], Generic[T]):
    """What both flavours share: the file, its limits, reloading. No closing of stores.

    A reload makes everything anew first, for real, and only then lets the limits that are in use
    take over what they are to be.
    """

    #: The `Throttled` and the `RedisStore` of the flavour.
    _kind: ClassVar[type[BaseThrottled[Any]]]
    _redis: ClassVar[Callable[..., Any]]

    def __init__(self, path: str | os.PathLike[str], *, store: Any = None) -> None:
        """
        :param path: a .toml or .json file.
        :param store: the store of policies for which the file names none; by default one in the
            memory of this process, that all such policies of the file share.
        :raises DataError: for a file that cannot be had or is wrong; it names every problem.
        :raises SetUpError: for a store that this flavour cannot use.
        """
        self._name = file_name(path)
        if store is not None:
            self._kind(store=store)  # says what is wrong with it
        self._given = store
        # One who reloads at a time; and who hands out limits, while they take over.
        self._reloading = new_lock()
        self._lock = new_lock()
        self._made: Made | None = None
        self._mine: dict[str, T] = {}
        #: The limits of each policy that are in use, and whom the program itself exempts there.
        self._issued: dict[str, WeakKeyDictionary[T, Callable[[str], Any] | None]] = {}
        #: Those of `self[name]`, also of policies that are gone.
        self._first: WeakValueDictionary[str, T] = WeakValueDictionary()
        self._specs: Mapping[str, PolicySpec] = {}
        #: Stores that a reload has replaced, and when by the monotonic clock they may be closed.
        self._replaced: list[tuple[Any, float]] = []
        self._error: str | None = None
        self._loaded_at = 0.0
        # What the file looked like when it was last read; and what it looks like now, when that is
        # something else and has yet to settle.
        self._read_print: Print | None = None
        self._settling: tuple[Print | None] | tuple[()] = ()
        # What was last read, and what was last warned of.
        self._digest: bytes | None = None
        self._warned: tuple[bytes | None, str] | None = None
        self._watch: Watch | None = None
        self.reload()

    def __repr__(self) -> str:
        names = ", ".join([repr(name) for name in list(self._mine)[:5]])
        more = len(self._mine) - 5
        return (
            f"{type(self).__name__}({self._name!r}: {names}{f', {more} more' if more > 0 else ''})"
        )

    # -- a mapping --------------------------------------------------------------------------------

    def __getitem__(self, name: str) -> T:
        """The limit of a policy: always the same object, which follows the file.

        Raises `PolicyNotFoundError`, which is a `KeyError`.
        """
        try:
            return self._mine[name]
        except (KeyError, TypeError):
            raise self._not_found(name) from None

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._mine

    def __iter__(self) -> Iterator[str]:
        return iter(self._mine)

    def __len__(self) -> int:
        return len(self._mine)

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def _not_found(self, name: object) -> PolicyNotFoundError:
        if isinstance(name, str):
            return PolicyNotFoundError(
                f"{self._name}: Invalid policy: {shown(name)}, {nearest(name, self._mine)}"
            )
        return PolicyNotFoundError(
            f"{self._name}: Invalid policy: {shown(name)}, must be the name of one."
        )

    # -- limits -----------------------------------------------------------------------------------

    def policy(
        self,
        name: str,
        key: str | Callable[..., Any] | None = None,
        timeout: float | None = None,
        cost: int | Callable[..., Any] = 1,
        *,
        exempt: Callable[[str], Any] | None = None,
        per: Literal["call", "item"] = "call",
        hooks: Iterable[Any] = (),
        on_allow: Callable[[Event], Any] | None = None,
        on_deny: Callable[[Event], Any] | None = None,
        on_error: Callable[[Event], Any] | None = None,
        on_wait: Callable[[Event], Any] | None = None,
    ) -> T:
        """Another limit of a policy, for a decorator or `with`, which follows the file as well.

            @policies.policy("api", key="user:{user}")
            def show(user): ...

        It counts with all others of the policy. The parameters are those of `Throttled`; calls pass
        if `exempt` or the file says so.
        """
        if exempt is not None:
            checked_callable("exempt", exempt, self._kind._asynchronous)
        with self._lock:
            return self._issue(
                name,
                exempt,
                key=key,
                timeout=timeout,
                cost=cost,
                per=per,
                hooks=hooks,
                on_allow=on_allow,
                on_deny=on_deny,
                on_error=on_error,
                on_wait=on_wait,
            )

    def _issue(self, name: str, exempt: Callable[[str], Any] | None = None, **options: Any) -> T:
        assert self._made is not None
        like = self._made.limits.get(name) if isinstance(name, str) else None
        if like is None:
            raise self._not_found(name)
        throttle: Any = self._kind(store=like.store, **options)
        take_over(throttle, like, exempt)
        self._issued.setdefault(name, WeakKeyDictionary())[throttle] = exempt
        limit: T = throttle
        return limit

    # -- what is in force -------------------------------------------------------------------------

    def spec(self, name: str) -> PolicySpec:
        """What the file says of a policy. Raises `PolicyNotFoundError`."""
        try:
            return self._specs[name]
        except (KeyError, TypeError):
            raise self._not_found(name) from None

    @property
    def specs(self) -> Mapping[str, PolicySpec]:
        """What the file says of each policy."""
        return self._specs

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self._name)

    @property
    def loaded_at(self) -> float:
        """Seconds since the epoch at which what is in force was read."""
        return self._loaded_at

    @property
    def error(self) -> str | None:
        """What was wrong with the file when it was last read; None if what it says is in force."""
        return self._error

    # -- reloading --------------------------------------------------------------------------------

    def reload(self) -> bool:
        """Read the file again; whether anything has changed.

        Raises `DataError` for a file that cannot be had or is wrong, and everything stays as it
        was. What was counted stays, wherever prefix, algorithm, period and name of a rule do.
        """
        with self._reloading:
            self._read_print = print_of(self._name)
            self._digest = None
            try:
                content = read(self._name)
                self._read_print, self._digest = content.print, content.digest
                changed = self._load(content.text)
            except DataError as error:
                self._error = str(error)
                raise
            self._error = self._warned = None
            return changed

    def _load(self, text: str) -> bool:
        values = Values(self._name)
        spec = checked(values, parsed(self._name, text))
        before = self._made
        made = made_of(spec, values, self._kind, self._redis, self._given, before)
        values.check()
        if before is not None and spec == before.spec and not made.new:
            return False
        with self._lock:
            self._apply(made, before)
        self._loaded_at = time.time()
        return True

    def _apply(self, made: Made, before: Made | None) -> None:
        self._made = made
        mine: dict[str, T] = {}
        for name, like in made.limits.items():
            old = before.limits.get(name) if before else None
            if before and old and _alike(made, before, name):
                made.limits[name] = old
            else:
                for throttle, exempt in list(self._issued.get(name, {}).items()):
                    take_over(throttle, like, exempt)
            first = self._first.get(name)
            if first is None:
                first = self._first[name] = self._issue(name)
            mine[name] = first
        self._specs = MappingProxyType(
            {
                name: replace(spec, hides_keys=made.limits[name].store.hides_keys)
                for name, spec in made.spec.policies.items()
            }
        )
        self._mine = mine
        for name in [name for name, issued in self._issued.items() if not issued]:
            del self._issued[name]
        if before is not None:
            kept = list(made.stores.values())
            due = time.monotonic() + GRACE
            for store in before.stores.values():
                if not any(store is each for each in kept):
                    self._replaced.append((store, due))

    def _due(self) -> list[Any]:
        """The replaced stores that nobody uses any more, to be closed now."""
        if not self._replaced:
            return []
        with self._lock:
            used = [
                store
                for issued in self._issued.values()
                for throttle in list(issued)
                for store in stores_of(throttle)
            ]
            now, left, due = time.monotonic(), list[tuple[Any, float]](), list[Any]()
            for store, instant in self._replaced:
                if now < instant or any(store is each for each in used):
                    left.append((store, instant))
                else:
                    due.append(store)
            self._replaced = left
            return due

    # -- watching ---------------------------------------------------------------------------------

    def watch(self, every: float = 1.0, *, signal: int | None = None) -> None:
        """Reload when the file changes: a thread looks at it every so many seconds.

        With `signal=signal.SIGHUP` also whenever the process gets that signal; this takes the main
        thread. A file that is wrong is logged as a warning, once, and what was in force stays so.
        Called again it begins anew, as it has to in a process that was forked.

        Raises `DataError` for a bad argument, and `SetUpError` for a signal in another thread.
        """
        watch = Watch(self, type(self)._round, checked_every(every))
        self._stop()
        if signal is not None:
            watch.hear(signal)
        self._watch = watch
        watch.start()

    def touch(self) -> None:
        """Let whoever watches read the file now, also if it looks the same.

        May be called by any thread, and by a signal handler.
        """
        watch = self._watch
        if watch is not None:
            watch.ask()

    def _round(self, asked: bool) -> bool:
        """What the watching thread does each time."""
        return self._look(asked)

    def _look(self, asked: bool) -> bool:
        """Reload if the file looks different, or in any case if asked; whether to look again soon.

        Nothing is raised: what is wrong is logged.
        """
        if not asked:
            seen = print_of(self._name)
            if seen == self._read_print and (seen is not None or self._digest is None):
                return False
            if not self._settling or seen != self._settling[0]:
                # It may be about to be written, or to be put in place.
                self._settling = (seen,)
                return True
        self._settling = ()
        try:
            if not asked and self._reread():
                return False
            wrong = self._error is not None
            # Said as well if it is put right by what was in force all the time.
            if self.reload() or wrong:
                names = sorted(self)
                logger.info(
                    "%s was reloaded, policies in force: %d",
                    self._name,
                    len(names),
                    extra={"throttled_event": "reloaded", "throttled_policies": names},
                )
        except DataError as error:
            self._error = str(error)
            problem = self._digest, str(error)
            if asked or problem != self._warned:
                self._warned = problem
                logger.warning(
                    "%s was not reloaded, the policies of before stay: %s",
                    self._name,
                    error,
                    extra={"throttled_event": "reload_failed", "throttled_error": str(error)},
                )
        return False

    def _reread(self) -> bool:
        """Whether the file holds what it held when it was read last."""
        with self._reloading:
            before, self._digest = self._digest, None
            if before is None:
                return False
            self._read_print = print_of(self._name)
            content = read(self._name)
            self._read_print, self._digest = content.print, content.digest
            return content.digest == before

    def _stop(self) -> None:
        """Stop watching."""
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.stop()

    def _ended(self) -> list[Any]:
        """Stop; the stores to be closed, which are those that were made here."""
        self._stop()
        with self._lock:
            stores = [store for store, _ in self._replaced]
            self._replaced = []
            if self._made is not None:
                stores += self._made.stores.values()
        return stores


def _alike(made: Made, before: Made, name: str) -> bool:
    """Whether a policy is what it was, and asks whom it asked."""
    new, old = made.limits[name], before.limits[name]
    return (
        made.spec.policies[name] == before.spec.policies[name]
        and new.store is old.store
        and new.on_store_error == old.on_store_error
    )
