"""The page: it loads nothing, and its numbers, in a real browser, are those that Python computes."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil

import pytest

from gristmill.plan import (
    Assumptions,
    Training,
    devices,
    explorable,
    flops_per_token,
    presets,
    speed,
    training_cost,
)

H100 = devices()["h100"]
PRESET = presets()["mixtral-8x7b"]


@pytest.fixture(scope="module")
def page() -> str:
    return explorable(
        PRESET,
        H100,
        devices=64,
        tokens=1e12,
        training=Training(context=4096),
        assumed=Assumptions(price=2.0, availability=0.9),
    )


def test_the_page_loads_nothing(page: str) -> None:
    assert not re.search(r'(src|href)="|url\(|@import|https?://', page)
    script = page.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy is not None and f"sha256-{digest}" in policy[1].replace("&#x27;", "'")
    assert "default-src &#x27;none&#x27;" in policy[1]


def test_its_numbers_are_pythons(page: str, tmp_path) -> None:
    sync_api = pytest.importorskip("playwright.sync_api")
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("the page is not tested: no chromium found (set CHROMIUM to its path)")
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    with sync_api.sync_playwright() as running:
        browser = running.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-gpu"]
        )
        tab = browser.new_page()
        wrong: list[str] = []
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.on("console", lambda message: wrong.append(message.text))
        tab.goto(f"file://{tmp_path / 'page.html'}")

        def move(name: str, value: object) -> None:
            tab.evaluate(
                "([name, value]) => { const e = document.getElementById(name); e.value = value;"
                "e.dispatchEvent(new Event('input', { bubbles: true })); }",
                [name, str(value)],
            )

        def number(name: str) -> float:
            found = re.search(r"[0-9][0-9.,]*(e\+[0-9]+)?", tab.inner_text(f"#{name}"))
            assert found is not None
            return float(found[0].replace(",", ""))

        move("mfu", 35)
        move("availability", 80)
        tokens = 1e6 * 1e8 ** (int(tab.input_value("#tokens")) / 1000)
        flops = flops_per_token(PRESET.config, 4096).training * tokens
        cost = training_cost(flops, 64, H100, "bfloat16", Assumptions(0.35, 0.8, 1.2, 2.0))
        assert number("flops") == pytest.approx(flops, rel=5e-3)
        assert number("days") == pytest.approx(cost.hours / 24, rel=0.05)
        assert number("money") == pytest.approx(cost.money, rel=1e-3)
        move("weights", "int4-g128")
        move("cache", "int8")
        move("rows", 4)
        move("serving-devices", 1)
        context = int(number("context-shown"))
        said = speed(PRESET.config, H100, weights="int4-g128", cache="int8", context=context,
                     rows=16, devices=2)  # fmt: skip
        assert number("decode") == pytest.approx(said.decode, abs=1)
        assert number("prefill") == pytest.approx(said.prefill, abs=1)
        move("devices", 0)
        assert tab.inner_text("#layout") == "does not fit"
        assert [tab.inner_text(f"#{name}") for name in ("days", "money")] == ["–", "–"]
        move("price", 0)
        assert tab.inner_text("#price-shown") == "no price"
        assert tab.inner_text("#price-out") == "–"
        assert wrong == []
        browser.close()
