"""Every error the library raises; all inherit from `BaseThrottledError`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from throttled._text import plain

if TYPE_CHECKING:
    from throttled.result import RateLimitResult

__all__ = [
    "BaseThrottledError",
    "DataError",
    "LimitedError",
    "OperationNotSupportedError",
    "PolicyNotFoundError",
    "ServiceUnavailableError",
    "SetUpError",
    "StateError",
    "StoreUnavailableError",
]


class BaseThrottledError(Exception):
    """The base of every error raised by this library."""

    #: With an error that `limit_many` raised: what became of each call, in their order, a result
    #: or an error. Calls that were admitted are, whatever became of the others.
    outcomes: tuple[RateLimitResult | BaseThrottledError, ...] = ()


class DataError(BaseThrottledError, ValueError):
    """An argument is invalid: a key, a cost, a quota, a timeout. Nothing was written."""


class SetUpError(BaseThrottledError):
    """A store cannot be built as asked: an unknown option, a bad URL, a missing package."""


class StateError(BaseThrottledError):
    """The stored state of a key is damaged or belongs to something else. Nothing was written."""


class StoreUnavailableError(BaseThrottledError):
    """The store's server did not answer, so the limit could not be decided."""


class ServiceUnavailableError(StoreUnavailableError):
    """The service that decides did not answer, or could not reach its store."""

    #: Whether it is for want of an answer in time: the call may have been counted.
    unanswered: bool = False


class PolicyNotFoundError(BaseThrottledError, KeyError):
    """There is no policy of that name, in a policy file or in the service."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else "There is no such policy."  # not its repr


class OperationNotSupportedError(BaseThrottledError):
    """A policy does not permit what was asked, or its rules leave nothing that it could mean."""


class LimitedError(BaseThrottledError):
    """A call was refused: by its limit, or because its store failed and the policy is to deny.

    `rate_limit_result` is the refusal; its `state.retry_after` says in how many seconds the same
    call fits, and its `source` who refused: `"denied-by-policy"` is not the caller's fault.
    """

    rate_limit_result: RateLimitResult | None

    def __init__(self, rate_limit_result: RateLimitResult | None = None) -> None:
        # The result is the only argument, so that pickling and copying rebuild the error, and the
        # message is printed only when somebody reads it: refusals can be frequent.
        super().__init__(rate_limit_result)
        self.rate_limit_result = rate_limit_result

    def __str__(self) -> str:
        if self.rate_limit_result is None:
            return "Rate limit exceeded."
        state = self.rate_limit_result.state
        if getattr(self.rate_limit_result, "source", None) == "denied-by-policy":
            return (
                f"Store unavailable: the call was refused by on_store_error='deny', not by its "
                f"limit: retry_after={plain(state.retry_after)}."
            )
        return (
            f"Rate limit exceeded: remaining={state.remaining}, "
            f"reset_after={plain(state.reset_after)}, retry_after={plain(state.retry_after)}."
        )
