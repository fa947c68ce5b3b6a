"""How clients reach the service: their arguments, and the options of their channels."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from math import isfinite
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Final, Generic, Literal, TypeVar
from urllib.parse import quote as quoted
from weakref import WeakSet

from throttled._text import shown
from throttled.algorithms.plan import DEFAULT_PREFIX
from throttled.exceptions import (
    BaseThrottledError,
    DataError,
    ServiceUnavailableError,
    SetUpError,
)
from throttled.hooks import Event
from throttled.quota import RateLimiterType, rules_of
from throttled.service.policy import Told
from throttled.service.remote import (
    error_of,
    refund_of,
    result_of,
    taken,
    unreadable,
)
from throttled.settings import Quotas
from throttled.store.base import Outcome, new_lock
from throttled.store.breaker import Breaker
from throttled.store.policy import checked_policy

PolicyT = TypeVar("PolicyT")

logger = logging.getLogger("throttled")

#: What a channel is told, unless the user says otherwise.
OPTIONS: Final[tuple[tuple[str, Any], ...]] = (
    # gRPC may send a call again whose answer it has lost, and a check that is made twice counts
    # twice. Whether to ask again is for `on_store_error` to say.
    ("grpc.enable_retries", 0),
    # Or gRPC would hand a forked child the connection of its parent.
    ("grpc.use_local_subchannel_pool", 1),
    # A service that is back is found within a second: gRPC's own pauses grow to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # For how long it tries to connect, in spite of the name.
    ("grpc.min_reconnect_backoff_ms", 5_000),
    # Servers hang up on clients that ping more often than every five minutes. With it comes the
    # timeout, after which a connection is given up on which nothing is acknowledged any more.
    ("grpc.keepalive_time_ms", 330_000),
    ("grpc.keepalive_timeout_ms", 5_000),
)

_MISSING: Final = (
    "The client of the service needs grpcio and protobuf: pip install 'throttled-core[client]'"
)

_clients: WeakSet[BaseClient[Any]] = WeakSet()
#: Of the parent, in a child: to let go of them would close them, which gRPC cannot do there.
_left_behind: list[Any] = []


@lru_cache(maxsize=1)
def protocol() -> Any:
    """gRPC, and what is generated of the protocol: loaded when first used.

    Raises `SetUpError` where they are not installed.
    """
    try:
        import grpc

        from throttled.service.v1 import throttled_pb2, throttled_pb2_grpc
    except ImportError as error:
        raise SetUpError(f"{_MISSING}. ({error})") from error
    except RuntimeError as error:  # so the stubs say that it is too old
        raise SetUpError(f"{_MISSING}, newer ones. ({error})") from error
    return SimpleNamespace(grpc=grpc, v1=throttled_pb2, Stub=throttled_pb2_grpc.RateLimiterStub)


class BaseClient(Generic[PolicyT]):
    """What the clients of both flavours share: the way to a service, and its policies."""

    #: Whether it is the client of async code.
    _asynchronous: ClassVar[bool]
    _store: ClassVar[Callable[..., Any]]

    def __init__(
        self,
        target: str,
        *,
        token: str | None = None,
        tls: bool = False,
        ca: str | os.PathLike[str] | None = None,
        cert: str | os.PathLike[str] | None = None,
        key: str | os.PathLike[str] | None = None,
        decision_timeout: float = 1.0,
        on_store_error: Any = "raise",
        options: Mapping[str, Any] | Iterable[tuple[str, Any]] | None = None,
    ) -> None:
        """
        :param target: where the service listens: "localhost:50051", "unix:/run/throttled.sock", or
            what else gRPC can resolve.
        :param token: what the service wants to be shown.
        :param tls: whether to encrypt; it is so, too, if one of the next three is given.
        :param ca: the file of the authorities to trust (PEM), by default those of the system.
        :param cert: the file of the client's own certificate (PEM), for a service that asks for it.
        :param key: the file of its private key (PEM).
        :param decision_timeout: seconds that the service may take to decide, beside the time that a
            call waits for its slot.
        :param on_store_error: what policies do when the service fails: "raise", "allow", "deny",
            "local" (limit in this process) or a store to fall back to.
        :param options: more options of the gRPC channel, such as {"grpc.enable_http_proxy": 0}.
        :raises DataError: for a bad argument; the message names it.
        :raises SetUpError: for files that cannot be read, and without grpcio.
        """
        self.target = _checked_target(target)
        if (
            not isinstance(decision_timeout, int | float)
            or isinstance(decision_timeout, bool)
            or not isfinite(decision_timeout)
            or decision_timeout <= 0
        ):
            raise DataError(
                f"Invalid decision_timeout: {shown(decision_timeout)}, must be seconds above 0."
            )
        #: Seconds that the service may take to decide.
        self.decision_timeout = float(decision_timeout)
        #: What policies do when the service fails, unless they have one of their own.
        self.on_store_error = checked_policy(on_store_error, self._asynchronous)
        self._metadata = _metadata(token)
        self._credentials = _credentials(tls, ca, cert, key)
        self._options = [*OPTIONS, *_checked_options(options)]
        loaded = protocol()
        self._grpc: Any = loaded.grpc
        self._v1: Any = loaded.v1
        self._stub_of: Any = loaded.Stub
        self._ok = loaded.grpc.StatusCode.OK
        self._lock = new_lock()
        self._stores: dict[str, Any] = {}
        #: Leaves the service alone for a while when it does not answer.
        self.breaker = Breaker(f"The service at {self.target}")
        self._forget()
        _clients.add(self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.target!r})"  # a token is nobody's business

    def policy(
        self,
        name: str,
        key: str | Callable[..., Any] | None = None,
        timeout: float | None = None,
        cost: int | Callable[..., Any] = 1,
        *,
        on_store_error: Any = None,
        quota: Quotas | None = None,
        using: RateLimiterType | str | None = None,
        enforce: bool = True,
        exempt: Callable[[str], Any] | None = None,
        per: Literal["call", "item"] = "call",
        hooks: Iterable[Any] = (),
        on_allow: Callable[[Event], Any] | None = None,
        on_deny: Callable[[Event], Any] | None = None,
        on_error: Callable[[Event], Any] | None = None,
        on_wait: Callable[[Event], Any] | None = None,
    ) -> PolicyT:
        """A policy of the service, to be used as any `Throttled`. Asks nothing yet.

        `quota` and `using` are what stands in for the service goes by, where `on_store_error` is
        "local" or a store. All else is as of `Throttled`. Raises `DataError` for a bad argument; a
        policy that the service does not have is a `PolicyNotFoundError` of the calls.
        """
        rules = None if quota is None else rules_of(quota)
        return self._policy(
            key,
            timeout,
            using,
            Told(rules),
            self._store_of(name),
            cost,
            key_prefix=f"{DEFAULT_PREFIX}:{quoted(name)}",
            on_store_error=on_store_error,
            enforce=enforce,
            exempt=exempt,
            per=per,
            hooks=hooks,
            on_allow=on_allow,
            on_deny=on_deny,
            on_error=on_error,
            on_wait=on_wait,
        )

    def _policy(self, *args: Any, **options: Any) -> PolicyT:
        raise NotImplementedError

    def _store_of(self, name: object) -> Any:
        """What stands for a policy; the same each time, so that limits share how it is."""
        if not isinstance(name, str) or not name or not name.isprintable():
            raise DataError(
                f"Invalid name: {shown(name)}, must be that of a policy, such as 'api'."
            )
        with self._lock:
            if name not in self._stores:
                self._stores[name] = type(self)._store(self, name)
            return self._stores[name]

    def _forget(self) -> None:
        """Begin without a connection."""
        raise NotImplementedError

    def _new_channel(self, of: Any) -> Any:
        """A channel, by the functions of `grpc` or `grpc.aio`."""
        if self._credentials is None:
            return of.insecure_channel(self.target, self._options)
        credentials = self._grpc.ssl_channel_credentials(**self._credentials)
        return of.secure_channel(self.target, credentials, self._options)

    # -- what comes of calls ----------------------------------------------------------------------

    def _error(self, error: Any) -> BaseThrottledError:
        """What an error of gRPC comes to."""
        code, said = error.code().value[0], error.details() or ""
        if "Channel closed" in said:
            return self._closed()
        return error_of(code, said, self.target, self.decision_timeout)

    def _closed(self) -> ServiceUnavailableError:
        return ServiceUnavailableError(
            f"The client of the service at {self.target} was closed; whether the call was counted "
            f"is not known"
        )

    def _lost(self, number: int) -> list[Outcome]:
        """The outcomes of checks whose answer nobody could wait for."""
        said = (
            f"A call to the service at {self.target} was stopped; whether it was counted is not "
            f"known"
        )
        return [ServiceUnavailableError(said) for _ in range(number)]

    def _sent(self, requests: Sequence[Any]) -> tuple[str, Any]:
        """The method and the message that ask all of them."""
        if len(requests) == 1:
            return "Check", requests[0]
        return "CheckMany", self._v1.CheckManyRequest(checks=requests)

    def _outcomes(self, requests: Sequence[Any], answer: Any) -> list[Outcome]:
        """What the answer to `_sent` says of each."""
        if len(requests) == 1:
            return [self._outcome(answer)]
        if len(answer.results) != len(requests):
            error = DataError(f"{len(answer.results)} results for {len(requests)} checks.")
            return [unreadable(self.target, error) for _ in requests]
        return [
            self._outcome(each.decision)
            if each.HasField("decision")
            else error_of(each.error.code, each.error.message, self.target, self.decision_timeout)
            for each in answer.results
        ]

    def _outcome(self, decision: Any) -> Outcome:
        try:
            return result_of(decision)
        except DataError as error:
            return unreadable(self.target, error)

    def _refunds(self, requests: Sequence[Any], outcomes: Sequence[Outcome]) -> list[Any]:
        """What gives back all that was taken."""
        return [
            refund_of(self._v1, request)
            for request, outcome in zip(requests, outcomes, strict=True)
            if taken(request, outcome)
        ]


def log_kept(error: Exception) -> None:
    """Log what could not be given back."""
    logger.warning("A cancelled call could not give back what it took: %s", error)


def _after_fork() -> None:
    for client in list(_clients):
        _left_behind.append(client.__dict__.copy())
        client._forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _checked_target(target: object) -> str:
    if isinstance(target, str):
        scheme, apart, _ = target.partition("://")
        web = apart and scheme.lower() in ("http", "https", "grpc", "grpcs", "tcp")
        if ":" in target and not web and target.isprintable() and " " not in target:
            return target
    raise DataError(
        f"Invalid target: {shown(target)}, must be host:port such as 'localhost:50051', or "
        f"'unix:/path'; tls=True encrypts."
    )


def _metadata(token: object) -> tuple[tuple[str, str], ...] | None:
    if token is None:
        return None
    # Not shown, as it is a secret.
    if not isinstance(token, str) or not token or not token.isascii() or not token.isprintable():
        raise DataError("Invalid token: must be printable ASCII text, as the service was given it.")
    return (("authorization", f"Bearer {token}"),)


def _credentials(tls: object, ca: Any, cert: Any, key: Any) -> dict[str, bytes | None] | None:
    """What `grpc.ssl_channel_credentials` takes; None: not encrypted."""
    if not isinstance(tls, bool):
        raise DataError(f"Invalid tls: {shown(tls)}, must be True or False.")
    if (cert is None) != (key is None):
        raise SetUpError("cert and key go together: the certificate and its private key.")
    if not tls and ca is None and cert is None:
        return None
    return {
        "root_certificates": _content("ca", ca),
        "private_key": _content("key", key),
        "certificate_chain": _content("cert", cert),
    }


def _content(what: str, path: Any) -> bytes | None:
    if path is None:
        return None
    try:
        content = Path(path).read_bytes()
    except (OSError, TypeError, ValueError) as error:
        raise SetUpError(
            f"Invalid {what}: {shown(path)}, must be a file that can be read: {error}"
        ) from error
    if b"-----BEGIN" not in content:
        raise SetUpError(f"Invalid {what}: {shown(path)}, must be in PEM, with -----BEGIN ...")
    return content


def _checked_options(options: Any) -> list[tuple[str, Any]]:
    if options is None:
        return []
    try:
        pairs: dict[Any, Any] = dict(options)
    except (TypeError, ValueError):
        pairs = {None: None}
    if not all(isinstance(name, str) for name in pairs):
        raise DataError(
            f"Invalid options: {shown(options)}, must be options of a gRPC channel, such as "
            f"{{'grpc.enable_http_proxy': 0}}."
        )
    return list(pairs.items())
