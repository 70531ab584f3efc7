"""Small random models of every shape we save, with a real tokenizer."""

from __future__ import annotations

import heapq
from pathlib import Path

import pytest
import torch

from gristmill.formats import Model
from gristmill.model import ModelConfig, Transformer
from gristmill.model.init import generator_for
from gristmill.tokenizer import Tokenizer, train_bpe

# head_dim differs from hidden_size / num_heads, so nothing can mistake one for the other
SHAPE = dict(
    vocab_size=420,
    hidden_size=60,
    num_layers=2,
    num_heads=4,
    head_dim=24,
    intermediate_size=88,
    max_seq_len=96,
    rope_theta=5_000.0,
    norm_eps=1e-5,
)


def make_model(tokenizer: Tokenizer, seed: int = 0, **shape) -> Model:
    """Every parameter random, norms too: a swapped norm or a forgotten one must show."""
    config = ModelConfig(**{**SHAPE, "num_kv_heads": 2, **shape})
    network = Transformer(config)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator_for(seed, name))
            parameter.copy_(1 + 0.3 * noise if parameter.ndim == 1 else noise * 0.15)
    return Model(network.eval(), tokenizer)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_bpe(iter([Path(heapq.__file__).read_text(encoding="utf-8")]), 400)


@pytest.fixture(scope="session")
def make(tokenizer):
    return lambda **shape: make_model(tokenizer, **shape)


@pytest.fixture
def saved(make, tmp_path) -> Path:
    """A saved Qwen3-shaped model, the test's own to damage."""
    make().save(tmp_path / "model")
    return tmp_path / "model"
