"""Peak memory of a piece of code, as Python and numpy allocate it."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def peak_bytes() -> Iterator[list[int]]:
    """`with peak_bytes() as peak: …`, then `peak[0]`. Tracing is slow, so it ends whatever happens."""
    peak: list[int] = []
    tracemalloc.start()
    try:
        yield peak
    finally:
        peak.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
