"""The whole app with the real server and its store behind it: what the canned one only plays."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from gristmill import serve
from gristmill.engine import Engine
from gristmill.serve.store import Store
from tests.browser.acts import answered, ask, until
from tests.tiny_model import QUESTIONS, taught_model


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def kept(store: Store) -> Iterator[str]:
    app = serve.build_app([serve.Served("tiny", Engine(taught_model()), None, ())], store=store)
    with serve.served(app) as address:
        yield address


def test_tokens_branches_and_files_are_stored_as_they_were(page, kept: str, store: Store) -> None:
    page.goto(kept)
    page.get_by_role("button", name="Tokens", exact=True).click()
    ask(page, QUESTIONS[1])
    text = answered(page).locator(".tokens").inner_text()
    page.get_by_role("button", name="Regenerate").click()
    answered(page)
    notes = "# Mill\n\nThe mill grinds wheat in the morning and rye in the evening.\n"
    page.locator("#file-input").set_input_files(
        {"name": "mill.md", "mimeType": "text/markdown", "buffer": notes.encode()}
    )
    page.get_by_text("1 passage").wait_for()
    ask(page, "What does the mill grind in the morning?")
    answered(page, 1)
    assert page.get_by_text("not stored yet").count() == 0
    until(page, lambda: len(store.conversations(None)) == 1, "listed")
    id = page.url.rpartition("/")[2]

    def whole() -> bool:
        nodes = (store.conversation(id) or {"nodes": []})["nodes"]
        return len(nodes) == 5 and bool(nodes[-1].get("finish"))

    until(page, whole, "stored")
    page.reload()
    answered(page, 1)
    assert page.locator(".tokens").first.inner_text() == text
    assert page.locator(".user .file-name").inner_text() == "mill.md"
    page.get_by_role("button", name=f"More for {QUESTIONS[1]}").click()
    with page.expect_download() as download:
        page.get_by_role("menuitem", name="Export as messages").click()
    row = json.loads(download.value.path().read_text())
    assert [m["role"] for m in row["messages"]] == ["user", "assistant", "user", "assistant"]


def test_two_tabs_of_the_same_conversation(context, kept: str, store: Store) -> None:
    first, second = context.tab(), context.tab()
    first.goto(kept)
    ask(first, QUESTIONS[0])
    answered(first)
    id = first.url.rpartition("/")[2]
    until(first, lambda: store.conversation(id), "stored")
    second.goto(first.url)
    answered(second)
    ask(first, "one")
    ask(second, "two")
    for tab in (first, second):
        answered(tab, 1)

    def both() -> bool:
        nodes = (store.conversation(id) or {"nodes": []})["nodes"]
        return len(nodes) == 6 and all(n.get("finish", n["role"] == "user") for n in nodes)

    until(first, both, "both tabs' questions and answers")


def test_compare_and_models(page, kept: str, store: Store) -> None:
    page.goto(f"{kept}/#/compare")
    page.get_by_label("Your prompt for both").fill(QUESTIONS[0])
    page.keyboard.press("Enter")
    page.get_by_role("button", name="First is better").wait_for()
    page.keyboard.press("1")
    page.get_by_role("region", name="Votes so far").wait_for()
    (vote,) = store.votes()
    assert vote.choice == "first" and vote.models[0] != vote.models[1]
    page.get_by_role("link", name="Models").click()
    model = page.get_by_role("region", name="tiny")
    figures = model.get_by_role("img", name="Requests")
    until(page, lambda: "0 running" in (figures.get_attribute("aria-label") or ""), "figures")
