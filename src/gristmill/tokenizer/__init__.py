"""Text to token ids and back: byte-level BPE training, loading, chat templates, bulk encoding."""

from gristmill.tokenizer.bulk import BulkEncoder
from gristmill.tokenizer.tokenizer import StreamDecoder, Tokenizer
from gristmill.tokenizer.training import TokenizerConfig, train_bpe

__all__ = ["BulkEncoder", "StreamDecoder", "Tokenizer", "TokenizerConfig", "train_bpe"]
