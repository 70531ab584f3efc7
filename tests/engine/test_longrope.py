"""LongRoPE changes a row's frequencies at a length: generating across it, and scoring beside longer texts."""

from __future__ import annotations

import pytest
import torch

from gristmill.engine import Engine
from gristmill.formats import Model, load_network
from gristmill.lm import Request, SamplingParams
from gristmill.tokenizer import train_bpe
from tests.families import saved

SWITCH = 48


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    theirs, directory = saved("phi3, longrope", tmp_path_factory.getbasetemp() / "families")
    tokenizer = train_bpe(iter(["def f(x):\n    return x\n" * 9]), 330)
    network = load_network(directory)
    assert network.config.frequency_switch == SWITCH
    return theirs, Engine(Model(network, tokenizer))


def prompt(length: int, seed: int) -> list[int]:
    return torch.randint(3, 300, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@torch.no_grad()
def test_greedy_tokens_across_the_switch(pair):
    """Against transformers reading the whole row at every step; rows that cross, and do not, in one batch."""
    theirs, engine = pair
    prompts = [
        prompt(40, 1),
        prompt(10, 2),
        prompt(60, 3),
        prompt(SWITCH, 4),
        prompt(SWITCH + 1, 5),
    ]
    params = SamplingParams(max_tokens=16, temperature=0.0, logprobs=1)
    done = engine.generate([Request(token_ids=ids, params=params) for ids in prompts])
    for ids, completion in zip(prompts, done, strict=True):
        row = list(ids)
        for token in completion.logprobs:
            full = theirs(torch.tensor([row])).logits[0, -1].log_softmax(-1)
            assert abs(token.logprob - float(full[token.token_id])) <= 1e-4, len(row)
            row.append(token.token_id)
        assert len(row) > len(ids)


@torch.no_grad()
def test_scores_beside_a_longer_text(pair):
    theirs, engine = pair
    rows = [prompt(20, 6), prompt(70, 7), prompt(SWITCH, 8)]
    for ids, scored in zip(rows, engine.score(rows), strict=True):
        expected = theirs(torch.tensor([ids])).logits[0].log_softmax(-1)
        for at in range(1, len(ids)):
            assert abs(scored.logprobs[at] - float(expected[at - 1, ids[at]])) <= 1e-4, (
                len(ids),
                at,
            )
