"""Text of a model on standard output, as it comes."""

from __future__ import annotations

import re
import sys

# What could move the cursor, rename the window or recolour the terminal; newlines and tabs may stay.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def harmless(text: str) -> str:
    """Control characters as U+FFFD."""
    return _CONTROL.sub("\ufffd", text)


def write(text: str) -> None:
    """Write and flush. On a terminal, control characters appear as U+FFFD; a pipe gets what was made."""
    sys.stdout.write(harmless(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()
