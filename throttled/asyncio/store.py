"""The stores for async code: the same `MemoryStore`, and a `RedisStore` that is awaited."""

from typing import TYPE_CHECKING

from throttled._lazy import lazy
from throttled.store import AsyncStore, Health, MemoryStore, Store

if TYPE_CHECKING:
    from throttled.store import (
        ClusterConnectionFactory,
        ConnectionFactory,
        SentinelConnectionFactory,
    )
    from throttled.store.aioredis import RedisStore
else:
    __getattr__, __dir__ = lazy(
        __name__,
        {
            "ClusterConnectionFactory": "throttled.store.connection",
            "ConnectionFactory": "throttled.store.connection",
            "RedisStore": "throttled.store.aioredis",
            "SentinelConnectionFactory": "throttled.store.connection",
        },
    )

__all__ = [
    "AsyncStore",
    "ClusterConnectionFactory",
    "ConnectionFactory",
    "Health",
    "MemoryStore",
    "RedisStore",
    "SentinelConnectionFactory",
    "Store",
]
