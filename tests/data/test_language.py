"""Languages by spaCy's example sentences, by length, and by what is not prose."""

from __future__ import annotations

import importlib
import pkgutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.data.language import (
    FAST_CONFIDENCE,
    SAMPLE_CHARS,
    UNKNOWN,
    _thirds,
    identify,
    threshold,
)

# No model knows these, or they are not one language.
_UNKNOWN_TO_US = {"dsb", "hsb", "ti", "tn", "bo", "grc", "xx", "kmr"}
_NAMES = {"nb": "no", "nn": "no"}


def sentences() -> dict[str, list[str]]:
    import spacy.lang

    found: dict[str, list[str]] = {}
    for module in pkgutil.iter_modules(spacy.lang.__path__):
        if not module.ispkg or module.name in _UNKNOWN_TO_US:
            continue
        try:
            examples = importlib.import_module(f"spacy.lang.{module.name}.examples")
        except ModuleNotFoundError:
            continue
        found.setdefault(_NAMES.get(module.name, module.name), []).extend(examples.sentences)
    return found


def test_texts_of_fifty_languages() -> None:
    texts = {code: " ".join(lines) for code, lines in sentences().items()}
    assert len(texts) >= 50
    wrong = {code: got for code, text in texts.items() if (got := identify(text)[0]) != code}
    assert not wrong
    doubted = [code for code, text in texts.items() if identify(text)[1] < threshold(code)]
    assert len(doubted) <= 0.05 * len(texts), doubted


@pytest.mark.parametrize("least, most, floor", [(20, 40, 0.87), (40, 80, 0.95), (80, 400, 0.98)])
def test_accuracy_by_length(least: int, most: int, floor: float) -> None:
    cases = [
        (code, line)
        for code, lines in sentences().items()
        for line in lines
        if least <= len(line) < most
    ]
    assert len(cases) >= 60
    right = sum(identify(line)[0] == code for code, line in cases)
    assert right / len(cases) >= floor


def test_a_believed_answer_is_nearly_always_right() -> None:
    cases = [(code, *identify(line)) for code, lines in sentences().items() for line in lines]
    believed = [code == got for code, got, sure in cases if sure >= threshold(got)]
    assert len(believed) > 0.7 * len(cases)
    assert sum(believed) / len(believed) >= 0.98


def test_long_texts_take_the_fast_path_and_agree() -> None:
    fast = {}
    for code, lines in sentences().items():
        if identify(" ".join(lines * 3))[1] == FAST_CONFIDENCE:
            fast[code] = identify(" ".join(lines * 3))[0]
    assert len(fast) >= 5 and all(code == got for code, got in fast.items()), fast


GERMAN = "Das Wetter war schön, und die Kinder gingen nach der Schule noch lange im Wald spazieren."


@pytest.mark.parametrize(
    "noise",
    [
        "```python\nfor item in the_list_of_all_the_words:\n    return the_answer(item)\n```",
        "    return the_answer_to_this(item) if this_is_the_one else that_is_the_other",
        "https://www.example.com/this-is-the-long/title-of-an-article/with-many-english-words-in-it.html",
        "`the_name_of_the_function_that_returns_this`",
        "first.last.and.this.is.the.name@and-this-is-the-domain.example.com",
    ],
)
def test_what_is_not_prose_does_not_count(noise: str) -> None:
    assert identify(f"{GERMAN}\n\n{noise}\n\n{noise}\n\n{GERMAN}")[0] == "de"


@pytest.mark.parametrize(
    "text", ["", " \n\t", "12345 67.89 --- 42", "https://example.com/", "\x00\x01"]
)
def test_without_words_there_is_no_language(text: str) -> None:
    assert identify(text) == (UNKNOWN, 0.0)


def test_an_indented_text_is_still_a_text() -> None:
    assert identify("\n".join("    " + GERMAN for _ in range(4)))[0] == "de"


def test_a_language_in_the_end_of_a_long_text_is_looked_at() -> None:
    assert len(_thirds("a" * 10_000 + "b" * 10_000, SAMPLE_CHARS)) <= SAMPLE_CHARS + 2
    assert "b" in _thirds("a" * 10_000 + "b" * 10_000, SAMPLE_CHARS)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=400))
def test_any_text_has_an_answer(text: str) -> None:
    code, confidence = identify(text)
    assert code.isalpha() and 0.0 <= confidence <= 1.0
    assert identify(text) == (code, confidence)
