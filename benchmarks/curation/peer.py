"""datatrove's filters as it ships them, asked one document at a time."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any


@cache
def filters() -> dict[str, Any]:
    """By name. "c4" wants punctuation at line ends, as C4 did; "c4_loose" does not, as FineWeb sets it."""
    from datatrove.pipeline.filters.c4_filters import C4QualityFilter
    from datatrove.pipeline.filters.fineweb_quality_filter import FineWebQualityFilter
    from datatrove.pipeline.filters.gopher_quality_filter import GopherQualityFilter
    from datatrove.pipeline.filters.gopher_repetition_filter import GopherRepetitionFilter

    return {
        "repetition": GopherRepetitionFilter(),
        "quality": GopherQualityFilter(),
        "c4": C4QualityFilter(),
        "c4_loose": C4QualityFilter(filter_no_terminal_punct=False),
        "fineweb": FineWebQualityFilter(),
    }


def decide(name: str, text: str) -> tuple[str, str]:
    """(the reason to drop `text`, or ""; the text afterwards)."""
    from datatrove.data import Document

    document = Document(text=text, id="")
    outcome = filters()[name].filter(document)
    return ("" if outcome is True else outcome[1]), document.text


CHAIN = ("repetition", "quality", "c4_loose", "fineweb")


def chain(text: str) -> tuple[str, str]:
    """FineWeb's rules one after the other, until one drops the document."""
    for name in CHAIN:
        reason, text = decide(name, text)
        if reason:
            return reason, text
    return "", text


def signature() -> Callable[[str], Any]:
    """MinHash of a text as FineWeb set it: 14 x 8 permutations of 5-grams, hashed by sha1. (The default, xxhash,
    fails with xxhash 4.)"""
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
    from datatrove.utils.hashing import HashConfig

    config = MinhashConfig(hash_config=HashConfig(precision=64, hash_fc="sha1"))
    step = MinhashDedupSignature("/nowhere", config)

    def signed(text: str) -> Any:
        shingles = step.get_shingles(text)
        return step.get_signature(shingles) if shingles.size else None

    return signed


def private() -> Callable[[str], str]:
    """Addresses replaced."""
    from datatrove.pipeline.formatters.pii import PIIFormatter

    return PIIFormatter().format
