"""Numbers about a documents directory, computed from its files alone."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

from gristmill.data.schema import FILES, Document, documents

SAMPLES_KEPT = 8
SAMPLES_PER_REASON = 1
SAMPLE_CHARACTERS = 600


def summarize(directory: Path | str) -> dict[str, Any]:
    """Groups, drop reasons, splits, what was removed, and samples of kept and dropped texts.

    In "groups", files and bytes count all that was found on disk (also what was never read); documents
    counts what was read to a text; kept_bytes is cleaned text. Sample texts are drawn by hash of the id.
    """
    groups: dict[str, dict[str, Any]] = {}
    packages: dict[str, set[str]] = {}
    reasons: dict[str, Counter[str]] = {}
    splits = {name: {"documents": 0, "bytes": 0} for name in FILES[:2]}
    removed: Counter[str] = Counter()
    sampled: dict[str, list[tuple[str, Document]]] = {}
    for part in FILES:
        for document in documents(directory, part):
            size = len(document.text.encode())
            meta = document.details
            group = groups.setdefault(document.group, _empty_group(document.group))
            group["files"] += 1
            group["bytes"] += meta.get("bytes", 0) or size
            group["documents"] += bool(document.text)
            if document.drop_reason:
                reason = reasons.setdefault(document.drop_reason, Counter())
                reason["documents"] += 1
                reason["bytes"] += meta.get("bytes", 0) or size
                _draw(sampled, f"-{document.drop_reason}", document, SAMPLES_PER_REASON)
                continue
            group["kept_documents"] += 1
            group["kept_bytes"] += size
            packages.setdefault(document.group, set()).add(document.package)
            splits[document.split]["documents"] += 1
            splits[document.split]["bytes"] += size
            removed.update(meta.get("removed", {}))
            _draw(sampled, document.group, document, SAMPLES_KEPT)
    for name, group in groups.items():
        group["packages"] = len(packages.get(name, set()) - {""})
    return {
        "groups": [groups[name] for name in sorted(groups)],
        "drop_reasons": {
            name: {"documents": reasons[name]["documents"], "bytes": reasons[name]["bytes"]}
            for name in sorted(reasons, key=lambda name: (-reasons[name]["documents"], name))
        },
        "splits": splits,
        "removed": dict(sorted(removed.items())),
        "samples": _samples(sampled),
    }


def _empty_group(name: str) -> dict[str, Any]:
    counts = ("files", "documents", "bytes", "kept_documents", "kept_bytes", "packages")
    return {"group": name, **dict.fromkeys(counts, 0)}


def _draw(
    sampled: dict[str, list[tuple[str, Document]]], name: str, document: Document, count: int
) -> None:
    if not document.text.strip():
        return
    drawn = sampled.setdefault(name, [])
    drawn.append((hashlib.sha256(document.id.encode()).hexdigest(), document))
    drawn.sort(key=lambda pair: pair[0])
    del drawn[count:]


def _samples(sampled: dict[str, list[tuple[str, Document]]]) -> dict[str, list[dict[str, str]]]:
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
