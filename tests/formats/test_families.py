"""Every family's directory: what we save transformers loads with the same logits; bits come back as they were."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gristmill.errors import RequestError
from gristmill.formats import FAMILIES, load_config, load_network, save_hf
from gristmill.formats.families import config_from_hf, config_to_hf
from gristmill.model import SLIDING
from tests.families import CASES, saved


@pytest.fixture(scope="module", params=list(CASES))
def case(request, tmp_path_factory) -> tuple[object, Path]:
    return saved(request.param, tmp_path_factory.getbasetemp() / "families")


def test_every_family_is_tested():
    from transformers import AutoConfig

    tested = {case.split(",")[0] for case in CASES}
    assert tested == set(FAMILIES)
    for name in FAMILIES:
        assert AutoConfig.for_model(name).model_type == name


@torch.no_grad()
def test_transformers_loads_what_we_save(case, tmp_path):
    from transformers import AutoModelForCausalLM

    theirs, directory = case
    network = load_network(directory)
    save_hf(network, tmp_path)
    again, loading = AutoModelForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True, attn_implementation="eager"
    )
    assert type(again) is type(theirs)
    assert not any(loading.values()), loading
    tokens = torch.randint(3, 320, (2, 90), generator=torch.Generator().manual_seed(2))
    assert torch.equal(again(tokens).logits, theirs(tokens).logits)


def test_the_bits_are_those_that_were_loaded(case, tmp_path):
    _, directory = case
    for dtype in (torch.float32, torch.bfloat16):
        first, second = tmp_path / f"{dtype}-1", tmp_path / f"{dtype}-2"
        first.mkdir()
        before = {n: t.to(dtype) for n, t in load_file(directory / "model.safetensors").items()}
        save_file(before, first / "model.safetensors", metadata={"format": "pt"})
        shutil.copy(directory / "config.json", first)
        save_hf(load_network(first, dtype), second)
        after = load_file(second / "model.safetensors")
        assert after.keys() == before.keys()
        for name, tensor in before.items():
            exact = name.endswith("e_score_correction_bias")  # kept in fp32
            assert torch.equal(after[name], tensor.float() if exact else tensor), name
        assert load_config(second) == load_config(first)


def test_transformers_parameter_count(case):
    theirs, directory = case
    assert load_config(directory).num_parameters == theirs.num_parameters()


def test_keys_of_older_files(case):
    """The same configuration as transformers 4 wrote it: rope_theta and rope_scaling at the top level."""
    _, directory = case
    hf = json.loads((directory / "config.json").read_text())
    config = load_config(directory)
    rope = hf.pop("rope_parameters", None)
    hf.pop("layer_types", None)
    if rope is None:
        return
    if SLIDING in rope:
        hf["rope_local_base_freq"] = rope[SLIDING]["rope_theta"]
        rope = rope["full_attention"]
    hf["rope_theta"] = rope.pop("rope_theta")
    if "partial_rotary_factor" in rope:
        hf["partial_rotary_factor"] = hf["rotary_pct"] = rope.pop("partial_rotary_factor")
    if rope != {"rope_type": "default"}:
        rope["type"] = rope.pop("rope_type")
        hf["rope_scaling"] = rope
    assert config_from_hf(hf, Path("config.json")) == config


def test_a_body_without_prefix_and_pickled(case, tmp_path):
    """GPT-2's own files name no `transformer.`; older ones are .bin, and hold masks beside the weights."""
    _, directory = case
    family = load_config(directory).family
    prefix = FAMILIES[family].prefix
    tensors = load_file(directory / "model.safetensors")
    bare = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    if family == "gpt2":
        bare["h.0.attn.bias"] = torch.ones(1, 1, 8, 8, dtype=torch.bool)
        bare["lm_head.weight"] = bare["wte.weight"]
    torch.save(bare, tmp_path / "pytorch_model.bin")
    shutil.copy(directory / "config.json", tmp_path)
    network = load_network(tmp_path)
    expected = load_network(directory).state_dict()
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_a_shape_the_family_cannot_say(case):
    _, directory = case
    config = load_config(directory)
    changes = dict(norm_placement="post" if config.norm_placement != "post" else "pre")
    with pytest.raises(
        RequestError, match=f"a {config.family} config.json cannot say norm_placement"
    ):
        config_to_hf(type(config)(**{**vars(config), **changes}))
