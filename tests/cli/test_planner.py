"""gristmill plan: what a person types, sees and gets."""

from __future__ import annotations

import json

import pytest

from gristmill.plan import presets


@pytest.fixture(autouse=True)
def narrow(monkeypatch) -> None:
    monkeypatch.setattr("gristmill.cli.console.out.width", 80, raising=False)
    monkeypatch.setenv("COLUMNS", "80")


def test_training_says_what_it_takes(gristmill) -> None:
    done = gristmill("plan", "llama-3-70b", "--tokens", "15T", "--devices", "h100:1024")
    assert done.code == 0, done.err
    parts = ("70,553,706,496", "1,024 x NVIDIA H100", "15T tokens (as asked)", "GWh")
    for part in (*parts, "Assumed: MFU 40%", "Published: 6,400,000"):
        assert part in done.out, part
    assert max(map(len, done.out.splitlines())) <= 80


def test_serving_says_what_fits(gristmill) -> None:
    done = gristmill("plan", "llama-3-70b", "--serve", "--devices", "h100", "--context", 8192)
    assert done.code == 0, done.err
    lines = {line.split()[0]: line for line in done.out.splitlines() if line.split()}
    assert "does not fit" in lines["bfloat16"] and "141.1" in lines["bfloat16"]
    assert "does not fit" not in lines["q4_k_m"]
    assert max(map(len, done.out.splitlines())) <= 80


def test_json_is_one_document_with_all_of_it(gristmill) -> None:
    done = gristmill("plan", "mixtral-8x7b", "--tokens", "1T", "--devices", "h100:64", "--json")
    told = json.loads(done.out)
    assert told["model"]["parameters"]["total"] == 46_702_792_704
    best = told["training"]["layouts"][0]
    parts = {k: v for k, v in best["memory"].items() if k not in ("total", "alternating")}
    assert sum(parts.values()) - best["memory"]["alternating"] == pytest.approx(
        best["memory"]["total"]
    )
    assert told["training"]["cost"]["hours"] > 0
    served = json.loads(gristmill("plan", "gpt2", "--serve", "--json").out)
    assert served["serving"]["weights"][0]["bytes"] == 4 * 124_439_808


def test_without_a_model_all_names_are_listed(gristmill) -> None:
    done = gristmill("plan")
    for name in presets():
        assert name in done.out
    assert "mi300x" in done.out
    assert "llama-3-8b" in json.loads(gristmill("plan", "--json").out)["presets"]


def test_a_model_on_disk_is_planned_for(gristmill, taught) -> None:
    done = gristmill("plan", taught, "--serve", "--devices", "here", "--json")
    told = json.loads(done.out)
    stored = sum(file.stat().st_size for file in taught.glob("*.safetensors"))
    assert told["serving"]["stored_bytes"] == pytest.approx(stored, rel=0.05)
    assert told["model"]["parameters"]["total"] > 0


def test_what_does_not_fit_exits_well_and_says_what_would(gristmill) -> None:
    done = gristmill("plan", "llama-3.1-405b", "--devices", "h100:16")
    assert done.code == 0
    assert "It does not fit: needs at least" in done.out and "use 128 devices" in done.out


def test_the_page_is_written(gristmill, tmp_path) -> None:
    target = tmp_path / "new" / "plan.html"
    done = gristmill("plan", "gpt2", "--devices", "a100:2", "--html", target)
    assert done.code == 0, done.err
    assert target.read_text(encoding="utf-8").startswith("<!doctype html>")


WRONG = [
    (["lama-3-70b"], 'Did you mean "llama-3-70b"?'),
    (["gpt2", "--devices", "h10:4"], 'Did you mean "h100"?'),
    (["gpt2", "--devices", "h100:many"], "a name and a number"),
    (["gpt2", "--tokens", "lots"], "--tokens must be a number such as 15T"),
    (["gpt2", "--precision", "bf16"], 'Did you mean "bfloat16"?'),
    (["gpt2", "--mfu", "40"], "mfu is a share"),
    (["gpt2", "--context", "4096"], "beyond the model's 1,024 learned positions"),
    (["gpt2", "--batch", "100"], "holds no row of 1,024"),
    (["gpt2", "--serve", "--weights", "q4"], "weights are"),
    (["gpt2", "--device-file", "none.toml"], "none.toml cannot be read"),
]


@pytest.mark.parametrize("arguments, said", WRONG)
def test_wrong_requests_are_told_with_exit_code_2(arguments, said, gristmill) -> None:
    done = gristmill("plan", *arguments)
    assert done.code == 2 and done.out == ""
    assert said in done.err
