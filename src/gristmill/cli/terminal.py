"""Text of a model on standard output, as it comes."""

from __future__ import annotations

import re
import sys

# What could move the cursor, rename the window or recolour the terminal; newlines and tabs may stay.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def write(text: str) -> None:
    """Write and flush. On a terminal, control characters appear as U+FFFD; a pipe gets what was made."""
    sys.stdout.write(_CONTROL.sub("\ufffd", text) if sys.stdout.isatty() else text)
    sys.stdout.flush()
