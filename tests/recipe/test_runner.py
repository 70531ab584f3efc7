"""The runner: what is skipped, run again, wiped, resumed and refused, on a line of real small stages."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_line import BROKEN, HUNGRY, LINE, dial

from gristmill.errors import RequestError, WorkError
from gristmill.files import hash_path
from gristmill.recipe import Recipe, lineage
from gristmill.recipe.runner import plan

Load = Callable[..., Recipe]
HERE = Path(__file__).parent


def tree(run_dir: Path) -> dict[str, str]:
    """Every output of a run by content, without the manifests' clock values."""
    return {
        path.relative_to(run_dir).as_posix(): path.read_text()
        for path in sorted(run_dir.rglob("*"))
        if path.is_file() and path.name not in ("manifest.json", ".lock", "resumed.json")
    }


def test_a_run_makes_every_stage_and_says_so(load: Load, tmp_path: Path) -> None:
    result = load().run(tmp_path / "run")
    assert result.ran == ["text", "count", "total", "slow"]
    assert json.loads((tmp_path / "run/total/total.json").read_text()) == 10.0
    manifest = json.loads((tmp_path / "run/count/manifest.json").read_text())
    assert manifest["metrics"] == {"count": 5}
    assert manifest["inputs"]["text"] == {
        "path": "text/made",
        "sha256": hash_path(tmp_path / "run/text/made"),
        "stage": "text",
    }
    assert manifest["peak_memory_bytes"] > 1_000_000
    assert set(manifest) == {
        "schema", "stage", "key", "config", "inputs", "outputs", "metrics", "seed", "versions",
        "seconds", "peak_memory_bytes", "finished",
    }  # fmt: skip
    assert json.loads((tmp_path / "run/run.json").read_text()) == {
        "model": "total/model",
        "recipe": "words",
    }
    assert (tmp_path / "run/total.json").read_text() == (
        tmp_path / "run/total/total.json"
    ).read_text()


def test_what_is_unchanged_is_not_run_again(load: Load, tmp_path: Path) -> None:
    load().run(tmp_path / "run")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").glob("*/*") if p.is_file()}
    result = load().run(tmp_path / "run")
    assert result.ran == []
    assert before == {p: p.stat().st_mtime_ns for p in before}


def test_what_was_finished_survives_a_request_that_its_stage_refuses(
    load: Load, tmp_path: Path
) -> None:
    load().run(tmp_path / "run")
    files = {
        p: p.read_bytes()
        for p in (tmp_path / "run").rglob("*")
        if p.is_file() and p.name != "recipe.toml"
    }
    with pytest.raises(RequestError, match=r"must not be refused"):
        load(overrides={"total.label": "refused"}).run(tmp_path / "run")
    assert files == {
        p: p.read_bytes()
        for p in (tmp_path / "run").rglob("*")
        if p.is_file() and p.name != "recipe.toml"
    }
    assert load().run(tmp_path / "run").ran == []


def test_a_changed_setting_runs_its_stage_and_what_follows(load: Load, tmp_path: Path) -> None:
    load().run(tmp_path / "run")
    assert load(overrides={"total.factor": 3.0}).run(tmp_path / "run").ran == ["total"]
    changed = load(overrides={"total.factor": 3.0, "text.words": 6}).run(tmp_path / "run")
    assert changed.ran == ["text", "count", "total", "slow"]
    assert changed.manifests["total"]["metrics"] == {"total": 18.0}


def test_unchanged_outputs_stop_the_ripple(load: Load, tmp_path: Path) -> None:
    """count's output is how many words there are; other words of the same number leave it as it is."""
    label = {"total.label": "fixed"}
    load(overrides=label).run(tmp_path / "run")
    result = load(overrides={**label, "text.word": "oats"}).run(tmp_path / "run")
    assert result.ran == ["text", "count", "slow"]  # total's input, the count, is what it was
    assert result.skipped == ["total"]


def test_the_recipes_seed_runs_only_what_uses_it(load: Load, tmp_path: Path) -> None:
    load().run(tmp_path / "run")
    assert load(overrides={"seed": 9}).run(tmp_path / "run").ran == ["text"]  # its text is the same


def test_changed_source_files_are_noticed(load: Load, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/a.txt").write_text("one two")
    recipe = load(overrides={"text.folder": str(tmp_path / "notes")})
    recipe.run(tmp_path / "run")
    assert recipe.run(tmp_path / "run").ran == []
    (tmp_path / "notes/b.txt").write_text("three")
    assert recipe.run(tmp_path / "run").ran == ["text", "count", "total", "slow"]


def test_from_runs_a_stage_and_what_follows_again(load: Load, tmp_path: Path) -> None:
    load().run(tmp_path / "run")
    assert load().run(tmp_path / "run", from_stage="count").ran == ["count", "total"]


def test_until_runs_only_what_the_stage_needs(load: Load, tmp_path: Path) -> None:
    result = load().run(tmp_path / "run", until="count")
    assert result.ran == ["text", "count"]
    assert result.model is None
    assert not (tmp_path / "run/slow").exists()


@pytest.mark.parametrize("option", ["from_stage", "until"])
def test_unknown_stage_is_refused_before_anything(load: Load, tmp_path: Path, option: str) -> None:
    with pytest.raises(RequestError, match=r'there is no stage "cuont"\. Did you mean "count"'):
        load().run(tmp_path / "run", **{option: "cuont"})
    assert not (tmp_path / "run").exists()


def test_damaged_outputs_are_made_again(load: Load, tmp_path: Path) -> None:
    load().run(tmp_path / "run")
    whole = tree(tmp_path / "run")
    (tmp_path / "run/count/count.json").write_text("7\n")  # same length, other content
    assert load().run(tmp_path / "run").ran == ["count"]
    (tmp_path / "run/total/model/weights.txt").unlink()
    assert load().run(tmp_path / "run").ran == ["total"]
    (tmp_path / "run/text/manifest.json").write_text("{")
    assert load().run(tmp_path / "run").ran == ["text"]
    assert tree(tmp_path / "run") == whole


def test_wrong_recipes_leave_no_directory(load: Load, tmp_path: Path) -> None:
    for overrides in ({"text.wrod": 1}, {"size": "huge"}, {"text.folder": str(tmp_path / "none")}):
        with pytest.raises(RequestError):
            load(overrides=overrides).run(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_directory_that_is_something_else_is_left_alone(load: Load, tmp_path: Path) -> None:
    (tmp_path / "mine/text").mkdir(parents=True)
    (tmp_path / "mine/text/letter.txt").write_text("dear")
    with pytest.raises(RequestError, match="is not a run of gristmill"):
        load().run(tmp_path / "mine")
    assert (tmp_path / "mine/text/letter.txt").read_text() == "dear"


def test_a_defect_of_a_stage_is_reported_with_its_traceback_on_disk(
    tmp_path: Path, recipe_file: Path
) -> None:
    recipe = Recipe.load(recipe_file, line=BROKEN, dial=dial)
    with pytest.raises(WorkError, match="stage broken failed: ZeroDivisionError: one by nothing"):
        recipe.run(tmp_path / "run")
    assert "ZeroDivisionError" in (tmp_path / "run/broken/error.txt").read_text()
    assert (tmp_path / "run/total/manifest.json").exists()  # what was done stays done


def test_a_stage_that_gets_no_memory_says_so_and_leaves_no_traceback(
    tmp_path: Path, recipe_file: Path
) -> None:
    recipe = Recipe.load(recipe_file, line=HUNGRY, dial=dial)
    with pytest.raises(WorkError) as error:
        recipe.run(tmp_path / "run")
    assert str(error.value).startswith("stage hungry needs more memory than this machine has left.")
    assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "run/hungry/error.txt").exists()


def test_a_place_that_cannot_be_written_is_a_wrong_request(load: Load, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "run/.lock").mkdir(parents=True)
    for place, said in (("file/run", "Not a directory"), ("run", "Is a directory")):
        with pytest.raises(RequestError) as error:
            load().run(tmp_path / place)
        assert str(error.value).startswith(f"cannot work in {tmp_path / place}: ")
        assert said in str(error.value) and "--out" in str(error.value)


def test_a_disk_that_is_full_between_stages_is_failed_work(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, value: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("gristmill.recipe.runner.write_json", full)
    with pytest.raises(WorkError, match=r"No space left on device.*Free some space"):
        load().run(tmp_path / "run")


def test_plan_says_what_a_run_then_does(load: Load, tmp_path: Path) -> None:
    def planned(recipe: Recipe, **options: Any) -> dict[str, tuple[str, str]]:
        found = plan(recipe, recipe.resolve(), tmp_path / "run", **options)
        return {j.stage: (j.action, j.why) for j in found}

    assert planned(load()) == {
        "text": ("run", "not run yet"),
        "count": ("depends", "after text"),
        "total": ("depends", "after count"),
        "slow": ("depends", "after text"),
    }
    assert not (tmp_path / "run").exists()
    load().run(tmp_path / "run")
    assert {action for action, _ in planned(load()).values()} == {"skip"}
    changed = planned(load(overrides={"count.step": 2}))
    assert changed["count"] == ("run", "step changed from 1 to 2")
    assert changed["total"] == ("depends", "after count")
    assert changed["slow"] == ("skip", "unchanged")
    (tmp_path / "run/slow/slow.json").unlink()
    assert planned(load())["slow"] == ("run", "slow/slow.json is missing")


def test_lineage_leads_from_the_model_back_to_the_first_stage(load: Load, tmp_path: Path) -> None:
    load().run(tmp_path / "run")
    chain = lineage(tmp_path / "run", "total/model")
    assert chain["stage"] == "total"
    (parent,) = chain["from"]
    (origin,) = parent["from"]
    assert (parent["stage"], origin["stage"]) == ("count", "text")
    assert origin["config"]["word"] == "grist"
    assert parent["sha256"] == hash_path(tmp_path / "run/count/count.json")
    assert origin["from"] == []
    assert lineage(tmp_path / "run", "total/model/weights.txt")["from"] == chain["from"]
    with pytest.raises(RequestError, match=r'no finished stage "totl"\. Did you mean "total"'):
        lineage(tmp_path / "run", "totl")
    for invented in ("total/nope", "total/model/nope"):
        with pytest.raises(RequestError) as error:
            lineage(tmp_path / "run", invented)
        assert f'has no "{invented}"' in str(error.value)
        assert "The stage total made: total/total.json, total/model." in str(error.value)


def test_saved_recipe_runs_again_to_the_same_keys(load: Load, tmp_path: Path) -> None:
    load(overrides={"size": "large"}).run(tmp_path / "run")
    again = Recipe.load(tmp_path / "run", line=LINE, dial=dial)
    assert again.directory() == tmp_path / "run"
    assert again.run().ran == []


RUN = """
import sys
from pathlib import Path
from small_line import LINE, dial
from gristmill.recipe import Recipe
recipe = Recipe.load(sys.argv[1], {"slow.pause": 0.02, "slow.steps": 40}, line=LINE, dial=dial)
recipe.run(sys.argv[2])
"""


def start(recipe_file: Path, run_dir: Path) -> subprocess.Popen:
    source = str(HERE.parents[1] / "src")
    path = os.pathsep.join([str(HERE), source, os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(recipe_file), str(run_dir)],
        env={**os.environ, "PYTHONPATH": path},
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(path: Path, steps: int = 1) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if path.exists() and len(json.loads(path.read_text())) >= steps:
            return
        time.sleep(0.01)
    raise AssertionError(f"{path} did not appear")


def test_killed_in_the_middle_it_resumes_and_ends_equal(recipe_file: Path, tmp_path: Path) -> None:
    undisturbed = tmp_path / "undisturbed"
    assert start(recipe_file, undisturbed).wait() == 0

    disturbed = tmp_path / "disturbed"
    for steps in (3, 9, 20):
        process = start(recipe_file, disturbed)
        wait_for(disturbed / "slow/steps.json", steps)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (disturbed / "slow/manifest.json").exists()
    assert (disturbed / "slow/.work.json").exists()
    assert start(recipe_file, disturbed).wait() == 0

    assert json.loads((disturbed / "slow/resumed.json").read_text()) >= 20
    assert not (disturbed / "slow/.work.json").exists()
    assert tree(disturbed) == tree(undisturbed)


def test_partial_work_under_other_settings_is_wiped(recipe_file: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    process = start(recipe_file, run_dir)
    wait_for(run_dir / "slow/steps.json", 3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    recipe = Recipe.load(recipe_file, {"slow.steps": 7}, line=LINE, dial=dial)
    recipe.run(run_dir)
    assert json.loads((run_dir / "slow/resumed.json").read_text()) == 0
    assert len(json.loads((run_dir / "slow/slow.json").read_text())) == 7


def test_two_runs_in_one_directory_refuse_each_other(recipe_file: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    process = start(recipe_file, run_dir)
    try:
        wait_for(run_dir / "slow/steps.json")
        with pytest.raises(
            RequestError, match=f"another run \\(process {process.pid}\\) is working"
        ):
            Recipe.load(recipe_file, line=LINE, dial=dial).run(run_dir)
    finally:
        assert process.wait() == 0  # the first one is not disturbed
    Recipe.load(recipe_file, line=LINE, dial=dial).run(run_dir)  # the lock went with the process
