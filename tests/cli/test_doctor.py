"""`gristmill doctor`: a broken run explained, a healthy one passed, a layout proved by real processes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from gristmill.cli.main import overview
from gristmill.files import write_json, write_text
from gristmill.recipe import Recipe
from gristmill.recipe.manifest import SCHEMA
from gristmill.train.pretrain import PretrainConfig, work
from gristmill.train.trainer import Diverged
from tests.train.corpus import corpus, tiny_pretrain

INPUTS = ("tokens", "tokenizer")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A run whose tokens and tokenizer are made and whose pretraining is not."""
    path = tmp_path_factory.mktemp("runs") / "tiny"
    corpus(path / "made")
    for stage in INPUTS:
        outputs = {stage: {"path": f"made/{stage}", "sha256": "", "bytes": 0}}
        manifest = {"schema": SCHEMA, "stage": stage, "outputs": outputs}
        write_json(path / stage / "manifest.json", manifest)
    return path


@pytest.fixture
def run_dir(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "run")


def pretrain(run_dir: Path, **settings) -> None:
    """As the recipe's runner does it."""
    changed = tiny_pretrain(warm_start="none", **settings).model_dump(exclude_defaults=True)
    recipe = Recipe.load("pyhelp", {f"pretrain.{key}": value for key, value in changed.items()})
    configs = recipe.resolve()
    config = configs["pretrain"]
    assert isinstance(config, PretrainConfig)
    write_text(run_dir / "recipe.toml", recipe.to_toml(configs))
    stage_dir = run_dir / "pretrain"
    stage_dir.mkdir()
    inputs = {name: run_dir / "made" / name for name in INPUTS}
    metrics = work(config, inputs, stage_dir, None, log_every=4)
    manifest = {
        "schema": SCHEMA,
        "config": config.model_dump(mode="json"),
        "inputs": {name: {"path": f"made/{name}"} for name in INPUTS},
        "metrics": metrics,
    }
    write_json(stage_dir / "manifest.json", manifest)
    shutil.rmtree(stage_dir / "checkpoints")


def test_a_run_that_diverged_is_explained(gristmill, run_dir):
    with pytest.raises(Diverged):
        pretrain(run_dir, lr_peak=1e18)
    told = gristmill("doctor", "run", run_dir)
    assert told.code == 0, told.err
    assert "learning rate" in told.out and "Lower pretrain.lr_peak" in told.out
    found = json.loads(gristmill("doctor", "run", run_dir / "pretrain", "--json").out)
    assert found["cause"] == "learning rate" and not found["healthy"]
    assert found["step"] > 0 and found["replayed_from"] == 0
    assert found["incidents"][0]["step"] == found["step"]
    json.dumps(found, allow_nan=False)  # other readers of JSON know no NaN


def test_a_finished_run_is_healthy(gristmill, run_dir):
    pretrain(run_dir)
    told = gristmill("doctor", "run", run_dir)
    assert told.code == 0, told.err
    assert told.out.startswith("Healthy") and "loss: fell" in told.out
    assert json.loads(gristmill("doctor", "run", run_dir, "--json").out)["healthy"]


def test_what_is_no_run_is_refused(gristmill, run_dir, tmp_path):
    (tmp_path / "empty").mkdir()
    for place, said in ((tmp_path / "empty", "neither a run"), (tmp_path / "no", "neither a run")):
        refused = gristmill("doctor", "run", place)
        assert refused.code == 2 and said in refused.err
    write_text(run_dir / "recipe.toml", 'name = "x"\n')
    (run_dir / "pretrain").mkdir()
    refused = gristmill("doctor", "run", run_dir, "--json")
    assert refused.code == 2 and json.loads(refused.out)["exit_code"] == 2
    assert "no step yet" in refused.err


def test_two_processes_are_proved_equal_to_one(gristmill):
    layout = "pretrain.layout={dp=2}"
    told = gristmill("doctor", "parallel", "--set", layout, "--steps", 3, "--json")
    assert told.code == 0, told.err
    found = json.loads(told.out)
    assert found["equal"] and found["processes"] == 2 and found["first_difference"] is None
    assert [row["step"] for row in found["steps"]] == [1, 2, 3]
    # Two runs, not one twice: sums over processes round otherwise.
    assert any(row["loss_difference"] or row["grad_norm_difference"] for row in found["steps"])
    assert 0 < found["checkpoint"]["difference"] < 1e-4


def test_layouts_that_cannot_be_proved(gristmill):
    alone = gristmill("doctor", "parallel", "pyhelp")
    assert alone.code == 2 and "one process, which needs no proof" in alone.err
    wrong = gristmill("doctor", "parallel", "--set", "pretrain.layout={tp=7}")
    assert wrong.code == 2 and "tp = 7 does not divide" in wrong.err


def test_help(gristmill):
    assert "doctor" in overview()
    told = gristmill("doctor", "--help").out
    assert "run" in told and "parallel" in told
