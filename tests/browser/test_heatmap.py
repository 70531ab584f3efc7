"""The heat map of `inspect --html` in a browser: what is pointed at, and what has the focus, shows its numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from gristmill.cli.heatmap import heatmap
from gristmill.engine import inspect
from tests.tiny_model import taught_model

TEXT = "What does the dataset é🙂 do?\n\tn largest <b>elements</b>\n" * 6


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("heat") / "heat.html"
    model = taught_model()
    path.write_text(heatmap(inspect(model, TEXT), model), encoding="utf-8")
    return path


@pytest.fixture(params=["light", "dark"])
def tab(browser, file, request):
    context = browser.new_context(
        viewport={"width": 420, "height": 640}, color_scheme=request.param, reduced_motion="reduce"
    )
    tab = context.new_page()
    problems: list[str] = []
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.on("console", lambda message: problems.append(message.text))
    tab.on("request", lambda r: None if r.url == file.as_uri() else problems.append(r.url))
    tab.goto(file.as_uri())
    yield tab
    context.close()
    assert problems == []


def test_the_text_stands_there_as_it_was(tab) -> None:
    tokens = tab.locator(".heat-token")
    text = tab.evaluate(
        """() => [...document.querySelectorAll('.heat-token')].map(token => [...token.childNodes]
            .filter(node => !node.classList || !node.classList.contains('heat-panel'))
            .map(node => node.nodeName === 'BR' ? '\\n' : node.textContent).join('')).join('')"""
    )
    assert text.replace("⏎", "").replace("·", "") == TEXT
    assert tokens.count() > 40
    assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_pointing_and_the_keyboard_show_the_numbers(tab) -> None:
    panels = tab.locator(".heat-panel:visible")
    assert panels.count() == 0
    tokens = tab.locator(".heat-token")
    tokens.nth(5).hover()
    assert panels.count() == 1 and "bits · probability" in panels.inner_text()
    tab.mouse.move(5, 5)
    tokens.nth(tokens.count() - 2).focus()
    tab.keyboard.press("Tab")
    tab.wait_for_timeout(800)  # the page scrolls smoothly
    assert panels.count() == 1
    token = tab.evaluate("document.activeElement.getBoundingClientRect().bottom")
    panel = tab.evaluate(
        "document.querySelector('.heat-token:focus .heat-panel').getBoundingClientRect().top"
    )
    assert token <= panel  # what has the focus is not under its own panel


def test_a_keyboard_can_pass_over_the_text(tab) -> None:
    skip = tab.get_by_text("Skip the text")
    skip.focus()
    assert skip.bounding_box()["x"] >= 0
    tab.keyboard.press("Enter")
    assert tab.url.endswith("#what-comes-next")


def colour(text: str) -> list[float]:
    values = [float(v) for v in text[text.index("(") + 1 : -1].split(",")]
    return values if len(values) == 4 else [*values, 1.0]


def luminance(rgb: list[float]) -> float:
    linear = [
        c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in rgb)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_every_colour_leaves_the_text_readable(tab) -> None:
    """Contrast of at least 4.5 to 1 (WCAG AA) on each step of the scale."""
    found = tab.evaluate(
        """() => [...document.querySelectorAll('.heat-legend span')].map(span => [
            getComputedStyle(span).backgroundColor, getComputedStyle(span).color,
            getComputedStyle(document.querySelector('.heat-text')).backgroundColor])"""
    )
    assert len(found) == 9
    for over, ink, card in found:
        *top, alpha = colour(over)
        mixed = [alpha * a + (1 - alpha) * b for a, b in zip(top, colour(card)[:3], strict=True)]
        bright, dim = sorted((luminance(mixed), luminance(colour(ink)[:3])), reverse=True)
        assert (bright + 0.05) / (dim + 0.05) >= 4.5, (over, ink)
