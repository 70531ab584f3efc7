"""Streams of text: whole characters, stop strings wherever they fall, nothing shown that is taken back."""

from __future__ import annotations

import codecs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gristmill.engine.text import TextStream
from gristmill.tokenizer import Tokenizer, train_bpe

TOKENIZER: Tokenizer = train_bpe(iter(["the end of the line. END of it", "naïve 🙂 text"] * 5), 420)


def stream(ids: list[int], stop: tuple[str, ...] = ()) -> tuple[list[str], TextStream]:
    """Push until stopped; the pieces in order."""
    text = TextStream(TOKENIZER, stop)
    pieces = []
    for token in ids:
        pieces.append(text.push(token))
        if text.stopped:
            break
    pieces.append(text.finish())
    return pieces, text


def in_bytes(text: str) -> list[int]:
    """One token a byte: every boundary falls inside something."""
    by_byte = {TOKENIZER.token_bytes(i): i for i in range(TOKENIZER.vocab_size)}
    return [by_byte[bytes([b])] for b in text.encode()]


@given(st.text(max_size=30), st.booleans())
def test_pieces_join_to_the_text(text: str, small: bool) -> None:
    text = text.encode("utf-8", "replace").decode()
    pieces, whole = stream(in_bytes(text) if small else TOKENIZER.encode(text))
    assert "".join(pieces) == whole.text == text


@given(st.lists(st.integers(0, TOKENIZER.vocab_size - 1), max_size=30))
def test_any_ids_give_the_text_of_decode_up_to_its_last_whole_character(ids: list[int]) -> None:
    pieces, got = stream(ids)
    whole = TOKENIZER.decode(ids)
    written = b"".join(TOKENIZER.token_bytes(i) for i in ids if not TOKENIZER.is_special(i))
    complete = codecs.getincrementaldecoder("utf-8")("replace").decode(
        written
    )  # holds the rest back
    assert "".join(pieces) == got.text == complete
    assert whole in (complete, complete + "\ufffd")


@given(st.text("abc", max_size=40), st.lists(st.text("abc", min_size=1, max_size=4), min_size=1))
def test_the_text_ends_before_the_first_stop_string(text: str, stops: list[str]) -> None:
    """Fed letter by letter, the stop that is complete first ends it; what is shown is never taken back."""
    pieces, got = stream(in_bytes(text), tuple(stops))
    ends = [n for n in range(1, len(text) + 1) if any(text[:n].endswith(s) for s in stops)]
    if not ends:
        assert "".join(pieces) == text
        assert not got.stopped
    else:
        seen = text[: ends[0]]
        start = min(seen.index(s) for s in stops if s in seen)
        assert "".join(pieces) == text[:start]
        assert got.stopped


@pytest.mark.parametrize("letter_by_letter", [True, False])
def test_a_stop_string_across_and_inside_tokens(letter_by_letter: bool) -> None:
    text = "the end of the line. END of it"
    ids = in_bytes(text) if letter_by_letter else TOKENIZER.encode(text)
    pieces, got = stream(ids, ("ne. E",))
    assert got.text == "".join(pieces) == "the end of the li"
    pieces, got = stream(ids, ("nd",))  # within one token, or across three
    assert got.text == "".join(pieces) == "the e"


def test_what_only_began_a_stop_string_is_released() -> None:
    ids = in_bytes("a STO b ST")
    pieces, got = stream(ids, ("STOP",))
    assert got.text == "a STO b ST" and not got.stopped
    assert pieces[2:5] == ["", "", ""], "held while it may become the stop string"
    assert pieces[5] == "STO "
    assert pieces[-1] == "ST", "and at the end released"


def test_an_incomplete_character_at_the_end_is_left_out() -> None:
    smile = in_bytes("🙂")
    pieces, got = stream([*in_bytes("a"), *smile[:3]])
    assert pieces == ["a", "", "", "", ""]
    assert stream([*smile])[0] == ["", "", "", "🙂", ""]
    assert got.text == "a"
    assert stream([*smile[:3], *in_bytes("b")])[1].text == "\ufffdb", "one that was broken is shown"
