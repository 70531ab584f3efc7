"""GPTQ's files (AutoGPTQ, GPTQModel): codes packed along the inputs, zeros along the outputs.

X.qweight int32 [in * bits / 32, out], X.qzeros int32 [groups, out * bits / 32], X.scales fp16 [groups, out],
X.g_idx int32 [in], the group of each input. Version 1 stores each zero less one, version 2 as it is. In version 1 a
zero of 0 borrows from its neighbour in some writers and not in others, so asymmetric layers are written as version 2,
which is also the only one that GPTQModel reads from other writers.
"""

from __future__ import annotations

import re
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
    order_of,
)
from gristmill.formats.quantized.words import pack_words, unpack_words
from gristmill.kernels import Codes

BITS = (4, 8)
HEADS = ("lm_head", "embed_out")
_VERSIONS = {"gptq": 1, "gptq_v2": 2}


@dataclass(frozen=True)
class GPTQ:
    """group: inputs that share a scale, -1 for a whole row. version: of the checkpoint format, 1 or 2."""

    bits: int
    group: int
    version: int

    def layout(self, out: int, width: int, held: Collection[str]) -> dict[str, Tensor]:
        groups, in_word = width // check_group(width, self.group), 32 // self.bits
        if out % in_word or width % in_word:
            raise RequestError(
                f"a layer [{out}, {width}] cannot be stored: both must be multiples of {in_word}"
            )
        found = {
            "qweight": empty(torch.int32, width // in_word, out),
            "qzeros": empty(torch.int32, groups, out // in_word),
            "scales": empty(torch.float16, groups, out),
        }
        # The oldest files have no g_idx: their groups lie in order.
        return found | ({"g_idx": empty(torch.int32, width)} if "g_idx" in held else {})

    def unpack(self, tensors: Mapping[str, Tensor]) -> Codes:
        groups, out = tensors["scales"].shape
        width = tensors["qweight"].shape[0] * 32 // self.bits
        group = width // groups
        q = unpack_words(tensors["qweight"].T, self.bits, width)
        zero = unpack_words(tensors["qzeros"], self.bits, out)
        if self.version == 1:
            zero = (zero + 1) & (2**self.bits - 1)
        order = order_of(tensors["g_idx"], group) if "g_idx" in tensors else None
        q = q if order is None else q[:, order]
        scale = tensors["scales"].T.contiguous()
        return Codes(q, scale, zero.T.contiguous(), self.bits, group, order)

    def check(self, codes: Codes | Int8Rows) -> None:
        assert isinstance(codes, Codes)
        if codes.bits not in BITS:
            raise RequestError(f"GPTQ's files hold 4 or 8 bits, and the layer has {codes.bits}")
        self.layout(*codes.q.shape, held=())
        half(codes.scale)
        if self.version == 1 and bool((codes.zero == 0).any()):
            raise RequestError("a zero of 0 does not fit version 1 of the format; write version 2")

    def pack(self, codes: Codes | Int8Rows) -> dict[str, Tensor]:
        self.check(codes)
        assert isinstance(codes, Codes)
        width = codes.q.shape[1]
        q, group_of = codes.q, torch.arange(width, dtype=torch.int32) // codes.group
        if codes.order is not None:
            back = torch.argsort(codes.order)
            q, group_of = q[:, back], group_of[back]
        zero = codes.zero - (1 if self.version == 1 else 0)
        return {
            "qweight": pack_words(q, self.bits).T.contiguous(),
            "qzeros": pack_words(zero.T.contiguous(), self.bits),
            "scales": half(codes.scale).T.contiguous(),
            "g_idx": group_of,
        }


def read(config: Mapping[str, Any], file: Path) -> Quantization:
    """config.json's quantization_config, or quantize_config.json. Raises RequestError for what is not read."""
    bits, group = number(config, file, ["bits"]), number(config, file, ["group_size"])
    format = str(config.get("checkpoint_format") or config.get("format") or "gptq")
    if format not in _VERSIONS:
        raise RequestError(
            f"{file}: GPTQ's checkpoint_format {format!r} is not read; read are {', '.join(_VERSIONS)}"
        )
    if bits not in BITS:
        raise RequestError(f"{file}: GPTQ with {bits} bits is not read; read are 4 and 8")
    # Patterns that begin with "-:" name layers that are not quantized, which the tensors say too.
    for pattern in config.get("dynamic") or {}:
        if not str(pattern).startswith("-:"):
            raise RequestError(
                f"{file}: layers with settings of their own (dynamic, {pattern!r}) are not read"
            )
    scheme = GPTQ(bits, group, _VERSIONS[format])
    return Quantization(("qweight", "qzeros", "scales"), lambda name: scheme)


def plan(layers: Mapping[str, Codes | Int8Rows], kept: Collection[str]) -> Plan:
    """How to write `layers`, by their names on disk; `kept` are the linear layers that are not quantized.

    Raises RequestError for layers that the format cannot hold together.
    """
    bits, group = one_grid(layers, "GPTQ")
    codes = [c for c in layers.values() if isinstance(c, Codes)]
    symmetric = all(c.symmetric for c in codes)
    scheme = GPTQ(bits, group, 1 if symmetric else 2)
    config: dict[str, Any] = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": group,
        "sym": symmetric,
        "desc_act": any(c.order is not None for c in codes),
        "lm_head": False,
        "checkpoint_format": "gptq" if symmetric else "gptq_v2",
    }
    # Of the head "lm_head" speaks.
    skipped = {f"-:^{re.escape(name)}$": {} for name in sorted(kept) if name not in HEADS}
    if skipped:
        config["dynamic"] = skipped
    return Plan(dict.fromkeys(layers, scheme), config)
