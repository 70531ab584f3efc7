"""inspect's table and its heat map; what the numbers are is in tests/engine/test_inspection.py."""

from __future__ import annotations

import json
import math
import re

from rich.console import Console

from gristmill.engine import inspect
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
    assert len(re.findall(r"'.*?' \d\.\d\d", row)) == 2
    bare = gristmill("inspect", taught, "the dataset", "--alternatives", 0)
    assert bare.code == 0 and "likeliest there" not in bare.out
    assert gristmill("inspect", taught, "x", "--alternatives", -1).code == 2


def test_the_heat_map_is_one_page_that_loads_nothing(gristmill, taught, tmp_path) -> None:
    file = tmp_path / "heat.html"
    result = gristmill("inspect", taught, TEXT, "--html", file, "--json")
    found = json.loads(result.out)
    assert result.code == 0 and found["html"] == str(file)
    page = file.read_text(encoding="utf-8")
    assert page.count('class="heat-panel"') == len(found["tokens"])
    assert "<b>&amp;" not in page and "&lt;" in page and "<script" not in page
    assert not re.search(r"""(src|href)=["'](?!#)""", page)
    without = gristmill("inspect", taught, "--html", file)
    assert without.code == 2 and "give one" in without.err
