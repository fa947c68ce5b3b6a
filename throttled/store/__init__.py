"""Where counts live: `MemoryStore` in one process, `RedisStore` across many."""

from typing import TYPE_CHECKING

from throttled._lazy import lazy
from throttled.store.base import AsyncStore, Health, Store
from throttled.store.memory import MemoryStore

if TYPE_CHECKING:
    from throttled.store.connection import (
        ClusterConnectionFactory,
        ConnectionFactory,
        SentinelConnectionFactory,
    )
    from throttled.store.redis import RedisStore
else:
    __getattr__, __dir__ = lazy(
        __name__,
        {
            "ClusterConnectionFactory": "throttled.store.connection",
            "ConnectionFactory": "throttled.store.connection",
            "RedisStore": "throttled.store.redis",
            "SentinelConnectionFactory": "throttled.store.connection",
            "connection": "throttled.store.connection",
            "redis": "throttled.store.redis",
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
