"""How a `RedisStore` reaches its server: options, URLs, connection factories.

A factory turns a URL and the options into a redis-py client; making one never connects, but for
redis-py's synchronous cluster client, which is therefore made on first use. Stores with the same
URL and options share one client, and with it one pool of connections: see `shared.py`.

This module never imports redis by itself, so that the package works without it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, ClassVar
from urllib.parse import parse_qsl, unquote

from throttled.exceptions import SetUpError

__all__ = [
    "ClusterConnectionFactory",
    "ConnectionFactory",
    "SentinelConnectionFactory",
]

DEFAULT_SERVER = "redis://localhost:6379/0"

#: Seconds, where the options say nothing: older redis-py would otherwise wait for ever.
DEFAULT_TIMEOUT = 5.0

URL_SHAPE = (
    "must be like redis://user:password@host:6379/0, with the special characters of user and "
    "password percent-encoded"
)

_NONE = type(None)
_CLASS = (str, type)
_SECONDS = (int, float, _NONE)
_PAIRS = (list, tuple)

#: Option -> the types of value it takes, and how an error calls them.
OPTIONS: dict[str, tuple[tuple[type, ...], str]] = {
    "CONNECTION_FACTORY_CLASS": (_CLASS, "a class or its dotted path"),
    "CONNECTION_POOL_CLASS": (_CLASS, "a class or its dotted path"),
    "CONNECTION_POOL_KWARGS": ((Mapping,), "a dictionary"),
    "REDIS_CLIENT_CLASS": (_CLASS, "a class or its dotted path"),
    "REDIS_CLIENT_KWARGS": ((Mapping,), "a dictionary"),
    "PASSWORD": ((str, _NONE), "a string or None"),
    "SOCKET_TIMEOUT": (_SECONDS, "seconds or None"),
    "SOCKET_CONNECT_TIMEOUT": (_SECONDS, "seconds or None"),
    "SENTINELS": (_PAIRS, "a list of (host, port) pairs"),
    "SENTINEL_KWARGS": ((Mapping,), "a dictionary"),
    "CLUSTER_NODES": (_PAIRS, "a list of (host, port) pairs"),
    "PARSER_CLASS": (_CLASS, "a class or its dotted path"),
    "DECISION_TIMEOUT": ((int, float), "seconds"),
    "LOCAL_DENY_SECONDS": ((int, float), "seconds, or 0 to switch it off"),
    "LOCAL_SHARE": ((int,), "a number of processes"),
}

_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "DECISION_TIMEOUT": (lambda value: 0.001 <= value <= 3600, "seconds from 0.001 to 3600"),
    "LOCAL_DENY_SECONDS": (lambda value: 0 <= value <= 60, "seconds from 0 (off) to 60"),
    "LOCAL_SHARE": (lambda value: value >= 1, "a number of processes of at least 1"),
}


def load_redis() -> None:
    """Make sure that redis-py is there.

    Raises `SetUpError`, which names the extra to install, if it is not.
    """
    try:
        import_module("redis")
    except ImportError as error:
        raise SetUpError(
            "RedisStore needs the redis package, which is not installed: "
            'pip install "throttled-core[redis]"'
        ) from error


def load_class(option: str, path: object) -> Any:
    """The class that an option names, by itself or by its dotted path."""
    if isinstance(path, type):
        return path
    module, _, name = str(path).rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise SetUpError(
            f"Invalid {option}: cannot load {path!r} ({error}); "
            f"it must be the dotted path of a class, such as 'package.module.Class'."
        ) from error
    if not isinstance(found, type):
        raise SetUpError(f"Invalid {option}: {path!r} is not a class.")
    return found


def checked_options(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """A copy of the options, all of them known and of the right type. The values are not copied."""
    if options is None:
        return {}
    if not isinstance(options, Mapping):
        raise SetUpError(f"Invalid options: {options!r}, must be a dictionary.")
    known: dict[str, Any] = dict(options)
    for name, value in known.items():
        if name not in OPTIONS:
            raise SetUpError(f"Unknown option: {name!r}, must be one of {', '.join(OPTIONS)}.")
        types, meant = OPTIONS[name]
        if not _is_a(value, types):
            # The value itself stays out of the message: it may be or hold a password.
            raise SetUpError(f"Invalid option {name}: got {type(value).__name__}, must be {meant}.")
        if name in ("SENTINELS", "CLUSTER_NODES"):
            _check_addresses(name, value)
        if types is _SECONDS and value is not None and not 0 < value < float("inf"):
            raise SetUpError(f"Invalid option {name}: {value!r}, must be seconds above 0 or None.")
        if name in _RANGES and not _RANGES[name][0](value):
            raise SetUpError(f"Invalid option {name}: {value!r}, must be {_RANGES[name][1]}.")
    return known


def _is_a(value: Any, types: tuple[type, ...]) -> bool:
    return isinstance(value, types) and type(value) is not bool


def _check_addresses(name: str, pairs: Sequence[Any]) -> None:
    for pair in pairs:
        fine = _is_a(pair, _PAIRS) and len(pair) == 2
        if not (fine and isinstance(pair[0], str) and type(pair[1]) is int):
            raise SetUpError(
                f"Invalid option {name}: {pair!r}, must be a (host, port) pair "
                f"such as ('localhost', 26379)."
            )


def masked(url: object) -> str:
    """The URL as it may be shown: without a password."""
    text = re.sub(r"://([^:@/]*):.*@", r"://\1:***@", str(url))
    return re.sub(r"(?i)([?&][^=&]*(?:password|token|secret)[^=&]*=)[^&]*", r"\1***", text)


class ConnectionFactory:
    """Builds redis-py clients for the URLs `redis://`, `rediss://` and `unix://`.

    Subclass it and name the subclass in `CONNECTION_FACTORY_CLASS` to build them differently; every
    step is a method of its own. `options` is never changed: copy before you edit.
    """

    #: Whether `connect` makes a client for a cluster, which may connect when it is made.
    cluster: ClassVar[bool] = False
    #: The defaults for the sync flavour and for the asyncio one.
    pool_classes: ClassVar[tuple[str, str]] = (
        "redis.connection.ConnectionPool",
        "redis.asyncio.connection.ConnectionPool",
    )
    client_classes: ClassVar[tuple[str, str]] = (
        "redis.client.Redis",
        "redis.asyncio.client.Redis",
    )

    def __init__(self, options: Mapping[str, Any], asynchronous: bool = False) -> None:
        self.options = options
        self.asynchronous = asynchronous

    def connect(self, url: str) -> Any:
        """A client for the URL. Connects as late as redis-py's class allows."""
        return self.make_client(self.make_connection_pool(self.make_connection_params(url)))

    def check(self, url: str) -> None:
        """Raise `SetUpError` for a URL or options that could never work. Does not connect."""
        pool = self.connect(url).connection_pool
        try:
            # Made only to see that its arguments are fine.
            pool.connection_class(**pool.connection_kwargs)
        except TypeError as error:
            raise SetUpError(
                f"Invalid connection options for {masked(url)}: {error}; see the query of the URL "
                f"and CONNECTION_POOL_KWARGS."
            ) from error

    def name(self, url: str) -> str:
        """What errors call the server: never a password in it."""
        params = self.parse_url(url)
        if "path" in params:
            return str(params["path"])
        return f"{params.get('host', 'localhost')}:{params.get('port', 6379)}"

    def parse_url(self, url: str) -> dict[str, Any]:
        """The connection arguments that the URL holds."""
        parse: Any = import_module("redis.connection").parse_url
        try:
            params: dict[str, Any] = parse(url)
        except ValueError as error:
            # The error of a URL that was cut in the wrong place may hold a piece of a password.
            ours = str(error).startswith("Invalid value for")
            raise SetUpError(
                f"Invalid Redis URL: {masked(url)!r}: {error if ours else URL_SHAPE}"
            ) from None
        if self.asynchronous and "connection_class" in params:
            # Of the same name, but of the other flavour.
            module = import_module("redis.asyncio.connection")
            params["connection_class"] = getattr(module, params["connection_class"].__name__)
        return params

    def make_connection_params(self, url: str) -> dict[str, Any]:
        """The arguments of the pool: the URL's win over the options', as in redis-py."""
        return {**self.common_params(), **self.parse_url(url)}

    def common_params(self) -> dict[str, Any]:
        """The arguments of a connection that come from the options."""
        options = self.options
        params: dict[str, Any] = {
            # RESP2 by default: RESP3 brings nothing here, and its greeting is unknown to Redis 5.
            "protocol": 2,
            "socket_timeout": options.get("SOCKET_TIMEOUT") or DEFAULT_TIMEOUT,
            "socket_connect_timeout": options.get("SOCKET_CONNECT_TIMEOUT") or DEFAULT_TIMEOUT,
        }
        if options.get("PASSWORD"):
            params["password"] = options["PASSWORD"]
        if "PARSER_CLASS" in options:
            params["parser_class"] = self.parser_class()
        params.update(options.get("CONNECTION_POOL_KWARGS", {}))
        return params

    def parser_class(self) -> Any:
        """The class named by `PARSER_CLASS`."""
        return load_class("PARSER_CLASS", self.options["PARSER_CLASS"])

    def make_connection_pool(self, params: dict[str, Any]) -> Any:
        """The pool, made from the arguments."""
        path = self.options.get("CONNECTION_POOL_CLASS", self.pool_classes[self.asynchronous])
        return self.built("CONNECTION_POOL", load_class("CONNECTION_POOL_CLASS", path), **params)

    def make_client(self, pool: Any) -> Any:
        """The client, over the pool."""
        kwargs = {"connection_pool": pool, **self.options.get("REDIS_CLIENT_KWARGS", {})}
        return self.built("REDIS_CLIENT", self.client_class(), **kwargs)

    def client_class(self) -> Any:
        """The class of the client."""
        path = self.options.get("REDIS_CLIENT_CLASS", self.client_classes[self.asynchronous])
        return load_class("REDIS_CLIENT_CLASS", path)

    @staticmethod
    def built(what: str, cls: Any, **kwargs: Any) -> Any:
        """`cls(**kwargs)`; arguments that it refuses are a `SetUpError`."""
        try:
            return cls(**kwargs)
        except (TypeError, ValueError) as error:
            raise SetUpError(
                f"Cannot make a {cls.__name__}: {error}; see {what}_CLASS and {what}_KWARGS."
            ) from error


#: As RFC 3986 parts a URL (appendix B). `urlsplit` of newer Pythons refuses IPv6 addresses among
#: several hosts.
_URL = re.compile(
    r"[^:/?#]+://(?P<netloc>[^/?#]*)(?P<path>[^?#]*)(?:\?(?P<query>[^#]*))?(?:#.*)?", re.DOTALL
)


def parse_hosts(
    url: str, default_port: int
) -> tuple[list[tuple[str, int]], list[str], dict[str, Any]]:
    """`scheme://[user:password@]host[:port][,host[:port]…]/path?query`, in pieces.

    Returns the addresses, the parts of the path, and the credentials and query as arguments.
    """
    parts = _URL.fullmatch(url)
    if parts is None or ("@" in url and "@" not in parts["netloc"]):
        raise SetUpError(f"Invalid Redis URL: {masked(url)!r}: {URL_SHAPE}")
    userinfo, _, hosts = parts["netloc"].rpartition("@")
    params: dict[str, Any] = {}
    if userinfo:
        user, _, password = userinfo.partition(":")
        if user:
            params["username"] = unquote(user)
        if password:
            params["password"] = unquote(password)
    addresses: list[tuple[str, int]] = []
    for entry in filter(None, hosts.split(",")):
        match = re.fullmatch(r"(\[[^\]]+\]|[^:\[\]]+)(?::(\d{1,5}))?", entry)
        port = int(match[2] or default_port) if match else 0
        if not match or not 0 < port < 65536:
            raise SetUpError(
                f"Invalid Redis URL: {masked(url)!r}: {entry!r} must be host or host:port."
            )
        addresses.append((unquote(match[1].strip("[]")), port))
    if parts["query"]:
        parsers: Any = import_module("redis.connection").URL_QUERY_ARGUMENT_PARSERS
        for name, value in parse_qsl(parts["query"]):
            try:
                params[name] = parsers.get(name, str)(value)
            except (TypeError, ValueError):
                raise SetUpError(f"Invalid value for {name!r} in {masked(url)!r}.") from None
    path = [unquote(part) for part in parts["path"].split("/") if part]
    return addresses, path, params


def addresses_text(addresses: Sequence[tuple[str, int]]) -> str:
    return ",".join(f"{host}:{port}" for host, port in addresses)


class SentinelConnectionFactory(ConnectionFactory):
    """Builds clients for the master of a service that Sentinels watch.

    Either `redis+sentinel://[user:password@]host:26379,host:26379/service[/db]`, or
    `redis://service/db` with the option `SENTINELS`. User and password are the data server's; those
    of the Sentinels themselves go into `SENTINEL_KWARGS`.
    """

    pool_classes = (
        "redis.sentinel.SentinelConnectionPool",
        "redis.asyncio.sentinel.SentinelConnectionPool",
    )
    sentinel_classes: ClassVar[tuple[str, str]] = (
        "redis.sentinel.Sentinel",
        "redis.asyncio.sentinel.Sentinel",
    )

    def service(self, url: str) -> tuple[list[tuple[str, int]], str, dict[str, Any]]:
        """The Sentinels, the service's name, and the connection arguments that the URL holds."""
        if url.startswith("redis+sentinel://"):
            addresses, path, params = parse_hosts(url, 26379)
            service = path.pop(0) if path else ""
            if path:
                params.setdefault("db", path.pop(0))
        else:
            params = self.parse_url(url)
            params.pop("port", None)
            addresses, path, service = [], [], params.pop("host", "")
            if params.pop("connection_class", None):
                params["ssl"] = True
        addresses = addresses or [(host, port) for host, port in self.options.get("SENTINELS", ())]
        if not service or not addresses or path or not str(params.get("db", 0)).isdigit():
            raise SetUpError(
                f"Invalid Sentinel URL: {masked(url)!r}, must be "
                f"redis+sentinel://host:26379,host:26379/service or .../service/0, "
                f"or redis://service/0 with the option SENTINELS=[(host, port), ...]."
            )
        params["db"] = int(params.get("db", 0))
        return addresses, service, params

    def check(self, url: str) -> None:
        self.service(url)
        load_class("CONNECTION_POOL_CLASS", self.pool_path())
        self.client_class()

    def name(self, url: str) -> str:
        addresses, service, _ = self.service(url)
        return f"{service} (Sentinels {addresses_text(addresses)})"

    def make_connection_params(self, url: str) -> dict[str, Any]:
        addresses, service, params = self.service(url)
        return {
            **self.common_params(),
            **params,
            "service_name": service,
            "sentinel_manager": self.make_sentinel(addresses),
        }

    def make_sentinel(self, addresses: list[tuple[str, int]]) -> Any:
        """redis-py's `Sentinel`, which asks the Sentinels for the master's address."""
        from redis.backoff import NoBackoff

        retry = import_module("redis.asyncio.retry" if self.asynchronous else "redis.retry").Retry
        kwargs = {
            key: value
            for key, value in self.common_params().items()
            if key in ("protocol", "socket_timeout", "socket_connect_timeout")
        }
        # One silent Sentinel must not hold up the question to the next.
        kwargs["retry"] = retry(NoBackoff(), 0)
        kwargs.update(self.options.get("SENTINEL_KWARGS", {}))
        cls = load_class("Sentinel", self.sentinel_classes[self.asynchronous])
        return self.built("SENTINEL", cls, sentinels=addresses, sentinel_kwargs=kwargs)

    def pool_path(self) -> Any:
        """The class of the pool, or its dotted path."""
        return self.options.get("CONNECTION_POOL_CLASS", self.pool_classes[self.asynchronous])


class ClusterConnectionFactory(ConnectionFactory):
    """Builds clients for a Redis Cluster.

    Either `redis+cluster://[user:password@]host:7000,host`, or `redis://host:7000` with or without
    further nodes in the option `CLUSTER_NODES`. Any one of them is enough to find the others.
    """

    cluster = True
    client_classes = (
        "redis.cluster.RedisCluster",
        "redis.asyncio.cluster.RedisCluster",
    )

    def nodes(self, url: str) -> tuple[list[tuple[str, int]], dict[str, Any]]:
        """The addresses of the nodes to begin with, and the arguments that the URL holds."""
        if url.startswith("redis+cluster://"):
            addresses, path, params = parse_hosts(url, 6379)
            params.setdefault("db", "/".join(path) or 0)
        else:
            params = self.parse_url(url)
            addresses = [(params.pop("host", "localhost"), params.pop("port", 6379))]
            if params.pop("connection_class", None):
                params["ssl"] = True
        extra = [(host, port) for host, port in self.options.get("CLUSTER_NODES", ())]
        addresses = list(dict.fromkeys([*addresses, *extra]))
        if not addresses or "path" in params or str(params.pop("db", 0)) != "0":
            raise SetUpError(
                f"Invalid Cluster URL: {masked(url)!r}, must be "
                f"redis+cluster://host:6379,host:6379 (a cluster has no databases but 0 and no "
                f"unix sockets)."
            )
        return addresses, params

    def connect(self, url: str) -> Any:
        return self.make_client(self.make_connection_params(url))

    def check(self, url: str) -> None:
        self.nodes(url)
        self.client_class()

    def name(self, url: str) -> str:
        return f"cluster {addresses_text(self.nodes(url)[0])}"

    def make_connection_params(self, url: str) -> dict[str, Any]:
        addresses, params = self.nodes(url)
        node = load_class(
            "ClusterNode",
            "redis.asyncio.cluster.ClusterNode"
            if self.asynchronous
            else "redis.cluster.ClusterNode",
        )
        params = {**self.common_params(), **params}
        if self.asynchronous:
            return {**params, "startup_nodes": [node(*address, **params) for address in addresses]}
        return {**params, "startup_nodes": [node(*address) for address in addresses]}

    def make_client(self, pool: Any) -> Any:
        kwargs = {**pool, **self.options.get("REDIS_CLIENT_KWARGS", {})}
        return self.built("REDIS_CLIENT", self.client_class(), **kwargs)


_BY_SCHEME: dict[str, type[ConnectionFactory]] = {
    "redis": ConnectionFactory,
    "rediss": ConnectionFactory,
    "unix": ConnectionFactory,
    "redis+sentinel": SentinelConnectionFactory,
    "redis+cluster": ClusterConnectionFactory,
}


def make_factory(url: object, options: Mapping[str, Any], asynchronous: bool) -> ConnectionFactory:
    """The factory for a URL, or the one that `CONNECTION_FACTORY_CLASS` names."""
    scheme, separator, _ = url.partition("://") if isinstance(url, str) else ("", "", "")
    if not separator or scheme not in _BY_SCHEME:
        raise SetUpError(
            f"Invalid Redis URL: {masked(url)!r}, must begin with one of "
            f"{', '.join(scheme + '://' for scheme in _BY_SCHEME)}."
        )
    path = options.get("CONNECTION_FACTORY_CLASS", _BY_SCHEME[scheme])
    factory: ConnectionFactory = load_class("CONNECTION_FACTORY_CLASS", path)(options, asynchronous)
    return factory
