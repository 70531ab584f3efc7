"""The program as people call it: help, errors in one message with exit code 2, and no directory made."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gristmill.cli.main import VERBS, build, main
from gristmill.cli.run import parse_settings
from gristmill.errors import RequestError
from gristmill.files import write_json
from gristmill.recipe import LINE, Recipe

SOURCE = Path(__file__).parents[2] / "src"


def gristmill(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(SOURCE), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "gristmill.cli.main", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "100", "NO_COLOR": "1"},
    )


def test_help_names_every_verb_and_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['gristmill', '--help']\n"
        "from gristmill.cli.main import main; main()\n"
        "print(sorted({'torch', 'typer', 'rich', 'pydantic', 'numpy'} & set(sys.modules)))"
    )
    path = os.pathsep.join([str(SOURCE), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    for verb, (_, _, summary) in VERBS.items():
        assert re.search(rf"^  {verb} +{re.escape(summary)}$", done.stdout, re.MULTILINE)
    assert done.stdout.splitlines()[-1] == "[]"


def test_importing_the_package_imports_no_torch(tmp_path: Path) -> None:
    code = "import gristmill, sys; print('torch' in sys.modules, 'numpy' in sys.modules)"
    path = os.pathsep.join([str(SOURCE), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize("verb", list(VERBS))
def test_every_verb_has_help_with_examples_and_json(
    verb: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as stopped:
        build(verb)(args=[verb, "--help"], prog_name="gristmill")
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    assert f"gristmill {verb}" in said
    assert "--json" in said or "COMMAND" in said  # a group's sub-verbs have their own help


def test_a_mistyped_verb_is_answered_with_the_nearest(tmp_path: Path) -> None:
    done = gristmill("rnu", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == (
        'gristmill: there is no verb "rnu". Did you mean "run"? `gristmill --help` lists them.\n'
    )


WRONG = [
    (["run", "pyhlep"], 'no recipe "pyhlep". Did you mean "pyhelp"?'),
    (["run", "--set", "sizetiny"], "write KEY=VALUE"),
    (["run", "--set", "tokenizr.vocab_size=9"], 'no stage "tokenizr". Did you mean "tokenizer"?'),
    (["run", "--set", "tokenizer.vocabsize=9"], 'no key "vocabsize". Did you mean "vocab_size"?'),
    (["run", "--set", "tokenizer.vocab_size=many"], 'must be a whole number, not "many"'),
    (["run", "--set", "size=gigantic"], "size"),
    (["run", "--set", "data.path=/no/such/place"], "--set data.path: "),
    (["run", "--set", "pretrain.base=/no/such"], "--set pretrain.base: no tokenizer at /no/such"),
    (
        ["run", "my-docs", "--set", "data.path=.", "--out", "."],
        "lies in ., the run that would replace it",
    ),
    (["run", "--verbose"], "add --dry-run"),
    (["run", "--until", "pretrian"], 'no stage "pretrian". Did you mean "pretrain"?'),
    (["run", "my-docs"], "data.path (the folder with your documents) is required"),
    (["run", "bad.toml"], "bad.toml is not valid TOML"),
    (["align", "--method", "dpoo"], 'no method "dpoo". Did you mean "dpo"?'),
    (["report", "nowhere"], "is not a directory"),
]


@pytest.mark.parametrize(("arguments", "said"), WRONG, ids=[" ".join(w[0]) for w in WRONG])
def test_a_wrong_request_is_one_message_and_exit_code_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    (tmp_path / "bad.toml").write_text("[data\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["gristmill", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    out, err = capsys.readouterr()
    assert (stopped.value.code, out) == (2, "")
    assert said in err
    assert err.startswith("gristmill: ") and len(err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["bad.toml"]


def test_with_json_a_wrong_request_is_one_document(tmp_path: Path) -> None:
    done = gristmill("run", "pyhlep", "--json", cwd=tmp_path)
    assert done.returncode == 2
    assert json.loads(done.stdout)["exit_code"] == 2
    assert "pyhlep" in json.loads(done.stdout)["error"]


def test_settings_are_parsed_as_toml_values() -> None:
    given = ["size=tiny", "sft.epochs=3", 'data.sources=["~/a=b"]', "x.y=a=b"]
    assert parse_settings(given) == {
        "size": "tiny",
        "sft.epochs": 3,
        "data.sources": ["~/a=b"],
        "x.y": "a=b",
    }
    for wrong in ("a", "=1", "a..b=1", ".=1"):
        with pytest.raises(RequestError, match="KEY=VALUE"):
            parse_settings([wrong])


def test_report_shows_the_lineage_of_what_is_there(tmp_path: Path) -> None:
    def manifest(stage: str, inputs: dict) -> dict:
        return {
            "schema": 1,
            "stage": stage,
            "key": "k" * 64,
            "config": {"seed": 0},
            "inputs": inputs,
            "outputs": {"made": {"path": f"{stage}/made", "sha256": stage * 9, "bytes": 3}},
            "metrics": {},
            "seed": 0,
            "versions": {"gristmill": "0"},
            "seconds": 1.0,
            "peak_memory_bytes": 1,
            "finished": "2026-01-01T00:00:00+00:00",
        }

    one = {"documents": {"path": "data/made", "sha256": "data" * 9, "stage": "data"}}
    write_json(tmp_path / "data/manifest.json", manifest("data", {}))
    write_json(tmp_path / "facts/manifest.json", manifest("facts", one))
    done = gristmill("report", str(tmp_path), "--lineage", "facts", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["from"][0]["stage"] == "data"
    done = gristmill("report", str(tmp_path), "--lineage", "facts", cwd=tmp_path)
    assert "data/made" in done.stdout and "sha256 datadatadata" in done.stdout
    done = gristmill("report", str(tmp_path), "--json", cwd=tmp_path)
    assert Path(json.loads(done.stdout)["report"]).read_text().startswith("<!doctype html>")


def test_dry_run_shows_the_plan_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/a.md").write_text("# One\n\nA page about one thing.\n")
    monkeypatch.chdir(tmp_path)
    asked = ["run", "my-docs", "--set", "data.path=notes", "--set", "size=tiny", "--dry-run"]

    def said(*more: str) -> str:
        monkeypatch.setattr(sys, "argv", ["gristmill", *asked, *more])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == 0
        return capsys.readouterr().out

    planned = json.loads(said("--json"))
    assert [row["stage"] for row in planned["stages"]] == list(LINE)
    assert {row["action"] for row in planned["stages"]} == {"run", "depends"}
    for row in planned["stages"]:
        assert 0 < row["seconds"] < 3600 and 0 < row["memory_bytes"] < 4e9, row
        assert 0 <= row["disk_bytes"] < 1e9
    assert planned["recipe"]["data"]["path"] == str(tmp_path / "notes")
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]

    assert planned["does_not_fit"] == []

    table = said()
    first = f"An assistant for your documents\nReads {tmp_path / 'notes'}; writes runs/my-docs\n"
    assert table.startswith(first) and "not run yet" in table and "Expect a factor of two" in table
    assert "sources = " not in table and "--verbose" in table
    verbose = said("--verbose")
    assert verbose.startswith(first) and f'sources = []\npath = "{tmp_path / "notes"}"' in verbose


def test_dry_run_says_what_does_not_fit_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*more: str) -> str:
        monkeypatch.setattr(sys, "argv", ["gristmill", "run", "--set", "size=100B", *more])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == 0
        return capsys.readouterr().out

    monkeypatch.chdir(tmp_path)
    planned = json.loads(said("--dry-run", "--json"))
    rows = {row["stage"]: row for row in planned["stages"]}
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert rows["pretrain"]["memory_bytes"] > 16 * 100e9 > memory
    for stage in ("pretrain", "sft", "dpo", "quantize", "evaluate"):
        assert rows[stage]["seconds"] is None, stage
    assert rows["facts"]["seconds"] > 0
    assert "pretrain, sft, dpo, quantize, evaluate would take up to" in planned["does_not_fit"][0]

    monkeypatch.setattr("gristmill.recipe.estimate.free_disk", lambda path: 10**9)
    table = said("--dry-run")
    assert "This does not fit this machine: pretrain, sft" in table
    assert "1 GB are free at runs/pyhelp" in table
    assert "the time of what does not fit is not estimated" in table and " years" not in table


@pytest.mark.parametrize("name", ["pyhelp", "my-docs"])
def test_shipped_recipes_resolve_and_their_saved_form_means_the_same(
    tmp_path: Path, name: str
) -> None:
    for size in ("tiny", "small", "124M"):
        recipe = Recipe.load(name, {"data.path": str(tmp_path), "size": size})
        configs = recipe.resolve()
        (tmp_path / "recipe.toml").write_text(recipe.to_toml(configs))
        assert Recipe.load(tmp_path).resolve() == configs
