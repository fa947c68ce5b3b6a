from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Source(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SOURCE_UNSPECIFIED: _ClassVar[Source]
    SOURCE_MEMORY: _ClassVar[Source]
    SOURCE_SERVER: _ClassVar[Source]
    SOURCE_LOCAL_DENY: _ClassVar[Source]
    SOURCE_FALLBACK: _ClassVar[Source]
    SOURCE_ALLOWED_BY_POLICY: _ClassVar[Source]
    SOURCE_DENIED_BY_POLICY: _ClassVar[Source]
    SOURCE_SHADOW: _ClassVar[Source]
    SOURCE_EXEMPT: _ClassVar[Source]
    SOURCE_DISABLED: _ClassVar[Source]
SOURCE_UNSPECIFIED: Source
SOURCE_MEMORY: Source
SOURCE_SERVER: Source
SOURCE_LOCAL_DENY: Source
SOURCE_FALLBACK: Source
SOURCE_ALLOWED_BY_POLICY: Source
SOURCE_DENIED_BY_POLICY: Source
SOURCE_SHADOW: Source
SOURCE_EXEMPT: Source
SOURCE_DISABLED: Source

class CheckRequest(_message.Message):
    __slots__ = ("policy", "key", "cost", "timeout")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    COST_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    policy: str
    key: str
    cost: int
    timeout: float
    def __init__(self, policy: _Optional[str] = ..., key: _Optional[str] = ..., cost: _Optional[int] = ..., timeout: _Optional[float] = ...) -> None: ...

class Rule(_message.Message):
    __slots__ = ("quota", "algorithm", "cost", "name")
    QUOTA_FIELD_NUMBER: _ClassVar[int]
    ALGORITHM_FIELD_NUMBER: _ClassVar[int]
    COST_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    quota: str
    algorithm: str
    cost: int
    name: str
    def __init__(self, quota: _Optional[str] = ..., algorithm: _Optional[str] = ..., cost: _Optional[int] = ..., name: _Optional[str] = ...) -> None: ...

class State(_message.Message):
    __slots__ = ("limit", "remaining", "reset_after", "retry_after")
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    REMAINING_FIELD_NUMBER: _ClassVar[int]
    RESET_AFTER_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_FIELD_NUMBER: _ClassVar[int]
    limit: int
    remaining: int
    reset_after: float
    retry_after: float
    def __init__(self, limit: _Optional[int] = ..., remaining: _Optional[int] = ..., reset_after: _Optional[float] = ..., retry_after: _Optional[float] = ...) -> None: ...

class Decision(_message.Message):
    __slots__ = ("allowed", "source", "states", "rules", "binding", "held", "would_limit")
    ALLOWED_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    RULES_FIELD_NUMBER: _ClassVar[int]
    BINDING_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    WOULD_LIMIT_FIELD_NUMBER: _ClassVar[int]
    allowed: bool
    source: Source
    states: _containers.RepeatedCompositeFieldContainer[State]
    rules: _containers.RepeatedCompositeFieldContainer[Rule]
    binding: int
    held: bool
    would_limit: bool
    def __init__(self, allowed: bool = ..., source: _Optional[_Union[Source, str]] = ..., states: _Optional[_Iterable[_Union[State, _Mapping]]] = ..., rules: _Optional[_Iterable[_Union[Rule, _Mapping]]] = ..., binding: _Optional[int] = ..., held: bool = ..., would_limit: bool = ...) -> None: ...

class CheckManyRequest(_message.Message):
    __slots__ = ("checks",)
    CHECKS_FIELD_NUMBER: _ClassVar[int]
    checks: _containers.RepeatedCompositeFieldContainer[CheckRequest]
    def __init__(self, checks: _Optional[_Iterable[_Union[CheckRequest, _Mapping]]] = ...) -> None: ...

class CheckManyResponse(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[CheckResult]
    def __init__(self, results: _Optional[_Iterable[_Union[CheckResult, _Mapping]]] = ...) -> None: ...

class CheckResult(_message.Message):
    __slots__ = ("decision", "error")
    DECISION_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    decision: Decision
    error: Error
    def __init__(self, decision: _Optional[_Union[Decision, _Mapping]] = ..., error: _Optional[_Union[Error, _Mapping]] = ...) -> None: ...

class Error(_message.Message):
    __slots__ = ("code", "message")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    code: int
    message: str
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ...) -> None: ...

class PeekRequest(_message.Message):
    __slots__ = ("policy", "key", "cost")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    COST_FIELD_NUMBER: _ClassVar[int]
    policy: str
    key: str
    cost: int
    def __init__(self, policy: _Optional[str] = ..., key: _Optional[str] = ..., cost: _Optional[int] = ...) -> None: ...

class ForecastRequest(_message.Message):
    __slots__ = ("policy", "key")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    policy: str
    key: str
    def __init__(self, policy: _Optional[str] = ..., key: _Optional[str] = ...) -> None: ...

class ForecastResponse(_message.Message):
    __slots__ = ("spendable_now", "next_replenish_at", "full_at")
    SPENDABLE_NOW_FIELD_NUMBER: _ClassVar[int]
    NEXT_REPLENISH_AT_FIELD_NUMBER: _ClassVar[int]
    FULL_AT_FIELD_NUMBER: _ClassVar[int]
    spendable_now: int
    next_replenish_at: float
    full_at: float
    def __init__(self, spendable_now: _Optional[int] = ..., next_replenish_at: _Optional[float] = ..., full_at: _Optional[float] = ...) -> None: ...

class DebitRequest(_message.Message):
    __slots__ = ("policy", "key", "amount")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    policy: str
    key: str
    amount: int
    def __init__(self, policy: _Optional[str] = ..., key: _Optional[str] = ..., amount: _Optional[int] = ...) -> None: ...

class DebitResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReserveRequest(_message.Message):
    __slots__ = ("policy", "key", "cost", "timeout")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    COST_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    policy: str
    key: str
    cost: int
    timeout: float
    def __init__(self, policy: _Optional[str] = ..., key: _Optional[str] = ..., cost: _Optional[int] = ..., timeout: _Optional[float] = ...) -> None: ...

class ReserveResponse(_message.Message):
    __slots__ = ("decision", "ticket")
    DECISION_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    decision: Decision
    ticket: str
    def __init__(self, decision: _Optional[_Union[Decision, _Mapping]] = ..., ticket: _Optional[str] = ...) -> None: ...

class SettleRequest(_message.Message):
    __slots__ = ("ticket", "actual")
    TICKET_FIELD_NUMBER: _ClassVar[int]
    ACTUAL_FIELD_NUMBER: _ClassVar[int]
    ticket: str
    actual: int
    def __init__(self, ticket: _Optional[str] = ..., actual: _Optional[int] = ...) -> None: ...

class SettleResponse(_message.Message):
    __slots__ = ("settled",)
    SETTLED_FIELD_NUMBER: _ClassVar[int]
    settled: bool
    def __init__(self, settled: bool = ...) -> None: ...

class RefundRequest(_message.Message):
    __slots__ = ("policy", "key", "amount")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    policy: str
    key: str
    amount: int
    def __init__(self, policy: _Optional[str] = ..., key: _Optional[str] = ..., amount: _Optional[int] = ...) -> None: ...

class RefundResponse(_message.Message):
    __slots__ = ("changed",)
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    changed: bool
    def __init__(self, changed: bool = ...) -> None: ...

class ResetRequest(_message.Message):
    __slots__ = ("policy", "key")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    policy: str
    key: str
    def __init__(self, policy: _Optional[str] = ..., key: _Optional[str] = ...) -> None: ...

class ResetResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
