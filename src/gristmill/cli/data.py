"""`gristmill data`: build documents from sources, show their numbers, and explain any single decision."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gristmill.cli.bar import Bar
from gristmill.cli.console import out, show_json
from gristmill.cli.mix import mix
from gristmill.cli.story import explain, find, record
from gristmill.data import BuildConfig, documents_dir, summarize
from gristmill.errors import RequestError

app = typer.Typer(no_args_is_help=True, help="Build and explain the documents a model learns from.")

_Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]


_INPUT, _RULES, _COPIES = "What is read", "What is kept", "Duplicates and evaluation sets"
_Files = list[Path] | None


def _option(help: str, panel: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, **more)


@app.command(
    epilog="Examples: `gristmill data build ~/notes book.epub -o docs`, "
    "`gristmill data build crawl/*.warc.gz -o web --language en --block-urls adult.txt`"
)
def build(
    sources: Annotated[
        list[str],
        typer.Argument(help='Folders, files, dumps, or "python" for the installed Python.'),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Where documents/ is written.")],
    max_bytes: Annotated[
        int | None, _option("Cleaned bytes to keep; all by default.", _INPUT, min=1)
    ] = None,
    per_package_bytes: Annotated[
        int, _option("Bytes to read of one installed package.", _INPUT, min=1)
    ] = 1_000_000,
    crawl_root: Annotated[
        Path | None, _option("Where the files of a .paths list lie; beside it by default.", _INPUT)
    ] = None,
    profile: Annotated[
        str, _option("Rules to judge all by: web, docs, code, book, …", _RULES)
    ] = "auto",
    limit: Annotated[
        list[str] | None, _option("SIGNAL=NUMBER or SIGNAL=off: another limit of a rule.", _RULES)
    ] = None,
    language: Annotated[
        list[str] | None, _option("Keep documents in this language (ISO 639).", _RULES)
    ] = None,
    block_urls: Annotated[_Files, _option("A file of domains to leave out.", _RULES)] = None,
    allow_urls: Annotated[_Files, _option("A file of the only domains to keep.", _RULES)] = None,
    url_words: Annotated[
        _Files, _option("A file of words that no address may have.", _RULES)
    ] = None,
    block_words: Annotated[
        _Files, _option("A file of words that no document may hold.", _RULES)
    ] = None,
    allow_license: Annotated[
        list[str] | None, _option("Keep these licences only: an SPDX id, or CC-BY-*.", _RULES)
    ] = None,
    deny_license: Annotated[list[str] | None, _option("Leave these licences out.", _RULES)] = None,
    private: Annotated[
        str, _option("Addresses, keys, numbers: remove, replace, flag or keep.", _RULES)
    ] = "remove",
    quality: Annotated[Path | None, _option("A quality classifier's directory.", _RULES)] = None,
    min_quality: Annotated[
        float, _option("The probability to keep from.", _RULES, min=0, max=1)
    ] = 0.5,
    toxicity: Annotated[Path | None, _option("A safety classifier's directory.", _RULES)] = None,
    max_toxicity: Annotated[
        float, _option("The probability to keep up to.", _RULES, min=0, max=1)
    ] = 0.5,
    near_duplicate: Annotated[
        float, _option("Jaccard similarity of a near duplicate.", _COPIES, min=0.01, max=1)
    ] = 0.8,
    against: Annotated[
        _Files, _option("Documents of an earlier corpus: leave out what is near them.", _COPIES)
    ] = None,
    repeated: Annotated[
        list[str] | None, _option("Cut lines, or paragraphs, that stood before.", _COPIES)
    ] = None,
    passages: Annotated[
        int, _option("Cut passages of this many bytes that stood before.", _COPIES, min=0, max=1000)
    ] = 0,
    decontaminate: Annotated[
        _Files, _option("An evaluation set whose items are left out.", _COPIES)
    ] = None,
    heldout: Annotated[float, typer.Option(min=0, max=0.5, help="Share held out.")] = 0.05,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Reading processes.")] = 2,
    executor: Annotated[str, typer.Option(help="processes, or ray (extra [ray]).")] = "processes",
    as_json: _Json = False,
) -> None:
    """Read SOURCES into clean, deduplicated documents, split into train and heldout.

    Reads folders of text, code, HTML and tables; web archives, Wikipedia and Stack Exchange dumps, LaTeX, EPUB, PDF,
    chat exports, git repositories. Writes OUTPUT/documents/train.parquet, heldout.parquet, dropped.parquet (what was
    left out, and why), a dataset card, and OUTPUT/report.html.
    """
    from gristmill.data.build import run

    config = checked(
        BuildConfig,
        sources=sources,
        max_bytes=max_bytes or "all",
        per_package_bytes=per_package_bytes,
        crawl_root=str(crawl_root or ""),
        profile=profile,
        limits=dict(_limit(text) for text in limit or ()),
        languages=language or (),
        block_urls=_paths(block_urls),
        allow_urls=_paths(allow_urls),
        url_words=_paths(url_words),
        block_words=_paths(block_words),
        allow_licenses=allow_license or (),
        deny_licenses=deny_license or (),
        private=private,
        quality=str(quality or ""),
        min_quality=min_quality,
        toxicity=str(toxicity or ""),
        max_toxicity=max_toxicity,
        near_duplicate=near_duplicate,
        against=_paths(against),
        repeated=repeated or (),
        passages=passages,
        decontaminate=_paths(decontaminate),
        heldout_fraction=heldout,
        seed=seed,
        workers=workers,
        executor=executor,
    )
    if output.exists() and not output.is_dir():
        raise RequestError(f"{output} is a file; -o names a directory")
    with Bar() as view:
        view.begin("reading")
        result = run(config, {}, output, view.progress)
    if as_json:
        show_json({"documents": str(result.outputs["documents"]), **result.metrics})
        return
    _show(result.metrics)
    out.print(f"\nDocuments: {result.outputs['documents']}", soft_wrap=True)
    out.print(f"Report:    {output / 'report.html'}", soft_wrap=True)
    out.print(
        f"Why was a file kept or dropped?  gristmill data why {output} SOURCE", soft_wrap=True
    )


def checked(config: type[BuildConfig], **given: Any) -> BuildConfig:
    """The settings, or the one complaint about them that says most."""
    from pydantic import ValidationError

    try:
        return config(**given)
    except ValidationError as error:
        first = error.errors()[0]
        name = "--" + str(first["loc"][0]).replace("_", "-")
        raise RequestError(f"{name}: {first['msg']}, not {first['input']!r}") from None


def _paths(files: _Files) -> list[str]:
    return [str(path) for path in files or ()]


def _limit(text: str) -> tuple[str, float | str]:
    name, _, value = text.partition("=")
    try:
        return name, value if value == "off" else float(value)
    except ValueError:
        raise RequestError(f'--limit "{text}" is neither SIGNAL=NUMBER nor SIGNAL=off') from None


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
        show_json([record(row) for row in found])
        return
    for number, row in enumerate(found):
        if number:
            out.print()
        for name, value in explain(row):
            out.print(f"[bold]{name:<15}[/bold]", end="", soft_wrap=True)
            out.print(value, markup=False, soft_wrap=True)


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
    if metrics["removed"]:
        counts = ", ".join(f"{count:,} {kind}" for kind, count in metrics["removed"].items())
        out.print(f"private data taken out: {counts}")


@app.command(epilog="Example: `gristmill data report docs -o curation.html`")
def report(
    directory: Annotated[Path, typer.Argument(help="Documents, build or run directory.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The page; by default in DIRECTORY.")
    ] = None,
    as_json: _Json = False,
) -> None:
    """Write an HTML page of what was found, kept, changed and left out, with samples of each reason."""
    from gristmill.data.page import curation_page
    from gristmill.data.survey import survey
    from gristmill.files import write_text

    numbers = survey(directory)
    if as_json:
        show_json(numbers)
        return
    path = output or directory / "report.html"
    name = documents_dir(directory).resolve().parent.name
    write_text(path, curation_page(numbers, title=f"Curation of {name}"))
    out.print(f"Report: {path}", soft_wrap=True)


app.command(
    epilog="Example: `gristmill data mix runs/pyhelp --target topics --runs 24`",
)(mix)

_classifier = typer.Typer(no_args_is_help=True, help="Classifiers of documents, trained here.")
app.add_typer(_classifier, name="classifier")


@_classifier.command(
    "train",
    epilog="Example: `gristmill data classifier train --good wiki/ --bad crawl/ -o quality`",
)
def train_classifier(
    good: Annotated[
        list[Path], typer.Option(help="Documents (a build, or JSONL, Parquet) to be like.")
    ],
    bad: Annotated[list[Path], typer.Option(help="Documents to be unlike: ordinary, or harmful.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The classifier's directory.")],
    seed: Annotated[int, typer.Option(min=0)] = 0,
    as_json: _Json = False,
) -> None:
    """Train a classifier on good against bad documents, and show how it does on texts it has not seen."""
    from gristmill.data.classify import train
    from gristmill.data.texts import texts

    classifier = train(texts(good), texts(bad), output, seed)
    if as_json:
        show_json({"classifier": str(output), **classifier.about})
        return
    held = classifier.about["report"]
    for name, value in held.items():
        if isinstance(value, int | float):
            out.print(f"{name.replace('_', ' '):<24}{value:.4g}")
    out.print(f"\nUse it:  gristmill data build SOURCE -o DIR --quality {output}", soft_wrap=True)
