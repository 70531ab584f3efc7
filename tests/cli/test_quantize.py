"""gristmill quantize: what a person types, sees and gets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gristmill.engine import Engine
from gristmill.formats import Model, describe
from gristmill.lm import SamplingParams
from tests.tiny_model import LESSONS

CHATS = [
    [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    for question, answer in LESSONS
]


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> tuple[Path, Path]:
    """(to calibrate on, held out)"""
    place = tmp_path_factory.mktemp("texts")
    seen, unseen = place / "seen.jsonl", place / "unseen.jsonl"
    for file, chats in ((seen, CHATS * 10), (unseen, CHATS[::-1] * 6)):
        file.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    return seen, unseen


@pytest.fixture
def quantize(gristmill, taught, texts, tmp_path):
    def call(*arguments: object, out: str = "out", held_out: Path = texts[1]):
        given = ["--calibration", texts[0], "--held-out", held_out, "--samples", 8, "--length", 96]
        return gristmill("quantize", taught, *given, "-o", tmp_path / out, *arguments)

    return call


def test_a_run_says_what_it_will_take_and_what_it_cost(quantize, tmp_path):
    done = quantize("--method", "gptq", "--group", 32)
    assert done.code == 0, done.err
    assert "gptq, 4 bits, groups of 32: about" in done.err and "GB of memory" in done.err
    for part in ("bits per weight", "perplexity", "mean KL divergence", "decode, tokens/s"):
        assert part in done.out, part
    assert "which was not calibrated on" in done.out
    card = (tmp_path / "out" / "README.md").read_text()
    assert "## The price of quantization" in card and "calibration sha256" in card
    params = SamplingParams(max_tokens=40, temperature=0)
    answer = Engine(Model.load(tmp_path / "out")).chat(CHATS[0][:1], params)
    assert "Find the n largest elements" in answer.text


def test_json_holds_all_of_it(quantize, tmp_path):
    done = quantize("--method", "awq", "--json")  # whose own format is the default
    told = json.loads(done.out)
    assert told["made"]["method"] == "awq" and told["made"]["group"] == 64
    assert told["price"]["distance"]["perplexity_ratio"] < 1.2
    assert told["price"]["made"]["calibration_sha256"] == told["made"]["calibration_sha256"]
    assert "model.layers.0.self_attn.q_proj" in told["layers"]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "awq"
    assert json.loads(Path(told["numbers"]).read_text())["bytes_ratio"] < 1


def test_a_gguf_of_a_given_size(quantize, tmp_path):
    done = quantize("--method", "gguf", "--target-size", "125KB", "--json", out="a.gguf")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    file = tmp_path / "a.gguf"
    assert file.stat().st_size <= 125_000 and told["made"]["type"] == "mixed"
    assert {t.type for t in describe(file).tensors} > {"F32"}
    assert (tmp_path / "a.md").is_file() and (tmp_path / "a.price.json").is_file()
    assert Model.load(file).config.num_layers == 2


def test_without_a_text_pythons_documentation_is_used_and_that_is_said(gristmill, taught, tmp_path):
    done = gristmill("quantize", taught, "--method", "rtn", "-o", tmp_path / "out")
    assert done.code == 0 and "no --held-out FILE: Python's own documentation" in done.err
    assert "no --calibration" not in done.err  # rounding to nearest looks at no text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--method", "gtpq"], 'not gtpq. Did you mean "gptq"?'),
        (["--bits", "5"], "--bits must be 4 or 8, not 5"),
        (["--format", "awk"], 'not awk. Did you mean "awq"?'),
        (["--group", "some"], "--group must be a number, auto or channel, not some"),
        (["--group", "96"], "has 64 inputs, which groups of 96 do not divide; groups of 64 fit"),
        (["--target-size", "1GB"], "--target-size is for --method gguf, not gptq"),
        (["--importance"], "--importance is for --method gguf, not gptq"),
        (["--type", "Q5_K_M"], "--type is for --method gguf, not gptq"),
        (
            ["--method", "gguf", "--bits", "4"],
            "--bits is for --method gptq or awq or rtn, not gguf",
        ),
        (["--method", "int8", "--group", "32"], "--group is for --method"),
        (["--method", "smoothquant", "--asymmetric"], "--symmetric is for --method"),
        (["--method", "gguf", "--format", "gptq"], "--format is for --method"),
        (["--method", "int8", "--format", "compressed-tensors"], "smoothquant, not int8"),
        (["--method", "awq", "--mse"], "--mse is for --method gptq, not awq"),
        (
            ["--method", "gguf", "--type", "Q8_0", "--target-size", "1GB"],
            "--target-size chooses the types itself: leave --type out",
        ),
        (["--method", "gguf", "--target-size", "big"], "--target-size must be a size such as"),
        (["--method", "gguf", "--type", "Q9"], "--type must be F32, F16, BF16, Q8_0, Q4_0, Q4_K_S"),
        (["--method", "gguf", "--type", "Q4_K_X"], 'not Q4_K_X. Did you mean "Q4_K_'),
        (["--method", "gguf", "--type", "q4k"], 'not q4k. Did you mean "Q4_K_'),
        (["--method", "gguf"], "method gguf makes a file"),
        (["--length", "999"], "--length 999 is beyond the model's context of 384 tokens"),
        (["--samples", "99"], "and 99 × 96 = 9,504 are needed. Give more text"),
    ],
)
def test_wrong_requests(quantize, tmp_path, arguments, says):
    done = quantize(*arguments)
    assert done.code == 2 and says in done.err.replace("\n", " "), done.err
    assert "Traceback" not in done.err and list(tmp_path.iterdir()) == []


def test_refusals_come_before_notices(gristmill, taught, tmp_path):
    """No text is named, so Python's documentation would be used; that is nobody's concern yet."""
    for given, says in (
        (["--group", "96", "-o", "out"], "groups of 96 do not divide"),
        (["-o", "none/dir/out"], "there is no directory"),
        (["-o", "out", "--held-out", "none.txt"], "there is no text file"),
        (
            ["--method", "gguf", "--target-size", "50KB", "-o", "a.gguf"],
            "--target-size 50.00 KB is too small: with the smallest types",
        ),
    ):
        at = given.index("-o") + 1
        done = gristmill("quantize", taught, *given[:at], tmp_path / given[at], *given[at + 1 :])
        said = done.err.replace("\n", " ")
        assert done.code == 2 and says in said and "documentation" not in said, said
        assert list(tmp_path.iterdir()) == []


def test_what_a_gguf_does_with_the_text_and_with_short_rows_is_said(quantize):
    done = quantize("--method", "gguf", "--no-price", out="a.gguf")
    assert "without --importance or --target-size: --calibration is not used" in done.err
    assert "no whole blocks of 256, so" in done.err and "are Q8_0 and Q5_0" in done.err


def test_help_fits_80_columns(gristmill, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    shown = gristmill("quantize", "--help").out
    assert "--importance" in shown and "compressed-tensors" in shown and "…" not in shown


def test_the_price_is_not_measured_on_the_calibration_text(quantize, texts, tmp_path):
    done = quantize("--method", "gptq", held_out=texts[0])
    assert done.code == 2 and "is the text that was calibrated on" in done.err
    assert list(tmp_path.iterdir()) == []
