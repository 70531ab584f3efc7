"""Serving: caches against the engine's own numbers, weights against tensors and published files, closed forms."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from gristmill.engine.native import NativeRunner
from gristmill.engine.torch_runner import TorchRunner
from gristmill.errors import RequestError
from gristmill.model import LatentConfig, ModelConfig, Transformer, initialize, meta_network
from gristmill.plan import (
    cache_bytes,
    cache_bytes_per_token,
    devices,
    presets,
    rows_that_fit,
    speculative_speedup,
    speed,
    weight_bytes,
)
from gristmill.plan.inference import (
    WEIGHTS,
    cache_read_bytes,
    price_per_million,
    read_bytes,
    tokens_per_pass,
)

PRESETS, H100 = presets(), devices()["h100"]
LLAMA = PRESETS["llama-3-8b"].config
SMALL = ModelConfig(256, 64, 3, 4, 2, 32, 96, 128)  # native caches pad keys to 16 elements
LATENT = replace(
    SMALL, latent=LatentConfig(24, 32, 16), rotary_dim=8, num_kv_heads=4, qk_norm=False
)


@pytest.mark.parametrize("cache", ["float32", "float16", "int8", "int4"])
@pytest.mark.parametrize("config", [SMALL, LATENT], ids=["grouped", "latent"])
def test_a_cache_is_as_large_as_the_engines(config: ModelConfig, cache) -> None:
    network = initialize(Transformer(config), 0)
    said = cache_bytes_per_token(config, cache)
    assert 16 * said == TorchRunner.block_bytes(network, 16, cache)
    if NativeRunner.unsupported(network) is None:
        assert 16 * said == NativeRunner.block_bytes(network, 16, cache)


def test_caches_are_the_published_sizes() -> None:
    assert cache_bytes_per_token(LLAMA) == 131_072
    assert cache_bytes(LLAMA, 131_072, 1) == 16 * 2**30
    assert cache_bytes_per_token(PRESETS["llama-3-70b"].config) == 327_680
    assert cache_bytes_per_token(PRESETS["qwen3-0.6b"].config) == 112 * 2**10


def test_plain_weights_are_the_tensors_bytes() -> None:
    for name in ("llama-3-8b", "qwen3-30b-a3b", "gpt2"):
        network = meta_network(PRESETS[name].config)
        for form, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
            total = sum(p.numel() * dtype.itemsize for p in network.parameters())
            assert weight_bytes(PRESETS[name].config, form) == total


def test_quantized_weights_are_the_published_files() -> None:
    """GiB of llama.cpp's files of Llama-3.1-8B, GB of the tables in the quantization notes."""
    gib = {"q4_k_m": 4.58, "q5_k_m": 5.33, "q6_k": 6.14, "q8_0": 7.95}
    for form, size in gib.items():
        assert weight_bytes(LLAMA, form) / 2**30 == pytest.approx(size, rel=0.005)
    large = PRESETS["llama-3-70b"].config
    for form, size in {"bfloat16": 141.1, "int4-g128": 39.8, "q4_k_m": 43.1, "q8_0": 75}.items():
        assert weight_bytes(large, form) / 1e9 == pytest.approx(size, rel=0.005)


def test_decode_alone_waits_for_the_weights() -> None:
    """tokens/s ≤ bandwidth / (weights + cache)"""
    table = LLAMA.vocab_size * LLAMA.hidden_size * 2
    reads = weight_bytes(LLAMA, "bfloat16") - table + 4096 * 131_072
    found = speed(LLAMA, H100, context=4096, reached=1.0)
    assert found.decode == pytest.approx(H100.bandwidth / reads)
    assert found.bound == "memory"
    assert speed(LLAMA, H100, context=128, rows=2048, reached=1.0).bound == "arithmetic"
    both = speed(LLAMA, H100, context=4096, devices=2, reached=1.0)
    assert both.decode == pytest.approx(2 * found.decode)


def test_a_prompt_is_arithmetic() -> None:
    found = speed(LLAMA, H100, context=8192, reached=1.0)
    # 2N of all but the embedding table, and half of attention's 4·L·H·C·T
    flops = 2 * (8_030_261_248 - 128_256 * 4096 - 266_240) + 4 * 32 * 32 * 128 * 8193 / 2
    assert found.prefill == pytest.approx(H100.flops["bfloat16"] / flops, rel=1e-6)


def test_few_rows_read_few_experts() -> None:
    config = PRESETS["mixtral-8x7b"].config
    table = config.vocab_size * config.hidden_size * 2
    everything = weight_bytes(config, "bfloat16") - table
    experts = 32 * 8 * 3 * 4096 * 14_336 * 2
    assert read_bytes(config, "bfloat16", 1) == pytest.approx(everything - experts * 6 / 8)
    # The chance that no row of 4 is sent to an expert is (1 - 2/8)^4.
    assert read_bytes(config, "bfloat16", 4) == pytest.approx(everything - experts * 0.75**4)
    assert read_bytes(config, "bfloat16", 256) == pytest.approx(everything)


def test_sliding_layers_read_their_window() -> None:
    config = PRESETS["mistral-7b"].config
    assert cache_read_bytes(config, 2048) == cache_bytes(config, 2048, 1)
    assert cache_read_bytes(config, 32_768) == cache_bytes(config, 4096, 1)


def test_as_many_rows_fit_as_there_is_room_for() -> None:
    rows = rows_that_fit(LLAMA, H100, "bfloat16", "float16", 8192)
    room = 0.92 * H100.memory - weight_bytes(LLAMA, "bfloat16")
    assert cache_bytes(LLAMA, 8192, rows) <= room < cache_bytes(LLAMA, 8192, rows + 1)
    assert rows_that_fit(PRESETS["llama-3-70b"].config, H100, "bfloat16", "float16", 8192) == 0


def test_speculation_is_leviathans() -> None:
    assert tokens_per_pass(0.6, 3) == pytest.approx(2.18, abs=0.005)
    assert speculative_speedup(0.6, 3, 0.05) == pytest.approx(1.89, abs=0.005)
    assert speculative_speedup(0.8, 4, 0.05) == pytest.approx(2.80, abs=0.005)
    assert tokens_per_pass(1.0, 5) == 6 and tokens_per_pass(0.0, 5) == 1
    with pytest.raises(RequestError, match="share from 0 to 1"):
        tokens_per_pass(1.2, 2)


def test_a_million_tokens_cost_their_seconds() -> None:
    assert price_per_million(1000, 3.6, devices=2) == pytest.approx(2.0)


def test_unknown_forms_are_told() -> None:
    with pytest.raises(RequestError, match='Did you mean "q4_k_m"'):
        weight_bytes(LLAMA, "q4km")
    with pytest.raises(RequestError, match='Did you mean "float16"'):
        cache_bytes_per_token(LLAMA, "flot16")
    assert all(weight_bytes(LLAMA, form) > 0 for form in WEIGHTS)
