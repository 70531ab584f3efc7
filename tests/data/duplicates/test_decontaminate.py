"""Evaluation items planted in real documentation, and documentation that holds none."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path

import pytest

from gristmill.data.duplicates.decontaminate import find, index_items, matches
from gristmill.data.duplicates.items import EvalItem, read_items
from gristmill.errors import RequestError

EVALS = Path(__file__).parents[3].parent / "shared" / "data" / "evals"
STDLIB = Path(random.__file__).parent


@cache
def real_items() -> tuple[EvalItem, ...]:
    names = ["gsm8k-test.jsonl", "HumanEval.jsonl.gz", "mmlu-dev", "bbh/tasks"]
    names += ["ifeval-prompts.jsonl", "mtbench-questions.jsonl", "xstest_prompts.csv"]
    return tuple(item for name in names for item in read_items(EVALS / name))


@cache
def pages() -> tuple[str, ...]:
    """Real text that no evaluation set was made of: the standard library's sources, in pages of 4,000 characters."""
    out = []
    folders = {path.parent for path in STDLIB.glob("*/__init__.py")} - {STDLIB / "test"}
    for path in sorted(path for folder in (STDLIB, *folders) for path in folder.glob("*.py")):
        text = path.read_text("utf-8", "replace")
        out += [text[at : at + 4000] for at in range(0, len(text), 4000)]
    return tuple(out)


def test_the_real_sets_are_read_whole() -> None:
    counts: dict[str, int] = {}
    for item in real_items():
        counts[item.set] = counts.get(item.set, 0) + 1
    # what the sets' own papers say: 1,319 / 164 / 541 / 80 / 450
    assert counts["gsm8k-test.jsonl"] == 1319
    assert counts["HumanEval.jsonl"] == 164
    assert counts["ifeval-prompts.jsonl"] == 541
    assert counts["mtbench-questions.jsonl"] == 80
    assert counts["xstest_prompts.csv"] == 450
    assert counts["abstract_algebra_dev.csv"] == 5  # five worked examples a subject
    assert counts["navigate.json"] == 250


def test_multiple_choice_is_question_and_right_option() -> None:
    (item,) = [i for i in read_items(EVALS / "mmlu-dev/abstract_algebra_dev.csv") if i.id == "0"]
    assert item.text == "Find all c in Z_3 such that Z_3[x]/(x^2 + c) is a field.\n1"


def test_every_planted_item_is_found_where_it_was_planted() -> None:
    index = index_items(real_items())
    draw = random.Random(0)
    short = set(index.too_short)
    looked_for = [item for item in real_items() if item not in short]
    assert len(looked_for) > 0.95 * len(real_items())
    planted = draw.sample(looked_for, 400)
    for number, item in enumerate(planted):
        page = draw.choice(pages())
        text = f"{page[:2000]}\n\n{item.text.upper()}\n\n{page[2000:]}"
        found = {m.item: m for m in matches(index, [(number, find(index, text))])}
        assert item in found, item
        match = found[item]
        assert match.share == 1.0
        inside = b"\n".join(text.encode()[start:end] for start, end in match.spans).decode()
        assert inside.split()[0].strip("\"'([{<#").casefold() in item.text.casefold()


def test_false_drops_on_documentation_are_below_one_in_a_thousand() -> None:
    index = index_items(real_items())
    found = list(matches(index, ((n, find(index, page)) for n, page in enumerate(pages()))))
    assert len(pages()) > 2000
    assert len({match.document for match in found}) <= len(pages()) / 1000, found


def test_equal_to_a_search_for_shared_ngrams() -> None:
    """The decision, by sets of joined words as strings."""
    items = [
        EvalItem("s", str(n), page[200 * n : 200 * n + 300]) for n, page in enumerate(pages()[:12])
    ]
    index = index_items(items)

    def grams(text: str) -> set[str]:
        import re

        words = [w.casefold() for w in re.findall(r"\w+", text)]
        return {" ".join(words[a : a + 13]) for a in range(len(words) - 12)}

    long = [item for item in items if grams(item.text)]
    expected = {
        (n, item.id)
        for n, page in enumerate(pages()[:40])
        for item in long
        if grams(page) & grams(item.text)
    }
    got = matches(index, ((n, find(index, page)) for n, page in enumerate(pages()[:40])))
    by_grams = {item.id for item in long}
    assert {(m.document, m.item.id) for m in got if m.item.id in by_grams} == expected
    assert len(expected) >= 8


def test_what_is_everywhere_is_ignored() -> None:
    words = " ".join(f"w{n}" for n in range(13))
    index = index_items([EvalItem("s", "0", words)])
    hits = [(n, find(index, f"before {words} after")) for n in range(6)]
    assert len(list(matches(index, hits, common=6))) == 6
    assert list(matches(index, hits, common=5)) == []


@pytest.mark.parametrize(("words", "found"), [(4, False), (5, True), (12, True), (13, True)])
def test_short_items_are_matched_as_a_whole(words: int, found: bool) -> None:
    said = [f"word{n}" for n in range(words)]
    index = index_items([EvalItem("s", "0", " ".join(said))])
    assert bool(find(index, "é " + ", ".join(said) + " more")) is found
    assert not find(index, " ".join(said[:-1]) + " other")
    assert bool(index.too_short) is not found


def test_spans_are_utf8_bytes() -> None:
    item = EvalItem("s", "0", "naïve café über élan señor")
    text = "漢字 " + item.text + " fin"
    (hit,) = find(index_items([item]), text)
    assert text.encode()[hit.start : hit.end].decode() == item.text


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", "{", "cannot read"),
        ("a.jsonl", '{"answer": "4"}', "item 0: no question"),
        ("a.json", "[1]", "item 0: expected an object"),
        ("a.parquet", "", "come as"),
        ("a.csv", b"\xff\xfe", "cannot read"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, content: str | bytes, said: str) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RequestError, match=said) as error:
        read_items(path)
    assert str(path) in str(error.value)
