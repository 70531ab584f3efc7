"""inspect's table and its heat map; what the numbers are is in tests/engine/test_inspection.py."""

from __future__ import annotations

import json
import math
import re

import pytest
from rich.console import Console

from gristmill.engine import inspect
from gristmill.engine.inspection import spelled
from gristmill.formats import Model
from tests.formats.rounded import quantize
from tests.tiny_model import random_model, taught_model

TEXT = "the dataset é🙂\n<b>&amp; [bold]"


def test_the_numbers_of_a_token(taught) -> None:
    seen = inspect(taught_model(), TEXT, top=640, alternatives=640)
    for token in seen.tokens:
        shares = [c.probability for c in token.expected]
        entropy = -sum(p * math.log2(p) for p in shares if p > 0)
        assert abs(token.entropy - entropy) < 1e-9 and abs(sum(shares) - 1) < 1e-9
        assert token.expected[token.rank - 1].probability == token.probability
    assert abs(seen.entropy - sum(t.entropy for t in seen.tokens) / len(seen.tokens)) < 1e-9
    following = -sum(c.probability * math.log2(c.probability) for c in seen.next)
    assert abs(seen.next_entropy - following) < 1e-9


def test_long_texts_are_read_in_slices(monkeypatch) -> None:
    model = random_model()
    whole = inspect(model, TEXT * 4)
    monkeypatch.setattr("gristmill.engine.inspection.LOGIT_BYTES", 3 * 8 * 512)
    sliced = inspect(model, TEXT * 4)
    assert [t.id for t in sliced.tokens] == [t.id for t in whole.tokens]
    assert abs(sliced.loss - whole.loss) < 1e-6


def test_the_table(gristmill, taught, monkeypatch) -> None:
    monkeypatch.setattr("gristmill.cli.inspect.out", Console(width=120, highlight=False))
    result = gristmill("inspect", taught, "-", "--alternatives", 2, stdin="the dataset")
    assert result.code == 0 and "mean entropy" in result.out
    (row,) = (line for line in result.out.splitlines() if "' dataset'" in line and "█" in line)
    assert len(re.findall(r"'.*?' \d\.\d\d(?!\d)", row)) == 2
    bare = gristmill("inspect", taught, "the dataset", "--alternatives", 0)
    assert bare.code == 0 and "likeliest there" not in bare.out
    assert gristmill("inspect", taught, "x", "--alternatives", -1).code == 2


def test_the_alternatives_fit_a_narrow_terminal(gristmill, taught, monkeypatch) -> None:
    monkeypatch.setattr("gristmill.cli.inspect.out", Console(width=80, highlight=False))
    narrow = gristmill("inspect", taught, TEXT, "--alternatives", 4)
    assert max(map(len, narrow.out.partition("loss")[0].splitlines())) <= 80
    text = narrow.out.partition("loss")[0]
    seen = inspect(taught_model(), TEXT, alternatives=4)
    assert text.count("…") == 0 and "'<0xC3>'" in text
    assert len(re.findall(r" \d\.\d\d(?=  | *\n)", text)) >= 4 * len(seen.tokens)


def test_the_heat_map_is_one_page_that_loads_nothing(gristmill, taught, tmp_path) -> None:
    file = tmp_path / "heat.html"
    result = gristmill("inspect", taught, TEXT, "--html", file, "--json")
    found = json.loads(result.out)
    assert result.code == 0 and found["html"] == str(file)
    page = file.read_text(encoding="utf-8")
    assert page.count('class="heat-panel"') == len(found["tokens"])
    assert "<b>&amp;" not in page and "&lt;" in page and "<script" not in page
    assert not re.search(r"""(src|href)=["'](?!#)""", page)
    assert "A dot is the beginning of a character" in page and "&lt;0xF0&gt;" in page
    assert "🙂" in page and "\ufffd" not in page
    missing = gristmill("inspect", taught, TEXT, "--html", tmp_path / "no" / "heat.html")
    assert missing.code == 2 and f"no directory {tmp_path / 'no'}" in missing.err
    assert not (tmp_path / "no").exists()
    assert "is a directory" in gristmill("inspect", taught, TEXT, "--html", tmp_path).err
    without = gristmill("inspect", taught, "--html", file)
    assert without.code == 2 and "give one" in without.err


def test_a_text_or_a_model_is_needed(gristmill) -> None:
    result = gristmill("inspect")
    assert result.code == 2 and "give a TEXT, a MODEL" in result.err
    assert "[MODEL] [TEXT]" in gristmill("inspect", "--help").out


def test_bytes_that_are_no_text_alone_are_named() -> None:
    assert spelled("é 🙂".encode()) == "é 🙂"
    assert spelled(b"a\xe2\x82") == "a<0xE2><0x82>"
    assert spelled(b"\xed\xa0\x80") == "<0xED><0xA0><0x80>"  # a surrogate is no UTF-8


@pytest.mark.parametrize(
    ("format", "bits", "says"),
    [("compressed-tensors", 4, "4 bits, groups of 32"), ("gptq", 8, "8 bits, groups of 32")],
)
def test_how_a_directory_is_quantized(gristmill, taught, tmp_path, format, bits, says) -> None:
    model = Model.load(taught)
    quantize(model.network, bits=bits, group=32)
    model.save(tmp_path / "small", quantization=format)
    assert f"{format}, {says}" in gristmill("inspect", tmp_path / "small").out
    assert "quantized" not in gristmill("inspect", taught).out
