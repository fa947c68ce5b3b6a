"""Several plans at once, on a server: what is asked, and what the replies come to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

from throttled.algorithms.plan import Joint, Plan
from throttled.exceptions import BaseThrottledError, DataError
from throttled.result import RateLimitResult
from throttled.store.base import (
    Answer,
    Call,
    Change,
    Reply,
    Ticket,
    joint_result,
    joint_ticket,
)
from throttled.store.failure import group_error, is_list
from throttled.store.flight import Ask
from throttled.store.wire import JointWording

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from throttled.store.connection import ConnectionFactory
    from throttled.store.denials import Denials
    from throttled.store.waiting import Waiting

_new = object.__new__

AskT = TypeVar("AskT", bound=Ask)

#: A call to admit by a joint: with one key, or with one a member.
JointCall = tuple[Joint, Any, int, float]


class JointCalls(Generic[AskT]):
    """What a Redis store does about joints."""

    ask: type[AskT]
    _client: Any
    _denials: Denials
    _factory: ConnectionFactory | None
    _waiting: Waiting

    def _wording(self, plan: Plan | Joint) -> Any:
        raise NotImplementedError

    def _now(self, at: float | None = None) -> bytes:
        raise NotImplementedError

    def _replied(self, ask: Ask, call: Call) -> Reply:
        raise NotImplementedError

    def _to_ticket(self, joint: Joint, keys: Sequence[str], cost: int, patience: float) -> AskT:
        """An ask to admit a joint whose plans have keys of their own, with a ticket."""
        # Such a joint is made for one call, so its wording is not kept.
        wording = JointWording(joint, [self._wording(each) for each in joint.members])
        groups = wording.to_ask(cost, patience, ticket=True)
        ask = self.ask(wording.bulks(keys), groups, self._now())
        ask.width = wording.width
        if self._clustered and len(set(keys)) > 1:
            _check_slots(ask.names)
        return ask

    @property
    def _clustered(self) -> bool:
        """Whether keys live on several nodes."""
        if self._factory is not None:
            return self._factory.cluster
        return getattr(self._client, "connection_pool", None) is None

    def _joint_answer(
        self, groups: Any, name: bytes, call: JointCall
    ) -> tuple[Answer, Ticket | None]:
        """What the replies to a joint come to, with a ticket if there is something to give back.

        Raises what stands in their place.
        """
        joint, _, cost, patience = call
        if not is_list(groups) or not is_list(groups[0]):
            error = groups[0] if is_list(groups) else groups
            raise error if isinstance(error, BaseThrottledError) else group_error(name, error)
        wait = max([float(each[0]) for each in groups])
        if not cost or wait > patience:
            return joint_result(wait > 0 and cost > 0, joint, groups, cost, None, "server"), None
        parts: list[Ticket] = []
        for (plan, key, each), reply in zip(_parts(call), groups, strict=False):
            if self._denials.at_hand:
                self._denials.outdated(plan, key)
            if len(reply) == 6:
                slot, before, written = reply[3:]
                parts.append(Ticket(plan, key, each, wait, float(slot), before, written, self))
        if not parts:
            return joint_result(False, joint, groups, cost, None, "server"), None
        ticket = joint_ticket(joint, cost, wait, min(part.slot for part in parts), parts, self)
        if not wait:
            return joint_result(False, joint, groups, cost, None, "server"), ticket
        for part in parts:
            self._waiting.add(part)
        return (ticket, wait, _looks(groups)), ticket

    def _joint_reply(self, groups: Any, call: JointCall, sent_at: float, seen: int) -> Answer:
        """What the replies to a joint alone come to."""
        if call[2] and not self._denials.at_hand:
            for group in groups:
                if group.__class__ is not list or group[0] != 0:
                    break
            else:  # admitted at once, as most are
                result = _new(RateLimitResult)
                result.limited = False
                result._plan = call[0]
                result._seen = groups
                result._asked = call[2]
                result._now = None
                result._source = "server"
                return result
        return self._joint_decided(groups, b"", call, sent_at, seen)

    def _joint_decided(
        self, groups: Any, name: bytes, call: JointCall, sent_at: float, seen: int
    ) -> Answer:
        """What the replies to a joint come to; a refusal is remembered."""
        answer, _ = self._joint_answer(groups, name, call)
        joint, key, cost, patience = call
        if patience >= 0.0 and isinstance(answer, RateLimitResult) and answer.limited:
            looks = _looks(groups)
            wait = max([look[0] for look in looks])
            self._denials.refused(joint, key, cost, sent_at, (None, wait, 0.0, 0.0), seen, looks)
        return answer

    def _undone(self, ask: Ask, call: Any) -> tuple[Ticket | None, list[Change]]:
        """What gives back a call that nobody waits for any more: a ticket to withdraw, or changes.

        Raises what stands in the place of its reply.
        """
        plan, key, cost, patience = call
        if isinstance(plan, Joint):
            answer, ticket = self._joint_answer(ask.groups, ask.name, call)
            if not isinstance(answer, RateLimitResult):
                return ticket, []
            if answer.limited or not cost:
                return None, []
            return None, [(each, name, -taken, None) for each, name, taken in _parts(call)]
        reply = self._replied(ask, call)
        if isinstance(reply[0], Ticket):
            return reply[0], []
        return None, [(plan, key, -cost, None)] if cost and reply[1] <= patience else []


def _parts(call: JointCall) -> Iterable[tuple[Plan, str, int]]:
    """The plans of a call, each with its key and cost."""
    joint, keys, cost, _ = call
    if isinstance(keys, str):
        keys = joint.keys(keys)
    return zip(joint.plans, keys, joint.costs(cost), strict=False)  # holds have keys as well


def _looks(groups: Sequence[Any]) -> list[tuple[float, ...]]:
    """wait, remaining and reset_after of each reply."""
    return [tuple(map(float, each[:3])) for each in groups]


def _check_slots(names: Sequence[bytes]) -> None:
    """`DataError` unless all keys live in one slot of a cluster."""
    from redis.crc import key_slot

    if len({key_slot(name) for name in names}) > 1:
        raise DataError(
            "Invalid pairs: on a Redis Cluster, keys that are decided at once must share a slot: "
            'pass slot="..." to limit_all, or keys made by Key(..., slot="...").'
        )
