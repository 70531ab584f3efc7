"""The alignment stage: it learns a preference that generalizes, and gives the same bytes each time."""

from __future__ import annotations

import math
from itertools import chain
from pathlib import Path

import pytest
import torch

from gristmill.align import DPOConfig
from gristmill.align.dpo import Preferences, pair_logprobs, run
from gristmill.align.pairs import Pair, completion_row, encode, sequence_logprobs
from gristmill.errors import RequestError
from gristmill.files import hash_file, write_jsonl
from gristmill.formats import Model, save_hf
from gristmill.tokenizer import Tokenizer
from tests.train.corpus import gradients, make_tokenizer, random_network

ENDINGS = ("is sorted", "is empty")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return make_tokenizer()


def pair_rows(
    count: int, start: int = 0, good: str = ENDINGS[0], bad: str = ENDINGS[1]
) -> list[dict]:
    """The better answer is told by its ending, whatever the question."""
    return [
        {
            "prompt": [{"role": "user", "content": f"What of heap {i}?"}],
            "chosen": [{"role": "assistant", "content": f"heap {i} {good}"}],
            "rejected": [{"role": "assistant", "content": f"heap {i} {bad}"}],
            "fact": f"f{i}",
            "form": "sibling",
        }
        for i in range(start, start + count)
    ]


@pytest.fixture(scope="module")
def inputs(tokenizer, tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("dpo")
    tokenizer.save(root / "tokenizer")
    network = random_network()
    save_hf(network, root / "model", tokenizer)
    # Prefer the ending that the untrained model likes less.
    pairs, _ = encode(pair_rows(20), tokenizer, 128)
    likes = pair_logprobs(network, pairs, torch.float32)
    good, bad = ENDINGS if (likes[:, 0] < likes[:, 1]).float().mean() > 0.5 else ENDINGS[::-1]
    questions = root / "questions"
    write_jsonl(questions / "preferences.train.jsonl", pair_rows(64, 0, good, bad))
    write_jsonl(questions / "preferences.heldout.jsonl", pair_rows(24, 500, good, bad))
    talk = [
        {"messages": [*row["prompt"], *row["chosen"]], "fact": row["fact"], "form": "what"}
        for row in pair_rows(6, 0, good, bad) + pair_rows(3, 500, good, bad)
    ]
    write_jsonl(questions / "sft.train.jsonl", talk)
    return {name: root / name for name in ("model", "questions", "tokenizer")}


def config(**settings) -> DPOConfig:
    chosen = {
        "optimizer": "adamw",
        "lr_peak": 1e-3,
        "lr_embedding_peak": 1e-3,
        "warmup_steps": 2,
        "batch_pairs": 8,
        "epochs": 2.0,
        "own_samples": 6,
        "own_max_tokens": 8,
        "evaluations": 2,
        "compute_dtype": "float32",
        **settings,
    }
    return DPOConfig(**chosen)


@pytest.fixture(scope="module")
def whole(inputs, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    return out, run(config(), inputs, out)


def weights(out: Path) -> str:
    return hash_file(out / "model" / "model.safetensors")


def test_held_out_preferences_are_learned(whole):
    metrics = whole[1].metrics
    assert metrics["pairs_derived"] == 64
    measured = metrics["heldout_by_form"]["sibling"]
    assert measured["n"] == 24
    assert measured["before"] <= 0.5
    assert measured["after"] > 0.9
    first, last = metrics["history"][0], metrics["history"][-1]
    assert last["loss"] < first["loss"]
    assert last["reward_accuracy"] > 0.9
    assert last["reward_margin"] > first["reward_margin"]


def test_the_first_loss_is_ln_2_and_nobody_has_won(tokenizer, inputs):
    """At the reference itself rewards are zero: loss ln 2, and ties are not wins."""
    network = Model.load(inputs["model"]).network
    pairs, _ = encode(pair_rows(8), tokenizer, 128)
    goal = Preferences(pairs, pair_logprobs(network, pairs, torch.float32), [], config(nll=0.0))
    loss, count, sums = goal.loss(network, torch.arange(8), torch.float32)
    found = goal.describe({"loss": loss.item(), **sums}, count)
    assert count == 8
    # Other padding than the reference's, so other roundings: a few millionths on either side.
    assert loss.item() / 8 == pytest.approx(math.log(2), abs=1e-4)
    assert found["reward_margin"] == pytest.approx(0, abs=1e-3)
    assert found["reward_chosen"] == pytest.approx(0, abs=1e-3)


def test_gradient_is_that_of_the_formula(tokenizer, inputs):
    """Pair by pair without padding, from log-softmax: −log σ(βΔ) − nll · mean log π(chosen)."""
    network = Model.load(inputs["model"]).network
    pairs, _ = encode(pair_rows(3), tokenizer, 128)
    reference = torch.tensor([[-40.0, -38.0], [-39.0, -43.0], [-50.0, -50.0]])
    goal = Preferences(pairs, reference, [], config(beta=0.2, nll=0.3))
    loss, _, _ = goal.loss(network, torch.tensor([2, 0, 1]), torch.float32)
    loss.backward()
    ours = gradients(network)

    def logp(row) -> torch.Tensor:
        ids, mask = row
        table = network(torch.tensor([ids]))[0].log_softmax(-1)
        return torch.stack([table[i - 1, ids[i]] for i in range(1, len(ids)) if mask[i]]).sum()

    total = torch.zeros(())
    for pair, (of_chosen, of_rejected) in zip(pairs, reference, strict=True):
        chosen, rejected = logp(pair.chosen), logp(pair.rejected)
        margin = (chosen - of_chosen) - (rejected - of_rejected)
        total = total + torch.log1p(torch.exp(-0.2 * margin)) - 0.3 * chosen / sum(pair.chosen[1])
    assert total.item() == pytest.approx(loss.item(), rel=1e-5)
    total.backward()
    for name, gradient in gradients(network).items():
        scale = gradient.abs().max()
        assert (gradient - ours[name]).abs().max() <= 1e-4 * scale + 1e-6, name


def test_pair_log_probabilities_keep_their_order(tokenizer, inputs):
    """They are computed in batches sorted by length; each must come back to its own pair."""
    network = Model.load(inputs["model"]).network
    prompt = [{"role": "user", "content": "Q"}]

    def row(words: int):
        text = " ".join(["heap"] * words)
        return completion_row(tokenizer, prompt, [{"role": "assistant", "content": text}])

    pairs = [Pair(row(1 + (7 * i) % 19), row(1 + (5 * i) % 11)) for i in range(40)]
    found = pair_logprobs(network, pairs, torch.float32)
    with torch.inference_mode():
        for values, pair in zip(found, pairs, strict=True):
            alone = sequence_logprobs(network, [pair.chosen, pair.rejected], torch.float32)
            assert torch.allclose(values, alone, atol=1e-3, rtol=1e-5)


def test_every_pair_comes_once_an_epoch(tokenizer):
    pairs, _ = encode(pair_rows(24), tokenizer, 128)
    goal = Preferences(pairs, torch.zeros(24, 2), [], config())
    batches = [goal.batch(step).tolist() for step in range(6)]
    assert sorted(chain(*batches[:3])) == list(range(24))
    assert sorted(chain(*batches[3:])) == list(range(24))
    assert batches[:3] != batches[3:]


def test_a_second_run_gives_the_same_bytes(whole, inputs, tmp_path):
    result = run(config(), inputs, tmp_path)
    assert weights(tmp_path) == weights(whole[0])
    assert result.metrics == whole[1].metrics


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("call", [1, 2, 3])
def test_interrupted_it_gives_the_same_bytes(whole, inputs, tmp_path, call):
    """Also where the model's own answers are already made and the training is not begun."""
    calls = 0

    def stop(done, total, unit="", **values):
        nonlocal calls
        calls += 1
        if calls == call:
            raise Interrupted

    with pytest.raises(Interrupted):
        run(config(checkpoint_seconds=0), inputs, tmp_path, stop)
    result = run(config(checkpoint_seconds=0), inputs, tmp_path)
    assert weights(tmp_path) == weights(whole[0])
    assert result.metrics == whole[1].metrics


def test_nothing_that_fits_is_refused(inputs, tmp_path):
    with pytest.raises(RequestError, match="holds no pair of at most 5 tokens"):
        run(config(max_tokens=5, own_samples=0), inputs, tmp_path)
