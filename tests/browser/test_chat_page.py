"""What a person does on the chat page."""

from __future__ import annotations

import json
import re

import httpx
import pytest

from gristmill.serve.fields import parse
from tests.tiny_model import FACTS, QUESTIONS

EXAMPLES = [question.replace("`", "") for question in QUESTIONS]  # shown as code
ANSWER = "Find the n largest elements in a dataset."


def ask(page, text: str) -> None:
    page.get_by_label("Your question").fill(text)
    page.keyboard.press("Enter")


def until(page, condition, what: str) -> None:
    for _ in range(200):
        if condition():
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"after 20 s: not {what}")


def answers(page):
    return page.locator(".assistant:not([aria-busy])")


def test_a_question_is_answered_with_its_source(page, url: str) -> None:
    page.goto(url)
    ask(page, QUESTIONS[0])
    answer = answers(page).first
    answer.wait_for()
    assert ANSWER in answer.inner_text()
    assert answer.locator("pre code").first.inner_text() == "nlargest(3, [1, 5, 2, 8])"
    assert page.get_by_role("status").inner_text().startswith("Answer: ")
    assert page.evaluate("document.activeElement.id") == "question"
    source = answer.get_by_role("region", name="Sources")
    assert "python3.11/heapq.py:523" in source.inner_text()
    passage = source.locator("pre")
    assert not passage.is_visible()
    source.get_by_text("heapq.nlargest").first.click()
    assert ANSWER in passage.inner_text()


def test_without_looking_it_up_there_are_no_sources(page, url: str) -> None:
    page.goto(url)
    switch = page.get_by_role("switch", name="Look it up")
    assert switch.is_checked()
    switch.focus()
    page.keyboard.press("Space")
    assert not switch.is_checked()
    ask(page, QUESTIONS[1])
    answer = answers(page).first
    answer.wait_for()
    assert FACTS[1].summary in answer.inner_text()
    assert answer.get_by_role("region", name="Sources").count() == 0


def test_nothing_found_is_said(page, url: str) -> None:
    page.goto(url)
    ask(page, "How do volcanoes erupt?")
    answers(page).first.wait_for()
    assert "I did not find that in the documents." in answers(page).first.inner_text()


def test_examples_ask_themselves_and_a_new_chat_forgets(page, url: str) -> None:
    page.goto(url)
    page.get_by_role("button", name=EXAMPLES[2]).click()
    answers(page).first.wait_for()
    assert page.locator(".user").inner_text().endswith(EXAMPLES[2])
    assert page.locator(".user code").inner_text() == "shlex.quote"
    page.get_by_role("button", name="New chat").click()
    assert page.locator("#log > li").count() == 0
    assert page.get_by_role("heading", name="What would you like to know?").is_visible()


def test_a_stopped_answer_keeps_its_text_and_frees_the_engine(page, endless_url: str) -> None:
    page.goto(endless_url)
    assert not page.get_by_role("switch", name="Look it up").is_visible()
    page.get_by_text("Settings").click()
    page.get_by_label("Longest answer").fill("100000")
    page.keyboard.press("Escape")
    ask(page, "go")
    until(page, lambda: len(page.locator(".answer").inner_text()) > 20, "writing")
    assert page.get_by_role("button", name="Send the question").count() == 0
    page.get_by_role("button", name="Stop the answer").click()
    answers(page).first.wait_for()
    assert "Stopped" in answers(page).first.inner_text()
    text = page.locator(".answer").inner_text()
    health = f"{endless_url}/health"
    until(page, lambda: httpx.get(health).json()["requests_under_way"] == 0, "the engine at rest")
    assert page.locator(".answer").inner_text() == text
    ask(page, "again")
    until(page, lambda: len(page.locator(".answer").nth(1).inner_text()) > 5, "writing")
    page.keyboard.press("Escape")
    answers(page).nth(1).wait_for()


def test_a_refusal_is_shown_and_can_be_tried_again(page, url: str) -> None:
    page.goto(url)
    page.get_by_role("switch", name="Look it up").uncheck(force=True)
    ask(page, "a b c " * 400)
    alert = page.get_by_role("alert")
    alert.wait_for()
    assert re.search(r"prompt has \d+ tokens.*context holds 384", alert.inner_text())
    assert page.get_by_role("button", name="Try again").is_visible()
    ask(page, QUESTIONS[0])  # the refused question is not sent along
    page.locator(".answer p", has_text=ANSWER).wait_for()


def test_a_lost_server_is_said(page, url: str) -> None:
    page.goto(url)
    page.context.set_offline(True)
    ask(page, "hello")
    page.get_by_text("The server cannot be reached").wait_for()
    page.context.set_offline(False)
    page.get_by_role("button", name="Try again").click()
    answers(page).first.wait_for()
    assert page.get_by_role("alert").count() == 0


def test_what_the_model_writes_is_text_and_never_markup(page, url: str) -> None:
    """The page renders its own model's output; feed it a hostile one by the network."""
    page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(
            content_type="text/event-stream",
            body='data: {"choices":[{"delta":{"content":"<img src=x onerror=alert(1)> `<b>` '
            '\\n\\n```\\n<script>alert(2)</script>\\n```"},"finish_reason":"stop"}]}\n\n'
            "data: [DONE]\n\n",
        ),
    )
    page.goto(url)
    ask(page, "<i>hi</i>")
    answers(page).first.wait_for()
    assert "<img src=x onerror=alert(1)>" in page.locator(".answer").inner_text()
    assert page.locator(".answer img, .answer script, .answer b, .user i").count() == 0


def test_how_sure_the_model_is(page, endless_url: str) -> None:
    def seeded(route) -> None:  # an unlucky draw would end the answer early
        route.continue_(post_data=json.dumps(route.request.post_data_json | {"seed": 1}))

    page.route("**/v1/chat/completions", seeded)
    page.goto(endless_url)
    page.get_by_text("Settings").click()
    page.get_by_role("switch", name="Show how sure it is").check(force=True)
    page.get_by_label("Longest answer").fill("30")
    page.get_by_label("Temperature").fill("1")
    page.keyboard.press("Escape")
    ask(page, "go on")
    answers(page).first.wait_for()
    words = page.locator(".answer span[title]")
    assert words.count() >= 20
    assert re.fullmatch(r"[\d.]+ %", words.first.get_attribute("title"))
    assert page.locator(".answer .unsure").count() > 0


def test_everything_is_reachable_by_keyboard_and_named(page, url: str) -> None:
    page.goto(url)
    page.get_by_role("button", name=EXAMPLES[0]).wait_for()
    page.evaluate("document.activeElement.blur()")
    names = []
    for _ in range(12):
        page.keyboard.press("Tab")
        names.append(
            page.evaluate(
                "(e => e.getAttribute('aria-label') || e.labels?.[0]?.textContent.trim()"
                " || e.textContent.trim())(document.activeElement)"
            )
        )
    for name in ["Skip to the question", *EXAMPLES, "Your question", "Look it up", "Settings"]:
        assert name in names
    assert "Send the question" in names
    for control in page.locator("input, textarea, button").all():
        assert control.evaluate(
            "e => Boolean(e.labels?.length || e.getAttribute('aria-label') || e.textContent.trim())"
        )


@pytest.mark.parametrize("width", [320, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_and_is_legible(page, url: str, width: int, scheme: str) -> None:
    """No sideways scrolling; body text has a contrast of at least 4.5 in both colour schemes (WCAG AA)."""
    page.set_viewport_size({"width": width, "height": 700})
    page.emulate_media(color_scheme=scheme)
    page.goto(url)
    ask(page, QUESTIONS[0])
    answers(page).first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.get_by_text("Settings").click()
    panel = page.locator(".panel").bounding_box()
    assert panel["x"] >= 0 and panel["y"] >= 0 and panel["x"] + panel["width"] <= width
    ratios = page.evaluate(
        """() => {
          const channel = v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
          const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).map(Number);
            return .2126 * channel(r) + .7152 * channel(g) + .0722 * channel(b); };
          const ground = e => { for (; e; e = e.parentElement) {
            const c = getComputedStyle(e).backgroundColor;
            if (!/, 0\\)$|transparent/.test(c)) return c; } };
          return ['.answer p', '.user', '.place', '.below', '.switch', '.answer pre code']
            .map(s => { const e = document.querySelector(s);
              const [a, b] = [light(getComputedStyle(e).color), light(ground(e))].sort((x, y) => y - x);
              return [s, (a + .05) / (b + .05)]; });
        }"""
    )
    assert all(ratio >= 4.5 for _, ratio in ratios), ratios


def test_the_pages_requests_are_ones_the_server_documents(page, url: str) -> None:
    page.goto(url)
    with page.expect_request("**/v1/chat/completions") as sent:
        ask(page, QUESTIONS[0])
    asked = parse(sent.value.post_data_json, 384)
    assert asked.unknown == ()
    assert asked.retrieval and asked.stream and asked.params.temperature == 0
    page.locator(".answer p", has_text=ANSWER).wait_for()
