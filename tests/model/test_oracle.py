"""The network against transformers' Llama and Qwen3: logits whole and token by token, and greedy text."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from gristmill.errors import RequestError
from gristmill.model import KVCache, ModelConfig, Transformer

CASES = {
    "qwen3": dict(qk_norm=True, num_kv_heads=2),
    "qwen3 untied, one kv head": dict(qk_norm=True, num_kv_heads=1, tie_embeddings=False),
    "llama": dict(qk_norm=False, num_kv_heads=2, rope_theta=500_000.0, norm_eps=1e-5),
    "llama untied, all kv heads": dict(qk_norm=False, num_kv_heads=4, tie_embeddings=False),
}
BOUND = 1e-4


@pytest.fixture(scope="module", params=list(CASES))
def pair(request):
    """Our network and theirs with the same weights; every 1-D parameter is perturbed, so none is idle."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

    config = ModelConfig(
        vocab_size=320,
        hidden_size=64,
        num_layers=3,
        num_heads=4,
        head_dim=24,
        intermediate_size=112,
        max_seq_len=128,
        **CASES[request.param],
    )
    kind, network = (
        (Qwen3Config, Qwen3ForCausalLM) if config.qk_norm else (LlamaConfig, LlamaForCausalLM)
    )
    torch.manual_seed(0)
    theirs = network._from_config(
        kind(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            intermediate_size=config.intermediate_size,
            max_position_embeddings=config.max_seq_len,
            rms_norm_eps=config.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            tie_word_embeddings=config.tie_embeddings,
            initializer_range=0.1,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        ),
        attn_implementation="eager",
    )
    theirs = theirs.float().eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape))
    ours = Transformer(config).eval()
    weights = theirs.state_dict()
    if config.tie_embeddings:
        del weights["lm_head.weight"]
    ours.load_state_dict(weights)
    return ours, theirs


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(0, 320, (3, 50), generator=torch.Generator().manual_seed(1))


def greatest(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a - b).abs().max().item()


@torch.no_grad()
def test_forward(pair, tokens):
    ours, theirs = pair
    expected = theirs(tokens).logits
    assert greatest(ours(tokens), expected) <= BOUND
    assert expected.std() > 0.5


@torch.no_grad()
@pytest.mark.parametrize(
    "parameter", ["q_proj", "k_proj", "input_layernorm", "post_attention_layernorm", "norm"]
)
def test_the_bound_is_one_that_a_wrong_network_cannot_meet(pair, tokens, parameter):
    ours, theirs = pair
    expected = theirs(tokens).logits
    chosen = [p for n, p in ours.named_parameters() if n.endswith(f"{parameter}.weight")]
    kept = [p.clone() for p in chosen]
    try:
        for p in chosen:
            p.copy_(torch.ones_like(p) if p.ndim == 1 else p.flip(0))
        assert greatest(ours(tokens), expected) > 100 * BOUND
    finally:
        for p, before in zip(chosen, kept, strict=True):
            p.copy_(before)


@torch.no_grad()
def test_token_by_token_with_a_cache(pair, tokens):
    ours, theirs = pair
    expected = theirs(tokens).logits
    cache = KVCache(ours.config, batch=3, capacity=50)
    steps = [
        ours(tokens[:, t : t + 1], cache=cache, positions_BT=torch.full((3, 1), t))
        for t in range(50)
    ]
    assert greatest(torch.cat(steps, dim=1), expected) <= BOUND


@torch.no_grad()
@pytest.mark.parametrize("cuts", [[20], [1, 2, 30], [49]])
def test_in_chunks_with_a_cache(pair, tokens, cuts):
    ours, theirs = pair
    expected = theirs(tokens).logits
    cache = KVCache(ours.config, batch=3, capacity=64)
    parts, bounds = [], [0, *cuts, 50]
    for start, end in pairwise(bounds):
        positions = torch.arange(start, end).expand(3, -1)
        parts.append(ours(tokens[:, start:end], cache=cache, positions_BT=positions))
    assert greatest(torch.cat(parts, dim=1), expected) <= BOUND


@torch.no_grad()
def test_rows_of_unequal_length_in_one_cache(pair, tokens):
    """Padded on the right, each row goes on from its own length as if it were alone."""
    ours, theirs = pair
    lengths = torch.tensor([7, 50 - 8, 23])
    cache = KVCache(ours.config, batch=3, capacity=50)
    longest = int(lengths.max())
    ours(tokens[:, :longest], cache=cache, positions_BT=torch.arange(longest).expand(3, -1))
    for step in range(8):
        at = lengths + step
        given = tokens[torch.arange(3), at][:, None]
        logits = ours(given, cache=cache, positions_BT=at[:, None])
        for row in range(3):
            alone = theirs(tokens[row : row + 1, : int(at[row]) + 1]).logits[:, -1]
            assert greatest(logits[row], alone) <= BOUND, (row, step)


@torch.no_grad()
def test_selected_rows_go_on(pair, tokens):
    ours, theirs = pair
    cache = KVCache(ours.config, batch=3, capacity=50)
    ours(tokens[:, :20], cache=cache, positions_BT=torch.arange(20).expand(3, -1))
    cache.select([2, 0])
    logits = ours(tokens[[2, 0], 20:21], cache=cache, positions_BT=torch.full((2, 1), 20))
    assert greatest(logits[:, 0], theirs(tokens[[2, 0], :21]).logits[:, -1]) <= BOUND


@torch.no_grad()
def test_64_greedy_tokens_are_identical(pair, tokens):
    ours, theirs = pair
    prompt = tokens[:, :10]
    expected = theirs.generate(prompt, max_new_tokens=64, min_new_tokens=64, do_sample=False)
    cache = KVCache(ours.config, batch=3, capacity=74)
    logits = ours(prompt, cache=cache, positions_BT=torch.arange(10).expand(3, -1))
    made = [logits[:, -1].argmax(-1)]
    for position in range(10, 73):
        at = torch.full((3, 1), position)
        made.append(ours(made[-1][:, None], cache=cache, positions_BT=at)[:, -1].argmax(-1))
    assert torch.equal(torch.stack(made, dim=1), expected[:, 10:])


def test_gradients_equal_theirs(pair, tokens):
    ours, theirs = pair
    for network in pair:
        network.zero_grad()
    theirs(tokens, labels=tokens).loss.backward()
    logits = ours(tokens)[:, :-1].reshape(-1, 320)
    torch.nn.functional.cross_entropy(logits, tokens[:, 1:].reshape(-1)).backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert torch.allclose(parameter.grad, expected[name].grad, atol=1e-5), name


def test_parameter_count(pair):
    ours, theirs = pair
    assert ours.config.num_parameters == theirs.num_parameters()


def test_too_long_a_text(pair):
    with pytest.raises(RequestError, match="129 tokens do not fit the model's context of 128"):
        pair[0](torch.zeros(1, 129, dtype=torch.long))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (dict(num_layers=0), "num_layers must be at least 1"),
        (dict(num_kv_heads=3), r"num_heads \(4\) must be a multiple of num_kv_heads \(3\)"),
        (dict(head_dim=7), "head_dim must be even"),
    ],
)
def test_impossible_shapes(change, says):
    shape = dict(
        vocab_size=8,
        hidden_size=8,
        num_layers=1,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        intermediate_size=8,
        max_seq_len=8,
    )
    with pytest.raises(RequestError, match=says):
        ModelConfig(**{**shape, **change})
