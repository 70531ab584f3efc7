"""The loop: interrupted anywhere, also by kill -9, it ends at the bits of a run that was left alone."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gristmill.errors import WorkError
from gristmill.files import hash_file
from gristmill.model import Transformer, generator_for, initialize
from gristmill.model.config import ModelConfig
from gristmill.train import Judge, OptimConfig, train
from tests.train.corpus import SHAPE, random_network

ROOT = Path(__file__).parents[2]
STEPS, LOG_EVERY = 24, 3


class Copying:
    """Predict the token before: batches are a function of the step, rows differ in their targets' number."""

    counts = "letters"

    def __init__(self, targets_per_row: int = 15) -> None:
        self.targets_per_row = targets_per_row

    def batch(self, step: int, row: int = 0, rows: int = 1) -> Tensor:
        return torch.randint(0, 64, (4, 16), generator=generator_for(1, f"batch {step}"))

    def loss(
        self, network: Transformer, batch: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, int, dict[str, float]]:
        logits = network(batch[:, 1:], dtype=dtype)[:, : self.targets_per_row]
        targets = batch[:, :-1][:, : self.targets_per_row]
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
        right = (logits.argmax(-1) == targets).sum().item()
        return loss, targets.numel(), {"right": right}

    def describe(self, sums: dict[str, float], targets: int) -> dict[str, float]:
        return {"loss": sums["loss"] / targets, "accuracy": sums["right"] / targets}

    def evaluate(self, judge: Judge) -> dict[str, float]:
        found = judge(self.batch(-1))
        return {"heldout_loss": found.loss / found.targets}


def fresh() -> Transformer:
    return initialize(Transformer(ModelConfig(vocab_size=64, **SHAPE)), seed=0)


def config(**settings: Any) -> OptimConfig:
    chosen = {"compute_dtype": "float32", "warmup_steps": 4, "checkpoint_seconds": 0, **settings}
    return OptimConfig(**chosen)


def run(out_dir: Path, progress: Any = lambda *a, **k: None, **settings: Any) -> Transformer:
    network = fresh()
    train(
        network,
        Copying(),
        config(**settings),
        steps=STEPS,
        out_dir=out_dir,
        progress=progress,
        log_every=LOG_EVERY,
        evaluations=2,
    )
    return network


class Interrupted(Exception):
    pass


class InterruptAt:
    """A progress listener that raises at the n-th call."""

    def __init__(self, call: int) -> None:
        self.left = call

    def __call__(self, done: float, total: float, unit: str = "", **values: Any) -> None:
        self.left -= 1
        if self.left < 0:
            raise Interrupted


def same(a: Transformer, b: Transformer) -> bool:
    pairs = zip(a.state_dict().items(), b.state_dict().items(), strict=True)
    return all(m == n and torch.equal(x, y) for (m, x), (n, y) in pairs)


def test_the_speed_that_is_shown_is_of_what_the_objective_counts(tmp_path):
    shown: list[set[str]] = []

    def progress(done: float, total: float, unit: str = "", **values: Any) -> None:
        shown.append({name for name in values if name.endswith("_per_s")})

    config = OptimConfig(lr_peak=0.01, compute_dtype="float32")
    train(fresh(), Copying(), config, steps=2, out_dir=tmp_path, progress=progress)
    assert shown and all(names == {"letters_per_s"} for names in shown)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_interrupted_runs_end_at_the_same_bits(optimizer, tmp_path):
    settings = dict(optimizer=optimizer, lr_peak=0.02 if optimizer == "muon" else 0.003)
    undisturbed = run(tmp_path / "whole", **settings)
    rows = (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    assert not same(undisturbed, fresh())
    seed = random.randrange(2**32)
    print("seed", seed)
    draw = random.Random(seed)
    interruptions = 0
    while True:
        try:
            network = run(tmp_path / "cut", InterruptAt(draw.randrange(1, 5)), **settings)
            break
        except Interrupted:
            interruptions += 1
    assert interruptions >= 1
    assert same(network, undisturbed)
    assert (tmp_path / "cut" / "metrics.jsonl").read_bytes() == rows


def test_resuming_goes_on_from_the_checkpoint(tmp_path):
    with pytest.raises(Interrupted):
        run(tmp_path, InterruptAt(5))
    steps: list[float] = []
    run(tmp_path, lambda done, *a, **k: steps.append(done))
    # Five rows were saved; the sixth was cut before its checkpoint.
    assert steps[:2] == [5 * LOG_EVERY, 6 * LOG_EVERY]


def test_resuming_from_the_one_before_a_damaged_checkpoint(tmp_path):
    undisturbed = run(tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(tmp_path / "cut", InterruptAt(5))
    newest = sorted((tmp_path / "cut" / "checkpoints").iterdir())[-1]
    largest = max(newest.iterdir(), key=lambda file: file.stat().st_size)
    os.truncate(largest, 100)
    with pytest.warns(UserWarning, match="is damaged"):
        network = run(tmp_path / "cut")
    assert same(network, undisturbed)


CHILD = """
import sys
from pathlib import Path
from gristmill.files import write_with
from gristmill.train import trainer
from safetensors.torch import save_file
from tests.train.test_trainer import run
network = run(Path(sys.argv[1]), lambda done, *a, **k: print(done, flush=True))
write_with(Path(sys.argv[2]), lambda path: save_file(network.state_dict(), path))
"""


def test_killed_processes_end_at_the_same_bits(tmp_path):
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}

    def start(name: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", CHILD, str(tmp_path / name), str(tmp_path / f"{name}.st")]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)

    whole = start("whole")
    assert whole.wait(timeout=300) == 0
    seed = random.randrange(2**32)
    print("seed", seed)
    draw, kills = random.Random(seed), 0
    while True:
        child = start("cut")
        if kills < 3:
            for _ in range(draw.randrange(1, 4)):
                child.stdout.readline()  # a row is done; its checkpoint is about to be written
            time.sleep(draw.uniform(0, 0.1))
            child.send_signal(signal.SIGKILL)
            kills += child.wait() == -signal.SIGKILL
        else:
            child.stdout.read()
        if child.wait() == 0:
            break
        assert child.returncode == -signal.SIGKILL
    assert kills >= 1
    assert hash_file(tmp_path / "cut.st") == hash_file(tmp_path / "whole.st")
    rows = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "cut")]
    assert rows[0] == rows[1]


def test_rows_hold_the_means_over_the_targets_since_the_row_before(tmp_path):
    """Without an update (learning rate zero) each row must be the mean over its own steps, by hand."""
    network, objective = random_network(vocab_size=64), Copying()
    rows = train(
        network,
        objective,
        config(lr_peak=0.0, lr_embedding_peak=0.0),
        steps=5,
        out_dir=tmp_path,
        progress=lambda *a, **k: None,
        log_every=2,
        evaluations=1,
    )
    assert [row["step"] for row in rows] == [2, 4, 5]
    with torch.inference_mode():
        means = [
            objective.loss(network, objective.batch(step), torch.float32)[0].item() / 60
            for step in range(5)
        ]
    wanted = [(means[0] + means[1]) / 2, (means[2] + means[3]) / 2, means[4]]
    assert [row["loss"] for row in rows] == pytest.approx(wanted, abs=1e-5)
    assert [row for row in rows if "heldout_loss" in row] == rows[-1:]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == rows


def test_gradient_is_that_of_the_loss_per_target(tmp_path):
    """Plain AdamW from torch, on the mean loss, with the schedule's factor: the oracle of three steps."""
    ours, theirs = random_network(vocab_size=64), random_network(vocab_size=64)
    settings = config(optimizer="adamw", lr_peak=0.002, lr_embedding_peak=0.002, clip_grad_norm=0.5)
    train(
        ours,
        Copying(),
        settings,
        steps=3,
        out_dir=tmp_path,
        progress=lambda *a, **k: None,
        evaluations=0,
    )
    adamw = torch.optim.AdamW(
        theirs.parameters(), lr=0.0, betas=(0.9, 0.95), eps=1e-10, weight_decay=0
    )
    for step in range(3):
        adamw.param_groups[0]["lr"] = 0.002 * (step + 1) / 4 * min(1, (3 - step) / 1.8)
        batch = Copying().batch(step)
        F.cross_entropy(theirs(batch[:, 1:]).flatten(0, 1), batch[:, :-1].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        adamw.step()
        adamw.zero_grad()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        # Adam divides tiny gradients by their own size: roundings of theirs come to a hundredth of a step.
        assert (a - b).abs().max() < 5e-5


def test_divergence_names_the_step_and_the_cure(tmp_path):
    with pytest.raises(WorkError, match=r"diverged at step \d+: .*Lower lr_peak \(now 0\.01\)"):
        run(tmp_path, lr_peak=0.01, lr_embedding_peak=1e18, warmup_steps=0)


def test_weights_that_are_not_finite_are_found_at_the_first_step(tmp_path):
    network = fresh()
    with torch.no_grad():
        network.model.norm.weight[3] = math.nan
    with pytest.raises(WorkError, match="diverged at step 0: loss nan"):
        train(
            network,
            Copying(),
            config(),
            steps=3,
            out_dir=tmp_path,
            progress=lambda *a, **k: None,
        )


def test_divergence_in_the_last_update_is_found_too(tmp_path):
    with pytest.raises(WorkError, match="diverged at its last step, 0"):
        train(
            random_network(vocab_size=64),
            Copying(),
            config(optimizer="adamw", lr_peak=1e39, warmup_steps=0),
            steps=1,
            out_dir=tmp_path,
            progress=lambda *a, **k: None,
            evaluations=0,
        )


class Spiked(Copying):
    """One batch whose loss is a thousandfold."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at, self.seen = at, []

    def batch(self, step: int, row: int = 0, rows: int = 1) -> Tensor:
        # Rows of 17: the last number says whether the batch is the bad one.
        bad = torch.full((4, 1), int(step == self.at))
        return torch.cat((super().batch(step), bad), dim=1)

    def loss(self, network, batch, dtype):
        loss, targets, more = super().loss(network, batch[:, :-1], dtype)
        return loss * (1000 if batch[0, -1] else 1), targets, more


@pytest.mark.parametrize(
    "at", [130, 133]
)  # in between, and the last step, which has a row to write
@pytest.mark.parametrize("policy", ["skip", "rollback", "stop", "ignore"])
def test_a_spike_is_met_as_asked_for(at, policy, tmp_path):
    settings = config(on_spike=policy, lr_peak=0.001, lr_embedding_peak=0.001)
    more: Any = dict(steps=134, out_dir=tmp_path, progress=lambda *a, **k: None, evaluations=0)
    network = fresh()
    if policy == "stop":
        with pytest.raises(WorkError, match=f"diverged at step {at}: loss"):
            train(network, Spiked(at), settings, **more)
    else:
        rows = train(network, Spiked(at), settings, **more)
        assert rows[-1]["step"] == 134
        assert all(row["loss"] < 100 for row in rows) == (policy != "ignore")
    incidents = tmp_path / "incidents.jsonl"
    said = (
        [json.loads(line) for line in incidents.read_text().splitlines()]
        if incidents.exists()
        else []
    )
    assert [(row["step"], row["batch"], row["action"]) for row in said] == (
        [] if policy == "ignore" else [(at, at, policy)]
    )
    if policy == "skip":  # as if the batch had never been, up to the step's place in the schedule
        clean = fresh()
        train(clean, Copying(), settings, **{**more, "out_dir": tmp_path / "clean"})
        assert not same(network, clean)


def test_ctrl_c_loses_no_step(tmp_path):
    """Pressed in the middle of a step: the step is made whole and kept, and the run ends as if nothing had been."""
    undisturbed = run(tmp_path / "whole", checkpoint_seconds=3600)
    rows = (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    seen: list[float] = []

    class Pressed(Copying):
        def loss(self, network, batch, dtype):
            if len(seen) == 1:
                seen.append(0)
                os.kill(os.getpid(), signal.SIGINT)
            return super().loss(network, batch, dtype)

    network = fresh()
    settings: Any = dict(steps=STEPS, out_dir=tmp_path / "cut", log_every=LOG_EVERY, evaluations=2)
    with pytest.raises(KeyboardInterrupt):
        train(
            network,
            Pressed(),
            config(checkpoint_seconds=3600),
            progress=lambda done, *_, **__: seen.append(done),
            **settings,
        )
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    again: list[float] = []
    network = run(
        tmp_path / "cut", lambda done, *_, **__: again.append(done), checkpoint_seconds=3600
    )
    assert again[0] == LOG_EVERY + 1  # it stopped one step after the first row, between rows
    assert same(network, undisturbed)
    assert (tmp_path / "cut" / "metrics.jsonl").read_bytes() == rows
