"""What a quantized file's name means: which type each tensor gets, chosen as llama.cpp's quantizer chooses.

The rules are those of `llama_tensor_get_type` in `llama-quant.cpp` (v0.5.0, 2026), without an importance matrix.
Older versions gave a fused attn_qkv rules of its own (Q5_K in every layer of Q4_K_M, Q6_K in Q5_K_M); it goes with
attn_v now.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from math import prod
from typing import Any

from gristmill.errors import RequestError, nearest
from gristmill.formats.gguf.types import GGMLType

# Name -> the type of a tensor without a rule of its own.
_DEFAULTS: dict[str, GGMLType] = {
    "F32": GGMLType.F32,
    "F16": GGMLType.F16,
    "BF16": GGMLType.BF16,
    "Q8_0": GGMLType.Q8_0,
    "Q4_0": GGMLType.Q4_0,
    "Q4_K_S": GGMLType.Q4_K,
    "Q4_K_M": GGMLType.Q4_K,
    "Q5_K_S": GGMLType.Q5_K,
    "Q5_K_M": GGMLType.Q5_K,
    "Q6_K": GGMLType.Q6_K,
}
_ALIASES = {"Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}  # as llama-quantize has them

FILE_TYPES: dict[str, int] = {
    **{"F32": 0, "F16": 1, "BF16": 32, "Q8_0": 7, "Q4_0": 2},
    **{"Q4_K_S": 14, "Q4_K_M": 15, "Q5_K_S": 16, "Q5_K_M": 17, "Q6_K": 18},
}
"""Mixture -> `general.file_type`, which tells a reader its name; the tensors' types are in their entries."""

QUANTIZATION_VERSION = 2
"""`general.quantization_version`: of the block layouts that every mixture here uses."""

# Weights of two dimensions that are not quantized: small, and a little noise in them does much harm.
_KEPT = re.compile(
    r"_norm\.weight|ffn_gate_inp\.weight|^position_embd\.weight$|^token_types\.weight$"
)
# The projections that make an attention's values: alone, fused with q and k, or from a latent.
_VALUES = re.compile(r"attn_(v|qkv|kv_b)\.weight")

# What takes the place of a K-type in rows that are not whole blocks of 256.
_FALLBACKS = {
    GGMLType.Q4_K: GGMLType.Q5_0,
    GGMLType.Q5_K: GGMLType.Q5_1,
    GGMLType.Q6_K: GGMLType.Q8_0,
}


def mixture_name(name: str) -> str:
    """A mixture as a person says it ("q4_k_m", "Q4_K") under its own name. Raises RequestError."""
    upper = name.upper()
    found = _ALIASES.get(upper, upper)
    if found not in _DEFAULTS:
        raise RequestError(
            f"{name!r} is not a type of GGUF file that is written; there are "
            f"{', '.join(_DEFAULTS)}.{nearest(upper, [*_DEFAULTS, *_ALIASES])}"
        )
    return found


def tensor_types(
    mixture: str, tensors: Iterable[tuple[str, tuple[int, ...]]], metadata: Mapping[str, Any]
) -> dict[str, GGMLType]:
    """The type of each tensor, given as (GGUF name, row-major shape), in that order.

    `metadata` is the file's; `general.architecture` and that architecture's `block_count`, `expert_count`,
    `attention.head_count` and `attention.head_count_kv` are looked at. Vectors, norms, routers and position
    embeddings are F32; rows that are whole blocks of neither 256 nor 32 are F16. Raises RequestError for a
    mixture that there is not.
    """
    mixture = mixture_name(mixture)
    default = _DEFAULTS[mixture]
    shapes = dict(tensors)
    types = {
        name: default if _is_quantized(name, shape) else GGMLType.F32
        for name, shape in shapes.items()
    }
    if default.block_size > 1:
        chosen = [name for name, type in types.items() if type == default]
        rule = _rule(mixture, default, shapes, chosen, metadata)
        types |= {name: _fitting(rule(name), shapes[name][-1]) for name in chosen}
    return types


def _is_quantized(name: str, shape: tuple[int, ...]) -> bool:
    # A matrix of one row counts as a vector, as it does in ggml.
    return name.endswith("weight") and prod(shape[:-1]) > 1 and not _KEPT.search(name)


def _fitting(type: GGMLType, row: int) -> GGMLType:
    for candidate in (type, _FALLBACKS.get(type, type)):
        if row % candidate.block_size == 0:
            return candidate
    return GGMLType.F16


def _layer(name: str) -> int:
    found = re.match(r"blk\.(\d+)\.", name)
    return int(found[1]) if found else -1


def _more_bits(layer: int, layers: int) -> bool:
    """The first and last eighth, where errors hurt most, and every third between: half of the layers."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def _is_70b(arch: str, metadata: Mapping[str, Any]) -> bool:
    """Whether llama.cpp takes the model for one whose many query heads share small value projections."""
    if metadata[f"{arch}.block_count"] != 80:
        return False
    heads = metadata[f"{arch}.attention.head_count"]
    shared = metadata.get(f"{arch}.attention.head_count_kv", heads) != heads
    return arch == "qwen2" or (arch == "llama" and shared)


def _rule(
    mixture: str,
    default: GGMLType,
    shapes: Mapping[str, tuple[int, ...]],
    chosen: list[str],
    metadata: Mapping[str, Any],
) -> Callable[[str], GGMLType]:
    """The rule of a quantized mixture for one model: a tensor's name -> its type, whatever its row length."""
    arch = metadata["general.architecture"]
    layers = metadata[f"{arch}.block_count"]
    experts = metadata.get(f"{arch}.expert_count", 0)
    large = _is_70b(arch, metadata)
    tied = "output.weight" not in shapes

    # llama.cpp walks the tensors by layer and name and counts: "layer" 3 is the fourth it meets. Only with
    # experts, several down projections a layer, does it look at the number in the name.
    ordered = sorted(chosen, key=lambda name: (_layer(name), name))
    values = [name for name in ordered if _VALUES.search(name)]
    downs = [name for name in ordered if "ffn_down" in name]
    place = {name: number for number, name in [*enumerate(values), *enumerate(downs)]}

    def rule(name: str) -> GGMLType:
        if name == "output.weight" or (
            tied and name in ("token_embd.weight", "per_layer_token_embd.weight")
        ):
            return GGMLType.Q8_0 if default == GGMLType.Q8_0 else GGMLType.Q6_K
        if _VALUES.search(name):
            if experts == 8:  # small beside the experts
                return GGMLType.Q8_0
            if mixture.endswith("_K_M") and _more_bits(place[name], len(values)):
                return GGMLType.Q6_K
            five = large or (mixture == "Q4_K_S" and place[name] < 4)
            return GGMLType.Q5_K if five and default == GGMLType.Q4_K else default
        if "attn_k.weight" in name:
            return GGMLType.Q8_0 if experts == 8 else default
        if "attn_output.weight" in name:
            return GGMLType.Q5_K if experts == 8 and default == GGMLType.Q4_K else default
        if "ffn_down" in name:
            layer = _layer(name) if experts > 1 else place[name]
            if mixture.endswith("_K_M") and _more_bits(layer, layers):
                return GGMLType.Q6_K
            if mixture == "Q4_K_S" and layer < layers // 8:
                return GGMLType.Q5_K
        return default

    return rule
