"""8-bit weights, full-precision activations: y = scale ⊙ (W x), W int8 with one scale an output channel.

Decoding is bound by the bytes of weights read a token, so a quarter of the bytes is nearly four times the
speed; the native kernel reads each weight once and widens it in registers. Its PyTorch twin widens the
whole matrix first, which costs more than it saves at one row and little at many.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gristmill.kernels import triton
from gristmill.kernels.linear import linear_native
from gristmill.kernels.native import extension

# Above this many rows of x PyTorch's matrix product, fed with widened weights, is faster than the native kernel
# (benchmarks/int8.py); with avx512 it never is, up to 512 rows.
_NATIVE_ROWS = {"scalar": 1, "avx2": 128, "avx512": 2**40}
NATIVE_ROWS = 0 if extension is None else _NATIVE_ROWS[extension.instruction_sets()[-1]]


def int8_linear_torch(x: Tensor, weight: Tensor, weight_scale: Tensor) -> Tensor:
    """The reference: x [..., in] in any floating dtype, weight int8 [out, in], weight_scale [out, 1] -> [..., out].

    Every int8 value is exact in float32, bfloat16 and float16, so only the product itself rounds.
    """
    return (F.linear(x, weight.to(x.dtype)) * weight_scale.view(-1)).to(x.dtype)


def int8_linear_native(
    x: Tensor, weight: Tensor, weight_scale: Tensor, isa: str = "best", threads: int | None = None
) -> Tensor:
    """The same by the native kernel: x and weight_scale float32, all on the CPU.

    A row's result depends on that row alone, never on the number of rows or threads. `isa` ("scalar",
    "avx2", "avx512") and `threads` (default: PyTorch's) are for tests and benchmarks.
    """
    if (
        weight.dtype != torch.int8
        or weight_scale.dtype != torch.float32
        or x.dtype != torch.float32
    ):
        raise TypeError(
            f"int8_linear takes int8 weights, float32 scales and activations, not {weight.dtype}, "
            f"{weight_scale.dtype} and {x.dtype}"
        )
    return linear_native(x, weight, weight_scale, isa, threads)


def int8_linear(x: Tensor, weight: Tensor, weight_scale: Tensor) -> Tensor:
    """The fastest for this input. Gradients (with respect to x) flow through the twin only."""
    gradient = x.requires_grad and torch.is_grad_enabled()
    if triton.takes(x) and not gradient:
        from gristmill.kernels.triton.int8 import int8_linear_triton

        return int8_linear_triton(x, weight, weight_scale)
    native = (
        extension is not None
        and x.dtype == torch.float32
        and x.is_cpu
        and x.numel() <= NATIVE_ROWS * x.shape[-1]
        and not gradient
    )
    return (int8_linear_native if native else int8_linear_torch)(x, weight, weight_scale)


class Int8Linear(nn.Module):
    """A linear layer on 8-bit weights; its tensors have the names of compressed-tensors.

    The scales stay float32 whatever dtype the network is cast to: rounding them would change every weight.
    """

    weight: Tensor
    weight_scale: Tensor
    activation_bits: int | None = None  # 8: the weights were made for activations of 8 bits

    def __init__(
        self, in_features: int, out_features: int, bias: nn.Parameter | None = None
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.register_buffer("weight", torch.zeros(out_features, in_features, dtype=torch.int8))
        self.register_buffer("weight_scale", torch.ones(out_features, 1))
        self.bias = bias

    def _apply(self, fn, recurse: bool = True):
        scale = self.weight_scale
        super()._apply(fn, recurse)
        self.weight_scale = scale.to(self.weight.device)
        return self

    def matrix(self, dtype: torch.dtype) -> Tensor:
        """The weights that it stands for, [out, in]."""
        return (self.weight * self.weight_scale).to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        y = int8_linear(x, self.weight, self.weight_scale)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


def replace_int8(network: nn.Module, keys: Iterable[str]) -> list[str]:
    """Put an Int8Linear wherever `keys` holds `NAME.weight_scale`, and return the names.

    The network is changed in place and its new layers are empty, but for the biases that they keep:
    `network.load_state_dict` fills them. Nothing else in the network needs to know.
    """
    names = [key.removesuffix(".weight_scale") for key in keys if key.endswith(".weight_scale")]
    for name in names:
        old: Any = network.get_submodule(name)
        parent, _, child = name.rpartition(".")
        layer = Int8Linear(old.in_features, old.out_features, getattr(old, "bias", None))
        setattr(network.get_submodule(parent), child, layer)
    return names
