"""What the machine computes fast in, measured, and the allocator settings that training needs."""

from __future__ import annotations

import ctypes
import sys
import time
from pathlib import Path
from typing import Literal

import torch

from gristmill.files import read_json, write_json

ComputeDtype = Literal["auto", "float32", "bfloat16"]
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def fast_dtype(device: torch.device | str = "cpu") -> torch.dtype:
    """bfloat16 where its matmul is clearly faster than float32, else float32.

    Measured, never assumed: on a CPU with AVX512-BF16 bf16 is 2-3 times faster, on one without it
    50-100 times slower, so the answer does not flicker. Takes about 20 ms with hardware
    bf16, some tenths of a second without.
    """
    if torch.device(device).type == "cuda":
        return torch.bfloat16
    times = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.ones(256, 256, dtype=dtype)
        a @ a
        # The fastest of several: on a busy machine any one of them may have been waiting for its turn.
        times[dtype] = min(_seconds_of_product(a) for _ in range(8))
    return torch.bfloat16 if times[torch.bfloat16] < 0.8 * times[torch.float32] else torch.float32


def _seconds_of_product(a: torch.Tensor) -> float:
    start = time.perf_counter()
    a @ a
    return time.perf_counter() - start


def resolve_dtype(name: ComputeDtype, out_dir: Path) -> torch.dtype:
    """The torch dtype of a config's `compute_dtype`. "auto" is measured once for a stage and kept in its
    directory, so that a run that resumes computes as before."""
    if name != "auto":
        return _DTYPES[name]
    kept = out_dir / "compute.json"
    if not kept.is_file():
        write_json(kept, {"dtype": str(fast_dtype()).removeprefix("torch.")})
    return _DTYPES[read_json(kept)["dtype"]]


def keep_freed_memory() -> None:
    """Tell glibc to keep freed blocks instead of giving them back to the kernel.

    A step frees and takes the same tens of megabytes again; by default each round trip unmaps and
    page-faults them, which cost a third of a small model's step. No effect outside glibc.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    m_trim_threshold, m_mmap_threshold = -1, -3
    mallopt(m_mmap_threshold, 1 << 30)
    mallopt(m_trim_threshold, (1 << 31) - 1)
