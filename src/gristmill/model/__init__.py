"""The one definition of the network, its configuration, and its initialization."""

from gristmill.model.cache import KVCache
from gristmill.model.config import (
    FULL,
    SLIDING,
    LatentConfig,
    ModelConfig,
    MoEConfig,
    RopeScaling,
)
from gristmill.model.init import generator_for, initialize
from gristmill.model.layers import Embedding, Linear
from gristmill.model.scores import attend, causal
from gristmill.model.transformer import Block, Transformer, meta_network

__all__ = [
    "FULL",
    "SLIDING",
    "Block",
    "Embedding",
    "KVCache",
    "LatentConfig",
    "Linear",
    "MoEConfig",
    "ModelConfig",
    "RopeScaling",
    "Transformer",
    "attend",
    "causal",
    "generator_for",
    "initialize",
    "meta_network",
]
