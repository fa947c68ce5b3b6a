"""The client of the service for async code: `throttled.service`, awaited."""

from throttled.exceptions import (
    OperationNotSupportedError,
    PolicyNotFoundError,
    ServiceUnavailableError,
)
from throttled.service.aclient import Client, Policy

__all__ = [
    "Client",
    "OperationNotSupportedError",
    "Policy",
    "PolicyNotFoundError",
    "ServiceUnavailableError",
]
