"""The forms in which keys and values are kept, as PyTorch computes them: the twin of src/native/remember.h.

float32: as the network computes them. float16: rounded to nearest, ties to even; beyond 65504 infinite, which the
engine reports. int8: code · scale, scale = largest magnitude / 127 in fp32 (symmetric). int4: code · scale + least for
each 32 elements, scale = (most - least) / 15, both rounded to fp16 before codes are chosen (asymmetric).

A token's key and its value are rounded once, alone and head by head, after the rotary turn, when they are written, and
attention reads what was written, in the step that wrote it too. So answers depend on nothing but the form.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from gristmill.errors import RequestError
from gristmill.model import Transformer

CacheDtype = Literal["float32", "float16", "int8", "int4"]
CACHE_DTYPES: tuple[CacheDtype, ...] = get_args(CacheDtype)  # in the order of src/native/cache.h
_GROUP = 32  # elements that share a scale and a least value in int4


def chosen(asked: CacheDtype | Literal["auto"], network: Transformer, native: bool) -> CacheDtype:
    """What "auto" is: float16 for weights narrower than fp32 on the native runner, else float32: PyTorch keeps what it
    computes, and with fp32 weights log-probabilities are those of the network's own forward. Raises RequestError.
    """
    if asked != "auto":
        if asked not in CACHE_DTYPES:
            known = ", ".join(f'"{name}"' for name in CACHE_DTYPES)
            raise RequestError(f'cache_dtype must be "auto", {known}, not {asked!r}')
        return asked
    tensors = (*network.parameters(), *network.buffers())
    narrow = any(t.dtype != torch.float32 for t in tensors)
    return "float16" if native and narrow else "float32"


def encode(x: Tensor, kept: CacheDtype) -> tuple[Tensor, ...]:
    """x [..., C] as it is kept: what is read with, then the codes. Where a number that is not finite meets int8 or
    int4, none of those that share its scale is a number.
    """
    if kept == "float32":
        return (x,)
    if kept == "float16":
        return (x.half(),)
    x = x.float()
    if kept == "int8":
        scale = x.abs().amax(-1, keepdim=True) / 127 + _finite(x)
        return scale, _whole(x / _step(scale), -127, 127).to(torch.int8)
    missing = -x.shape[-1] % _GROUP
    full = torch.cat((x, x[..., -1:].expand(*x.shape[:-1], missing)), -1)
    groups = full.unflatten(-1, (-1, _GROUP))
    low, high = groups.aminmax(dim=-1, keepdim=True)
    least = low.half()
    scale = ((high - low) / 15 + _finite(groups)).half()
    scale = scale + (scale - scale) + (least - least)  # not a number where one is not finite
    codes = _whole((groups - least.float()) / _step(scale.float()), 0, 15).to(torch.uint8)
    codes = codes.flatten(-2)[..., : x.shape[-1] + x.shape[-1] % 2]
    return scale[..., 0], least[..., 0], codes[..., ::2] | codes[..., 1::2] << 4


def decode(parts: tuple[Tensor, ...], width: int) -> Tensor:
    """The [..., width] that `encode` kept, in fp32 unless it kept them as they were."""
    *grid, codes = parts
    if not grid:
        return codes.float() if codes.dtype == torch.float16 else codes
    if codes.dtype == torch.int8:
        return codes * grid[0]
    scale, least = (t.float().repeat_interleave(_GROUP, -1)[..., :width] for t in grid)
    nibbles = torch.stack((codes & 15, codes >> 4), -1).flatten(-2)[..., :width]
    return nibbles * scale + least


def shapes(width: int, kept: CacheDtype, dtype: torch.dtype) -> list[tuple[int, torch.dtype]]:
    """Last size and dtype of each tensor that `encode` makes of [..., width] of `dtype`."""
    return [(t.shape[-1], t.dtype) for t in encode(torch.zeros(width, dtype=dtype), kept)]


def _whole(x: Tensor, lowest: int, highest: int) -> Tensor:
    return x.nan_to_num(lowest, highest, lowest).round().clamp(lowest, highest)


def _step(scale: Tensor) -> Tensor:
    return torch.where(scale > 0, scale, 1)


def _finite(x: Tensor) -> Tensor:
    """0 where all of the last dimension are finite, else not a number."""
    return (x - x).sum(-1, keepdim=True)
