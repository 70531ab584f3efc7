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
    draw, kills = random.Random(seed), 0

    def kill(done: float, *_: Any, **__: Any) -> None:
        nonlocal kills
        if kills < 2 and draw.random() < 0.7:
            kills += 1
            os.kill(draw.choice(children()), signal.SIGKILL)

    result = run(CONFIG, inputs, tmp_path / "killed", kill)
    assert kills >= 1
    assert len(read_jsonl(tmp_path / "killed" / "restarts.jsonl")) == kills
    assert result.metrics == undisturbed.metrics
    weights = [
        hash_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "killed")
    ]
    assert weights[0] == weights[1]
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
    with pytest.raises(WorkError, match="ended with code 9 2 times without a step in between"):
        run(CONFIG, inputs, tmp_path / "out")
    assert not children()
