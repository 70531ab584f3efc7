"""Where the command line writes: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

from rich.console import Console

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)
_SURROGATE = re.compile("[\ud800-\udfff]")


def show_json(value: Any) -> None:
    """The one JSON document of `--json`, at once: a program may wait for it while this one goes on (`serve`)."""
    text = json.dumps(value, ensure_ascii=False)
    if not text.isascii() and _SURROGATE.search(text):  # UTF-8 has none; JSON can escape them
        text = json.dumps(value)
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def counted(number: int, noun: str) -> str:
    """Such as "1 token" or "1,200 tokens"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
