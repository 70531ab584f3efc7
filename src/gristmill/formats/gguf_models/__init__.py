"""GGUF files as models: what llama.cpp's names and metadata mean for the network."""

from gristmill.formats.gguf_models.model import (
    gguf_config,
    gguf_shapes,
    load_gguf,
    plain_type,
    save_gguf,
)
from gristmill.formats.gguf_models.names import rules as gguf_rules

__all__ = ["gguf_config", "gguf_rules", "gguf_shapes", "load_gguf", "plain_type", "save_gguf"]
