"""The one definition of the network, its configuration, and its initialization."""

from gristmill.model.config import ModelConfig
from gristmill.model.init import generator_for, initialize
from gristmill.model.transformer import KVCache, Transformer

__all__ = ["KVCache", "ModelConfig", "Transformer", "generator_for", "initialize"]
