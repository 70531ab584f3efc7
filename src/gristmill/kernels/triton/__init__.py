"""Kernels for GPUs, in Triton. This package imports without triton; its modules are imported when they are used."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

has_triton = find_spec("triton") is not None
WIDEST = 256  # elements of a key or a value of paged attention: what a program's registers hold
_OLDEST = (8, 0)  # compute capability: bf16 in tensor cores


def takes(x: Tensor) -> bool:
    """Whether Triton kernels run where `x` is, on what it holds."""
    wide = (torch.float32, torch.float16, torch.bfloat16)
    return has_triton and x.is_cuda and x.dtype in wide and why_not(x.device) is None


def why_not(device: torch.device) -> str | None:
    """Why no Triton kernel runs on a CUDA device, in words; None if they do."""
    if not has_triton:
        return "triton is not installed"
    if torch.cuda.get_device_capability(device) < _OLDEST:
        return "the GPU is older than compute capability 8.0"
    return None
