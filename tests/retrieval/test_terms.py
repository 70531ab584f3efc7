"""Questions to names, words and phrases: any text is a question."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gristmill.retrieval.terms import index_text, parse_question

HARD = st.text(alphabet=st.characters(), max_size=200) | st.text(
    alphabet=" .`_()\"'“”*ABCabc\0\nüß中文日本🙂\ud800-?", max_size=200
)


@given(HARD)
def test_any_text_is_a_question_and_everything_found_is_in_it(text):
    asked = parse_question(text)
    for name in asked.names:
        assert name in text
        assert re.fullmatch(r"\w+(\.\w+)*", name)
    lowered = text.replace("\0", " ").lower()
    for word in asked.words:
        assert word in lowered
    assert len(asked.names) == len(set(asked.names))
    assert len(asked.words) == len(set(asked.words))
    assert len(asked.phrases) <= 300
    assert set(asked.subject) <= {name.lower() for name in asked.names} | set(asked.words)


@given(HARD)
def test_terms_are_safe_to_put_into_a_quoted_query(text):
    assert re.fullmatch(r"[\w. ]*", index_text(text))


@given(st.from_regex(r"[a-zA-Z_]\w{0,8}(\.[a-zA-Z_]\w{0,8}){0,3}", fullmatch=True))
def test_a_name_in_backticks_is_found_as_spelled(name):
    for question in (
        f"What does `{name}` do?",
        f"`{name}(x, y=1)`",
        f"Is `{name}` safe, or `other`?",
    ):
        assert parse_question(question).names[0] == name


@pytest.mark.parametrize(
    ("question", "names"),
    [
        ("what does heapq.nlargest do", ("heapq.nlargest",)),
        ("How do I use get_ident here?", ("get_ident",)),
        ("Is a DataFrame a Series?", ("DataFrame",)),
        ("what does print() take?", ("print",)),
        ("How does sorting work?", ()),
        ("Explain `context-managers`.", ()),
    ],
)
def test_names(question, names):
    assert parse_question(question).names == names


@pytest.mark.parametrize(
    ("question", "subject"),
    [
        ("What is the capital of France?", ("capital", "france")),
        ("What arguments does `os.walk` take?", ("os.walk",)),
        ("Which function finds the largest items?", ("finds", "largest", "items")),
        ("What is an example?", ("example",)),
        ("what is for", ("what", "is", "for")),
        ("", ()),
    ],
)
def test_subject_is_what_an_answer_must_share(question, subject):
    assert parse_question(question).subject == subject


def test_phrases_hold_the_whole_subject_and_quoted_text_comes_first():
    asked = parse_question('What does the section "Getting started" say about river mills?')
    assert asked.phrases[0] == "getting started"
    assert all("river mills" in text for text in asked.phrases[1:])
    assert "context managers" in parse_question("Explain `context-managers`.").phrases


def test_who_asks_for_a_name_describes_it():
    assert parse_question("Which function does this: Call find_module().").wants_name
    assert not parse_question("What does the function `f` do?").wants_name


def test_names_are_indexed_whole_and_in_parts():
    terms = index_text("collections.Counter.most_common HTTPServer").split()
    assert {"collections.counter.most_common", "most_common", "most", "common"} <= set(terms)
    assert {"httpserver", "http", "server"} <= set(terms)
    assert set(index_text("日本語").split()) >= {"日本", "本語"}
