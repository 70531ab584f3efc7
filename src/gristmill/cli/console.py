"""Where the command line writes: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.console import Console

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def show_json(value: Any) -> None:
    """The one JSON document of `--json`, at once: a program may wait for it while this one goes on (`serve`)."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
    sys.stdout.flush()
