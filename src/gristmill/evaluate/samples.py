"""What the models say: the same questions to the model of every stage, and next-token tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from gristmill.engine import Engine
from gristmill.errors import RequestError
from gristmill.evaluate.choices import Item
from gristmill.evaluate.conversation import ask
from gristmill.formats import Model
from gristmill.lm import Request, SamplingParams
from gristmill.retrieval import Index, answer


def pick_questions(items: Sequence[Item], seen: int, heldout: int) -> list[Item]:
    """The first `seen` and `heldout` items of the multiple-choice test (their order is drawn by hash)."""
    asked = [item for item in items if item.seen][:seen]
    return asked + [item for item in items if not item.seen][:heldout]


def answers(
    models: Mapping[str, Model],
    questions: Sequence[str],
    max_tokens: int,
    index: Index | None = None,
) -> list[dict[str, Any]]:
    """[{"question", "answers": {model name: text, …}, "citations": ["source:line", …]}], greedy.

    With `index`, the last of `models` answers once more with passages, under its name + "_retrieval".
    """
    params = SamplingParams(max_tokens=max_tokens, temperature=0.0)
    rows: list[dict[str, Any]] = [
        {"question": question, "answers": {}, "citations": []} for question in questions
    ]
    engine = None
    for name, model in models.items():
        engine = Engine(model)
        requests = [
            Request(token_ids=model.tokenizer.chat_ids(ask(question)), params=params)
            for question in questions
        ]
        for row, completion in zip(rows, engine.generate(requests), strict=True):
            row["answers"][name] = completion.checked().text
    if index is not None and engine is not None:
        name = f"{list(models)[-1]}_retrieval"
        for row in rows:
            try:
                found = answer(engine, index, row["question"], params)
            except RequestError:  # not even one passage fits the model's context
                continue
            row["answers"][name] = found.text
            row["citations"] = [passage.cite for passage in found.citations]
    return rows


def next_tokens(
    model: Model, prompts: Sequence[str], heldout: Sequence[np.ndarray], top: int = 8
) -> list[dict[str, Any]]:
    """[{"prompt", "top": [{"token", "probability"}, …], "actual"?}]: the likeliest next tokens.

    After each of `prompts` at the start of a document, and after the beginning of each held-out document
    (its ids but the last, which is the "actual" one).
    """
    tokenizer = model.tokenizer
    rows = []
    for prompt in prompts:
        ids = tokenizer.prompt_ids(prompt)
        if not ids:
            raise RequestError("a prompt of `prompts` is empty, and no token begins a text")
        rows.append({"prompt": prompt, "top": _likeliest(model, ids, top)})
    for document in heldout:
        ids = document.tolist()
        rows.append(
            {
                "prompt": tokenizer.decode(ids[:-1]),
                "top": _likeliest(model, ids[:-1], top),
                "actual": _shown(model, ids[-1]),
            }
        )
    return rows


def _likeliest(model: Model, ids: list[int], top: int) -> list[dict[str, Any]]:
    ids = ids[-model.config.max_seq_len :]
    probabilities = model(torch.tensor([ids]))[0, -1].double().softmax(-1)
    values, order = probabilities.topk(min(top, probabilities.shape[0]))
    return [
        {"token": _shown(model, id), "probability": value}
        for id, value in zip(order.tolist(), values.tolist(), strict=True)
    ]


def _shown(model: Model, id: int) -> str:
    return model.tokenizer.token_bytes(id).decode("utf-8", errors="replace")
