"""What released config.json files do and our own never would: keys left out, null, old beside new, extra tensors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gristmill.errors import RequestError
from gristmill.formats import load_network
from gristmill.formats.families import config_from_hf
from tests.families import CASES, saved

FILE = Path("config.json")
# No release leaves these out, and no class's default would be anyone's model.
REQUIRED = {
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
}
KINDS = {kind: case for case, (kind, _) in reversed(CASES.items())}


def of_class(kind: str) -> dict[str, Any]:
    """config.json of the class's own defaults."""
    import transformers

    hf = json.loads(json.dumps(getattr(transformers, kind)().to_dict()))
    return hf | {"architectures": None}


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_key_left_out_has_the_default_of_transformers(kind):
    hf = of_class(kind)
    full = config_from_hf(hf, FILE)
    for key in set(hf) - REQUIRED - {"model_type", "architectures"}:
        less = {name: value for name, value in hf.items() if name != key}
        assert config_from_hf(less, FILE) == full, key


@pytest.fixture
def edited(tmp_path, tmp_path_factory):
    """A case's directory with changes to its config.json, loaded here and by transformers."""

    def make(case: str, **changes: Any):
        from transformers import AutoModelForCausalLM

        _, directory = saved(case, tmp_path_factory.getbasetemp() / "families")
        copy = tmp_path / "copy"
        shutil.copytree(directory, copy)
        hf = json.loads((copy / "config.json").read_text())
        hf = {k: v for k, v in (hf | changes).items() if v != "left out"}
        (copy / "config.json").write_text(json.dumps(hf))
        theirs = AutoModelForCausalLM.from_pretrained(copy, attn_implementation="eager")
        return load_network(copy), theirs

    return make


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}


@pytest.mark.parametrize(
    ("case", "changes"),
    [
        ("qwen2", dict(rope_scaling=YARN)),  # as Qwen's model cards say, beside rope_parameters
        ("llama", dict(rope_scaling=YARN, rope_parameters="left out", rope_theta=7000.0)),
        ("gpt_neox", dict(rope_parameters={"rope_type": "default", "rope_theta": 10_000.0})),
        ("mistral", dict(head_dim=None)),
        ("gemma2", dict(layer_types="left out")),
        ("gemma3_text", dict(layer_types="left out")),
        ("qwen2, window", dict(layer_types="left out")),
        ("gpt_oss", dict(layer_types="left out")),
    ],
)
@torch.no_grad()
def test_logits_are_those_of_transformers(edited, case, changes):
    ours, theirs = edited(case, **changes)
    tokens = torch.randint(3, 320, (2, 90), generator=torch.Generator().manual_seed(1))
    expected = theirs(tokens).logits
    assert (ours(tokens) - expected).abs().max() <= 1e-4 * max(1.0, float(expected.std()))


def test_null_and_absent_key_value_heads(tmp_path_factory):
    hf = of_class("MistralConfig") | {"num_attention_heads": 16, "hidden_size": 1024}
    assert config_from_hf(hf | {"num_key_value_heads": None}, FILE).num_kv_heads == 16
    del hf["num_key_value_heads"]
    assert config_from_hf(hf, FILE).num_kv_heads == 8


def test_layers_that_predict_further_are_left_alone(tmp_path, tmp_path_factory):
    """DeepSeek-V3's files hold a layer behind the last, for training."""
    _, directory = saved("deepseek_v3", tmp_path_factory.getbasetemp() / "families")
    copy = tmp_path / "copy"
    shutil.copytree(directory, copy)
    tensors = load_file(copy / "model.safetensors")
    tensors["model.layers.2.eh_proj.weight"] = torch.ones(4, 4)
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    expected = load_network(directory).state_dict()
    for name, tensor in load_network(copy).state_dict().items():
        assert torch.equal(tensor, expected[name])


@pytest.mark.parametrize(
    ("kind", "changes", "says"),
    [
        (
            "DeepseekV3Config",
            dict(scoring_func="softmax"),
            "scoring_func 'softmax' is not supported",
        ),
        ("DeepseekV3Config", dict(moe_layer_freq=2), "moe_layer_freq 2 is not supported"),
        ("LlamaConfig", dict(hidden_act=["silu"]), r"hidden_act \['silu'\] is not supported"),
        ("LlamaConfig", dict(rope_scaling={"type": ["yarn"]}), r"rope_type \['yarn'\]"),
        (
            "LlamaConfig",
            dict(rope_theta=10**400, rope_parameters=None),
            "rope_theta must be a number",
        ),
        ("LlamaConfig", dict(rms_norm_eps=float("nan")), "rms_norm_eps must be a number"),
        (
            "GPT2Config",
            dict(scale_attn_by_inverse_layer_idx=True),
            "scale_attn_by_inverse_layer_idx",
        ),
    ],
)
def test_what_is_computed_otherwise_is_refused(kind, changes, says):
    with pytest.raises(RequestError, match=says) as refused:
        config_from_hf(of_class(kind) | changes, FILE)
    assert len(str(refused.value)) < 300
    assert str(refused.value).startswith("config.json: ")
