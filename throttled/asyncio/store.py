"""The stores for async code: the same `MemoryStore`, and a `RedisStore` that is awaited."""

from throttled.store import (
    AsyncStore,
    ClusterConnectionFactory,
    ConnectionFactory,
    Health,
    MemoryStore,
    SentinelConnectionFactory,
    Store,
)
from throttled.store.aioredis import RedisStore

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
