"""Numbers about a documents directory, computed from its files alone."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from gristmill.data.schema import FILES, Document, documents

SAMPLES_KEPT = 8
SAMPLES_PER_REASON = 1
SAMPLE_CHARACTERS = 600

T = TypeVar("T")
Drawn = list[tuple[str, T]]  # (hash of a document's id, its sample), sorted


def summarize(directory: Path | str) -> dict[str, Any]:
    """The summary of a documents directory, see `Summary`."""
    summary = Summary()
    for document in every_document(directory):
        summary.add(document)
    return summary.told()


def every_document(directory: Path | str) -> Iterator[Document]:
    for part in FILES:
        yield from documents(directory, part)


@dataclass(slots=True)
class Summary:
    """Groups, drop reasons, splits, what was removed, and samples of kept and dropped texts.

    In "groups", files and bytes count all that was found on disk (also what was never read); documents
    counts what was read to a text; kept_bytes is cleaned text. Sample texts are drawn by hash of the id.
    """

    groups: dict[str, dict[str, Any]] = field(default_factory=dict)
    packages: dict[str, set[str]] = field(default_factory=dict)
    reasons: dict[str, Counter[str]] = field(default_factory=dict)
    splits: dict[str, dict[str, int]] = field(
        default_factory=lambda: {name: {"documents": 0, "bytes": 0} for name in FILES[:2]}
    )
    removed: Counter[str] = field(default_factory=Counter)
    sampled: dict[str, Drawn[Document]] = field(default_factory=lambda: defaultdict(list))

    def add(self, document: Document) -> None:
        size = len(document.text.encode())
        meta = document.details
        found = meta.get("bytes", 0) or size
        group = self.groups.setdefault(document.group, _empty_group(document.group))
        group["files"] += 1
        group["bytes"] += found
        group["documents"] += bool(document.text)
        if document.drop_reason:
            reason = self.reasons.setdefault(document.drop_reason, Counter())
            reason["documents"] += 1
            reason["bytes"] += found
            dropped = self.sampled[f"-{document.drop_reason}"]
            draw(dropped, document, lambda: document, SAMPLES_PER_REASON)
            return
        group["kept_documents"] += 1
        group["kept_bytes"] += size
        self.packages.setdefault(document.group, set()).add(document.package)
        self.splits[document.split]["documents"] += 1
        self.splits[document.split]["bytes"] += size
        self.removed.update(meta.get("removed", {}))
        draw(self.sampled[document.group], document, lambda: document, SAMPLES_KEPT)

    def told(self) -> dict[str, Any]:
        """JSON-able."""
        for name, group in self.groups.items():
            group["packages"] = len(self.packages.get(name, set()) - {""})
        return {
            "groups": [self.groups[name] for name in sorted(self.groups)],
            "drop_reasons": {
                name: {"documents": count["documents"], "bytes": count["bytes"]}
                for name, count in sorted(
                    self.reasons.items(), key=lambda pair: (-pair[1]["documents"], pair[0])
                )
            },
            "splits": self.splits,
            "removed": dict(sorted(self.removed.items())),
            "samples": _samples(self.sampled),
        }


def _empty_group(name: str) -> dict[str, Any]:
    counts = ("files", "documents", "bytes", "kept_documents", "kept_bytes", "packages")
    return {"group": name, **dict.fromkeys(counts, 0)}


def draw(drawn: Drawn[T], document: Document, sample: Callable[[], T], most: int) -> None:
    """Keep a document's sample among the `most` with the lowest hashes of their ids; one without text gives none."""
    if not document.text.strip():
        return
    key = hashlib.sha256(document.id.encode()).hexdigest()
    if len(drawn) == most and key > drawn[-1][0]:
        return
    drawn.append((key, sample()))
    drawn.sort(key=lambda pair: pair[0])
    del drawn[most:]


def _samples(sampled: dict[str, Drawn[Document]]) -> dict[str, list[dict[str, str]]]:
    """Kept ones take turns over the groups, dropped ones come one a reason."""
    kept_groups = [sampled[name] for name in sorted(sampled) if not name.startswith("-")]
    turns = [
        group[turn] for turn in range(SAMPLES_KEPT) for group in kept_groups if turn < len(group)
    ]
    kept = [
        {"source": document.source, "text": document.text[:SAMPLE_CHARACTERS]}
        for _, document in turns[:SAMPLES_KEPT]
    ]
    dropped = [
        {
            "source": document.source,
            "reason": document.drop_reason,
            "text": document.text[:SAMPLE_CHARACTERS],
        }
        for name in sorted(sampled)
        if name.startswith("-")
        for _, document in sampled[name]
    ]
    return {"kept": kept, "dropped": dropped}
