"""Families whose files have other names, fused, interleaved or transposed layers, against `peft` on theirs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import tests.families as families
from gristmill.adapters import (
    LoraConfig,
    activate,
    add_lora,
    load_adapter,
    save_adapter,
    unload_adapter,
)
from gristmill.adapters.disk import disk_layers
from gristmill.adapters.resident import linears_of
from gristmill.errors import RequestError
from gristmill.formats.families import family_of
from gristmill.formats.hf import load_network
from tests.adapters.pairs import peft_model, relative, stir

ALL = "all-linear"
# `peft` reads "all-linear" on a mixture of experts as the experts too, which have no adapters here
CASES = {
    "llama, biases": ALL,
    "gemma2": ALL,
    "olmo2": ALL,
    "phi3, partial rotary, window": ALL,
    "gpt2": ALL,
    "gpt_neox": ALL,
    "gpt_oss": ALL,
    "mixtral": ["q_proj", "k_proj", "o_proj"],
    "deepseek_v3": ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"],
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


def make(case: str, models: Path):
    """Our network, transformers' with the same weights, and the family's rules."""
    _, directory = families.saved(case, models)
    ours = load_network(directory).eval()
    return ours, families.theirs(case), family_of(ours.config).rules(ours.config)


def tokens() -> torch.Tensor:
    return torch.randint(0, 320, (2, 30), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("case", list(CASES))
def test_both_ways(case, dora, models, tmp_path):
    from peft import PeftModel

    ours, theirs, rules = make(case, models)
    base = theirs(tokens()).logits
    made = peft_model(theirs, target_modules=CASES[case], use_dora=dora)
    made.save_pretrained(tmp_path / "theirs")
    load_adapter(ours, tmp_path / "theirs", rules=rules)
    expected = made(tokens()).logits
    assert relative(ours(tokens()), expected) <= 1e-5
    assert relative(base, expected) > 0.1
    # again on disk nothing has grown: A was shared, and is
    save_adapter(ours, tmp_path / "again", rules=rules)
    name = "adapter_model.safetensors"
    before, again = load_file(tmp_path / "theirs" / name), load_file(tmp_path / "again" / name)
    assert before.keys() == again.keys()
    assert all(torch.equal(before[key], again[key]) for key in before)

    unload_adapter(ours, "default")
    add_lora(ours, LoraConfig(4, 6, dora=dora, target_modules=CASES[case]))
    stir(ours)
    save_adapter(ours, tmp_path / "ours", rules=rules)
    made = PeftModel.from_pretrained(families.theirs(case), tmp_path / "ours").eval()
    expected = ours(tokens())
    assert relative(made(tokens()).logits, expected) <= 1e-5
    assert relative(base, expected) > 0.1
    load_adapter(ours, tmp_path / "ours", "again", rules=rules)
    assert relative(ours(tokens()), expected) <= 1e-5


@torch.no_grad()
@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(4, 6, target_modules=["q_proj", "v_proj", "down_proj"]),
        LoraConfig(4, 6, rslora=True, rank_pattern={"k_proj": 2}, alpha_pattern={"up_proj": 9}),
    ],
)
@pytest.mark.parametrize("case", ["phi3", "gpt_neox"])
def test_parts_of_a_fused_layer_that_differ(case, config, models, tmp_path):
    """Some without an adapter, or with another rank and alpha, are one block-diagonal adapter on disk."""
    from peft import PeftModel

    ours, theirs, rules = make(case, models)
    add_lora(ours, config)
    stir(ours)
    save_adapter(ours, tmp_path, rules=rules)
    made = PeftModel.from_pretrained(theirs, tmp_path).eval()
    assert relative(made(tokens()).logits, ours(tokens())) <= 1e-5
    with_it = ours(tokens())
    activate(ours, None)
    assert relative(ours(tokens()), with_it) > 0.1


def test_dora_on_a_part_of_a_fused_layer(models, tmp_path):
    ours, _, rules = make("phi3", models)
    add_lora(ours, LoraConfig(4, 6, dora=True, target_modules=["q_proj"]))
    with pytest.raises(
        RequestError, match=r"qkv_proj on disk is .*k_proj.* must be on all of them"
    ):
        save_adapter(ours, tmp_path / "ours", rules=rules)
    assert not (tmp_path / "ours").exists()


@torch.no_grad()
@pytest.mark.parametrize("case", ["phi3", "gpt2", "gpt_neox"])
def test_rows_go_where_the_rule_takes_them(case, models):
    """B A of a layer in the file, cut by us, is the file's W cut by the rule."""
    ours, _, rules = make(case, models)
    by_name = {rule.disk[0]: rule for rule in rules if len(rule.disk) == 1}
    fused = [layer for layer in disk_layers(linears_of(ours), rules) if len(layer.modules) > 1]
    assert len(fused) >= 2
    for layer in fused:
        B, A = torch.randn(layer.out_features, 5), torch.randn(5, layer.in_features)
        cut = [part @ A for part in layer.split(B)]
        (whole,) = by_name[f"{layer.name}.weight"].save(cut)
        assert torch.allclose(whole.T if case == "gpt2" else whole, B @ A, atol=1e-6)
        assert torch.equal(layer.join(layer.split(B)), B)
