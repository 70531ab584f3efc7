"""Signals of a text and what else is read off its words: one native pass, and a twin in Python."""

from gristmill.data.text.minhash import shingles, signature, words_of
from gristmill.data.text.segment import Segments, segment
from gristmill.data.text.signals import chain, fineweb_signals, rewritten, signals

__all__ = [
    "Segments",
    "chain",
    "fineweb_signals",
    "rewritten",
    "segment",
    "shingles",
    "signals",
    "signature",
    "words_of",
]
