"""gristmill plan: what a person types, sees and gets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gristmill.cli.planner_view import size
from gristmill.plan import presets


@pytest.fixture(autouse=True)
def narrow(monkeypatch) -> None:
    monkeypatch.setattr("gristmill.cli.console.out.width", 80, raising=False)
    monkeypatch.setenv("COLUMNS", "80")


def test_training_says_what_it_takes(gristmill) -> None:
    done = gristmill("plan", "llama-3-70b", "--tokens", "15T", "--devices", "h100:1024")
    assert done.code == 0, done.err
    parts = ("70,553,706,496", "1,024 x NVIDIA H100", "15T tokens (as asked)", "GWh")
    for part in (*parts, "Assumed: MFU 40% (what large runs on H100 reach", "Published: 6,400,000"):
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


def test_what_does_not_fit_exits_with_1_and_says_what_would(gristmill) -> None:
    done = gristmill("plan", "llama-3-8b", "--devices", "h100")
    assert done.code == 1
    assert "It does not fit: needs at least" in done.out and "use 2 devices" in done.out
    for part in ("$", "device-hours", "Assumed"):
        assert part not in done.out
    told = gristmill("plan", "llama-3-8b", "--devices", "h100", "--json")
    assert told.code == 1 and json.loads(told.out)["training"]["cost"] is None
    assert gristmill("plan", "llama-3-8b", "--devices", "h100:2").code == 0  # the cure cures


def test_the_note_names_the_mfu_that_the_table_may_reach(gristmill) -> None:
    """Attention is counted whole, of which a causal kernel does half: more than the 55% of products."""
    arguments = ("plan", "gristmill-124m", "--devices", "h100")
    told = json.loads(gristmill(*arguments, "--json").out)
    most, flops = told["training"]["assumptions"]["most_mfu"], told["model"]["flops_per_token"]
    done = flops["matrices"] + flops["attention_causal"]
    assert most == pytest.approx(0.55 * flops["forward"] / done)
    assert 0.55 < told["training"]["layouts"][0]["mfu"] <= most * (1 + 1e-9)
    assert f"up to {most:.0%}" in " ".join(gristmill(*arguments).out.split())


@pytest.mark.parametrize(
    "arguments, whence",
    [
        ([], "what large runs on H100 reach"),
        (["--mfu", "0.3"], "as asked"),
        (["--devices", "h100:512"], "the best layout's, less than the 40% of large runs"),
    ],
)
def test_the_costs_mfu_is_explained(arguments, whence, gristmill) -> None:
    done = gristmill("plan", "gpt2", *arguments)
    assert f"({whence}" in " ".join(done.out.split())


@pytest.fixture
def run(tmp_path, taught) -> Path:
    """A run's directory, as far as the planner reads it."""
    place = tmp_path / "run"
    (place / "pretrain").mkdir(parents=True)
    (place / "pretrain" / "model").symlink_to(taught)
    (place / "run.json").write_text(json.dumps({"model": "pretrain/model"}))
    manifest = {
        "config": {"tokens": 300_000, "context": 64, "optimizer": "muon"},
        "metrics": {"tokens": 299_008},
    }
    (place / "pretrain" / "manifest.json").write_text(json.dumps(manifest))
    return place


@pytest.mark.parametrize("part", ["", "pretrain", "pretrain/model"])
def test_a_run_is_planned_as_it_was_trained(part, run, gristmill) -> None:
    done = gristmill("plan", run / part, "--devices", "h100", "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)["training"]
    assert (told["tokens"], told["tokens_are"]) == (299_008, "what it was trained on")
    assert (told["training"]["context"], told["training"]["optimizer"]) == (64, "muon")


def test_what_is_asked_for_goes_before_the_run(run, gristmill) -> None:
    asked = ("--tokens", "1M", "--context", 128, "--optimizer", "adamw")
    told = json.loads(gristmill("plan", run, "--devices", "h100", *asked, "--json").out)["training"]
    assert told["tokens"] == 1e6
    assert (told["training"]["context"], told["training"]["optimizer"]) == (128, "adamw")


def test_a_manifest_of_another_program_is_passed_over(run, gristmill) -> None:
    (run / "pretrain" / "manifest.json").write_text('{"config": []}')
    told = json.loads(gristmill("plan", run, "--devices", "h100", "--json").out)["training"]
    assert told["tokens_are"] == "20 a parameter" and told["training"]["optimizer"] == "adamw"


@pytest.mark.parametrize("serve", [[], ["--serve"]])
def test_where_no_price_is_known_none_is_printed(serve, gristmill) -> None:
    arguments = ("plan", "gpt2", "--devices", "here", *serve)
    done = gristmill(*arguments)
    assert done.code == 0 and "$" not in done.out and "no price is known" in done.out.lower()
    assert "1 threads" not in done.out
    told = json.loads(gristmill(*arguments, "--json").out)
    if serve:
        assert told["serving"]["price_per_device_hour"] is None
        assert told["serving"]["weights"][0]["price_per_million_out"] is None
    else:
        assert told["training"]["cost"]["money"] is None
        assert told["training"]["assumptions"]["price"] is None
        assert told["training"]["device"]["price"] is None
    assert "$2.00 a device-hour" in " ".join(gristmill(*arguments, "--price", 2).out.split())


@pytest.mark.parametrize(
    "held, said",
    [(54.3e9, "54.3 GB"), (1e9, "1.0 GB"), (196e6, "196 MB"), (4.5e6, "4.5 MB")],
)
def test_memory_below_a_gigabyte_is_told_in_megabytes(held, said) -> None:
    assert size(held) == said


def test_a_page_in_no_folder_is_refused_before_anything_is_made(gristmill, tmp_path) -> None:
    done = gristmill("plan", "gpt2", "--html", tmp_path / "new" / "plan.html")
    assert done.code == 2 and done.out == ""
    assert "no such folder" in done.err and list(tmp_path.iterdir()) == []


def test_the_page_is_written(gristmill, tmp_path) -> None:
    target = tmp_path / "plan.html"
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
    (["gpt2", "--price", "-1"], "gristmill: price is at least 0, not -1\n"),
    (["gpt2", "--pue", "0.5"], "gristmill: pue is at least 1, not 0.5\n"),
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
