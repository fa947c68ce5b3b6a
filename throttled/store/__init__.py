"""Where counts live: `MemoryStore` in one process, `RedisStore` across many."""

from throttled.store.base import AsyncStore, Health, Store
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
    "Health",
    "MemoryStore",
    "RedisStore",
    "SentinelConnectionFactory",
    "Store",
]
