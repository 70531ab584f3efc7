"""How llama.cpp's files say that rotary positions are scaled: some kinds by keys, some by tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from gristmill.errors import RequestError
from gristmill.formats.keys import Keys
from gristmill.model import ModelConfig, RopeScaling
from gristmill.model.rope import inverse_frequencies, longrope_attention_factor

_LLAMA3_CONTEXT = 8192  # of every Llama 3.1 to 3.3, whose scaling GGUF holds as plain numbers


def scaling_keys(config: ModelConfig) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Keys, without the architecture's prefix, and tensors. Raises RequestError for what llama.cpp does otherwise."""
    scaling = config.rope_scaling
    if scaling is None:
        return {}, {}
    keys: dict[str, Any] = {}
    if scaling.kind == "llama3":
        return {}, {"rope_freqs.weight": _divisors(config, scaling)}
    if scaling.kind != "longrope":  # whose factors are the whole of it: another would come on top
        keys["rope.scaling.type"] = scaling.kind
        keys["rope.scaling.factor"] = scaling.factor
    if scaling.kind == "linear":
        return keys, {}
    keys["rope.scaling.original_context_length"] = scaling.original_max_seq_len
    if scaling.kind == "yarn":
        if (
            scaling.attention_factor is not None
            or scaling.mscale
            or not _default_ramp(scaling, config)
        ):
            raise RequestError(
                "llama.cpp's YaRN has a ramp and attention factor of its own; this model's differ, so it "
                "would say something else there"
            )
        return keys, {}
    keys["rope.scaling.attn_factor"] = longrope_attention_factor(scaling)
    return keys, {
        "rope_factors_long.weight": torch.tensor(scaling.long_factors),
        "rope_factors_short.weight": torch.tensor(scaling.short_factors),
    }


def _default_ramp(scaling: RopeScaling, config: ModelConfig) -> bool:
    ramp = (scaling.beta_fast, scaling.beta_slow) == (32.0, 1.0)
    return ramp and (scaling.truncate or config.family == "gpt_oss")


def _divisors(config: ModelConfig, scaling: RopeScaling) -> torch.Tensor:
    """By how much each frequency is divided, fp32 [rotated/2]."""
    at = torch.ones(1)
    plain, _ = inverse_frequencies(config.rotated, config.rope_theta, None, at)
    scaled, _ = inverse_frequencies(config.rotated, config.rope_theta, scaling, at)
    return plain / scaled


def same_frequencies(config: ModelConfig, said: ModelConfig) -> bool:
    """Whether positions turn alike, in short texts and at the full context: forms may differ."""
    for length in (1, config.max_seq_len):
        at = torch.tensor([length])
        (ours, our_factor), (theirs, their_factor) = (
            inverse_frequencies(c.rotated, c.rope_theta, c.rope_scaling, at) for c in (config, said)
        )
        if abs(our_factor - their_factor) > 1e-5 or not torch.allclose(ours, theirs, rtol=1e-5):
            return False
    return True


def read_scaling(
    keys: Keys, tensors: Mapping[str, torch.Tensor], rotated: int, arch: str
) -> RopeScaling | None:
    if "rope_freqs.weight" in tensors:
        return _from_divisors(keys, tensors["rope_freqs.weight"], rotated)
    original = keys.count("rope.scaling.original_context_length", 0)
    if "rope_factors_long.weight" in tensors:
        if "rope_factors_short.weight" not in tensors:
            raise keys.error("the tensor rope_factors_short.weight is missing")
        long, short = (
            tuple(tensors[f"rope_factors_{which}.weight"].flatten().tolist())
            for which in ("long", "short")
        )
        original = original or keys.count("context_length")
        longest = keys.count("context_length") / max(original, 1)
        factor = keys.number("rope.scaling.factor", longest)
        attention = keys.optional("rope.scaling.attn_factor")
        return RopeScaling(
            "longrope",
            factor,
            original,
            attention_factor=attention,
            short_factors=short,
            long_factors=long,
        )
    kind = keys.get("rope.scaling.type") or "none"
    if kind == "none":
        return None
    if kind not in ("linear", "yarn"):
        raise keys.error(f"rope.scaling.type {kind!r} is not supported")
    factor = keys.number("rope.scaling.factor", 1.0)
    if kind == "linear":
        return RopeScaling("linear", factor)
    keys.refuse(**{"rope.scaling.attn_factor": 1.0})
    return RopeScaling("yarn", factor, original, truncate=arch != "gpt-oss")


def _from_divisors(keys: Keys, divisors: torch.Tensor, rotated: int) -> RopeScaling:
    """Llama 3's scaling again, where its known constants give these numbers; else the numbers themselves."""
    if divisors.shape != (rotated // 2,) or not bool((divisors > 0).all()):
        raise keys.error(
            f"the tensor rope_freqs.weight must hold {rotated // 2} numbers above 0, one for each pair"
        )
    theta = keys.number("rope.freq_base", 10_000.0)
    known = RopeScaling("llama3", float(divisors.max()), _LLAMA3_CONTEXT)
    at = torch.ones(1)
    plain, _ = inverse_frequencies(rotated, theta, None, at)
    scaled, _ = inverse_frequencies(rotated, theta, known, at)
    if torch.allclose(plain / scaled, divisors, rtol=1e-5):
        return known
    factors = tuple(divisors.tolist())
    return RopeScaling(
        "longrope",
        1.0,
        keys.count("context_length"),
        attention_factor=1.0,
        short_factors=factors,
        long_factors=factors,
    )
