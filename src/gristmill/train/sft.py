"""The fine-tuning stage: conversations, with the loss on what the assistant says and on ending its turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from gristmill.errors import RequestError
from gristmill.files import read_jsonl
from gristmill.formats import Model, save_hf
from gristmill.model import Transformer
from gristmill.stage import Progress, Result, quiet
from gristmill.tokenizer import Tokenizer
from gristmill.train.optim import OptimConfig
from gristmill.train.order import epoch_order
from gristmill.train.trainer import Judge, train

_BUCKET = 16  # batches sorted by length together, so that rows of a batch need little padding


class SFTConfig(OptimConfig):
    lr_peak: NonNegativeFloat = 0.01
    lr_embedding_peak: NonNegativeFloat = 0.001
    epochs: PositiveFloat = 2.0
    batch_examples: PositiveInt = 16
    max_tokens: PositiveInt = 512  # longer conversations are left out, and counted
    evaluations: NonNegativeInt = 3
    evaluation_examples: PositiveInt = 256
    seed: int = 0


class Conversations:
    """Cross-entropy on assistant tokens. Rows are padded on the right, which causal attention never sees."""

    counts = "answer_tokens"

    def __init__(
        self,
        examples: Sequence[tuple[list[int], list[bool]]],
        heldout: Sequence[tuple[list[int], list[bool]]],
        batch_examples: int,
        pad_id: int,
        seed: int,
        steps: int,
    ) -> None:
        self.examples, self.heldout = examples, heldout
        self.batch_examples, self.pad_id, self.seed = batch_examples, pad_id, seed
        # No bucket is longer than an epoch or goes past the run's end: sorted by length, its examples would
        # come twice in a batch, or some of them not at all.
        self.steps = steps
        self.bucket = max(1, min(_BUCKET, len(examples) // batch_examples))

    def batch(self, step: int, row: int = 0, rows: int = 1) -> tuple[Tensor, Tensor]:
        """(ids, targets), int64 [rows, tokens]; targets are -100 where nothing is to be learnt."""
        bucket, turn = divmod(step, self.bucket)
        batches = min(self.bucket, self.steps - bucket * self.bucket)
        first, count = bucket * self.bucket * self.batch_examples, batches * self.batch_examples
        order = epoch_order(first, count, len(self.examples), self.seed, "sft").tolist()
        order.sort(key=lambda i: (len(self.examples[i][0]), i))
        turn = int(epoch_order(turn, 1, batches, self.seed, f"sft bucket {bucket}")[0])
        chosen = order[turn * self.batch_examples : (turn + 1) * self.batch_examples]
        ids, targets = pad([self.examples[i] for i in chosen], self.pad_id)
        return ids[row::rows], targets[row::rows]

    def loss(
        self, network: Transformer, batch: tuple[Tensor, Tensor], dtype: torch.dtype
    ) -> tuple[Tensor, int, dict[str, float]]:
        ids, targets = batch
        at = targets[:, 1:] != -100
        hidden = network.hidden(ids[:, :-1], dtype=dtype)[at]
        logits = network.logits(hidden)
        wanted = targets[:, 1:][at]
        loss = F.cross_entropy(logits, wanted, reduction="sum")
        right = (logits.argmax(-1) == wanted).sum().item()
        return loss, wanted.numel(), {"right": right}

    def describe(self, sums: dict[str, float], targets: int) -> dict[str, float]:
        return {"loss": sums["loss"] / targets, "accuracy": sums["right"] / targets}

    def evaluate(self, judge: Judge) -> dict[str, float]:
        if not self.heldout:
            return {}
        loss = right = 0.0
        targets = 0
        for start in range(0, len(self.heldout), 32):
            found = judge(pad(self.heldout[start : start + 32], self.pad_id))
            loss, right = loss + found.loss, right + found.more["right"]
            targets += found.targets
        return {"heldout_loss": loss / targets, "heldout_accuracy": right / targets}


def pad(rows: Sequence[tuple[list[int], list[bool]]], pad_id: int) -> tuple[Tensor, Tensor]:
    """(ids, targets) of (ids, mask) rows; masked by position, so a pad id that also ends turns is learnt."""
    width = max(len(ids) for ids, _ in rows)
    ids = torch.full((len(rows), width), pad_id)
    targets = torch.full((len(rows), width), -100)
    for row, (tokens, mask) in enumerate(rows):
        line = torch.tensor(tokens)
        ids[row, : len(tokens)] = line
        targets[row, : len(tokens)] = torch.where(torch.tensor(mask), line, -100)
    return ids, targets


def encode_conversations(
    path: Path, tokenizer: Tokenizer, max_tokens: int
) -> tuple[list[tuple[list[int], list[bool]]], int]:
    """((ids, mask) of every conversation of at most `max_tokens`, how many were too long)."""
    rows = []
    for number, row in enumerate(read_jsonl(path), 1):
        try:
            rows.append(tokenizer.chat_ids_with_mask(row["messages"]))
        except RequestError as error:
            raise RequestError(f"{path}, line {number}: {error}") from error
    kept = [row for row in rows if len(row[0]) <= max_tokens]
    return kept, len(rows) - len(kept)


def run(
    config: SFTConfig, inputs: dict[str, Path], out_dir: Path, progress: Progress = quiet
) -> Result:
    """inputs: model, questions, tokenizer. Output: model, an HF directory."""
    tokenizer = Tokenizer.load(inputs["tokenizer"])
    network = Model.load(inputs["model"], widen=True).network
    limit = min(config.max_tokens, network.config.max_seq_len)
    examples, too_long = encode_conversations(
        inputs["questions"] / "sft.train.jsonl", tokenizer, limit
    )
    heldout, _ = encode_conversations(inputs["questions"] / "sft.heldout.jsonl", tokenizer, limit)
    if not examples:
        raise RequestError(
            f"{inputs['questions']}/sft.train.jsonl holds no conversation of at most {limit} tokens"
        )
    spread = max(1, len(heldout) // config.evaluation_examples)
    steps = max(1, round(config.epochs * len(examples) / config.batch_examples))
    objective = Conversations(
        examples,
        heldout[::spread][: config.evaluation_examples],
        config.batch_examples,
        tokenizer.pad_id or 0,
        config.seed,
        steps,
    )
    rows = train(
        network,
        objective,
        config,
        steps=steps,
        out_dir=out_dir,
        progress=progress,
        evaluations=config.evaluations,
    )
    model = out_dir / "model"
    save_hf(network, model, tokenizer)
    return Result(
        {"model": model},
        {
            "shape": asdict(network.config),
            "parameters": network.config.num_parameters,
            "steps": steps,
            "examples": len(examples),
            "left_out_too_long": too_long,
            "target_tokens": sum(sum(mask) for _, mask in examples),
            "heldout_loss": rows[-1].get("heldout_loss"),
            "heldout_accuracy": rows[-1].get("heldout_accuracy"),
            "history": rows,
        },
    )
