"""What a try-out found: a build as the source of another, tables of numbers, JSON lists, settings that say nothing."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from gristmill.data import BuildConfig, documents
from gristmill.data.build import run
from gristmill.errors import RequestError

WORDS = (
    "mill water wheel stone grain flour river bridge sack miller winter summer bread oven".split()
)


def prose(rng: random.Random, count: int = 30) -> str:
    return "\n".join(" ".join(rng.choices(WORDS, k=14)).capitalize() + "." for _ in range(count))


@pytest.fixture
def build(tmp_path: Path) -> Path:
    rng = random.Random(6)
    (tmp_path / "in").mkdir()
    for number in range(8):
        (tmp_path / f"in/{number}.md").write_text(prose(rng))
    (tmp_path / "in/copy.md").write_text((tmp_path / "in/0.md").read_text())
    (tmp_path / "in/short.md").write_text("Too short.")
    run(
        BuildConfig(path=str(tmp_path / "in"), workers=1, heldout_fraction=0.2),
        {},
        tmp_path / "out",
    )
    return tmp_path / "out"


@pytest.mark.parametrize("named", ["", "documents"])
def test_a_build_is_a_source_of_what_it_kept_to_train_on(
    build: Path, tmp_path: Path, named: str
) -> None:
    config = BuildConfig(path=str(build / named), workers=1, heldout_fraction=0)
    run(config, {}, tmp_path / "again")
    before = {d.text: (d.kind, d.url) for d in documents(build)}
    after = {d.text: (d.kind, d.url) for d in documents(tmp_path / "again")}
    assert after == before and {kind for kind, _ in after.values()} == {"markdown"}
    assert not list(documents(tmp_path / "again", "dropped"))


def test_a_list_of_objects_is_read_and_a_table_of_numbers_is_none(tmp_path: Path) -> None:
    rng = random.Random(7)
    rows = [{"text": prose(rng), "id": number} for number in range(3)]
    (tmp_path / "in").mkdir()
    (tmp_path / "in/rows.json").write_text(json.dumps(rows))
    (tmp_path / "in/settings.json").write_text(json.dumps({"text": "x", "port": 1}, indent=1))
    lines = [f"{rng.random()},{rng.random()}" for _ in range(50)]
    (tmp_path / "in/numbers.csv").write_text("x,y\n" + "\n".join(lines) + "\n")
    run(BuildConfig(path=str(tmp_path / "in"), workers=1, heldout_fraction=0), {}, tmp_path / "out")
    assert {d.text for d in documents(tmp_path / "out")} == {row["text"] for row in rows}
    reasons = {d.source: d.drop_reason for d in documents(tmp_path / "out", "dropped")}
    assert reasons == {"in/numbers.csv": "no_text_field", "in/settings.json": "too_short"}


def test_a_copy_of_a_copy_names_what_stays(tmp_path: Path) -> None:
    text = prose(random.Random(8), 40)
    (tmp_path / "in").mkdir()
    for name, content in {"a": text, "b": text, "c": text + "\nOne line more at its end."}.items():
        (tmp_path / f"in/{name}.md").write_text(content)
    run(BuildConfig(path=str(tmp_path / "in"), workers=1, heldout_fraction=0), {}, tmp_path / "out")
    (kept,) = documents(tmp_path / "out")
    named = {
        d.source: d.details["duplicate_of"]["id"] for d in documents(tmp_path / "out", "dropped")
    }
    assert kept.source == "in/c.md" and named == {"in/a.md": kept.id, "in/b.md": kept.id}


@pytest.mark.parametrize(
    "setting, told",
    [
        ({"languages": ("english",)}, '"english" is no ISO 639 code'),
        ({"min_quality": 0.7}, "min_quality says nothing without a classifier"),
        ({"limits": {"to_short": 5}}, 'no rule is on "to_short". Did you mean "too_short"'),
    ],
)
def test_a_setting_that_says_nothing_is_refused(tmp_path: Path, setting: dict, told: str) -> None:
    (tmp_path / "a.txt").write_text(prose(random.Random(9)))
    with pytest.raises(RequestError, match=told):
        run(BuildConfig(path=str(tmp_path), workers=1, **setting), {}, tmp_path / "out")


def test_a_build_that_did_not_end_says_so(tmp_path: Path) -> None:
    (tmp_path / "work/parts").mkdir(parents=True)
    (tmp_path / "work/parts/x.parquet").write_bytes(b"")
    with pytest.raises(RequestError, match="did not end; run its command again"):
        list(documents(tmp_path))
