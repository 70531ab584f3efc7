"""What `bench` measures: counts and bytes that can be known; times only for being times."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch

from gristmill.engine import Engine
from gristmill.engine.measure import cache_bytes, measure, prompts, read_bandwidth, weight_bytes
from gristmill.errors import RequestError
from gristmill.formats import Model
from gristmill.model import MoEConfig, Transformer
from gristmill.quantize.int8 import quantize_network
from tests.tiny_model import random_model


def with_config(**changes) -> Model:
    model = random_model()
    network = Transformer(replace(model.config, **changes))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(0.01)
    return Model(network, model.tokenizer)


def engine_of(model: Model, **options) -> Engine:
    return Engine(model, runner="torch", prefix_caching=False, **options)


def test_weight_bytes_of_a_token() -> None:
    """All of them but the embedding, of which each row reads a line; that is the head where they are tied."""
    for tied in (False, True):
        model = with_config(tie_embeddings=tied)
        config = model.config
        embedding = 0 if tied else 4 * config.vocab_size * config.hidden_size
        for rows in (1, 8):
            lines = 0 if tied else 4 * rows * config.hidden_size
            expected = 4 * config.num_parameters - embedding + lines
            assert weight_bytes(engine_of(model), rows) == expected


def test_weight_bytes_of_8_bit_layers() -> None:
    model = random_model()
    full = weight_bytes(engine_of(model))
    quantized = [
        p
        for n, p in model.network.named_parameters()
        if n.startswith("model.layers.") and p.ndim == 2
    ]
    elements, outputs = sum(p.numel() for p in quantized), sum(len(p) for p in quantized)
    quantize_network(model.network)
    assert weight_bytes(engine_of(model)) == full - 3 * elements + 4 * outputs


def test_weight_bytes_of_experts_grow_with_the_rows() -> None:
    model = with_config(moe=MoEConfig(num_experts=8, experts_per_token=2, intermediate_size=32))
    engine = engine_of(model)
    experts = sum(p.nbytes for n, p in model.network.named_parameters() if ".experts." in n)
    one, many = weight_bytes(engine, 1), weight_bytes(engine, 1000)
    lines = 0 if model.config.tie_embeddings else 4 * 999 * model.config.hidden_size
    assert many - one == pytest.approx(experts * 6 / 8 + lines, abs=2)


def test_cache_bytes_stop_growing_at_a_window() -> None:
    config = random_model().config
    token = config.num_kv_heads * 2 * config.head_dim * 4  # a layer's
    assert cache_bytes(engine_of(random_model()), 100) == 100 * 3 * token
    kinds = ("full_attention", "sliding_attention", "sliding_attention")
    windowed = engine_of(with_config(layer_types=kinds, sliding_window=10))
    assert cache_bytes(windowed, 100) == (100 + 10 + 10) * token
    assert cache_bytes(windowed, 5) == 15 * token


def test_a_point(model) -> None:
    engine = engine_of(model)
    before = engine.stats.computed
    point = measure(engine, 3, 20, 8)
    assert engine.stats.computed - before == 3 * (20 + 7) and not engine.busy
    assert point.rows == 3 and point.prefill_tokens_per_s > 0 and point.first_token_s > 0
    assert 0 < point.between_p50_s <= point.between_p95_s
    step_bytes = weight_bytes(engine, 3) + 3 * cache_bytes(engine, 24)
    assert point.read_bytes == step_bytes
    steps_per_s = point.decode_tokens_per_s / 3
    assert point.read_bytes_per_s == pytest.approx(step_bytes * steps_per_s)
    with pytest.raises(RequestError, match="do not fit the model's context of 192"):
        measure(engine, 1, 190, 8)


def test_what_is_late_is_cut(model) -> None:
    engine = engine_of(model)
    before = engine.stats.computed
    point = measure(engine, 2, 20, 100, deadline=time.monotonic())
    assert engine.stats.computed - before < 2 * 30 and not engine.busy
    assert point.decode_tokens_per_s is None and point.between_p50_s is None


def test_prompts_share_nothing(model) -> None:
    rows = prompts(engine_of(model), 64, 30, seed=1)
    assert len({tuple(row[:3]) for row in rows}) == 64
    assert rows == prompts(engine_of(model), 64, 30, seed=1)


def test_bandwidth_is_of_this_machine() -> None:
    assert 1e8 < read_bandwidth(torch.device("cpu")) < 1e13
