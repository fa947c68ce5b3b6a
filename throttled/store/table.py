"""The table of a `MemoryStore`: bounded, with an eviction rule of its own."""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from cachetools import Cache

if TYPE_CHECKING:
    from throttled.algorithms.plan import Plan

logger = logging.getLogger("throttled")

#: How many of the least recently used keys are compared when one has to go …
_FEW = 8
#: … and how many are looked at, now and then, for one that is no longer worth anything.
_MANY = 64
#: Evictions between two such looks, at most.
_SELDOM = 512
#: The state of a cell that is no longer in the table.
GONE: Any = object()


class Cell:
    """The state of a key, and the plan that it belongs to."""

    __slots__ = ("plan", "state")

    plan: Plan
    state: Any


class Table(Cache[str, Cell]):
    """A `cachetools` cache with an eviction rule of its own.

    Keys whose state equals a fresh key's go first, else among a few least recently used the one
    that owes least, which for a bucket is the one nearest to its reset; the others are spared and
    count as used. Plain LRU would let a flood of fresh keys free a blocked one.
    """

    def __init__(self, maxsize: int) -> None:
        super().__init__(maxsize)
        self.cells: OrderedDict[str, Cell] = OrderedDict()  # least recently used first
        self.now = 0.0
        self.last_debt = 0.0  # what the last key that was evicted alive had owed, see plan.owed
        self.looked_at = 0  # how many had been evicted alive then
        self.evicted = 0

    def __setitem__(self, name: str, cell: Cell) -> None:
        Cache.__setitem__(self, name, cell)
        self.cells[name] = cell

    def __delitem__(self, name: str) -> None:
        Cache.__delitem__(self, name)
        self.cells.pop(name).state = GONE

    def popitem(self) -> tuple[str, Cell]:
        name, cell = self.cells.popitem(False)
        debt = cell.plan.owed(cell.state, self.now)
        evicted = self.evicted
        # One that owes no more than the last to go is let go at once: looking at cold keys costs.
        if debt > 0.0 and (debt > 2.0 * self.last_debt or evicted - self.looked_at >= _SELDOM):
            name, cell, debt = self._look(name, cell, debt)
        if debt > 0.0:
            self.last_debt = debt
            self.evicted = evicted + 1
            if not evicted:
                self._warn()
        Cache.__delitem__(self, name)
        cell.state = GONE
        return name, cell

    def _look(self, name: str, cell: Cell, debt: float) -> tuple[str, Cell, float]:
        """The one to go in place of the least recently used: one that owes nothing, however many
        have to be looked at (all of those found go), else the one of a few that owes least."""
        self.looked_at = self.evicted
        cells, now = self.cells, self.now
        worthless: tuple[str, Cell] | None = None
        for place in range(min(_MANY, len(cells))):
            other_name, other = cells.popitem(False)
            other_debt = other.plan.owed(other.state, now)
            if other_debt <= 0.0:
                if worthless is not None:
                    Cache.__delitem__(self, worthless[0])
                    worthless[1].state = GONE
                worthless = other_name, other
            elif other_debt < debt and place < _FEW:
                cells[name] = cell
                name, cell, debt = other_name, other, other_debt
            else:
                cells[other_name] = other
        if worthless is None:
            return name, cell, debt
        cells[name] = cell
        return *worthless, 0.0

    def _warn(self) -> None:
        logger.warning(
            "MemoryStore is full (MAX_SIZE=%d): keys that still count are being evicted "
            "and start afresh. Raise MAX_SIZE if so many keys are in use at once.",
            self.maxsize,
        )
