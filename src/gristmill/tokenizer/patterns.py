"""Named split patterns and the byte alphabet of byte-level BPE.

BPE never merges across a split, so the pattern decides as much as the merges. Only named patterns are used:
GGUF carries the name alone (`tokenizer.ggml.pre`), and fast encoders know the named ones alone.
"""

from __future__ import annotations

# tiktoken_ext/openai_public.py and llama.cpp src/llama-vocab.cpp.
GPT2 = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
O200K = "|".join(
    [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)


def _byte_characters() -> list[str]:
    """The printable character that stands for each byte (GPT-2's `bytes_to_unicode`)."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    shifted = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(shifted)) for byte in range(256)]


CHARACTER_OF_BYTE: list[str] = _byte_characters()
BYTE_OF_CHARACTER: dict[str, int] = {c: byte for byte, c in enumerate(CHARACTER_OF_BYTE)}


def to_characters(token: bytes) -> str:
    """A token's bytes as `tokenizer.json` writes them: b" the" -> "Ġthe"."""
    return "".join(CHARACTER_OF_BYTE[byte] for byte in token)


def to_bytes(characters: str) -> bytes:
    """The inverse of `to_characters`. Raises KeyError for a character outside the alphabet."""
    return bytes(BYTE_OF_CHARACTER[c] for c in characters)
