"""What the hits that documents carry mean over the corpus: which hold an evaluation item, and are dropped for it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import numpy as np

from gristmill.data.decisions import Labels
from gristmill.data.duplicates.decontaminate import COMMON, EvalIndex, Hit, matches

TOLD = 5  # items a document's story names


def drop_contaminated(labels: Labels, index: EvalIndex, common: int = COMMON) -> None:
    """Drop the kept documents in which an item of `index` stands; their stories name it, and where it stands.

    common: n-grams in more documents than this are ignored.
    """
    for match in matches(index, _hits(labels), common):
        at = match.document
        told = labels.stories.setdefault(at, {}).setdefault("evaluation_items", [])
        if len(told) < TOLD:
            item = {"set": match.item.set, "item": match.item.id, "share": round(match.share, 3)}
            told.append({**item, "bytes": list(match.spans[0])})
        labels.drop(np.array([at]), "evaluation_item")


def _hits(labels: Labels) -> Iterator[tuple[int, Sequence[Hit]]]:
    kept = np.flatnonzero(labels.kept)
    for where, table in labels.rows(kept, "hits"):
        for at, packed in zip(kept[where].tolist(), table["hits"].to_pylist(), strict=True):
            if packed:
                yield at, [Hit(*hit) for hit in json.loads(packed)]
