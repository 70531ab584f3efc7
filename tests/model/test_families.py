"""Every family against transformers: logits whole, in a cache, beyond the window, packed, padded; greedy text."""

from __future__ import annotations

import pytest
import torch

from gristmill.formats import load_network
from gristmill.model import KVCache, Transformer
from tests.families import CASES, saved

BOUND = 1e-4  # of a logit's standard deviation


@pytest.fixture(scope="module", params=list(CASES))
def pair(request, tmp_path_factory):
    """transformers' model, and ours loaded from the directory that it was saved in."""
    root = tmp_path_factory.getbasetemp() / "families"
    theirs, directory = saved(request.param, root)
    return theirs, load_network(directory)


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(3, 320, (3, 100), generator=torch.Generator().manual_seed(1))


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert expected.std() > 0.05
    assert (found - expected).abs().max() <= BOUND * expected.std().clamp(min=1.0)


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 15, 17, 50, 100])
def test_logits(pair, tokens, length):
    theirs, ours = pair
    given = tokens[:, :length]
    assert_close(ours(given), theirs(given).logits)


@torch.no_grad()
def test_token_by_token_with_a_cache(pair, tokens):
    theirs, ours = pair
    tokens = tokens[:, :60]
    cache = KVCache(ours.config, batch=3, capacity=60)
    start = ours(tokens[:, :20], cache=cache)
    steps = [
        ours(tokens[:, t : t + 1], cache=cache, positions_BT=torch.full((3, 1), t))
        for t in range(20, 60)
    ]
    found = torch.cat([start, *steps], dim=1)
    if is_longrope(ours):
        # The factors change at position 48: what was cached before keeps the old ones, there as here.
        found, expected = found[:, :48], theirs(tokens[:, :48]).logits
    else:
        expected = theirs(tokens).logits
    assert_close(found, expected)


@torch.no_grad()
def test_documents_packed_in_a_row(pair, tokens):
    """Each says what it says alone: no token sees another document, and positions begin anew."""
    theirs, ours = pair
    lengths = [30, 9, 41, 20]
    row, at = tokens[:1], 0
    segments = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths))[None]
    found = ours(row, segments_BT=segments)
    for length in lengths:
        alone = row[:, at : at + length]
        assert_close(found[:, at : at + length], theirs(alone).logits)
        at += length


@torch.no_grad()
def test_padding_on_the_left(pair, tokens):
    theirs, ours = pair
    given = tokens.clone()
    segments = torch.ones_like(given)
    for row, padding in enumerate([0, 13, 60]):
        given[row, :padding] = 0
        segments[row, :padding] = 0
    found = ours(given, segments_BT=segments)
    positions = (segments.cumsum(-1) - 1).clamp(min=0)
    expected = theirs(given, attention_mask=segments, position_ids=positions).logits
    for row, padding in enumerate([0, 13, 60]):
        if is_longrope(ours) and padding > 50:
            continue  # transformers picks the factors for the longest row of the batch
        assert_close(found[row, padding:], expected[row, padding:])


@torch.no_grad()
def test_64_greedy_tokens_are_identical(pair, tokens):
    theirs, ours = pair
    theirs.generation_config.eos_token_id = None
    prompt = tokens[:, :24]
    if is_longrope(ours):  # where the factors change, transformers begins its cache anew: none here
        expected = found = prompt
        for _ in range(64):
            expected = torch.cat((expected, theirs(expected).logits[:, -1:].argmax(-1)), dim=1)
            found = torch.cat((found, ours(found)[:, -1:].argmax(-1)), dim=1)
        assert torch.equal(found, expected)
        return
    expected = theirs.generate(prompt, max_new_tokens=64, do_sample=False)
    assert torch.equal(greedy(ours, prompt, 64), expected[:, 24:])


def is_longrope(network: Transformer) -> bool:
    scaling = network.config.rope_scaling
    return scaling is not None and scaling.kind == "longrope"


def greedy(network: Transformer, prompt: torch.Tensor, count: int) -> torch.Tensor:
    B, T = prompt.shape
    cache = KVCache(network.config, batch=B, capacity=T + count)
    made = [network(prompt, cache=cache)[:, -1].argmax(-1)]
    for position in range(T, T + count - 1):
        at = torch.full((B, 1), position)
        made.append(network(made[-1][:, None], cache=cache, positions_BT=at)[:, -1].argmax(-1))
    return torch.stack(made, dim=1)


@torch.no_grad()
def test_no_parameter_is_idle(pair, tokens):
    """A parameter that changes nothing would be one whose mistakes no other test here can see."""
    _, ours = pair
    given = tokens[:, :40]
    expected = ours(given)
    for name, parameter in ours.state_dict().items():
        before = parameter.clone()
        parameter.mul_(1.5).add_(0.05)
        if not name.endswith("k_proj.bias") or ours.config.rotated < ours.config.head_dim:
            moved = (ours(given) - expected).abs().max()
            # softmax does not see what all keys share, so k's bias counts through rotation only
            assert moved > 10 * BOUND * expected.std(), name
        parameter.copy_(before)
