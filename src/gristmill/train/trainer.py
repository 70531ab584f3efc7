"""The training loop: steps an objective, logs, evaluates, checkpoints, and resumes to the same bits.

Everything a step needs is a function of the step number: the batch (objective.batch), the learning rate
(schedule.lr_scale). The state is the parameters, the optimizer's moments, what the guard remembers and two integers.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gristmill.errors import RequestError, WorkError
from gristmill.files import hash_json, write_text
from gristmill.model import Transformer
from gristmill.stage import Progress
from gristmill.train import checkpoint
from gristmill.train.ahead import Ahead
from gristmill.train.balance import BALANCE_RATE, Balance, over_stages
from gristmill.train.compute import keep_freed_memory, resolve_dtype
from gristmill.train.gently import Stop, gently
from gristmill.train.guard import Guard
from gristmill.train.optim import OptimConfig, Optimizer
from gristmill.train.parallel.leaves import norm_of_gradients, scale_gradients
from gristmill.train.parallel.spread import Spread, Sums
from gristmill.train.schedule import lr_scale
from gristmill.train.watch import Watch

_SHARE_OF_CHECKPOINTS = 0.02  # of the time; saves that block longer come less often
_ROLLBACKS = 3
_REFUSED_IN_A_ROW = 16  # steps: then it is no spike, but where the loss is now


class Diverged(WorkError):
    """The loss, the gradient or the weights stopped being finite, or a spike was told to end the run."""


class Judge:
    """Passes a held-out batch through the network: (summed loss, targets, further sums) over all processes."""

    def __init__(self, spread: Spread, objective: Objective) -> None:
        self.network, self.dtype = spread.network, spread.dtype
        self._spread, self._objective = spread, objective

    def __call__(self, batch: Any) -> Sums:
        return self._spread.judge(self._objective, batch)


class Objective(Protocol):
    """What is trained for. The trainer knows nothing of it.

    counts: what a target is ("tokens", "pairs"), for the progress display.
    """

    counts: str

    def batch(self, step: int, row: int = 0, rows: int = 1) -> Any:
        """The batch of a step, a pure function of (seed, step): of its rows, every rows-th from `row` on."""
        ...

    def loss(
        self, network: Transformer, batch: Any, dtype: torch.dtype
    ) -> tuple[Tensor, int, dict[str, float]]:
        """(summed loss, number of targets, sums of further metrics) of a batch.

        The gradient is that of summed loss / targets: normalized by what is counted in the whole step, not by
        rows, pieces or processes.
        """
        ...

    def describe(self, sums: dict[str, float], targets: int) -> dict[str, float]:
        """Metrics of a logging interval, from summed metrics and the number of targets."""
        ...

    def evaluate(self, judge: Judge) -> dict[str, float]:
        """Held-out metrics; {} when there is nothing to evaluate on."""
        ...


def train(
    network: Transformer | Spread,
    objective: Objective,
    config: OptimConfig,
    *,
    steps: int,
    out_dir: Path,
    progress: Progress,
    log_every: int = 10,
    evaluations: int = 8,
    watch: Watch | None = None,
) -> list[dict[str, Any]]:
    """Train in place for `steps` steps; returns the rows of `out_dir/metrics.jsonl`.

    Resumes from `out_dir/checkpoints` when a checkpoint is there: parameters, optimizer and metrics end
    bit-identical to a run that was never interrupted (same machine, thread count and layout). The checkpoints stay;
    whoever owns `out_dir` removes them once the result is safe (the recipe's runner, with the manifest).
    Raises Diverged when the loss stops being finite, naming the step; RequestError where the checkpoints are
    those of other settings.
    """
    keep_freed_memory()
    if isinstance(network, Transformer):
        dtype = resolve_dtype(config.compute_dtype, out_dir)
        network = Spread([network], dtype=dtype, micro_batches=config.micro_batches)
    watch = watch or Watch(out_dir)
    run = Run(network, objective, config, steps, out_dir, watch)
    evaluate_at = {round(steps * (i + 1) / evaluations) for i in range(evaluations)}
    for part in network.parts:
        part.train()
    step = run.resume()
    watch.begin(network, step)
    if step and network.first:  # whoever resumes sees where
        progress(step, steps, "steps")
    try:
        # Of several processes each is stopped by who started it.
        with gently() if network.mesh is None else nullcontext(Stop()) as stop:
            while step < steps:
                if stop.asked:
                    run.save(step, last=True)
                    raise KeyboardInterrupt
                with watch.step():
                    _, bad = run.step(step)
                back = run.after_bad(step, bad) if bad else None
                if back is not None:
                    step = back
                    continue
                step += 1
                if step % log_every == 0 or step == steps or step in evaluate_at:
                    row = run.row(step, evaluate=step in evaluate_at)
                    run.log(row)
                    shown = {
                        k: v for k, v in row.items() if k in ("loss", "bits_per_byte", "accuracy")
                    }
                    shown |= watch.row(step, steps, row, objective.counts)
                    if network.first:
                        progress(step, steps, "steps", **shown)
                    run.save(step, last=step == steps)
    finally:
        watch.close()
        run.ahead.close()
        run.saver.wait()
    run.finish()
    return run.rows


class Run:
    """The state of a training and what moves it."""

    def __init__(
        self,
        spread: Spread,
        objective: Objective,
        config: OptimConfig,
        steps: int,
        out_dir: Path,
        watch: Watch,
    ) -> None:
        self.spread, self.objective, self.config, self.steps = spread, objective, config, steps
        self.watch = watch
        self.optimizer = Optimizer(spread.leaves, config, spread.dtype)
        self.balance = Balance(nn.ModuleList(spread.parts), BALANCE_RATE)
        mesh = spread.mesh
        row, rows = (mesh.row, mesh.layout.rows) if mesh else (0, 1)
        self.ahead = Ahead(objective, row, rows)
        self.guard = Guard()
        self.ema = (
            [leaf.local.detach().clone() for leaf in spread.leaves] if config.ema_decay else []
        )
        self.skipped = 0  # batches that were passed over by rollbacks
        self.rollbacks = 0
        self.refused = 0  # steps in a row
        self.rows: list[dict[str, Any]] = []
        self.out_dir, self.checkpoints = out_dir, out_dir / "checkpoints"
        self.group: Any = dist.new_group(backend="gloo") if spread.mesh is not None else None
        self.saver = checkpoint.Saver(self.checkpoints, self.group)
        self.work = hash_json({"config": config.decisive(), "steps": steps})
        self._forget_sums()
        self._last_saved = time.monotonic()

    def _forget_sums(self) -> None:
        self.sums: dict[str, float] = {}
        self.targets = 0

    def step(self, step: int) -> tuple[int, str]:
        """(targets, why the step was not taken or "")."""
        with self.watch.waiting("data"):
            batch = self.ahead.batch(step + self.skipped, more=step + 1 < self.steps)
        sums = self.spread.backward(self.objective, batch)
        targets = max(1, sums.targets)
        leaves = self.spread.leaves
        norm = norm_of_gradients(leaves, self.spread.stages) / targets
        bad = self.guard.verdict(sums.loss / targets, norm)
        self.watch.gradients(targets, keep=not bad)
        if bad and self._refused(bad):
            self.optimizer.forget_gradients()
            self.balance.forget()
            return targets, bad
        self.refused = 0
        clip = min(1.0, self.config.clip_grad_norm / (norm + 1e-6))
        scale_gradients(leaves, clip / targets)
        self.optimizer.step(self.scale(step))
        if self.ema:
            locals_ = [leaf.local.detach() for leaf in leaves]
            torch._foreach_lerp_(self.ema, locals_, 1 - self.config.ema_decay)
        more = {"loss": sums.loss, "grad_norm": norm * targets, **sums.more}
        mesh = self.spread.mesh
        loads = self.balance.after_step(mesh.group("tokens") if mesh else None)
        if mesh is not None and mesh.layout.pp > 1:
            loads = over_stages(loads, len(self.balance.layers), mesh.group("pp"))
        more |= {f"experts/{name}": value * targets for name, value in loads.items()}
        for name, amount in more.items():
            self.sums[name] = self.sums.get(name, 0.0) + amount
        self.targets += targets
        return targets, ""

    def scale(self, step: int) -> float:
        config = self.config
        return lr_scale(
            step,
            self.steps,
            schedule=config.schedule,
            warmup_steps=config.warmup_steps,
            decay_fraction=config.decay_fraction,
        )

    def _refused(self, bad: str) -> bool:
        return self.config.on_spike != "ignore" or "nan" in bad or "inf" in bad

    def after_bad(self, step: int, bad: str) -> int | None:
        """The step to go back to; None: the batch is passed over. Raises Diverged where neither helps."""
        config, finite = self.config, not ("nan" in bad or "inf" in bad)
        self.refused += 1
        if finite and config.on_spike == "skip" and self.refused <= _REFUSED_IN_A_ROW:
            self._incident(step, bad, "skip")
            return None
        self.saver.wait()
        found = checkpoint.newest(self.checkpoints) if self.spread.first else None
        can_go_back = bool(self.spread.agree(found is not None)) and self.rollbacks < _ROLLBACKS
        action = "rollback" if config.on_spike == "rollback" and can_go_back else "stop"
        self._incident(step, bad, action)
        if action == "rollback":
            skipped, rollbacks = self.skipped, self.rollbacks
            back = self.resume()
            self.rollbacks = rollbacks + 1
            # The batches from there to here are not seen again.
            self.skipped = skipped + step + 1 - back
            return back
        raise Diverged(
            f"training diverged at step {step}: {bad}. Lower lr_peak (now {config.lr_peak}) and "
            f"lr_embedding_peak (now {config.lr_embedding_peak}), or raise warmup_steps. "
            f"`gristmill doctor run` says where in the network and the data it began."
        )

    def _incident(self, step: int, bad: str, action: str) -> None:
        if self.spread.first:
            row = {"step": step, "batch": step + self.skipped, "what": bad, "action": action}
            append_row(self.out_dir / "incidents.jsonl", row)

    def row(self, step: int, evaluate: bool) -> dict[str, Any]:
        """Metrics since the row before."""
        row: dict[str, Any] = {"step": step, "lr": self.scale(step - 1) * self.config.lr_peak}
        targets = max(1, self.targets)
        if self.sums:
            row |= self.objective.describe(self.sums, targets)
            row["grad_norm"] = self.sums["grad_norm"] / targets
            for name in self.sums:
                if name.startswith("experts/"):
                    row[name.removeprefix("experts/")] = self.sums[name] / targets
        row |= self.watch.noise()
        if evaluate:
            for part in self.spread.parts:
                part.eval()
            self._swap_average()
            row |= self.objective.evaluate(Judge(self.spread, self.objective))
            self.watch.evaluated(step)
            self._swap_average()
            for part in self.spread.parts:
                part.train()
        self._forget_sums()
        return row

    def log(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        if self.spread.first:
            append_row(self.out_dir / "metrics.jsonl", row)

    def _swap_average(self) -> None:
        """The weights for their average, and back."""
        with torch.no_grad():
            for leaf, average in zip(self.spread.leaves, self.ema, strict=False):
                held = leaf.local.detach().clone()
                leaf.local.copy_(average)
                average.copy_(held)

    def save(self, step: int, last: bool) -> None:
        # Zero: at every row, whatever it costs.
        seconds = self.config.checkpoint_seconds
        every = max(seconds, self.saver.blocked / _SHARE_OF_CHECKPOINTS) if seconds else -1.0
        due = last or time.monotonic() - self._last_saved > every
        if self.spread.agree(due):
            with self.watch.waiting("checkpoints"):
                self.saver.save(step, self._state())
            self._last_saved = time.monotonic()

    def _state(self) -> dict[str, Any]:
        """What a checkpoint holds; the step is its name. work: hash of the settings that it belongs to."""
        leaves = self.spread.leaves
        network: dict[str, Tensor] = {
            leaf.name: leaf.spread(leaf.local.detach()) for leaf in leaves
        }
        for part in self.spread.parts:
            network |= dict(part.named_buffers())
        state: dict[str, Any] = {
            "network": network,
            "optimizer": self.optimizer.moments(),
            "told": json.dumps(
                {
                    "updates": self.optimizer.updates,
                    "skipped": self.skipped,
                    "rollbacks": self.rollbacks,
                    "refused": self.refused,
                    "losses": self.guard.losses,
                    "norms": self.guard.norms,
                    "rows": self.rows,
                    "sums": self.sums,
                    "targets": self.targets,
                    "work": self.work,
                }
            ),
        }
        if self.ema:
            averages = zip(leaves, self.ema, strict=True)
            state["average"] = {leaf.name: leaf.spread(average) for leaf, average in averages}
        return state

    def resume(self) -> int:
        """Fill everything from the newest checkpoint and return its step; 0 when there is none."""
        self._forget_sums()
        state = self._state()
        with torch.no_grad():
            found = checkpoint.load_latest(self.checkpoints, state, self.group)
        if found is not None:
            told = json.loads(state["told"])
            if told["work"] != self.work:
                raise RequestError(
                    f"{self.checkpoints} is of a training with other settings; remove it, or give another directory"
                )
            self.optimizer.resume(told["updates"])
            self.skipped, self.rows = told["skipped"], told["rows"]
            self.rollbacks, self.refused = told["rollbacks"], told["refused"]
            self.guard = Guard(told["losses"], told["norms"])
            self.sums, self.targets = told["sums"], told["targets"]
        if self.spread.first:
            write_rows(self.out_dir / "metrics.jsonl", self.rows)
        return found or 0

    def finish(self) -> None:
        """The average becomes the weights; nothing may be other than finite."""
        self._swap_average()
        sound = all(bool(torch.isfinite(leaf.local).all()) for leaf in self.spread.leaves)
        if self.spread.mesh is not None:
            told = torch.tensor([float(sound)], device=self.spread.mesh.device)
            dist.all_reduce(told, dist.ReduceOp.MIN)
            sound = bool(told)
        if not sound:
            raise Diverged(
                f"training diverged at its last step, {self.steps - 1}: its update left weights that are not "
                f"finite. Lower lr_peak (now {self.config.lr_peak}) and lr_embedding_peak."
            )
        self.balance.remove()
        for part in self.spread.parts:
            part.eval()


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def append_row(path: Path, row: dict[str, Any]) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())
