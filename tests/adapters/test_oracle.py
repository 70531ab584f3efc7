"""Adapters against `peft`: logits both ways, gradients, a training trajectory, merging."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from gristmill.adapters import (
    LoraConfig,
    activate,
    adapters_by_row,
    add_lora,
    load_adapter,
    merge,
    merge_and_unload,
    save_adapter,
    trainable_parameters,
    unmerge,
)
from tests.adapters.pairs import make_pair, peft_model, relative, stir, tokens

BOUND = 1e-5

# the same in peft's words and in ours
OPTIONS = {
    "lora": ({}, LoraConfig(4, 6, target_modules=("q_proj", "v_proj"))),
    "rslora": (
        dict(use_rslora=True),
        LoraConfig(4, 6, rslora=True, target_modules=("q_proj", "v_proj")),
    ),
    "dora, every layer": (
        dict(use_dora=True, target_modules="all-linear"),
        LoraConfig(4, 6, dora=True),
    ),
    "dora, rslora": (
        dict(use_dora=True, use_rslora=True, target_modules=["o_proj", "down_proj"]),
        LoraConfig(4, 6, rslora=True, dora=True, target_modules=("o_proj", "down_proj")),
    ),
    "own ranks and alphas": (
        dict(
            target_modules=["q_proj", "k_proj", "gate_proj"],
            rank_pattern={"layers.1.self_attn.q_proj": 2, "gate_proj": 7},
            alpha_pattern={r"layers\.\d+\.self_attn\.k_proj": 11},
        ),
        LoraConfig(
            4,
            6,
            target_modules=("gate_proj", "k_proj", "q_proj"),
            rank_pattern={"layers.1.self_attn.q_proj": 2, "gate_proj": 7},
            alpha_pattern={r"layers\.\d+\.self_attn\.k_proj": 11},
        ),
    ),
    "regular expression": (
        dict(target_modules=r".*\.1\..*(up|down)_proj"),
        LoraConfig(4, 6, target_modules=r".*\.1\..*(up|down)_proj"),
    ),
    "excluded": (
        dict(target_modules="all-linear", exclude_modules=["mlp.up_proj", "q_proj"]),
        LoraConfig(4, 6, exclude_modules=("mlp.up_proj", "q_proj")),
    ),
    "one layer": (
        dict(target_modules=["q_proj", "up_proj"], layers_to_transform=[1]),
        LoraConfig(4, 6, target_modules=("q_proj", "up_proj"), layers_to_transform=(1,)),
    ),
}


@pytest.fixture(params=list(OPTIONS))
def options(request):
    return OPTIONS[request.param]


@torch.no_grad()
def test_what_peft_saves_loads_here(pair, options, tmp_path):
    ours, theirs = pair
    base = theirs(tokens()).logits
    made = peft_model(theirs, **options[0])
    made.save_pretrained(tmp_path)
    load_adapter(ours, tmp_path)
    assert not trainable_parameters(ours)
    expected = made(tokens()).logits
    assert relative(ours(tokens()), expected) <= BOUND
    assert relative(base, expected) > 1000 * BOUND  # or the bound would say little
    activate(ours, None)
    assert relative(ours(tokens()), base) <= BOUND


@torch.no_grad()
def test_what_we_save_loads_in_peft(pair, options, tmp_path):
    from peft import PeftModel

    ours, theirs = pair
    add_lora(ours, options[1])
    stir(ours)
    save_adapter(ours, tmp_path, base="tiny")
    made = PeftModel.from_pretrained(theirs, tmp_path).eval()
    loaded = {n for n, _ in made.named_parameters() if "lora_" in n}
    assert len(loaded) == len(trainable_parameters(ours))
    assert relative(ours(tokens()), made(tokens()).logits) <= BOUND
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny" and config["task_type"] == "CAUSAL_LM"


@torch.no_grad()
def test_saved_and_loaded_is_the_same_to_the_bit(pair, options, tmp_path):
    ours, _ = pair
    add_lora(ours, options[1])
    stir(ours)
    save_adapter(ours, tmp_path / "a")
    again, _ = make_pair("llama" if ours.config.attention_bias else "qwen3")
    config = load_adapter(again, tmp_path / "a", name="other")
    assert torch.equal(again(tokens()), ours(tokens()))
    kept = ("rank", "alpha", "rslora", "dora", "rank_pattern", "alpha_pattern")
    assert all(getattr(config, key) == getattr(options[1], key) for key in kept)
    save_adapter(again, tmp_path / "b", name="other")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "a" / name).read_bytes()


def _loss(logits):
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens()[:, 1:].flatten())


def _theirs_by_our_names(made):
    found = {}
    for name, parameter in made.named_parameters():
        if "lora_" in name:
            module, _, rest = name.removeprefix("base_model.model.").partition(".lora_")
            part = {"A": "A", "B": "B", "m": "magnitude"}[rest[0]]
            found[f"{module}.lora.default.{part}"] = parameter
    return found


def test_gradients_equal_pefts(pair, options, tmp_path):
    ours, theirs = pair
    made = peft_model(theirs, **options[0])
    made.save_pretrained(tmp_path)
    load_adapter(ours, tmp_path)
    for name, parameter in ours.named_parameters():
        parameter.requires_grad_(".lora." in name)
    _loss(made(tokens()).logits).backward()
    _loss(ours(tokens())).backward()
    expected = _theirs_by_our_names(made)
    assert expected.keys() == trainable_parameters(ours).keys()
    for name, parameter in ours.named_parameters():
        if name in expected:
            assert relative(parameter.grad, expected[name].grad) <= 1e-4, name
        else:
            assert parameter.grad is None, name


@pytest.mark.parametrize("kind", ["lora", "dora, every layer"])
def test_training_takes_pefts_path(pair, kind, tmp_path):
    ours, theirs = pair
    made = peft_model(theirs, **OPTIONS[kind][0])
    made.save_pretrained(tmp_path)
    load_adapter(ours, tmp_path)
    for name, parameter in ours.named_parameters():
        parameter.requires_grad_(".lora." in name)
    paths = []
    for network, read in ((ours, lambda y: y), (made, lambda y: y.logits)):
        network.train()
        trained = [p for p in network.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-2)
        losses = []
        for _ in range(8):
            loss = _loss(read(network(tokens())))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        paths.append(torch.tensor(losses))
    assert paths[0][-1] < 0.9 * paths[0][0]
    # AdamW divides by √v: where a gradient is near zero, its rounding is a step's direction
    assert relative(paths[0], paths[1]) <= 1e-4


def test_dropout_is_off_in_eval_and_dora_drops_as_peft(pair, tmp_path):
    ours, theirs = pair
    made = peft_model(theirs, lora_dropout=0.4, use_dora=True, target_modules=["q_proj"])
    made.save_pretrained(tmp_path)
    load_adapter(ours, tmp_path)
    with torch.no_grad():
        still = ours(tokens())
        assert relative(still, made(tokens()).logits) <= BOUND
        for network in (ours, made):
            network.train()
        torch.manual_seed(7)
        dropped = ours(tokens())
        torch.manual_seed(7)
        assert relative(dropped, made(tokens()).logits) <= BOUND
        assert relative(dropped, still) > 100 * BOUND
        assert torch.equal(ours.eval()(tokens()), still)


@torch.no_grad()
def test_merging_equals_pefts_and_is_undone_to_the_bit(pair, options, tmp_path):
    ours, theirs = pair
    made = peft_model(theirs, **options[0])
    made.save_pretrained(tmp_path)
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    load_adapter(ours, tmp_path)
    unmerged = ours(tokens())
    merge(ours)
    assert relative(ours(tokens()), unmerged) <= BOUND
    expected = made.merge_and_unload().state_dict()
    changed = 0
    for name in before:
        assert relative(ours.state_dict()[name], expected[name]) <= 1e-6, name
        changed += not torch.equal(ours.state_dict()[name], before[name])
    assert changed >= 2
    unmerge(ours)
    for name, tensor in before.items():
        assert torch.equal(ours.state_dict()[name], tensor), name
    assert torch.equal(ours(tokens()), unmerged)
    merge_and_unload(ours)
    assert ours.state_dict().keys() == before.keys()
    assert relative(ours(tokens()), unmerged) <= BOUND


@torch.no_grad()
def test_two_adapters_and_a_choice_for_every_row_as_peft(pair, tmp_path):
    """On different layers and of different rank; peft's own mixed batch is the oracle."""
    from peft import PeftModel

    ours, theirs = pair
    kind = "llama" if ours.config.attention_bias else "qwen3"
    peft_model(make_pair(kind)[1]).save_pretrained(tmp_path / "one")
    made = peft_model(make_pair(kind)[1], r=3, target_modules=["v_proj", "up_proj"])
    made.save_pretrained(tmp_path / "two")
    theirs = PeftModel.from_pretrained(theirs, tmp_path / "one", adapter_name="one")
    theirs.load_adapter(tmp_path / "two", adapter_name="two")
    theirs.eval()
    for name in ("one", "two"):
        load_adapter(ours, tmp_path / name, name=name)
    for name in ("one", "two"):
        activate(ours, name)
        theirs.set_adapter(name)
        assert relative(ours(tokens()), theirs(tokens()).logits) <= BOUND
    names = ["two", None, "one", "two", None]
    with adapters_by_row(ours, names):
        mixed = ours(tokens(5))
    expected = theirs(tokens(5), adapter_names=[name or "__base__" for name in names]).logits
    assert relative(mixed, expected) <= BOUND
    for row, name in enumerate(names):
        activate(ours, name)
        assert relative(mixed[row], ours(tokens(5)[row : row + 1])[0]) <= BOUND, row


def test_initial_values_have_pefts_distribution(pair):
    """B zero; A uniform in ±1/√in; DoRA's magnitudes equal to peft's."""
    from peft import LoraConfig as Theirs
    from peft import get_peft_model

    ours, theirs = pair
    peft, config = OPTIONS["dora, every layer"]

    made = get_peft_model(theirs, Theirs(r=64, task_type="CAUSAL_LM", **peft))
    add_lora(ours, replace(config, rank=64))
    expected = _theirs_by_our_names(made)
    for name, parameter in trainable_parameters(ours).items():
        if name.endswith(".A"):
            bound = parameter.shape[1] ** -0.5
            assert expected[name].abs().max() <= bound and parameter.abs().max() <= bound
            assert parameter.std().item() == pytest.approx(expected[name].std().item(), rel=0.1)
        else:
            assert torch.allclose(parameter, expected[name], rtol=1e-6, atol=0), name
