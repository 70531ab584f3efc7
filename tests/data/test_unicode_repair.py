"""Repair against ftfy on wrongly decoded text, and that right text, code among it, is left alone."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import ftfy
import pytest
from ftfy import TextFixerConfig
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gristmill.data.unicode_repair import repair

RIGHT = [
    "Größe, naïve café – „Zitat“ und ‘quotes’ … 5 €",
    "Příliš žluťoučký kůň úpěl ďábelské ódy",
    "Съешь же ещё этих мягких французских булок — да выпей чаю",
    "こんにちは、世界。日本語の文章です",
    "النص العربي هنا من أجل الاختبار",
    "Ελληνικό κείμενο για δοκιμή",
    "l’été «déjà» à 30 °C; São João; Ångström; ¿Qué?",
]
# No look-alikes: only the encoding is repaired, as ftfy does it with its typographic options off.
ONLY_ENCODING = TextFixerConfig(
    unescape_html=False,
    uncurl_quotes=False,
    fix_latin_ligatures=False,
    fix_character_width=False,
    remove_terminal_escapes=False,
)


def wrong(text: str, codec: str) -> str | None:
    try:
        return text.encode().decode(codec)
    except UnicodeDecodeError:
        return None


@pytest.mark.parametrize("codec", ["latin-1", "cp1252", "cp1251", "mac_roman", "cp437"])
def test_mojibake_is_repaired_as_ftfy_does(codec: str) -> None:
    samples = [
        bad for text in RIGHT for word in [text, *text.split()] if (bad := wrong(word, codec))
    ]
    assert len(samples) > 20
    for bad in samples:
        expected = ftfy.fix_text(bad, ONLY_ENCODING).replace("\u00ad", "").rstrip()
        assert repair(bad)[0] == expected, bad


def test_known_sentences_come_back_whole() -> None:
    for text in RIGHT[:2]:
        bad = text.encode().decode("latin-1")
        assert repair(f"before\n{bad}\nafter") == (f"before\n{text}\nafter", ("mojibake",))


@pytest.mark.parametrize("text", RIGHT)
def test_right_text_stays(text: str) -> None:
    assert repair(text) == (text, ())


def test_the_standard_library_stays() -> None:
    """Code is right text, apart from blanks at line ends, form feeds and line ends of other systems."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    assert len(files) > 100
    for path in files:
        text = path.read_text("utf-8", "surrogateescape")
        assert set(repair(text)[1]) <= {"trailing_blanks", "controls", "line_ends"}, path


CASES = [
    ("a\x00b\x07c", "abc", "controls"),
    ("\ufeffBOM", "BOM", "controls"),
    ("soft\u00adhyphen", "softhyphen", "controls"),
    ("one\r\ntwo\rthree\x85four\u2028five", "one\ntwo\nthree four five", "line_ends"),
    ("v\u200bi\u200ba\u200bg\u200br\u200ba", "viagra", "unseen"),
    ("flood" + "\u200b" * 5000 + " end", "flood end", "unseen"),
    ("pair \ud83d\ude00", "pair 😀", "surrogates"),
    ("single \ud83d.", "single \ufffd.", "surrogates"),
    ("e\u0301", "é", "nfc"),
    ("blank \t\nend ", "blank\nend", "trailing_blanks"),
]


@pytest.mark.parametrize("text, expected, what", CASES)
def test_each_repair(text: str, expected: str, what: str) -> None:
    got, done = repair(text)
    assert got == expected and what in done


def test_what_scripts_need_stays() -> None:
    for text in [
        "👩\u200d👩\u200d👧\u200d👦 ❤\ufe0f",
        "می\u200cخواهم",
        "สวัสดี\u200bครับ",
        "שָׁלוֹם",
        "ﷺ ½ ﬁ Ｗｉｄｅ",
    ]:
        assert repair(text)[0] in (text, ftfy.fix_text(text, ONLY_ENCODING))


def test_marks_in_floods_are_bounded_in_linear_time() -> None:
    # canonical ordering of 300,000 marks of mixed classes would take minutes
    text = "Z" + "\u0301\u0323" * 150_000 + "algo"
    got, done = repair(text)
    assert len(got) <= 1 + 8 + 4 and "marks" in done


ODD = st.text(
    st.one_of(
        st.characters(),
        st.sampled_from(
            "Ãâ€™©Â\xa0\x80\x9dÐ¿ðŸ˜€вЂ√\u0301\u0323\u200b\u200d\ufeff\ud83d\ude00\r\n\x85 \t\x00Aé"
        ),
    ),
    max_size=60,
)


@settings(max_examples=400, deadline=None)
@given(ODD)
@example("Ã\x00©")
@example("A\u0302\u00a9")
def test_twice_is_once_and_lines_stay(text: str) -> None:
    got, _ = repair(text)
    assert repair(got) == (got, ())
    assert got.count("\n") == text.replace("\r\n", "\n").replace("\r", "\n").count("\n")
    got.encode()  # no surrogates left


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(max_codepoint=0x7F), max_size=200))
def test_of_ascii_only_line_ends_controls_and_trailing_blanks_go(text: str) -> None:
    plain = text.replace("\r\n", "\n").replace("\r", "\n")
    plain = "".join(c for c in plain if c in "\t\n" or " " <= c <= "~")
    assert repair(text)[0] == "\n".join(line.rstrip() for line in plain.split("\n"))


def test_marks_of_all_planes_are_bounded() -> None:
    text = "a" + "\u0301\U0001e8d0" * 100_000
    assert len(repair(text)[0]) <= 10
