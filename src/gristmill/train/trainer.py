"""The training loop: steps an objective, logs, evaluates, checkpoints, and resumes to the same bits.

Everything a step needs is a function of the step number: the batch (objective.batch), the learning rate
(schedule.lr_scale). The state is the parameters, the optimizer's moments and that one integer.
"""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from gristmill.errors import RequestError, WorkError
from gristmill.files import hash_json, write_text
from gristmill.model import Transformer
from gristmill.stage import Progress
from gristmill.train import checkpoint
from gristmill.train.compute import keep_freed_memory, resolve_dtype
from gristmill.train.optim import OptimConfig, build_optimizers
from gristmill.train.schedule import lr_scale

_SECONDS_BETWEEN_CHECKPOINTS = 15.0


class Objective(Protocol):
    """What is trained for. The trainer knows nothing of it.

    counts: what a target is ("tokens", "pairs"), for the progress display.
    """

    counts: str

    def batch(self, step: int) -> Any:
        """The batch of a step, a pure function of (seed, step)."""
        ...

    def loss(
        self, network: Transformer, batch: Any, dtype: torch.dtype
    ) -> tuple[Tensor, int, dict]:
        """(summed loss, number of targets, sums of further metrics) of a batch.

        The gradient is that of summed loss / targets: normalized by what is counted, not by rows.
        """
        ...

    def describe(self, sums: dict[str, float], targets: int) -> dict[str, float]:
        """Metrics of a logging interval, from summed metrics and the number of targets."""
        ...

    def evaluate(self, network: Transformer, dtype: torch.dtype) -> dict[str, float]:
        """Held-out metrics; {} when there is nothing to evaluate on."""
        ...


def train(
    network: Transformer,
    objective: Objective,
    config: OptimConfig,
    *,
    steps: int,
    out_dir: Path,
    progress: Progress,
    log_every: int = 10,
    evaluations: int = 8,
) -> list[dict[str, float]]:
    """Train in place for `steps` steps; returns the rows of `out_dir/metrics.jsonl`.

    Resumes from `out_dir/checkpoints` when a checkpoint is there: parameters, optimizer and metrics end
    bit-identical to a run that was never interrupted (same machine, same thread count). The checkpoints stay;
    whoever owns `out_dir` removes them once the result is safe (the recipe's runner, with the manifest).
    Raises WorkError when the loss stops being finite, naming the step; RequestError where the checkpoints are
    those of other settings.
    """
    keep_freed_memory()
    dtype = resolve_dtype(config.compute_dtype, out_dir)
    optimizers = build_optimizers(network, config, dtype)
    peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    parameters = [p for p in network.parameters() if p.requires_grad]
    checkpoints = out_dir / "checkpoints"
    metrics_path = out_dir / "metrics.jsonl"
    first, rows = 0, []
    work = hash_json({"config": config.model_dump(mode="json"), "steps": steps})
    state = _state(network, optimizers, rows, work)
    resumed = checkpoint.load_latest(checkpoints, state)
    if resumed is not None:
        if state["work"] != work:
            raise RequestError(
                f"{checkpoints} is of a training with other settings; remove it, or give another directory"
            )
        first, rows = resumed, json.loads(state["rows"])
        network.load_state_dict(state["network"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
    write_rows(metrics_path, rows)

    network.train()
    evaluate_at = {round(steps * (i + 1) / evaluations) for i in range(evaluations)}
    sums: dict[str, float] = {}
    targets_seen, last_saved = 0, time.monotonic()
    targets_done, started = 0, time.monotonic()
    for step in range(first, steps):
        scale = lr_scale(
            step,
            steps,
            schedule=config.schedule,
            warmup_steps=config.warmup_steps,
            decay_fraction=config.decay_fraction,
        )
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            for group, lr in zip(optimizer.param_groups, peak, strict=True):
                group["lr"] = lr * scale
        batch = objective.batch(step)
        loss, targets, extra = objective.loss(network, batch, dtype)
        (loss / targets).backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, config.clip_grad_norm, foreach=True)
        value = loss.item()
        if not (math.isfinite(value) and math.isfinite(norm.item())):
            raise WorkError(
                f"training diverged at step {step}: loss {value / targets}, gradient norm "
                f"{norm.item()}. Lower lr_peak (now {config.lr_peak}) and lr_embedding_peak "
                f"(now {config.lr_embedding_peak}), or raise warmup_steps."
            )
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        targets_seen += targets
        targets_done += targets
        for name, amount in {"loss": value, "grad_norm": norm.item() * targets, **extra}.items():
            sums[name] = sums.get(name, 0.0) + amount
        done = step + 1
        if done % log_every == 0 or done == steps or done in evaluate_at:
            row: dict[str, Any] = {"step": done, "lr": scale * config.lr_peak}
            row |= objective.describe(sums, targets_seen)
            row["grad_norm"] = sums["grad_norm"] / targets_seen
            if done in evaluate_at:
                network.eval()
                row |= objective.evaluate(network, dtype)
                network.train()
            rows.append(row)
            append_row(metrics_path, row)
            sums, targets_seen = {}, 0
            shown = {k: v for k, v in row.items() if k in ("loss", "bits_per_byte", "accuracy")}
            rate = targets_done / max(1e-9, time.monotonic() - started)
            progress(done, steps, "steps", **shown, **{f"{objective.counts}_per_s": rate})
            if time.monotonic() - last_saved > _SECONDS_BETWEEN_CHECKPOINTS or done == steps:
                checkpoint.save(checkpoints, done, _state(network, optimizers, rows, work))
                last_saved = time.monotonic()
    if not all(bool(torch.isfinite(parameter).all()) for parameter in parameters):
        raise WorkError(
            f"training diverged at its last step, {steps - 1}: its update left weights that are not "
            f"finite. Lower lr_peak (now {config.lr_peak}) and lr_embedding_peak."
        )
    network.eval()
    return rows


def _state(
    network: Transformer,
    optimizers: list[torch.optim.Optimizer],
    rows: list[dict[str, float]],
    work: str,
) -> dict[str, Any]:
    """What a checkpoint holds; the step is its name. work: hash of the settings that it belongs to."""
    return {
        "network": network.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "rows": json.dumps(rows),
        "work": work,
    }


def write_rows(path: Path, rows: list[dict[str, float]]) -> None:
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def append_row(path: Path, row: dict[str, float]) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())
