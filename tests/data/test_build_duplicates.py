"""Deduplication against brute force over sets of strings, and the split after it."""

from __future__ import annotations

import json
import random
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from gristmill.data import Document, documents
from gristmill.data.build import BuildConfig, run
from gristmill.data.duplicates.similar import jaccard_pairs
from gristmill.data.gather import even_shares
from gristmill.data.split import held_out, united
from gristmill.data.steps import exact_key
from gristmill.data.text import shingles, signature

WORDS = [a + b + c for a in "bdfgklmn" for b in "aeiou" for c in ("r", "nd", "st", "lo", "ve")]


@cache
def five_grams(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + 5]) for i in range(len(words) - 4)} or {tuple(words)}


def true_jaccard(a: str, b: str) -> float:
    return len(five_grams(a) & five_grams(b)) / len(five_grams(a) | five_grams(b))


def prose(rng: random.Random, words: int) -> list[str]:
    return [rng.choice(WORDS) for _ in range(words)]


def page(words: list[str]) -> str:
    lines = [" ".join(words[i : i + 12]) for i in range(0, len(words), 12)]
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], dict[str, Document]]:
    """40 originals with edited copies at similarities all over the range, and what a build made of them."""
    rng = random.Random(11)
    root = tmp_path_factory.mktemp("family")
    texts: dict[str, str] = {}
    for number in range(40):
        original = prose(rng, 240)
        texts[f"{number:02}-0.txt"] = page(original)
        for copy in range(1, 4):
            edited = list(original)
            for _ in range(rng.choice([1, 2, 4, 6, 8, 12])):
                edited[rng.randrange(len(edited))] = "changed"
            texts[f"{number:02}-{copy}.txt"] = page(edited)
    texts["99-same.txt"] = texts["05-0.txt"].upper().replace(" ", "   ")
    (root / "in").mkdir()
    for name, text in texts.items():
        (root / "in" / name).write_text(text)
    directory = run(BuildConfig(path=str(root / "in"), workers=1), {}, root / "out").outputs[
        "documents"
    ]
    rows = {
        row.source.removeprefix("in/"): row
        for part in ("train", "heldout", "dropped")
        for row in documents(directory, part)
    }
    return texts, rows


def test_brute_force_agrees_on_every_decision(
    family: tuple[dict[str, str], dict[str, Document]],
) -> None:
    texts, rows = family
    kept: list[str] = []
    decided = {"kept": 0, "near": 0, "close call": 0}
    exact = [name for name in texts if rows[name].drop_reason == "duplicate"]
    assert exact == ["99-same.txt"]
    for name in sorted(texts.keys() - exact, key=lambda name: (-len(rows[name].text), name)):
        similar = {other: true_jaccard(texts[name], texts[other]) for other in kept}
        first = max(similar, key=lambda other: (similar[other], -kept.index(other)), default=None)
        row = rows[name]
        if first is None or similar[first] < 0.8:
            assert not row.drop_reason, name
            kept.append(name)
            decided["kept"] += 1
            decided["close call"] += first is not None and similar[first] > 0.6
            continue
        assert row.details["duplicate_of"]["source"] == f"in/{first}"
        assert row.details["decided"]["value"] == pytest.approx(similar[first], abs=5e-5)
        decided["near"] += row.drop_reason == "near_duplicate"
    assert decided["kept"] > 40 and decided["near"] > 40 and decided["close call"] > 10, decided


def test_case_and_space_make_no_difference_to_equality(
    family: tuple[dict[str, str], dict[str, Document]],
) -> None:
    row, other = (family[1][name] for name in ("99-same.txt", "05-0.txt"))
    assert row.drop_reason == "duplicate" and other.drop_reason == "near_duplicate"
    assert row.details["duplicate_of"] == other.details["duplicate_of"], "what stays is named"


def jaccard(a: str, b: str) -> float:
    one, two = shingles(a), shingles(b)
    offsets = np.array([0, len(one), len(one) + len(two)])
    return float(jaccard_pairs(np.concatenate([one, two]), offsets, np.array([[0, 1]]))[0])


def test_similarity_of_hashes_is_similarity_of_strings() -> None:
    rng = random.Random(3)
    for _ in range(60):
        base = prose(rng, rng.randrange(1, 80))
        other = base[: rng.randrange(len(base) + 1)] + prose(rng, rng.randrange(20)) or ["x"]
        a, b = page(base), page(other)
        assert jaccard(a, b) == pytest.approx(true_jaccard(a, b))
        assert len(shingles(a)) == len(five_grams(a))


def test_signatures_agree_as_often_as_sets_overlap() -> None:
    """The share of equal slots estimates Jaccard with standard error sqrt(s(1-s)/110) <= 0.048."""
    rng = random.Random(5)
    off = []
    for _ in range(40):
        base = prose(rng, 300)
        edited = list(base)
        for _ in range(rng.randrange(1, 30)):
            edited[rng.randrange(300)] = "changed"
        one, two = (signature(page(words), seed=7) for words in (base, edited))
        off.append(float((one == two).mean()) - true_jaccard(page(base), page(edited)))
    assert max(map(abs, off)) < 5 * 0.048
    assert abs(sum(off) / len(off)) < 3 * 0.048 / len(off) ** 0.5


def test_order_of_words_counts() -> None:
    assert true_jaccard("a b c d e", "e d c b a") == 0
    assert jaccard("a b c d e", "e d c b a") == 0
    assert exact_key("Same  Text\n") == exact_key("same text") != exact_key("text same")


def test_held_out_takes_whole_units_near_the_fraction() -> None:
    rng = random.Random(2)
    units = [
        ("packages", f"package{n}", rng.randrange(1_000, 50_000))
        for n in range(300)
        for _ in range(3)
    ]
    total = sum(size for *_, size in units)
    held = held_out(units, 0.05, seed=0)
    size = sum(size for group, unit, size in units if (group, unit) in held)
    assert 0.045 < size / total < 0.055
    assert held_out(list(reversed(units)), 0.05, seed=0) == held, "order of arrival does not matter"
    assert held_out(units, 0.05, seed=1) != held


def test_held_out_of_few_units_keeps_and_gives_at_least_one() -> None:
    assert len(held_out([("g", "a", 10), ("g", "b", 1000)], 0.05, 0)) == 1
    assert held_out([("g", "a", 10), ("g", "b", 1000)], 0.05, 0) == {("g", "a")}, (
        "the nearer to 5% of 1010"
    )
    assert held_out([("g", "a", 10)], 0.05, 0) == set()
    assert held_out([("g", str(n), 10) for n in range(9)], 0.0, 0) == set()
    for fraction in (0.05, 0.5):
        held = held_out([("g", str(n), 10) for n in range(3)], fraction, 0)
        assert 1 <= len(held) <= 2


def test_united_names_follow_links_through_others() -> None:
    assert united([("c", "b"), ("e", "d"), ("b", "a"), ("x", "x")]) == {
        "a": "a", "b": "a", "c": "a", "d": "d", "e": "d", "x": "x",
    }  # fmt: skip


def test_even_shares_pour_until_full() -> None:
    assert even_shares([10, 100, 1000], 60) == [10, 25, 25]
    assert even_shares([10, 20], 1000) == [10, 20]
    assert even_shares([], 5) == []
    assert even_shares([1000, 0], 60) == [60, 0]


def make_tree(root: Path, count: int, words: int) -> None:
    rng = random.Random(17)
    for number in range(count):
        path = root / f"part{number % 3}" / f"{number:03}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page(prose(rng, words)))


@pytest.mark.parametrize("max_bytes", [24_000_000, 60_000])
def test_the_number_of_workers_changes_no_byte(tmp_path: Path, max_bytes: int) -> None:
    """Also where the byte limit cuts, which happens while other workers have read further."""
    make_tree(tmp_path / "in", 150, 300)
    rows = [json.dumps({"text": page(prose(random.Random(n), 30))}) for n in range(400)]
    (tmp_path / "in" / "part1" / "rows.jsonl").write_text("\n".join(rows))
    digests = []
    for workers in (1, 2):
        config = BuildConfig(path=str(tmp_path / "in"), workers=workers, max_bytes=max_bytes)
        result = run(config, {}, tmp_path / f"out{workers}")
        names = ("train", "heldout", "dropped")
        files = [(result.outputs["documents"] / f"{name}.parquet").read_bytes() for name in names]
        digests.append((files, result.metrics))
    assert digests[0] == digests[1]
    kept = sum(split["bytes"] for split in digests[0][1]["splits"].values())
    assert kept <= max_bytes
    assert ("over_max_bytes" in digests[0][1]["drop_reasons"]) == (max_bytes == 60_000)


def test_a_limit_is_shared_between_sources(tmp_path: Path) -> None:
    make_tree(tmp_path / "large", 60, 400)
    make_tree(tmp_path / "small", 5, 40)
    for number, path in enumerate(sorted((tmp_path / "small").rglob("*.txt"))):
        path.write_text(page(prose(random.Random(900 + number), 40)))
    sources = (str(tmp_path / "large"), str(tmp_path / "small"))
    config = BuildConfig(sources=sources, workers=1, max_bytes=40_000)
    metrics = run(config, {}, tmp_path / "out").metrics
    groups = {group["group"]: group for group in metrics["groups"]}
    assert groups["small"]["kept_documents"] == 5, (
        "the first source may not eat the second one's share"
    )
    assert 30_000 < groups["large"]["kept_bytes"] + groups["small"]["kept_bytes"] <= 40_000
    listed = sum(group["files"] for group in metrics["groups"])
    assert listed == 65, "what the limit cuts off is listed"


def test_the_same_folder_name_twice_gives_two_groups(tmp_path: Path) -> None:
    for side, seed in (("left", 1), ("right", 2)):
        (tmp_path / side / "notes").mkdir(parents=True)
        for number in range(3):
            text = page(prose(random.Random(seed * 10 + number), 60))
            (tmp_path / side / "notes" / f"{number}.txt").write_text(text)
    sources = (str(tmp_path / "left/notes"), str(tmp_path / "right/notes"))
    directory = run(BuildConfig(sources=sources, workers=1), {}, tmp_path / "out").outputs[
        "documents"
    ]
    rows = [row for part in ("train", "heldout") for row in documents(directory, part)]
    assert {row.group for row in rows} == {"notes", "notes-2"}
    assert len({row.source for row in rows}) == 6
