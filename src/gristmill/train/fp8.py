"""Linear layers whose three products are in 8-bit floats (Micikevicius et al. 2022), put on a network from outside.

Weights and activations are e4m3, gradients e5m2, each with one scale for the whole tensor, from its largest number now:
tensorwise scaling was the fastest of the kinds in a full run (nanochat's log: 1.17x of bf16 at d26, rowwise 0.90x).
Sums are in fp32, results in the dtype of the activations; weights stay fp32 where they are kept.

Shapes: N tokens, D in_features, O out_features.
"""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from gristmill.errors import RequestError
from gristmill.model import Transformer
from gristmill.model.layers import Linear

_MULTIPLE = 16  # of both sizes of a matrix, and of the tokens: what the hardware's products take
_FORWARD, _BACKWARD = torch.float8_e4m3fn, torch.float8_e5m2


def check_device(device: torch.device) -> None:
    """Raises RequestError where there is no hardware for it. (A CPU emulates it, slowly: for tests.)"""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 9):
        name = torch.cuda.get_device_name(device)
        raise RequestError(f"{name} has no products of 8-bit floats: set pretrain.fp8 = false")


def apply(network: Transformer) -> int:
    """Every matrix inside the blocks whose sizes are multiples of 16; returns how many. The head and the embeddings,
    where small errors are seen most, stay as they are."""
    found = 0
    for block in network.model.layers:
        for module in block.modules() if block is not None else ():
            if isinstance(module, Linear) and not (
                module.in_features % _MULTIPLE or module.out_features % _MULTIPLE
            ):
                module.forward = partial(_forward, module)
                found += 1
    return found


def _forward(linear: Linear, x: Tensor) -> Tensor:
    flat_ND = x.reshape(-1, x.shape[-1])
    lacking = -len(flat_ND) % _MULTIPLE
    if lacking:
        flat_ND = torch.nn.functional.pad(flat_ND, (0, 0, 0, lacking))
    y_NO = cast(Tensor, _Product.apply(flat_ND, linear.weight))
    y = y_NO[: len(y_NO) - lacking].view(*x.shape[:-1], -1)
    return y if linear.bias is None else y + linear.bias.to(y.dtype)


class _Product(torch.autograd.Function):
    """x Wᵀ, and its gradients."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight_OD: Tensor) -> Tensor:
        x, weight = _scaled(x_ND, _FORWARD), _scaled(weight_OD, _FORWARD)
        ctx.save_for_backward(*x, *weight)
        ctx.dtypes = x_ND.dtype, weight_OD.dtype
        return _multiplied(x, (weight[0].t(), weight[1]), x_ND.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x8_ND, x_scale, weight8_OD, weight_scale = ctx.saved_tensors
        grad = _scaled(grads[0], _BACKWARD)
        # The second operand lies by columns, whatever is multiplied.
        by_columns = (weight8_OD.t().contiguous().t(), weight_scale)
        d_x = _multiplied(grad, by_columns, ctx.dtypes[0])
        across = (grad[0].t().contiguous(), grad[1])
        d_weight = _multiplied(across, (x8_ND.t().contiguous().t(), x_scale), ctx.dtypes[1])
        return d_x, d_weight


def _scaled(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(x / scale in 8 bits, scale in fp32), where scale brings the largest number to the largest of the type."""
    largest = torch.finfo(dtype).max
    scale = (x.abs().amax().float() / largest).clamp(min=1e-12)
    return (x.float() / scale).clamp(-largest, largest).to(dtype), scale


def _multiplied(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], dtype: torch.dtype) -> Tensor:
    return torch._scaled_mm(a[0], b[0], scale_a=a[1], scale_b=b[1], out_dtype=dtype)
