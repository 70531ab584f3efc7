"""Streams of text: whole characters, stop strings wherever they fall, nothing shown that is taken back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from gristmill.engine import Engine
from gristmill.engine.text import TextStream
from gristmill.formats import Model
from gristmill.lm import Grammar, Request, SamplingParams
from gristmill.tokenizer import Tokenizer, train_bpe
from tests.tiny_model import random_model

TEXTS = ["the end of the line. END of it", "naïve 🙂 text, e\u0301 don't , do not ."] * 5
TOKENIZER: Tokenizer = train_bpe(iter(TEXTS), 420)


def sentencepiece() -> Tokenizer:
    """As Llama 2 spells: "▁" for a space, <0x0A> for a byte, and the first space is not shown."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "▁a", "é", "▁▁"]
    backend = Backend(models.BPE({p: i for i, p in enumerate(pieces)}, [], byte_fallback=True))
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return Tokenizer(backend, {})


def metaspace() -> Tokenizer:
    backend = Backend(models.Unigram())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=["<s>"], show_progress=False)
    backend.train_from_iterator(TEXTS, trainer)
    return Tokenizer(backend, {})


def wordpiece() -> Tokenizer:
    backend = Backend(models.WordPiece(unk_token="[UNK]"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=120, special_tokens=["[UNK]"], show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    return Tokenizer(backend, {})


TOKENIZERS = {
    "bytes": TOKENIZER,
    "sentencepiece": sentencepiece(),
    "metaspace": metaspace(),
    "wordpiece": wordpiece(),
}


def stream(
    ids: list[int], stop: tuple[str, ...] = (), tokenizer: Tokenizer = TOKENIZER, **kept
) -> tuple[list[str], TextStream]:
    """Push until stopped; the pieces in order."""
    text = TextStream(tokenizer, stop, **kept)
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


@pytest.mark.parametrize("name", TOKENIZERS)
@given(data=st.data())
def test_any_ids_give_the_text_that_decode_gives(name: str, data: st.DataObject) -> None:
    """Lone bytes, halves of characters, marks, specials: in pieces and whole it is the same."""
    tokenizer = TOKENIZERS[name]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30))
    pieces, got = stream(ids, tokenizer=tokenizer)
    assert "".join(pieces) == got.text == tokenizer.decode(ids)
    held = TextStream(tokenizer, ("\ufffd" * 9 + "never",))
    assert "".join(map(held.push, ids)) + held.finish() == got.text, "holding back loses nothing"


@pytest.mark.parametrize("name", TOKENIZERS)
@given(data=st.data())
def test_after_a_prompt_the_text_is_what_decode_adds_to_the_prompts(name: str, data: st.DataObject):
    tokenizer = TOKENIZERS[name]
    prompt = tokenizer.encode(data.draw(st.text("ae ", max_size=6)))
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=12))
    pieces, got = stream(ids, tokenizer=tokenizer, before=prompt)
    assert "".join(pieces) == got.text
    assert tokenizer.decode(prompt) + got.text == tokenizer.decode([*prompt, *ids])


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
        assert got.stopped and got.stop_string in stops
        assert seen.endswith(got.stop_string) and seen.index(got.stop_string) == start


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


def test_an_incomplete_character_at_the_end_is_shown_as_such_once() -> None:
    smile = in_bytes("🙂")
    pieces, got = stream([*in_bytes("a"), *smile[:3]])
    assert pieces == ["a", "", "", "", "\ufffd"]
    assert got.text == "a\ufffd"
    assert stream([*smile])[0] == ["", "", "", "🙂", ""]
    assert stream([*smile[:3], *in_bytes("b")])[1].text == "\ufffdb", "one that was broken is shown"


def test_a_stop_string_is_shown_where_it_is_asked_for() -> None:
    for ids in (in_bytes("one END two"), TOKENIZER.encode("one END two")):
        pieces, got = stream(ids, ("END",), include_stop=True)
        assert got.text == "".join(pieces) == "one END" and got.stopped
        assert stream(ids, ("END",))[1].text == "one "


def test_stop_strings_before_the_least_number_of_tokens_are_text() -> None:
    ids = in_bytes("x.y.z.")
    for least, expected in (
        (0, "x"),
        (2, "x"),
        (3, "x.y"),
        (4, "x.y"),
        (5, "x.y.z"),
        (7, "x.y.z."),
    ):
        pieces, got = stream(ids, (".",), min_tokens=least)
        assert got.text == "".join(pieces) == expected, least


def test_a_stop_string_may_begin_before_the_least_number_of_tokens() -> None:
    pieces, got = stream(in_bytes("abcdef"), ("cd",), min_tokens=4)
    assert got.stopped and "".join(pieces) == "abc", "what was shown is not taken back"
    assert stream(in_bytes("abcdef"), ("cd",), min_tokens=5)[1].text == "abcdef"


def llama() -> tuple[Engine, list[int]]:
    """A model that speaks with Llama 2's spelling, and the ids of pieces that are whole."""
    words = ["▁", "a", "▁a", "ab", "▁ab", "▁upon", "▁▁", "é", "▁é"]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    backend = Backend(models.BPE({p: i for i, p in enumerate(pieces)}, [], byte_fallback=True))
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.decoder = TOKENIZERS["sentencepiece"].backend.decoder
    tokenizer = Tokenizer(backend, {"bos_token": "<s>", "eos_token": "</s>"})
    network = random_model(vocab_size=tokenizer.vocab_size + 64).network
    return Engine(Model(network, tokenizer)), list(range(259, len(pieces)))


def test_prompt_and_answer_join_as_transformers_decodes_them():
    engine, words = llama()
    theirs = PreTrainedTokenizerFast(tokenizer_object=engine.tokenizer.backend)
    bos, first = engine.tokenizer.bos_id, set()

    def decoded(ids) -> str:
        return theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    for prompt in ([bos, words[1]], [words[2], words[0]], [bos], [bos, words[6]]):
        for seed in range(8):
            params = SamplingParams(
                max_tokens=6, seed=seed, allowed_token_ids=tuple(words), ignore_eos=True
            )
            request = Request(token_ids=prompt, params=params)
            (out,) = engine.generate([request])
            assert decoded(prompt) + out.text == decoded([*prompt, *out.token_ids])
            assert "".join(chunk.text for chunk in engine.stream(request)) == out.text
            first.add((len(prompt), out.text[0]))
        several = Request(
            token_ids=prompt,
            params=SamplingParams(max_tokens=6, seed=1, allowed_token_ids=tuple(words), n=3),
        )
        (out,) = engine.generate([several])
        for answer in (out, *out.alternatives):
            assert decoded(prompt) + answer.text == decoded([*prompt, *answer.token_ids])
    assert (2, " ") in first, "no answer began with a space"


@pytest.mark.parametrize("prompt", [[1], [1, 260]])
def test_a_grammars_text_and_a_stop_string_begin_with_the_space_that_they_have(prompt):
    engine, words = llama()
    params = SamplingParams(max_tokens=20, grammar=Grammar("regex", " upon( ab)+"), seed=2)
    (out,) = engine.generate([Request(token_ids=prompt, params=params)])
    assert out.text.startswith(" upon ab")
    upon = (words[5],)
    stopped = SamplingParams(max_tokens=9, allowed_token_ids=upon, stop=(" upon",))
    (out,) = engine.generate([Request(token_ids=prompt, params=stopped)])
    # After BOS alone the text's first space is not shown, so the stop string comes with the second token.
    shown = "" if len(prompt) > 1 else "upon"
    assert (out.text, out.finish_reason, len(out.token_ids)) == (shown, "stop", 1 + bool(shown))
