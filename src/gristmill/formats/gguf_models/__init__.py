"""GGUF files as models: what llama.cpp's names and metadata mean for the network."""

from gristmill.formats.gguf_models.model import gguf_config, load_gguf, plain_type, save_gguf

__all__ = ["gguf_config", "load_gguf", "plain_type", "save_gguf"]
