"""The four-way test: which of four descriptions belongs to this name? Chance is 25%.

The model sees the question as a chat and each description as the answer; nothing is generated. Three scores
are reported, by lm-eval's definitions. The headline, `accuracy`, is the mutual-information one: the
log-likelihood of a description after the question minus that after the same question with the name taken out
("domain conditional PMI", Holtzman et al. 2021, arXiv 2104.08315). Σ logp prefers short and common
descriptions whatever the question is, and a length norm prefers long, formulaic ones; the difference
asks what is meant here: which description does *this name* make more likely.

With retrieval, the passages that the index finds for the question stand before it, in the same prompt that
training and chat use; the subtracted likelihood stays the one without name and passages.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from gristmill.data.grounding import described, grounded
from gristmill.errors import RequestError
from gristmill.evaluate.conversation import ask, split_answer
from gristmill.evaluate.likelihood import likelihoods
from gristmill.evaluate.scores import (
    best,
    by_characters,
    check_answer,
    clustered_mean_and_stderr,
    mutual_information,
)
from gristmill.files import read_jsonl
from gristmill.model import Transformer
from gristmill.tokenizer import Tokenizer


@dataclass(frozen=True)
class Item:
    """One line of choices.jsonl. `answer` is the index of the right choice; `seen`: asked in training."""

    name: str
    question: str
    choices: tuple[str, ...]
    answer: int
    seen: bool

    @property
    def answers(self) -> tuple[str, ...]:
        """The choices as the assistant would say them: the name, then the description."""
        return tuple(described(self.name, choice) for choice in self.choices)

    @property
    def uninformative(self) -> str:
        """The question with the name taken out of it."""
        for name in (f"`{self.name}`", self.name):
            if name in self.question:
                return self.question.replace(name, "it")
        return "What does it do?"


class Searches(Protocol):
    """What retrieval is asked here: `Index.search` of gristmill.retrieval."""

    def search(self, question: str, k: int = 3) -> Sequence[Any]: ...


def read_items(path: Path, limit: int | None = None) -> list[Item]:
    """Items of choices.jsonl, the first `limit` seen and the first `limit` held-out ones.

    Raises RequestError naming the line where an answer is not one of the choices.
    """
    items: list[Item] = []
    counts = {True: 0, False: 0}
    for number, row in enumerate(read_jsonl(path), 1):
        check_answer(row["answer"], row["choices"], f"{path}, item {number}")
        item = Item(row["name"], row["question"], tuple(row["choices"]), row["answer"], row["seen"])
        counts[item.seen] += 1
        if limit is None or counts[item.seen] <= limit:
            items.append(item)
    return items


def score_items(
    network: Transformer,
    tokenizer: Tokenizer,
    items: Sequence[Item],
    index: Searches | None = None,
    k: int = 3,
    dtype: torch.dtype = torch.float32,
) -> dict[str, dict[str, dict[str, Any]]]:
    """{"closed_book"|"retrieval": {"seen"|"heldout": {"accuracy", "stderr", "n", …}}}.

    "retrieval" is there when `index` is. `passage_found`: how often a right answer's words were retrieved.
    """
    encoded = _Encoder(network, tokenizer)
    prompts = {"closed_book": [encoded.closed_book(item) for item in items]}
    found: list[bool] = []
    if index is not None:
        passages = [[p.text for p in index.search(item.question, k)] for item in items]
        prompts["retrieval"] = [
            encoded.with_passages(item, texts) for item, texts in zip(items, passages, strict=True)
        ]
        found = [
            any(item.choices[item.answer] in " ".join(text.split()) for text in texts)
            for item, texts in zip(items, passages, strict=True)
        ]
    alone = _unconditional(network, encoded, items, dtype)
    result: dict[str, dict[str, dict[str, Any]]] = {}
    for mode, contexts in prompts.items():
        options = [[encoded.answer(text) for text in item.answers] for item in items]
        scores = [
            [one.logprob for one in row] for row in likelihoods(network, contexts, options, dtype)
        ]
        result[mode] = {
            name: _summary(items, scores, alone, found if mode == "retrieval" else [], seen)
            for name, seen in (("seen", True), ("heldout", False))
            if any(item.seen == seen for item in items)
        }
    return result


def correct(item: Item, logprobs: Sequence[float], alone: Sequence[float]) -> dict[str, bool]:
    """Whether each score picks the right choice."""
    scores = {
        "mutual_information": mutual_information(logprobs, alone),
        "sum_logprob": list(logprobs),
        "per_character": by_characters(logprobs, item.answers),
    }
    return {name: best(values) == item.answer for name, values in scores.items()}


def _summary(
    items: Sequence[Item],
    scores: Sequence[Sequence[float]],
    alone: Mapping[tuple[str, str], float],
    found: Sequence[bool],
    seen: bool,
) -> dict[str, Any]:
    rows, clusters, retrieved = [], [], []
    for number, (item, logprobs) in enumerate(zip(items, scores, strict=True)):
        if item.seen != seen:
            continue
        unconditional = [alone[item.uninformative, choice] for choice in item.choices]
        rows.append(correct(item, logprobs, unconditional))
        clusters.append("\n".join(sorted(item.choices)))
        retrieved += [found[number]] if found else []
    accuracy, stderr = clustered_mean_and_stderr(
        [float(row["mutual_information"]) for row in rows], clusters
    )
    summary: dict[str, Any] = {"accuracy": accuracy, "n": len(rows)}
    if not math.isnan(stderr):
        summary["stderr"] = stderr
    for name in ("sum_logprob", "per_character"):
        summary[f"accuracy_{name}"] = sum(row[name] for row in rows) / len(rows)
    if retrieved:
        summary["passage_found"] = sum(retrieved) / len(retrieved)
    return summary


def _unconditional(
    network: Transformer, encoded: _Encoder, items: Sequence[Item], dtype: torch.dtype
) -> dict[tuple[str, str], float]:
    """log p(choice | question without the name), each distinct pair scored once."""
    wanted: dict[str, dict[str, None]] = {}
    for item in items:
        wanted.setdefault(item.uninformative, {}).update(dict.fromkeys(item.choices))
    pairs = [(question, choice) for question, choices in wanted.items() for choice in choices]
    scores = likelihoods(
        network,
        [encoded.context(question) for question, _ in pairs],
        [[encoded.answer(described("it", choice))] for _, choice in pairs],
        dtype,
    )
    return {pair: row[0].logprob for pair, row in zip(pairs, scores, strict=True)}


class _Encoder:
    """Contexts and answers as ids that together fit the model; answers are encoded once."""

    def __init__(self, network: Transformer, tokenizer: Tokenizer) -> None:
        self.limit = network.config.max_seq_len
        self.tokenizer = tokenizer
        self._answers: dict[str, list[int]] = {}

    def context(self, question: str) -> list[int]:
        return split_answer(self.tokenizer, ask(question), "x")[0]

    def answer(self, text: str) -> list[int]:
        if text not in self._answers:
            ids = split_answer(self.tokenizer, ask("x"), text)[1]
            # An answer longer than half the context is compared by its beginning.
            self._answers[text] = ids[: self.limit // 2]
        return self._answers[text]

    def closed_book(self, item: Item) -> list[int]:
        ids = self.context(item.question)
        if len(ids) > self._room(item):
            raise RequestError(
                f'the question "{item.question}" does not fit the model\'s context of {self.limit}'
            )
        return ids

    def with_passages(self, item: Item, passages: Sequence[str]) -> list[int]:
        """The grounded prompt with as many of the passages, best first, as fit beside the choices."""
        for count in range(len(passages), 0, -1):
            ids = self.context(grounded(item.question, passages[:count]))
            if len(ids) <= self._room(item):
                return ids
        return self.closed_book(item)

    def _room(self, item: Item) -> int:
        return self.limit - max(len(self.answer(text)) for text in item.answers)
