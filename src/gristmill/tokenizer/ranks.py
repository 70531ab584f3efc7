"""Vocabularies that come as ranks: GPT-2's vocab.bpe and tiktoken's files, as `Tokenizer`s."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers

from gristmill.errors import RequestError
from gristmill.tokenizer.patterns import (
    BYTE_OF_CHARACTER,
    CL100K,
    GPT2,
    LLAMA3,
    O200K,
    to_bytes,
    to_characters,
)
from gristmill.tokenizer.tokenizer import Tokenizer

# A .tiktoken file holds ranks alone; the split pattern is known by the file's name.
_PATTERNS = {
    "r50k_base": GPT2,
    "gpt2": GPT2,
    "cl100k_base": CL100K,
    "o200k_base": O200K,
    "llama3": LLAMA3,
}


def load_peer(path: Path) -> Tokenizer:
    """A tokenizer to compare with: vocab.bpe, NAME.tiktoken, tokenizer.json or its directory."""
    if not path.exists():
        raise RequestError(f"tokenizer.peers: there is no file {path}")
    if path.suffix == ".bpe":
        return from_vocab_bpe(path)
    if path.suffix == ".tiktoken":
        return from_tiktoken(path)
    return Tokenizer.load(path)


def from_vocab_bpe(path: Path) -> Tokenizer:
    """GPT-2's merges file. Ids are 256 bytes in alphabet order, then merges, as encoder.json has them."""
    lines = path.read_text(encoding="utf-8").split("\n")
    merges = []
    for number, line in enumerate(lines, 1):
        if not line or line.startswith("#version"):
            continue
        pair = tuple(line.split(" "))
        if len(pair) != 2 or not all(c in BYTE_OF_CHARACTER for part in pair for c in part):
            raise RequestError(f"{path}, line {number}: not a merge of two byte-level tokens")
        merges.append(pair)
    order = sorted(BYTE_OF_CHARACTER)  # printable bytes stand for themselves and come first
    tokens = [*order, *("".join(pair) for pair in merges)]
    return _byte_level({token: id for id, token in enumerate(tokens)}, merges, GPT2, False)


def from_tiktoken(path: Path) -> Tokenizer:
    """tiktoken's file: a line is a token in base64 and its rank."""
    pattern = _PATTERNS.get(path.stem)
    if pattern is None:
        raise RequestError(
            f"{path}: a .tiktoken file does not say how text is split; name it one of "
            f"{', '.join(f'{name}.tiktoken' for name in _PATTERNS)}"
        )
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise RequestError(f"{path}, line {number}: not a base64 token and its rank") from None
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise RequestError(f"{path}: the byte {missing[0]} has no rank")
    merges = [
        (to_characters(left), to_characters(right)) for left, right in merges_from_ranks(ranks)
    ]
    vocab = {to_characters(token): rank for token, rank in ranks.items()}
    return _byte_level(vocab, merges, pattern, True)


def ranks_of(tokenizer: Tokenizer) -> dict[bytes, int]:
    """tiktoken's `mergeable_ranks` of a byte-level tokenizer: bytes -> id, control tokens left out."""
    vocab = tokenizer.backend.get_vocab(with_added_tokens=False)
    control = tokenizer.special_tokens
    return {to_bytes(token): id for token, id in vocab.items() if token not in control}


def merges_from_ranks(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The pair each token was merged from: encoding it with lower ranks alone ends in two parts."""
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) == 1:
            continue
        parts = [bytes([byte]) for byte in token]
        while len(parts) > 2:
            best, at = rank, -1
            for i in range(len(parts) - 1):
                candidate = ranks.get(parts[i] + parts[i + 1], rank)
                if candidate < best:
                    best, at = candidate, i
            if at < 0:
                break
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        if len(parts) == 2:  # else only whole pieces reach it, which ignore_merges finds
            merges.append((parts[0], parts[1]))
    return merges


def _byte_level(
    vocab: dict[str, int], merges: list[tuple[str, str]], pattern: str, ignore_merges: bool
) -> Tokenizer:
    backend = tokenizers.Tokenizer(
        models.BPE(vocab=vocab, merges=merges, ignore_merges=ignore_merges)
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    return Tokenizer(backend, {})
