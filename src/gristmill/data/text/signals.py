"""All signals of a text from one native pass; without the extension, from the twin, which says what each one is.

The twin (`gristmill.data.text.twin`) and this give the same numbers under the same names.
"""

from __future__ import annotations

import warnings
from functools import cache

from gristmill.data.text import twin
from gristmill.data.text.segment import Segments, cutter, extension, segment

Signals = dict[str, float]


def signals(text: str | Segments, words: str = "spacy:en") -> Signals:
    """All signals of `text`; of one that was cut, its own word definition holds."""
    if isinstance(text, str):
        if not _native():
            return twin.signals(text, words)
        text = segment(text, words)
    _, c4 = rewritten(text)
    return {**text.native.gopher(), **text.native.fineweb(), **c4, **text.native.general()}


def rewritten(
    text: str | Segments, words: str = "spacy:en", *, terminal_punctuation: bool = False
) -> tuple[str, Signals]:
    """The lines that C4 keeps, and C4's signals. terminal_punctuation: drop lines that end with none of . ? ! " '"""
    if isinstance(text, Segments):
        text, words = text.text, text.definition
    elif not _native():
        return twin.rewritten(text, words, terminal_punctuation=terminal_punctuation)
    kept, c4, _ = _rewritten(text, words, terminal_punctuation)
    return kept, c4


def fineweb_signals(text: str | Segments, words: str = "spacy:en") -> Signals:
    """FineWeb's four signals alone: of a text that C4 has rewritten."""
    if isinstance(text, str):
        if not _native():
            return twin.fineweb_signals(text, words)
        text = segment(text, words)
    return text.native.fineweb()


def chain(
    text: str | Segments, words: str = "spacy:en", *, terminal_punctuation: bool = False
) -> tuple[str, Signals]:
    """What C4 leaves of `text`, and the signals as FineWeb's chain sees them: FineWeb's four are of the text that is
    left, all others of the text as it came."""
    if isinstance(text, str):
        if not _native():
            kept, c4 = twin.rewritten(text, words, terminal_punctuation=terminal_punctuation)
            return kept, {**twin.signals(text, words), **twin.fineweb_signals(kept, words), **c4}
        text = segment(text, words)
    kept, c4, left = _rewritten(text.text, text.definition, terminal_punctuation)
    return kept, {**text.native.gopher(), **left, **c4, **text.native.general()}


def _rewritten(text: str, words: str, terminal: bool) -> tuple[str, Signals, Signals]:
    """What C4 leaves, its signals, and FineWeb's of what is left."""
    known = cutter(words)
    encoded = known.prepare(text)
    kept, c4, left, unknown = known.known.c4(encoded, terminal)
    if unknown:
        known.learn(unknown)
        kept, c4, left, _ = known.known.c4(encoded, terminal)
    return kept.decode("utf-8", "surrogatepass"), c4, left


@cache
def _native() -> bool:
    if extension() is not None:
        return True
    warnings.warn(
        "the native extension is not built: signals are counted in Python, some fifty times slower",
        stacklevel=4,
    )
    return False
