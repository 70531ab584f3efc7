"""Plain texts out of whatever a person names: documents of a build, tables, or files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from gristmill.data.folder_source import folder_group
from gristmill.data.read import read
from gristmill.data.schema import documents
from gristmill.errors import RequestError


def texts(paths: Iterable[Path]) -> Iterator[str]:
    """The kept training texts of a build, or all texts of the files and folders, in their order.

    Raises RequestError for a path that is not there or holds no text.
    """
    for path in paths:
        found = False
        for text in _texts(path):
            found = True
            yield text
        if not found:
            raise RequestError(f"{path} holds no text")


def _texts(path: Path) -> Iterator[str]:
    if path.is_dir():
        try:
            yield from (document.text for document in documents(path))
            return
        except RequestError:
            pass  # an ordinary folder
    for item in folder_group(str(path), path.name).items():
        if not item.refused:
            yield from (raw.text for raw in read(item) if raw.text.strip())
