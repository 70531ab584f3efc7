"""Native signals, against datatrove's filters' own functions and against the twin."""

from __future__ import annotations

import importlib
import pydoc_data.topics
from importlib.metadata import distributions

import pytest
from datatrove.data import Document
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.pipeline.filters.gopher_repetition_filter import (
    find_all_duplicate,
    find_top_duplicate,
    get_n_grams,
)
from datatrove.utils.text import split_into_words
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.data.text import chain, fineweb_signals, rewritten, segment, signals, twin

PAGES = [
    *pydoc_data.topics.topics.values(),
    *(d.metadata.json.get("description", "") for d in distributions()),
]
PAGES = sorted({str(page)[:12_000] for page in PAGES if str(page).strip()})
LINES = [
    "The cat sat on the mat and that was all.",
    "The cat sat on the mat and that was all. It was. Was it?  Yes.",
    "- a bullet with words",
    "• another bullet...",
    "Lorem ipsum dolor sit amet.",
    "Lorem[1] ip[edit]sum dolor sit amet.",
    "We use Javascript {here} to count.",
    "By {this} you agree.",
    "We use cooKies on this site. And use cookies [12] here.",
    "[1] [2] [edit]",
    "See the TERMS OF USE, please.",
    "x" * 1001 + " is a long word.",
    "short",
    "“Wait…” he said…",
    "它是中文。它是。",
    "",
    "   ",
    "one\r\ntwo\x0bthree\u2028four",
    "# # # ... ....",
]


@pytest.mark.parametrize("words", ["spacy:en", "whitespace"])
def test_signals_of_real_pages_equal_the_twins(words: str) -> None:
    assert len(PAGES) >= 150
    for page in PAGES[::2]:
        assert signals(page, words) == twin.signals(page, words)


@settings(max_examples=250, deadline=None)
@given(
    st.lists(st.sampled_from(LINES), max_size=12),
    st.sampled_from(["\n", "\n\n", "\n\n\n"]),
    st.sampled_from(["spacy:en", "whitespace"]),
    st.booleans(),
)
def test_signals_of_odd_lines_equal_the_twins(
    lines: list[str], between: str, words: str, terminal: bool
) -> None:
    text = between.join(lines)
    assert signals(text, words) == twin.signals(text, words)
    kept, c4 = rewritten(text, words, terminal_punctuation=terminal)
    assert (kept, c4) == twin.rewritten(text, words, terminal_punctuation=terminal)
    left, found = chain(text, words, terminal_punctuation=terminal)
    assert left == kept
    assert found == {
        **twin.signals(text, words),
        **twin.fineweb_signals(kept, words),
        **c4,
    }


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=80))
def test_signals_of_any_text_equal_the_twins(text: str) -> None:
    assert signals(text, "whitespace") == twin.signals(text, "whitespace")


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "ab", "ba", "aba"]), max_size=60))
def test_ngrams_are_equal_where_their_letters_are(words: list[str]) -> None:
    text = " ".join(words)
    found = signals(text, "whitespace")
    for n in range(5, 11):
        assert found[f"dup_{n}_gram"] * len(text) == pytest.approx(find_all_duplicate(words, n))
    for n in (2, 3, 4):
        grams = get_n_grams(words, n)
        top = find_top_duplicate(grams) if grams else 0
        assert found[f"top_{n}_gram"] * len(text) == pytest.approx(top)


def test_numbers_of_datatrove_on_real_pages() -> None:
    for page in PAGES[1::4]:
        words = split_into_words(page)
        found = signals(page)
        assert found["words"] == len(words)
        for n in range(5, 11):
            assert found[f"dup_{n}_gram"] == find_all_duplicate(words, n) / len(page)
        for n in (2, 3, 4):
            grams = get_n_grams(words, n)
            assert found[f"top_{n}_gram"] == (find_top_duplicate(grams) / len(page) if grams else 0)


def test_a_filter_of_datatrove_turns_at_our_number() -> None:
    """Each filter keeps a page with its limit at our number, and drops it with the limit a hair to the other side:
    so datatrove's own number is ours."""
    off = {"dup_line_frac": 0, "dup_para_frac": 0, "dup_line_char_frac": 0, "dup_para_char_frac": 0}
    quiet = {
        "min_doc_words": 0,
        "max_doc_words": 0,
        "min_avg_word_length": 0,
        "max_avg_word_length": 0,
        "max_symbol_word_ratio": 0,
        "max_bullet_lines_ratio": 0,
        "max_ellipsis_lines_ratio": 0,
        "max_non_alpha_words_ratio": 0,
        "min_stop_words": 0,
    }
    loose = {
        "line_punct_thr": 0,
        "short_line_thr": 2,
        "char_duplicates_ratio": 2,
        "new_line_ratio": 1e9,
    }
    turned = 0
    for page in PAGES[::5]:
        found = signals(page)

        def turns(make, signal: str, at_least: bool = False) -> int:
            value = found[signal]  # noqa: B023
            if value <= 0:
                return 0
            beyond = value * (1 + 1e-9) if at_least else value * (1 - 1e-9)
            for limit, keeps in ((value, True), (beyond, False)):
                outcome = make(limit).filter(Document(text=page, id="0"))  # noqa: B023
                assert (outcome is True) == keeps, (signal, value, outcome)
            return 1

        for name in off:
            turned += turns(
                lambda limit, name=name: GopherRepetitionFilter(
                    **{**off, name: limit}, top_n_grams=((2, 9),), dup_n_grams=((5, 9),)
                ),
                name,
            )
        for name, signal, at_least in (
            ("max_avg_word_length", "mean_word_length", False),
            ("max_bullet_lines_ratio", "bullet_line_ratio", False),
            ("max_ellipsis_lines_ratio", "ellipsis_line_ratio", False),
            ("max_non_alpha_words_ratio", "alpha_word_ratio", True),
            ("min_stop_words", "stop_words", True),
            ("min_doc_words", "non_symbol_words", True),
        ):
            turned += turns(
                lambda limit, name=name: GopherQualityFilter(**{**quiet, name: limit}),
                signal,
                at_least,
            )
        for name, signal, at_least in (
            ("line_punct_thr", "line_punct_ratio", True),
            ("short_line_thr", "short_line_ratio", False),
            ("char_duplicates_ratio", "char_dup_ratio", False),
            ("new_line_ratio", "list_ratio", False),
        ):
            turned += turns(
                lambda limit, name=name: FineWebQualityFilter(**{**loose, name: limit}),
                signal,
                at_least,
            )
    assert turned > 200


@pytest.mark.parametrize("terminal", [False, True])
def test_c4_leaves_the_text_that_datatrove_leaves(terminal: bool) -> None:
    compared = 0
    for page in PAGES[::3]:
        document = Document(text=page, id="0")
        outcome = C4QualityFilter(filter_no_terminal_punct=terminal).filter(document)
        kept, c4 = rewritten(page, terminal_punctuation=terminal)
        passed = not c4["c4_curly_bracket"] and not c4["c4_lorem_ipsum"] and c4["c4_sentences"] >= 5
        assert (outcome is True) == passed
        if passed:
            assert document.text == kept
            compared += 1
    assert compared > 10


def test_a_cut_text_is_not_cut_again() -> None:
    text = "One two three. " * 40
    cut = segment(text)
    assert signals(cut) == signals(text)
    assert fineweb_signals(cut) == fineweb_signals(text)
    assert chain(cut) == chain(text)


def test_without_the_extension_the_twin_counts_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("gristmill.data.text.signals")
    text = "One two three. It was. " * 9
    expected = signals(text), rewritten(text), fineweb_signals(text), chain(text)
    monkeypatch.setattr(module, "extension", lambda: None)
    module._native.cache_clear()
    try:
        with pytest.warns(UserWarning, match="not built"):
            assert (signals(text), rewritten(text), fineweb_signals(text), chain(text)) == expected
    finally:
        module._native.cache_clear()
