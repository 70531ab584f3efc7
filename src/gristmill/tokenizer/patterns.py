"""Named split patterns and the byte alphabet of byte-level BPE.

BPE never merges across a split, so the pattern decides as much as the merges. Only named patterns are used:
GGUF carries the name alone (`tokenizer.ggml.pre`), and fast encoders know the named ones alone.
"""

from __future__ import annotations

from dataclasses import dataclass

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
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
QWEN35 = QWEN2.replace(r"\p{L}+", r"[\p{L}\p{M}]+").replace(
    r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]"
)
TEKKEN = O200K.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)?", "").replace(r"\p{N}{1,3}", r"\p{N}")
DIGIT = r"\p{N}"


@dataclass(frozen=True)
class Split:
    """What a GGUF name stands for: patterns that cut one after another, and how pieces then become tokens."""

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    nfc: bool = (
        False  # the family's tokenizer.json normalizes to NFC; llama.cpp leaves text as it is
    )
    adds_bos: bool = False  # where the file does not say


# llama.cpp src/llama-vocab.cpp, with the original patterns: its own spell (?i:'s) as '[sS], which lacks U+017F.
# Of names that mean the same, the first is written.
PRE: dict[str, Split] = {
    "gpt-2": Split((GPT2,)),
    "llama-bpe": Split((LLAMA3,), ignore_merges=True, adds_bos=True),
    "qwen2": Split((QWEN2,), nfc=True),
    "qwen35": Split((QWEN35,), nfc=True),
    "gpt-4o": Split((O200K,)),
    "tekken": Split((TEKKEN,), ignore_merges=True, adds_bos=True),
    "smollm": Split((DIGIT, GPT2)),
    "smaug-bpe": Split((LLAMA3,)),
    "stablelm2": Split((QWEN2,)),
    "default": Split((r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
}
PRE |= {name: PRE["smollm"] for name in ("starcoder", "command-r", "exaone", "refact", "codeshell")}
PRE |= {name: PRE["gpt-2"] for name in ("olmo", "mpt", "phi-2", "exaone4", "gigachat", "mellum")}
PRE |= {name: PRE["llama-bpe"] for name in ("llama3", "llama-v3", "falcon3", "pixtral", "lfm2")}
PRE |= {name: PRE["qwen2"] for name in ("deepseek-r1-qwen", "megrez")}
PRE |= {"dbrx": PRE["smaug-bpe"], "llama4": PRE["gpt-4o"]}


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
