"""A document on disk: the columns of `train.parquet`, `heldout.parquet` and `dropped.parquet`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gristmill.errors import RequestError, missing_extra

TEXT_COLUMNS = (
    "id",
    "text",
    "source",
    "url",
    "license",
    "date",
    "meta",
    "kind",
    "group",
    "package",
    "drop_reason",
    "split",
)
FILES = ("train", "heldout", "dropped")
KINDS = ("python", "markdown", "html", "text", "code", "pydoc", "jsonl")


@dataclass(frozen=True, slots=True)
class Document:
    """One row.

    source: what a person reads and a citation shows, e.g. "python3.11/heapq.py" or "notes/a.md".
    url: where it lies: a file:// URI, or "pydoc:NAME" for what Python tells about itself.
    date: ISO time of the file's last change in UTC, or "".
    meta: JSON object with what was decided and from which numbers (see `gristmill data why`).
    kind: one of KINDS.
    group: the mixture group: "stdlib", "topics", "packages", or the name of a folder.
    drop_reason: "" when kept, else the one reason (documented in quality.py, decode.py, build.py).
    split: "train" or "heldout", "" when dropped.
    """

    id: str
    text: str
    source: str
    url: str
    license: str
    date: str
    meta: str
    kind: str
    group: str
    package: str
    drop_reason: str
    split: str

    @property
    def details(self) -> dict[str, Any]:
        return json.loads(self.meta) if self.meta else {}


def document_id(url: str, source: str) -> str:
    """16 hex digits that name a document by where it lies, the same in every build."""
    return hashlib.sha256(f"{url}\0{source}".encode("utf-8", "replace")).hexdigest()[:16]


def arrow() -> Any:
    """The pyarrow module, or the error that names the extra it comes with."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise missing_extra("pyarrow", "data") from None
    return pyarrow


def arrow_schema() -> Any:
    pyarrow = arrow()
    return pyarrow.schema([(name, pyarrow.string()) for name in TEXT_COLUMNS])


def documents(directory: Path | str, part: str = "train") -> Iterator[Document]:
    """The rows of one part ("train", "heldout" or "dropped") of a documents directory, in their order.

    Reads a row group at a time. Raises RequestError when `directory` holds no documents.
    """
    pyarrow = arrow()
    path = documents_dir(directory) / f"{part}.parquet"
    with pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=256, columns=list(TEXT_COLUMNS)):
            for row in batch.to_pylist():
                yield Document(**row)


def documents_dir(directory: Path | str) -> Path:
    """`directory` itself, or the documents inside it when it is a run or a stage directory."""
    directory = Path(directory).expanduser()
    for inside in ("", "documents", "data/documents"):
        if (directory / inside / "train.parquet").is_file():
            return directory / inside
    raise RequestError(
        f"{directory} holds no documents: expected train.parquet there, in documents/ or in "
        "data/documents/. `gristmill data build SOURCE -o DIR` makes them."
    )
