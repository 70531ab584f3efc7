"""A build that also cuts lines and passages that stood before, and leaves out what an earlier corpus has."""

from __future__ import annotations

import random
from pathlib import Path

from gristmill.data import BuildConfig, documents
from gristmill.data.build import run

WORDS = (
    "mill water wheel stone grain flour river bridge sack miller winter summer bread oven".split()
)


def lines(rng: random.Random, count: int) -> list[str]:
    return [" ".join(rng.choices(WORDS, k=14)).capitalize() + "." for _ in range(count)]


def test_lines_and_passages_that_stood_before_are_cut(tmp_path: Path) -> None:
    rng = random.Random(4)
    shared, passage = lines(rng, 3), " ".join(lines(rng, 6))
    for name in ("a", "b", "c"):
        own = lines(rng, 30)
        text = [
            *own[:10],
            *shared,
            *own[10:20],
            f"In {name} it says: {passage} So {name} says.",
            *own[20:],
        ]
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / f"in/{name}.txt").write_text("\n".join(text) + "\n")
    config = BuildConfig(
        path=str(tmp_path / "in"), workers=1, repeated=("lines",), passages=200, heldout_fraction=0
    )
    run(config, {}, tmp_path / "out")
    texts = {d.source: d.text for d in documents(tmp_path / "out")}
    assert texts["in/a.txt"] == (tmp_path / "in/a.txt").read_text()
    for name in ("b", "c"):
        before, after = (tmp_path / f"in/{name}.txt").read_text(), texts[f"in/{name}.txt"]
        assert not any(line in after for line in shared)
        assert passage[20:-20] not in after and f"{name} says." in after
        assert len(before) - len(after) > len("\n".join(shared)) + len(passage) - 60
        assert all(line in before for line in after.splitlines() if not line.startswith("In "))


def test_what_an_earlier_corpus_has_is_left_out(tmp_path: Path) -> None:
    rng = random.Random(5)
    old, new = ("\n".join(lines(rng, 30)) for _ in range(2))
    first = {"old.txt": old, "x.txt": "\n".join(lines(rng, 30))}
    second = {"again.txt": old + "\nAnd a line.", "new.txt": new}
    for name, texts in (("first", first), ("second", second)):
        (tmp_path / name).mkdir()
        for file, text in texts.items():
            (tmp_path / name / file).write_text(text)
    run(BuildConfig(path=str(tmp_path / "first"), workers=1), {}, tmp_path / "one")
    config = BuildConfig(
        path=str(tmp_path / "second"),
        workers=1,
        heldout_fraction=0,
        against=(str(tmp_path / "one"),),
    )
    run(config, {}, tmp_path / "two")
    assert [d.source for d in documents(tmp_path / "two")] == ["second/new.txt"]
    (dropped,) = documents(tmp_path / "two", "dropped")
    assert (dropped.source, dropped.drop_reason) == ("second/again.txt", "known_document")
    assert dropped.details["known_as"]["source"] == "first/old.txt"
