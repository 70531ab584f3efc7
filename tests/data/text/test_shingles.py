"""Shingles and signatures without the extension equal those with it; both are what their words say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.data.text import minhash, shingles, signature
from gristmill.data.text.segment import extension

TEXT = Path("../shared/data/text/wikitext2-valid.txt").read_text(encoding="utf-8")
ANY = st.text(max_size=200) | st.text("aB \n'é7.,-", max_size=80)

needs_extension = pytest.mark.skipif(extension() is None, reason="compares with the extension")


def twin(monkeypatch_target, text: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(monkeypatch_target, "extension", lambda: None)
        return shingles(text), signature(text, seed=seed)


@needs_extension
@settings(max_examples=400, deadline=None)
@given(ANY, st.integers(0, 5))
def test_any_text(text: str, seed: int) -> None:
    ours = shingles(text), signature(text, seed=seed)
    for native, numpy in zip(ours, twin(minhash, text, seed), strict=True):
        assert native.tolist() == numpy.tolist()


@needs_extension
@pytest.mark.parametrize("at", range(0, 1_000_000, 100_000))
def test_pages(at: int) -> None:
    text = TEXT[at : at + 20_000]
    ours = shingles(text), signature(text, seed=3)
    for native, numpy in zip(ours, twin(minhash, text, 3), strict=True):
        assert native.tolist() == numpy.tolist()


def test_what_makes_no_difference_and_what_does() -> None:
    def equal(a: str, b: str) -> bool:
        return shingles(a).tolist() == shingles(b).tolist()

    assert equal("Five words, in THIS café: 17 more", "five words in this cafe 2048 more.")
    assert not equal("a b c d e f", "f e d c b a")
    assert len(shingles("one two three")) == 1 and len(shingles("a b c d e f g")) == 3
    assert not len(shingles("... !!")) and set(signature("...").tolist()) == {0xFFFFFFFF}
    assert signature("a b c", seed=1).tolist() != signature("a b c", seed=2).tolist()
