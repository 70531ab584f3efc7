"""The data stage: sources to clean, deduplicated, split documents, with every drop and its reason kept.

    units (units.py) -> curated parts (curate.py, steps.py) -> duplicates -> limit -> split -> files (write.py)

Reading order is the order of the sources; "python" is read as stdlib, topics, packages. In a group the order is
the source's own (python_source.py, folder_source.py). It decides what a byte limit cuts off, and which of two
equally good duplicates stays; the number of workers and the clock decide nothing.

What is made on the way lies in `work/`, named by what it follows from: a build that was killed goes on where it
was, and a changed setting makes anew what it touches.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from gristmill.data.card import dataset_card
from gristmill.data.decisions import Labels, keep_within, read_labels
from gristmill.data.duplicates import (
    EvalIndex,
    NearConfig,
    NearSummary,
    cut_passages,
    drop_contaminated,
    drop_exact,
    drop_near,
    drop_repeated,
    drop_same_url,
)
from gristmill.data.execute import executor
from gristmill.data.folder_source import folder_group, group_name
from gristmill.data.gather import Reading, begin, read_more, shares
from gristmill.data.page import curation_page
from gristmill.data.python_source import python_groups
from gristmill.data.schema import arrow
from gristmill.data.sources import Group, Item
from gristmill.data.split import split
from gristmill.data.steps import CurationConfig, curation, evaluation_index
from gristmill.data.summary import Summary, every_document
from gristmill.data.survey import NEAR, Found, count, told
from gristmill.data.write import write_documents
from gristmill.errors import RequestError
from gristmill.files import (
    hash_json,
    listing_hash,
    lock_file,
    write_json,
    write_text,
)
from gristmill.stage import Progress, Result, quiet

# Settings that decide nothing, that paths say better, or that nobody should read.
_NOT_TOLD = {"workers", "executor", "path", "sources", "private_key"}


class BuildConfig(CurationConfig):
    """What to read, how to choose, and (CurationConfig) what each document goes through.

    sources: "python" (the installed Python: standard library and site-packages) or paths of folders and files.
    path: one folder or file, instead of `sources`.
    max_bytes: cleaned bytes kept over everything; sources share it evenly, what one leaves the others may use.
    per_package_bytes: bytes read of one installed package, so that the largest does not take over.
    heldout_fraction: share of the kept bytes that is held out, by package or file; 0 holds out nothing.
    near_duplicate: Jaccard similarity of word 5-grams from which a document is a near duplicate.
    against: documents directories of earlier corpora; what is near one of their documents is left out.
    repeated: "lines" or "paragraphs" that stood in an earlier document are cut out.
    passages: the shortest passage, in bytes, that is cut out where it stood in an earlier document; 0: none.
    crawl_root: the folder below which the files of a list of paths (`warc.paths.gz`) lie; "": beside the list.
    workers: processes that read; the result is the same for any number.
    executor: where they run: a pool of processes on this machine, or Ray (extra [ray]).
    """

    sources: tuple[str, ...] = ("python",)
    path: str = ""
    max_bytes: int | Literal["all"] = 24_000_000
    per_package_bytes: int = Field(1_000_000, gt=0)
    heldout_fraction: float = Field(0.05, ge=0, le=0.5)
    near_duplicate: float = Field(0.8, gt=0, le=1)
    against: tuple[str, ...] = ()
    repeated: tuple[Literal["lines", "paragraphs"], ...] = ()
    passages: int = Field(0, ge=0, le=1000)
    crawl_root: str = ""
    workers: int = Field(2, ge=1, le=256)
    executor: Literal["processes", "ray"] = "processes"


def run(
    config: BuildConfig, inputs: dict[str, Path], out_dir: Path, progress: Progress = quiet
) -> Result:
    """Build `out_dir`/documents/{train,heldout,dropped}.parquet. `inputs` is not used: this is the first stage.

    Raises RequestError when a source is missing, nothing usable is found, or nothing can be held out.
    """
    arrow()  # a missing extra is said before the work, not after
    groups, stage = resolve(config), curation(config)
    out_dir = Path(out_dir)
    work = out_dir / "work"
    (work / "parts").mkdir(parents=True, exist_ok=True)
    limit = float("inf") if config.max_bytes == "all" else float(config.max_bytes)
    readings = [begin(group) for group in groups]
    with (
        lock_file(work / "lock", lambda who: f"another build ({who}) writes {out_dir}"),
        executor(config.executor, config.workers, stage, work / "parts") as execute,
    ):
        labels, near = read_labels([]), NearSummary()
        items = evaluation_index(config)
        while read_more(readings, limit, execute, progress):
            labels, near = _decided(readings, config, items, work)
        if not labels.kept.any():
            raise RequestError(_nothing_usable(labels, config))
        for share, rows in zip(shares(readings, limit), _rows_of(readings), strict=True):
            keep_within(labels, rows, share)
        splits = split(labels, config.heldout_fraction, config.seed)
        directory = out_dir / "documents"
        write_documents(directory, labels, splits, _unread(readings, limit))
        _forget_others(work / "parts", {part.path for part in labels.parts})
        write_json(work / NEAR, asdict(near))
        summary = _reported(out_dir, config)
    return Result({"documents": directory}, summary)


def _reported(out_dir: Path, config: BuildConfig) -> dict[str, Any]:
    """Write the page, and the card that goes where the documents go; returns the summary of the documents."""
    summary, found = Summary(), Found()
    for document in every_document(out_dir):
        summary.add(document)
        count(found, document)
    numbers = told(found, out_dir)
    title = f"Curation of {out_dir.resolve().name}"
    write_text(out_dir / "report.html", curation_page(numbers, title=title))
    settings = config.model_dump(mode="json", exclude_defaults=True, exclude=_NOT_TOLD)
    name = ", ".join(source["source"] for source in numbers["sources"])
    write_text(out_dir / "documents" / "README.md", dataset_card(numbers, settings, name=name))
    return summary.told()


def _decided(
    readings: Sequence[Reading], config: BuildConfig, items: EvalIndex | None, work: Path
) -> tuple[Labels, NearSummary]:
    """What the global stages say about all that was read, and how much each group keeps by it."""
    labels = read_labels([part for reading in readings for part in reading.parts])
    drop_exact(labels)
    drop_same_url(labels)
    against = [Path(name).expanduser() for name in config.against]
    near = drop_near(labels, NearConfig(config.near_duplicate), work, against, config.seed)
    if items is not None:
        drop_contaminated(labels, items)
    for what in config.repeated:
        drop_repeated(labels, work, what)
    if config.passages:
        cut_passages(labels, work, config.passages)
    _name_what_stays(labels)
    for reading, rows in zip(readings, _rows_of(readings), strict=True):
        reading.kept = int(labels.size[rows][labels.kept[rows]].sum())
    return labels, near


def _name_what_stays(labels: Labels) -> None:
    """A copy of a copy is a copy of what the other is a copy of; how like that it is was not measured."""
    of = labels.of
    while len(chained := np.flatnonzero((of >= 0) & (of[of] >= 0))):
        of[chained] = of[of[chained]]
        labels.similarity[chained] = np.nan


def _rows_of(readings: Sequence[Reading]) -> Iterator[slice]:
    """The documents of each group among all of them."""
    start = 0
    for reading in readings:
        end = start + sum(part.rows for part in reading.parts)
        yield slice(start, end)
        start = end


def _unread(readings: Sequence[Reading], limit: float) -> Iterator[tuple[Item, dict[str, Any]]]:
    """What the limit kept from being read: a file once, however many units it was cut into."""
    for reading in readings:
        paths = set()
        for item in reading.unread():
            if item.refused or item.path not in paths:
                paths.add(item.path)
                yield item, {} if item.refused else {"max_bytes": int(limit)}


def _forget_others(parts: Path, used: set[Path]) -> None:
    """Parts of other settings or of files that have changed would pile up."""
    for path in parts.iterdir():
        if path not in used:
            path.unlink()


def resolve(config: BuildConfig) -> list[Group]:
    """The groups that the configuration's sources stand for, listed but not read."""
    if config.path and config.sources not in ((), ("python",)):
        raise RequestError("give data.sources or data.path, not both")
    wanted = (config.path,) if config.path else config.sources
    if not wanted:
        raise RequestError('no source given: name folders or files, or "python"')
    groups: list[Group] = []
    crawl_root = Path(config.crawl_root).expanduser().resolve() if config.crawl_root else None
    if crawl_root is not None and not crawl_root.is_dir():
        raise RequestError(f'crawl_root "{config.crawl_root}" is no folder')
    taken = {"stdlib", "topics", "packages"}
    places: dict[Any, str] = {}
    for source in wanted:
        own = source == "python" or Path(source).expanduser().resolve()
        places.setdefault(own, source)
    for source in places.values():
        if source == "python":
            groups += python_groups(config.seed, config.per_package_bytes)
            continue
        name = base = Path(source).expanduser().resolve().name or "root"
        number = 2
        while group_name(name) in taken:
            name, number = f"{base}-{number}", number + 1
        taken.add(group_name(name))
        groups.append(folder_group(source, name, crawl_root))
    return groups


def source_fingerprint(config: BuildConfig) -> str:
    """Changes when a file of the sources is added, removed or touched: a listing hashed, nothing read.

    Raises RequestError when a source is missing, or nothing in the sources can be read.
    """
    listing = [
        (item.url, item.source, item.size, item.stamp, item.refused)
        for group in resolve(config)
        for item in group.items()
    ]
    reasons = [refused for *_, refused in listing]
    if all(reasons):
        raise RequestError(nothing_usable(reasons, config))
    named = [listing_hash(path) for path in config.files if path.exists()]
    return hash_json([listing, named])


def _nothing_usable(labels: Labels, config: BuildConfig) -> str:
    return nothing_usable([labels.reasons.names[n] for n in labels.reason.tolist()], config)


def nothing_usable(reasons: list[str], config: BuildConfig) -> str:
    named = ", ".join(
        f'"{source}"' for source in ((config.path,) if config.path else config.sources)
    )
    if not reasons:
        return f"nothing in {named}: it is empty"
    listed = ", ".join(f"{reason} {count}" for reason, count in sorted(Counter(reasons).items()))
    return f"nothing usable in {named}: all {len(reasons)} files were left out ({listed})"
