"""Preference pairs as token rows, and pairs made of a model's own worse answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gristmill.engine import Engine, target_logprobs
from gristmill.files import read_jsonl
from gristmill.formats import Model
from gristmill.lm import Request, SamplingParams
from gristmill.model import Transformer
from gristmill.tokenizer import Tokenizer
from gristmill.train import pad

Row = tuple[list[int], list[bool]]  # ids, and which of them the completion owns
SAMPLES_PER_BATCH = 64


@dataclass(frozen=True)
class Pair:
    chosen: Row
    rejected: Row
    form: str = ""  # what kind of pair it is, for measuring kinds apart


def read_pairs(path: Path) -> list[dict[str, Any]]:
    """Rows of a preferences file in conversational form: prompt, chosen and rejected are message lists."""
    return read_jsonl(path)


def encode(
    rows: Sequence[dict[str, Any]], tokenizer: Tokenizer, max_tokens: int
) -> tuple[list[Pair], int]:
    """(pairs whose both sides fit `max_tokens`, how many did not)."""
    pairs = []
    for row in rows:
        chosen, rejected = (
            completion_row(tokenizer, row["prompt"], row[side]) for side in ("chosen", "rejected")
        )
        if max(len(chosen[0]), len(rejected[0])) <= max_tokens:
            pairs.append(Pair(chosen, rejected, row.get("form") or ""))
    return pairs, len(rows) - len(pairs)


def completion_row(
    tokenizer: Tokenizer, prompt: list[dict[str, str]], completion: list[dict[str, str]]
) -> Row:
    """Ids of the whole conversation; the mask covers the last assistant turn and the token that ends it."""
    ids, mask = tokenizer.chat_ids_with_mask([*prompt, *completion])
    start = len(tokenizer.chat_ids(prompt, add_generation_prompt=True))
    return ids, [owned and place >= start for place, owned in enumerate(mask)]


def sequence_logprobs(network: Transformer, rows: Sequence[Row], dtype: torch.dtype) -> Tensor:
    """Σ log π over the completion tokens of each row, float32 [rows]."""
    ids, targets = pad(rows, 0)
    at = targets[:, 1:] != -100
    hidden = network.hidden(ids[:, :-1], dtype=dtype)[at]
    values = target_logprobs(network, hidden, targets[:, 1:][at])
    owner = torch.arange(len(rows))[:, None].expand_as(at)[at]
    return torch.zeros(len(rows)).index_add(0, owner, values)


def own_worse_answers(
    model: Model,
    prompts: Sequence[dict[str, Any]],
    *,
    max_tokens: int,
    worse_below: float,
    seed: int,
) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Pairs of a known answer and what the model itself says at temperature 1, where that is worse.

    prompts: rows {"messages": […, assistant]} whose last message is the known answer. A sample is worse when
    the F1 of its words against the answer's is below `worse_below`; the others make no pair.
    Yields (prompts done so far, new pairs).
    """
    engine = Engine(model)
    for start in range(0, len(prompts), SAMPLES_PER_BATCH):
        batch = prompts[start : start + SAMPLES_PER_BATCH]
        requests = [
            Request(
                token_ids=model.tokenizer.chat_ids(row["messages"][:-1]),
                params=SamplingParams(max_tokens=max_tokens, seed=seed + start + i),
            )
            for i, row in enumerate(batch)
        ]
        pairs = []
        for row, sample in zip(batch, engine.generate(requests), strict=True):
            *prompt, answer = row["messages"]
            finished = sample.finish_reason == "stop" and sample.text.strip()
            if finished and word_f1(sample.text, answer["content"]) < worse_below:
                pairs.append(
                    {
                        "prompt": prompt,
                        "chosen": [answer],
                        "rejected": [{"role": "assistant", "content": sample.text}],
                        "annotator": "derived",
                        "fact": row.get("fact"),
                        "form": "own",
                    }
                )
        yield start + len(batch), pairs


def word_f1(a: str, b: str) -> float:
    """F1 of the words two texts share, counted with repeats (SQuAD's measure without its articles)."""
    left, right = Counter(a.lower().split()), Counter(b.lower().split())
    shared = sum((left & right).values())
    return 2 * shared / max(1, sum(left.values()) + sum(right.values()))
