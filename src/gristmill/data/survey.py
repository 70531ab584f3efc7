"""The numbers of a curation for its report, from the documents alone: what went where, why, and what it looks like."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gristmill.data.schema import Document, documents_dir
from gristmill.data.summary import SAMPLE_CHARACTERS, Drawn, draw, every_document
from gristmill.data.urls import domain
from gristmill.files import read_object

NEAR = "near.json"  # in a build's work/: duplicates/near.py's summary
SAMPLES = 3  # of each reason, and of what each rule nearly removed
LARGEST = 12  # of licences, domains, languages, clusters


@dataclass(slots=True)
class _Amount:
    documents: int = 0
    bytes: int = 0

    def add(self, size: int) -> None:
        self.documents += 1
        self.bytes += size

    def told(self) -> dict[str, int]:
        return {"documents": self.documents, "bytes": self.bytes}


def _amounts() -> dict[str, _Amount]:
    return defaultdict(_Amount)


@dataclass(slots=True)
class Found:
    """What one pass over the documents collects."""

    total: _Amount = field(default_factory=_Amount)
    kept: _Amount = field(default_factory=_Amount)
    read: dict[str, _Amount] = field(default_factory=_amounts)
    kept_by: dict[str, dict[str, _Amount]] = field(default_factory=lambda: defaultdict(_amounts))
    reasons: dict[str, dict[str, _Amount]] = field(default_factory=lambda: defaultdict(_amounts))
    lengths: Counter[int] = field(default_factory=Counter)
    removed: Counter[str] = field(default_factory=Counter)
    repaired: Counter[str] = field(default_factory=Counter)
    clusters: Counter[tuple[str, str]] = field(default_factory=Counter)
    samples: dict[str, Drawn[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    nearly: dict[str, Drawn[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    nearly_counts: Counter[str] = field(default_factory=Counter)


def survey(directory: Path | str) -> dict[str, Any]:
    """The numbers of the documents in `directory` (a build, or its documents/), see `told`."""
    found = Found()
    for document in every_document(directory):
        count(found, document)
    return told(found, directory)


def told(found: Found, directory: Path | str) -> dict[str, Any]:
    """JSON-able numbers of what was counted of the documents in `directory`.

    sources: per group, documents and bytes found and kept, with the reasons of the rest. lengths: kept
    documents by power of two of their bytes. nearly: rules that kept documents came within 5% of, with samples.
    near: what deduplication told of near duplicates, {} where the build's work/ is gone.
    clusters: the documents of which most copies were dropped. Samples are drawn by a hash of their ids.
    """
    near = documents_dir(directory).parent / "work" / NEAR
    return {
        "found": found.total.told(),
        "kept": found.kept.told(),
        "sources": [_source(found, name) for name in sorted(found.read)],
        "reasons": {
            reason: {
                "documents": sum(a.documents for a in by.values()),
                "bytes": sum(a.bytes for a in by.values()),
                "samples": [sample for _, sample in found.samples[reason]],
            }
            for reason, by in sorted(
                found.reasons.items(),
                key=lambda pair: (-sum(a.documents for a in pair[1].values()), pair[0]),
            )
        },
        "nearly": {
            reason: {"documents": count, "samples": [s for _, s in found.nearly[reason]]}
            for reason, count in sorted(found.nearly_counts.items(), key=lambda p: (-p[1], p[0]))
        },
        **{
            name: _largest(found.kept_by[name])
            for name in ("languages", "licenses", "kinds", "domains")
        },
        "lengths": [[2**power, found.lengths[power]] for power in sorted(found.lengths)],
        "removed": dict(sorted(found.removed.items())),
        "repaired": dict(sorted(found.repaired.items())),
        "near": read_object(near),
        "clusters": [
            {"source": source, "id": id, "copies": count}
            for (id, source), count in sorted(found.clusters.items(), key=lambda p: (-p[1], p[0]))[
                :LARGEST
            ]
        ],
    }


def count(found: Found, document: Document) -> None:
    size = len(document.text.encode())
    story = document.details
    raw = story.get("bytes", 0) or size
    found.total.add(raw)
    found.read[document.group].add(raw)
    if copied := story.get("duplicate_of"):
        found.clusters[copied["id"], copied["source"]] += 1
    if document.drop_reason:
        found.reasons[document.drop_reason][document.group].add(raw)
        why = story.get("decided")
        draw(found.samples[document.drop_reason], document, lambda: _sample(document, why), SAMPLES)
        return
    found.kept.add(size)
    found.lengths[int(math.log2(max(size, 1)))] += 1
    labels = {
        "groups": document.group,
        "languages": story.get("language", {}).get("code", "") or "not told",
        "licenses": document.license or "not stated",
        "kinds": document.kind,
        "domains": domain(document.url),
    }
    for name, label in labels.items():
        if label:
            found.kept_by[name][label].add(size)
    found.removed.update(story.get("removed", {}))
    found.repaired.update(story.get("repaired", {}))
    for near in story.get("nearly", ()):
        found.nearly_counts[near["reason"]] += 1
        draw(
            found.nearly[near["reason"]],
            document,
            lambda near=near: _sample(document, near),
            SAMPLES,
        )


def _source(found: Found, name: str) -> dict[str, Any]:
    dropped = {
        reason: by[name].documents for reason, by in sorted(found.reasons.items()) if name in by
    }
    total, kept = found.kept.bytes, found.kept_by["groups"][name]
    return {
        "source": name,
        "found": found.read[name].told(),
        "kept": kept.told(),
        "share_before": found.read[name].bytes / max(found.total.bytes, 1),
        "share_after": kept.bytes / max(total, 1),
        "dropped": dropped,
    }


def _largest(amounts: dict[str, _Amount]) -> dict[str, dict[str, int]]:
    ordered = sorted(amounts.items(), key=lambda pair: (-pair[1].bytes, pair[0]))
    return {name: amount.told() for name, amount in ordered[:LARGEST]}


def _sample(document: Document, why: Any) -> dict[str, Any]:
    told = {
        "source": document.source,
        "id": document.id,
        "text": document.text[:SAMPLE_CHARACTERS],
    }
    return told | ({"why": why} if why else {})
