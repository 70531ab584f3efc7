"""Counts against published numbers, the network itself, transformers on the meta device, and torch's FLOP counter."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import transformers
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from gristmill.formats.families import config_from_hf, config_to_hf
from gristmill.model import (
    LatentConfig,
    ModelConfig,
    MoEConfig,
    Transformer,
    initialize,
    meta_network,
)
from gristmill.plan import counts, flops_per_token, presets
from gristmill.plan.counts import span
from gristmill.train.dial import derive
from tests.families import CASES, SHARED

PRESETS = presets()
SMALL = ModelConfig(
    vocab_size=320,
    hidden_size=64,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    intermediate_size=96,
    max_seq_len=64,
)


@pytest.mark.parametrize("name", list(PRESETS))
def test_a_preset_is_its_network_and_what_was_published(name: str) -> None:
    preset = PRESETS[name]
    network = meta_network(preset.config)
    assert counts(preset.config).total == sum(p.numel() for p in network.parameters())
    total = counts(preset.config, preset.extra_per_layer).total
    if isinstance(preset.published, int):
        assert total == preset.published
    elif preset.published is not None:
        unit = {"B": 1e9, "T": 1e12}[preset.published[-1]]
        assert total / unit == pytest.approx(float(preset.published[:-1]), rel=0.015)


@pytest.mark.parametrize(
    "name", ["llama-3.2-1b", "mixtral-8x7b", "qwen3-30b-a3b", "deepseek-v3-671b", "gpt2"]
)
def test_a_preset_has_as_many_parameters_in_transformers(name: str) -> None:
    hf = config_to_hf(PRESETS[name].config)
    hf |= {"num_nextn_predict_layers": 0}
    kind = getattr(transformers, hf["architectures"][0])
    with torch.device("meta"):
        theirs = kind(kind.config_class(**hf))
    assert counts(PRESETS[name].config).total == sum(p.numel() for p in theirs.parameters())


@pytest.mark.parametrize("case", list(CASES))
def test_every_family_counts_as_transformers(case: str, tmp_path) -> None:
    kind, more = CASES[case]
    theirs = getattr(transformers, kind)(**{**SHARED, **more})
    with torch.device("meta"):
        network = transformers.AutoModelForCausalLM.from_config(theirs)
    theirs.architectures = [type(network).__name__]
    config = config_from_hf(theirs.to_dict(), tmp_path / "config.json")
    assert counts(config).total == sum(p.numel() for p in network.parameters())


def test_active_parameters_are_those_that_were_published() -> None:
    assert counts(PRESETS["mixtral-8x7b"].config).active / 1e9 == pytest.approx(12.9, abs=0.05)
    assert counts(PRESETS["qwen3-30b-a3b"].config).active / 1e9 == pytest.approx(3.3, abs=0.06)
    assert counts(PRESETS["qwen3-235b-a22b"].config).active / 1e9 == pytest.approx(22, abs=0.3)
    assert counts(PRESETS["deepseek-v3-671b"].config).active / 1e9 == pytest.approx(37, abs=0.6)


def test_the_parts_are_the_whole() -> None:
    for preset in PRESETS.values():
        c = counts(preset.config)
        assert c.total == c.embedding + c.head + c.matrices + c.vectors
        assert c.active <= c.total and c.body == c.total - c.embedding - c.head


@pytest.mark.parametrize("size", ["tiny", "small", "40M", "124M", "1.5B"])
def test_our_presets_are_what_the_dial_derives(size: str) -> None:
    config = PRESETS[f"gristmill-{size.lower()}"].config
    derived = derive(size)
    settings = derived["pretrain"]
    shape = [k for k in settings if hasattr(config, k)]
    assert len(shape) >= 7 and config.vocab_size == derived["tokenizer"]["vocab_size"]
    assert {k: getattr(config, k) for k in shape} == {k: settings[k] for k in shape}
    assert PRESETS[f"gristmill-{size.lower()}"].tokens == settings["tokens"]


WITH_FLOPS = {
    "grouped queries": SMALL,
    "untied": replace(SMALL, tie_embeddings=False),
    "no gate": replace(SMALL, gated=False, activation="gelu"),
    "experts": replace(SMALL, moe=MoEConfig(4, 2, 48, shared_intermediate_size=32, dense_layers=(0,))),
    "latent": replace(
        SMALL, latent=LatentConfig(24, 32, 16), rotary_dim=8, num_kv_heads=4, qk_norm=False
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", list(WITH_FLOPS))
def test_flops_are_those_that_torch_counts(case: str) -> None:
    """Attention in the open, which computes all pairs: the convention of MFU."""
    config, rows, context = WITH_FLOPS[case], 2, 48
    network = initialize(Transformer(config), 0)
    for parameter in network.parameters():  # zeros would let gradients be none
        parameter.data.normal_(0, 0.05)
    tokens = torch.arange(rows * context).reshape(rows, context) % config.vocab_size

    def attend(q, k, v, context, config, sinks):
        with sdpa_kernel(SDPBackend.MATH):
            return torch.nn.functional.scaled_dot_product_attention(
                q, k, v, is_causal=True, enable_gqa=True
            )

    for block in network.model.layers:
        vars(block.self_attn)["attend"] = attend
    with FlopCounterMode(display=False) as forward:
        loss = network(tokens).float().logsumexp(-1).sum()
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    said = flops_per_token(config, context)
    assert forward.get_total_flops() == rows * context * said.forward
    total = forward.get_total_flops() + backward.get_total_flops()
    assert total == rows * context * said.training


def test_the_attention_term_is_palms() -> None:
    """6N + 12·L·H·Q·T (PaLM, appendix B): GPT-2's is 1.132e8 at 1,024 tokens."""
    config = PRESETS["gpt2"].config
    assert 3 * flops_per_token(config, 1024).attention == 12 * 12 * 12 * 64 * 1024
    assert 3 * flops_per_token(config, 1024).attention == pytest.approx(1.132e8, rel=1e-3)
    of_gpt3 = flops_per_token(PRESETS["gpt-3-175b"].config, 2048).matrices * 3 * 300e9
    assert of_gpt3 == pytest.approx(3.14e23, rel=2e-3)


@pytest.mark.parametrize("window", [None, 1, 7, 40, 100])
def test_what_a_token_sees_is_the_masks_mean(window: int | None) -> None:
    T = 40
    places = torch.arange(T)
    seen = places[None] <= places[:, None]
    if window is not None:
        seen &= places[:, None] - places[None] < window
    assert span(T, window, causal=True) == pytest.approx(seen.sum().item() / T)
