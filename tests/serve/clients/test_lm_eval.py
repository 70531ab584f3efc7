"""lm-eval over HTTP: log-likelihoods of choices and generated texts equal to those in process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gristmill.engine import Engine
from gristmill.lm import Request, SamplingParams
from tests.serve.clients import peers

QUESTIONS = [
    ("Heaps are", ["arrays", "lists of lists", "trees; the smallest is the root"], 0),
    ("The smallest element is always", ["the root", "the last"], 0),
    ("import", ["heapq", "the moon", "naïve 🙂", "x"], 1),
    ("def nlargest(n, iterable,", ["key=None):", "key"], 0),
    ("push and", ["pop", "push"], 1),
]
CHOICES = """\
task: choices
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc}]
"""
TEXTS = """\
task: texts
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["zq"], max_gen_toks: 12, temperature: 0}
metric_list: [{metric: exact_match}]
"""


@pytest.fixture(scope="module")
def told(two_url: str, plain: Engine, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    home: Path = tmp_path_factory.mktemp("lm_eval")
    tasks, tokenizer = home / "tasks", home / "tokenizer"
    tasks.mkdir()
    tokenizer.mkdir()
    plain.tokenizer.save(tokenizer)
    rows = [dict(zip(("question", "choices", "answer"), each, strict=True)) for each in QUESTIONS]
    data = home / "questions.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for name, text in (("choices", CHOICES), ("texts", TEXTS)):
        (tasks / f"{name}.yaml").write_text(text.replace("DATA", str(data)), encoding="utf-8")
    return peers.run("ask_lm_eval.py", home, two_url, str(tokenizer), str(tasks))


def likelihood(engine: Engine, question: str, choice: str) -> tuple[float, bool]:
    """Of the choice after the question, and whether the model's favourite is every token of it."""
    before = len(engine.tokenizer.encode(question))
    ids = engine.tokenizer.encode(f"{question} {choice}")
    params = SamplingParams(max_tokens=1, prompt_logprobs=0)
    (read,) = engine.generate([Request(token_ids=ids, params=params)])
    assert read.prompt_logprobs is not None
    tokens = [token for token in read.prompt_logprobs[before:] if token]
    (scored,) = engine.score([ids])
    return sum(p or 0 for p in scored.logprobs[before:]), all(t.rank == 1 for t in tokens)


@pytest.mark.parametrize("way", ["choices", "choices, several at once"])
def test_likelihoods_are_those_in_process(told: dict[str, Any], plain: Engine, way: str) -> None:
    right = 0
    for (question, choices, answer), got in zip(QUESTIONS, told[way]["answers"], strict=True):
        expected = [likelihood(plain, question, choice) for choice in choices]
        assert [value for value, _ in got] == pytest.approx([p for p, _ in expected], abs=1e-3)
        assert [greedy for _, greedy in got] == [greedy for _, greedy in expected]
        right += max(range(len(choices)), key=lambda i: expected[i][0]) == answer
    assert told[way]["accuracy"] == pytest.approx(right / len(QUESTIONS))


def test_generated_texts(told: dict[str, Any], plain: Engine) -> None:
    params = SamplingParams(max_tokens=12, temperature=0, stop=("zq",))
    tokenizer = plain.tokenizer
    prompts = [tokenizer.encode(question) for question, _, _ in QUESTIONS]
    expected = plain.generate([Request(token_ids=ids, params=params) for ids in prompts])
    assert told["texts"]["answers"] == [[c.text] for c in expected]


def test_generated_answers_of_a_chat(told: dict[str, Any], plain: Engine) -> None:
    params = SamplingParams(max_tokens=12, temperature=0, stop=("zq",))
    asked = [[{"role": "user", "content": question}] for question, _, _ in QUESTIONS]
    expected = [plain.chat(messages, params).text for messages in asked]
    assert told["chat"]["answers"] == [[text] for text in expected]
