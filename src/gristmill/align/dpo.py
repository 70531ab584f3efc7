"""The alignment stage: direct preference optimization against the fine-tuned model as reference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from gristmill.align.losses import dpo_loss
from gristmill.align.pairs import Pair, encode, own_worse_answers, read_pairs, sequence_logprobs
from gristmill.errors import RequestError
from gristmill.files import read_json, read_jsonl, write_json
from gristmill.formats import Model, save_hf
from gristmill.model import Transformer
from gristmill.stage import Progress, Result, quiet
from gristmill.tokenizer import Tokenizer
from gristmill.train import Judge, OptimConfig, epoch_order, resolve_dtype, train


class DPOConfig(OptimConfig):
    """`beta` is the strength of the pull towards the reference; `nll` the weight of the chosen answer's own
    loss a token (Llama 3 uses 0.2), which keeps its probability from falling along with the rejected one's."""

    optimizer: Literal["muon", "adamw"] = "muon"
    lr_peak: NonNegativeFloat = 0.003
    lr_embedding_peak: NonNegativeFloat = 3e-4
    warmup_steps: NonNegativeInt = 10
    beta: PositiveFloat = 0.1
    nll: NonNegativeFloat = 0.2
    epochs: PositiveFloat = 1.0
    batch_pairs: PositiveInt = 16
    max_pairs: NonNegativeInt = 1024  # derived pairs used; the model's own come on top
    own_samples: NonNegativeInt = 256  # prompts it answers itself, to find its own worse answers
    own_heldout: NonNegativeInt = 64  # as many of facts none of whose own answers is trained on
    own_max_tokens: PositiveInt = 48
    own_worse_below: float = 0.5
    max_tokens: PositiveInt = 384
    evaluations: NonNegativeInt = 3
    evaluation_pairs: NonNegativeInt = 256  # derived pairs that are measured; own ones come on top
    seed: int = 0


class Preferences:
    """Pairs with the reference's log-probabilities, computed once. The loss is normalized by pairs."""

    counts = "pairs"

    def __init__(
        self,
        pairs: Sequence[Pair],
        reference: Tensor,
        heldout: Sequence[Pair],
        config: DPOConfig,
    ) -> None:
        self.pairs, self.reference, self.heldout, self.config = pairs, reference, heldout, config
        self.measured: dict[str, float] = {}  # the last evaluation

    def batch(self, step: int, row: int = 0, rows: int = 1) -> Tensor:
        """Numbers of pairs, int64 [pairs]."""
        size = self.config.batch_pairs
        order = epoch_order(step * size, size, len(self.pairs), self.config.seed, "dpo")
        return torch.from_numpy(order[row::rows])

    def loss(
        self, network: Transformer, batch: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, int, dict[str, float]]:
        pairs = [self.pairs[i] for i in batch.tolist()]
        rows = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
        chosen, rejected = sequence_logprobs(network, rows, dtype).chunk(2)
        reference_chosen, reference_rejected = self.reference[batch].unbind(1)
        lengths = torch.tensor([sum(mask) for _, mask in rows[: len(pairs)]])
        preference = dpo_loss(
            chosen, rejected, reference_chosen, reference_rejected, self.config.beta
        )
        loss = (preference - self.config.nll * chosen / lengths).sum()
        rewards = self.config.beta * torch.stack(
            (chosen - reference_chosen, rejected - reference_rejected)
        )
        sums = {
            "preference": preference.sum().item(),
            "right": (rewards[0] > rewards[1]).sum().item(),
            "margin": (rewards[0] - rewards[1]).sum().item(),
            "chosen": rewards[0].sum().item(),
        }
        return loss, len(pairs), sums

    def describe(self, sums: dict[str, float], targets: int) -> dict[str, float]:
        return {
            "loss": sums["preference"] / targets,
            "reward_accuracy": sums["right"] / targets,
            "reward_margin": sums["margin"] / targets,
            "reward_chosen": sums["chosen"] / targets,
        }

    def evaluate(self, judge: Judge) -> dict[str, float]:
        self.measured = accuracies(judge.network, self.heldout, judge.dtype)
        return {"heldout_accuracy": self.measured["all"]} if self.measured else {}


def accuracies(network: Transformer, pairs: Sequence[Pair], dtype: torch.dtype) -> dict[str, float]:
    """Share of pairs whose chosen side is the likelier one (Σ log π): of "all" and of each form; {} of none."""
    groups: dict[str, list[bool]] = {}
    for pair, (chosen, rejected) in zip(
        pairs, pair_logprobs(network, pairs, dtype).tolist(), strict=True
    ):
        for group in ("all", pair.form):
            groups.setdefault(group, []).append(chosen > rejected)
    return {group: sum(right) / len(right) for group, right in groups.items()}


@torch.inference_mode()
def pair_logprobs(network: Transformer, pairs: Sequence[Pair], dtype: torch.dtype) -> Tensor:
    """(Σ log π of chosen, of rejected) of each pair, float32 [pairs, 2]."""
    out = torch.zeros(len(pairs), 2)
    order = sorted(range(len(pairs)), key=lambda i: (len(pairs[i].chosen[0]), i))
    for start in range(0, len(order), 16):
        chosen = order[start : start + 16]
        rows = [pairs[i].chosen for i in chosen] + [pairs[i].rejected for i in chosen]
        values = sequence_logprobs(network, rows, dtype)
        out[chosen] = torch.stack(values.chunk(2), dim=1)
    return out


def run(
    config: DPOConfig, inputs: dict[str, Path], out_dir: Path, progress: Progress = quiet
) -> Result:
    """inputs: model, questions, tokenizer. Output: model, an HF directory."""
    tokenizer = Tokenizer.load(inputs["tokenizer"])
    model = Model.load(inputs["model"], widen=True)
    questions = inputs["questions"]
    derived = _spread(read_pairs(questions / "preferences.train.jsonl"), config.max_pairs)
    kept_back = read_pairs(questions / "preferences.heldout.jsonl")
    own, own_kept_back = _own_answers(model, questions, kept_back, config, out_dir, progress)
    limit = min(config.max_tokens, model.config.max_seq_len)
    pairs, too_long = encode([*derived, *own], tokenizer, limit)
    if not pairs:
        raise RequestError(
            f"{questions}/preferences.train.jsonl holds no pair of at most {limit} tokens"
        )
    measured = [*_spread(kept_back, config.evaluation_pairs), *own_kept_back]
    heldout, _ = encode(measured, tokenizer, limit)
    dtype = resolve_dtype(config.compute_dtype, out_dir)
    network = model.network
    reference = pair_logprobs(network, pairs, dtype)
    objective = Preferences(pairs, reference, heldout, config)
    before = accuracies(network, heldout, dtype)
    steps = max(1, round(config.epochs * len(pairs) / config.batch_pairs))
    rows = train(
        network,
        objective,
        config,
        steps=steps,
        out_dir=out_dir,
        progress=progress,
        evaluations=config.evaluations,
    )
    if not objective.measured:  # no evaluation was asked for, or none was left when it resumed
        objective.measured = accuracies(network, heldout, dtype)
    after = objective.measured
    save_hf(network, out_dir / "model", tokenizer)
    return Result(
        {"model": out_dir / "model"},
        {
            "shape": asdict(network.config),
            "parameters": network.config.num_parameters,
            "steps": steps,
            "pairs": len(pairs),
            "pairs_derived": len(derived),
            "pairs_own": len(own),
            "left_out_too_long": too_long,
            "heldout_pairs": len(heldout),
            "heldout_accuracy_before": before.get("all"),
            "heldout_accuracy": after.get("all"),
            "heldout_by_form": {
                form: {"before": before[form], "after": after[form], "n": count}
                for form, count in sorted(Counter(pair.form for pair in heldout).items())
            },
            "history": rows,
        },
    )


def _own_answers(
    model: Model,
    questions: Path,
    kept_back: Sequence[dict[str, Any]],
    config: DPOConfig,
    out_dir: Path,
    progress: Progress,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(training, held-out) pairs of the model's own worse answers; the held-out ones are about the facts whose
    second derived pairs are held out; the right answer of such a fact does stand in a training pair, the wrong
    one does not. Kept in out_dir/own.json, since they cost seconds to make again."""
    place = out_dir / "own.json"
    if place.is_file():
        found = read_json(place)
        return found["train"], found["heldout"]
    apart = {row["fact"] for row in kept_back}
    rows = [row for row in read_jsonl(questions / "sft.train.jsonl") if row.get("form") == "what"]
    prompts = _spread([row for row in rows if row["fact"] not in apart], config.own_samples)
    prompts += _spread([row for row in rows if row["fact"] in apart], config.own_heldout)
    found = {"train": [], "heldout": []}
    for done, pairs in own_worse_answers(
        model,
        prompts,
        max_tokens=config.own_max_tokens,
        worse_below=config.own_worse_below,
        seed=config.seed,
    ):
        for pair in pairs:
            found["heldout" if pair["fact"] in apart else "train"].append(pair)
        progress(done, len(prompts), "samples", kept=len(found["train"]))
    write_json(place, found)
    return found["train"], found["heldout"]


def _spread(rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """`count` rows evenly spread over the list (all of them when there are fewer)."""
    if count >= len(rows):
        return rows
    return [rows[i * len(rows) // count] for i in range(count)]
