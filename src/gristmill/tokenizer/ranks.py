"""Vocabularies that come as ranks or merges: tiktoken's files, GPT-2's vocab.bpe, and vocab.json + merges.txt."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers

from gristmill.errors import RequestError
from gristmill.files import read_json
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
# tiktoken_ext/openai_public.py; Llama 3's differ by version and are in its tokenizer.json.
_SPECIAL = {
    "r50k_base": {"<|endoftext|>": 50256},
    "gpt2": {"<|endoftext|>": 50256},
    "cl100k_base": {
        "<|endoftext|>": 100257,
        "<|fim_prefix|>": 100258,
        "<|fim_middle|>": 100259,
        "<|fim_suffix|>": 100260,
        "<|endofprompt|>": 100276,
    },
    "o200k_base": {"<|endoftext|>": 199999, "<|endofprompt|>": 200018},
}
_MAX_TOKEN_BYTES = 1024  # the longest known have 128; what recovers merges takes the square of it
_MAX_RANK = 1 << 24


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
    merges = _read_merges(path)
    order = sorted(BYTE_OF_CHARACTER)  # printable bytes stand for themselves and come first
    tokens = [*order, *("".join(pair) for pair in merges)]
    if len(set(tokens)) != len(tokens):
        raise RequestError(f"{path}: two merges make the same token")
    vocab = {token: id for id, token in enumerate(tokens)}
    return Tokenizer(byte_level(vocab, merges, [GPT2], False), {})


def from_vocab_json(path: Path, config: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """`vocab.json` with the `merges.txt` beside it, which do not say how text is split: GPT-2's own only."""
    model = (
        read_json(path.parent / "config.json") if (path.parent / "config.json").is_file() else {}
    )
    kind = model.get("model_type") if isinstance(model, dict) else None
    if config.get("tokenizer_class", kind) not in ("gpt2", "GPT2Tokenizer", "GPT2TokenizerFast"):
        raise RequestError(
            f"{path} does not say how text is split, and no tokenizer_config.json beside it names GPT-2's "
            "tokenizer; use a directory with tokenizer.json"
        )
    if config.get("add_prefix_space"):
        raise RequestError(f"{path}: add_prefix_space is read from a tokenizer.json only")
    try:
        vocab = read_json(path)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path} is not JSON: {error}") from error
    if not isinstance(vocab, dict) or not all(type(id) is int and id >= 0 for id in vocab.values()):
        raise RequestError(f"{path} must hold an object of tokens and their ids")
    merges = _read_merges(path.parent / "merges.txt")
    for pair in merges:
        for token in (*pair, "".join(pair)):
            if token not in vocab:
                raise RequestError(
                    f"{path.parent / 'merges.txt'}: {' '.join(pair)!r} names {token!r}, which vocab.json lacks"
                )
    backend = byte_level(vocab, merges, [GPT2], False)
    if "<|endoftext|>" in vocab:
        backend.add_special_tokens([AddedToken("<|endoftext|>", special=True, normalized=False)])
    return backend


def _read_merges(path: Path) -> list[tuple[str, str]]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise RequestError(f"{path} is not UTF-8: byte {error.start}") from None
    merges = []
    for number, line in enumerate(lines, 1):
        if not line or line.startswith("#version"):
            continue
        pair = line.split(" ")
        if len(pair) != 2 or not all(c in BYTE_OF_CHARACTER for part in pair for c in part):
            raise RequestError(f"{path}, line {number}: not a merge of two byte-level tokens")
        merges.append((pair[0], pair[1]))
    return merges


def from_tiktoken(path: Path) -> Tokenizer:
    """tiktoken's file: a line is a token in base64 and its rank."""
    pattern = _PATTERNS.get(path.stem)
    if pattern is None:
        raise RequestError(
            f"{path}: a .tiktoken file does not say how text is split; name it one of "
            f"{', '.join(f'{name}.tiktoken' for name in _PATTERNS)}"
        )
    ranks: dict[bytes, int] = {}
    seen: set[int] = set()
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            encoded, rank = line.split()
            token, id = base64.b64decode(encoded, validate=True), int(rank)
        except (ValueError, binascii.Error):
            raise RequestError(f"{path}, line {number}: not a base64 token and its rank") from None
        if not 0 < len(token) <= _MAX_TOKEN_BYTES or not 0 <= id < _MAX_RANK:
            raise RequestError(f"{path}, line {number}: a token of {len(token)} bytes, rank {id}")
        if token in ranks or id in seen:
            raise RequestError(f"{path}, line {number}: the token or its rank is there twice")
        ranks[token] = id
        seen.add(id)
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise RequestError(f"{path}: the byte {missing[0]} has no rank")
    merges = [
        (to_characters(left), to_characters(right)) for left, right in merges_from_ranks(ranks)
    ]
    vocab = {to_characters(token): rank for token, rank in ranks.items()}
    special = _SPECIAL.get(path.stem, {})
    if special and seen != set(range(min(special.values()))):
        raise RequestError(
            f"{path}: its ranks are not those of {path.stem}, 0 to {min(special.values()) - 1}"
        )
    backend = byte_level(vocab | special, merges, [pattern], True)
    backend.add_special_tokens([AddedToken(name, normalized=False) for name in special])
    config = {"eos_token": "<|endoftext|>"} if special else {}
    return Tokenizer(backend, {"tokenizer_class": "PreTrainedTokenizerFast", **config})


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


def byte_level(
    vocab: dict[str, int], merges: list[tuple[str, str]], patterns: list[str], ignore_merges: bool
) -> tokenizers.Tokenizer:
    """A byte-level BPE backend; the patterns cut the text one after another, each inside the cuts before."""
    backend = tokenizers.Tokenizer(
        models.BPE(vocab=vocab, merges=merges, ignore_merges=ignore_merges)
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in patterns),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    return backend
