"""Text to token ids and back: byte-level BPE training, every format on disk, chat templates, bulk encoding."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gristmill.tokenizer.bulk import BulkEncoder
from gristmill.tokenizer.gguf import from_gguf_metadata
from gristmill.tokenizer.gguf_write import to_gguf_metadata
from gristmill.tokenizer.llama2c import from_llama2c
from gristmill.tokenizer.stream import StreamDecoder
from gristmill.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gristmill.tokenizer.training import TokenizerConfig, train_bpe

__all__ = [
    "BulkEncoder",
    "StreamDecoder",
    "Tokenizer",
    "TokenizerConfig",
    "from_gguf_metadata",
    "from_llama2c",
    "to_gguf_metadata",
    "train_bpe",
]


def __getattr__(name: str) -> Any:
    """Training on first use: it brings pydantic, a sixth of a second that running a model need not wait."""
    if name in ("TokenizerConfig", "train_bpe"):
        return getattr(import_module("gristmill.tokenizer.training"), name)
    raise AttributeError(f"module 'gristmill.tokenizer' has no attribute {name!r}")
