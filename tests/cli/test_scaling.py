"""gristmill scaling: what a person types, sees and gets."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from gristmill.cli.main import overview
from gristmill.files import write_json, write_text
from gristmill.recipe import Recipe
from gristmill.recipe.manifest import SCHEMA
from gristmill.scaling import BESIROGLU
from tests.scaling.synthetic import isoflop_runs
from tests.train.corpus import corpus, tiny_pretrain

INPUTS = ("tokens", "tokenizer")


@pytest.fixture(autouse=True)
def narrow(monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    """A run whose tokens are made and whose pretraining is not."""
    path = tmp_path_factory.mktemp("runs") / "tiny"
    corpus(path / "made")
    for stage in INPUTS:
        outputs = {stage: {"path": f"made/{stage}", "sha256": "", "bytes": 0}}
        manifest = {"schema": SCHEMA, "stage": stage, "outputs": outputs}
        write_json(path / stage / "manifest.json", manifest)
    settings = tiny_pretrain(warm_start="none").model_dump(exclude_defaults=True)
    recipe = Recipe.load("pyhelp", {f"pretrain.{key}": value for key, value in settings.items()})
    write_text(path / "recipe.toml", recipe.to_toml(recipe.resolve()))
    return path


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> Path:
    """A directory as a sweep leaves it, as far as a fit reads it, of runs that the replication's law made."""
    path = tmp_path_factory.mktemp("swept")
    runs = isoflop_runs(BESIROGLU, np.geomspace(1e17, 1e19, 4), sizes=6, noise=0.002)
    rows = [
        {"params": n, "tokens": d, "loss": y}
        for n, d, y in zip(runs.params, runs.tokens, runs.loss, strict=True)
    ]
    middle = rows[3]
    rows += [middle | {"lr_factor": f, "loss": middle["loss"] + 0.05} for f in (0.5, 2.0)]
    (path / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_help_has_the_verb(gristmill) -> None:
    assert "scaling" in overview()
    for verb in ("sweep", "fit", "predict", "optimal"):
        told = gristmill("scaling", verb, "--help")
        assert told.code == 0 and "gristmill scaling" in told.out


def test_fit_then_predict_then_optimal(gristmill, swept, run_dir, tmp_path) -> None:
    page = tmp_path / "fit.html"
    done = gristmill("scaling", "fit", swept, "--samples", 60, "--html", page)
    assert done.code == 0, done.err
    for part in ("alpha", "parametric", "envelope", "isoflop", "24 runs", "foreseen", "best rate"):
        assert part in done.out, part
    assert max(map(len, done.out.splitlines()[:-1])) <= 80
    text = page.read_text()
    assert text.startswith("<!doctype html>") and "http" not in text.replace("http-equiv", "")
    assert text.count("<svg") >= 5 and "Largest runs left out" in text

    told = json.loads(
        gristmill("scaling", "predict", swept, "--params", "1B", "--tokens", "20B", "--json").out
    )
    truth = BESIROGLU.loss(1e9, 20e9)
    assert told["low"] <= truth <= told["high"]
    assert told["loss"] == pytest.approx(truth, rel=0.02)

    told = json.loads(gristmill("scaling", "optimal", swept, "--flops", "1e20", "--json").out)
    low, high = told["intervals"]["params"]
    assert low <= BESIROGLU.optimum(1e20).params <= high
    shown = gristmill("scaling", "optimal", swept, "--flops", "1e20", "--unique-tokens", "1B")
    assert shown.code == 0 and "tokens a parameter" in shown.out

    done = gristmill("scaling", "predict", swept, "--run", run_dir, "--register", "--json")
    registered = Path(json.loads(done.out)["registered"])
    assert registered == run_dir / "prediction.json"
    assert json.loads(registered.read_text())["predicted"]["tokens"] == 24 * 256
    again = gristmill("scaling", "predict", swept, "--run", run_dir, "--register")
    assert again.code == 2 and "not changed afterwards" in again.err
    registered.unlink()


def test_fit_as_json(gristmill, swept, tmp_path) -> None:
    done = gristmill("scaling", "fit", swept, "--samples", 40, "-o", tmp_path / "f.json", "--json")
    told = json.loads(done.out)
    assert told["law"]["alpha"] == pytest.approx(BESIROGLU.alpha, abs=0.1)
    assert told["runs"] == 24 and len(told["residuals"]) == 24
    assert told["largest_left_out"]["worst"] < 0.03
    assert told["rates"][0]["best"] == pytest.approx(1.0)
    assert (tmp_path / "f.json").is_file() and told["fit"] == str(tmp_path / "f.json")
    given = gristmill(
        "scaling", "fit", swept, "--samples", 10, "-o", tmp_path / "g.json",
        "--exponents", "0.35,0.37", "--json",
    )  # fmt: skip
    assert json.loads(given.out)["fixed"] == ["alpha", "beta"]


def test_published_constants(gristmill) -> None:
    done = gristmill("scaling", "optimal", "besiroglu", "--flops", "5.76e23")
    assert done.code == 0 and "72.2B" in done.out and "1.33T" in done.out and "18.4" in done.out
    done = gristmill("scaling", "predict", "hoffmann", "--params", "70B", "--tokens", "1.4T")
    assert "loss 1.9366" in done.out and "no interval" in done.out
    done = gristmill(
        "scaling", "optimal", "hoffmann", "--loss", 1.9366, "--inference-tokens", "1T", "--json"
    )
    told = json.loads(done.out)
    assert told["flops"] + told["inference"] == pytest.approx(5.478e23, rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("predict", "bessiroglu", "--params", "1B", "--tokens", "1B"), 'Did you mean "besiroglu"'),
        (("predict", "besiroglu", "--params", "much", "--tokens", "1B"), "--params must be"),
        (("predict", "besiroglu", "--params", "1B"), "name --params and --tokens"),
        (
            ("predict", "besiroglu", "--params", "1B", "--tokens", "1B", "--register"),
            "name it with --run",
        ),
        (("optimal", "besiroglu"), "one of --flops and --loss"),
        (("optimal", "besiroglu", "--loss", "1.0"), "floor E is 1.817"),
        (
            ("optimal", "besiroglu", "--flops", "1e9", "--inference-tokens", "1B"),
            "goes with --loss",
        ),
        (("fit", "nowhere.jsonl"), "is not there"),
        (("fit", "nowhere.jsonl", "--exponents", "1"), "--exponents are two numbers"),
        (("sweep", "nowhere", "-o", "x"), "not a run's directory"),
    ],
)
def test_bad_requests(gristmill, tmp_path, monkeypatch, arguments, complaint) -> None:
    monkeypatch.chdir(tmp_path)
    done = gristmill("scaling", *arguments)
    assert done.code == 2 and complaint in done.err and not list(tmp_path.iterdir())


def test_too_few_runs_name_the_way_out(gristmill, tmp_path) -> None:
    path = tmp_path / "few.jsonl"
    path.write_text('{"params": 1e6, "tokens": 1e7, "loss": 4.0}\n')
    done = gristmill("scaling", "fit", path)
    assert done.code == 2 and "--exponents" in done.err and not (tmp_path / "fit.json").exists()


def test_a_ladder_is_shown_and_trained(gristmill, run_dir, tmp_path) -> None:
    plan = ("scaling", "sweep", run_dir, "-o", tmp_path / "sweep", "--flops", "1e10")
    few = ("--budgets", 1, "--sizes", 2)
    shown = gristmill(*plan, *few, "--dry-run")
    assert shown.code == 0 and "2 trainings" in shown.out and not (tmp_path / "sweep").exists()
    poor = gristmill(*plan[:-1], "1e6", "--dry-run", "--json")
    assert poor.code == 2 and "do not pay" in json.loads(poor.out)["error"]

    done = gristmill(*plan, *few, "--processes", 2, "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert [row["name"] for row in told["results"]] == [rung["name"] for rung in told["rungs"]]
    assert len((tmp_path / "sweep" / "results.jsonl").read_text().splitlines()) == 2
    again = json.loads(gristmill(*plan, *few, "--json").out)
    assert again["results"] == told["results"]
    other = gristmill(*plan, "--budgets", 1, "--sizes", 1)
    assert other.code == 2 and "another ladder" in other.err
