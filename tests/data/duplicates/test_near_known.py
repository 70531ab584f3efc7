"""What an earlier corpus has, against brute force over all its documents; and what is told of clusters."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from corpus import labels_of

from gristmill.data import documents
from gristmill.data.build import BuildConfig, run
from gristmill.data.decisions import Labels, read_labels
from gristmill.data.duplicates.near import NearConfig, NearSummary, drop_near
from gristmill.data.text import shingles, words_of
from gristmill.data.units import Part
from gristmill.errors import RequestError

WORDS = [a + b + c for a in "bdfgklmn" for b in "aeiou" for c in ("r", "nd", "st", "lo", "ve")]


def prose(draw: np.random.Generator, words: int) -> list[str]:
    return [WORDS[at] for at in draw.integers(len(WORDS), size=words)]


def edited(draw: np.random.Generator, words: list[str], edits: int) -> list[str]:
    out = list(words)
    for at in draw.integers(len(out), size=edits):
        out[at] = "changed"
    return out


def page(words: list[str]) -> str:
    return "\n".join(" ".join(words[at : at + 12]) for at in range(0, len(words), 12)) + "\n"


def built(directory: Path, texts: dict[str, str], **settings) -> Labels:
    """The labels of a build of the texts, before the global stages."""
    (directory / "in").mkdir(parents=True)
    for name, text in texts.items():
        (directory / "in" / name).write_text(text)
    run(BuildConfig(path=str(directory / "in"), workers=1, **settings), {}, directory / "out")
    import pyarrow.parquet as pq

    paths = sorted((directory / "out/work/parts").glob("*.parquet"))
    rows = [pq.read_metadata(path).num_rows for path in paths]
    return read_labels([Part(p, n, n, 0) for p, n in zip(paths, rows, strict=True)])


def sources(labels: Labels) -> list[str]:
    return [name for _, table in labels.columns("source") for name in table["source"].to_pylist()]


def jaccard(one: str, two: str) -> float:
    a, b = (set(shingles(words_of(text)).tolist()) for text in (one, two))
    return len(a & b) / len(a | b)


@pytest.mark.parametrize("seed", [0, 3])
def test_brute_force_agrees_on_what_is_known(tmp_path: Path, seed: int) -> None:
    draw = np.random.default_rng(seed)
    originals = [prose(draw, 240) for _ in range(40)]
    old = {f"{at:02}.txt": page(words) for at, words in enumerate(originals[:30])}
    new = {
        f"{at:02}-{copy}.txt": page(edited(draw, words, int(draw.integers(0, 14))))
        for at, words in enumerate(originals)
        for copy in range(3)
    }
    new["same.txt"] = old["07.txt"].upper()
    built(tmp_path / "old", old, seed=seed)
    earlier = tmp_path / "old/out"
    labels = built(tmp_path / "new", new, seed=seed)
    read = {row.source: row for split in ("train", "heldout") for row in documents(earlier, split)}
    assert len(read) == 30

    summary = drop_near(labels, NearConfig(), tmp_path, [earlier], seed)

    counted = 0
    for at, source in enumerate(sources(labels)):
        text = new[source.removeprefix("in/")]
        alike = {name: jaccard(text, row.text) for name, row in read.items()}
        best = max(alike.values())
        reason = labels.reasons.names[labels.reason[at]]
        assert (reason == "known_document") == (best >= 0.8), (source, best)
        if reason == "known_document":
            counted += 1
            story = labels.stories[at]
            named = story["known_as"]
            assert named["corpus"] == str(earlier)
            assert named["id"] == read[named["source"]].id
            assert alike[named["source"]] == best
            assert story["decided"]["value"] == pytest.approx(best, abs=5e-5)
            assert labels.of[at] == -1
    assert summary.known == counted and 20 < counted < len(new) - 20
    # What is new is compared with each other alone: of each family one at least stays.
    stays = {name[3:5] for name, kept in zip(sources(labels), labels.kept, strict=True) if kept}
    assert {f"{at}" for at in range(30, 40)} <= stays


def test_equal_texts_are_known_however_many_share_their_bands(tmp_path: Path) -> None:
    """A hundred pages from one template: no bucket is held against all of itself."""
    draw = np.random.default_rng(5)
    frame = prose(draw, 300)
    old = {f"{at:03}.txt": page([*frame, *prose(draw, 2 + at % 50)]) for at in range(100)}
    built(tmp_path / "old", old, near_duplicate=1.0)
    labels = built(tmp_path / "new", old, near_duplicate=1.0)
    earlier = tmp_path / "old/out/documents"
    summary = drop_near(labels, NearConfig(threshold=1.0), tmp_path, [earlier])
    assert summary == NearSummary(known=100)
    assert not labels.kept.any()
    told = [labels.stories[at]["known_as"]["source"] for at in range(100)]
    assert told == sources(labels)


def test_no_documents_to_know(tmp_path: Path) -> None:
    labels = labels_of(tmp_path / "l", [np.arange(9, dtype=np.uint64)], [1])
    with pytest.raises(RequestError, match="holds no documents"):
        drop_near(labels, NearConfig(), tmp_path, [tmp_path / "nothing"])


def test_clusters_are_told(tmp_path: Path) -> None:
    """A chain a-b-c of which a and c are less alike, and a pair."""
    sets = [np.arange(at, at + 100, dtype=np.uint64) for at in (0, 9, 18, 1000, 1005, 5000)]
    labels = labels_of(tmp_path / "l", sets, [1] * 6)
    summary = drop_near(labels, NearConfig(), tmp_path)
    assert (summary.pairs, summary.clusters, summary.largest, summary.known) == (3, 2, 3, 0)
    assert summary.diameter_min == pytest.approx(82 / 118)
    assert labels.kept.tolist() == [True, False, True, True, False, True]


def test_pairs_alone_have_no_diameter_and_nothing_has_nothing(tmp_path: Path) -> None:
    sets = [np.arange(at, at + 100, dtype=np.uint64) for at in (0, 5, 1000)]
    labels = labels_of(tmp_path / "l", sets, [1] * 3)
    assert drop_near(labels, NearConfig(), tmp_path) == NearSummary(1, 1, 2, None, 0)
    labels.drop(np.arange(3), "gone")
    assert drop_near(labels, NearConfig(), tmp_path) == NearSummary()


def test_texts_without_a_word_are_like_nothing(tmp_path: Path) -> None:
    empty = np.empty(0, np.uint64)
    labels = labels_of(tmp_path / "l", [empty, empty, np.arange(3, dtype=np.uint64)], [1] * 3)
    assert drop_near(labels, NearConfig(), tmp_path) == NearSummary()
    assert labels.kept.all()
    assert not (tmp_path / "near").exists()
