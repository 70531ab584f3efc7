"""Documents made of the running interpreter's own standard library: real text with `inspect` as its oracle."""

from __future__ import annotations

import hashlib
import sysconfig
from pathlib import Path

from gristmill.data.schema import TEXT_COLUMNS, Document, arrow, arrow_schema

STDLIB = Path(sysconfig.get_paths()["stdlib"])
MODULES = (
    *(
        "heapq",
        "textwrap",
        "statistics",
        "shlex",
        "fnmatch",
        "json",
        "asyncio",
        "concurrent",
        "email",
    ),
    *("collections", "logging", "calendar", "string", "difflib", "csv", "configparser", "pathlib"),
    *("random", "tempfile", "zipfile", "argparse", "queue", "sched"),
)


def document(text: str, source: str, **fields: str) -> Document:
    """A row with `text`; split "train" and kind "python" unless said otherwise."""
    row = dict.fromkeys(TEXT_COLUMNS, "") | {
        "id": hashlib.sha256(source.encode()).hexdigest()[:16],
        "text": text,
        "source": source,
        "meta": "{}",
        "kind": "python",
        "group": "stdlib",
        "package": "p",
        "split": "train",
    }
    return Document(**(row | fields))


def stdlib_documents(modules: tuple[str, ...] | list[str] = MODULES) -> list[Document]:
    """The source files of these modules and packages; every seventh file is held out."""
    found = []
    for name in modules:
        paths = sorted((STDLIB / name).rglob("*.py")) or [STDLIB / f"{name}.py"]
        for path in paths:
            relative = path.relative_to(STDLIB).as_posix()
            if "/test/" not in relative and "windows_" not in relative:  # not importable elsewhere
                text = path.read_text(encoding="utf-8")
                split = (
                    "heldout" if hashlib.sha256(relative.encode()).digest()[0] % 7 == 0 else "train"
                )
                found.append(document(text, f"python3.x/{relative}", package=name, split=split))
    return found


def topic_documents() -> list[Document]:
    from pydoc_data.topics import topics

    return [
        document(topics[name], f"python3.x/topics/{name}", kind="pydoc", group="topics")
        for name in sorted(topics)
    ]


def write_documents(directory: Path, rows: list[Document]) -> Path:
    """A documents directory as the data stage leaves it."""
    pyarrow = arrow()
    directory.mkdir(parents=True, exist_ok=True)
    for part in ("train", "heldout", "dropped"):
        of_part = [
            {name: getattr(row, name) for name in TEXT_COLUMNS} for row in rows if row.split == part
        ]
        table = pyarrow.Table.from_pylist(of_part, schema=arrow_schema())
        pyarrow.parquet.write_table(table, directory / f"{part}.parquet")
    return directory
