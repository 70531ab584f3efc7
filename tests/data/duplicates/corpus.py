"""Part files of documents given by what deduplication compares of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gristmill.data.decisions import Labels, read_labels
from gristmill.data.steps import exact_key
from gristmill.data.text.minhash import functions
from gristmill.data.text.shingles import minhash
from gristmill.data.units import Part


def labels_of(
    directory: Path,
    sets: Sequence[np.ndarray],
    sizes: Sequence[int],
    qualities: Sequence[float] | None = None,
    texts: Sequence[str] | None = None,
    part_rows: int = 1000,
    kinds: Sequence[str] | None = None,
) -> Labels:
    """sets: sorted unique uint64 shingles of each document."""
    directory.mkdir(parents=True, exist_ok=True)
    signed = [minhash(s, *functions(110, 0)).astype("<u4").tobytes() for s in sets]
    parts = []
    for low in range(0, len(sets), part_rows):
        rows = range(low, min(low + part_rows, len(sets)))
        table = pa.table(
            {
                "text": [texts[at] if texts else "" for at in rows],
                "kind": [kinds[at] if kinds else "text" for at in rows],
                "exact": [exact_key(texts[at] if texts else str(at)) for at in rows],
                "group": ["g"] * len(rows),
                "package": [""] * len(rows),
                "drop_reason": [""] * len(rows),
                "size": pa.array([sizes[at] for at in rows], pa.int64()),
                "quality": pa.array(
                    [qualities[at] if qualities else 0.0 for at in rows], pa.float32()
                ),
                "signature": [signed[at] for at in rows],
                "shingles": pa.array([sets[at] for at in rows], pa.list_(pa.uint64())),
            }
        )
        path = directory / f"{low:08}.parquet"
        pq.write_table(table, path)
        parts.append(Part(path, len(rows), len(rows), 0))
    return read_labels(parts)
