"""Adapter directories that are damaged, for something else, or use what we do not have: one line, nothing done."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from gristmill.adapters import LoraConfig, adapters_of, add_lora, load_adapter, save_adapter
from gristmill.errors import RequestError
from tests.adapters.pairs import make_pair, stir, tokens

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
Q = "base_model.model.model.layers.1.self_attn.q_proj"


@pytest.fixture
def saved(tmp_path):
    """An adapter directory, the test's own to damage: DoRA of rank 4 on q_proj and v_proj."""
    network, _ = make_pair("qwen3")
    add_lora(network, LoraConfig(4, 8, dora=True, target_modules=["q_proj", "v_proj"]))
    stir(network)
    save_adapter(network, tmp_path / "adapter")
    return tmp_path / "adapter"


def refused(network, saved) -> str:
    """The error of loading it, having seen that the network is as it was."""
    with torch.no_grad():
        names, before = list(network.state_dict()), network(tokens())
        with pytest.raises(RequestError) as caught:
            load_adapter(network, saved)
        assert list(network.state_dict()) == names and not adapters_of(network)
        assert torch.equal(network(tokens()), before)
    assert all(parameter.requires_grad for parameter in network.parameters())
    message = str(caught.value)
    assert "\n" not in message
    return message


def rewrite(saved, change) -> None:
    tensors = load_file(saved / WEIGHTS)
    change(tensors)
    save_file(tensors, saved / WEIGHTS)


def configure(saved, **changes) -> None:
    config = json.loads((saved / CONFIG).read_text())
    (saved / CONFIG).write_text(json.dumps({**config, **changes}))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop(f"{Q}.lora_B.weight"), f"{Q}.lora_B.weight is missing"),
        (lambda t: t.pop(f"{Q}.lora_magnitude_vector"), "q_proj.lora_magnitude_vector is missing"),
        (
            lambda t: t.update({f"{Q}.lora_A.weight": torch.zeros(5, 48)}),
            f"{Q}.lora_A.weight is [5, 48], not [4, 48] (rank 4 on this model)",
        ),
        (
            lambda t: t.update({f"{Q}.lora_B.weight": torch.zeros(4, 64)}),
            f"{Q}.lora_B.weight is [4, 64], not [64, 4]",
        ),
        (
            lambda t: t[f"{Q}.lora_A.weight"][2, 3].fill_(float("nan")),
            f"{Q}.lora_A.weight holds NaN or infinity",
        ),
        (
            lambda t: t.update({f"{Q}.lora_A.weight": torch.zeros(4, 48, dtype=torch.int8)}),
            "holds torch.int8, not real numbers",
        ),
        (
            lambda t: t.update({"base_model.model.lm_head.lora_A.weight": torch.zeros(4, 48)}),
            "there is no place for the tensor base_model.model.lm_head.lora_A.weight",
        ),
        (
            lambda t: t.update({Q.replace("1", "7") + ".lora_A.weight": torch.zeros(4, 48)}),
            "there is no place for the tensor base_model.model.model.layers.7.self_attn.q_proj",
        ),
    ],
)
def test_tensors(network, saved, change, says):
    rewrite(saved, change)
    message = refused(network, saved)
    assert says in message and str(saved / WEIGHTS) in message


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (dict(peft_type="IA3"), "peft_type 'IA3' is not supported"),
        (dict(peft_type=None), "peft_type None is not supported"),
        (dict(task_type="SEQ_CLS"), "task_type 'SEQ_CLS' is not supported"),
        (dict(bias="lora_only"), "bias 'lora_only' is not supported"),
        (dict(lora_bias=True), "the option lora_bias (True) is not supported"),
        (dict(use_qalora=True), "the option use_qalora (True) is not supported"),
        (dict(modules_to_save=["lm_head"]), "the option modules_to_save (['lm_head'])"),
        (dict(trainable_token_indices=[1]), "the option trainable_token_indices ([1])"),
        (dict(layer_replication=[[0, 2]]), "the option layer_replication ([[0, 2]])"),
        (dict(target_parameters=["a.b"]), "the option target_parameters (['a.b'])"),
        (dict(of_a_later_version=0.5), "the option of_a_later_version (0.5) is not supported"),
        (dict(init_lora_weights="pissa"), "init_lora_weights 'pissa' is not supported"),
        (dict(init_lora_weights="loftq"), "init_lora_weights 'loftq' is not supported"),
        (dict(layers_pattern="h"), "layers_pattern 'h' is not supported"),
        (dict(r=0), "rank must be a whole number from 1"),
        (dict(r="4"), "rank must be a whole number from 1, not '4'"),
        (dict(rank_pattern={"q_proj": None}), "rank_pattern['q_proj'] must be a whole number"),
        (dict(rank_pattern=[1]), "rank_pattern must be an object, not [1]"),
        (dict(lora_alpha="x"), "alpha must be a number above 0"),
        (dict(use_dora="yes"), "use_dora must be true or false, not 'yes'"),
        (dict(target_modules=None), "target_modules names no module"),
        (dict(target_modules=[1]), "target_modules must be a list of names"),
        (dict(target_modules=["c_attn"]), "target_modules ('c_attn',) is no layer of this model"),
        (dict(layers_to_transform="x"), "layers_to_transform must be a list of layer numbers"),
    ],
)
def test_config(network, saved, changes, says):
    configure(saved, **changes)
    message = refused(network, saved)
    assert says in message and str(saved / CONFIG) in message


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (dict(r=8), "lora_A.weight is [4, 48], not [8, 48] (rank 8"),
        (dict(use_dora=False), "no place for the tensor"),
        (dict(target_modules=["q_proj"]), "no place for the tensor"),
        (dict(target_modules=["q_proj", "k_proj", "v_proj"]), "k_proj.lora_A.weight is missing"),
    ],
)
def test_config_and_tensors_that_do_not_belong_together(network, saved, changes, says):
    configure(saved, **changes)
    assert says in refused(network, saved)


@pytest.mark.parametrize("length", [0, 5, 100, -40])
def test_cut_off(network, saved, length):
    data = (saved / WEIGHTS).read_bytes()
    (saved / WEIGHTS).write_bytes(data[:length])
    assert f"{saved / WEIGHTS} is damaged or incomplete" in refused(network, saved)


@pytest.mark.parametrize(
    ("content", "says"), [("{", "is not JSON"), ("[]", "must hold a JSON object"), ("", "not JSON")]
)
def test_a_config_that_is_none(network, saved, content, says):
    (saved / CONFIG).write_text(content)
    assert says in refused(network, saved)


def test_what_is_missing(network, saved, tmp_path):
    assert "there is no adapter at" in refused(network, tmp_path / "elsewhere")
    assert "there is no adapter at" in refused(network, saved / CONFIG)
    (saved / WEIGHTS).rename(saved / "adapter_model.bin")
    assert "adapter_model.safetensors is missing (adapter_model.bin can run code" in refused(
        network, saved
    )
    (saved / CONFIG).unlink()
    assert "adapter_config.json is missing" in refused(network, saved)


def test_another_models_adapter(network, saved):
    rewrite(saved, lambda t: t.update({k: v[:, :40].clone() for k, v in t.items() if "_A." in k}))
    assert "[4, 40], not [4, 48]" in refused(network, saved)


def test_a_save_over_a_file(network, tmp_path):
    add_lora(network, LoraConfig())
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RequestError, match=r"cannot save an adapter in .*file: it is a file"):
        save_adapter(network, tmp_path / "file")
    with pytest.raises(RequestError, match="no adapter 'b'"):
        save_adapter(network, tmp_path / "b", "b")
    assert not (tmp_path / "b").exists() and (tmp_path / "file").read_text() == "mine"


def test_a_save_that_is_killed_leaves_no_mixture(saved):
    """Killed while the weights are written, the directory is no adapter; never old config with new weights."""
    script = """
import os, sys
from gristmill.adapters import load_adapter, save, save_adapter
from gristmill.model import Transformer, initialize
from tests.adapters.pairs import shape
network = initialize(Transformer(shape("qwen3")), seed=0)
load_adapter(network, sys.argv[1])
save.save_file = lambda *args, **kwargs: os._exit(9)
save_adapter(network, sys.argv[1])
"""
    result = subprocess.run([sys.executable, "-c", script, saved], env=dict(os.environ))
    assert result.returncode == 9
    network, _ = make_pair("qwen3")
    assert "adapter_config.json is missing" in refused(network, saved)


@torch.no_grad()
def test_half_precision_files(network, saved):
    """What was trained or saved in bf16 becomes fp32, bit for bit."""
    rewrite(saved, lambda t: t.update({k: v.bfloat16() for k, v in t.items()}))
    load_adapter(network, saved)
    assert network.model.layers[1].self_attn.q_proj.lora["default"].A.dtype == torch.float32
    save_adapter(network, saved.parent / "again")
    before = load_file(saved / WEIGHTS)
    for name, tensor in load_file(saved.parent / "again" / WEIGHTS).items():
        assert torch.equal(tensor, before[name].float()), name
