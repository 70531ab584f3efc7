"""Initialization: a function of seed and parameter name, with the spread it promises."""

from __future__ import annotations

import pytest
import torch

from gristmill.model import ModelConfig, Transformer, initialize
from gristmill.model.init import narrow_head


def config(num_layers: int = 2, **changes) -> ModelConfig:
    return ModelConfig(
        vocab_size=500,
        hidden_size=96,
        num_layers=num_layers,
        num_heads=4,
        num_kv_heads=2,
        head_dim=32,
        intermediate_size=256,
        max_seq_len=32,
        **changes,
    )


def test_a_parameter_does_not_depend_on_the_others():
    small = initialize(Transformer(config()), seed=3).state_dict()
    deep = initialize(Transformer(config(num_layers=5)), seed=3).state_dict()
    other = initialize(Transformer(config()), seed=4).state_dict()
    torch.manual_seed(99)  # no global generator takes part
    again = initialize(Transformer(config()), seed=3).state_dict()
    for name, tensor in small.items():
        assert torch.equal(tensor, deep[name]) and torch.equal(tensor, again[name]), name
        if tensor.ndim == 2 and not name.endswith(("o_proj.weight", "down_proj.weight")):
            assert not torch.equal(tensor, other[name]), name


def test_spread():
    network = initialize(Transformer(config(tie_embeddings=False)), seed=0, embedding_std=0.05)
    for name, parameter in network.named_parameters():
        if parameter.ndim == 1:
            assert bool((parameter == 1).all()), name
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            assert not parameter.any(), name
        else:
            expected = 0.05 if "embed_tokens" in name else parameter.shape[1] ** -0.5
            assert abs(parameter.std().item() / expected - 1) < 0.03, name


def test_every_block_begins_as_the_identity():
    network = initialize(Transformer(config()), seed=0)
    tokens = torch.arange(32)[None]
    embedded = network.model.embed_tokens(tokens)
    assert torch.equal(network.hidden(tokens), network.model.norm(embedded))


@pytest.mark.parametrize("tied", [False, True])
def test_a_narrower_head_scales_the_first_logits_alone(tied):
    """√(base/width) on the head's weights; where they are the embedding's, base/width on the last norm's gain."""
    plain = initialize(Transformer(config(tie_embeddings=tied)), seed=0)
    network = initialize(Transformer(config(tie_embeddings=tied)), seed=0)
    narrow_head(network.named_parameters(), 1 / 4)
    tokens = torch.arange(32)[None]
    factor = 1 / 4 if tied else 1 / 2
    assert torch.allclose(network(tokens), factor * plain(tokens), rtol=1e-5, atol=1e-7)
    changed = {
        n for n, p in network.named_parameters() if not torch.equal(p, plain.state_dict()[n])
    }
    assert changed == ({"model.norm.weight"} if tied else {"lm_head.weight"})
