"""Loggers: a missing package is named at once; what is written is what their own readers find."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import pytest

from gristmill.errors import RequestError
from gristmill.train import loggers
from gristmill.train.pretrain import check
from tests.train.corpus import tiny_pretrain


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_missing_package_is_named_with_the_cure(name, monkeypatch):
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    with pytest.raises(RequestError, match=f"needs the package {name}.*pip install {name}"):
        check(tiny_pretrain(log_to=(name,)))


def test_where_to_log_does_not_change_what_a_run_is():
    assert tiny_pretrain(log_to=("wandb",)).decisive() == tiny_pretrain().decisive()


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard_reads_what_was_logged_and_forgets_what_was_cut_off(tmp_path):
    module = import_module("tensorboard.backend.event_processing.event_accumulator")
    (first,) = loggers.open_loggers(("tensorboard",), tmp_path, 0, {})
    for step in (1, 2, 3, 4):
        first.log(step, {"loss": 10.0 - step})
    first.close()
    (second,) = loggers.open_loggers(("tensorboard",), tmp_path, 2, {})
    for step in (3, 4):
        second.log(step, {"loss": 20.0 - step})
    second.close()
    events = module.EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("loss")
    assert [(e.step, e.value) for e in events] == [(1, 9.0), (2, 8.0), (3, 17.0), (4, 16.0)]


class Hosted(ModuleType):
    """Stands for wandb or trackio: remembers what it is told."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.begun: list[dict[str, Any]] = []
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.finished = 0

    def init(self, **settings: Any) -> Hosted:
        self.begun.append(settings)
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        self.rows.append((step, values))

    def finish(self) -> None:
        self.finished += 1


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_hosted_loggers_resume_the_run_of_the_same_directory(name, tmp_path, monkeypatch):
    module = Hosted(name)
    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(loggers, "find_spec", lambda name: object())
    for directory in ("run/pretrain", "run/pretrain", "other/pretrain"):
        (logger,) = loggers.open_loggers((name,), tmp_path / directory, 0, {"seed": 3})
        logger.log(5, {"loss": 1.5})
        logger.close()
    first, again, other = module.begun
    assert first == again and first["name"] != other["name"]
    assert first["resume"] == "allow" and first["config"] == {"seed": 3}
    assert module.rows == [(5, {"loss": 1.5})] * 3 and module.finished == 3
