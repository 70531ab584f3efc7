"""What every contestant speaks: JSON, a line each way, over its standard input and output.

    {"about": {...}}                                              once, when it has loaded
    {"requests": [[token ids, new tokens], ...]}                  a question
    {"seconds": ..., "tokens": [[...], ...] or null}              its answer

It runs under a peer's own Python too, so it imports nothing of ours.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from time import perf_counter
from typing import Any

Requests = list[tuple[list[int], int]]  # (prompt, how many tokens to add)
# Answers every request, and says the tokens it added or None where it cannot.
Generate = Callable[[Requests], list[list[int]] | None]


def serve(load: Callable[[], tuple[Generate, dict[str, Any]]]) -> None:
    """Load, then answer until standard input ends."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print; the channel is for answers alone
    generate, about = load()
    print(json.dumps({"about": about}), file=channel, flush=True)
    for line in sys.stdin:
        requests = [(ids, count) for ids, count in json.loads(line)["requests"]]
        start = perf_counter()
        tokens = generate(requests)
        seconds = perf_counter() - start
        print(json.dumps({"seconds": seconds, "tokens": tokens}), file=channel, flush=True)
