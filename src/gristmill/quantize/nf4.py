"""NF4 (Dettmers et al., arXiv 2305.14314, QLoRA): 4-bit codes at the quantiles of a normal distribution.

Blocks of 64 along the flattened weight, each divided by its largest magnitude. With double quantization the blocks'
scales are 8-bit floats themselves (a "dynamic" type, Dettmers 2015), 256 to a scale, after their mean is taken off:
4.127 bits a weight instead of 4.5. The bytes are those of bitsandbytes' `quantize_4bit`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gristmill.errors import WorkError

BLOCK, SCALE_BLOCK = 64, 256
# Of bitsandbytes: the float32 values of the paper's appendix E.
NF4_TABLE = torch.tensor(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ]
)


@dataclass(frozen=True)
class Scales8:
    """Scales of blocks as codes uint8 [blocks] of `dynamic_table`, `absmax` fp32 for every 256 and `mean` added."""

    codes: Tensor
    absmax: Tensor
    mean: Tensor

    def values(self) -> Tensor:
        """fp32 [blocks]."""
        values = dynamic_table().to(self.codes.device)[self.codes.int()]
        return values * self.absmax.repeat_interleave(SCALE_BLOCK)[: len(values)] + self.mean


@dataclass(frozen=True)
class NF4:
    """packed uint8 [elements / 2, rounded up]: two codes a byte, the first in the high nibble. absmax: of each
    block of 64, fp32 [blocks] or 8-bit."""

    packed: Tensor
    absmax: Tensor | Scales8
    shape: torch.Size

    def matrix(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weights that they stand for, in `shape`; computed in fp32."""
        codes = torch.stack((self.packed >> 4, self.packed & 15), dim=-1).view(-1).int()
        values = NF4_TABLE.to(codes.device)[codes[: self.shape.numel()]]
        absmax = self.absmax.values() if isinstance(self.absmax, Scales8) else self.absmax
        values *= absmax.repeat_interleave(BLOCK)[: len(values)]
        return values.view(self.shape).to(dtype)


@torch.no_grad()
def quantize_nf4(weight: Tensor, *, double: bool = True, name: str = "the weight") -> NF4:
    """A weight of any shape -> NF4. Raises WorkError, saying `name`, for NaN and infinity."""
    flat = weight.float().reshape(-1)
    if not bool(flat.isfinite().all()):
        raise WorkError(f"{name} holds NaN or infinity and cannot be quantized")
    codes, absmax = _nearest(flat, NF4_TABLE, BLOCK)
    codes = torch.nn.functional.pad(codes, (0, len(codes) % 2), value=7)
    packed = codes[::2] << 4 | codes[1::2]
    if not double:
        return NF4(packed, absmax, weight.shape)
    mean = absmax.mean()
    return NF4(
        packed, Scales8(*_nearest(absmax - mean, dynamic_table(), SCALE_BLOCK), mean), weight.shape
    )


def _nearest(flat: Tensor, table: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Codes uint8 [n] of the entries of the ascending `table` nearest to flat / absmax, and absmax fp32 [blocks].

    Divided by as bitsandbytes does, with the inverse; a value halfway between two entries takes the lower.
    """
    padded = torch.nn.functional.pad(flat, (0, -len(flat) % size)).view(-1, size)
    absmax = padded.abs().amax(1)
    scaled = (padded * (1.0 / absmax.clamp(min=1e-38))[:, None]).clamp_(-1, 1).view(-1)
    middles = ((table[1:] + table[:-1]) / 2).to(flat.device)
    return torch.bucketize(scaled[: len(flat)], middles, out_int32=True).to(torch.uint8), absmax


def dynamic_table() -> Tensor:
    """The 256 values of bitsandbytes' signed 8-bit type, ascending: seven decades, each with twice the values of
    the one below, and 0 and 1."""
    values = [0.0, 1.0]
    for exponent in range(7):
        bounds = torch.linspace(0.1, 1, 2**exponent + 1)
        decade = 10 ** (exponent - 6) * (bounds[:-1] + bounds[1:]) / 2
        values += [*decade.tolist(), *(-decade).tolist()]
    return torch.tensor(sorted(values))
