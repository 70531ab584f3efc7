"""The evaluate stage: every model of the line beside the baselines, on what training has not seen."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import NonNegativeInt, PositiveInt

from gristmill.errors import RequestError, WorkError
from gristmill.evaluate.bits import bits_per_byte, total
from gristmill.evaluate.choices import Item, read_items, score_items
from gristmill.evaluate.preferences import accuracies, read_pairs, score_pairs
from gristmill.evaluate.samples import answers, next_tokens, pick_questions
from gristmill.evaluate.shards import Document, read_documents
from gristmill.evaluate.written import score_written
from gristmill.files import read_json, write_json
from gristmill.formats import Model
from gristmill.model import Transformer, initialize
from gristmill.retrieval import Index
from gristmill.stage import Progress, Result, StageConfig, quiet
from gristmill.tokenizer import Tokenizer

_STAGES = ("base", "sft", "dpo")
_BASELINES = ("xz", "xz_context", "ngram5")
_EXCERPTS = 2
_EXCERPT_TOKENS = 48


class EvaluateConfig(StageConfig):
    """How much is measured. The held-out text is the one that the baselines were measured on.

    context: tokens a window holds when bits are counted; what the models were trained on, as they may
        be worse beyond it. choices, pairs: at most so many seen and so many held-out items of each test.
    passages: how many the index is asked for. written: seen and held-out items whose answer with sources the
    last model writes out. questions: asked in the samples besides the first
    `seen_samples` and `heldout_samples` of the test. prompts: whose next tokens are shown.
    """

    seed: int = 0
    context: PositiveInt = 256
    choices: NonNegativeInt = 200
    pairs: NonNegativeInt = 200
    passages: PositiveInt = 3
    written: NonNegativeInt = 20
    questions: tuple[str, ...] = ()
    seen_samples: int = 3
    heldout_samples: int = 2
    answer_tokens: int = 80
    prompts: tuple[str, ...] = ("import numpy as", "The capital of France is", "def __init__(self")


def run(
    config: EvaluateConfig, inputs: dict[str, Path], out_dir: Path, progress: Progress = quiet
) -> Result:
    """Measure what is there and write `samples.json`.

    Inputs: tokens, tokenizer; optional: questions, index, baselines, base_model, sft_model, dpo_model,
    int8_model. What an absent input would have measured is absent from the metrics.
    """
    models = {
        name: Model.load(inputs[f"{name}_model"])
        for name in (*_STAGES, "int8")
        if f"{name}_model" in inputs
    }
    if not models:
        raise RequestError("there is no model to evaluate; run the line as far as pretrain first")
    stages = {name: model for name, model in models.items() if name in _STAGES}
    index = Index.open(inputs["index"]) if "index" in inputs else None
    questions = inputs.get("questions")
    steps = _Steps(progress, len(models) + 2 + (len(stages) + 1 if questions else 0))

    baselines = read_json(inputs["baselines"]) if "baselines" in inputs else {}
    documents = _heldout_documents(inputs, baselines)
    metrics: dict[str, Any] = _bits(config, models, documents, baselines, steps)
    items = read_items(questions / "choices.jsonl", config.choices) if questions else []
    if questions:
        metrics["choices"] = {}
        for name, model in stages.items():
            metrics["choices"][name] = score_items(
                model.network, model.tokenizer, items, index, config.passages
            )
            steps.done(choices=name)
        pairs = read_pairs(questions / "preferences.heldout.jsonl", config.pairs)
        metrics["preferences"] = {}
        before = None
        for name in [name for name in ("sft", "dpo") if name in stages]:
            scores = score_pairs(stages[name].network, stages[name].tokenizer, pairs)
            metrics["preferences"][name] = accuracies(pairs, scores, before)
            before = scores
        steps.done(preferences=len(pairs))

        if index is not None and config.written and stages:
            metrics["written"] = _written(config, list(stages.values())[-1], items, index)

    picked = pick_questions(items, config.seen_samples, config.heldout_samples)
    asked = [*config.questions, *(item.question for item in picked)]
    metrics["samples"] = answers(stages, asked, config.answer_tokens, index)
    for row, item in zip(metrics["samples"][len(config.questions) :], picked, strict=True):
        row["expected"], row["seen"] = item.choices[item.answer], item.seen
    excerpts = [d.tokens[:_EXCERPT_TOKENS] for d in documents if len(d.tokens) > _EXCERPT_TOKENS]
    metrics["next_token"] = next_tokens(
        next(iter(models.values())), config.prompts, excerpts[:_EXCERPTS]
    )
    steps.done(samples=len(asked))
    path = out_dir / "samples.json"
    write_json(path, {"samples": metrics["samples"], "next_token": metrics["next_token"]})
    return Result({"samples": path}, metrics)


def _written(
    config: EvaluateConfig, model: Model, items: list[Item], index: Index
) -> dict[str, Any]:
    """`score_written` of the model that the line made last, for seen and held-out items apart."""
    chosen = pick_questions(items, config.written, config.written)
    groups = {
        "seen": [item for item in chosen if item.seen],
        "heldout": [item for item in chosen if not item.seen],
    }
    return {
        name: score_written(model, group, index, config.answer_tokens, config.passages)
        for name, group in groups.items()
        if group
    }


class _Steps:
    """Counts finished measurements for the progress display."""

    def __init__(self, progress: Progress, count: int) -> None:
        self._progress, self._count, self._done = progress, count, 0
        progress(0, count, "measurements")

    def done(self, **values: Any) -> None:
        self._done += 1
        self._progress(self._done, self._count, "measurements", **values)


def _heldout_documents(inputs: Mapping[str, Path], baselines: Mapping[str, Any]) -> list[Document]:
    """The documents that the baselines were measured on; all held-out ones where there are no baselines."""
    tokenizer = Tokenizer.load(inputs["tokenizer"])
    size = baselines.get("heldout_bytes")
    documents = read_documents(inputs["tokens"], "heldout", tokenizer, size)
    if size is not None and sum(document.size for document in documents) != size:
        raise WorkError(
            f"{inputs['baselines']} was measured on {size} bytes that are not in {inputs['tokens']}; "
            "run the baselines stage again"
        )
    if not any(document.size for document in documents):
        raise WorkError(f"{inputs['tokens']} has no held-out text to evaluate on")
    return documents


def _bits(
    config: EvaluateConfig,
    models: Mapping[str, Model],
    documents: list[Document],
    baselines: Mapping[str, Any],
    steps: _Steps,
) -> dict[str, Any]:
    """Bits per byte of the untrained network, every model and every baseline; models also by group."""
    untrained = initialize(Transformer(next(iter(models.values())).config), config.seed)
    measured, by_group = {}, {}
    for name, network in {
        "untrained": untrained.eval(),
        **{name: model.network for name, model in models.items()},
    }.items():
        groups = bits_per_byte(network, documents, context=config.context)
        measured[name] = total(groups).per_byte
        by_group[name] = {group: bits.per_byte for group, bits in groups.items()}
        steps.done(bits_per_byte=measured[name])
    for name in _BASELINES:
        if f"{name}_bits_per_byte" in baselines:
            measured[name] = baselines[f"{name}_bits_per_byte"]
    return {
        "bits_per_byte": measured,
        "bits_per_byte_by_group": by_group,
        "heldout": {
            "bytes": sum(document.size for document in documents),
            "tokens": sum(len(document.tokens) - 1 for document in documents),
            "documents": len(documents),
        },
    }
