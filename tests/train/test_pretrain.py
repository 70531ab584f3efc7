"""The pretraining stage: its loss is transformers', its result the same bytes each time and after any stop."""

from __future__ import annotations

import math
import random
import shutil
from pathlib import Path

import pytest
import torch

from gristmill.errors import RequestError
from gristmill.files import hash_file
from gristmill.formats import Model, save_hf
from gristmill.tokenizer import Tokenizer
from gristmill.train import Judge, NextToken, pretrain
from gristmill.train.next_token import bytes_of_token
from gristmill.train.parallel.spread import Rows, Spread
from gristmill.train.pretrain import PretrainConfig, check, run, source_fingerprint
from gristmill.train.windows import Windows
from tests.train.corpus import TEXTS, VOCAB, corpus, gradients, random_network, tiny_pretrain


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> dict[str, Path]:
    return corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def whole(inputs, tmp_path_factory):
    """One run that nothing disturbed: (its directory, its result)."""
    out = tmp_path_factory.mktemp("whole")
    return out, run(tiny_pretrain(), inputs, out)


def objective(inputs: dict[str, Path], rows: int = 4) -> NextToken:
    windows = Windows(inputs["tokens"], "train", 64, {}, 0)
    heldout = Windows(inputs["tokens"], "heldout", 64, {}, 0)
    return NextToken(windows, heldout, bytes_of_token(Tokenizer.load(inputs["tokenizer"])), rows, 8)


def weights(out: Path) -> str:
    return hash_file(out / "model" / "model.safetensors")


def test_loss_is_that_of_transformers(inputs, tmp_path):
    from transformers import AutoModelForCausalLM

    network, goal = random_network(tie_embeddings=False), objective(inputs)
    save_hf(network, tmp_path / "model", Tokenizer.load(inputs["tokenizer"]))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    assert type(theirs).__name__ == "Qwen3ForCausalLM"
    batch = goal.batch(3)
    loss, targets, _ = goal.loss(network, batch, torch.float32)
    assert targets == 4 * 64
    ids = torch.cat((batch.tokens, batch.targets[:, -1:]), dim=1)
    wanted = theirs(input_ids=ids, labels=ids).loss
    assert abs(loss.item() / targets - wanted.item()) < 1e-5
    (loss / targets).backward()
    wanted.backward()
    reference = dict(theirs.named_parameters())
    for name, gradient in gradients(network).items():
        assert (gradient - reference[name].grad).abs().max() < 1e-5, name


def test_gradient_of_a_batch_is_the_sum_of_its_parts(inputs):
    network, goal = random_network(), objective(inputs)
    batch = goal.batch(0)
    loss, targets, extra = goal.loss(network, batch, torch.float32)
    (loss / targets).backward()
    whole = gradients(network)
    total = bytes_ = 0.0
    for rows in (slice(0, 1), slice(1, None)):
        part = Rows(batch.tokens[rows], batch.targets[rows], batch.positions[rows], None)
        loss_part, _, extra_part = goal.loss(network, part, torch.float32)
        (loss_part / targets).backward()
        total, bytes_ = total + loss_part.item(), bytes_ + extra_part["bytes"]
    assert total == pytest.approx(loss.item(), rel=1e-6)
    assert bytes_ == extra["bytes"]
    for name, gradient in gradients(network).items():
        assert (gradient - whole[name]).abs().max() < 1e-5, name


def test_bits_per_byte_divides_by_the_bytes_of_the_text(inputs):
    """A uniform model costs log2(V) bits a token; the bytes are those of the targets' own text."""
    goal, tokenizer = objective(inputs), Tokenizer.load(inputs["tokenizer"])
    network = random_network(tie_embeddings=False)
    with torch.no_grad():
        network.lm_head.weight.zero_()
    batch = goal.batch(1)
    loss, targets, extra = goal.loss(network, batch, torch.float32)
    text = b"".join(tokenizer.token_bytes(i) for row in batch.targets.tolist() for i in row)
    found = goal.describe({"loss": loss.item(), **extra}, targets)
    assert found["loss"] == pytest.approx(math.log(VOCAB), abs=1e-5)
    assert found["bits_per_byte"] == pytest.approx(targets * math.log2(VOCAB) / len(text))


def test_control_tokens_stand_for_no_bytes(inputs):
    tokenizer = Tokenizer.load(inputs["tokenizer"])
    counted = bytes_of_token(tokenizer)
    assert counted[tokenizer.special("<|endoftext|>")] == 0
    ids = tokenizer.encode(TEXTS["shlex"] + "naïve 🙂")
    assert counted[ids].sum() == len((TEXTS["shlex"] + "naïve 🙂").encode())


def test_the_result_is_a_model_that_learned(whole, inputs):
    out, result = whole
    assert result.outputs == {"model": out / "model"}
    metrics = result.metrics
    assert (metrics["steps"], metrics["tokens"]) == (24, 24 * 256)
    loaded = Model.load(out / "model")
    assert loaded.config.num_parameters == metrics["parameters"]
    # The last evaluation was of the very weights that were saved.
    goal = objective(inputs)
    again = goal.evaluate(Judge(Spread([loaded.network], dtype=torch.float32), goal))
    assert again["heldout_loss"] == pytest.approx(metrics["history"][-1]["heldout_loss"], abs=1e-5)
    assert metrics["history"][-1]["loss"] < math.log(VOCAB) - 1


def test_without_a_warm_start_the_loss_falls_from_that_of_knowing_nothing(inputs, tmp_path):
    config = tiny_pretrain(warm_start="none", lr_embedding_peak=0.01)
    history = run(config, inputs, tmp_path).metrics["history"]
    assert history[-1]["heldout_loss"] < history[0]["loss"] - 0.2
    assert history[0]["loss"] < math.log(VOCAB) + 0.2


def test_a_second_run_gives_the_same_bytes(whole, inputs, tmp_path):
    out, result = whole
    again = run(tiny_pretrain(), inputs, tmp_path)
    assert weights(tmp_path) == weights(out)
    assert again.metrics == result.metrics


def test_another_seed_gives_another_model(whole, inputs, tmp_path):
    run(tiny_pretrain(seed=1), inputs, tmp_path)
    assert weights(tmp_path) != weights(whole[0])


class Interrupted(Exception):
    pass


def test_interrupted_runs_give_the_same_bytes_and_metrics(whole, inputs, tmp_path):
    seed = random.randrange(2**32)
    print("seed", seed)
    draw = random.Random(seed)

    def at_random(done, total, unit="", **values):
        if draw.random() < 0.4:
            raise Interrupted

    stops = 0
    while True:
        try:
            result = run(
                tiny_pretrain(checkpoint_seconds=0),
                inputs,
                tmp_path,
                at_random if stops < 3 else pretrain.quiet,
            )
            break
        except Interrupted:
            stops += 1
    assert weights(tmp_path) == weights(whole[0])
    assert result.metrics == whole[1].metrics
    rows = [(out / "metrics.jsonl").read_bytes() for out in (tmp_path, whole[0])]
    assert rows[0] == rows[1]


def test_resumed_from_a_checkpoint_it_reports_the_same_metrics(whole, inputs, tmp_path):
    calls: list[float] = []

    def at_the_second_row(done, total, unit="", **values):
        calls.append(done)
        if len(calls) == 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        run(tiny_pretrain(checkpoint_seconds=0), inputs, tmp_path, at_the_second_row)
    result = run(tiny_pretrain(checkpoint_seconds=0), inputs, tmp_path)
    assert result.metrics == whole[1].metrics
    assert weights(tmp_path) == weights(whole[0])


def test_a_base_model_is_continued_and_gives_the_shape(whole, inputs, tmp_path):
    base = whole[0] / "model"
    config = tiny_pretrain(
        base=str(base), hidden_size=999, num_layers=7, tokens=2560, lr_peak=0.002
    )
    result = run(config, inputs, tmp_path)
    assert result.metrics["shape"]["hidden_size"] == 64
    assert result.metrics["base"] == str(base)
    # It begins where the base ended, far below a new model's log V, not at the start.
    assert result.metrics["history"][0]["loss"] < whole[1].metrics["history"][0]["loss"]


def test_a_base_model_of_another_vocabulary_is_refused(whole, inputs, tmp_path):
    from gristmill.tokenizer import train_bpe

    train_bpe(iter(TEXTS.values()), 400).save(tmp_path / "tokenizer")
    config = tiny_pretrain(base=str(whole[0] / "model"))
    with pytest.raises(RequestError, match="has 512 tokens and the corpus was encoded with 400"):
        run(config, {**inputs, "tokenizer": tmp_path / "tokenizer"}, tmp_path / "out")


def test_no_held_out_text_is_no_obstacle(inputs, tmp_path):
    config = tiny_pretrain(tokens=512, context=128, warm_start="none", tie_embeddings=True)
    from tests.train.corpus import write_tokens

    tokens = write_tokens(tmp_path / "tokens", {"train": {"a": range(400)}, "heldout": {}})
    result = run(config, {**inputs, "tokens": tokens}, tmp_path / "out")
    assert "heldout_bits_per_byte" not in result.metrics
    assert "bigram_loss" not in result.metrics


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (dict(batch_tokens=1000, context=256), "must be a multiple of pretrain.context"),
        (dict(context=2048, batch_tokens=2048, max_seq_len=1024), "exceeds pretrain.max_seq_len"),
        (dict(tokens=100), "less than one batch"),
        (dict(tie_embeddings=True), "tie_embeddings = false"),
        (dict(num_heads=3, num_kv_heads=2), "must be a multiple of num_kv_heads"),
        (dict(base="/no/such/model"), "there is no model at /no/such/model"),
    ],
)
def test_settings_that_cannot_work_together_are_refused(settings, said):
    with pytest.raises(RequestError, match=said):
        check(PretrainConfig(**settings))


def test_another_base_model_at_the_same_place_is_noticed(whole, inputs, tmp_path):
    model = tmp_path / "base"
    shutil.copytree(whole[1].outputs["model"], model)
    config = PretrainConfig(base=str(model))
    before = source_fingerprint(config)
    assert source_fingerprint(config) == before
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes())
    assert source_fingerprint(config) != before
    assert source_fingerprint(PretrainConfig()) == ""
