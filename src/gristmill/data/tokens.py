"""The tokens stage: documents as arrays of token ids, memory-mapped by training and evaluation.

For every split and mixture group: `{split}.{group}.npy` holds the ids of its documents end to end, each
preceded by <|endoftext|>; `.offsets.npy` where each begins (and the end); `.ids.json` their names.

Row groups are encoded one at a time (on all cores: the encoders are parallel themselves) into blocks in `work/`,
where a stage that was killed finds them again; then the blocks are written out end to end. Memory holds one block.
Shards keep the documents' order: training visits windows of them in a seeded order of its own.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from gristmill.data.mix import MAX_EPOCHS, Share, draws, mixture
from gristmill.data.schema import arrow, documents_dir
from gristmill.errors import RequestError
from gristmill.files import hash_file, hash_json, write_json, write_with
from gristmill.stage import Progress, Result, StageConfig, quiet
from gristmill.tokenizer import BulkEncoder, Tokenizer

SPLITS = ("train", "heldout")


class TokensConfig(StageConfig):
    """How much of each group the training draws; by default all of it once.

    mix: group -> weight, of any sum. temperature: without weights, groups count by size ** (1 / temperature).
    budget: tokens to train on. max_epochs: how often a group may be gone over; what it cannot give then, the
    others do. The shares go into the manifest, where pretraining finds them; of a group that is drawn less than
    once, whole documents are left out, by a hash of (seed, id).
    """

    mix: dict[str, NonNegativeFloat] = Field(default_factory=dict)
    temperature: PositiveFloat = 1.0
    budget: PositiveInt | Literal["all"] = "all"
    max_epochs: PositiveFloat = MAX_EPOCHS
    seed: int = 0


def run(
    config: TokensConfig, inputs: dict[str, Path], out_dir: Path, progress: Progress = quiet
) -> Result:
    """`documents`, `tokenizer` -> `tokens`. Groups are in alphabetical order, documents in their own.

    Raises RequestError for a mixture that names no group of the corpus or asks for more than the caps let through.
    """
    source, tokenizer = documents_dir(inputs["documents"]), Tokenizer.load(inputs["tokenizer"])
    if not tokenizer.document_start:
        raise RequestError(
            f"{inputs['tokenizer']}: the tokenizer names neither bos_token nor eos_token, which separate documents"
        )
    tokenizer_hash = hash_file(Path(inputs["tokenizer"]) / "tokenizer.json")
    encoding = _Encoding(tokenizer, tokenizer_hash, out_dir / "work")
    out = out_dir / "tokens"
    out.mkdir(parents=True, exist_ok=True)
    blocks = encoding.blocks(source, progress)
    splits: dict[str, dict[str, dict[str, int]]] = {}
    shares: dict[str, Share] = {}
    for split in SPLITS:
        groups = _groups(blocks[split])
        chosen: dict[str, np.ndarray] = {}
        if split == "train":
            shares = _shares(config, groups)
            chosen = {
                name: draws(groups[name].ids, groups[name].lengths, share.tokens, config.seed) > 0
                for name, share in shares.items()
                if share.epochs < 1
            }
        splits[split] = {
            name: group.write(
                out, f"{split}.{name}", encoding.dtype, blocks[split], name, chosen.get(name)
            )
            for name, group in sorted(groups.items())
            if name not in shares or shares[name].tokens
        }
    manifest: dict[str, Any] = {
        "vocab_size": tokenizer.vocab_size,
        "dtype": encoding.dtype.name,
        "splits": splits,
        "tokenizer_sha256": tokenizer_hash,
    }
    metrics: dict[str, Any] = dict(splits)
    if shares:
        drawn = {
            name: {"tokens": s.tokens, "epochs": round(s.epochs, 4), "capped": s.capped}
            for name, s in shares.items()
        }
        manifest["mixture"] = metrics["mixture"] = drawn
    write_json(out / "manifest.json", manifest)
    shutil.rmtree(encoding.work)
    return Result({"tokens": out}, metrics)


def _shares(config: TokensConfig, groups: dict[str, _Group]) -> dict[str, Share]:
    """What training draws of each group, {} when that is everything once."""
    if not config.mix and config.budget == "all" and config.temperature == 1:
        return {}
    sizes = {name: sum(group.lengths) for name, group in sorted(groups.items())}
    budget = sum(sizes.values()) if config.budget == "all" else config.budget
    return mixture(
        sizes,
        budget,
        weights=config.mix or None,
        temperature=config.temperature,
        max_epochs=config.max_epochs,
    )


@dataclass(slots=True)
class _Encoding:
    """Encodes row groups into block files, named by the documents file, the row group and the tokenizer."""

    tokenizer: Tokenizer
    tokenizer_hash: str
    work: Path

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.uint16 if self.tokenizer.vocab_size <= 65536 else np.uint32)

    def blocks(self, source: Path, progress: Progress) -> dict[str, list[Path]]:
        self.work.mkdir(parents=True, exist_ok=True)
        files = {
            split: arrow().parquet.ParquetFile(source / f"{split}.parquet") for split in SPLITS
        }
        total = sum(file.metadata.num_rows for file in files.values())
        encoder, done = BulkEncoder(self.tokenizer), 0
        blocks: dict[str, list[Path]] = {split: [] for split in SPLITS}
        for split, file in files.items():
            name = hash_json([hash_file(source / f"{split}.parquet"), self.tokenizer_hash])[:24]
            for number in range(file.num_row_groups):
                path = self.work / f"{split}-{name}-{number:06}.parquet"
                if not path.is_file():
                    table = file.read_row_group(number, columns=["id", "group", "text"])
                    _write_block(path, self._encoded(table, encoder))
                blocks[split].append(path)
                done += file.metadata.row_group(number).num_rows
                progress(done, total, "documents")
            file.close()
        return blocks

    def _encoded(self, table: Any, encoder: BulkEncoder) -> Any:
        pyarrow = arrow()
        texts = table["text"].to_pylist()
        ids, lengths = encoder.encode(texts)
        separator = self.tokenizer.document_start
        starts = np.concatenate([[0], np.cumsum(lengths)])
        tokens = np.insert(ids, np.repeat(starts[:-1], len(separator)), separator * len(texts))
        offsets = starts + len(separator) * np.arange(len(texts) + 1)
        columns = {
            "id": table["id"],
            "group": table["group"],
            "bytes": pyarrow.array([len(text.encode()) for text in texts], pyarrow.int64()),
            "tokens": pyarrow.LargeListArray.from_arrays(offsets, tokens.astype(self.dtype)),
        }
        return pyarrow.table(columns)


def _write_block(path: Path, table: Any) -> None:
    write_with(
        path, lambda temporary: arrow().parquet.write_table(table, temporary, compression="zstd")
    )


@dataclass(slots=True)
class _Group:
    """The documents of one group of a split: names, tokens and bytes of each."""

    ids: list[str] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)

    def write(
        self,
        directory: Path,
        name: str,
        dtype: np.dtype[Any],
        blocks: list[Path],
        group: str,
        chosen: np.ndarray | None,
    ) -> dict[str, int]:
        """The shard of the group's documents, or of those `chosen` (bool per document)."""
        take = np.ones(len(self.ids), bool) if chosen is None else chosen
        lengths = np.array(self.lengths, np.int64)[take]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        size = int(offsets[-1])

        def write(temporary: Path) -> None:
            shard = np.lib.format.open_memmap(temporary, mode="w+", dtype=dtype, shape=(size,))
            end = seen = 0
            for tokens in _of_group(blocks, group):
                for document in tokens:
                    if take[seen]:
                        shard[end : end + len(document)] = document
                        end += len(document)
                    seen += 1
            shard.flush()

        if size:
            write_with(directory / f"{name}.npy", write)
        else:  # nothing can be mapped
            _save(directory / f"{name}.npy", np.empty(0, dtype))
        _save(directory / f"{name}.offsets.npy", offsets)
        write_json(
            directory / f"{name}.ids.json", [id for id, t in zip(self.ids, take, strict=True) if t]
        )
        bytes_ = int(np.array(self.bytes, np.int64)[take].sum())
        return {"tokens": size, "bytes": bytes_, "documents": int(take.sum())}


def _groups(blocks: list[Path]) -> dict[str, _Group]:
    groups: dict[str, _Group] = {}
    for path in blocks:
        table = arrow().parquet.read_table(path)
        lengths = np.diff(table["tokens"].combine_chunks().offsets.to_numpy())
        rows = zip(
            table["id"].to_pylist(),
            table["group"].to_pylist(),
            lengths.tolist(),
            table["bytes"].to_pylist(),
            strict=True,
        )
        for id, name, length, size in rows:
            group = groups.setdefault(name, _Group())
            group.ids.append(id)
            group.lengths.append(length)
            group.bytes.append(size)
    return groups


def _of_group(blocks: list[Path], group: str) -> Iterator[list[np.ndarray]]:
    """The documents of `group`, a block at a time."""
    pyarrow = arrow()
    for path in blocks:
        table = pyarrow.parquet.read_table(path, columns=["group", "tokens"])
        column = table["tokens"].combine_chunks()
        flat, offsets = column.values.to_numpy(), column.offsets.to_numpy()
        here = np.flatnonzero(np.array(table["group"].to_pylist(), object) == group)
        yield [flat[offsets[at] : offsets[at + 1]] for at in here.tolist()]


def _save(path: Path, array: np.ndarray) -> None:
    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:  # given a name, numpy would append .npy to it
            np.save(file, array)

    write_with(path, write)
