"""The documents of an earlier build as a source: what it kept to train on, as it was kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from gristmill.data.sources.item import Raw, printable


def training_documents(root: Path) -> Path | None:
    """The train.parquet of a build, or of its documents/; None for any other folder.

    What the build dropped stays dropped, and what it held out stays unseen.
    """
    for place in (root / "documents", root):
        if all((place / f"{part}.parquet").is_file() for part in ("train", "heldout", "dropped")):
            return place / "train.parquet"
    return None


def read_documents(path: Path) -> Iterator[Raw]:
    """The rows of a train.parquet, with their kind, licence, address and date."""
    from gristmill.data.schema import documents

    name = printable(path.name)
    for row in documents(path.parent):
        yield Raw(
            f"{name}/{row.source}",
            row.text,
            url=row.url,
            date=row.date,
            license=row.license,
            kind=row.kind,
        )
