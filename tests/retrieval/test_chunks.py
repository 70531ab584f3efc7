"""Chunks lose nothing, keep to their size, and know their line."""

from __future__ import annotations

import itertools
import re

from hypothesis import given
from hypothesis import strategies as st

from gristmill.retrieval.chunks import chunk_text

SHAPES = (
    "",
    "",
    "# {}",
    "## `{}`",
    "{}\n=====",
    "{} {} {} {} {}",
    "{}",
    "    {} {}",
    "- {} {}",
    "{}" + " {}" * 60,
)


@given(st.lists(st.sampled_from(SHAPES), max_size=25), st.integers(20, 200))
def test_every_word_is_in_its_chunk_in_order_and_at_its_line(shapes, limit):
    count = itertools.count()
    text = "\n".join(re.sub(r"\{\}", lambda _: f"w{next(count):04}", shape) for shape in shapes)
    lines = text.split("\n")
    shown: list[str] = []
    for chunk in chunk_text(text, limit):
        words = re.findall(r"w\d+", chunk.text)
        assert words
        assert len(chunk.text) <= limit
        place = words[0]
        if chunk.heading and chunk.heading in lines[chunk.line - 1]:
            place = chunk.heading
            shown.append(chunk.heading)
        assert place in lines[chunk.line - 1]
        shown += words
    said_nothing_more = set(re.findall(r"(?m)^(?:#+ `?)?(w\d+)`?(?=$|\n=)", text)) - set(shown)
    assert shown == [word for word in re.findall(r"w\d+", text) if word not in said_nothing_more]
    assert all(is_heading(lines, word) for word in said_nothing_more)


def is_heading(lines, word):
    at = next(i for i, line in enumerate(lines) if word in line)
    return lines[at].startswith("#") or lines[at + 1 : at + 2] == ["====="]


def test_headings_of_both_kinds_and_code_that_only_looks_like_one():
    text = "intro\n\n# One\nbody one\n\nTwo\n===\nbody two\n```\n# no heading\n```\n"
    shown = [(c.heading, c.text, c.line) for c in chunk_text(text, 100)]
    assert shown == [
        ("", "intro", 1),
        ("One", "body one", 3),
        ("Two", "body two\n```\n# no heading\n```", 6),
    ]


def test_paragraphs_stay_together_where_they_fit():
    paragraphs = [f"Paragraph {i} has exactly one sentence here." for i in range(6)]
    chunks = chunk_text("\n\n".join(paragraphs), 100)
    assert all(
        chunk.text.startswith("Paragraph") and chunk.text.endswith("here.") for chunk in chunks
    )
    assert "\n\n".join(chunk.text for chunk in chunks) == "\n\n".join(paragraphs)
    assert 3 <= len(chunks) <= 6


def test_a_paragraph_on_one_long_line_is_cut_between_words():
    words = [f"w{i:03}" for i in range(200)]
    chunks = chunk_text(" ".join(words), 120)
    assert " ".join(chunk.text for chunk in chunks).split() == words
    assert {chunk.line for chunk in chunks} == {1}
    assert all(len(chunk.text) <= 120 for chunk in chunks)
