"""Mixtures against what llama.cpp's own quantizer made of the same models: every type, every byte."""

from __future__ import annotations

import json

import pytest

from gristmill.errors import RequestError
from gristmill.formats.gguf import (
    FILE_TYPES,
    QUANTIZATION_VERSION,
    GGMLType,
    GGUFFile,
    mixture_name,
    tensor_types,
    write_gguf,
)
from tests.formats.gguf.record_mixtures import CASES, LETTERS, RECORDED, digest, values

LLAMA_CPP = json.loads(RECORDED.read_text())


def test_every_case_was_recorded():
    assert {case: list(of) for case, of in LLAMA_CPP.items()} == {
        case: list(FILE_TYPES) for case in CASES
    }


@pytest.mark.parametrize("mixture", FILE_TYPES)
@pytest.mark.parametrize("case", CASES)
def test_types_are_those_that_llama_cpp_chose(case, mixture):
    metadata, tensors = CASES[case]
    letters, _, keys = LLAMA_CPP[case][mixture]
    types = tensor_types(mixture, tensors, metadata)
    assert list(types) == [name for name, _ in tensors]
    ours = {name: LETTERS[type.name] for name, type in types.items()}
    assert ours == dict(zip(types, letters, strict=True))
    assert [FILE_TYPES[mixture], QUANTIZATION_VERSION] == keys


# Eighty layers differ in their types, tested above, not in what is in the blocks.
@pytest.mark.parametrize("mixture", FILE_TYPES)
@pytest.mark.parametrize(
    "case", [case for case, (_, tensors) in CASES.items() if len(tensors) < 400]
)
def test_files_hold_the_bytes_that_llama_cpp_wrote(tmp_path, case, mixture):
    metadata, tensors = CASES[case]
    types = tensor_types(mixture, tensors, metadata)
    entries = [(name, shape, types[name], values(name, shape)) for name, shape in tensors]
    write_gguf(tmp_path / "a.gguf", metadata, entries)
    assert digest(GGUFFile.open(tmp_path / "a.gguf")) == LLAMA_CPP[case][mixture][1]


def test_the_cases_meet_every_type():
    """Else a rule could be missing and nobody see it."""
    met = {letter for of in LLAMA_CPP.values() for letters, *_ in of.values() for letter in letters}
    assert met == set(LETTERS.values())


@pytest.mark.parametrize(
    ("said", "meant"),
    [("Q4_K_M", "Q4_K_M"), ("q4_k_m", "Q4_K_M"), ("Q4_K", "Q4_K_M"), ("q5_k", "Q5_K_M"), ("bf16", "BF16")],
)  # fmt: skip
def test_names_as_people_say_them(said, meant):
    metadata, tensors = CASES["llama"]
    assert mixture_name(said) == meant
    assert tensor_types(said, tensors, metadata) == tensor_types(meant, tensors, metadata)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Q4_KM", r"'Q4_KM' is not a type .* there are F32, .*Q6_K. Did you mean \"Q4_K_M\"\?"),
        ("q8", r"Did you mean \"Q8_0\"\?"),
        ("Q3_K_M", "'Q3_K_M' is not a type of GGUF file that is written"),
        ("nonsense", r"Q6_K\.$"),
        ("", r"Q6_K\.$"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(name, says):
    with pytest.raises(RequestError, match=says):
        tensor_types(name, [], {"general.architecture": "llama"})


def test_two_keys_and_a_generator_of_tensors_will_do():
    """GPT-2's files have no head_count_kv, dense models no expert_count."""
    metadata, tensors = CASES["gpt2"]
    metadata = {key: metadata[key] for key in ("general.architecture", "gpt2.block_count")}
    types = tensor_types("Q4_K_M", iter(tensors), metadata)
    assert types == tensor_types("Q4_K_M", *CASES["gpt2"][::-1])
    assert types["token_embd.weight"] == GGMLType.Q6_K
    assert types["position_embd.weight"] == GGMLType.F32
