"""GGUF files that are sound as files and wrong, or beyond us, as models: one sentence each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gristmill.errors import RequestError
from gristmill.formats import Model, convert, load_config
from gristmill.formats.gguf import GGMLType, GGUFFile, write_gguf


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "sound.gguf"
    convert(Path("../shared/data/models/stories260K.bin"), path)
    return path


def changed(sound: Path, target: Path, metadata: dict, tensors: dict) -> Path:
    """A copy with other metadata (None: left out) and tensors (None: left out, else an array)."""
    file = GGUFFile.open(sound)
    keys = {k: v for k, v in (dict(file.typed_metadata) | metadata).items() if v is not None}
    kept = {n: (i.shape, i.type, file.raw(n)) for n, i in file.tensors.items() if n not in tensors}
    kept |= {n: (a.shape, GGMLType.F32, a) for n, a in tensors.items() if a is not None}
    write_gguf(target, keys, [(name, *rest) for name, rest in kept.items()])
    return target


ONES = np.ones(4, np.float32)


@pytest.mark.parametrize(
    ("metadata", "tensors", "says"),
    [
        ({"general.architecture": "mamba"}, {}, "architecture 'mamba' is not supported; supported"),
        ({"general.architecture": None}, {}, "architecture None is not supported"),
        ({"llama.block_count": None}, {}, "block_count must be a whole number, not None"),
        ({"llama.attention.head_count": 0}, {}, "num_heads must be at least 1"),
        ({"llama.attention.head_count_kv": np.array([4, 4, 2, 4, 4])}, {}, "differs by layer"),
        ({"llama.attention.scale": 0.5}, {}, "attention.scale 0.5 is not supported"),
        ({"llama.logit_scale": 0.5}, {}, "logit_scale 0.5 is not supported"),
        ({"llama.attention.value_length": 4}, {}, "attention.value_length 4 is not supported"),
        ({"split.count": np.uint16(3)}, {}, "split into several files.*llama-gguf-split --merge"),
        ({}, {"rope_factors_long.weight": ONES}, "rope_factors_short.weight is missing"),
        (
            {},
            {"rope_factors_long.weight": ONES[:3], "rope_factors_short.weight": ONES[:3]},
            "longrope has 3 factors for 4 pairs",
        ),
        (
            {"llama.context_length": 0},
            {"rope_factors_long.weight": ONES, "rope_factors_short.weight": ONES},
            "factor must be above 0",
        ),
        ({}, {"rope_freqs.weight": -ONES}, "must hold 4 numbers above 0"),
        (
            {"llama.rope.scaling.type": "dynamic"},
            {},
            "rope.scaling.type 'dynamic' is not supported",
        ),
        ({}, {"blk.2.ffn_up.weight": None}, "the tensor blk.2.ffn_up.weight is missing"),
        ({}, {"token_embd.weight": None}, "the tensor token_embd.weight is missing"),
        ({}, {"more.weight": ONES}, "no place for the tensor more.weight"),
        ({}, {"output_norm.weight": ONES}, r"output_norm.weight has shape \[4\].*\[64\]"),
        (
            {},
            {"output_norm.weight": np.full(64, np.nan, np.float32)},
            "output_norm.weight holds NaN",
        ),
        ({"tokenizer.ggml.tokens": None}, {}, "tokenizer.ggml.tokens"),
    ],
)
def test_one_sentence_with_the_place(sound, tmp_path, metadata, tensors, says):
    path = changed(sound, tmp_path / "bad.gguf", metadata, tensors)
    with pytest.raises(RequestError, match=says) as refused:
        Model.load(path, dtype="auto")
    assert "bad.gguf" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_equal_values_for_every_layer_are_one(sound, tmp_path):
    path = changed(
        sound, tmp_path / "m.gguf", {"llama.attention.head_count_kv": np.full(5, 4, np.int32)}, {}
    )
    assert load_config(path) == load_config(sound)
