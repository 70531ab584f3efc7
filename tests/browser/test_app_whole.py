"""What holds for every page of the app: keys, accessibility, no request to elsewhere, widths."""

from __future__ import annotations

from importlib import resources

import pytest

from tests.browser.acts import answered, ask, until
from tests.browser.canned import model

AXE = (resources.files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")
TWO = [model("alpha", retrieval=True), model("beta", adapter_of="alpha")]


def test_a_key_is_asked_for_kept_in_the_tab_and_sent(page, start) -> None:
    url, state = start(key="secret")
    page.goto(url)
    dialog = page.get_by_role("dialog")
    field = dialog.get_by_label("API key")
    field.fill("wrong")
    page.keyboard.press("Enter")
    dialog.get_by_text("The server refused that key.").wait_for()
    field.fill("secret")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="How do I find").wait_for()
    ask(page, "hello")
    answered(page)
    until(page, lambda: state.conversations, "stored")
    assert page.evaluate("Object.values(localStorage).join().includes('secret')") is False
    page.reload()
    answered(page)
    assert dialog.count() == 0


def test_without_a_key_it_says_so_and_asks_again(page, start) -> None:
    url, _ = start(key="secret")
    page.goto(url)
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("alert").get_by_text("The server wants an API key").wait_for()
    page.get_by_role("button", name="Enter the key").click()
    page.get_by_label("API key").fill("secret")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="How do I find").wait_for()
    assert page.get_by_role("alert").count() == 0


def test_a_server_that_is_away_at_first_is_waited_for(page, start) -> None:
    url, _ = start()
    page.route("**/app/info", lambda route: route.abort())
    page.goto(url)
    page.get_by_role("alert").get_by_text("The server cannot be reached").wait_for()
    page.unroute("**/app/info")
    page.get_by_role("button", name="Try again").click()
    page.get_by_role("button", name="How do I find").wait_for()
    assert page.get_by_role("alert").count() == 0


def violations(page) -> list[str]:
    page.evaluate(AXE)
    result = page.evaluate("axe.run(document)")
    assert len(result["passes"]) > 20  # it did look
    found = result["violations"]
    return [
        f"{v['id']}: {[node['html'][:150] for node in v['nodes']]}"
        for v in found
        if v["impact"] in ("serious", "critical")
    ]


@pytest.fixture(params=["light", "dark"])
def scheme(request) -> str:
    return request.param


@pytest.mark.parametrize("width", [390, 1280])
def test_axe_finds_nothing_serious(page, start, scheme: str, width: int) -> None:
    url, _ = start(TWO)
    page.set_viewport_size({"width": width, "height": 844})
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")

    def sound(what: str) -> None:
        page.wait_for_timeout(350)  # colours fade for a moment
        assert violations(page) == [], what
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), what

    page.goto(url)
    page.get_by_role("button", name="How do I find").wait_for()
    sound("a new chat")
    page.get_by_role("button", name="Tokens", exact=True).click()
    ask(page, "think of it")
    answered(page)
    sound("an answer by tokens")
    page.locator(".token").nth(2).click()
    sound("the alternatives")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Tokens", exact=True).click()
    ask(page, "Show markdown")
    answered(page, 1)
    ask(page, "refuse")
    page.get_by_role("alert").wait_for()
    page.get_by_text("Thought in").click()
    page.get_by_role("region", name="Sources").first.get_by_text("heapq").first.click()
    sound("a talk")
    page.get_by_role("button", name="Settings", exact=True).click()
    sound("the settings")
    page.keyboard.press("Escape")
    if width < 800:
        page.get_by_role("button", name="Conversations", exact=True).click()
    page.get_by_role("button", name="More for think of it").click()
    sound("the menu")
    page.get_by_role("menuitem", name="Rename").click()
    sound("a dialog")
    page.keyboard.press("Escape")
    page.goto(f"{url}/#/compare")
    page.get_by_text("Settings of A").click()
    page.get_by_label("Your prompt for both").fill("Show markdown")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="First is better").wait_for()
    sound("two answers")
    page.keyboard.press("1")
    page.get_by_role("region", name="Votes so far").wait_for()
    sound("a vote")
    page.goto(f"{url}/#/models")
    until(page, lambda: "written" in page.locator(".chart").first.inner_text(), "charts")
    page.wait_for_timeout(2500)
    sound("models")


def test_models_and_their_figures(page, start) -> None:
    url, _ = start(TWO)
    page.goto(f"{url}/#/models")
    card = page.get_by_role("region", name="alpha")
    card.get_by_text("LlamaForCausalLM").wait_for()
    assert "770 MiB, Q4_K, Q6_K" in card.inner_text()
    assert page.get_by_role("region", name="beta").count() == 0  # an adapter of it
    tokens = card.get_by_role("img", name="Tokens per second")
    label = tokens.get_attribute
    until(page, lambda: "400 read" in (label("aria-label") or ""), "a rate of two readings")
    assert (
        card.get_by_role("img", name="Time to first token").get_attribute("aria-label").count("ms")
    )
    card.locator(".code").first.get_by_role("button", name="Copy").click()
    card.get_by_text("Copied").wait_for()
    assert f"curl {url}/v1/chat/completions" in page.evaluate("navigator.clipboard.readText()")
    page.get_by_role("link", name="Chat", exact=True).click()
    with page.expect_event("request", timeout=5000, predicate=lambda r: "stats" not in r.url):
        ask(page, "hello")


def test_everything_is_reachable_by_keyboard_and_named(page, start) -> None:
    url, _ = start(TWO)
    page.goto(url)
    page.get_by_role("button", name="How do I find").wait_for()
    page.evaluate("document.activeElement.blur()")
    names = []
    for _ in range(18):
        page.keyboard.press("Tab")
        names.append(
            page.evaluate(
                "(e => e.getAttribute('aria-label') || e.labels?.[0]?.textContent.trim()"
                " || e.textContent.trim())(document.activeElement)"
            )
        )
    for name in (
        "Skip to the content",
        "Chat",
        "Compare",
        "Models",
        "New chat",
        "Search conversations",
        "Model",
        "Tokens",
        "Settings",
        "How do I find the n largest elements?",
        "Your question",
        "Attach files",
        "Look it up",
        "Send the question",
    ):
        assert name in names, names
    page.get_by_text("Skip to the content").press("Enter")
    assert page.evaluate("document.activeElement.id") == "question"
