"""Answers that are written, not chosen: does what the assistant says with its sources say the right thing?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gristmill.engine import Engine
from gristmill.errors import RequestError
from gristmill.evaluate.choices import Item
from gristmill.evaluate.scores import mean_and_stderr
from gristmill.formats import Model
from gristmill.lm import SamplingParams
from gristmill.retrieval import Answer, Index, answer


def score_written(
    model: Model, items: Sequence[Item], index: Index, max_tokens: int, passages: int
) -> dict[str, Any]:
    """Ask every item's question as a chat with sources would, greedily; one that does not fit is wrong.

    {"shown": share of answers that hold the right description word for word, in the model's words or in the
    passage quoted after them; "own_words": in the model's own; "quoted": share that needed the quotation; "n"};
    with "shown_stderr" and "own_words_stderr" for two items or more.
    """
    engine = Engine(model)
    params = SamplingParams(max_tokens=max_tokens, temperature=0.0)
    found: list[Answer | None] = []
    for item in items:
        try:
            found.append(answer(engine, index, item.question, params, passages))
        except RequestError:  # not even one passage fits the model's context
            found.append(None)
    pairs = list(zip(found, items, strict=True))
    shown = [float(one is not None and _says(one.text, item)) for one, item in pairs]
    own = [float(one is not None and _says(one.own_words, item)) for one, item in pairs]
    scores: dict[str, Any] = {"n": len(items)}
    for name, values in (("shown", shown), ("own_words", own)):
        scores[name], stderr = mean_and_stderr(values)
        if len(values) > 1:
            scores[f"{name}_stderr"] = stderr
    scores["quoted"] = sum(one is not None and one.quoted for one in found) / len(found)
    return scores


def _says(text: str, item: Item) -> bool:
    right = item.choices[item.answer].rstrip(".")
    return " ".join(right.split()) in " ".join(text.split())
