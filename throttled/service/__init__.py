"""Limits as a service over gRPC: the server, and the client for code that is not async."""

from throttled.exceptions import (
    OperationNotSupportedError,
    PolicyNotFoundError,
    ServiceUnavailableError,
)
from throttled.service.client import Client, Policy

__all__ = [
    "Client",
    "OperationNotSupportedError",
    "Policy",
    "PolicyNotFoundError",
    "ServiceUnavailableError",
]
