"""Numbers and values as they appear in messages and reprs."""

from __future__ import annotations

import math
from typing import Final

_SHOWN_LENGTH: Final = 120


def plain(seconds: float) -> str:
    """Print a number as a person would: 60, not 59.999998; never 0 for a positive duration.

    Keeps three decimals from 1 upwards and three significant digits below; infinity is "inf".
    """
    if not math.isfinite(seconds):
        return str(seconds)
    size = abs(seconds)
    decimals = 3 if size >= 1 or size == 0 else 2 - math.floor(math.log10(size))
    # Adding 0.0 turns -0.0 into 0.0.
    return f"{seconds + 0.0:.{decimals}f}".rstrip("0").rstrip(".")


def shown(value: object) -> str:
    """The repr of a value for an error message, cut when long; never raises."""
    try:
        text = repr(value)
    except Exception:  # a broken repr, or an int too long to print, must not hide the real error
        return f"<{type(value).__name__}>"
    if len(text) <= _SHOWN_LENGTH:
        return text
    return f"{text[:_SHOWN_LENGTH]}... ({len(text)} characters)"
