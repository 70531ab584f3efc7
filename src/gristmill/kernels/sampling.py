"""Temperature, min-p, top-k, top-p and the draw for many rows at once; the twin is `engine.sampler.sample_torch`."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gristmill.kernels.native import extension

# As in src/native/sampling.h.
ROW = np.dtype(
    [
        ("temperature", "f8"),
        ("min_p", "f8"),
        ("top_p", "f8"),
        ("top_k", "i8"),  # 0: all
        ("seed", "u8"),
        ("position", "u8"),
    ]
)


def sample_native(logits_BV: Tensor, rows: np.ndarray) -> tuple[list[int], list[float]]:
    """Tokens and the logs of their shares among what is left. logits float32 on the CPU; rows [B] of `ROW`."""
    assert extension is not None, "gristmill._native is not built"
    if logits_BV.dtype != torch.float32 or not logits_BV.is_cpu or rows.dtype != ROW:
        raise TypeError("sample_native takes float32 logits on the CPU and rows of ROW")
    logits_BV = logits_BV.contiguous()
    count, size = logits_BV.shape
    if len(rows) != count:
        raise ValueError(f"sample_native: {len(rows)} rows for {count} rows of logits")
    tokens, logprobs = np.empty(count, np.int64), np.empty(count, np.float64)
    extension.sample(
        logits_BV.data_ptr(),
        count,
        size,
        rows.ctypes.data,
        tokens.ctypes.data,
        logprobs.ctypes.data,
        torch.get_num_threads(),
    )
    return tokens.tolist(), logprobs.tolist()
