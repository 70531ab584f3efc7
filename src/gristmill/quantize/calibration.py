"""Windows of tokens from real text: what quantizers look at, and what the price of quantizing is measured on.

Only full windows are used: padding would enter every statistic. Documents stand end to end, each begun as in
training (`Tokenizer.document_start`, or by the chat template), and are cut into windows of one length, of which a
seeded choice is taken.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gristmill.errors import RequestError
from gristmill.files import hash_file
from gristmill.tokenizer import Tokenizer

PYTHON_DOCS = "python-docs"
"""The text that is always there: Python's own language reference, English with code, as `help()` shows it."""

_MOST_BYTES = (
    256_000_000  # of a text file; the largest set anyone calibrates on is a hundredth of it
)


@dataclass(frozen=True)
class Windows:
    """tokens: int64 [count, length]. source: where they are from. source_sha256: of the whole text (or shards) they
    were taken from; sha256: of these tokens alone."""

    tokens: Tensor
    source: str
    source_sha256: str
    seed: int

    @property
    def sha256(self) -> str:
        count, length = self.tokens.shape
        content = self.tokens.numpy().astype("<i8").tobytes()
        return hashlib.sha256(f"{count} {length}\n".encode() + content).hexdigest()


def read_windows(
    source: str | Path,
    tokenizer: Tokenizer,
    *,
    count: int,
    length: int,
    seed: int = 0,
    split: str = "train",
    fewer: bool = False,
) -> Windows:
    """`count` windows of `length` tokens, chosen with `seed`, in the order of the source.

    `source`: a UTF-8 text file; a .jsonl file of {"text"} or {"messages"} rows; a directory of token shards, of which
    `split` ("train" or "heldout") is read; or PYTHON_DOCS, of which the two splits are different chapters. `fewer`:
    take what there is, if it is one window at least. Raises RequestError for what cannot be read, and for a source
    with too few tokens, which are counted.
    """
    if source == PYTHON_DOCS:
        pieces, digest = _python_docs(tokenizer, split)
        shown = f"Python's documentation ({split})"
    elif Path(source).is_dir():
        pieces, digest = _shards(Path(source), tokenizer, split)
        shown = f"{source} ({split})"
    else:
        pieces, digest = _file(Path(source), tokenizer)
        shown = str(source)
    windows = [piece[: len(piece) // length * length].reshape(-1, length) for piece in pieces]
    held = sum(map(len, windows))
    if held < (1 if fewer else count):
        needed = f"one window of {length}" if fewer else f"{count} × {length} = {count * length:,}"
        raise RequestError(
            f"{shown} has {sum(map(len, pieces)):,} tokens, {held} full windows of {length}, and {needed} "
            "are needed. Give more text, or ask for fewer or shorter windows (--samples, --length)"
        )
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(held, generator=generator)[:count].sort().values
    starts = np.concatenate([[0], np.cumsum([len(part) for part in windows])])
    rows = []
    for number in chosen.tolist():
        part = int(np.searchsorted(starts, number, side="right")) - 1
        rows.append(windows[part][number - starts[part]].astype(np.int64))
    return Windows(torch.from_numpy(np.stack(rows)), shown, digest, seed)


def _file(path: Path, tokenizer: Tokenizer) -> tuple[list[np.ndarray], str]:
    path = path.expanduser()
    if not path.is_file():
        raise RequestError(f"there is no text file and no directory of token shards at {path}")
    if path.stat().st_size > _MOST_BYTES:
        raise RequestError(f"{path} is larger than {_MOST_BYTES / 1e6:,.0f} MB; give a part of it")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(f"{path} is not UTF-8 text: byte {error.start} is wrong") from None
    if path.suffix == ".jsonl":
        ids = [id for row in _rows(path, text) for id in _document(row, tokenizer)]
    else:
        ids = [*tokenizer.document_start, *tokenizer.encode(text)] if text.strip() else []
    return [np.array(ids, np.int64)], hash_file(path)


def _rows(path: Path, text: str) -> list[str | list]:
    """The text of each row, or its list of messages. Only newlines part rows: JSON may hold U+2028 and its like."""
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"{path}, line {number} is not JSON: {error}") from None
        found = (row.get("messages") or row.get("text")) if isinstance(row, dict) else None
        if not isinstance(found, (str, list)):
            raise RequestError(f'{path}, line {number} has neither "text" nor "messages"')
        rows.append(found)
    return rows


def _document(row: str | list, tokenizer: Tokenizer) -> list[int]:
    if isinstance(row, str):
        return [*tokenizer.document_start, *tokenizer.encode(row)]
    return tokenizer.chat_ids(row, add_generation_prompt=False)


def _shards(directory: Path, tokenizer: Tokenizer, split: str) -> tuple[list[np.ndarray], str]:
    """The groups of a split, mapped; their hash is that of the files that are read."""
    try:
        groups = json.loads((directory / "manifest.json").read_text())["splits"][split]
    except (OSError, ValueError, KeyError, TypeError):
        raise RequestError(
            f"{directory} holds no token shards of the split {split}: its manifest.json names none"
        ) from None
    pieces, digest = [], hashlib.sha256()
    for group in sorted(groups):
        file = directory / f"{split}.{group}.npy"
        piece = np.load(file, mmap_mode="r")
        if len(piece) and int(piece.max()) >= tokenizer.vocab_size:
            raise RequestError(
                f"{file} holds token {int(piece.max())}, but the tokenizer has {tokenizer.vocab_size}: these shards "
                "were made with another tokenizer"
            )
        pieces.append(piece)
        digest.update(f"{group} {hash_file(file)}\n".encode())
    return pieces, digest.hexdigest()


def _python_docs(tokenizer: Tokenizer, split: str) -> tuple[list[np.ndarray], str]:
    """Three of four chapters to calibrate on, the others held out."""
    from pydoc_data.topics import topics

    def held_out(name: str) -> bool:
        return hashlib.sha256(name.encode()).digest()[0] % 4 == 0

    names = [name for name in sorted(topics) if held_out(name) == (split == "heldout")]
    texts = [topics[name] for name in names]
    ids = [id for text in texts for id in _document(text, tokenizer)]
    return [np.array(ids, np.int64)], hashlib.sha256("\0".join(texts).encode()).hexdigest()
