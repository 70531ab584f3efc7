"""`gristmill data`: build documents from sources, show their numbers, and explain any single decision."""

from __future__ import annotations

import difflib
import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from gristmill.cli.console import err, out, show_json
from gristmill.data import BuildConfig, Document, documents, documents_dir, summarize
from gristmill.data.schema import FILES
from gristmill.errors import RequestError

app = typer.Typer(no_args_is_help=True, help="Build and explain the documents a model learns from.")

_Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]


@app.command(
    epilog="Examples: `gristmill data build python -o docs`, `gristmill data build ~/notes book.md -o docs`"
)
def build(
    sources: Annotated[
        list[str], typer.Argument(help='Folders, files, or "python" for the installed Python.')
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Where documents/ is written.")],
    max_bytes: Annotated[int, typer.Option(min=1, help="Cleaned bytes to keep.")] = 24_000_000,
    per_package_bytes: Annotated[
        int, typer.Option(min=1, help="Bytes to read of one installed package.")
    ] = 1_000_000,
    heldout: Annotated[float, typer.Option(min=0, max=0.5, help="Share held out.")] = 0.05,
    near_duplicate: Annotated[
        float, typer.Option(min=0.01, max=1, help="Jaccard similarity that makes a near duplicate.")
    ] = 0.8,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Reading processes.")] = 2,
    as_json: _Json = False,
) -> None:
    """Read SOURCES into clean, deduplicated documents, split into train and heldout.

    Writes OUTPUT/documents/train.parquet, heldout.parquet and dropped.parquet (what was left out, and why).
    """
    from gristmill.data.build import run

    config = BuildConfig(
        sources=tuple(sources),
        max_bytes=max_bytes,
        per_package_bytes=per_package_bytes,
        heldout_fraction=heldout,
        near_duplicate=near_duplicate,
        seed=seed,
        workers=workers,
    )
    if output.exists() and not output.is_dir():
        raise RequestError(f"{output} is a file; -o names a directory")
    with _progress() as progress:
        result = run(config, {}, output, progress)
    if as_json:
        show_json({"documents": str(result.outputs["documents"]), **result.metrics})
        return
    _show(result.metrics)
    out.print(f"\nDocuments: {result.outputs['documents']}", soft_wrap=True)
    out.print(
        f"Why was a file kept or dropped?  gristmill data why {output} SOURCE", soft_wrap=True
    )


@app.command(epilog="Example: `gristmill data stats runs/pyhelp`")
def stats(
    directory: Annotated[Path, typer.Argument(help="Documents, build or run directory.")],
    as_json: _Json = False,
) -> None:
    """Show what was found, kept and dropped, by group and by reason."""
    metrics = summarize(directory)
    if as_json:
        show_json(metrics)
    else:
        _show(metrics)


@app.command(
    epilog="Examples: `gristmill data why docs python3.11/heapq.py`, `gristmill data why docs notes/a.md --json`"
)
def why(
    directory: Annotated[Path, typer.Argument(help="Documents, build or run directory.")],
    document: Annotated[
        str, typer.Argument(help="A document's id, its source, or the end of its source or path.")
    ],
    as_json: _Json = False,
) -> None:
    """Tell everything that was decided about one document, and from which numbers."""
    found = find(directory, document)
    if as_json:
        show_json([_record(row) for row in found])
        return
    for number, row in enumerate(found):
        if number:
            out.print()
        for name, value in _explain(row):
            out.print(f"[bold]{name:<13}[/bold]", end="", soft_wrap=True)
            out.print(value, markup=False, soft_wrap=True)


def find(directory: Path, wanted: str) -> list[Document]:
    """The documents that `wanted` names: exactly, else by the end of source or path.

    Raises RequestError when there is none (with the nearest source) or more than 20.
    """
    rows = [row for part in FILES for row in documents(directory, part)]
    path = Path(wanted).expanduser()
    url = path.resolve().as_uri() if path.exists() else ""
    tail = "/" + wanted.lstrip("/")
    for matches in (
        lambda row: wanted in (row.id, row.source, row.url),
        lambda row: row.url == url,
        lambda row: row.source.startswith(f"{wanted}:"),  # rows of a JSONL file
        lambda row: row.source.endswith(tail),
    ):
        if found := [row for row in rows if matches(row)]:
            break
    else:
        # The nearest source, or the source whose file name is nearest: people type either.
        names = {row.source.rsplit("/", 1)[-1]: row.source for row in reversed(rows)}
        names |= {row.source: row.source for row in rows}
        close = difflib.get_close_matches(wanted, names, n=1, cutoff=0.6)
        hint = f' Did you mean "{names[close[0]]}"?' if close else ""
        raise RequestError(f'no document "{wanted}" in {documents_dir(directory)}.{hint}')
    if len(found) > 20:
        raise RequestError(
            f'"{wanted}" names {len(found)} documents, for example {found[0].source} and {found[1].source}. '
            "Give more of the source, or an id."
        )
    return found


def _record(row: Document) -> dict[str, Any]:
    columns = (
        "id",
        "source",
        "url",
        "license",
        "date",
        "kind",
        "group",
        "package",
        "drop_reason",
        "split",
    )
    return {
        **{name: getattr(row, name) for name in columns},
        "kept": not row.drop_reason,
        "characters": len(row.text),
        "meta": row.details,
    }


def _explain(row: Document) -> list[tuple[str, str]]:
    """(label, value) lines for a person."""
    meta = row.details
    lines = [("document", f"{row.source}  (id {row.id})"), ("from", row.url)]
    if row.date:
        lines.append(("changed", row.date))
    lines.append(("licence", row.license or "not stated"))
    lines.append(
        ("kind", row.kind + (f", read as {meta['encoding']}" if "encoding" in meta else ""))
    )
    if "not_python" in meta:
        lines.append(("", f"does not parse as Python: {meta['not_python']}"))
    lines.append(("group", row.group + (f", package {row.package}" if row.package else "")))
    lines.append(
        ("size", f"{meta.get('bytes', 0):,} bytes on disk, {len(row.text.encode()):,} cleaned")
    )
    removed = meta.get("removed", {})
    if any(removed.values()):
        lines.append(
            ("removed", f"{removed['emails']} e-mail addresses, {removed['secrets']} secrets")
        )
    decided = meta.get("decided", {})
    if row.drop_reason:
        lines.append(("decision", f"dropped: {row.drop_reason}"))
        if decided:
            lines.append(
                (
                    "because",
                    f"{decided['signal']} is {decided['value']:g}, kept if {decided['limit']}",
                )
            )
    else:
        unit = f", split by {meta['split_by']}" if "split_by" in meta else ""
        lines.append(("decision", f"kept, in {row.split}{unit}"))
    if "duplicate_of" in meta:
        first = meta["duplicate_of"]
        lines.append(
            ("copy of", f"{first['source']}  (id {first['id']}), which is read first and stays")
        )
    known = {
        "bytes",
        "encoding",
        "not_python",
        "removed",
        "decided",
        "duplicate_of",
        "signals",
        "split_by",
    }
    lines += [(name.replace("_", " "), _plain(meta[name])) for name in sorted(meta.keys() - known)]
    for name, value in meta.get("signals", {}).items():
        lines.append(("measured", f"{name} {value:g}{_limits(row.kind, name)}"))
    return lines


def _limits(kind: str, signal: str) -> str:
    from gristmill.data.quality import RULES

    rules = [rule for rule in RULES[kind] if rule.signal == signal]
    return "".join(f"  (kept if {rule.limit}, else {rule.reason})" for rule in rules)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _progress() -> Any:
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    class Bar(Progress):
        """A rich progress bar that is called as a stage's listener."""

        def __call__(self, done: float, total: float, unit: str = "", **values: Any) -> None:
            if not self.tasks:
                self.add_task("reading", total=total)
            shown = " ".join(f"{name} {value}" for name, value in values.items())
            self.update(
                self.tasks[0].id, completed=done, total=total, description=f"reading {shown}"
            )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
    )
    return Bar(*columns, console=err, transient=True, disable=bool(os.environ.get("NO_PROGRESS")))


def _show(metrics: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table(title="Documents", title_justify="left")
    for name in ("group", "files found", "bytes found", "read", "kept", "kept bytes", "packages"):
        table.add_column(name, justify="left" if name == "group" else "right")
    for group in metrics["groups"]:
        counts = ("files", "bytes", "documents", "kept_documents", "kept_bytes", "packages")
        table.add_row(group["group"], *(f"{group[name]:,}" for name in counts))
    out.print(table)
    if metrics["drop_reasons"]:
        table = Table(title="Left out", title_justify="left")
        table.add_column("reason")
        table.add_column("documents", justify="right")
        table.add_column("bytes", justify="right")
        for reason, count in metrics["drop_reasons"].items():
            table.add_row(reason, f"{count['documents']:,}", f"{count['bytes']:,}")
        out.print(table)
    for name, split in metrics["splits"].items():
        out.print(f"{name}: {split['documents']:,} documents, {split['bytes']:,} bytes")
    removed = metrics["removed"]
    out.print(f"removed: {removed['emails']:,} e-mail addresses, {removed['secrets']:,} secrets")
