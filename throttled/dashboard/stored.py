"""What a store holds for a key, in the words of the contract."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from datetime import UTC, datetime
from functools import lru_cache, partial
from typing import Any, Final

from anyio import to_thread

from throttled._text import plain
from throttled.algorithms.plan import Plan
from throttled.contract import layout
from throttled.exceptions import BaseThrottledError
from throttled.store.calls import RedisCalls
from throttled.store.failure import NOPERM, Failure, failures
from throttled.store.memory import MemoryStore
from throttled.store.redis import RedisStore
from throttled.store.table import GONE

#: Of a log, the newest entries are shown.
MOST_ENTRIES: Final = 50
#: Characters of what is held and cannot be read.
_MOST_TEXT: Final = 200

_INSTANTS: Final = ("at", "start", "last", "until")
_CREDITS: Final = ("credit", "peak")


@lru_cache(maxsize=1)
def _states() -> dict[str, Any]:
    states: dict[str, Any] = layout()["states"]
    return states


def fields_of(kind: str, text: str) -> dict[str, float]:
    """The fields of a state that is one text; `ValueError` for one that is damaged."""
    state = _states()[kind]
    numbers = [float(each) for each in text.split(_states()["separator"])]
    for names in (state["fields"], state.get("promised", [])):
        if len(names) == len(numbers):
            return dict(zip(names, numbers, strict=True))
    raise ValueError(f"{len(numbers)} numbers where a {kind} has {len(state['fields'])}")


def entries_of(items: Sequence[str]) -> tuple[list[tuple[float, float]], float]:
    """The slots and costs of the end of a log, and the running total at its end.

    `ValueError` for one that is damaged.
    """
    numbers = [float(each) for each in items]
    if numbers and numbers[-1] < 0.0:  # the instant written, where it is not the last slot
        numbers.pop()
    if len(numbers) % 2 == 0:
        # It begins in the middle of an entry, or is none.
        numbers = numbers[1:]
    if not numbers:
        raise ValueError("a log without its total")
    befores, slots, total = numbers[:-1:2], numbers[1::2], numbers[-1]
    afters = [*befores[1:], total][: len(befores)]
    costs = [after - before for before, after in zip(befores, afters, strict=True)]
    return list(zip(slots, costs, strict=True)), total


def shown_field(name: str, value: float, plan: Plan) -> str:
    """A field as a person reads it."""
    if name in _INSTANTS:
        return _instant(value) if value else "none"
    if name in _CREDITS:
        return f"{plain(value / plan.period)} tokens"
    if name == "ahead":
        return f"{plain(value / 1e6)} s"
    return plain(value)


def _instant(microseconds: float) -> str:
    try:
        instant = datetime.fromtimestamp(microseconds / 1e6, UTC)
    except (ValueError, OverflowError, OSError):
        return plain(microseconds)
    return instant.isoformat(sep=" ", timespec="milliseconds").replace("+00:00", "Z")


def _told(name: str, plan: Plan, held: Held) -> dict[str, Any]:
    """What is held, for JSON."""
    told: dict[str, Any] = {
        "name": name,
        "type": held.type,
        "ttl": held.ttl,
        "fields": [],
        "entries": [],
        "length": held.length,
        "error": held.error,
    }
    try:
        if held.type == "list":
            entries, _ = entries_of(held.items)
            told["entries"] = [
                {"slot": _instant(slot), "cost": cost} for slot, cost in entries[-MOST_ENTRIES:]
            ][::-1]
        elif held.type == "string":
            told["fields"] = [
                {"name": field, "value": value, "shown": shown_field(field, value, plan)}
                for field, value in fields_of(plan.kind, held.items[0]).items()
            ]
    except (ValueError, KeyError) as error:
        told["error"] = f"damaged: {error}: {held.items[0][:_MOST_TEXT] if held.items else ''}"
    return told


class Held:
    """What a store answers of one name."""

    __slots__ = ("error", "items", "length", "ttl", "type")

    def __init__(
        self,
        type: str | None = None,  # noqa: A002 - as Redis calls it
        items: Sequence[str] = (),
        length: int | None = None,
        ttl: float | None = None,
        error: str | None = None,
    ) -> None:
        #: "string", "list" or what else is there; None: nothing.
        self.type = type
        self.items = items
        #: Entries of a log, of which `items` has the end.
        self.length = length
        #: Seconds; None where it is not known.
        self.ttl = ttl
        self.error = error


async def stored(store: Any, plans: Sequence[Plan], key: str) -> list[dict[str, Any]] | None:
    """What a store holds for a key by each plan; None for one that shows nothing of that."""
    if isinstance(store, MemoryStore):
        return [_told(f"{plan.prefix}{key}", plan, _in_memory(store, plan, key)) for plan in plans]
    if isinstance(store, RedisCalls):
        reading = _Reading(store)
        try:
            return [await reading.told(plan, key) for plan in plans]
        finally:
            await reading.close()
    return None


def _in_memory(store: MemoryStore, plan: Plan, key: str) -> Held:
    cell = store._cells.get(plan.prefix + key)
    if cell is None or cell.state is GONE:
        return Held()
    state = cell.state
    left = plan.reset_after(state, store.now()) / 1e6
    items = plan.dump(state)
    if left <= 0.0 or not items:
        return Held()  # it is there until the room is needed, and counts for nothing
    if _states()[plan.kind]["type"] == "list":
        return Held("list", items[-2 * MOST_ENTRIES - 2 :], len(items) // 2, left)
    return Held("string", items, ttl=left)


class _Reading:
    """Reads from the server of a store, over a connection of its own that lasts for one look.

    What is asked first is what the user of the documents may ask: GET and LRANGE. That it may not
    ask for the TTL is no error.
    """

    def __init__(self, store: RedisCalls[Any]) -> None:
        self._store = store
        self._threads = isinstance(store, RedisStore)
        self._factory: Any = store._factory
        self._client = store._client

    async def _ask(self, *command: Any) -> Any:
        if self._threads:
            return await to_thread.run_sync(partial(self._asked, *command))
        if self._client is None:
            self._client = self._factory.connect(self._store._server)
        return await self._client.execute_command(*command)

    def _asked(self, *command: Any) -> Any:
        if self._client is None:
            self._client = self._factory.connect(self._store._server)
        return self._client.execute_command(*command)

    async def told(self, plan: Plan, key: str) -> dict[str, Any]:
        """What is held under the name of a key."""
        wording = self._store._wording(plan)
        name: bytes = wording._prefix + wording._name(key)
        shown = name.decode("utf-8", "replace")
        try:
            held = await self._held(name)
            if held.type is not None:
                held.ttl = await self._ttl(name)
        except failures() as error:
            # Nothing is counted by reading, whatever became of it.
            said = Failure(error, False).as_error(self._store._where)
            held = Held(error=str(said))
        except BaseThrottledError as error:
            held = Held(error=str(error))
        return _told(shown, plan, held)

    async def _held(self, name: bytes) -> Held:
        from redis.exceptions import ResponseError

        try:
            text = await self._ask("GET", name)
        except ResponseError as error:
            if not str(error).startswith("WRONGTYPE"):
                raise
        else:
            return Held() if text is None else Held("string", [_text(text)])
        try:
            length = await self._ask("LLEN", name)
            items = await self._ask("LRANGE", name, -2 * MOST_ENTRIES - 2, -1)
        except ResponseError as error:
            if not str(error).startswith("WRONGTYPE"):
                raise
            return Held(_text(await self._ask("TYPE", name)), error="holds something else")
        return Held("list", [_text(each) for each in items], length // 2)

    async def _ttl(self, name: bytes) -> float | None:
        try:
            left: int = await self._ask("PTTL", name)
        except failures() as error:
            if Failure(error, False).code == NOPERM:
                return None
            raise
        return left / 1e3 if left >= 0 else None

    async def close(self) -> None:
        """Close the connection, unless the client is the user's."""
        client = self._client
        if client is None or client is self._store._client:
            return
        pool = getattr(client, "connection_pool", None)
        for each in (*getattr(getattr(pool, "sentinel_manager", None), "sentinels", ()), client):
            closed = each.aclose() if hasattr(each, "aclose") else each.close()
            if isinstance(closed, Awaitable):
                await closed
        disconnected = pool.disconnect() if pool is not None else None
        if isinstance(disconnected, Awaitable):
            await disconnected


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
