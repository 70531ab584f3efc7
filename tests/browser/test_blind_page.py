"""What a person does on the page of a blind comparison: keys alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gristmill.evaluate.blind import Comparison
from gristmill.serve import served
from gristmill.serve.blind import build_blind_app

PROMPTS = ["Why is the sky blue?", "Say a word.", "What is <b>HTML</b>?"]
NAMES = ("runs/full", "small.gguf")


def says(prompt: str) -> tuple[str, str]:
    return f"the first on {prompt}", f"the second on {prompt}"


@pytest.fixture
def comparison(tmp_path: Path) -> Comparison:
    return Comparison(tmp_path / "answers.jsonl", *NAMES, PROMPTS, seed=0)


@pytest.fixture
def blind(comparison: Comparison) -> Iterator[str]:
    with served(build_blind_app(comparison, says, NAMES)) as url:
        yield url


def shown(page, number: int):
    return page.get_by_role("heading", name=PROMPTS[number], exact=True)


def test_keys_choose_undo_and_lead_to_the_result(page, blind: str, comparison: Comparison) -> None:
    page.goto(blind)
    shown(page, 0).wait_for()
    texts = {page.locator("#left").inner_text(), page.locator("#right").inner_text()}
    assert texts == set(says(PROMPTS[0]))
    assert not any(name in page.content() for name in NAMES)
    page.keyboard.press("1")
    shown(page, 1).wait_for()
    page.keyboard.press("u")
    shown(page, 0).wait_for()
    assert comparison.judged == 0
    page.keyboard.press("2")
    shown(page, 1).wait_for()
    page.keyboard.press("0")
    shown(page, 2).wait_for()
    assert page.locator("#prompt b").count() == 0  # text stays text
    page.get_by_role("button", name="End and show the result").click()
    result = page.get_by_role("heading", name="The result")
    result.wait_for()
    assert "in 1 of 1 decided pairs" in page.locator("#sentence").inner_text()
    better = NAMES[1] if not comparison.swapped(0) else NAMES[0]
    assert better in page.locator("#sentence").inner_text()
    assert "1.00" in page.locator("#numbers").inner_text()
    page.keyboard.press("1")  # nothing more counts
    page.reload()
    result.wait_for()
    assert comparison.judged == 2


def test_a_lost_server_is_said(page, blind: str) -> None:
    page.goto(blind)
    shown(page, 0).wait_for()
    page.context.set_offline(True)
    page.keyboard.press("1")
    page.get_by_role("alert").wait_for()
    assert "Your answers so far are kept" in page.get_by_role("alert").inner_text()
    page.context.set_offline(False)
    page.keyboard.press("1")
    shown(page, 1).wait_for()
    assert page.get_by_role("alert").count() == 0
