"""Initialization as a function of (seed, parameter name): the same on any layout, process count or order.

Matrices are drawn normal with standard deviation 1/sqrt(fan_in); projections that write into the residual
stream start at zero, so every block begins as the identity (as in muP and modded-nanogpt); norms start as the
identity, biases and sinks at 0. The tied embedding is drawn with standard deviation `embedding_std`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch

from gristmill.model.config import ModelConfig
from gristmill.model.transformer import Transformer

# What writes into the residual stream (experts' weights are plain parameters), biases and sinks.
_ZERO = ("o_proj.weight", "down_proj.weight", "experts.down_proj", "bias", "sinks")


def generator_for(seed: int, name: str) -> torch.Generator:
    """A CPU generator keyed by (seed, name). CPU always: CUDA's generator gives other numbers."""
    digest = hashlib.blake2b(f"{seed}|{name}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def drawn(
    name: str, shape: torch.Size, seed: int, *, identity: float = 1.0, embedding_std: float = 0.02
) -> torch.Tensor:
    """The first values of a parameter, fp32 on the CPU. identity: what a norm's weights are to leave things alone."""
    if name.endswith(_ZERO):
        return torch.zeros(shape)
    if len(shape) == 1:
        return torch.full(shape, identity)
    std = embedding_std if "embed_" in name else shape[-1] ** -0.5
    # The whole parameter is drawn at once in fp32: torch.randn is not prefix-stable, and its
    # bf16 draw is the fp32 one rounded, so layouts slice this and dtypes round it.
    return torch.randn(shape, generator=generator_for(seed, name)) * std


def identity_of(config: ModelConfig) -> float:
    return 0.0 if config.norm == "rms_plus_one" else 1.0


@torch.no_grad()
def initialize(network: Transformer, seed: int, embedding_std: float = 0.02) -> Transformer:
    """Fill every parameter in place and return the network."""
    for buffer in network.buffers():
        buffer.zero_()
    identity = identity_of(network.config)
    for name, parameter in network.named_parameters():
        values = drawn(name, parameter.shape, seed, identity=identity, embedding_std=embedding_std)
        parameter.copy_(values)
    return network


@torch.no_grad()
def narrow_head(parameters: Iterable[tuple[str, torch.Tensor]], narrower: float) -> None:
    """Scale the first logits for muP, in place. parameters: (name, values), or parts of them; narrower: the width at
    which rates were tuned over this one's.

    The head's deviation becomes √narrower times what `drawn` gives, 1/width in all (Yang et al. 2022, "Tensor
    Programs V", table 3). A tied table cannot be scaled, for it is also what is read: then the last norm's gain is
    `narrower`, the same function as their multiplier on the logits. No file format needs to know of either.
    Nothing happens where neither is there (a pipeline's earlier stages).
    """
    held = dict(parameters)
    if "lm_head.weight" in held:
        held["lm_head.weight"].mul_(narrower**0.5)
    elif "model.norm.weight" in held:
        held["model.norm.weight"].mul_(narrower)
