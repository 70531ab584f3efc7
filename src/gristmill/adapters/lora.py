"""One adapter of one linear layer: y + scale · B A x, or DoRA's W' with its row lengths learned apart."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gristmill.kernels import Int8Linear, QuantizedLinear
from gristmill.model import Linear

AnyLinear = Linear | Int8Linear | QuantizedLinear
"""The layers that can be adapted."""


class Lora(nn.Module):
    """A [r, in], B [out, r], and for DoRA `magnitude` [out]; fp32, cast to the dtype of the activations.

    The layer itself is not a part of it, and is passed in.
    """

    magnitude: nn.Parameter | None

    def __init__(
        self,
        A: Tensor,
        B: Tensor,
        scale: float,
        dropout: float = 0.0,
        magnitude: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.A, self.B = nn.Parameter(A), nn.Parameter(B)
        self.magnitude = None if magnitude is None else nn.Parameter(magnitude)
        self.scale, self.dropout = scale, dropout
        self._kept: tuple[Any, Tensor] | None = None  # row lengths, and of which tensors they are

    def forward(self, linear: AnyLinear, x: Tensor, y: Tensor) -> Tensor:
        """What `linear` gives for x [..., in] with this adapter on, [..., out]; y is what it gives alone."""
        dropping = self.training and self.dropout > 0
        taken = F.dropout(x, self.dropout) if dropping else x
        low = F.linear(taken, self.A.to(x.dtype)) * self.scale
        update = F.linear(low, self.B.to(x.dtype))
        if self.magnitude is None:
            return y + update
        gain = self.magnitude / self._row_lengths(linear)
        plain = linear.forward(taken) if dropping else y
        bias = getattr(linear, "bias", None)
        if bias is not None:
            plain = plain - bias.to(x.dtype)
        return y + (gain - 1).to(x.dtype) * plain + gain.to(x.dtype) * update

    @torch.no_grad()
    def merged(self, linear: AnyLinear) -> Tensor:
        """The weight that does it all, fp32 [out, in]."""
        weight = self._changed(linear)
        if self.magnitude is not None:
            weight *= (self.magnitude / _lengths(weight))[:, None]
        return weight

    def _changed(self, linear: AnyLinear) -> Tensor:
        """W + scale · B A, fp32 [out, in]."""
        return linear.matrix(torch.float32) + self.scale * (self.B.float() @ self.A.float())

    @torch.no_grad()
    def _row_lengths(self, linear: AnyLinear) -> Tensor:
        """‖W + scale · B A‖ of each row, [out]; a constant to the gradient (section 4.3 of the paper).

        It costs as much as a pass of r tokens and writes a whole W, so that generating a token would be
        several times slower. A frozen adapter keeps it until one of its tensors is written to; one that trains
        does not, because torch's fused AdamW writes without counting (2.13).
        """
        of_layer = [*linear.parameters(recurse=False), *linear.buffers(recurse=False)]
        tensors = [self.A, self.B, *of_layer]
        if self.training or any(t.requires_grad or t.is_inference() for t in (self.A, self.B)):
            self._kept = None
            return _lengths(self._changed(linear))
        state = [(t.data_ptr(), t.dtype, 0 if t.is_inference() else t._version) for t in tensors]
        if self._kept is None or self._kept[0] != state:
            self._kept = (state, _lengths(self._changed(linear)))
        return self._kept[1]


def _lengths(weight: Tensor) -> Tensor:
    """Of each row, [out]. A row of zeros stays one, at magnitude 0, instead of becoming 0 / 0."""
    return weight.norm(dim=1).clamp_min(torch.finfo(weight.dtype).tiny)
