"""Fine-tuning: the loss sees the assistant's tokens and the end of its turn, each example once an epoch."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.errors import RequestError
from gristmill.files import hash_file, write_jsonl
from gristmill.formats import Model, save_hf
from gristmill.tokenizer import Tokenizer
from gristmill.train import Judge, SFTConfig, pad
from gristmill.train.parallel.spread import Spread
from gristmill.train.sft import Conversations, encode_conversations, run
from tests.train.corpus import gradients, make_tokenizer, random_network

TALK = [
    {"role": "user", "content": "What is 2?"},
    {"role": "assistant", "content": "a"},
    {"role": "user", "content": "And?"},
    {"role": "assistant", "content": "b"},
]
WORDS = ("heap", "queue", "stack", "deque", "tree", "graph", "table", "list")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return make_tokenizer()


def conversations(count: int) -> list[dict]:
    draw = random.Random(0)
    rows = []
    for i in range(count):
        words = draw.choices(WORDS, k=1 + i % 7)
        messages = [
            {"role": "user", "content": f"Which {words[0]} is number {i}?"},
            {"role": "assistant", "content": " ".join(words)},
        ]
        rows.append({"messages": messages, "fact": f"f{i}", "form": "what"})
    return rows


def encoded(tokenizer: Tokenizer, count: int) -> list[tuple[list[int], list[bool]]]:
    return [tokenizer.chat_ids_with_mask(row["messages"]) for row in conversations(count)]


def objective(examples, batch: int = 8, steps: int = 1, heldout=()) -> Conversations:
    return Conversations(examples, heldout, batch, pad_id=0, seed=0, steps=steps)


def test_targets_are_what_the_assistant_says_and_the_end_of_its_turn(tokenizer):
    ids, targets = pad([tokenizer.chat_ids_with_mask(TALK)], tokenizer.pad_id)
    a, b = tokenizer.encode("a"), tokenizer.encode("b")
    end = tokenizer.special("<|im_end|>")
    assert (len(a), len(b)) == (1, 1)
    # By hand: one letter and one end for each of two turns, and nothing of the user, of roles or of line breaks.
    assert targets[targets != -100].tolist() == [*a, end, *b, end]
    assert ids[targets != -100].tolist() == [*a, end, *b, end]
    text = tokenizer.decode(ids[0].tolist(), skip_special=False)
    assert text == tokenizer.render(TALK, add_generation_prompt=False)


def test_a_padding_id_that_also_ends_turns_is_still_learned(tokenizer):
    end = tokenizer.special("<|im_end|>")
    long, short = tokenizer.chat_ids_with_mask(TALK), tokenizer.chat_ids_with_mask(TALK[:2])
    ids, targets = pad([long, short], end)
    assert ids[1, len(short[0]) :].unique().tolist() == [end]
    assert targets[1, len(short[0]) :].unique().tolist() == [-100]
    assert (targets[1] == end).sum() == 1


def test_loss_and_gradient_of_a_padded_batch_are_the_sum_of_its_rows(tokenizer):
    network, examples = random_network(), encoded(tokenizer, 6)
    goal = objective(examples)
    assert len({len(ids) for ids, _ in examples}) > 2
    loss, targets, extra = goal.loss(network, pad(examples, 7), torch.float32)
    loss.backward()
    whole = gradients(network)
    assert targets == sum(sum(mask) for _, mask in examples)
    single, right = 0.0, 0
    for example in examples:
        value, _, more = goal.loss(network, pad([example], 0), torch.float32)
        value.backward()
        single, right = single + value.item(), right + more["right"]
    assert single == pytest.approx(loss.item(), rel=1e-5)
    assert right == extra["right"]
    for name, gradient in gradients(network).items():
        scale = whole[name].abs().max()
        assert (gradient - whole[name]).abs().max() <= 1e-5 * scale + 1e-6, name


def test_loss_is_that_of_transformers_with_ignored_labels(tokenizer, tmp_path):
    from transformers import AutoModelForCausalLM

    network = random_network()
    save_hf(network, tmp_path / "model", tokenizer)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    ids, targets = pad(encoded(tokenizer, 5), 0)
    attention = torch.zeros_like(ids)
    for row, (tokens, _) in enumerate(encoded(tokenizer, 5)):
        attention[row, : len(tokens)] = 1
    with torch.inference_mode():
        wanted = theirs(input_ids=ids, attention_mask=attention, labels=targets).loss.item()
        loss, count, _ = objective([]).loss(network, (ids, targets), torch.float32)
    assert loss.item() / count == pytest.approx(wanted, abs=1e-5)


def seen(goal: Conversations, steps: int) -> Counter:
    """How often each example came; an example is known by its ids, of which pad cuts nothing."""
    place = {tuple(ids): i for i, (ids, _) in enumerate(goal.examples)}
    found: Counter = Counter()
    for step in range(steps):
        ids, _ = goal.batch(step)
        for row in ids.tolist():
            while row[-1] == goal.pad_id:
                row.pop()
            found[place[tuple(row)]] += 1
    return found


@settings(max_examples=40, deadline=None)
@given(count=st.integers(1, 300), batch=st.sampled_from([1, 3, 8, 16]), epochs=st.integers(1, 3))
def test_every_example_comes_once_an_epoch(count, batch, epochs):
    draw = random.Random(count)
    rows = [[1 + i, *[7] * draw.randrange(9)] for i in range(count)]
    examples = [(ids, [True] * len(ids)) for ids in rows]
    steps = max(1, epochs * count // batch)
    found = seen(objective(examples, batch, steps), steps)
    assert sum(found.values()) == steps * batch
    # A step more or less than a whole number of epochs is all that may be missing or come again.
    extra = sum(max(0, times - epochs) for times in found.values())
    missing = sum(epochs - min(epochs, found[i]) for i in range(count))
    assert extra <= max(0, steps * batch - epochs * count)
    assert missing <= max(0, epochs * count - steps * batch)


def test_batches_hold_rows_of_like_length(tokenizer):
    """What the buckets are for: far less padding than in batches drawn at random."""
    examples = [([1] * (1 + i % 40), [True] * (1 + i % 40)) for i in range(640)]
    goal = objective(examples, 16, 40)
    padded = sum(goal.batch(step)[0].numel() for step in range(40))
    real = sum(len(ids) for ids, _ in examples)
    assert padded < 1.15 * real
    rows = random.Random(0).sample(examples, 640)
    naive = sum(max(len(ids) for ids, _ in rows[i : i + 16]) * 16 for i in range(0, 640, 16))
    assert naive > 1.6 * real


def test_too_long_conversations_are_left_out_and_counted(tokenizer, tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", conversations(14))
    lengths = sorted(len(ids) for ids, _ in encoded(tokenizer, 14))
    kept, left_out = encode_conversations(tmp_path / "rows.jsonl", tokenizer, lengths[9])
    assert len(kept) + left_out == 14
    assert left_out == sum(length > lengths[9] for length in lengths) > 0
    assert max(len(ids) for ids, _ in kept) == lengths[9]


@pytest.fixture(scope="module")
def inputs(tokenizer, tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("sft")
    tokenizer.save(root / "tokenizer")
    save_hf(random_network(), root / "model", tokenizer)
    rows = conversations(60)
    write_jsonl(root / "questions" / "sft.train.jsonl", rows[:48])
    write_jsonl(root / "questions" / "sft.heldout.jsonl", rows[48:])
    return {name: root / name for name in ("model", "questions", "tokenizer")}


CONFIG = SFTConfig(
    optimizer="adamw",
    lr_peak=0.003,
    lr_embedding_peak=0.003,
    warmup_steps=2,
    epochs=4.0,
    batch_examples=8,
    evaluations=2,
    compute_dtype="float32",
)


@pytest.fixture(scope="module")
def whole(inputs, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    return out, run(CONFIG, inputs, out)


def weights(out: Path) -> str:
    return hash_file(out / "model" / "model.safetensors")


def test_training_lowers_the_loss_and_says_what_it_did(whole, inputs, tokenizer):
    out, result = whole
    metrics = result.metrics
    assert (metrics["steps"], metrics["examples"], metrics["left_out_too_long"]) == (24, 48, 0)
    assert metrics["target_tokens"] == sum(sum(mask) for _, mask in encoded(tokenizer, 60)[:48])
    assert metrics["history"][-1]["loss"] < 0.7 * metrics["history"][0]["loss"]
    heldout = encoded(tokenizer, 60)[48:]
    goal = objective([], heldout=heldout)
    network = Model.load(out / "model").network
    again = goal.evaluate(Judge(Spread([network], dtype=torch.float32), goal))
    assert again["heldout_loss"] == pytest.approx(metrics["heldout_loss"], abs=1e-5)


def test_a_second_run_gives_the_same_bytes(whole, inputs, tmp_path):
    result = run(CONFIG, inputs, tmp_path)
    assert weights(tmp_path) == weights(whole[0])
    assert result.metrics == whole[1].metrics


class Interrupted(Exception):
    pass


def test_interrupted_it_gives_the_same_bytes(whole, inputs, tmp_path):
    config = CONFIG.model_copy(update={"checkpoint_seconds": 0.0})
    rows = 0

    def second_row(done, total, unit="", **values):
        nonlocal rows
        rows += 1
        if rows == 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        run(config, inputs, tmp_path, second_row)
    result = run(config, inputs, tmp_path)
    assert rows == 2
    assert weights(tmp_path) == weights(whole[0])
    assert result.metrics == whole[1].metrics


def test_nothing_that_fits_is_refused(inputs, tmp_path):
    with pytest.raises(RequestError, match="holds no conversation of at most 4 tokens"):
        run(SFTConfig(max_tokens=4), inputs, tmp_path)
