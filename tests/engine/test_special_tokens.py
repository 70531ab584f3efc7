"""Texts with their special tokens shown, as transformers decodes them with skip_special_tokens=False."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from gristmill.engine import Engine
from gristmill.engine.text import TextStream
from gristmill.errors import RequestError
from gristmill.lm import Request, SamplingParams
from gristmill.tokenizer import Tokenizer, train_bpe
from tests.tiny_model import random_model

SPECIALS = ["<s>", "</s>", "[TOOL_CALLS]", "<｜x｜>"]


def marked(backend: Backend) -> Tokenizer:
    backend.add_special_tokens(SPECIALS)
    backend.add_tokens([AddedToken("<tool_call>", special=False)])
    return Tokenizer(backend, {})


def sentencepiece() -> Tokenizer:
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "▁a", "é", "▁▁"]
    backend = Backend(models.BPE({p: i for i, p in enumerate(pieces)}, [], byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    return marked(backend)


def metaspace() -> Tokenizer:
    backend = Backend(models.Unigram())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=["<s>"], show_progress=False)
    backend.train_from_iterator(["the end of the line. do not"] * 5, trainer)
    return marked(backend)


TOKENIZERS = {
    "bytes": marked(train_bpe(iter(["naïve 🙂 text, the end of the line"] * 5), 400).backend),
    "sentencepiece": sentencepiece(),
    "metaspace": metaspace(),
}


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_pieces_join_to_what_transformers_decodes(name, data):
    tokenizer = TOKENIZERS[name]
    theirs = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend)
    # Where bytes that make no character follow one another, transformers' ByteFallback differs from ours.
    spelled = tokenizer.backend.id_to_token
    any_id = st.sampled_from(
        [i for i in range(tokenizer.vocab_size) if not (spelled(i) or "").startswith("<0x")]
    )
    special = st.sampled_from([tokenizer.special(text) for text in SPECIALS])
    ids = data.draw(st.lists(any_id | special, max_size=20))
    for skip in (True, False):
        stream = TextStream(tokenizer, (), skip_special=skip)
        pieces = [stream.push(id) for id in ids]
        pieces.append(stream.finish())
        expected = theirs.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
        assert "".join(pieces) == stream.text == expected


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(random_model())


def test_an_answers_special_tokens_are_shown_but_for_the_one_that_ended_it(engine):
    tokenizer = engine.tokenizer
    theirs = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend)
    stop = min(tokenizer.stop_ids)
    (shown,) = [tokenizer.special("<|reserved_3|>")]
    allowed = (shown, stop, *tokenizer.encode("a b"))
    ended = said = 0
    for seed in range(20):
        for skip in (True, False):
            params = SamplingParams(
                max_tokens=8,
                seed=seed,
                temperature=3.0,
                allowed_token_ids=allowed,
                logit_bias={shown: 8.0},
                skip_special_tokens=skip,
            )
            (out,) = engine.generate([Request("x", params)])
            ids = out.token_ids[:-1] if out.finish_reason == "stop" else out.token_ids
            assert out.text == theirs.decode(ids, skip_special_tokens=skip)
            assert "".join(c.text for c in engine.stream(Request("x", params))) == out.text
            ended += out.finish_reason == "stop"
            said += "<|reserved_3|>" in out.text
    assert ended and said


def test_a_stop_string_may_be_a_special_tokens_text(engine):
    shown = engine.tokenizer.special("<|reserved_3|>")
    params = SamplingParams(
        max_tokens=4,
        allowed_token_ids=(shown,),
        stop=("reserved",),
        skip_special_tokens=False,
    )
    (out,) = engine.generate([Request("x", params)])
    assert (out.text, out.finish_reason, len(out.token_ids)) == ("<|", "stop", 1)


def test_it_is_true_or_false():
    with pytest.raises(RequestError, match="skip_special_tokens must be true or false"):
        SamplingParams(skip_special_tokens=1)  # type: ignore[arg-type]
