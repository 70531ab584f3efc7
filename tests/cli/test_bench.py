"""bench on the command line; what it measures is in tests/engine/test_measure.py."""

from __future__ import annotations

import json

import pytest

from gristmill.formats import Model


def test_a_sweep(gristmill, taught) -> None:
    options = ["--rows", "1,3", "--prompt-tokens", 16, "--new-tokens", 6]
    result = gristmill("bench", taught, *options, "--json")
    found = json.loads(result.out)
    assert result.code == 0 and [p["rows"] for p in found["points"]] == [1, 3]
    assert found["runner"] in ("native", "torch") and found["left_out_rows"] == []
    for point in found["points"]:
        share = point["read_bytes_per_s"] / found["bandwidth_bytes_per_s"]
        assert point["bandwidth_share"] == pytest.approx(share) and share > 0
    shown = gristmill("bench", taught, *options, "--runner", "torch")
    assert "torch runner" in shown.out and "GB/s" in shown.out


def test_the_type_of_the_weights_is_told(gristmill, taught, tmp_path) -> None:
    Model.load(taught).save(tmp_path / "small.gguf", quant="Q8_0")
    options = ["--rows", 1, "--prompt-tokens", 8, "--new-tokens", 3, "--dtype", "auto"]
    found = json.loads(gristmill("bench", tmp_path / "small.gguf", *options, "--json").out)
    assert found["weight_types"] == found["stored_types"] == ["Q8_0"]
    assert found["weight_bytes"] < 0.4 * 4 * found["parameters"]
    shown = gristmill("bench", tmp_path / "small.gguf", *options, "--activations", "float")
    assert "weights (Q8_0)" in shown.out
    assert "weights (float32);" in gristmill("bench", taught, *options).out


def test_what_there_is_no_time_for_is_left_out(gristmill, taught) -> None:
    result = gristmill(
        "bench", taught, "--rows", "8,16,32", "--max-seconds", 1, "--new-tokens", 200
    )
    assert result.code == 0
    short = gristmill("bench", taught, "--rows", "1", "--new-tokens", 3, "--json")
    assert json.loads(short.out)["prompt_tokens"] == 256


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows", "x"], '--rows must be numbers from 1 to 1024 such as "1,4,16", not "x"'),
        (["--rows", "0"], "--rows must be"),
        (["--prompt-tokens", "1000"], "do not fit the model's context of 384"),
        (["--runner", "gpu"], "--runner must be auto, native or torch"),
        (["--dtype", "float12"], "float12"),
        (["--activations", "int4"], 'activations must be "int8" or "float"'),
        (["--cache-dtype", "int9"], 'cache_dtype must be "auto", "float32"'),
    ],
)
def test_wrong_requests(gristmill, taught, arguments, message) -> None:
    result = gristmill("bench", taught, *arguments)
    assert result.code == 2 and message in result.err and not result.out
