"""The documents of earlier corpora, as deduplication compares them: signed anew, in a file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gristmill.data.decisions import batches, take
from gristmill.data.schema import arrow, documents_dir


@dataclass(frozen=True, slots=True)
class Known:
    """The kept documents of `corpora`, numbered from 0 as they come: train before heldout."""

    path: Path
    count: int

    def rows(self, column: str) -> Iterator[tuple[np.ndarray, Any]]:
        """(numbers of documents, their rows of a table with `column`: exact, signature or shingles)."""
        if self.count:
            for start, table in batches(self.path, [column]):
                yield np.arange(start, start + table.num_rows), table

    def names(self, wanted: np.ndarray) -> dict[int, dict[str, str]]:
        """The id, source and corpus of each of the numbers."""
        wanted = np.unique(wanted)
        found: dict[int, dict[str, str]] = {}
        if len(wanted):
            for start, table in batches(self.path, ["id", "source", "corpus"]):
                here = wanted[(wanted >= start) & (wanted < start + table.num_rows)]
                rows = take(table, here - start).to_pylist()
                found |= dict(zip(here.tolist(), rows, strict=True))
        return found


def sign(corpora: Sequence[Path], directory: Path, seed: int) -> Known:
    """What is compared of the documents of `corpora`, in a file of `directory`.

    corpora: documents directories, or the build or run directories around them. seed: that of the signatures that
    they are to be compared with. Raises RequestError when one holds no documents.
    """
    pyarrow = arrow()
    path = directory / "known.parquet"
    texts = [pyarrow.field(name, pyarrow.string()) for name in ("id", "source", "corpus")]
    keys = [pyarrow.field(name, pyarrow.binary()) for name in ("exact", "signature")]
    shingles = pyarrow.field("shingles", pyarrow.list_(pyarrow.uint64()))
    schema = pyarrow.schema([*texts, *keys, shingles])
    count = 0
    files = [
        (str(corpus), documents_dir(corpus) / f"{split}.parquet")
        for corpus in corpora
        for split in ("train", "heldout")
    ]
    with pyarrow.parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        for corpus, file in files:
            for _, table in batches(file, ["id", "source", "text"]):
                rows = [_signed(row, corpus, seed) for row in table.to_pylist()]
                writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema))
                count += len(rows)
    return Known(path, count)


def _signed(row: dict[str, str], corpus: str, seed: int) -> dict[str, Any]:
    from gristmill.data.steps import compared

    exact, shingles, signature = compared(row["text"], seed)
    return {
        "id": row["id"],
        "source": row["source"],
        "corpus": corpus,
        "exact": exact,
        "signature": signature,
        "shingles": shingles,
    }
