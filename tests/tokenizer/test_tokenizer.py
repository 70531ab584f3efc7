"""Ids against transformers, tokenizers and tiktoken; round trips; plain text stays plain."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiktoken
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models

from gristmill.errors import RequestError
from gristmill.tokenizer import StreamDecoder, Tokenizer
from gristmill.tokenizer.patterns import LLAMA3
from gristmill.tokenizer.ranks import ranks_of


def test_transformers_loads_the_directory_with_equal_ids(saved, tokenizer, strings, texts):
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(saved)
    plain = [s for s in strings if "<|" not in s] + texts[:2]
    assert theirs(plain)["input_ids"] == [tokenizer.prompt_ids(text) for text in plain]
    assert theirs(plain, add_special_tokens=False)["input_ids"] == tokenizer.encode_batch(plain)
    assert len(theirs) == tokenizer.vocab_size
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (
        tokenizer.bos_id,
        tokenizer.eos_id,
        tokenizer.pad_id,
    )
    assert theirs.all_special_ids and set(theirs.all_special_ids) <= set(
        tokenizer.special_tokens.values()
    )


def test_tiktoken_from_our_ranks_gives_equal_ids(tokenizer, strings, texts):
    theirs = tiktoken.Encoding(
        "ours", pat_str=LLAMA3, mergeable_ranks=ranks_of(tokenizer), special_tokens={}
    )
    for text in [*strings, *texts]:
        assert theirs.encode_ordinary(text) == tokenizer.encode(text), text[:80]


@settings(max_examples=300, deadline=None)
@given(text=st.text())
def test_any_text_comes_back(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()
    assert not set(ids) & set(tokenizer.special_tokens.values())


def test_conformance_strings_come_back(tokenizer, strings):
    assert [tokenizer.decode(ids) for ids in tokenizer.encode_batch(strings)] == strings


@pytest.mark.parametrize(("text", "at"), [("a\ud800b", 1), ("\udcff", 0), ("👨\ud83d", 1)])
def test_lone_surrogates_are_refused_with_their_place(tokenizer, text, at):
    says = rf"U\+D[0-9A-F]{{3}}, half of a surrogate pair, at character {at}"
    with pytest.raises(RequestError, match=says):
        tokenizer.encode(text)
    with pytest.raises(RequestError, match=says):
        tokenizer.encode_batch(["fine", text])
    with pytest.raises(RequestError, match=says):
        tokenizer.chat_ids([{"role": "user", "content": text}])


@pytest.mark.parametrize("form", ["{0}", "x{0}y", "{0}{0}", " {0}\n"])
def test_no_text_becomes_a_control_token(tokenizer, form):
    control = set(tokenizer.special_tokens.values())
    for name in tokenizer.special_tokens:
        text = form.format(name)
        ids = tokenizer.encode(text)
        assert not control & set(ids) and tokenizer.decode(ids) == text
        assert tokenizer.encode_batch([text]) == [ids]


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_decoding_any_ids_equals_tokenizers(tokenizer, data):
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30))
    for skip in (True, False):
        assert tokenizer.decode(ids, skip) == tokenizer.backend.decode(
            ids, skip_special_tokens=skip
        )


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_stream_equals_decode_and_never_splits_a_character(tokenizer, data):
    byte = st.integers(0, 255).map(lambda b: tokenizer.encode("é" * 3)[0] if b == 0 else b)
    ids = data.draw(
        st.one_of(
            st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30),
            st.lists(byte, max_size=30),
            st.text(alphabet="aé你👨‍👩", max_size=12).map(tokenizer.encode),
        )
    )
    stream = StreamDecoder(tokenizer)
    shown = "".join(map(stream.push, ids))
    whole = tokenizer.decode(ids)
    assert shown + stream.finish() == whole
    # What was shown early is final: it never holds half of a character that became whole later.
    assert whole.startswith(shown)


def test_stream_of_text_holds_back_until_a_character_is_whole(tokenizer):
    text = "é你👨‍👩‍👧"
    stream, seen = StreamDecoder(tokenizer), ""
    for id in tokenizer.encode(text):
        seen += stream.push(id)
        assert text.startswith(seen)
    assert seen == text and stream.finish() == ""


def test_a_stream_cut_inside_a_character_ends_with_a_replacement(tokenizer):
    ids = tokenizer.encode("👨")
    assert len(ids) > 1
    stream = StreamDecoder(tokenizer)
    assert [stream.push(id) for id in ids[:-1]] == [""] * (len(ids) - 1)
    assert stream.finish() == "\ufffd" == tokenizer.decode(ids[:-1])


def test_save_and_load(saved, tokenizer, strings):
    again = Tokenizer.load(saved)
    assert again.encode_batch(strings) == tokenizer.encode_batch(strings)
    assert again.special_tokens == tokenizer.special_tokens
    assert (again.bos_id, again.eos_id, again.pad_id, again.stop_ids) == (
        tokenizer.bos_id,
        tokenizer.eos_id,
        tokenizer.pad_id,
        tokenizer.stop_ids,
    )
    assert again.stop_ids == {tokenizer.special("<|im_end|>"), tokenizer.special("<|endoftext|>")}
    assert Tokenizer.load(saved / "tokenizer.json").vocab_size == tokenizer.vocab_size


def test_stops_of_generation_config_are_stops(saved, tokenizer, tmp_path):
    for file in saved.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [5, 7]}')
    assert Tokenizer.load(tmp_path).stop_ids == tokenizer.stop_ids | {5, 7}


@pytest.mark.parametrize("added", [["<t>", "  "], ["  ", "<t>"], ["ab", "  "]])
def test_added_tokens_that_are_not_special_are_control_but_whitespace_is_text(added):
    vocab = {"a": 0, "b": 1, "<": 2, "t": 3, ">": 4, "ab": 5}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[]))
    backend.add_tokens(added)
    control, spaces = (backend.token_to_id(name) for name in sorted(added, reverse=True))
    name = backend.id_to_token(control)
    assert backend.encode(f"a{name}  b").ids == [0, control, spaces, 1]
    mixed = Tokenizer(backend, {})
    assert mixed.special_tokens == {name: control}
    assert mixed.encode(f"a{name}  b") == [0, *(vocab[c] for c in name), spaces, 1]


def test_errors_name_what_is_wrong(tmp_path: Path, tokenizer):
    with pytest.raises(RequestError, match=r"tokenizer\.json is missing"):
        Tokenizer.load(tmp_path)
    with pytest.raises(RequestError, match="no tokenizer at"):
        Tokenizer.load(tmp_path / "nowhere")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(RequestError, match=r"is not a tokenizer\.json"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text(tokenizer.backend.to_str())
    (tmp_path / "tokenizer_config.json").write_text("[1]")
    with pytest.raises(RequestError, match="must hold a JSON object"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(RequestError, match="is not JSON"):
        Tokenizer.load(tmp_path)
    with pytest.raises(RequestError, match=r'Did you mean "<\|im_end\|>"'):
        tokenizer.special("<|im_ende|>")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({}))
    with pytest.raises(RequestError, match="has no chat template"):
        Tokenizer.load(tmp_path).chat_ids([{"role": "user", "content": "hi"}])


def test_a_vocabulary_without_unk_loads_and_names_what_it_cannot_spell():
    backend = tokenizers.Tokenizer(
        models.Unigram([("a", -1.0), ("b", -1.0), ("<s>", 0.0)], None, False)
    )
    backend.add_special_tokens(["<s>"])
    for _ in range(8):  # the vocabulary is listed in another order each time
        tokenizer = Tokenizer(tokenizers.Tokenizer.from_str(backend.to_str()), {})
    assert tokenizer.encode("ab") == [0, 1]
    with pytest.raises(RequestError, match="no ids for this text"):
        tokenizer.encode("abc")
    with pytest.raises(RequestError, match="no ids for this text"):
        tokenizer.encode_batch(["ab", "abc"])
