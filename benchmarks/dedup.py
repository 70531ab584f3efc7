"""Near deduplication beside datatrove's MinHash pipeline, from JSONL to JSONL without copies, one core each.

    python -m benchmarks.dedup [--documents 20000] [--rounds 3]

Documents are pages of the installed Python's sources, a third of them edited copies of the one before.
datatrove runs its four stages with its own settings (14 bands of 8, word 5-grams), ours 22 bands of 5 with
verification. Seconds of processor time count, so that other work on the machine does not, and wall seconds are
written down beside them. The quality of both is that against all pairs at a Jaccard of 0.8 of our shingles: both
lower the case and leave punctuation out, but their words are spaCy's and ours lie between white space.
"""

from __future__ import annotations

import argparse
import json
import platform
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from random import Random
from statistics import median
from time import perf_counter, process_time
from typing import Any

import numpy as np

from benchmarks.engine.report import Ratio, finish
from gristmill.data.decisions import read_labels
from gristmill.data.duplicates import NearConfig, drop_near
from gristmill.data.duplicates.clusters import leaders
from gristmill.data.duplicates.similar import jaccard_pairs
from gristmill.data.schema import arrow
from gristmill.data.text import shingles, signature, words_of
from gristmill.data.units import Part
from gristmill.files import write_json

THRESHOLD = 0.8
GOAL, RESULT = 10.0, Path("benchmarks/results/dedup.json")
PAGE_LINES, PART_ROWS = 40, 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "in"
        source.mkdir()
        texts = pages(chosen.documents)
        with open(source / "pages.jsonl", "w") as file:
            for at, text in enumerate(texts):
                file.write(json.dumps({"id": str(at), "text": text}) + "\n")
        runs: dict[str, list[float]] = {"ours": [], "datatrove": []}
        wall: dict[str, list[float]] = {"ours": [], "datatrove": []}
        kept: dict[str, set[int]] = {}
        for number in range(chosen.rounds):
            for name, run in {"ours": ours, "datatrove": datatrove}.items():
                out = Path(scratch) / f"{name}-{number}"
                out.mkdir()
                cpu, seconds, kept[name] = timed(run, source, out)
                runs[name].append(cpu)
                wall[name].append(seconds)
        quality = against_all_pairs(texts, kept)
    ratio = median(runs["datatrove"]) / median(runs["ours"])
    about = {
        "documents": len(texts),
        "megabytes": sum(len(text.encode()) for text in texts) / 1e6,
        "versions": {name: version(name) for name in ("datatrove", "spacy", "xxhash", "numpy")},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "wall_seconds": wall,
        "quality": quality,
    }
    print(f"datatrove {version('datatrove')}, {len(texts)} documents; {json.dumps(quality)}")
    found = finish([Ratio("datatrove / ours", ratio, GOAL)], "CPU s", runs, about)
    write_json(RESULT, found)


def pages(count: int) -> list[str]:
    """Runs of lines of real sources; every other one, drawn, is followed by a copy with 0 to 8 lines replaced."""
    draw = Random(0)
    lines = list(islice((line for line in _lines() if line.strip()), count * PAGE_LINES))
    out: list[str] = []
    at = 0
    while len(out) < count:
        if at + PAGE_LINES > len(lines):
            raise SystemExit(f"the installed Python has pages for {len(out)} documents only")
        page = lines[at : at + PAGE_LINES]
        at += PAGE_LINES
        out.append("\n".join(page))
        if draw.random() < 0.5:
            for _ in range(draw.randrange(9)):
                page[draw.randrange(PAGE_LINES)] = draw.choice(lines)
            out.append("\n".join(page))
    return out[:count]


def _lines() -> Iterator[str]:
    for folder in ("stdlib", "purelib"):
        for path in sorted(Path(sysconfig.get_path(folder)).rglob("*.py")):
            if "test" not in path.as_posix():
                yield from path.read_text("utf-8", "replace").splitlines()


def timed(
    run: Callable[[Path, Path], set[int]], source: Path, out: Path
) -> tuple[float, float, set[int]]:
    """(processor seconds, wall seconds, the numbers of the documents that stay)."""
    cpu, seconds = process_time(), perf_counter()
    kept = run(source, out)
    return process_time() - cpu, perf_counter() - seconds, kept


def ours(source: Path, out: Path) -> set[int]:
    parts, rows = [], []
    with open(source / "pages.jsonl") as file:
        for line in file:
            rows.append(json.loads(line))
            if len(rows) == PART_ROWS:
                parts.append(_part(rows, out / f"part-{len(parts):05}.parquet"))
                rows = []
    if rows:
        parts.append(_part(rows, out / f"part-{len(parts):05}.parquet"))
    labels = read_labels(parts)
    drop_near(labels, NearConfig(), out)
    kept = set(np.flatnonzero(labels.kept).tolist())
    with open(out / "kept.jsonl", "w") as file:
        for start, table in labels.columns("id", "text"):
            for at, row in enumerate(table.to_pylist(), start):
                if at in kept:
                    file.write(json.dumps(row) + "\n")
    return kept


def _part(rows: list[dict[str, str]], path: Path) -> Part:
    pa = arrow()
    cuts = [words_of(row["text"]) for row in rows]
    sets = [shingles(cut) for cut in cuts]
    sizes = [len(row["text"].encode()) for row in rows]
    table = pa.table(
        {
            "id": [row["id"] for row in rows],
            "text": [row["text"] for row in rows],
            "group": ["g"] * len(rows),
            "package": [""] * len(rows),
            "drop_reason": [""] * len(rows),
            "size": sizes,
            "quality": pa.array(np.zeros(len(rows), np.float32)),
            "signature": [signature(cut, seed=0).astype("<u4").tobytes() for cut in cuts],
            "shingles": pa.array(sets, pa.list_(pa.uint64())),
        }
    )
    pa.parquet.write_table(table, path, compression="zstd")
    return Part(path, len(rows), len(rows), sum(sizes))


def datatrove(source: Path, out: Path) -> set[int]:
    from datatrove.executor.local import LocalPipelineExecutor
    from datatrove.pipeline.dedup.minhash import (
        MinhashConfig,
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers.jsonl import JsonlWriter
    from datatrove.utils.hashing import HashConfig

    # its xxHash needs xxhash < 4, which takes str; SHA-1 is what FineWeb was made with
    config = MinhashConfig(hash_config=HashConfig(hash_fc="sha1"))
    places = {name: str(out / name) for name in ("signatures", "buckets", "removed", "kept")}
    reader = JsonlReader(str(source))
    stages: list[tuple[int, list[Any]]] = [
        (1, [reader, MinhashDedupSignature(places["signatures"], config=config)]),
        (
            config.num_buckets,
            [MinhashDedupBuckets(places["signatures"], places["buckets"], config=config)],
        ),
        (1, [MinhashDedupCluster(places["buckets"], places["removed"], config=config)]),
        (
            1,
            [
                reader,
                MinhashDedupFilter(places["removed"]),
                JsonlWriter(places["kept"], "${rank}.jsonl", compression=None),
            ],
        ),
    ]
    for number, (tasks, steps) in enumerate(stages):
        LocalPipelineExecutor(
            steps, tasks=tasks, workers=1, logging_dir=str(out / f"logs-{number}")
        ).run()
    files = Path(places["kept"]).glob("*.jsonl")
    return {int(json.loads(line)["id"]) for file in files for line in open(file)}


def against_all_pairs(texts: list[str], kept: dict[str, set[int]]) -> dict[str, Any]:
    """For each: documents dropped, how many of them are like no other, and pairs at the threshold that both stay.

    of_one_at_a_time: how many of the documents it drops that go when all are gone through one at a time, longest
    first, and each is held against all that stay. That is our rule; datatrove keeps any one of a component.
    """
    sets = [shingles(words_of(text)) for text in texts]
    flat, offsets = np.concatenate(sets), np.cumsum([0, *map(len, sets)])
    pairs = all_pairs(flat, offsets, THRESHOLD)
    order = np.argsort([-len(text.encode()) for text in texts], kind="stable")
    rank = np.empty(len(texts), np.int64)
    rank[order] = np.arange(len(texts))
    expected = set(np.flatnonzero(leaders(pairs, rank)).tolist())
    alike = set(pairs.ravel().tolist())
    out: dict[str, Any] = {"pairs": len(pairs), "one_at_a_time_drops": len(expected)}
    for name, stay in kept.items():
        dropped = set(range(len(texts))) - stay
        both_stay = sum(a in stay and b in stay for a, b in pairs.tolist())
        out[name] = {
            "dropped": len(dropped),
            "dropped_unlike_any": len(dropped - alike),
            "pairs_that_stay": both_stay,
            "recall_of_pairs": round(1 - both_stay / max(1, len(pairs)), 6),
            "of_one_at_a_time": len(dropped & expected),
        }
    return out


def all_pairs(flat: np.ndarray, offsets: np.ndarray, threshold: float) -> np.ndarray:
    """int64 [m, 2]: every pair of sets at `threshold` or above, none left to chance.

    Of two such sets, each has one of the other's elements among its n - ceil(threshold * n) + 1 rarest (prefix
    filtering, Chaudhuri et al. 2006), so only sets that share a rare element are held against each other.
    """
    _, element, count = np.unique(flat, return_inverse=True, return_counts=True)
    order = np.empty(len(count), np.int64)  # of the elements, the rarest first
    order[np.lexsort((np.arange(len(count)), count))] = np.arange(len(count))
    place = order[element]
    holders: dict[int, list[int]] = {}
    found = [np.empty((0, 2), np.int64)]
    for number in range(len(offsets) - 1):
        one = np.sort(place[offsets[number] : offsets[number + 1]])
        rare = one[: len(one) - int(np.ceil(threshold * len(one) - 1e-9)) + 1].tolist()
        others = {other for at in rare for other in holders.get(at, ())}
        found.append(
            np.array([(other, number) for other in sorted(others)], np.int64).reshape(-1, 2)
        )
        for at in rare:
            holders.setdefault(at, []).append(number)
    pairs = np.concatenate(found)
    return pairs[jaccard_pairs(flat, offsets, pairs) >= threshold]


if __name__ == "__main__":
    main()
