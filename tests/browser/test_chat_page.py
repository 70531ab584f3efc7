"""What a person does on the chat page with a real model behind it."""

from __future__ import annotations

import json
import re

import httpx
import pytest

from gristmill.serve.openai.chat import ChatRequest
from tests.browser.acts import answered, ask, until
from tests.tiny_model import FACTS, QUESTIONS

EXAMPLES = [question.replace("`", "") for question in QUESTIONS]  # shown as code
ANSWER = "Find the n largest elements in a dataset."


def settings(page, **values: str) -> None:
    page.get_by_role("button", name="Settings", exact=True).click()
    for label, value in values.items():
        page.get_by_label(label.replace("_", " ")).fill(value)
    page.keyboard.press("Escape")


def test_a_question_is_answered_with_its_source(page, url: str) -> None:
    page.goto(url)
    ask(page, QUESTIONS[0])
    answer = answered(page)
    assert ANSWER in answer.inner_text()
    assert answer.locator("pre code").first.inner_text() == "nlargest(3, [1, 5, 2, 8])"
    assert page.locator("#status").inner_text().startswith("Answer: ")
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
    answer = answered(page)
    assert FACTS[1].summary in answer.inner_text()
    assert answer.get_by_role("region", name="Sources").count() == 0


def test_nothing_found_is_said(page, url: str) -> None:
    page.goto(url)
    ask(page, "How do volcanoes erupt?")
    assert "I did not find that in the documents." in answered(page).inner_text()


def test_examples_ask_themselves_and_a_new_chat_forgets(page, url: str) -> None:
    page.goto(url)
    page.get_by_role("button", name=EXAMPLES[2]).click()
    answered(page)
    assert page.locator(".bubble").inner_text() == EXAMPLES[2]
    assert page.locator(".bubble code").inner_text() == "shlex.quote"
    page.get_by_role("button", name="New chat").click()
    assert page.locator("#log > li").count() == 0
    assert page.get_by_role("heading", name="What would you like to know?").is_visible()


def test_a_stopped_answer_keeps_its_text_and_frees_the_engine(page, endless_url: str) -> None:
    page.goto(endless_url)
    assert not page.get_by_role("switch", name="Look it up").is_visible()
    settings(page, Longest_answer="100000")
    ask(page, "go")
    until(page, lambda: len(page.locator(".answer").inner_text()) > 20, "writing")
    assert page.get_by_role("button", name="Send the question").count() == 0
    page.get_by_role("button", name="Stop the answer").click()
    answer = answered(page)
    assert "Stopped" in answer.inner_text()
    text = page.locator(".text").inner_text()
    health = f"{endless_url}/health"
    until(page, lambda: httpx.get(health).json()["requests_under_way"] == 0, "the engine at rest")
    assert page.locator(".text").inner_text() == text
    ask(page, "again")
    until(page, lambda: len(page.locator(".answer").nth(1).inner_text()) > 5, "writing")
    page.keyboard.press("Escape")
    assert "Stopped" in answered(page, 1).inner_text()


def test_a_refusal_is_shown_and_can_be_tried_again(page, url: str) -> None:
    page.goto(url)
    page.get_by_role("switch", name="Look it up").uncheck(force=True)
    ask(page, "a b c " * 400)
    alert = page.locator("#log").get_by_role("alert")
    alert.wait_for()
    assert re.search(r"prompt has \d+ tokens.*context holds 384", alert.inner_text())
    assert page.get_by_role("button", name="Try again").is_visible()
    ask(page, QUESTIONS[0])  # the refused question is not sent along
    page.locator(".answer p", has_text=ANSWER).wait_for()


def test_a_lost_server_is_said(page, url: str) -> None:
    page.goto(url)
    page.get_by_role("button", name=EXAMPLES[0]).wait_for()
    page.context.set_offline(True)
    ask(page, "hello")
    page.locator("#log").get_by_text("The server cannot be reached").wait_for()
    page.context.set_offline(False)
    page.get_by_role("button", name="Try again").click()
    answered(page)
    assert page.get_by_role("alert").count() == 0


def test_how_sure_the_model_is(page, endless_url: str) -> None:
    def seeded(route) -> None:  # an unlucky draw would end the answer early
        route.continue_(post_data=json.dumps(route.request.post_data_json | {"seed": 1}))

    page.route("**/v1/chat/completions", seeded)
    page.goto(endless_url)
    page.get_by_role("button", name="Tokens", exact=True).click()
    settings(page, Longest_answer="30", Temperature="1")
    ask(page, "go on")
    answered(page)
    words = page.locator(".token")
    assert words.count() >= 20
    assert re.fullmatch(r"(< )?[\d.]+ %", words.first.get_attribute("title"))
    words.nth(3).click()
    bars = page.get_by_role("dialog").locator("tbody tr")
    assert bars.count() >= 6
    assert page.get_by_role("dialog").locator(".chosen").count() == 1


@pytest.mark.parametrize("width", [320, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits(page, url: str, width: int, scheme: str) -> None:
    """No sideways scrolling, and the settings lie within the screen."""
    page.set_viewport_size({"width": width, "height": 700})
    page.emulate_media(color_scheme=scheme)
    page.goto(url)
    ask(page, QUESTIONS[0])
    answered(page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.get_by_role("button", name="Settings", exact=True).click()
    panel = page.get_by_role("region", name="Settings").bounding_box()
    assert panel["x"] >= 0 and panel["y"] >= 0 and panel["x"] + panel["width"] <= width


def test_the_pages_requests_are_ones_the_server_documents(page, url: str) -> None:
    page.goto(url)
    with page.expect_request("**/v1/chat/completions") as sent:
        ask(page, QUESTIONS[0])
    asked = ChatRequest.model_validate(sent.value.post_data_json)
    assert asked.unknown == []
    assert asked.retrieval and asked.stream and asked.temperature == 0
    page.locator(".answer p", has_text=ANSWER).wait_for()
