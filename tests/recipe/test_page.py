"""The run's page and model card: whole, self-contained, tolerant of what has not run, safe with any text."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from example_run import METRICS, manifests

from gristmill.errors import RequestError
from gristmill.files import write_json, write_text
from gristmill.recipe.card import model_card
from gristmill.recipe.headline import amount, duration, headline
from gristmill.recipe.line import LINE
from gristmill.recipe.page import ReportConfig, compose, rebuild, run

HOSTILE = "</pre><script>alert(1)</script>\x00|`*"


class Balance(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.names: set[str] = set()
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.words: list[str] = []

    def handle_starttag(self, name: str, attrs: list) -> None:
        self._note(name, dict(attrs))
        self.open.append(name)

    def handle_startendtag(self, name: str, attrs: list) -> None:
        self._note(name, dict(attrs))

    def _note(self, name: str, attrs: dict) -> None:
        self.names.add(name)
        assert not {"src", "srcset", "action", "onclick"} & set(attrs)
        if "id" in attrs:
            assert attrs["id"] not in self.ids
            self.ids.add(attrs["id"])
        if attrs.get("href"):
            self.links.append(attrs["href"])

    def handle_endtag(self, name: str) -> None:
        assert self.open.pop() == name

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def read(html: str) -> Balance:
    reader = Balance()
    reader.feed(html)
    reader.close()
    assert reader.open == []
    assert "script" not in reader.names
    assert all(link.startswith("#") and link[1:] in reader.ids for link in reader.links)
    assert not re.search(r"https?://", html)
    return reader


def test_the_page_of_a_whole_run_shows_its_numbers() -> None:
    words = "".join(read(compose("Title", manifests())).words)
    for shown in (
        "Bits per byte, base model" "1.287",  # held out
        "Bits per byte, after DPO" "1.430" "the model that chat and serve use",
        "after DPO; functions never asked about: 38.0%",
        "1.310",  # of xz with the training text
        "78.0", "96.5",  # four choices, closed book and with retrieval
        "chance 25%",
        "near duplicate", "512 emails",
        "4 min 22 s",  # pretraining
        "python3.11/heapq.py:523",  # a citation
        "The capital of France is",
        "␣np", "97.1%",
        "6,294,016 parameters",
    ):  # fmt: skip
        assert shown in words, shown


def test_equal_manifests_give_equal_bytes() -> None:
    assert compose("t", manifests()) == compose("t", manifests())


@pytest.mark.parametrize("last", list(LINE)[:-1])
def test_a_run_that_stopped_early_has_a_page(last: str) -> None:
    stages = list(LINE)[: list(LINE).index(last) + 1]
    html = compose("Early", {stage: manifests()[stage] for stage in stages})
    words = "".join(read(html).words)
    missing = [stage for stage in LINE if stage not in stages and stage != "report"]
    assert ("not run: " + ", ".join(missing) in words) == bool(missing)


@pytest.mark.parametrize("stage", list(METRICS))
def test_a_stage_that_measured_nothing_leaves_its_part_out(stage: str) -> None:
    some = manifests()
    some[stage]["metrics"] = {}
    bare = "".join(read(compose("Bare", some)).words)
    whole = "".join(read(compose("Bare", manifests())).words)
    said = headline(stage, METRICS[stage])
    assert said in whole and said not in bare


def test_no_stage_at_all_still_gives_a_page() -> None:
    assert "Nothing has run yet." in compose("Empty", {})


def _every_text(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, dict):
        return {key: _every_text(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [_every_text(item, change) for item in value]
    return change(value) if isinstance(value, str) else value


def test_hostile_metrics_stay_text() -> None:
    some = copy.deepcopy(manifests())
    for manifest in some.values():
        manifest["metrics"] = _every_text(manifest["metrics"], lambda words: words + HOSTILE)
    html = compose(HOSTILE, some)
    reader = read(html)
    assert "<script>alert(1)</script>" in "".join(reader.words)
    assert "\x00" not in html


def test_hostile_titles_do_not_become_markdown() -> None:
    card = model_card("a | b\n# <script>", manifests())
    assert "# a \\| b \\# \\<script\\>" in card.splitlines()


def test_card_has_the_numbers_of_the_evaluation() -> None:
    card = model_card("Title", manifests())
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "| held-out bits per byte, base model | 1.2870 |" in card
    assert "| four choices, after dpo, with retrieval, seen | 96.5% ± 0.9 (n=400) |" in card
    assert "packages: 3,120 documents, 11.9 MB." in card


def test_the_stage_writes_page_and_card(tmp_path: Path) -> None:
    inputs = {}
    for stage, manifest in manifests().items():
        inputs[stage] = tmp_path / "run" / stage / "manifest.json"
        write_json(inputs[stage], manifest)
    result = run(ReportConfig(title="Mine"), inputs, tmp_path / "run/report")
    assert set(result.outputs) == {"report", "model_card"}
    assert result.outputs["report"].read_text() == compose("Mine", manifests())
    assert "# Mine" in result.outputs["model_card"].read_text()


def test_rebuild_uses_what_is_there(tmp_path: Path) -> None:
    for stage in ("data", "facts"):
        write_json(tmp_path / stage / "manifest.json", manifests()[stage])
    write_text(tmp_path / "recipe.toml", 'title = "From the recipe"\n')
    path = rebuild(tmp_path)
    assert path == tmp_path / "report.html"
    assert "From the recipe" in path.read_text()
    with pytest.raises(RequestError, match="no finished stage"):
        rebuild(tmp_path / "data")


@pytest.mark.parametrize("stage", sorted(METRICS))
def test_every_stage_has_a_headline_from_its_metrics(stage: str) -> None:
    assert headline(stage, METRICS[stage])
    assert headline(stage, {}) == ""
    assert headline("unknown", {"a": 1}) == ""


def test_the_evaluations_headline_says_which_model_each_number_is_of() -> None:
    said = headline("evaluate", METRICS["evaluate"])
    assert said.startswith("bits per byte 1.287 (base model), 1.430 (after DPO), closed book 78.0%")
    only_base = {"bits_per_byte": {"base": 1.287, "xz": 1.79}}
    assert headline("evaluate", only_base) == "bits per byte 1.287 (base model)"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (12.4, "12 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (7800, "2 h 10 min"),
     (172_799, "47 h 59 min"), (302_400, "3.5 days"), (6.3e10, "1,996 years")],
)  # fmt: skip
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


@pytest.mark.parametrize(
    ("value", "unit", "said"),
    [(999, "bytes", "999 bytes"), (12_300_000, "bytes", "12.3 MB"), (1_200_000, "tokens", "1.2M tokens"),
     (4_180, "documents", "4,180 documents"), (0, "", "0")],
)  # fmt: skip
def test_amounts(value: float, unit: str, said: str) -> None:
    assert amount(value, unit) == said
