"""compressed-tensors (llm-compressor, vLLM): a list of groups, each with rules that say which layers it is for.

pack-quantized: X.weight_packed int32 [out, in * bits / 32] (codes packed along the inputs), X.weight_scale
[out, groups], X.weight_shape [2], and where the grid is asymmetric X.weight_zero_point int32
[out * bits / 32, groups], packed along the outputs. int-quantized: X.weight int8 [out, in], X.weight_scale [out, 1].
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
    order_of,
)
from gristmill.formats.quantized.words import pack_words, unpack_words
from gristmill.kernels import Codes

BITS = (4, 8)
PACKED, INT8 = "pack-quantized", "int-quantized"
# The only rounding of activations that is read: 8 bits, one scale a token, found as the token comes.
_TOKEN_WISE = {
    "num_bits": 8,
    "type": "int",
    "symmetric": True,
    "strategy": "token",
    "dynamic": True,
}


@dataclass(frozen=True)
class Packed:
    """group: inputs that share a scale, -1 for a whole row."""

    bits: int
    group: int
    symmetric: bool

    def layout(self, out: int, width: int, held: Collection[str]) -> dict[str, Tensor]:
        groups, in_word = width // check_group(width, self.group), 32 // self.bits
        found = {
            "weight_packed": empty(torch.int32, out, -(-width // in_word)),
            "weight_scale": empty(torch.float32, out, groups),
            "weight_shape": torch.tensor([out, width]),
        }
        if not self.symmetric:
            found["weight_zero_point"] = empty(torch.int32, -(-out // in_word), groups)
        # Of act-order by groups, which older writers knew.
        return found | (
            {"weight_g_idx": empty(torch.int32, width)} if "weight_g_idx" in held else {}
        )

    def unpack(self, tensors: Mapping[str, Tensor]) -> Codes:
        scale = tensors["weight_scale"]
        out, width = tensors["weight_packed"].shape[0], int(tensors["weight_shape"][1])
        group = width // scale.shape[1]
        q = unpack_words(tensors["weight_packed"], self.bits, width)
        if self.symmetric:
            zero = torch.full(scale.shape, 2 ** (self.bits - 1), dtype=torch.uint8)
        else:
            zero = unpack_words(tensors["weight_zero_point"].T, self.bits, out).T.contiguous()
        order = None
        if "weight_g_idx" in tensors:
            order = order_of(tensors["weight_g_idx"], group)
        return Codes(q if order is None else q[:, order], scale, zero, self.bits, group, order)

    def check(self, codes: Codes | Int8Rows) -> None:
        assert isinstance(codes, Codes)
        if codes.bits not in BITS:
            raise RequestError(f"{PACKED} holds 4 or 8 bits, and the layer has {codes.bits}")
        if codes.order is not None:
            raise RequestError(
                'its groups of inputs lie apart (act-order), which only "gptq" can say'
            )

    def pack(self, codes: Codes | Int8Rows) -> dict[str, Tensor]:
        self.check(codes)
        assert isinstance(codes, Codes)
        found = {
            "weight_packed": pack_words(codes.q, self.bits),
            "weight_scale": codes.scale,
            "weight_shape": torch.tensor(codes.q.shape),
        }
        if not self.symmetric:
            found["weight_zero_point"] = pack_words(codes.zero.T, self.bits).T.contiguous()
        return found


@dataclass(frozen=True)
class Int8:
    """One scale a row; activation_bits 8 where the activations are rounded too, token by token (W8A8)."""

    activation_bits: int | None = None

    def layout(self, out: int, width: int, held: Collection[str]) -> dict[str, Tensor]:
        return {
            "weight": empty(torch.int8, out, width),
            "weight_scale": empty(torch.float32, out, 1),
        }

    def unpack(self, tensors: Mapping[str, Tensor]) -> Int8Rows:
        return Int8Rows(tensors["weight"], tensors["weight_scale"], self.activation_bits)

    def check(self, codes: Codes | Int8Rows) -> None:
        assert isinstance(codes, Int8Rows)

    def pack(self, codes: Codes | Int8Rows) -> dict[str, Tensor]:
        assert isinstance(codes, Int8Rows)
        return {"weight": codes.weight, "weight_scale": codes.scale}


Kind = Packed | Int8


def read(config: Mapping[str, Any], file: Path) -> Quantization:
    """config.json's quantization_config. Raises RequestError for what is not read, by name."""
    for key in ("kv_cache_scheme", "transform_config"):
        if config.get(key):
            raise RequestError(f"{file}: compressed-tensors' {key} is not read")
    targets: dict[str, Kind] = {}
    try:
        if (config.get("sparsity_config") or {}).get("format", "dense") != "dense":
            raise RequestError(f"{file}: compressed-tensors' sparse weights are not read")
        for group in config.get("config_groups", {}).values():
            scheme = _scheme(group, group.get("format") or config.get("format"), file)
            targets.update(dict.fromkeys(group.get("targets", ["Linear"]), scheme))
        ignored = list(config.get("ignore") or ())
        for target in (*targets, *ignored):
            re.compile(target.removeprefix("re:"))
    except (AttributeError, TypeError):
        raise RequestError(
            f"{file}: config_groups must be an object of objects, with lists of names as targets and ignore"
        ) from None
    except re.error as error:
        raise RequestError(f"{file}: {target!r} is no pattern: {error}") from None

    def scheme_of(name: str) -> Kind:
        target = first_match(name, targets)
        if target is None or first_match(name, ignored) is not None:
            raise RequestError(
                f"{file}: the files hold {name} quantized, and no group of quantization_config is for it"
            )
        return targets[target]

    return Quantization(("weight_packed", "weight_scale", "weight_shape"), scheme_of)


def first_match(name: str, targets: Collection[str]) -> str | None:
    """The target that decides about a linear layer: its own name, else a pattern ("re:…"), else its class.

    Of several patterns the first by alphabet, as compressed-tensors' match_targets has it.
    """
    if name in targets:
        return name
    patterns = sorted(target for target in targets if target.startswith("re:"))
    found = (target for target in patterns if re.match(target.removeprefix("re:"), name))
    return next(found, "Linear" if "Linear" in targets else None)


def _scheme(group: Mapping[str, Any], format: Any, file: Path) -> Kind:
    weights, inputs = group.get("weights") or {}, group.get("input_activations")
    kind = {key: weights.get(key) for key in ("num_bits", "type", "symmetric", "strategy")}
    bits, symmetric, strategy = kind["num_bits"], bool(kind["symmetric"]), kind["strategy"]
    if inputs is not None:
        inputs = {key: inputs.get(key) for key in _TOKEN_WISE}
    plain = kind["type"] == "int" and not group.get("output_activations")
    if plain and format == INT8 and (bits, symmetric, strategy) == (8, True, "channel"):
        if inputs in (None, _TOKEN_WISE):
            return Int8(None if inputs is None else 8)
    elif plain and format == PACKED and bits in BITS and inputs is None:
        if strategy == "channel":
            return Packed(bits, -1, symmetric)
        if strategy == "group" and isinstance(weights.get("group_size"), int):
            return Packed(bits, weights["group_size"], symmetric)
    said = ", ".join(f"{key} {value}" for key, value in kind.items())
    activations = "" if inputs is None else f", input_activations {inputs}"
    raise RequestError(
        f"{file}: compressed-tensors' {format} with {said}{activations} is not read; read are {PACKED} (4 or 8 "
        f"bits by channel or group) and {INT8} (8 bits, symmetric, by channel; activations whole or dynamic by token)"
    )


def plan(layers: Mapping[str, Codes | Int8Rows], kept: Collection[str]) -> Plan:
    """How to write `layers`, by their names on disk; `kept` are the linear layers that are not quantized."""
    schemes = {name: _scheme_for(codes) for name, codes in layers.items()}
    kinds = list(dict.fromkeys(schemes.values()))
    formats = {_format(scheme) for scheme in kinds}
    groups = {}
    for i, kind in enumerate(kinds):
        # Names where there are several kinds: a class would mean layers of the others too.
        names = sorted(name for name, scheme in schemes.items() if scheme == kind)
        groups[f"group_{i}"] = {
            # Without this key compressed-tensors 0.20 expects pack-quantized: transformers would
            # load random weights in place of these.
            "format": _format(kind),
            "targets": names if len(kinds) > 1 else ["Linear"],
            "weights": _weights(kind),
            "input_activations": _TOKEN_WISE
            if isinstance(kind, Int8) and kind.activation_bits
            else None,
            "output_activations": None,
        }
    config = {
        "quant_method": "compressed-tensors",
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": sorted(kept),
    }
    return Plan(schemes, config)


def _scheme_for(codes: Codes | Int8Rows) -> Kind:
    if isinstance(codes, Int8Rows):
        return Int8(codes.activation_bits)
    group = -1 if codes.group == codes.q.shape[1] else codes.group
    return Packed(codes.bits, group, codes.symmetric)


def _format(scheme: Kind) -> str:
    return INT8 if isinstance(scheme, Int8) else PACKED


def _weights(scheme: Kind) -> dict[str, Any]:
    whole = isinstance(scheme, Int8) or scheme.group == -1
    found: dict[str, Any] = {
        "num_bits": 8 if isinstance(scheme, Int8) else scheme.bits,
        "type": "int",
        "symmetric": True if isinstance(scheme, Int8) else scheme.symmetric,
        "strategy": "channel" if whole else "group",
        "dynamic": False,
    }
    return found if isinstance(scheme, Int8) or whole else {**found, "group_size": scheme.group}
