"""Small whole numbers in 32-bit words, the first in the lowest bits: how all these formats store codes and zeros."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def pack_words(values: Tensor, bits: int) -> Tensor:
    """uint8 [..., n], each below 2**bits -> int32 [..., ceil(n * bits / 32)]; bits 2, 4 or 8.

    The last word is filled up with zeros. Words lie in memory lowest byte first, as on every machine torch runs on.
    """
    in_word, in_byte = 32 // bits, 8 // bits
    values = F.pad(values, (0, -values.shape[-1] % in_word))
    # A clone, for `contiguous` leaves a dimension of one any stride, which `view` refuses.
    packed = values[..., ::in_byte].clone(memory_format=torch.contiguous_format)
    for place in range(1, in_byte):
        packed |= values[..., place::in_byte] << (bits * place)
    return packed.view(torch.int32)


def unpack_words(words: Tensor, bits: int, count: int) -> Tensor:
    """int32 [..., words] -> its first `count` values, uint8 [..., count]; bits 2, 4 or 8."""
    packed = words.clone(memory_format=torch.contiguous_format).view(torch.uint8)
    values = torch.stack([(packed >> shift) & (2**bits - 1) for shift in range(0, 8, bits)], -1)
    return values.flatten(-2)[..., :count].contiguous()
