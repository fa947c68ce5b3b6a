"""Those who wait for their slots, and how those who give up give back."""

from __future__ import annotations

from bisect import insort_right
from collections.abc import Generator
from typing import TYPE_CHECKING

from throttled.store.base import Store, Ticket, new_lock

if TYPE_CHECKING:
    from throttled.algorithms.plan import Plan

#: `(True, ticket)`: undo it; `(False, ticket)`: give back its cost by an adjustment. The answer
#: sent in is whether anything was changed.
Steps = Generator[tuple[bool, Ticket], bool, None]


class _Line:
    """Those who wait for one key, in the order of their slots."""

    __slots__ = ("busy", "tickets")

    def __init__(self) -> None:
        self.tickets: list[Ticket] = []
        self.busy = False  # somebody is giving back what stands at its end


class Waiting:
    """The promises of this process that were not used yet, key by key.

    A promise with nobody behind it is undone, and leaves the key as if it had never been asked
    for. One with others behind it cannot be put back without changing what they were promised. So
    it stays in line, marked as gone, until it comes to stand at the end: then it is undone too (a
    hundred waiters cancelled in any order leave no trace), or, if those behind it were served, its
    cost is given back as far as the algorithm allows.

    What to do comes out as steps, so that sync and async stores can share it; one caller at a time
    takes them for a key, on behalf of all. Bounded; promises of other processes are not known
    here, and simply stand.
    """

    __slots__ = ("_lines", "_lock")

    def __init__(self) -> None:
        self._lock = new_lock()
        self._lines: dict[tuple[str, str], _Line] = {}

    def add(self, ticket: Ticket) -> None:
        """Somebody waits for a slot."""
        name = (ticket.plan.prefix, ticket.key)
        with self._lock:
            line = self._lines.get(name)
            if line is None:
                if len(self._lines) >= 4096:
                    del self._lines[next(iter(self._lines))]
                line = self._lines[name] = _Line()
            tickets = line.tickets
            # Who never said that they were served: their slots had passed when this one asked.
            asked = ticket.slot - ticket.wait
            while tickets and not tickets[0].gone and tickets[0].slot <= asked:
                del tickets[0]
            insort_right(tickets, ticket, key=_slot)

    def leave(self, ticket: Ticket) -> Steps:
        """Somebody gives up a slot: of a joint, that of every plan."""
        parts = [part for part in ticket.parts or (ticket,) if not part.void]
        with self._lock:
            for part in parts:
                part.gone = True
                name = (part.plan.prefix, part.key)
                line = self._lines.get(name)
                if line is None:
                    line = self._lines[name] = _Line()
                if part not in line.tickets:
                    insort_right(line.tickets, part, key=_slot)
        for part in parts:
            yield from self._give_back((part.plan.prefix, part.key))

    def arrive(self, ticket: Ticket) -> Steps:
        """Somebody's slot has come: of a joint, that of every plan."""
        for part in ticket.parts or (ticket,):
            name = (part.plan.prefix, part.key)
            with self._lock:
                line = self._lines.get(name)
                if line is None:
                    continue
                if part in line.tickets:
                    line.tickets.remove(part)
                if not line.tickets and not line.busy:
                    del self._lines[name]
                    continue
            yield from self._give_back(name)

    def forget(self, plan: Plan, key: str) -> None:
        """A key was reset: what was promised before does not count any more."""
        with self._lock:
            line = self._lines.pop((plan.prefix, key), None)
            if line is not None:
                for ticket in line.tickets:
                    ticket.void = True
                line.tickets = []

    def hold(self, hold: Plan, key: str) -> None:
        """A penalty was set: whoever of this process waits for that key, by whatever limit of the
        hold's prefix, looks again."""
        family = hold.prefix.removesuffix(f"{hold.algorithm}:")
        with self._lock:
            for (prefix, waited), line in self._lines.items():
                if waited == key and prefix.startswith(family):
                    for ticket in line.tickets:
                        ticket.held = True

    def _give_back(self, name: tuple[str, str]) -> Steps:
        """Put back what stands at the end of the line and is gone, the newest first."""
        with self._lock:
            line = self._lines.get(name)
            if line is None or line.busy:
                return
            line.busy = True
        try:
            while True:
                with self._lock:
                    ticket = line.tickets[-1] if line.tickets else None
                    if ticket is None or not ticket.gone:
                        line.busy = False
                        if ticket is None and self._lines.get(name) is line:
                            del self._lines[name]
                        return
                if not (yield True, ticket):
                    if line.tickets[-1:] != [ticket]:
                        continue  # somebody stands behind it by now, or its key was reset
                    yield False, ticket
                with self._lock:
                    if ticket in line.tickets:  # else its key was reset meanwhile
                        line.tickets.remove(ticket)
        finally:
            line.busy = False


def follow(store: Store, steps: Steps) -> None:
    """Take the steps that give back what is gone."""
    try:
        undo, ticket = next(steps)
        while True:
            undo, ticket = steps.send(
                store.undo(ticket)
                if undo
                else store.adjust(ticket.plan, ticket.key, -ticket.cost, ticket.slot)
            )
    except StopIteration:
        return


def _slot(ticket: Ticket) -> float:
    return ticket.slot
