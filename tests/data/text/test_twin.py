"""The twin's signals: bounds on any text, and values that a person can count."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.data.text.twin import fineweb_signals, rewritten, signals
from gristmill.data.text.words import TERMINAL, definition
from gristmill.errors import RequestError

LETTERS = st.characters(exclude_categories=("Cs",))
TEXTS = st.one_of(
    st.text(LETTERS, max_size=200),
    st.lists(st.sampled_from(["the mill turns", "a b", "-", "…", "", "{x}", "No."])).map("\n".join),
)
SHARES = (
    *("bullet_line_ratio", "ellipsis_line_ratio", "alpha_word_ratio", "dup_line_frac"),
    *("dup_line_char_frac", "dup_para_frac", "dup_para_char_frac", "line_punct_ratio"),
    *("short_line_ratio", "char_dup_ratio", "alnum_share", "digit_share", "lettered_word_share"),
    *("duplicate_line_share", "uppercase_share", *(f"dup_{n}_gram" for n in range(5, 11))),
)


@settings(max_examples=150, deadline=None)
@given(TEXTS, st.sampled_from(["spacy:en", "whitespace"]))
def test_signals_of_any_text_are_finite_and_shares_are_shares(text: str, words: str) -> None:
    found = signals(text, words)
    assert all(isinstance(value, float) and 0 <= value < 1e9 for value in found.values())
    assert {name: found[name] for name in SHARES if found[name] > 1} == {}
    assert found["non_symbol_words"] <= found["words"]
    assert found["chars"] <= found["bytes"]


@settings(max_examples=100, deadline=None)
@given(TEXTS, st.booleans())
def test_what_c4_keeps_is_lines_of_the_text_and_stays(text: str, strict: bool) -> None:
    kept, found = rewritten(text, terminal_punctuation=strict)
    assert len(kept.splitlines()) <= found["c4_kept_lines"] <= found["c4_lines"]
    again, _ = rewritten(kept, terminal_punctuation=strict)
    assert (
        again == kept or "[" in kept
    )  # a citation taken out may leave another one, or too few words


def test_counts_by_hand() -> None:
    text = (
        "# The mill\n\n"
        "- The mill turns, and the river sings...\n"
        "- The mill turns, and the river sings...\n\n"
        "To be 3 (or 4) of them?\n"
    )
    found = signals(text, "spacy:en")
    # punctuation is words: "#"; "-", "," and "..." in each of the two; "(", ")" and "?"
    assert found["words"] == len(definition("spacy:en").split(text)) == 3 + 10 * 2 + 10
    assert found["non_symbol_words"] == 2 + 7 * 2 + 7
    assert found["stop_words"] == 4  # the and be of; "The" and "To" are others
    assert found["hash_ratio"] == 1 / found["words"]
    assert found["ellipsis_ratio"] == 2 / found["words"]
    assert found["bullet_line_ratio"] == found["ellipsis_line_ratio"] == 2 / 6  # blank lines count
    assert found["dup_line_frac"] == 1 / 5  # the last newline leaves an empty line
    assert found["dup_line_char_frac"] == len("- The mill turns, and the river sings...") / len(
        text
    )
    assert found["dup_para_frac"] == 0
    assert found["line_punct_ratio"] == 3 / 4
    assert found["short_line_ratio"] == 2 / 4
    assert found["long_word"] == len("sings...")
    assert signals(text, "whitespace")["words"] == len(text.split())


def test_the_commonest_n_gram_is_the_first_seen_even_if_it_stands_there_once() -> None:
    assert signals("mill river", "whitespace")["top_2_gram"] == 1.0
    # "b c" stands there twice: 2 · 3 characters of 11
    assert signals("b c a b c x", "whitespace")["top_2_gram"] == 6 / 11
    assert signals("mill", "whitespace")["top_2_gram"] == 0.0


def test_repeated_n_grams_are_found_from_left_to_right_and_joined_without_spaces() -> None:
    words = "one two three four five"
    text = f"{words} {words}"
    assert signals(text, "whitespace")["dup_5_gram"] == len(words.replace(" ", "")) / len(text)
    moved = f"{words} on etwo three four five"  # other words, the same letters
    assert signals(moved, "whitespace")["dup_5_gram"] == len(words.replace(" ", "")) / len(moved)
    assert signals(text, "whitespace")["dup_6_gram"] == 0.0


@pytest.mark.parametrize(
    "first,second,lorem,brackets",
    [
        ("Lorem ipsum dolor sit.", "a {curly} bracket here.", 1, 0),
        ("a {curly} bracket here.", "Lorem ipsum dolor sit.", 1, 1),
        ("a { lorem ipsum } line.", "nothing more to see.", 1, 0),
        ("javascript { is dropped }", "nothing more to see.", 0, 0),
    ],
)
def test_the_bracket_counts_up_to_the_first_lorem_ipsum(
    first: str, second: str, lorem: int, brackets: int
) -> None:
    _, found = rewritten(f"{first}\n{second}")
    assert (found["c4_lorem_ipsum"], found["c4_curly_bracket"]) == (lorem, brackets)


def test_c4_takes_out_citations_and_short_lines_and_what_speaks_of_cookies() -> None:
    text = "The mill turns.[12] It stood.\nToo short.\nThis site uses cookies for you.\nMen [edit] work"
    kept, found = rewritten(text)
    assert kept == "The mill turns. It stood.\nMen  work"
    assert (found["c4_kept_lines"], found["c4_sentences"]) == (2, 3)
    assert rewritten(text, terminal_punctuation=True)[0] == "The mill turns. It stood."
    assert fineweb_signals(kept)["line_punct_ratio"] == 0.5


def test_scripts_without_spaces_have_a_word_for_each_character() -> None:
    assert signals("水車小屋は川が。", "whitespace")["words"] == 8
    assert (
        signals("水車小屋は川が。", "whitespace")["c4_sentences"] == 0
    )  # a line of one word for C4


def test_terminal_marks_are_datatroves() -> None:
    from datatrove.utils.text import PUNCTUATION_SET, TERMINAL_PUNCTUATION

    from gristmill.data.text.twin import SYMBOLS

    assert set(TERMINAL) == TERMINAL_PUNCTUATION
    assert SYMBOLS == PUNCTUATION_SET


@pytest.mark.parametrize("words", ["spacy", "spacy:qq", "letters", ""])
def test_an_unknown_definition_of_words_is_refused_with_what_there_is(words: str) -> None:
    with pytest.raises(RequestError, match="whitespace"):
        signals("text", words)


def test_the_text_may_be_longer_than_spacys_limit() -> None:
    assert signals("mill " * 250_000, "spacy:en")["words"] == 250_000


def test_the_module_needs_no_library_to_be_imported() -> None:
    import subprocess
    import sys

    code = (
        "import sys, gristmill.data.text.twin as t; t.signals('a b', 'whitespace');"
        "assert not {'spacy', 'torch', 'pyarrow'} & set(sys.modules), sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path.cwd())


def test_spacys_own_names_are_words_like_others_in_every_text() -> None:
    for number in range(30):
        for text in ("IS_ALPHA", "mark the root", "PERSON", f"number {number}"):
            assert signals(text)["words"] == len(text.split())
            assert signals(f"mill{number} river{number}")["words"] == 2
