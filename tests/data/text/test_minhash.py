"""Signatures, against the same functions in big integers, and against true Jaccard similarity."""

from __future__ import annotations

import pydoc_data.topics
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.data.text import segment, shingles, signature
from gristmill.data.text.minhash import functions
from gristmill.data.text.segment import extension

TEXT = "The cat sat on the mat, and the dog lay in the sun for an hour."


def by_hand(values: list[int], permutations: int, seed: int) -> list[int]:
    a, b = functions(permutations, seed)
    folded = [(x ^ x >> 32) & 0xFFFFFFFF for x in values]
    return [
        min(((p * x + q) % (1 << 64) >> 32 for x in folded), default=0xFFFFFFFF)
        for p, q in zip(a.tolist(), b.tolist(), strict=True)
    ]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(["a", "b", "c", "d", "e", "f"]), max_size=40).map(" ".join),
    st.integers(1, 130),
    st.integers(0, 2**70),
)
def test_signature_is_the_least_of_each_function(text: str, permutations: int, seed: int) -> None:
    cut = segment(text, "whitespace")
    expected = by_hand(shingles(cut).tolist(), permutations, seed)
    assert signature(cut, permutations, seed=seed).tolist() == expected


@pytest.mark.parametrize("isa", ["scalar", "avx2", "avx512"])
def test_every_instruction_set_gives_the_same(isa: str) -> None:
    native = extension()
    assert native is not None
    cut = segment(TEXT)
    if isa not in native.instruction_sets():
        with pytest.raises(ValueError, match=isa):
            signature(cut, isa=isa)
        return
    assert signature(cut, isa=isa).tolist() == by_hand(shingles(cut).tolist(), 110, 1)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "c"]), max_size=30), st.integers(1, 7))
def test_shingles_are_the_sets_of_runs_of_words(words: list[str], ngram: int) -> None:
    length = min(ngram, len(words))
    runs = (
        {tuple(words[i : i + length]) for i in range(len(words) - length + 1)} if words else set()
    )
    found = shingles(segment(" ".join(words), "whitespace"), ngram)
    assert len(found) == len(runs)
    assert np.all(found[1:] > found[:-1])


def test_norms_leave_out_case_accents_marks_and_the_value_of_numbers() -> None:
    plain = shingles(segment("the cafe sold 1 cups of tea in may"))
    for other in (
        "The CAFÉ, sold 45 cups of tea (in May)!",
        "the cafe\u0301 sold\n\n7 cups... of “tea” in May",
    ):
        assert shingles(segment(other)).tolist() == plain.tolist()
    assert shingles(segment("the cafe sold no cups of tea in may")).tolist() != plain.tolist()


def test_short_texts_are_one_shingle_and_empty_ones_none() -> None:
    assert len(shingles(segment("two words"))) == 1
    assert len(shingles(segment("... !"))) == 0
    assert set(signature(segment("")).tolist()) == {0xFFFFFFFF}


def test_equal_places_estimate_jaccard() -> None:
    words = (
        pydoc_data.topics.topics["operator-summary"].split()
        + pydoc_data.topics.topics["class"].split()
    )
    rng = random.Random(5)
    errors = []
    for share in (0.02, 0.05, 0.1, 0.2):
        for _ in range(8):
            other = [rng.choice(words) if rng.random() < share else word for word in words]
            one, two = (
                segment(" ".join(words), "whitespace"),
                segment(" ".join(other), "whitespace"),
            )
            a, b = set(shingles(one).tolist()), set(shingles(two).tolist())
            true = len(a & b) / len(a | b)
            seen = np.mean(signature(one, 1024) == signature(two, 1024))
            errors.append((seen - true) / np.sqrt(true * (1 - true) / 1024))
    assert (
        abs(np.mean(errors)) < 1
    )  # the functions are the same in all pairs, so their errors go together
    assert np.sqrt(np.mean(np.square(errors))) < 2
