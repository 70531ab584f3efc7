"""Bulk encoding gives exactly the ids of `tokenizers`, by whichever way it goes."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Regex, pre_tokenizers

from gristmill.errors import RequestError
from gristmill.tokenizer import BulkEncoder, Tokenizer


def split(flat: np.ndarray, lengths: np.ndarray) -> list[list[int]]:
    return [piece.tolist() for piece in np.split(flat, np.cumsum(lengths)[:-1])]


def test_the_fast_way_gives_equal_ids(tokenizer, strings, texts):
    pytest.importorskip("gigatoken", reason="gigatoken ([data] extra) is not installed")
    encoder = BulkEncoder(tokenizer)
    assert encoder.fast
    every = [*strings, *texts, *(name * 2 for name in tokenizer.special_tokens)]
    expected = [tokenizer.encode(text) for text in every]
    flat, lengths = encoder.encode(every)
    assert split(flat, lengths) == expected
    assert flat.dtype == np.uint32 and lengths.dtype == np.int64


def test_the_plain_way_gives_equal_ids(tokenizer, strings):
    encoder = BulkEncoder(tokenizer, allow_fast=False)
    assert not encoder.fast
    assert split(*encoder.encode(strings)) == [tokenizer.encode(text) for text in strings]


def test_lone_surrogates_are_refused(tokenizer):
    for encoder in (BulkEncoder(tokenizer), BulkEncoder(tokenizer, allow_fast=False)):
        with pytest.raises(
            RequestError, match=r"U\+D800, half of a surrogate pair, at character 1"
        ):
            encoder.encode(["fine", "a\ud800"])


def test_nothing_to_encode(tokenizer):
    for encoder in (BulkEncoder(tokenizer), BulkEncoder(tokenizer, allow_fast=False)):
        flat, lengths = encoder.encode([])
        assert len(flat) == 0 and len(lengths) == 0
        flat, lengths = encoder.encode(["", ""])
        assert len(flat) == 0 and lengths.tolist() == [0, 0]


def test_a_pattern_it_does_not_know_goes_the_plain_way(tokenizer, strings):
    backend = type(tokenizer.backend).from_str(tokenizer.backend.to_str())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[a-m]+|[^a-m]+"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    other = Tokenizer(backend, {})
    encoder = BulkEncoder(other)
    assert split(*encoder.encode(strings)) == [other.encode(text) for text in strings]
