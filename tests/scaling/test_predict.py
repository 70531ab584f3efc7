"""Predictions: intervals that hold new runs, saved and read again, registered before a run and scored after it."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import numpy as np
import pytest

from gristmill.errors import RequestError
from gristmill.scaling import (
    BESIROGLU,
    PREDICTION,
    best_rate,
    fit_chinchilla,
    fit_two_step,
    leave_largest_out,
    make_runs,
    predict,
    predicted_against_actual,
    rate_law,
    rates_of,
    read_runs,
    register,
    score,
)
from gristmill.scaling.downstream import Link, TaskLoss
from gristmill.scaling.predict import published, read, save, write
from tests.scaling.synthetic import isoflop_runs

BUDGETS = np.geomspace(1e17, 1e20, 5)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """(a directory with results.jsonl, its runs)"""
    place = tmp_path_factory.mktemp("sweep")
    runs = isoflop_runs(BESIROGLU, BUDGETS, noise=0.003)
    columns = zip(runs.params, runs.tokens, runs.loss, strict=True)
    rows = [{"params": n, "tokens": d, "loss": y, "counted": "all"} for n, d, y in columns]
    (place / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place, read_runs(place)


@pytest.fixture(scope="module")
def saved(swept):
    place, runs = swept
    return save(fit_chinchilla(runs, samples=200), place)


def test_new_runs_lie_in_the_interval(saved) -> None:
    fresh = isoflop_runs(BESIROGLU, [3e20, 1e21], sizes=20, noise=0.003, seed=99)
    found = [predict(saved, n, d) for n, d in zip(fresh.params, fresh.tokens, strict=True)]
    inside = sum(p.low <= y <= p.high for p, y in zip(found, fresh.loss, strict=True))
    assert inside >= 34  # of 40, at 95%
    assert all(p.high - p.low < 0.15 for p in found)


def test_a_far_prediction_says_so(saved) -> None:
    near, far = predict(saved, 5e8, 1e10), predict(saved, 7e10, 1.4e12)
    assert not near.warnings and near.reach < 1
    assert far.reach == pytest.approx(6 * 7e10 * 1.4e12 / 1e20, rel=1e-9)
    assert "a law is a guess" in far.warnings[0]
    assert far.high - far.low > near.high - near.low
    assert "tokens a parameter" in predict(saved, 1e5, 1e13).warnings[0]


def test_a_fit_is_the_same_after_reading(saved, tmp_path) -> None:
    write(saved, tmp_path / "fit.json")
    again = read(tmp_path / "fit.json")
    assert again == saved
    assert predict(again, 1e9, 2e10) == predict(saved, 1e9, 2e10)
    (tmp_path / "broken.json").write_text('{"law": {}}')
    with pytest.raises(RequestError, match=r"broken\.json is not what `gristmill scaling fit`"):
        read(tmp_path / "broken.json")


def test_the_largest_runs_are_foreseen(swept) -> None:
    found = leave_largest_out(swept[1])
    assert len(found.errors) == 7 and found.flops == pytest.approx(1e20)
    assert found.worst < 0.02
    assert found.inside >= 5


def test_registered_before_and_scored_after(saved, tmp_path) -> None:
    run = tmp_path / "run"
    (run / "pretrain").mkdir(parents=True)
    prediction = predict(saved, 1e9, 2e10)
    path = register(run, saved, prediction)
    told = json.loads(path.read_text())
    assert path == run / PREDICTION and told["source_sha256"] == saved.sha256
    assert math.isfinite(told["predicted"]["low"])
    with pytest.raises(RequestError, match="not changed afterwards"):
        register(run, saved, prediction)
    path.unlink()
    (run / "pretrain" / "metrics.jsonl").write_text("")
    with pytest.raises(RequestError, match="begun already"):
        register(run, saved, prediction)

    actual = prediction.loss * 1.01
    metrics = {"history": [{"heldout_loss": 9.0}, {"heldout_loss": actual}]}
    found = score(told, metrics)
    assert found is not None and found.error == pytest.approx(1 / 1.01 - 1)
    assert found.inside == (prediction.low <= actual <= prediction.high)
    shown = predicted_against_actual(told, metrics)
    assert f"{actual:.4f}" in shown and f"{prediction.loss:.4f}" in shown and "-0.99%" in shown
    assert score(told, {"history": [{"loss": 1.0}]}) is None
    assert "trained on 5 tokens" in predicted_against_actual(told, metrics | {"tokens": 5})
    assert "trained on" not in predicted_against_actual(told, metrics | {"tokens": 20_000_000_000})
    assert predicted_against_actual(told, {}) == ""


def test_published_constants_have_no_interval(tmp_path) -> None:
    law = published("besiroglu", BESIROGLU)
    found = predict(law, 70e9, 1.4e12)
    assert found.loss == pytest.approx(1.9739, abs=5e-5) and math.isnan(found.low)
    told = json.loads(register(tmp_path, law, found).read_text())
    assert told["predicted"]["low"] is None
    assert "no interval" in predicted_against_actual(told, {"history": [{"heldout_loss": 2.0}]})


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "holds no finished run"),
        ("{", "line 1 is not JSON"),
        ('{"params": 1, "tokens": 2}', "line 1 has no loss"),
        ('{"params": 1, "loss": 2}', "neither tokens nor flops"),
        ('{"params": -1, "loss": 2, "tokens": 1}', "params must be a number above zero, not -1"),
        ('{"params": 1, "loss": "x", "tokens": 1}', "loss must be a number above zero, not 'x'"),
        ("[1]", "must hold a JSON object"),
        (
            '{"params":1,"loss":2,"tokens":1,"counted":"a"}\n{"params":1,"loss":2,"tokens":1}',
            "count parameters differently",
        ),
    ],
)
def test_results_that_are_wrong(tmp_path, text: str, complaint: str) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(text)
    with pytest.raises(RequestError, match=complaint):
        read_runs(tmp_path)


def test_accuracy_in_two_steps() -> None:
    loss, link = TaskLoss(0.5, 1e17, 0.15), Link(0.25, 0.95, 3.0, 1.2)
    flops = np.geomspace(1e16, 1e20, 8)
    task = np.array([loss.at(c) for c in flops])
    exact = fit_two_step(flops, task, [link.at(y) for y in task], chance=0.25, top=0.95, samples=20)
    assert exact.accuracy(1e22) == pytest.approx(link.at(loss.at(1e22)), abs=1e-6)
    covered = 0
    for seed in range(6):
        rng = np.random.default_rng(seed)
        noisy = task * np.exp(0.01 * rng.standard_normal(8))
        scores = np.clip([link.at(y) + 0.01 * rng.standard_normal() for y in task], 0, 1)
        fit = fit_two_step(flops, noisy, scores, chance=0.25, top=0.95, samples=60, seed=seed)
        low, high = fit.interval(1e21)
        covered += low <= link.at(loss.at(1e21)) <= high
    assert covered >= 4
    with pytest.raises(RequestError, match="takes five"):
        fit_two_step(flops[:4], task[:4], [0.3] * 4, chance=0.25)
    with pytest.raises(RequestError, match="share from 0 to 1"):
        fit_two_step(flops, task, task * 100, chance=0.25)


def test_the_law_of_the_learning_rate() -> None:
    """Losses that are parabolas in ln rate about 0.1·N^-0.25."""
    found = []
    for size in (1e6, 1e7, 1e8):
        best = 0.1 * size**-0.25
        rates = best * np.array([0.3, 0.5, 1.1, 2.0, 4.0])
        found.append(best_rate(size, rates, 3.0 + 0.05 * np.log(rates / best) ** 2))
        assert found[-1].best == pytest.approx(best) and found[-1].bend == pytest.approx(0.05)
        assert found[-1].doubled == pytest.approx(0.05 * math.log(2) ** 2)
    law = rate_law(found, samples=10)
    assert law.law.exponent == pytest.approx(0.25)
    assert law.law.at(1e9) == pytest.approx(0.1 * 1e9**-0.25)
    with pytest.raises(RequestError, match="try higher ones"):
        best_rate(1e6, [1, 2, 3], [3.0, 2.5, 2.1])


def test_rates_of_a_sweep() -> None:
    factors = np.array([1.0, 0.5, 2.0, 1.0])
    loss = np.array([3.0, 3.1, 3.1, 2.0])
    runs = make_runs([1e6] * 3 + [2e6], [1e8] * 4, loss, lr=factors)
    (found,) = rates_of(runs)
    assert found.best == pytest.approx(1.0) and found.least == pytest.approx(3.0)
    assert len(runs.usual) == 2


def test_fits_and_predictions_load_no_torch() -> None:
    code = "import sys, gristmill.scaling, gristmill.scaling.page; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
