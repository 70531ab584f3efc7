"""Kernels: each in native code with a plain-PyTorch twin, and the one place that says which is used and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gristmill.kernels.coded import CODINGS, STRIP
from gristmill.kernels.codes import Codes
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
    "Int8Linear",
    "Kernel",
    "QuantizedEmbedding",
    "QuantizedLinear",
    "QuantizedStack",
    "array",
    "describe",
    "extension",
    "has_native",
    "instruction_sets",
    "int8_linear",
    "int8_linear_native",
    "int8_linear_torch",
    "linear_native",
    "map_native",
    "replace_int8",
    "sample_native",
    "use_activations",
    "why_missing",
]


@dataclass(frozen=True)
class Kernel:
    """One operation, what computes it here, and why. `str()` is a line for people."""

    name: str
    uses: Literal["native", "torch"]
    why: str

    def __str__(self) -> str:
        what = "native code" if self.uses == "native" else "PyTorch"
        return f"{self.name}: {what} ({self.why})"


def instruction_sets() -> tuple[str, ...]:
    """What the extension can run on this machine, narrowest first; empty without the extension."""
    return tuple(extension.instruction_sets()) if extension is not None else ()


def describe() -> list[Kernel]:
    """Every kernel with the implementation that is in use."""
    costs = {
        "int8_linear": "8-bit models answer several times slower",
        "coded_linear": "quantized models answer many times slower",
        "engine": "answers come slower, and depend on what runs beside them within rounding",
    }
    if extension is not None:
        why = f"{instruction_sets()[-1]} instructions"
        return [Kernel(name, "native", why) for name in costs]
    return [Kernel(name, "torch", f"{why_missing}; {cost}") for name, cost in costs.items()]
