"""Rotary positions (Su et al. 2021) and the ways in which their frequencies are scaled.

Pairs are (x[i], x[i + R/2]) of the R rotated dimensions: the half-split layout of checkpoints in HF form.
Formats with adjacent pairs are permuted when they are read (`formats`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gristmill.model.config import SLIDING, ModelConfig, RopeScaling


def rope_tables(
    config: ModelConfig,
    layer_type: str,
    positions_BT: Tensor,
    dtype: torch.dtype,
    lengths_B: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """cos and sin of position · frequency, [B, T, R/2] each; computed in fp32.

    lengths_B: tokens of each row's whole sequence; without it, a row ends at its last position.
    """
    scaling, theta = config.rope_scaling, config.rope_theta
    if layer_type == SLIDING and config.rope_theta_local is not None:
        scaling, theta = None, config.rope_theta_local
    lengths_B = positions_BT.amax(-1) + 1 if lengths_B is None else lengths_B
    frequencies, factor = inverse_frequencies(config.rotated, theta, scaling, lengths_B)
    angles = positions_BT[..., None].float() * frequencies
    return (angles.cos() * factor).to(dtype), (angles.sin() * factor).to(dtype)


def inverse_frequencies(
    dim: int, theta: float, scaling: RopeScaling | None, lengths_B: Tensor
) -> tuple[Tensor, float]:
    """Radians per position of each pair, fp32 [dim/2] (or [B, 1, dim/2]), and the factor on cos and sin."""
    exponents = torch.arange(0, dim, 2, dtype=torch.float32, device=lengths_B.device) / dim
    frequencies = 1.0 / (theta**exponents)
    if scaling is None:
        return frequencies, 1.0
    if scaling.kind == "linear":
        return frequencies / scaling.factor, 1.0
    if scaling.kind == "llama3":
        return _llama3(frequencies, scaling), 1.0
    if scaling.kind == "yarn":
        return _yarn(frequencies, dim, theta, scaling), yarn_attention_factor(scaling)
    # LongRoPE (Ding et al. 2024): a sequence uses the long factors once it outgrows the original context.
    # Chosen row by row: a row's numbers do not depend on its neighbours in a batch.
    short, long = (
        frequencies / torch.tensor(factors, dtype=torch.float32, device=frequencies.device)
        for factors in (scaling.short_factors, scaling.long_factors)
    )
    outgrown_B11 = lengths_B[:, None, None] > scaling.original_max_seq_len
    return torch.where(outgrown_B11, long, short), longrope_attention_factor(scaling)


def _llama3(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Llama 3.1: long wavelengths are divided by `factor`, short ones kept, those between blended."""
    wavelengths = 2 * math.pi / frequencies
    original, low, high = (
        scaling.original_max_seq_len,
        scaling.low_freq_factor,
        scaling.high_freq_factor,
    )
    smooth = (original / wavelengths - low) / (high - low)
    blended = (1 - smooth) * frequencies / scaling.factor + smooth * frequencies
    scaled = torch.where(wavelengths > original / low, frequencies / scaling.factor, blended)
    return torch.where(wavelengths < original / high, frequencies, scaled)


def _yarn(frequencies: Tensor, dim: int, theta: float, scaling: RopeScaling) -> Tensor:
    """YaRN (Peng et al. 2023): interpolate the slow dimensions, keep the fast ones, a ramp between."""

    def dimension(rotations: float) -> float:
        turns = scaling.original_max_seq_len / (rotations * 2 * math.pi)
        return dim * math.log(turns) / (2 * math.log(theta))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    ramp = torch.arange(dim // 2, dtype=torch.float32, device=frequencies.device)
    ramp = ((ramp - low) / (high - low)).clamp(0, 1)
    return frequencies / scaling.factor * ramp + frequencies * (1 - ramp)


def yarn_mscale(factor: float, mscale: float = 1.0) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def yarn_attention_factor(scaling: RopeScaling) -> float:
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        above = yarn_mscale(scaling.factor, scaling.mscale)
        return above / yarn_mscale(scaling.factor, scaling.mscale_all_dim)
    return yarn_mscale(scaling.factor)


def longrope_attention_factor(scaling: RopeScaling) -> float:
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.factor <= 1:
        return 1.0
    return math.sqrt(1 + math.log(scaling.factor) / math.log(scaling.original_max_seq_len))
