"""Baselines, evaluation and the `eval` verb on a small line made of real stages' outputs."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from gristmill.cli.main import dispatch
from gristmill.errors import RequestError, WorkError
from gristmill.evaluate import baselines, stage
from gristmill.files import read_json, write_json, write_jsonl
from gristmill.quantize import Int8Config
from gristmill.quantize import run as quantize
from gristmill.retrieval import build
from tests.evaluate.conftest import TEXTS
from tests.tiny_model import FACTS, random_model

PROMPT = "import heapq"


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory, shards: Path, model) -> dict[str, Path]:
    """Inputs of the evaluate stage; sft and dpo are other random weights with room for passages."""
    root = tmp_path_factory.mktemp("evaluated")
    inputs = {"tokens": shards, "tokenizer": root / "base", "index": root / "index.sqlite"}
    for seed, name in enumerate(("base", "sft", "dpo")):
        inputs[f"{name}_model"] = root / name
        random_model(seed, max_seq_len=192).save(root / name)
    inputs["int8_model"] = quantize(
        Int8Config(), {"model": inputs["dpo_model"]}, root / "int8"
    ).outputs["model"]
    build(inputs["index"], FACTS, [])
    inputs["questions"] = root / "questions"
    summaries = [fact.summary for fact in FACTS] + ["Something else."]
    write_jsonl(
        inputs["questions"] / "choices.jsonl",
        [
            {
                "fact": fact.id,
                "name": fact.name,
                "question": f"What does `{fact.name}` do?",
                "choices": summaries,
                "answer": number,
                "seen": number < 2,
            }
            for number, fact in enumerate(FACTS)
        ],
    )
    write_jsonl(
        inputs["questions"] / "preferences.heldout.jsonl",
        [
            {
                "prompt": [{"role": "user", "content": f"What does `{fact.name}` do?"}],
                "chosen": [{"role": "assistant", "content": fact.summary}],
                "rejected": [{"role": "assistant", "content": summaries[number - 1]}],
                "seen": number < 2,
            }
            for number, fact in enumerate(FACTS)
        ],
    )
    result = baselines.run(baselines.BaselinesConfig(), inputs, root / "baselines")
    inputs["baselines"] = result.outputs["baselines"]
    return inputs


def heldout_size() -> int:
    return sum(len(text.encode()) for group in TEXTS["heldout"].values() for text in group.values())


def test_baselines_count_the_same_bytes_and_are_written(line: dict[str, Path]) -> None:
    numbers = read_json(line["baselines"])
    assert numbers["heldout_bytes"] == heldout_size()
    assert numbers["heldout_documents"] == 3
    assert numbers["train_documents"] == 7
    assert 0 < numbers["xz_context_bits_per_byte"] < numbers["xz_bits_per_byte"]
    assert 0 < numbers["ngram5_bits_per_byte"] < 8


def test_everything_is_measured_and_equal_runs_are_equal(line, tmp_path: Path) -> None:
    seen: list[tuple[float, float]] = []
    config = stage.EvaluateConfig(answer_tokens=8, prompts=(PROMPT,), context=64)
    result = stage.run(
        config, line, tmp_path / "one", lambda done, total, unit="", **_: seen.append((done, total))
    )
    metrics = result.metrics
    bits = metrics["bits_per_byte"]
    assert list(bits) == ["untrained", "base", "sft", "dpo", "int8", "xz", "xz_context", "ngram5"]
    assert bits["xz"] == read_json(line["baselines"])["xz_bits_per_byte"]
    assert len({bits[name] for name in ("untrained", "base", "sft", "dpo", "int8")}) == 5
    assert bits["int8"] == pytest.approx(bits["dpo"], rel=0.05)
    # Zero output projections: the untrained network is nearly uniform over its 512 tokens.
    per_token = bits["untrained"] * heldout_size() / metrics["heldout"]["tokens"]
    assert per_token == pytest.approx(math.log2(512), rel=0.1)
    assert metrics["heldout"]["bytes"] == heldout_size()
    by_group = metrics["bits_per_byte_by_group"]["base"]
    sizes = {
        group: sum(len(text.encode()) for text in texts.values())
        for group, texts in TEXTS["heldout"].items()
    }
    assert sum(by_group[g] * sizes[g] for g in sizes) / heldout_size() == pytest.approx(
        bits["base"]
    )
    assert set(metrics["choices"]) == {"base", "sft", "dpo"}
    retrieval = metrics["choices"]["dpo"]["retrieval"]
    assert retrieval["seen"]["n"] == 2
    assert retrieval["heldout"]["passage_found"] == 1.0
    assert set(metrics["preferences"]) == {"sft", "dpo"}
    assert "heldout_reward" in metrics["preferences"]["dpo"]
    # Random weights say nothing right themselves; the passage that is quoted after them does.
    for group, n in (("seen", 2), ("heldout", 1)):
        written = metrics["written"][group]
        assert {k: written[k] for k in ("n", "shown", "own_words", "quoted")} == {
            "n": n,
            "shown": 1.0,
            "own_words": 0.0,
            "quoted": 1.0,
        }
    sample = metrics["samples"][0]
    assert list(sample["answers"]) == ["base", "sft", "dpo", "dpo_retrieval"]
    assert sample["expected"] == FACTS[0].summary
    first, *excerpts = metrics["next_token"]
    assert first["prompt"] == PROMPT
    assert sum(top["probability"] for top in first["top"]) <= 1
    assert excerpts and all("actual" in view for view in excerpts)
    text = "".join(t for group in TEXTS["heldout"].values() for t in group.values())
    assert all(view["prompt"] + view["actual"] in text for view in excerpts)
    assert json.loads((tmp_path / "one" / "samples.json").read_text())["samples"][0] == sample
    assert seen[-1][0] == seen[-1][1] and [done for done, _ in seen] == sorted(
        done for done, _ in seen
    )

    again = stage.run(config, line, tmp_path / "two")
    assert json.dumps(again.metrics) == json.dumps(metrics)
    one, two = ((tmp_path / n / "samples.json").read_bytes() for n in ("one", "two"))
    assert one == two


def test_a_line_that_stopped_early_is_measured_as_far_as_it_got(line, tmp_path: Path) -> None:
    inputs = {name: line[name] for name in ("tokens", "tokenizer", "base_model")}
    metrics = stage.run(stage.EvaluateConfig(), inputs, tmp_path).metrics
    assert list(metrics["bits_per_byte"]) == ["untrained", "base"]
    assert "choices" not in metrics and "preferences" not in metrics
    assert metrics["samples"] == []
    with pytest.raises(RequestError, match="no model to evaluate"):
        stage.run(stage.EvaluateConfig(), {"tokens": line["tokens"]}, tmp_path)


def test_baselines_of_other_text_are_refused(line, tmp_path: Path) -> None:
    other = tmp_path / "baselines.json"
    write_json(other, read_json(line["baselines"]) | {"heldout_bytes": heldout_size() - 1})
    with pytest.raises(WorkError, match="run the baselines stage again"):
        stage.run(stage.EvaluateConfig(), line | {"baselines": other}, tmp_path)


@pytest.fixture(scope="module")
def run_directory(line, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run as the recipe lays it out: manifests that name the stages' outputs."""
    run = tmp_path_factory.mktemp("runs") / "small"
    outputs = {
        "tokens": {"tokens": line["tokens"]},
        "questions": {"questions": line["questions"]},
        "index": {"index": line["index"]},
        "baselines": {"baselines": line["baselines"]},
        "dpo": {"model": line["dpo_model"]},
    }
    for name, made in outputs.items():
        (run / name).mkdir(parents=True)
        entries = {}
        for output, path in made.items():
            target = run / name / path.name
            target.symlink_to(path)
            entries[output] = {"path": f"{name}/{path.name}"}
        write_json(run / name / "manifest.json", {"stage": name, "outputs": entries})
    write_json(run / "run.json", {"model": "dpo/dpo", "index": "index/index.sqlite"})
    return run


def json_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    with pytest.raises(SystemExit) as stopped:
        dispatch(["eval", *arguments, "--json"])
    assert stopped.value.code == 0
    return json.loads(capsys.readouterr().out)


def test_eval_of_a_run_gives_the_numbers_of_its_stage(
    run_directory, line, tmp_path, capsys
) -> None:
    found = json_of(capsys, str(run_directory))
    config = stage.EvaluateConfig(choices=10_000, pairs=10_000)
    expected = stage.run(config, line, tmp_path).metrics
    assert found["bits"]["bits_per_byte"] == expected["bits_per_byte"]["dpo"]
    assert found["bits"]["ngram5_bits_per_byte"] == expected["bits_per_byte"]["ngram5"]
    assert found["choices"] == expected["choices"]["dpo"]
    shared = {k: v for k, v in expected["preferences"]["dpo"].items() if "reward" not in k}
    assert found["preferences"] == shared
    only = json_of(capsys, str(run_directory), "--tasks", "choices")
    assert set(only) == {"model", "choices"}


def test_eval_of_a_text_file(line, tmp_path: Path, capsys) -> None:
    file = tmp_path / "text.py"
    file.write_text("def f(heap):\n    return heap[0]\n" * 20, encoding="utf-8")
    found = json_of(capsys, str(line["base_model"]), "--text", str(file), "--context", "64")
    assert found["bits"]["bytes"] == file.stat().st_size
    assert found["bits"]["bits_per_byte"] == found["bits"]["bits"] / file.stat().st_size


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["MODEL"], "--text"),
        (["RUN", "--tasks", "bit"], 'Did you mean "bits"?'),
        (["MODEL", "--text", "nowhere.txt"], "nowhere.txt"),
        (["MODEL", "--text", "EMPTY"], "is empty"),
        (["MODEL", "--text", "BINARY"], "not UTF-8"),
        (["MODEL", "--text", "TEXT", "--tasks", "choices"], "choices"),
        (["nowhere"], "no model at nowhere"),
    ],
)
def test_bad_requests_are_answered_with_exit_code_2(
    line, run_directory, tmp_path: Path, arguments: list[str], message: str
) -> None:
    files = {"EMPTY": b"", "BINARY": b"\xff\xfe\x00", "TEXT": b"some text"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    places = {name: str(tmp_path / name) for name in files}
    places |= {"MODEL": str(line["base_model"]), "RUN": str(run_directory)}
    with pytest.raises(RequestError) as refused:
        dispatch(["eval", *(places.get(word, word) for word in arguments)])
    assert message in str(refused.value)


def test_the_verb_does_not_import_torch_before_it_is_used() -> None:
    code = "import gristmill.cli.eval, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
