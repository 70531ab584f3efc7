"""Processes started here: a death of any is survived to the bit, complaints are said, nothing stays behind."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest

from gristmill.errors import RequestError, WorkError
from gristmill.files import hash_file, read_jsonl
from gristmill.train.parallel import launch
from gristmill.train.parallel.layout import Layout
from gristmill.train.pretrain import run
from tests.train.corpus import corpus, tiny_pretrain

CONFIG = tiny_pretrain(layout=Layout(dp=2), checkpoint_seconds=0)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> dict[str, Path]:
    return corpus(tmp_path_factory.mktemp("corpus"))


def children() -> list[int]:
    """The ranks that this process has started."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
                command = (entry / "cmdline").read_text()
            except OSError:
                continue
            if parent == str(os.getpid()) and "parallel.rank" in command:
                found.append(int(entry.name))
    return sorted(found)


def test_a_killed_rank_costs_nothing(inputs, tmp_path):
    undisturbed = run(CONFIG, inputs, tmp_path / "whole")
    seed = random.randrange(2**32)
    print("seed", seed)
    draw, attempts = random.Random(seed), []

    def kill(done: float, *_: Any, **__: Any) -> None:
        """One rank of each of the first two attempts, at its first step."""
        ranks = children()
        if len(attempts) < 2 and ranks and ranks not in attempts:
            attempts.append(ranks)
            os.kill(draw.choice(ranks), signal.SIGKILL)

    with pytest.warns(
        UserWarning, match=r"process [01] of 2 was ended by signal 9; all start again"
    ):
        result = run(CONFIG, inputs, tmp_path / "killed", kill)
    restarts = read_jsonl(tmp_path / "killed" / "restarts.jsonl")
    assert [row["code"] for row in restarts] == [-signal.SIGKILL] * 2
    assert result.metrics == undisturbed.metrics
    weights = [
        hash_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "killed")
    ]
    assert weights[0] == weights[1]
    assert not children()


def test_deaths_at_the_same_step_end_it(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "RESTARTS", 1)
    config = CONFIG.model_copy(update={"checkpoint_seconds": 3600.0})
    kills: list[int] = []

    def kill(done: float, *_: Any, **__: Any) -> None:
        ranks = children()
        if ranks and ranks[0] not in kills:
            kills.append(ranks[0])
            os.kill(ranks[0], signal.SIGKILL)

    with pytest.warns(UserWarning), pytest.raises(WorkError, match="2 times without a new step"):
        run(config, inputs, tmp_path, kill)
    assert len(kills) == 2


def test_what_a_listener_raises_ends_the_run(inputs, tmp_path):
    class Enough(Exception):
        pass

    def stop(*_: Any, **__: Any) -> None:
        raise Enough

    with pytest.raises(Enough):
        run(CONFIG, inputs, tmp_path, stop)
    assert not children()


def test_what_a_rank_refuses_is_said_once(inputs, tmp_path):
    wrong = CONFIG.model_copy(update={"weights": {"stdlib": 1.0, "stdlip": 2.0}})
    with pytest.raises(RequestError, match='"stdlip", which is not a group'):
        run(wrong, inputs, tmp_path)
    assert not (tmp_path / "restarts.jsonl").exists()
    assert not children()


def test_ranks_that_die_at_once_are_not_started_for_ever(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "RESTARTS", 1)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # a torch that cannot be imported
    (tmp_path / "torch.py").write_text("import os; os._exit(9)")
    with pytest.raises(WorkError, match="ended with code 9 2 times without a new step"):
        run(CONFIG, inputs, tmp_path / "out")
    assert not children()
