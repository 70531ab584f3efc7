"""Quantized directories of every family: other names, fused and permuted rows, experts; transformers reads them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gristmill.errors import RequestError
from gristmill.formats import load_network, save_hf
from gristmill.formats.quantized.gptq import GPTQ
from gristmill.formats.quantized.layers import quantized_layers
from tests.families import saved
from tests.formats.rounded import exact, nearest, quantize

# One of each way to store linear layers.
FAMILIES = [
    "llama, biases",
    "llama, llama3 rope",
    "mixtral",
    "qwen2",
    "qwen3_moe, some dense",
    "gemma2",
    "olmo2",
    "phi3",
    "gpt_neox",
    "deepseek_v3",
    "gpt2",
    "gpt_oss",
]
# AWQ differs by the bytes alone.
CASES = [(family, format) for family in FAMILIES for format in ("compressed-tensors", "gptq")]
CASES += [(family, "awq") for family in ("llama, biases", "phi3", "gpt_neox", "gpt2")]


def tokens() -> torch.Tensor:
    return torch.randint(3, 320, (2, 40), generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    return tmp_path_factory.getbasetemp() / "families"


@pytest.mark.parametrize(("family", "format"), CASES)
@torch.no_grad()
def test_written_and_read_again(family, format, directory, tmp_path):
    network = quantize(load_network(saved(family, directory)[1]), symmetric=format != "awq")
    count = len(quantized_layers(network))
    if family == "gpt2" and format != "gptq":  # whose Conv1D is no Linear to other programs
        with pytest.raises(RequestError, match=r'only "gptq" is read by others'):
            save_hf(network, tmp_path / "first", quantization=format)
        assert not (tmp_path / "first").exists()
        return
    save_hf(network, tmp_path / "first", quantization=format)
    again = exact(load_network(tmp_path / "first"))
    assert len(quantized_layers(again)) == count > 0
    assert torch.equal(again(tokens()), network(tokens()))
    widened = load_network(tmp_path / "first", widen=True)
    assert not quantized_layers(widened)
    assert torch.allclose(widened(tokens()), network(tokens()), atol=1e-4)
    save_hf(load_network(tmp_path / "first", "auto"), tmp_path / "second", quantization=format)
    first, second = (load_file(tmp_path / n / "model.safetensors") for n in ("first", "second"))
    assert first.keys() == second.keys()
    assert all(first[name].equal(second[name]) for name in first)
    configs = [(tmp_path / n / "config.json").read_text() for n in ("first", "second")]
    assert configs[0] == configs[1]


# GPT-2's Conv1D is not for compressed-tensors, and transformers 5.24 takes every expert for a quantized one there.
NOT_THEIRS = ("gpt2", "mixtral", "qwen3_moe, some dense", "deepseek_v3")


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in NOT_THEIRS])
@torch.no_grad()
def test_transformers_reads_them(family, directory, tmp_path):
    from transformers import AutoModelForCausalLM

    network = quantize(load_network(saved(family, directory)[1]))
    save_hf(network, tmp_path)
    theirs, loading = AutoModelForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True, attn_implementation="eager"
    )
    assert not any(loading.values()), loading
    expected = theirs(tokens()).logits
    assert (network(tokens()) - expected).abs().max() <= 1e-4 * expected.abs().max()
    full = saved(family, directory)[0](tokens()).logits
    assert (full - expected).abs().max() > 1e-2 * expected.abs().max()  # rounding was not idle


@torch.no_grad()
def test_quantized_experts_are_widened(directory, tmp_path):
    network = quantize(load_network(saved("mixtral", directory)[1]), group=64)
    save_hf(network, tmp_path, quantization="gptq")
    held = load_file(tmp_path / "model.safetensors")
    expected = {}
    for name in [name for name in held if ".experts." in name]:
        codes = nearest(held.pop(name), group=64)
        layer = name.removesuffix(".weight")
        held |= {f"{layer}.{part}": t for part, t in GPTQ(4, 64, 1).pack(codes).items()}
        expected[name] = codes.matrix()
    save_file(held, tmp_path / "model.safetensors")
    again = load_network(tmp_path)
    for theirs, ours in (("w1", "gate"), ("w3", "up"), ("w2", "down")):
        stack = again.get_parameter(f"model.layers.1.mlp.experts.{ours}_proj")
        for expert, weight in enumerate(stack):
            disk = f"model.layers.1.block_sparse_moe.experts.{expert}.{theirs}.weight"
            assert torch.equal(weight, expected[disk])
    assert len(quantized_layers(again)) == len(quantized_layers(network))
