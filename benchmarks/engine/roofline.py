"""How fast memory can be read here: the ceiling of decoding alone, which reads every weight for every token."""

from __future__ import annotations

from time import perf_counter

BYTES = 512 * 2**20  # sixteen times a large cache


def read_bandwidth(seconds: float = 1.5) -> float:
    """Bytes a second, the best of some passes over float32 with all of torch's threads.

    Reductions only read. A plain C loop with two threads reached 27.5 GB/s where `amax` reached 30.8.
    """
    import torch

    values = torch.ones(BYTES // 4)
    best, end = float("inf"), perf_counter() + seconds
    while perf_counter() < end:
        for reduce in (torch.sum, torch.amax):
            start = perf_counter()
            reduce(values)
            best = min(best, perf_counter() - start)
    return BYTES / best
