"""Evaluation: held-out bits per byte beside baselines, the four-way test, preferences, sample answers."""

from gristmill.evaluate.baselines import BaselinesConfig
from gristmill.evaluate.bits import Bits, bits_per_byte, total
from gristmill.evaluate.choices import Item, read_items, score_items
from gristmill.evaluate.compression import XzBits, xz_bits
from gristmill.evaluate.likelihood import Likelihood, likelihoods
from gristmill.evaluate.ngram import ngram_bits, ngram_logprobs
from gristmill.evaluate.preferences import Pair, accuracies, read_pairs, score_pairs
from gristmill.evaluate.shards import Document, read_documents, spell
from gristmill.evaluate.stage import EvaluateConfig

__all__ = [
    "BaselinesConfig",
    "Bits",
    "Document",
    "EvaluateConfig",
    "Item",
    "Likelihood",
    "Pair",
    "XzBits",
    "accuracies",
    "bits_per_byte",
    "likelihoods",
    "ngram_bits",
    "ngram_logprobs",
    "read_documents",
    "read_items",
    "read_pairs",
    "score_items",
    "score_pairs",
    "spell",
    "total",
    "xz_bits",
]
