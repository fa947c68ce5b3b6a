"""Where counts live: `MemoryStore` in one process, `RedisStore` across many."""

from throttled.store.memory import MemoryStore

__all__ = ["MemoryStore"]
