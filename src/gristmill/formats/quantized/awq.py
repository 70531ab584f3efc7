"""AWQ's files in the "gemm" layout (AutoAWQ, llm-awq's successor): 4 bits, all packed along the outputs.

X.qweight int32 [in, out / 8], X.qzeros int32 [groups, out / 8], X.scales fp16 [groups, out]. The eight outputs of a
word lie in the order 0, 2, 4, 6, 1, 3, 5, 7. The scales found by AWQ's search are folded into the weights and norms
of the file: there is nothing else to apply.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gristmill.errors import RequestError
from gristmill.formats.quantized.scheme import (
    Int8Rows,
    Plan,
    Quantization,
    check_group,
    empty,
    half,
    number,
    one_grid,
)
from gristmill.formats.quantized.words import pack_words, unpack_words
from gristmill.kernels import Codes

_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]  # of the outputs in a word, lowest bits first
_BACK = [_ORDER.index(place) for place in range(8)]


def _mixed(values: Tensor, order: list[int]) -> Tensor:
    """The last dimension in another order within each eight."""
    return values.unflatten(-1, (-1, 8))[..., order].flatten(-2)


@dataclass(frozen=True)
class AWQ:
    """group: inputs that share a scale and a zero, -1 for a whole row."""

    group: int

    def layout(self, out: int, width: int, held: Collection[str]) -> dict[str, Tensor]:
        groups = width // check_group(width, self.group)
        if out % 8:
            raise RequestError(f"a layer with {out} outputs cannot be stored: no multiple of 8")
        return {
            "qweight": empty(torch.int32, width, out // 8),
            "qzeros": empty(torch.int32, groups, out // 8),
            "scales": empty(torch.float16, groups, out),
        }

    def unpack(self, tensors: Mapping[str, Tensor]) -> Codes:
        width, (groups, out) = tensors["qweight"].shape[0], tensors["scales"].shape
        q, zero = (
            _mixed(unpack_words(tensors[name], 4, out), _BACK).T.contiguous()
            for name in ("qweight", "qzeros")
        )
        return Codes(q, tensors["scales"].T.contiguous(), zero, 4, width // groups)

    def check(self, codes: Codes | Int8Rows) -> None:
        assert isinstance(codes, Codes)
        if codes.bits != 4:
            raise RequestError(f"AWQ's files hold 4 bits, and the layer has {codes.bits}")
        if codes.order is not None:
            raise RequestError(
                'its groups of inputs lie apart (act-order), which only "gptq" can say'
            )
        self.layout(*codes.q.shape, held=())
        half(codes.scale)

    def pack(self, codes: Codes | Int8Rows) -> dict[str, Tensor]:
        self.check(codes)
        assert isinstance(codes, Codes)
        return {
            "qweight": pack_words(_mixed(codes.q.T, _ORDER), 4),
            "qzeros": pack_words(_mixed(codes.zero.T, _ORDER), 4),
            "scales": half(codes.scale).T.contiguous(),
        }


def read(config: Mapping[str, Any], file: Path) -> Quantization:
    """config.json's quantization_config, or quant_config.json. Raises RequestError for what is not read."""
    bits = number(config, file, ["bits", "w_bit"])
    group = number(config, file, ["group_size", "q_group_size"])
    version = str(config.get("version") or config.get("format") or "gemm").lower()
    if bits != 4:
        raise RequestError(f"{file}: AWQ with {bits} bits is not read; read are 4")
    if version != "gemm":
        raise RequestError(f'{file}: AWQ\'s version {version!r} is not read; read is "gemm"')
    scheme = AWQ(group)
    return Quantization(("qweight", "qzeros", "scales"), lambda name: scheme)


def plan(layers: Mapping[str, Codes | Int8Rows], kept: Collection[str]) -> Plan:
    """How to write `layers`, by their names on disk; `kept` are the linear layers that are not quantized.

    Raises RequestError for layers that the format cannot hold together.
    """
    _, group = one_grid(layers, "AWQ")
    config = {
        "quant_method": "awq",
        "bits": 4,
        "group_size": group,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": sorted(kept),
    }
    return Plan(dict.fromkeys(layers, AWQ(group)), config)
