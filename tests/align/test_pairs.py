"""Preference pairs as rows: only the last turn counts, and its log-probability is transformers'."""

from __future__ import annotations

import pytest
import torch

from gristmill.align.pairs import (
    Pair,
    completion_row,
    encode,
    own_worse_answers,
    sequence_logprobs,
    word_f1,
)
from gristmill.formats import Model, save_hf
from gristmill.tokenizer import Tokenizer
from tests.train.corpus import make_tokenizer, random_network

PROMPT = [
    {"role": "user", "content": "What is 2?"},
    {"role": "assistant", "content": "an earlier answer"},
    {"role": "user", "content": "And then?"},
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return make_tokenizer()


def answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


@pytest.mark.parametrize("text", ["a", "two words", "several\nlines\n\nof text", "naïve 🙂", " x"])
def test_only_the_last_turn_and_its_end_are_counted(tokenizer, text):
    ids, mask = completion_row(tokenizer, PROMPT, answer(text))
    counted = [token for token, owned in zip(ids, mask, strict=True) if owned]
    assert tokenizer.decode(counted, skip_special=False) == f"{text}<|im_end|>"
    first = mask.index(True)
    assert all(mask[first : first + len(counted)])  # one stretch
    assert ids[:first] == tokenizer.chat_ids(PROMPT)
    assert ids == tokenizer.chat_ids([*PROMPT, *answer(text)], add_generation_prompt=False)


def test_pairs_with_a_side_that_is_too_long_are_left_out_and_counted(tokenizer):
    rows = [
        {"prompt": PROMPT, "chosen": answer("a"), "rejected": answer("b")},
        {"prompt": PROMPT, "chosen": answer("a"), "rejected": answer("word " * 40)},
        {"prompt": PROMPT, "chosen": answer("word " * 40), "rejected": answer("b")},
    ]
    limit = len(completion_row(tokenizer, PROMPT, answer("a"))[0])
    pairs, left_out = encode(rows, tokenizer, limit)
    assert left_out == 2
    sides = [completion_row(tokenizer, PROMPT, answer(text)) for text in "ab"]
    assert pairs == [Pair(*sides)]


def test_log_probabilities_are_those_of_transformers(tokenizer, tmp_path):
    from transformers import AutoModelForCausalLM

    network = random_network()
    save_hf(network, tmp_path / "model", tokenizer)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    texts = ["a", "two words", "a much longer answer of several words", "x\ny"]
    rows = [completion_row(tokenizer, PROMPT, answer(text)) for text in texts]
    with torch.inference_mode():
        found = sequence_logprobs(network, rows, torch.float32)
        for value, (ids, mask) in zip(found.tolist(), rows, strict=True):
            logits = theirs(input_ids=torch.tensor([ids])).logits[0]  # alone, without padding
            logp = logits.log_softmax(-1)
            wanted = sum(logp[i - 1, ids[i]].item() for i in range(1, len(ids)) if mask[i])
            assert value == pytest.approx(wanted, abs=1e-3, rel=1e-5)


@pytest.mark.parametrize(
    ("a", "b", "value"),
    [
        ("the cat sat", "the cat sat", 1.0),
        ("The CAT", "the cat", 1.0),
        ("a b", "c d", 0.0),
        ("a b c d", "a b", 2 * 2 / 6),  # precision 1/2, recall 1: F1 2/3
        ("a a a", "a", 2 * 1 / 4),  # repeats count once for each that is shared
        ("", "", 0.0),
        ("", "a", 0.0),
    ],
)
def test_word_f1(a, b, value):
    assert word_f1(a, b) == pytest.approx(value)
    assert word_f1(b, a) == pytest.approx(value)


def test_own_worse_answers_pair_the_known_answer_with_what_the_model_said(tokenizer):
    """Of a model that says nothing sensible and often stops, every finished answer is worse than the known."""
    network = random_network(tie_embeddings=False)
    with torch.no_grad():
        network.lm_head.weight.mul_(0.2)
        # The end of the turn is likely wherever the last hidden channel's norm weight makes it so.
        network.lm_head.weight[tokenizer.special("<|im_end|>")] *= 8
    prompts = [
        {
            "messages": [{"role": "user", "content": f"What is {i}?"}, *answer("zebra quartz")],
            "fact": f"f{i}",
        }
        for i in range(70)
    ]
    model = Model(network.eval(), tokenizer)

    def made(seed: int) -> tuple[list[int], list[dict]]:
        steps = list(own_worse_answers(model, prompts, max_tokens=24, worse_below=0.5, seed=seed))
        return [done for done, _ in steps], [row for _, rows in steps for row in rows]

    done, rows = made(0)
    assert done == [64, 70]
    assert rows
    for row in rows:
        number = int(row["fact"][1:])
        assert row["prompt"] == [{"role": "user", "content": f"What is {number}?"}]
        assert row["chosen"] == answer("zebra quartz")
        [rejected] = row["rejected"]
        assert rejected["role"] == "assistant"
        assert rejected["content"].strip()
        assert word_f1(rejected["content"], "zebra quartz") < 0.5
    assert made(0) == (done, rows)
    assert made(1) != (done, rows)


def test_answers_that_are_as_good_make_no_pair(tokenizer):
    """Nothing is below an F1 of zero."""
    network = random_network()
    prompts = [{"messages": [{"role": "user", "content": "Hi"}, *answer("x")], "fact": "f"}] * 8
    steps = own_worse_answers(
        Model(network.eval(), tokenizer), prompts, max_tokens=8, worse_below=0.0, seed=0
    )
    assert list(steps) == [(8, [])]
