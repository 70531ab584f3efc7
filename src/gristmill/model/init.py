"""Initialization as a function of (seed, parameter name): the same on any layout, process count or order.

Matrices are drawn normal with standard deviation 1/sqrt(fan_in); projections that write into the residual
stream start at zero, so every block begins as the identity (as in muP and modded-nanogpt); norms start as the
identity, biases and sinks at 0. The tied embedding is drawn with standard deviation `embedding_std`.
"""

from __future__ import annotations

import hashlib

import torch

from gristmill.model.transformer import Transformer

# What writes into the residual stream (experts' weights are plain parameters), biases and sinks.
_ZERO = ("o_proj.weight", "down_proj.weight", "experts.down_proj", "bias", "sinks")


def generator_for(seed: int, name: str) -> torch.Generator:
    """A CPU generator keyed by (seed, name). CPU always: CUDA's generator gives other numbers."""
    digest = hashlib.blake2b(f"{seed}|{name}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


@torch.no_grad()
def initialize(network: Transformer, seed: int, embedding_std: float = 0.02) -> Transformer:
    """Fill every parameter in place and return the network."""
    for buffer in network.buffers():
        buffer.zero_()
    identity = 0.0 if network.config.norm == "rms_plus_one" else 1.0
    for name, parameter in network.named_parameters():
        if name.endswith(_ZERO):
            parameter.zero_()
        elif parameter.ndim == 1:
            parameter.fill_(identity)
        else:
            std = embedding_std if "embed_" in name else parameter.shape[-1] ** -0.5
            # The whole parameter is drawn at once in fp32: torch.randn is not prefix-stable, and its
            # bf16 draw is the fp32 one rounded, so layouts slice this and dtypes round it.
            drawn = torch.randn(parameter.shape, generator=generator_for(seed, name))
            parameter.copy_(drawn * std)
    return network
