"""Where counts live: `MemoryStore` in one process, `RedisStore` across many."""

from throttled.store.base import AsyncStore, Store
from throttled.store.connection import (
    ClusterConnectionFactory,
    ConnectionFactory,
    SentinelConnectionFactory,
)
from throttled.store.memory import MemoryStore
from throttled.store.redis import RedisStore

__all__ = [
    "AsyncStore",
    "ClusterConnectionFactory",
    "ConnectionFactory",
    "MemoryStore",
    "RedisStore",
    "SentinelConnectionFactory",
    "Store",
]
