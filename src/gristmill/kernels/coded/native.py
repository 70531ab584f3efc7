"""Products with coded matrices: the native kernels, and PyTorch's twin that rounds the same numbers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gristmill.kernels.coded.blocks import block_bytes, fields_of
from gristmill.kernels.coded.layout import BLOCK, CODINGS, STRIP, Coding, pack
from gristmill.kernels.native import extension

_SMALLEST = 1e-36  # of what is not rounded to zero: 127 divided by less may be infinite


def coded(kind: Coding, packed: Tensor, out: int, width: int, group: int, wide: bool) -> Any:
    """Where a packed matrix lies, for native code. The caller keeps the tensor alive."""
    assert extension is not None, "gristmill._native is not built"
    return extension.Coded(packed.data_ptr(), kind.number, out, width, group, wide)


def pack_blocks(type: str, blocks: Tensor) -> Tensor:
    """The rows of a GGUF tensor, uint8 [out, row bytes], packed: uint8 [strips, bytes of a strip]."""
    kind, out = CODINGS[type], len(blocks)
    if extension is None:
        return pack(kind, fields_of(type, blocks), kind.record)
    width = blocks.shape[1] // block_bytes(type) * kind.record
    matrix = extension.Coded(0, kind.number, out, width, kind.record, False)
    packed = torch.empty(-(-out // STRIP), extension.strip_bytes(matrix), dtype=torch.uint8)
    blocks = blocks.contiguous()
    extension.pack_blocks(
        matrix, blocks.data_ptr(), blocks.shape[1], packed.data_ptr(), torch.get_num_threads()
    )
    return packed


def coded_linear_native(
    x: Tensor,
    matrix: Any,
    out: int,
    rounded: bool = True,
    isa: str = "best",
    threads: int | None = None,
) -> Tensor:
    """x [..., in] float32 on the CPU -> [..., out] float32. A row depends on that row of x alone.

    rounded: x becomes 8-bit codes with a scale for each 32 inputs; else it is multiplied as it is.
    """
    assert extension is not None, "gristmill._native is not built"
    x = x.contiguous()
    y = torch.empty((*x.shape[:-1], out))
    rows, threads = x.numel() // x.shape[-1], threads or torch.get_num_threads()
    extension.coded_linear(matrix, x.data_ptr(), y.data_ptr(), rows, rounded, threads, isa)
    return y


def round_blocks(x: Tensor) -> Tensor:
    """x [..., in] as the kernels see it when it is rounded: code * scale, fp32, a scale for each 32 inputs.

    scale = absmax / 127; codes round half to even.
    """
    width = x.shape[-1]
    blocks = F.pad(x.float(), (0, -width % BLOCK)).unflatten(-1, (-1, BLOCK))
    most = blocks.abs().amax(-1, keepdim=True)
    inverse = torch.where(most > _SMALLEST, 127 / most, torch.zeros_like(most))
    whole = (blocks * inverse).round().clamp(-127, 127) * (most / 127)
    return whole.flatten(-2)[..., :width]
