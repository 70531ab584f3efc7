"""y = x Wᵀ by the native kernel: a row of y depends on that row of x alone, bit for bit.

PyTorch's matrix products choose how they add by the number of rows, so the same row comes out differently in
another batch. Here every output is one dot product in a fixed order, whatever the rows, the threads, and (of the
vector ones) the instruction set. Weights may be fp32, bf16, fp16, or int8 with a scale for each output.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gristmill.kernels.native import extension

# The numbers of element types in native code (src/native/types.h).
TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.int8: 3}
FUNCTIONS = {"exp": 0, "tanh": 1, "erf": 2}


def array(tensor: Tensor | None) -> Any:
    """Where a dense CPU tensor lies, for native code; None is "there is none". The caller keeps the tensor alive."""
    assert extension is not None, "gristmill._native is not built"
    if tensor is None:
        return extension.Array()
    if not tensor.is_cpu or not tensor.is_contiguous() or tensor.dtype not in TYPES:
        raise ValueError(
            f"native code reads dense fp32, bf16, fp16 and int8 tensors on the CPU, not {tensor.dtype} on "
            f"{tensor.device} with strides {tensor.stride()}"
        )
    return extension.Array(tensor.data_ptr(), TYPES[tensor.dtype])


def linear_native(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor | None = None,
    isa: str = "best",
    threads: int | None = None,
) -> Tensor:
    """x [..., in] float32, weight [out, in], weight_scale [out, 1] float32 (int8 weights only) -> [..., out] float32.

    `isa` ("scalar", "avx2", "avx512") and `threads` (default: PyTorch's) are for tests and benchmarks. Raises
    TypeError and ValueError for tensors of other types and shapes.
    """
    assert extension is not None, "gristmill._native is not built"
    out_features, in_features = weight.shape
    if x.dtype != torch.float32 or weight.dtype not in TYPES:
        raise TypeError(
            f"linear_native takes float32 activations, not {x.dtype}, and weights {weight.dtype}"
        )
    if (weight.dtype == torch.int8) != (weight_scale is not None):
        raise TypeError("int8 weights have scales, and others have none")
    if weight_scale is not None and weight_scale.dtype != torch.float32:
        raise TypeError(f"scales are float32, not {weight_scale.dtype}")
    scales = out_features if weight_scale is None else weight_scale.numel()
    if x.shape[-1] != in_features or scales != out_features:
        raise ValueError(
            f"weight {tuple(weight.shape)} does not go with x {tuple(x.shape)} and {scales} scales"
        )
    x, weight = x.contiguous(), weight.contiguous()
    scale = None if weight_scale is None else weight_scale.contiguous()
    if not (x.is_cpu and weight.is_cpu and (scale is None or scale.is_cpu)):
        raise ValueError("native code works on the CPU only")
    y = torch.empty((*x.shape[:-1], out_features))
    extension.linear(
        array(weight),
        0 if scale is None else scale.data_ptr(),
        x.data_ptr(),
        y.data_ptr(),
        out_features,
        in_features,
        x.numel() // in_features,
        threads or torch.get_num_threads(),
        isa,
    )
    return y


def map_native(function: str, x: Tensor, isa: str = "best") -> Tensor:
    """The kernels' own "exp", "tanh" or "erf" of every element of x, float32; for tests of their accuracy."""
    assert extension is not None, "gristmill._native is not built"
    x = x.float().contiguous()
    y = torch.empty_like(x)
    extension.map(FUNCTIONS[function], x.data_ptr(), y.data_ptr(), x.numel(), isa)
    return y
