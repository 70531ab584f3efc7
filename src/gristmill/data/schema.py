"""A document on disk: the columns of `train.parquet`, `heldout.parquet` and `dropped.parquet`."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gristmill.data.sources import Item, Raw
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
KINDS += ("web", "wiki", "book", "paper", "qa", "chat")


@dataclass(frozen=True, slots=True)
class Document:
    """One row.

    source: what a person reads and a citation shows, e.g. "python3.11/heapq.py" or "notes/a.md".
    url: where it lies: a file:// URI, or "pydoc:NAME" for what Python tells about itself.
    date: ISO time of the file's last change in UTC, or "".
    meta: JSON object with what was decided and from which numbers (see `gristmill data why`).
    kind: one of KINDS.
    group: the mixture group: "stdlib", "topics", "packages", or the name of a folder.
    drop_reason: "" when kept, else the one reason: of the readers (their docstrings), of steps.py, of the rules
        (rules/profiles.py), of duplicates/, "failed" (a text that tripped the program), "over_max_bytes".
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


_LONE = re.compile("[\ud800-\udfff]")


def sound(text: str) -> str:
    """`text` with U+FFFD for single surrogates, which JSON can say and Arrow's strings cannot hold."""
    return text if text.isascii() else _LONE.sub("\ufffd", text)


def raw_schema() -> Any:
    """What readers give to curation."""
    pyarrow = arrow()
    names = ("source", "url", "license", "date", "kind", "group", "package", "title")
    texts = [(name, pyarrow.string()) for name in (*names, "text", "charset", "reason", "detail")]
    return pyarrow.schema([*texts, ("html", pyarrow.binary()), ("bytes", pyarrow.int64())])


def raw_batch(rows: Sequence[tuple[Item, Raw]]) -> Any:
    """A record batch of `raw_schema` of what was read, each document with its file's labels where it has none."""
    columns = [
        {
            "source": sound(raw.source),
            "url": sound(raw.url or item.url),
            "license": sound(raw.license or item.license),
            "date": sound(raw.date or item.date),
            "kind": raw.kind or item.kind,
            "group": item.group,
            "package": item.package,
            "title": sound(raw.title),
            "text": sound(raw.text),
            "charset": sound(raw.charset),
            "reason": raw.reason,
            "detail": json.dumps(raw.detail, default=str),
            "html": raw.html,
            # of a file with one document its size on disk, of a record in one its own
            "bytes": item.size
            if raw.source == item.source
            else len(raw.html or raw.text.encode("utf-8", "replace")),
        }
        for item, raw in rows
    ]
    return arrow().RecordBatch.from_pylist(columns, schema=raw_schema())


def part_schema() -> Any:
    """A document in a part file: its columns but the split, and what the global stages compare.

    size: bytes of `text`. unit: what is held out as one (see split.py). quality: of two copies the higher stays.
    exact, url_key: 16 bytes that are equal for equal texts and pages. signature: MinHash, uint32 values.
    shingles: sorted unique hashes of word n-grams. hits: JSON of the n-grams of evaluation items in it, see
    duplicates/decontaminate.py. All that is compared is empty for a dropped document.
    """
    pyarrow = arrow()
    names = [name for name in TEXT_COLUMNS if name != "split"]
    compared = [
        ("size", pyarrow.int64()),
        ("unit", pyarrow.string()),
        ("quality", pyarrow.float32()),
        ("exact", pyarrow.binary()),
        ("url_key", pyarrow.binary()),
        ("signature", pyarrow.binary()),
        ("shingles", pyarrow.list_(pyarrow.uint64())),
        ("hits", pyarrow.string()),
    ]
    return pyarrow.schema([*((name, pyarrow.string()) for name in names), *compared])


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
    if any((directory / "work" / "parts").glob("*.parquet")):
        raise RequestError(
            f"the build in {directory} did not end; run its command again, and it goes on"
        )
    raise RequestError(
        f"{directory} holds no documents: expected train.parquet there, in documents/ or in "
        "data/documents/. `gristmill data build SOURCE -o DIR` makes them."
    )
