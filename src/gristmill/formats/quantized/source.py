"""A directory with quantized layers: each read whole as what it holds, all else one tensor at a time as ever."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence

import torch
from torch import Tensor

from gristmill.errors import RequestError
from gristmill.formats.filling import checked
from gristmill.formats.quantized.scheme import Int8Rows, Quantization
from gristmill.formats.source import Source
from gristmill.kernels import Codes


class QuantizedSource:
    """`source`, without the tensors that belong to quantized layers; `layers` names those, as they are on disk.

    Layers given to `widen` are there again, as plain NAME.weight of `dtype` (None: that of their scales). unused:
    names of tensors that nobody needs. wanted: those that the network has a place for.
    """

    def __init__(
        self,
        source: Source,
        quantization: Quantization,
        dtype: torch.dtype | None,
        unused: str,
        wanted: Collection[str],
    ) -> None:
        self._source, self._quantization, self._dtype = source, quantization, dtype
        self._widened: dict[str, tuple[Sequence[int], bool]] = {}
        self.layers: dict[str, set[str]] = {}  # name -> the tensors that it has
        tensors: dict[str, set[str]] = {}
        for name in source.names():
            if not re.fullmatch(unused, name):
                layer, _, part = name.rpartition(".")
                tensors.setdefault(layer, set()).add(part)
        self._hidden: set[str] = set()
        for layer, held in tensors.items():
            if held.isdisjoint(quantization.marks):
                continue
            self.layers[layer] = held - {"bias"}
            self._hidden |= {f"{layer}.{part}" for part in self.layers[layer]}
            bias = f"{layer}.bias"
            # AutoGPTQ gave every layer one, of zeros where the architecture has none.
            if "bias" in held and bias not in wanted and not source.load(bias).any():
                self._hidden.add(bias)

    def widen(self, layer: str, shape: Sequence[int], transposed: bool) -> None:
        """Give NAME.weight of this shape from now on.

        transposed: the shape is [in, out] (GPT-2's Conv1D), which quantized layers never are.
        """
        self._widened[f"{layer}.weight"] = (shape, transposed)

    def read(self, layer: str, out: int, width: int) -> Codes | Int8Rows:
        """What a quantized layer holds. Raises RequestError, naming file and tensor."""
        place, held = self.place(layer), self.layers[layer]
        scheme = self._quantization.scheme(layer)
        try:
            layout = scheme.layout(out, width, held)
        except RequestError as error:
            raise RequestError(f"{place}: {layer}: {error}") from error
        for part in sorted(held ^ layout.keys()):
            problem = "is missing from the weights" if part in layout else "has no place there"
            raise RequestError(f"{place}: the layer {layer} is quantized, and its {part} {problem}")
        parts = {part: checked(self._source, f"{layer}.{part}", layout[part]) for part in layout}
        try:
            return scheme.unpack(parts)
        except RequestError as error:
            raise RequestError(f"{place}: {layer}: {error}") from error

    def names(self) -> Iterable[str]:
        rest = (name for name in self._source.names() if name not in self._hidden)
        return [*rest, *self._widened]

    def place(self, name: str) -> str:
        """Of a tensor, or of a quantized layer."""
        layer = name.removesuffix(".weight")
        if layer in self.layers:
            name = f"{layer}.{min(self.layers[layer] & set(self._quantization.marks))}"
        return self._source.place(name)

    def load(self, name: str) -> Tensor:
        if name not in self._widened:
            return self._source.load(name)
        shape, transposed = self._widened[name]
        held = self.read(name.removesuffix(".weight"), *(shape[::-1] if transposed else shape))
        weight = held.matrix(self._dtype or held.scale.dtype)
        return weight.T if transposed else weight

    def release(self, name: str) -> None:
        """A tensor, or all of a quantized layer."""
        layer = name.removesuffix(".weight")
        for part in self.layers.get(layer, ()):
            self._source.release(f"{layer}.{part}")
        if layer not in self.layers:
            self._source.release(name)
