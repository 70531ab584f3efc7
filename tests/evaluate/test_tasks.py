from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from gristmill.data.grounding import described, grounded
from gristmill.errors import RequestError
from gristmill.evaluate import (
    Item,
    Likelihood,
    Pair,
    accuracies,
    likelihoods,
    read_items,
    read_pairs,
    score_items,
    score_pairs,
)
from gristmill.evaluate.choices import correct


def test_likelihoods_are_those_of_transformers_whatever_shares_the_batch(model, oracle) -> None:
    rng = np.random.default_rng(0)
    contexts = [rng.integers(0, 512, n).tolist() for n in (1, 2, 9, 40, 41)]
    options = [
        [rng.integers(0, 512, n).tolist() for n in lengths]
        for lengths in ((1,), (3, 1, 7), (20, 2), (24, 1, 5, 5), ())
    ]
    found = likelihoods(model.network, contexts, options)
    assert [len(row) for row in found] == [1, 3, 2, 4, 0]
    for context, choices, row in zip(contexts, options, found, strict=True):
        for choice, score in zip(choices, row, strict=True):
            log_probs = oracle(context + choice)
            expected = sum(
                log_probs[len(context) + i - 1, id].item() for i, id in enumerate(choice)
            )
            assert score.logprob == pytest.approx(expected, rel=1e-5)
            assert score.tokens == len(choice)
            assert score.mean == pytest.approx(expected / len(choice), rel=1e-5)


def test_what_does_not_fit_is_refused(model) -> None:
    with pytest.raises(RequestError, match="item 1 has 65 tokens"):
        likelihoods(model.network, [[1], [1] * 60], [[[1]], [[1] * 2, [1] * 5]])
    with pytest.raises(RequestError, match="empty context"):
        likelihoods(model.network, [[]], [[[1]]])


def test_hand_computed_item() -> None:
    item = Item("f", "What does `f` do?", ("abcd", "abcdefghij"), 1, True)
    # Said as "f: …", 7 and 13 characters. Σ: -4 > -6. By characters: -4/7 < -6/13. Without the name: -4+2 < -6+9.
    assert correct(item, [-4.0, -6.0], [-2.0, -9.0]) == {
        "sum_logprob": False,
        "per_character": True,
        "mutual_information": True,
    }


def test_the_question_without_its_name() -> None:
    def item(name: str, question: str) -> str:
        return Item(name, question, ("a", "b"), 0, True).uninformative

    assert item("heapq.nlargest", "What does `heapq.nlargest` do?") == "What does it do?"
    assert item("Setting up", "What do the documents say about Setting up?") == (
        "What do the documents say about it?"
    )
    assert item("x.y", "Unrelated?") == "What does it do?"


@dataclass
class Found:
    text: str


class Shelf:
    """An index that finds what it was given for a question."""

    def __init__(self, passages: dict[str, list[str]]) -> None:
        self.passages = passages

    def search(self, question: str, k: int = 3) -> list[Found]:
        return [Found(text) for text in self.passages[question][:k]]


def items() -> list[Item]:
    words = ["push", "pop an item", "merge", "replace it", "a", "sort", "nlargest(n)", "heapify"]
    return [
        Item(name, f"What is `{name}`?", tuple(words[j : j + 4]), answer, seen=bool(i % 3))
        for i, (name, j, answer) in enumerate(
            (f"f{i}", 4 * (i % 2), (i * 7) % 4) for i in range(12)
        )
    ]


def test_choices_scored_by_transformers_give_the_same_accuracies(model, oracle) -> None:
    """Every number of the result, recomputed from transformers' log-probabilities one choice at a time."""
    tokenizer = model.tokenizer
    tests = items()
    shelf = Shelf({item.question: [item.choices[item.answer], "heap"] for item in tests})

    @cache
    def logprob(question: str, choice: str) -> float:
        prompt = tokenizer.chat_ids([{"role": "user", "content": question}])
        whole = [*prompt, *tokenizer.encode(choice), tokenizer.special("<|im_end|>")]
        log_probs = oracle(whole)
        return sum(log_probs[i - 1, whole[i]].item() for i in range(len(prompt), len(whole)))

    def prompt_of(item: Item, mode: str) -> str:
        if mode == "closed_book":
            return item.question
        return grounded(item.question, [p.text for p in shelf.search(item.question)])

    found = score_items(model.network, tokenizer, tests, shelf)
    assert set(found) == {"closed_book", "retrieval"}
    for mode, by_split in found.items():
        for name, seen in (("seen", True), ("heldout", False)):
            right = {"accuracy": [], "accuracy_sum_logprob": [], "accuracy_per_character": []}
            for item in [item for item in tests if item.seen == seen]:
                said = [described(item.name, choice) for choice in item.choices]
                sums = [logprob(prompt_of(item, mode), text) for text in said]
                alone = [logprob("What is it?", described("it", choice)) for choice in item.choices]
                for key, scores in {
                    "accuracy": [s - a for s, a in zip(sums, alone, strict=True)],
                    "accuracy_sum_logprob": sums,
                    "accuracy_per_character": [s / len(c) for s, c in zip(sums, said, strict=True)],
                }.items():
                    right[key].append(int(np.argmax(scores)) == item.answer)
            assert by_split[name]["n"] == len(right["accuracy"])
            for key, values in right.items():
                assert by_split[name][key] == pytest.approx(np.mean(values))
            assert 0 <= by_split[name]["stderr"] <= 0.5
    assert found["retrieval"]["seen"]["passage_found"] == 1.0
    assert "passage_found" not in found["closed_book"]["seen"]


def test_passages_that_do_not_fit_are_left_out_and_questions_that_do_not_are_refused(model) -> None:
    tests = [
        Item(f"f{i}", f"What is `f{i}`?", ("q", "zz", "push", "sort"), i % 4, True)
        for i in range(12)
    ]
    short, long = "pop it", "heap " * 60

    def scored(*passages: str) -> dict:
        shelf = Shelf({item.question: list(passages) for item in tests})
        return score_items(model.network, model.tokenizer, tests, shelf)["retrieval"]

    assert scored(short, long) == scored(short)
    assert scored(long) == scored()
    unfit = Item("f", "What is `f`? " + long, ("a", "b"), 0, True)
    with pytest.raises(RequestError, match="does not fit the model's context of 64"):
        score_items(model.network, model.tokenizer, [unfit], Shelf({unfit.question: []}))


def test_reading_items(tmp_path: Path) -> None:
    row = {"fact": "x", "name": "f", "question": "q", "choices": ["a", "b"], "answer": 1}
    file = tmp_path / "choices.jsonl"
    rows = [row | {"seen": seen} for seen in (True, True, False, True, False)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [item.seen for item in read_items(file)] == [True, True, False, True, False]
    assert [item.seen for item in read_items(file, 1)] == [True, False]
    file.write_text(json.dumps(row | {"seen": True, "answer": 2}) + "\n")
    with pytest.raises(RequestError, match=r"choices\.jsonl, item 1: the answer is choice 2"):
        read_items(file)


def test_preference_accuracies_by_hand() -> None:
    def pair(seen: bool) -> Pair:
        return Pair(({"role": "user", "content": "q"},), "right", "wrong", seen)

    pairs = [pair(True), pair(True), pair(False), pair(False)]
    scores = [
        (Likelihood(-4, 4), Likelihood(-3, 1)),  # Σ wrong, per token right
        (Likelihood(-1, 2), Likelihood(-1, 2)),  # a tie
        (Likelihood(-2, 2), Likelihood(-6, 2)),
        None,  # did not fit
    ]
    before = [
        (Likelihood(-9, 4), Likelihood(-4, 1)),  # +5 against +1: the reward is right
        (Likelihood(-1, 2), Likelihood(-2, 2)),  # 0 against +1: wrong
        (Likelihood(-2, 2), Likelihood(-6, 2)),
        None,
    ]
    found = accuracies(pairs, scores, before)
    assert found == {
        "seen": 0.25,
        "seen_stderr": pytest.approx(0.25),
        "seen_n": 2,
        "seen_per_token": 0.75,
        "seen_reward": 0.5,
        "heldout": 1.0,
        "heldout_n": 1,
        "heldout_per_token": 1.0,
        "heldout_reward": 0.5,
    }
    assert "seen_reward" not in accuracies(pairs, scores)


def test_pairs_are_scored_as_chats(model, oracle, tmp_path: Path) -> None:
    prompt = [{"role": "user", "content": "What is `f`?"}]
    rows = [
        {
            "prompt": prompt,
            "chosen": [{"role": "assistant", "content": "push"}],
            "rejected": [{"role": "assistant", "content": "pop an item"}],
            "seen": False,
        },
        {
            "prompt": [{"role": "user", "content": "heap " * 70}],
            "chosen": [{"role": "assistant", "content": "a"}],
            "rejected": [{"role": "assistant", "content": "b"}],
            "seen": True,
        },
    ]
    file = tmp_path / "preferences.heldout.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = read_pairs(file)
    scored, unfit = score_pairs(model.network, model.tokenizer, pairs)
    assert unfit is None
    start = model.tokenizer.chat_ids(prompt)
    for text, score in zip(("push", "pop an item"), scored, strict=True):
        answer = [*model.tokenizer.encode(text), model.tokenizer.special("<|im_end|>")]
        log_probs = oracle(start + answer)
        expected = sum(log_probs[len(start) + i - 1, id].item() for i, id in enumerate(answer))
        assert score.logprob == pytest.approx(expected, rel=1e-5)
        assert score.tokens == len(answer)
