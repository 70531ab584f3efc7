"""Kernels, each with a twin in plain PyTorch, and the one place that says which is used and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from gristmill.kernels import triton
from gristmill.kernels.coded import CODINGS, STRIP
from gristmill.kernels.codes import Codes
from gristmill.kernels.fp8 import (
    Fp8Linear,
    fp8_linear,
    fp8_linear_scaled,
    fp8_linear_torch,
    fp8_rows,
)
from gristmill.kernels.int8 import (
    Int8Linear,
    int8_linear,
    int8_linear_native,
    int8_linear_torch,
    replace_int8,
)
from gristmill.kernels.linear import TYPES, array, linear_native, map_native
from gristmill.kernels.native import extension, has_native, why_missing
from gristmill.kernels.quantized import (
    Activations,
    CodedMatrix,
    QuantizedEmbedding,
    QuantizedLinear,
    QuantizedStack,
    use_activations,
)
from gristmill.kernels.sampling import ROW, sample_native

__all__ = [
    "CODINGS",
    "ROW",
    "STRIP",
    "TYPES",
    "Activations",
    "CodedMatrix",
    "Codes",
    "Fp8Linear",
    "Int8Linear",
    "Kernel",
    "QuantizedEmbedding",
    "QuantizedLinear",
    "QuantizedStack",
    "array",
    "describe",
    "extension",
    "fp8_linear",
    "fp8_linear_scaled",
    "fp8_linear_torch",
    "fp8_rows",
    "has_native",
    "instruction_sets",
    "int8_linear",
    "int8_linear_native",
    "int8_linear_torch",
    "linear_native",
    "map_native",
    "replace_int8",
    "sample_native",
    "triton",
    "use_activations",
    "why_missing",
]


@dataclass(frozen=True)
class Kernel:
    """One operation, what computes it here, and why. `str()` is a line for people."""

    name: str
    uses: Literal["native", "triton", "torch"]
    why: str

    def __str__(self) -> str:
        what = {"native": "native code", "triton": "Triton", "torch": "PyTorch"}
        return f"{self.name}: {what[self.uses]} ({self.why})"


def instruction_sets() -> tuple[str, ...]:
    """What the extension can run on this machine, narrowest first; empty without the extension."""
    return tuple(extension.instruction_sets()) if extension is not None else ()


def describe() -> list[Kernel]:
    """Every kernel with the implementation that is in use; those of the GPU where there is one."""
    return [*_on_cpu(), *_on_gpu()]


def _on_cpu() -> list[Kernel]:
    costs = {
        "int8_linear": "8-bit models answer several times slower",
        "coded_linear": "quantized models answer many times slower",
        "engine": "answers come slower, and depend on what runs beside them within rounding",
    }
    if extension is not None:
        why = f"{instruction_sets()[-1]} instructions"
        return [Kernel(name, "native", why) for name in costs]
    return [Kernel(name, "torch", f"{why_missing}; {cost}") for name, cost in costs.items()]


def _on_gpu() -> list[Kernel]:
    if not torch.cuda.is_available():
        return []
    device = torch.device("cuda", torch.cuda.current_device())
    card, missing = torch.cuda.get_device_name(device), triton.why_not(device)
    names = ("int8_linear on the GPU", "coded_linear on the GPU", "paged attention on the GPU")
    if missing is None:
        return [Kernel(name, "triton", card) for name in names]
    return [Kernel(name, "torch", f"{missing}; answers come slower") for name in names]
