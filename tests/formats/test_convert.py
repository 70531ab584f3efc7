"""Conversion proves its copy, and keeps none that it cannot prove."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gristmill.errors import RequestError, WorkError
from gristmill.formats import Model, convert
from gristmill.formats.parity import KNOWN_ERROR, compare, sample

STORIES = Path("../shared/data/models/stories260K.bin")


@pytest.mark.parametrize("kind", list(KNOWN_ERROR))
def test_every_type_is_within_its_known_error(tmp_path, kind):
    done = convert(STORIES, tmp_path / "m.gguf", quant=kind.lower())
    assert done.kind == kind and done.parity.kl <= done.bound
    assert done.parity.same_ids and done.parity.same_chat
    assert done.bytes == (tmp_path / "m.gguf").stat().st_size
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


def test_parity_is_what_it_says():
    """Against the definition, in float64."""
    model = Model.load(STORIES)
    before = sample(model)
    with torch.no_grad():
        model.network.model.layers[0].mlp.up_proj.weight.mul_(1.1)
    after = sample(model, before.ids)
    p, q = before.logprobs.double(), after.logprobs.double()
    found = compare(before, after)
    assert found.kl == pytest.approx(((p - q) * p.exp()).sum(-1).mean().item(), rel=1e-3)
    assert found.max_difference == pytest.approx((p - q).abs().max().item(), rel=1e-5)
    same = (p.argmax(-1) == q.argmax(-1)).double().mean().item()
    assert found.same_top == pytest.approx(same)
    assert 0 < found.kl < 1 and 0 < found.same_top < 1


def test_a_copy_with_permuted_heads_is_refused(tmp_path, monkeypatch):
    """The classic mistake: llama.cpp's rotary pairs are not put in order. Forced, it is kept and says so."""
    from gristmill.formats.gguf_models import names

    def wrong(heads):
        load, _save = names_rows(heads)
        return load, (lambda tensor: tensor)

    names_rows = names.interleaved_rows
    monkeypatch.setattr(names, "interleaved_rows", wrong)
    with pytest.raises(WorkError, match=r"m\.gguf was not written: it differs.*--force keeps it"):
        convert(STORIES, tmp_path / "m.gguf")
    assert list(tmp_path.iterdir()) == []
    done = convert(STORIES, tmp_path / "m.gguf", force=True)
    assert done.parity.kl > KNOWN_ERROR["Q4_0"] and (tmp_path / "m.gguf").is_file()


def test_what_cannot_be_asked_for(tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(RequestError, match="is there already"):
        convert(STORIES, tmp_path / "there")
    with pytest.raises(RequestError, match=r"name the target something\.gguf"):
        convert(STORIES, tmp_path / "m", quant="Q8_0")
    with pytest.raises(RequestError, match="not a type of GGUF file"):
        convert(STORIES, tmp_path / "m.gguf", quant="Q3_X")
    with pytest.raises(RequestError, match="there is no model at"):
        convert(tmp_path / "nowhere", tmp_path / "m")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_other_dtypes(tmp_path):
    done = convert(STORIES, tmp_path / "half", dtype="bfloat16")
    assert done.kind == "BF16" and done.parity.kl == 0  # compared with what was read as bfloat16
    assert Model.load(tmp_path / "half", dtype="auto").network.head.weight.dtype == torch.bfloat16
