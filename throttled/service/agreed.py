"""What the service and its clients agree on beside the messages: numbers, and the longest key."""

from __future__ import annotations

from typing import Final

from throttled.result import Source

#: Characters that a key may have.
LONGEST_KEY: Final = 4_096

# Status codes of gRPC, by their numbers: what stands in an `Error`.
DEADLINE_EXCEEDED: Final = 4
INVALID_ARGUMENT: Final = 3
NOT_FOUND: Final = 5
PERMISSION_DENIED: Final = 7
UNIMPLEMENTED: Final = 12
INTERNAL: Final = 13
UNAVAILABLE: Final = 14
DATA_LOSS: Final = 15
UNAUTHENTICATED: Final = 16

#: By the number that the protocol gives it, `RateLimitResult.source`.
SOURCES: Final[dict[int, Source]] = {
    1: "memory",
    2: "server",
    3: "local-deny",
    4: "fallback",
    5: "allowed-by-policy",
    6: "denied-by-policy",
    7: "shadow",
    8: "exempt",
    9: "disabled",
}
