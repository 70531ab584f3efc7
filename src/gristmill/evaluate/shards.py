"""Token shards read back as documents, and which of them a measurement uses."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gristmill.errors import RequestError, WorkError
from gristmill.files import read_json
from gristmill.tokenizer import Tokenizer


@dataclass(frozen=True)
class Document:
    """A document's tokens; the first is the separator <|endoftext|>, the rest spell `size` UTF-8 bytes."""

    id: str
    group: str
    tokens: np.ndarray
    size: int


def read_documents(
    tokens_dir: Path, split: str, tokenizer: Tokenizer, max_bytes: int | None = None
) -> list[Document]:
    """The documents of a split ("train" or "heldout"), ordered by a hash of their ids.

    With `max_bytes`, whole documents in that order until the next one would not fit (the first always
    does): a sample of every group that does not change when groups are renamed or processed elsewhere.
    Raises RequestError where `tokens_dir` holds no such split, WorkError where its files disagree.
    """
    tokens_dir = Path(tokens_dir)
    manifest = _manifest(tokens_dir)
    if split not in manifest["splits"]:
        raise RequestError(
            f'{tokens_dir} has no "{split}" split; it has {list(manifest["splits"])}'
        )
    spelled = token_bytes(tokenizer)
    lengths = np.array([len(one) for one in spelled], np.int64)
    documents: list[Document] = []
    for group, numbers in sorted(manifest["splits"][split].items()):
        place = f"{tokens_dir}/{split}.{group}"
        tokens = np.load(f"{place}.npy", mmap_mode="r")
        offsets = np.load(f"{place}.offsets.npy")
        ids = read_json(Path(f"{place}.ids.json"))
        if len(ids) + 1 != len(offsets) or offsets[-1] != len(tokens):
            raise WorkError(
                f"{place}: {len(tokens)} tokens, offsets up to {offsets[-1]} and {len(ids)} ids do not "
                "belong together; run the tokens stage again"
            )
        if len(tokens) and int(tokens.max()) >= len(lengths):
            raise RequestError(
                f"{place} holds token {int(tokens.max())}, but the tokenizer has {len(lengths)}: "
                "these shards were made with another tokenizer"
            )
        pieces = np.split(tokens, offsets[1:-1]) if ids else []
        sizes = np.diff(np.concatenate([[0], np.cumsum(lengths[tokens])])[offsets])
        if sizes.sum() != numbers["bytes"]:  # not byte-level: only decoding knows
            sizes = np.array([len(_decode(piece, tokenizer)) for piece in pieces], np.int64)
        if sizes.sum() != numbers["bytes"]:
            raise WorkError(
                f"{place} spells {sizes.sum()} bytes where its manifest counts {numbers['bytes']}, so "
                "bits per byte would be wrong; run the tokens stage again"
            )
        documents += [
            Document(id, group, piece, size)
            for id, piece, size in zip(ids, pieces, sizes.tolist(), strict=True)
        ]
    documents.sort(key=lambda document: (_hash(document.id), document.id))
    return documents if max_bytes is None else _fitting(documents, max_bytes)


def token_bytes(tokenizer: Tokenizer) -> list[bytes]:
    """The UTF-8 bytes that each token of a byte-level tokenizer spells; special tokens spell none."""
    return [
        b"" if tokenizer.is_special(id) else tokenizer.token_bytes(id)
        for id in range(tokenizer.vocab_size)
    ]


def spell(documents: Sequence[Document], tokenizer: Tokenizer) -> bytes:
    """The text of the documents end to end, exactly the bytes that their sizes count."""
    table = token_bytes(tokenizer)
    parts = []
    for document in documents:
        text = b"".join(map(table.__getitem__, document.tokens[1:].tolist()))
        parts.append(text if len(text) == document.size else _decode(document.tokens, tokenizer))
    return b"".join(parts)


def _decode(tokens: np.ndarray, tokenizer: Tokenizer) -> bytes:
    return tokenizer.decode(tokens[1:].tolist(), skip_special=True).encode()


def _manifest(tokens_dir: Path) -> dict[str, Any]:
    try:
        return read_json(tokens_dir / "manifest.json")
    except FileNotFoundError:
        raise RequestError(
            f"{tokens_dir} is not a directory of token shards: it has no manifest.json"
        ) from None


def _fitting(documents: list[Document], max_bytes: int) -> list[Document]:
    total = 0
    for count, document in enumerate(documents):
        total += document.size
        if total > max_bytes:
            return documents[: max(1, count)]
    return documents


def _hash(id: str) -> bytes:
    return hashlib.blake2b(id.encode(), digest_size=8).digest()
