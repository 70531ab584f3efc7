"""What a person may mean by MODEL."""

from __future__ import annotations

import json
import os

import pytest

from gristmill.errors import RequestError
from gristmill.formats import Model, newest_run, resolve


def test_directories_stages_and_runs(saved, tmp_path):
    run = tmp_path / "run"
    (run / "dpo").mkdir(parents=True)
    saved.rename(run / "dpo" / "model")
    model = run / "dpo" / "model"
    (run / "run.json").write_text(json.dumps({"model": "dpo/model", "recipe": "pyhelp"}))
    assert resolve(model) == resolve(run / "dpo") == resolve(run) == resolve(str(run)) == model
    assert Model.load(run).path == model


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "is not a run's summary"),
        ("[]", "is not a run's summary"),
        ("{}", "names no model"),
        ('{"model": "sft/model"}', "names sft/model as the model, which is not there"),
    ],
)
def test_runs_without_a_model(tmp_path, content, says):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(RequestError, match=says):
        resolve(tmp_path)


def test_what_is_no_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyhelp").mkdir()
    with pytest.raises(RequestError, match=r'no model at .*pyhlep\. Did you mean ".*pyhelp"\?'):
        resolve(tmp_path / "pyhlep")
    with pytest.raises(RequestError, match=r"neither config\.json nor run\.json"):
        resolve(tmp_path / "pyhelp")
    (tmp_path / "m.txt").write_text("")
    with pytest.raises(RequestError, match=r"m\.txt is not a model: give a directory"):
        resolve(tmp_path / "m.txt")
    (tmp_path / "m.gguf").write_text("")
    with pytest.raises(RequestError, match="too short for a GGUF file"):
        Model.load(tmp_path / "m.gguf")
    with pytest.raises(RequestError, match="not one behind an API"):
        resolve("openai:gpt-4o")
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "recipe.toml").write_text("")
    with pytest.raises(RequestError, match="has no model yet; continue it with: gristmill run"):
        resolve("runs/mine")
    with pytest.raises(RequestError, match="no finished run under runs/"):
        newest_run()
    (tmp_path / "runs" / "mine" / "run.json").write_text("{}")
    with pytest.raises(RequestError, match=r'no model at mine\. Did you mean "runs/mine"'):
        resolve("mine")


def test_newest_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for age, name in enumerate(["c", "a", "b"]):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "run.json").write_text("{}")
        os.utime(tmp_path / "runs" / name / "run.json", (1000 - age, 1000 - age))
    assert newest_run().name == "c"
    os.utime(tmp_path / "runs" / "b" / "run.json", (2000, 2000))
    assert newest_run().name == "b"
