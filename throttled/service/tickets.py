"""Tickets of reservations: all that it takes to settle one, signed, so that any process can.

A ticket is `v1.<payload>.<signature>`, both parts in the URL-safe alphabet of base64. The payload
is JSON, which is signed and not encrypted: who has the ticket of a key can read that key. It says

- whose it is: policy, key, cost, when it was issued and when it expires, a random id;
- which store took it: its place among those of the policy (0: the policy's own) and, of one in
  memory, a name that no other has: another process has another memory;
- what was taken by each rule: what makes its plan again, the cost, and the slot in µs.

The id is what makes settling once: the store marks it in the step that changes the counts.
"""

from __future__ import annotations

import json
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error
from collections.abc import Callable, Sequence
from hashlib import sha256
from hmac import compare_digest, digest
from math import isfinite
from secrets import token_hex
from typing import Any, Final, NamedTuple

from throttled._text import plain, shown
from throttled.algorithms.plan import Joint, Plan, make_plan
from throttled.arguments import check_amount, check_key, check_seconds
from throttled.exceptions import BaseThrottledError, DataError, SetUpError
from throttled.quota import Quota, Rule
from throttled.store.base import Change, Ticket, changes_of, joint_ticket

#: Seconds for which a ticket may be settled, at most: marks have to outlast it.
LONGEST: Final = 7 * 86_400.0

_VERSION: Final = "v1"
#: Longer than any ticket: a key of 4,096 characters comes to 22,000.
_MOST_TEXT: Final = 32_768
#: Seconds by which the clocks of two processes may differ: a mark outlasts its ticket by that.
_SKEW: Final = 60.0
#: What signs where there is no secret: it tells damage, and keeps nobody from forging.
_NOBODY: Final = "no secret, no token"


class Part(NamedTuple):
    """What one rule took."""

    algorithm: str
    quota: str
    prefix: str
    name: str | None
    #: What every call costs under this rule, if not the cost of the call.
    fixed: int | None
    #: What was taken, at which slot: µs by the clock of the store.
    cost: int
    slot: float


class Issued(NamedTuple):
    """What a ticket says."""

    policy: str
    key: str
    cost: int
    issued: float
    expires: float
    id: str
    #: The place of the store among those of the policy, and of one in memory its name.
    level: int
    home: str
    #: Nothing was taken if there are none: the key was exempt, or a policy let it pass.
    parts: tuple[Part, ...]

    def check(self) -> None:
        """Raises what is wrong with it: where there is no secret, anybody may have written it."""
        if not all(isinstance(each, str) for each in (self.policy, self.key, self.id, self.home)):
            raise TypeError
        check_key(self.key)
        check_amount("level", self.level)
        check_seconds("ttl", self.expires - self.issued)
        for part in self.parts:
            check_amount("cost", part.cost)
            if not isfinite(part.slot):
                raise ValueError
        if self.parts:
            self.joint()

    def joint(self) -> Joint:
        """What the rules were bound to."""
        plans = [
            make_plan(part.algorithm, Quota.parse(part.quota), part.prefix, part.name)
            for part in self.parts
        ]
        rules = [
            Rule(plan.quota, part.algorithm, part.fixed, part.name)
            for plan, part in zip(plans, self.parts, strict=True)
        ]
        return Joint(plans, rules)

    def changes(self, actual: int | None, store: Any) -> tuple[Plan, list[Change]]:
        """What settles it, of which `actual` was used (None: nothing, by any rule); with the plan
        that the mark lies beside."""
        joint = self.joint()
        parts = [
            Ticket(plan, self.key, part.cost, 0.0, part.slot, None, None, store)
            for plan, part in zip(joint.plans, self.parts, strict=True)
        ]
        whole = joint_ticket(joint, self.cost, 0.0, 0.0, parts, store)
        return joint.plans[0], changes_of(whole, actual)


class Tickets:
    """Issues tickets and reads them.

    `secrets`: the first one signs, each of them is accepted, so that they can be changed without
    losing what is outstanding. `ttl`: seconds for which a ticket may be settled. Raises
    `SetUpError` for a time that is none.
    """

    def __init__(
        self,
        secrets: Sequence[str] = (),
        ttl: float = 3600.0,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if not isinstance(ttl, int | float) or isinstance(ttl, bool) or not 0 < ttl <= LONGEST:
            raise SetUpError(
                f"Invalid ticket_ttl: {shown(ttl)}, must be seconds above 0 and up to "
                f"{plain(LONGEST)} (7 days)."
            )
        self._keys = [sha256(f"ticket {each}".encode()).digest() for each in secrets or [_NOBODY]]
        self._ttl = ttl
        self._clock = clock
        #: How many were issued by this process, and settled by it.
        self.issued = 0
        self.settled = 0

    def issue(
        self, policy: str, key: str, cost: int, level: int, home: str, ticket: Ticket | None
    ) -> Issued:
        """What is to be kept of a reservation; `ticket` is None if nothing was taken."""
        now = round(self._clock(), 3)
        parts = () if ticket is None else _parts_of(ticket)
        self.issued += 1
        expires = round(now + self._ttl, 3)
        return Issued(policy, key, cost, now, expires, token_hex(16), level, home, parts)

    def text(self, issued: Issued) -> str:
        """The ticket itself."""
        payload = json.dumps(issued, ensure_ascii=False, separators=(",", ":")).encode()
        signed = f"{_VERSION}.{_encoded(payload)}"
        return f"{signed}.{_encoded(digest(self._keys[0], signed.encode(), sha256))}"

    def read(self, text: str) -> Issued:
        """What a ticket says. Raises `DataError` for one that is damaged, was signed with another
        secret or has expired; it does not quote it."""
        if not text:
            raise DataError("Invalid ticket: it is empty, as it is of a call that was refused.")
        signed, _, signature = text.rpartition(".")
        version, _, payload = signed.partition(".")
        if version != _VERSION or len(text) > _MOST_TEXT or not text.isascii():
            raise DataError("Invalid ticket: must be the text that Reserve answered, unchanged.")
        fits = [
            compare_digest(signature, _encoded(digest(key, signed.encode(), sha256)))
            for key in self._keys
        ]
        if not any(fits):
            raise DataError("Invalid ticket: it is damaged, or was issued with another secret.")
        try:
            *fields, parts = json.loads(_decoded(payload))
            issued = Issued._make([*fields, tuple([Part._make(part) for part in parts])])
            issued.check()
        except (ValueError, TypeError, Error, BaseThrottledError):
            raise DataError("Invalid ticket: it was issued by a version that differs.") from None
        late = self._clock() - issued.expires
        if late >= 0.0:
            raise DataError(
                f"Invalid ticket: it expired {plain(late)} s ago; the estimate stays taken."
            )
        return issued

    def mark_for(self, issued: Issued) -> float:
        """Seconds that the mark of a settled ticket has to last."""
        return max(issued.expires - self._clock(), 0.0) + _SKEW


def _parts_of(ticket: Ticket) -> tuple[Part, ...]:
    return tuple(
        [
            Part(
                part.plan.algorithm,
                str(part.plan.quota),
                _prefix_of(part.plan),
                _name_of(part.plan),
                rule.cost,
                part.cost,
                part.slot,
            )
            for part, rule in zip(ticket.parts, ticket.plan.rules, strict=True)
        ]
    )


def _name_of(plan: Plan) -> str | None:
    """The name of the rule that a plan was made of."""
    return plan.rules[0].name if plan.rules else None


def _prefix_of(plan: Plan) -> str:
    """The prefix that a plan was made with."""
    name = _name_of(plan)
    rest = ["", "v1", plan.algorithm, str(plan.period), *([name] if name else ()), ""]
    return plan.prefix.removesuffix(":".join(rest))


def _encoded(content: bytes) -> str:
    return urlsafe_b64encode(content).rstrip(b"=").decode()


def _decoded(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))
