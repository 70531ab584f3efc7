"""The tokens stage: documents as arrays of token ids, memory-mapped by training and evaluation.

For every split and mixture group: `{split}.{group}.npy` holds the ids of its documents end to end, each
preceded by <|endoftext|>; `.offsets.npy` where each begins (and the end); `.ids.json` their names.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from gristmill.data.schema import Document, arrow, documents, documents_dir
from gristmill.errors import RequestError
from gristmill.files import hash_file, write_json, write_with
from gristmill.stage import Progress, Result, StageConfig, quiet
from gristmill.tokenizer import BulkEncoder, Tokenizer

SPLITS = ("train", "heldout")
_DOCUMENTS_AT_ONCE = 512


class TokensConfig(StageConfig):
    """Nothing to choose: the ids follow from documents and tokenizer."""


def run(
    config: TokensConfig, inputs: dict[str, Path], out_dir: Path, progress: Progress = quiet
) -> Result:
    """`documents`, `tokenizer` -> `tokens`. Groups are in alphabetical order, documents in their own."""
    source, tokenizer = inputs["documents"], Tokenizer.load(inputs["tokenizer"])
    separator = tokenizer.document_start
    if not separator:
        raise RequestError(
            f"{inputs['tokenizer']}: the tokenizer names neither bos_token nor eos_token, which separate documents"
        )
    out = out_dir / "tokens"
    out.mkdir(parents=True, exist_ok=True)
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 65536 else np.uint32)
    rows = {split: _count(source, split) for split in SPLITS}
    encoder, done = BulkEncoder(tokenizer), 0
    splits: dict[str, dict[str, dict[str, int]]] = {}
    for split in SPLITS:
        groups: dict[str, _Group] = {}
        stream = documents(source, split)
        while batch := list(islice(stream, _DOCUMENTS_AT_ONCE)):
            _encode(batch, encoder, separator, dtype, groups)
            done += len(batch)
            progress(done, sum(rows.values()), "documents")
        splits[split] = {
            name: group.write(out, f"{split}.{name}") for name, group in sorted(groups.items())
        }
    tokenizer_file = Path(inputs["tokenizer"]) / "tokenizer.json"
    write_json(
        out / "manifest.json",
        {
            "vocab_size": tokenizer.vocab_size,
            "dtype": dtype.name,
            "splits": splits,
            "tokenizer_sha256": hash_file(tokenizer_file),
        },
    )
    return Result({"tokens": out}, dict(splits))


class _Group:
    """The shards of one group, in the making."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.parts: list[np.ndarray] = [np.empty(0, dtype)]
        self.lengths: list[int] = []
        self.ids: list[str] = []
        self.bytes = 0

    def write(self, directory: Path, name: str) -> dict[str, int]:
        tokens = np.concatenate(self.parts)
        offsets = np.concatenate([[0], np.cumsum(self.lengths)]).astype(np.int64)
        _save(directory / f"{name}.npy", tokens)
        _save(directory / f"{name}.offsets.npy", offsets)
        write_json(directory / f"{name}.ids.json", self.ids)
        return {"tokens": len(tokens), "bytes": self.bytes, "documents": len(self.ids)}


def _encode(
    batch: list[Document],
    encoder: BulkEncoder,
    separator: list[int],
    dtype: np.dtype[Any],
    groups: dict[str, _Group],
) -> None:
    ids, lengths = encoder.encode([document.text for document in batch])
    for document, piece in zip(batch, np.split(ids, np.cumsum(lengths)[:-1]), strict=True):
        group = groups.setdefault(document.group, _Group(dtype))
        group.parts.append(np.concatenate([separator, piece]).astype(dtype))
        group.lengths.append(len(piece) + len(separator))
        group.ids.append(document.id)
        group.bytes += len(document.text.encode("utf-8"))


def _count(source: Path, split: str) -> int:
    return arrow().parquet.ParquetFile(documents_dir(source) / f"{split}.parquet").metadata.num_rows


def _save(path: Path, array: np.ndarray) -> None:
    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:  # given a name, numpy would append .npy to it
            np.save(file, array)

    write_with(path, write)
