"""Layers on coded weights: what takes the place of a network's linear layers and embedding when it is quantized."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gristmill.errors import RequestError
from gristmill.kernels import triton
from gristmill.kernels.coded import (
    BLOCK,
    CODINGS,
    STRIP,
    block_bytes,
    coded,
    coded_linear_native,
    pack,
    pack_blocks,
    round_blocks,
    unpack,
)
from gristmill.kernels.codes import Codes
from gristmill.kernels.native import extension


class _Product(torch.autograd.Function):
    """x Wᵀ with a gradient for x; W is made anew for it, where keeping it would cost what codes save."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Callable[[], Tensor]) -> Tensor:
        ctx.weights = weights
        return F.linear(x, weights())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] @ ctx.weights(), None


class CodedMatrix(nn.Module):
    """[out_features, in_features] weights of one coding, packed for the kernels (gristmill.kernels.coded).

    coding: a GGUF type, or "int4" and "int8" (`Codes`). group: inputs that share a scale. order: int64 [in]; inputs
    are taken in this order. rounded: whether activations become 8-bit codes (on the CPU, where no gradients flow; a GPU
    gains nothing by it).
    """

    packed: Tensor
    order: Tensor | None

    def __init__(
        self, coding: str, packed: Tensor, out_features: int, in_features: int, group: int
    ) -> None:
        super().__init__()
        self.coding, self.group = coding, group
        self.in_features, self.out_features = in_features, out_features
        self.rounded = True
        self.scale_dtype = torch.float16
        # Not part of a state_dict: files hold other layouts, which `codes` gives.
        self.register_buffer("packed", packed, persistent=False)
        self.register_buffer("order", None, persistent=False)

    @classmethod
    def from_codes(cls, codes: Codes, **kept: Any):
        """Raises RequestError for groups that are neither whole rows nor a multiple of 32 inputs."""
        out, width = codes.q.shape
        if codes.bits not in (4, 8):
            raise RequestError(f"codes of {codes.bits} bits have no kernel; there are 4 and 8")
        if codes.group != width and codes.group % BLOCK:
            raise RequestError(
                f"groups of {codes.group} inputs have no kernel; give a multiple of {BLOCK}, or whole rows"
            )
        half = codes.scale.dtype == torch.float16
        scale = codes.scale if half else codes.scale.float()
        q, zero = codes.q, codes.zero
        if codes.bits == 8:  # signed, as kernels read them
            q, zero = q ^ 128, zero ^ 128
        fields = {"q": q, "scale": scale, "zero": zero.view(torch.int8)}
        coding = f"int{codes.bits}"
        packed = pack(CODINGS[coding], fields, codes.group)
        made = cls(coding, packed, out, width, codes.group, **kept)
        made.scale_dtype, made.order = codes.scale.dtype, codes.order
        return made

    @classmethod
    def from_blocks(cls, type: str, blocks: Tensor, **kept: Any):
        """blocks: uint8 [out, row bytes] of a GGUF type."""
        group = CODINGS[type].record
        width = blocks.shape[1] // block_bytes(type) * group
        return cls(type, pack_blocks(type, blocks), len(blocks), width, group, **kept)

    @property
    def source(self) -> str:
        return "codes" if self.coding in ("int4", "int8") else "blocks"

    def codes(self) -> Codes:
        """What `from_codes` was given."""
        assert self.source == "codes"
        fields, bits = self._fields(self.packed), CODINGS[self.coding].bits
        fields = {name: field[: self.out_features] for name, field in fields.items()}
        q, zero = fields["q"].view(torch.uint8), fields["zero"].view(torch.uint8)
        if bits == 8:
            q, zero = q ^ 128, zero ^ 128
        scale = fields["scale"].to(self.scale_dtype)
        return Codes(q, scale, zero, bits, self.group, self.order)

    def matrix(self, dtype: torch.dtype) -> Tensor:
        """The weights that it stands for, [out, in]; computed in fp32."""
        weight = self._weights(self.packed)[: self.out_features]
        if self.order is not None:
            weight = weight[:, torch.argsort(self.order)]
        return weight.to(dtype)

    def multiply(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out] in the dtype of x."""
        return self._multiply(x, self.packed, self.out_features)

    def _multiply(self, x: Tensor, packed: Tensor, out: int) -> Tensor:
        if self.order is not None:
            x = x[..., self.order]
        if x.requires_grad and torch.is_grad_enabled():
            return _Product.apply(x, lambda: self._weights(packed)[:out].to(x.dtype))
        if triton.takes(x):
            from gristmill.kernels.triton.linear import coded_linear_triton

            return coded_linear_triton(x, CODINGS[self.coding], packed, out, self.group, self._wide)
        if extension is not None and x.is_cpu:
            y = coded_linear_native(x.float(), self._native(packed, out), out, self.rounded)
        else:
            rounded = self.rounded and x.is_cpu
            y = F.linear(round_blocks(x) if rounded else x.float(), self._weights(packed)[:out])
        return y.to(x.dtype)

    def native(self) -> Any:
        """Where it lies, for native code; for as long as this module lives unchanged."""
        return self._native(self.packed, self.out_features)

    def _native(self, packed: Tensor, out: int) -> Any:
        kind = CODINGS[self.coding]
        return coded(kind, packed, out, self.in_features, self.group, self._wide)

    def take(self, rows: Tensor) -> Tensor:
        """Those rows as fp32: int64 [...] -> [..., in]."""
        strips, which = torch.unique(rows.flatten() // STRIP, return_inverse=True)
        weights = self._weights(self.packed[strips]).unflatten(0, (-1, STRIP))
        return weights[which, rows.flatten() % STRIP].unflatten(0, rows.shape)

    def _fields(self, packed: Tensor) -> dict[str, Tensor]:
        kind = CODINGS[self.coding]
        scale = torch.float32 if self._wide else torch.float16
        return unpack(kind, packed, self.in_features, self.group, scale)

    def _weights(self, packed: Tensor) -> Tensor:
        """fp32 of whole strips' rows, in the order of the codes."""
        kind = CODINGS[self.coding]
        fields = self._fields(packed)
        q = fields["q"].float() - kind.offset
        wide = {name: field.float() for name, field in fields.items() if name != "q"}
        records = q.unflatten(1, (-1, self.group))
        if self.source == "codes":
            q = (records - wide["zero"][..., None]) * wide["scale"][..., None]
        elif kind.block:
            scale = wide["d"][..., None, None] * wide["scale"]
            parts = records.unflatten(2, (*scale.shape[2:], -1)) * scale[..., None]
            if "min" in wide:
                parts = parts - (wide["dmin"][..., None, None] * wide["min"])[..., None]
            q = parts
        else:
            q = records * wide["d"][..., None]
            q = q + wide["m"][..., None] if "m" in wide else q
        return q.flatten(1)

    @property
    def _wide(self) -> bool:
        """Whether scales of "int4" and "int8" are kept in fp32."""
        return self.scale_dtype != torch.float16

    def extra_repr(self) -> str:
        size = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{size}, coding={self.coding}, group={self.group}"


Activations = Literal["int8", "float"]


def use_activations(network: nn.Module, kind: Activations) -> None:
    """How the coded layers of a network see what they multiply: as 8-bit codes (fast), or as it is (for reference)."""
    for module in network.modules():
        if isinstance(module, CodedMatrix):
            module.rounded = kind == "int8"


class QuantizedLinear(CodedMatrix):
    """y = x Wᵀ + b on coded weights."""

    def __init__(self, *matrix: Any, bias: nn.Parameter | None = None) -> None:
        super().__init__(*matrix)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        y = self.multiply(x)
        return y if self.bias is None else y + self.bias.to(y.dtype)


class QuantizedStack(CodedMatrix):
    """Matrices of one shape, [parts, out, in], one after the other; each a whole number of strips."""

    def __init__(self, *matrix: Any, parts: int) -> None:
        super().__init__(*matrix)
        if self.out_features % (parts * STRIP):
            raise RequestError(f"matrices of {self.out_features // parts} rows are no whole strips")
        self.parts = parts

    def forward(self, x: Tensor, part: int) -> Tensor:
        """x [..., in] times one of them."""
        strips = len(self.packed) // self.parts
        mine = self.packed[part * strips : (part + 1) * strips]
        return self._multiply(x, mine, self.out_features // self.parts)


class QuantizedEmbedding(CodedMatrix):
    """Rows of a coded table, fp32; `project` is the head that is tied to it."""

    def forward(self, tokens: Tensor) -> Tensor:
        return self.take(tokens)

    def project(self, x: Tensor) -> Tensor:
        return self.multiply(x)
