"""What went wrong in a training: its first bad step is made again on one process and looked at from inside.

Batches, rates and first weights are functions of (seed, step), so the way from a checkpoint to the bad step can be
gone again. There the questions are asked in an order in which each answer leaves the next one clear: is an id
outside of the vocabulary; were weights bad already; is it the arithmetic (finite in fp32); is it the batch (another
one passes through the same weights); or the weights, moved by too large a rate.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from copy import copy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gristmill.stage import Progress, quiet
from gristmill.tokenizer import Tokenizer
from gristmill.train import verdicts
from gristmill.train.checkup import Check, checkup, read_rows
from gristmill.train.examine import Examined, bad_tensors, examine, mean_loss, rows_of, token_losses
from gristmill.train.parallel.layout import Layout
from gristmill.train.pretrain import PretrainConfig, prepare, steps_of
from gristmill.train.suspects import Suspect, accuse
from gristmill.train.trainer import Run
from gristmill.train.watch import Watch
from gristmill.train.windows import Windows

_LARGE_UPDATE = 0.3  # of the weights' norm, in one step; 0.001 to 0.02 is usual
_SECONDS_AT_ONCE = 20.0
_PARAMETERS_AT_ONCE = 50_000_000


@dataclass(frozen=True)
class Diagnosis:
    """step: the first bad one, counted from 0; None where there is none. place: a module or a parameter. replayed
    _from: the step of the checkpoint (0: from the beginning); None: the step was not made again."""

    step: int | None
    cause: verdicts.Cause
    sentence: str
    cure: str = ""
    what: str = ""  # the run's own words
    place: str = ""
    replayed_from: int | None = None
    suspects: tuple[Suspect, ...] = ()  # rows of the batch, the most suspect first
    seen: tuple[str, ...] = ()  # what was looked at, in words
    incidents: tuple[dict[str, Any], ...] = ()
    checks: tuple[Check, ...] = ()

    @property
    def healthy(self) -> bool:
        return self.step is None and all(check.state != "bad" for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        return {"healthy": self.healthy, **asdict(self)}


def diagnose(
    stage_dir: Path,
    config: PretrainConfig,
    inputs: dict[str, Path],
    *,
    patience: float = math.inf,
    progress: Progress = quiet,
) -> Diagnosis:
    """Of the pretraining in `stage_dir`, made with `config` from `inputs` (tokens, tokenizer). Changes no file.

    patience: seconds that the way to the bad step may take; where it would take longer, only the batch's tokens are
    looked at. Raises RequestError where settings or inputs are not those of the training.
    """
    windows = Windows(inputs["tokens"], "train", config.context, config.weights, config.seed)
    patience /= config.layout.world  # what many did is now made by one
    config = config.model_copy(
        update={
            "layout": Layout(),
            "recompute": "none",
            "compile_blocks": False,
            "log_to": (),
        }
    )
    with tempfile.TemporaryDirectory() as scratch:
        case = _Case(stage_dir, config, inputs, windows, Path(scratch), patience, progress)
        try:
            made = case.solve()
        finally:
            case.leave()
    share = steps_of(config) * config.batch_tokens / sum(windows.weights)
    sizes = zip(windows.groups, windows.weights, windows.tokens, strict=True)
    epochs = {group: share * weight / len(tokens) for group, weight, tokens in sizes}
    checks = checkup(stage_dir, steps_of(config), epochs)
    return Diagnosis(
        **made,
        seen=tuple(case.seen),
        incidents=tuple(case.incidents),
        checks=tuple(checks),
    )


def at_once(
    stage_dir: Path, config: PretrainConfig, inputs: dict[str, Path], parameters: int
) -> str:
    """A sentence for the error of a training that just diverged, where finding it takes seconds; else ""."""
    if parameters > _PARAMETERS_AT_ONCE:
        return ""
    try:
        found = diagnose(stage_dir, config, inputs, patience=_SECONDS_AT_ONCE)
    except Exception:  # the error that is being told matters more than any of the diagnosis
        return ""
    if found.cause in ("none", "unknown", "not reproduced"):
        return ""
    return f"\nDiagnosis: {found.sentence} {found.cure}"


@dataclass
class _Case:
    stage_dir: Path
    config: PretrainConfig
    inputs: dict[str, Path]
    windows: Windows
    scratch: Path
    patience: float
    progress: Progress
    seen: list[str] = field(default_factory=list)
    run: Any = None  # trainer.Run
    ready: Any = None  # pretrain.Ready

    def solve(self) -> dict[str, Any]:
        """The fields of a Diagnosis that tell what happened."""
        self.incidents = _known(read_rows(self.stage_dir / "incidents.jsonl"))
        steps = steps_of(self.config)
        self.checkpoints = _checkpoints(self.stage_dir)
        self.tokenizer = Tokenizer.load(self.inputs["tokenizer"])
        incident = self._incident(steps)
        if incident is None:
            return {"step": None, "cause": "none", "sentence": "No step was bad."}
        told = {"step": incident["step"], "what": incident["what"]}
        outside = self._outside(incident["batch"])
        if outside is not None:
            return told | outside
        start = self._find_start(incident["step"])
        step = None if start is None else self._replay(start, incident)
        if step is None:
            if self.bad_checkpoints:
                return told | verdicts.bad_checkpoint(self.bad_checkpoints)
            return told | self._by_tokens(incident["batch"])
        told["replayed_from"] = start
        return told | {"step": step} | self._judge(step)

    def _incident(self, steps: int) -> dict[str, Any] | None:
        """The one that ended the training, else the first that it passed over."""
        rows = read_rows(self.stage_dir / "metrics.jsonl")
        done = rows[-1]["step"] if rows else 0
        ended = [row for row in self.incidents if row["action"] == "stop" and row["step"] >= done]
        if ended or self.incidents:
            return (ended or self.incidents)[-1 if ended else 0]
        finished = (self.stage_dir / "manifest.json").is_file()
        if not finished and self.checkpoints and self.checkpoints[0][0] == steps:
            self._stand(self.checkpoints[:1])
            if bad_tensors(self._weights()):
                what = "the last update left weights that are not finite"
                return {
                    "step": steps,
                    "batch": steps + self.run.skipped,
                    "what": what,
                    "action": "stop",
                }
        return None

    def _stand(self, checkpoints: list[tuple[int, Path]]) -> int:
        """Be where the first sound one of these checkpoints was written, or at the beginning; returns the step."""
        here = self.scratch / "stage"
        shutil.rmtree(here, ignore_errors=True)
        (here / "checkpoints").mkdir(parents=True)
        for name in ("compute.json", "warm_start.json"):
            if (self.stage_dir / name).is_file():
                shutil.copy(self.stage_dir / name, here)
        for _, path in checkpoints:
            (here / "checkpoints" / path.name).symlink_to(path.absolute())
        self.leave()
        self.ready = prepare(self.config, self.inputs, here, None)
        ready, steps = self.ready, steps_of(self.config)
        watch = Watch(here)
        self.run = Run(ready.spread, ready.objective, ready.config, steps, here, watch)
        ready.spread.network.train()
        watch.begin(ready.spread, 0)
        return self.run.resume()

    def leave(self) -> None:
        """Give back what is held."""
        if self.run is not None:
            self.run.ahead.close()
        self.run = self.ready = None

    def _weights(self) -> dict[str, Tensor]:
        return {leaf.name: leaf.local for leaf in self.ready.spread.leaves}

    def _find_start(self, bad: int) -> int | None:
        """Stand at the newest checkpoint before the bad step whose weights are finite; None where that is too far.

        Each that is not finite is remembered.
        """
        self.bad_checkpoints: list[tuple[int, str]] = []
        there = [(step, path) for step, path in self.checkpoints if step <= bad]
        at_bad = False
        for number, (step, path) in enumerate(there):
            found = self._stand(there[number:])
            if found != step:
                self.seen.append(f"the checkpoint {path.name} is damaged and was passed over")
                continue
            wrong = bad_tensors(self._weights())
            if wrong:
                self.bad_checkpoints.append((step, wrong[0]))
                more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
                self.seen.append(f"{path.name} holds {wrong[0]}{more} that is not finite")
            elif step < bad:
                return step if self._near(bad - step) else None
            else:
                at_bad = True
        if at_bad:  # no step before it can be made again, but it can be looked at
            return self._stand([pair for pair in there if pair[0] == bad])
        return self._stand([]) if self._near(bad) else None

    def _near(self, steps: int) -> bool:
        timing = read_rows(self.stage_dir / "timing.jsonl")
        speed = timing[-1].get("tokens_per_s", 0.0) if timing else 0.0
        seconds = 1.5 * steps * self.config.batch_tokens / speed if speed else 0.0
        if seconds <= self.patience:
            return True
        self.seen.append(f"{steps:,} steps lie before the bad one, about {seconds:,.0f} seconds")
        return False

    def _replay(self, start: int, incident: dict[str, Any]) -> int | None:
        """Go from `start` to the first bad step, and stop before it; the weights are those before it. None where that
        took too long."""
        self.run.skipped = incident["batch"] - incident["step"]
        self.updated_badly = ""  # a parameter that an update made other than finite
        self.moved: dict[str, float] = {}
        began = time.monotonic()
        leaves = self.ready.spread.leaves
        refused = {row["step"] for row in self.incidents if row["action"] == "skip"}
        for step in range(start, incident["step"]):
            before = [leaf.local.detach().clone() for leaf in leaves]
            guard = copy(self.run.guard)
            _, why = self.run.step(step)
            if why and step not in refused:
                return step
            wrong = bad_tensors(self._weights())
            if not why:
                self.moved = _larger(self.moved, _moved(leaves, before))
            if wrong:
                self.updated_badly = wrong[0]
                with torch.no_grad():
                    for leaf, old in zip(leaves, before, strict=True):
                        leaf.local.copy_(old)
                self.run.guard = guard
                return step
            self.progress(step + 1 - start, incident["step"] - start, "steps")
            if time.monotonic() - began > self.patience:
                self.seen.append(f"patience ended at step {step}")
                return None
        self.seen.append(
            f"steps {start} to {incident['step']} were made again"
            if start < incident["step"]
            else f"the checkpoint lies right before step {start}"
        )
        return incident["step"]

    def _judge(self, step: int) -> dict[str, Any]:
        ready, dtype = self.ready, self.ready.spread.dtype
        network, leaves, objective = ready.spread.network, ready.spread.leaves, ready.objective
        number, losses = step + self.run.skipped, self.run.guard.losses
        if step >= steps_of(self.config):  # after the last one, and nothing was bad on the way
            return verdicts.not_reproduced(step, self.bad_checkpoints)
        batch = objective.batch(number)
        found = examine(network, leaves, objective, batch, dtype)
        self.seen.append(f"its loss is {found.loss:.4g}, its gradient norm {found.norm:.4g}")
        for name, share in self.moved.items():
            said = f"an update moved what {name} is the rate of by up to {share:.2g} of its norm"
            self.seen.append(said)
        if self.updated_badly:
            why = f"the update of step {step} made them so"
            return verdicts.rate(self.config, self.moved, self.updated_badly, why)
        spiked = copy(self.run.guard).verdict(found.loss, found.norm)
        if found.finite and not spiked:
            return verdicts.not_reproduced(step, self.bad_checkpoints)
        place = next((r.bad_forward or r.bad_backward for r in found.rows if not r.sound), "")
        if not found.finite and dtype != torch.float32:
            exact = examine(network, leaves, objective, batch, torch.float32)
            if exact.finite:
                return verdicts.precision(place, dtype, exact.forward.sizes.get(place))
        usual = mean_loss(network, objective, objective.batch(max(0, number - 1)), dtype)
        known = losses[-1] if losses else math.nan
        before = f", and had {known:.4g} when it was trained on" if losses else ""
        self.seen.append(f"the batch before has a loss of {usual:.4g} in the same weights{before}")
        if not math.isfinite(usual) or usual > max(1.5 * known, known + 1):
            why = verdicts.rise(losses) or "another batch fails in them too"
            return verdicts.rate(self.config, self.moved, place, why)
        suspects = self._accused(number, found)
        if suspects:
            return verdicts.data(suspects, place)
        if any(not share < _LARGE_UPDATE for share in self.moved.values()):
            why = verdicts.rise(losses) or "no row stands out"
            return verdicts.rate(self.config, self.moved, place, why)
        if not found.finite and math.isfinite(found.loss):
            return verdicts.gradients(place, found)
        if not place:
            usual_flow = examine(network, leaves, objective, objective.batch(number - 1), dtype)
            place, factor = found.forward.jump_from(usual_flow.forward)
            self.seen.append(f"{place} is {factor:.2g} times as large as in the batch before")
        return verdicts.unknown(place)

    def _accused(self, number: int, found: Examined | None) -> tuple[Suspect, ...]:
        rows = self.config.batch_tokens // self.config.context

        def losses_of(row: int) -> Tensor:
            spread, objective = self.ready.spread, self.ready.objective
            given = rows_of(objective.batch(number), spread.device)[row]
            return token_losses(spread.network, given, spread.dtype)

        tokens_dir = self.inputs["tokens"]
        return accuse(
            self.windows, tokens_dir, self.tokenizer, number * rows, rows, found, losses_of
        )

    def _outside(self, number: int) -> dict[str, Any] | None:
        """A diagnosis where the batch has ids that the embedding does not."""
        vocabulary = self.tokenizer.vocab_size
        for suspect in self._accused(number, None):
            if suspect.highest >= vocabulary:
                return verdicts.vocabulary(suspect, vocabulary)
        return None

    def _by_tokens(self, number: int) -> dict[str, Any]:
        """What can be said without the network."""
        suspects = tuple(s for s in self._accused(number, None) if s.clues)
        return verdicts.data(suspects, "") if suspects else verdicts.unread()


def _known(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without those that a run which was resumed met again."""
    return list({(row["step"], row["batch"]): row for row in rows}.values())


def _checkpoints(stage_dir: Path) -> list[tuple[int, Path]]:
    """(step, directory), newest first."""
    found = (stage_dir / "checkpoints").glob("step-*")
    named = [path for path in found if path.name.removeprefix("step-").isdigit()]
    return sorted(((int(path.name.removeprefix("step-")), path) for path in named), reverse=True)


def _moved(leaves: list[Any], before: list[Tensor]) -> dict[str, float]:
    """The setting of a rate -> by how much of its norm the update moved what it is the rate of."""
    sums: dict[str, list[float]] = {}
    for leaf, old in zip(leaves, before, strict=True):
        outer = leaf.parameter.ndim == 1 or any(
            part in leaf.name for part in ("embed_", "lm_head", "router")
        )
        total = sums.setdefault("lr_embedding_peak" if outer else "lr_peak", [0.0, 0.0])
        moved = leaf.local.detach().double() - old.double()
        total[0] += float(moved.square().sum())
        total[1] += float(old.double().square().sum())
    return {name: (moved / max(size, 1e-30)) ** 0.5 for name, (moved, size) in sums.items()}


def _larger(a: dict[str, float], b: dict[str, float]) -> dict[str, float]:
    """By name; what is not finite is larger than all."""
    return {name: a[name] if name in a and b[name] <= a[name] else b[name] for name in b}
