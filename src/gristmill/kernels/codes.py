"""A matrix as small whole numbers with a scale and a zero for each group: what every integer format holds."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Codes:
    """W[o, i] = scale[o, i // group] * (q[o, i] - zero[o, i // group]).

    q: uint8 [out, in], 0 to 2**bits - 1. scale: [out, groups] in the dtype that it is stored with. zero: uint8
    [out, groups]; 2**(bits - 1) everywhere where the grid is symmetric. group: inputs that share a scale; it divides
    in, and is in itself with one scale a row. order: int64 [in]; the columns here are the layer's inputs in this
    order (GPTQ files whose groups are not contiguous); None: as they are.
    """

    q: Tensor
    scale: Tensor
    zero: Tensor
    bits: int
    group: int
    order: Tensor | None = None

    def matrix(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weights that they stand for, [out, in] in the layer's own order of inputs; computed in fp32."""
        out, width = self.q.shape
        grouped = self.q.view(out, -1, self.group).float() - self.zero[..., None].float()
        weight = (grouped * self.scale[..., None].float()).view(out, width)
        if self.order is not None:
            weight = weight[:, torch.argsort(self.order)]
        return weight.to(dtype)

    def rows(self, chosen: Tensor | slice) -> Codes:
        """Those output rows."""
        return replace(self, q=self.q[chosen], scale=self.scale[chosen], zero=self.zero[chosen])

    @property
    def symmetric(self) -> bool:
        return bool((self.zero == 2 ** (self.bits - 1)).all())
