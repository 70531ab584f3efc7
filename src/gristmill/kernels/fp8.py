"""FP8 (e4m3) weights with a scale for each output, times activations rounded to e4m3 with a scale for each row.

Tensor cores of Hopper and Ada multiply e4m3 themselves, at twice the speed of bf16 (`torch._scaled_mm`). A row's scale
is found when it is multiplied and depends on that row alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LARGEST = 448.0  # of e4m3
_OLDEST = (8, 9)  # compute capability with e4m3 in tensor cores
_WHOLE = 16  # sizes of the weights must be multiples of it


def fp8_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [..., in] as codes float8_e4m3fn [..., in] and scales fp32 [..., 1], x = code * scale: absmax / 448 of a row.

    Rows of zeros have a scale of 1. Where a number of a row is not finite, none of its products is a number.
    """
    most = x.float().abs().amax(-1, keepdim=True)
    scale = torch.where(most == 0, 1.0, most / _LARGEST) + (most - most)
    return (x.float() / scale).to(torch.float8_e4m3fn), scale


def fp8_linear_torch(x: Tensor, weight: Tensor, weight_scale: Tensor) -> Tensor:
    """The reference: x [..., in], weight float8_e4m3fn [out, in], weight_scale fp32 [out, 1] -> [..., out]."""
    codes, scale = fp8_rows(x)
    return (F.linear(codes.float(), weight.float()) * scale * weight_scale.view(-1)).to(x.dtype)


def fp8_linear_scaled(x: Tensor, weight: Tensor, weight_scale: Tensor) -> Tensor:
    """The same by `torch._scaled_mm`, for bf16 x and sizes that are multiples of 16."""
    codes, scale = fp8_rows(x.reshape(-1, x.shape[-1]))
    row_scale = weight_scale.view(1, -1)
    y = torch._scaled_mm(
        codes, weight.t(), scale_a=scale, scale_b=row_scale, out_dtype=torch.bfloat16
    )
    return y.view(*x.shape[:-1], -1)


def fp8_linear(x: Tensor, weight: Tensor, weight_scale: Tensor) -> Tensor:
    """By the GPU's own FP8 where it has it and x is bf16, by the reference elsewhere; no gradient for the weights."""
    sizes = all(size % _WHOLE == 0 for size in weight.shape)
    if not (x.is_cuda and x.dtype == torch.bfloat16 and sizes and x.numel()):
        return fp8_linear_torch(x, weight, weight_scale)
    able = torch.version.hip is None and torch.cuda.get_device_capability(x.device) >= _OLDEST
    return (fp8_linear_scaled if able else fp8_linear_torch)(x, weight, weight_scale)


class Fp8Linear(nn.Module):
    """A linear layer on FP8 weights, made of another one's; its tensors have the names of compressed-tensors."""

    weight: Tensor
    weight_scale: Tensor

    def __init__(self, weight: Tensor, bias: nn.Parameter | None = None) -> None:
        """weight [out, in]: rounded to the nearest code, with the scale of its largest magnitude in a row."""
        super().__init__()
        codes, scale = fp8_rows(weight.detach())
        self.register_buffer("weight", codes)
        self.register_buffer("weight_scale", scale)
        self.bias = bias

    def matrix(self, dtype: torch.dtype) -> Tensor:
        """The weights that it stands for, [out, in]."""
        return (self.weight.float() * self.weight_scale).to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        y = fp8_linear(x, self.weight, self.weight_scale)
        return y if self.bias is None else y + self.bias.to(y.dtype)
