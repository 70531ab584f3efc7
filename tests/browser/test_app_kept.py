"""Conversations outlive the page: reload, two tabs, a lost server, search, rename, delete, export."""

from __future__ import annotations

from tests.browser.acts import answered, ask, until


def kept(state) -> dict:
    (document,) = state.conversations.values()
    return document


def stored(page, state) -> None:
    """Waits until the answers on the page are on the server as they are shown."""
    until(page, lambda: state.conversations, "a conversation")
    shown = page.locator(".text").all_inner_texts()
    until(page, lambda: {n["content"] for n in kept(state)["nodes"]} >= set(shown), "stored")
    until(
        page,
        lambda: all(n.get("finish", n["role"] == "user") for n in kept(state)["nodes"]),
        "ended",
    )


def test_a_reload_keeps_everything(page, start) -> None:
    url, state = start()
    page.goto(url)
    page.get_by_role("button", name="Tokens", exact=True).click()
    ask(page, "one")
    answered(page)
    page.get_by_role("button", name="Regenerate").click()
    answered(page)
    stored(page, state)
    page.get_by_label("Your question").fill("half a tho")
    page.reload()
    answer = answered(page)
    assert answer.locator(".token").count() == len(answer.locator(".tokens").inner_text().split())
    assert answer.get_by_role("group", name="Versions").inner_text().strip() == "2/2"
    assert page.get_by_label("Your question").input_value() == "half a tho"
    assert page.get_by_role("link", name="one").get_attribute("aria-current") == "true"
    page.get_by_role("button", name="New chat").click()
    assert page.locator("#log > li").count() == 0
    assert page.get_by_label("Your question").input_value() == ""
    page.go_back()
    assert "one" in answered(page).inner_text()


def test_a_reload_amid_an_answer_keeps_what_came(page, start) -> None:
    url, state = start()
    page.goto(url)
    ask(page, "slow")
    page.get_by_text("word10").wait_for()
    until(page, lambda: "word20" in kept(state)["nodes"][-1]["content"], "stored while it came")
    page.reload()
    answer = answered(page)
    assert "word20" in answer.inner_text() and "Not finished" in answer.inner_text()
    until(page, lambda: state.under_way == 0, "the server at rest")


def test_two_tabs_lose_nothing(context, start) -> None:
    url, state = start()
    first = context.tab()
    first.goto(url)
    ask(first, "shared")
    answered(first)
    stored(first, state)
    second = context.tab()
    second.goto(first.url)
    answered(second)
    # Both ask at once, from the same place: neither has heard of the other's question. What the second would read
    # of the first's is held back until it has asked, for tabs tell each other within milliseconds.
    held: list = []
    second.route(
        "**/app/conversations/*",
        lambda route: held.append(route) if route.request.method == "GET" else route.continue_(),
    )
    ask(first, "slow from the first tab")
    ask(second, "slow from the second tab")
    for route in held:
        route.continue_()
    second.unroute("**/app/conversations/*")
    for tab in (first, second):
        tab.get_by_role("button", name="Stop the answer").wait_for()
    first.wait_for_timeout(1500)  # words arrive in both, though a hidden tab may not draw them
    for tab in (first, second):
        tab.get_by_role("button", name="Stop the answer").click()
        answered(tab, 1)

    def both() -> bool:
        nodes = kept(state)["nodes"]
        asked = {n["content"] for n in nodes if n["role"] == "user"}
        ended = [n for n in nodes if n["role"] == "assistant" and n.get("finish") == "stopped"]
        return (
            asked == {"shared", "slow from the first tab", "slow from the second tab"}
            and len(ended) == 2
        )

    until(first, both, "both questions and answers stored")
    assert first.locator(".bubble").nth(1).inner_text() == "slow from the first tab"
    assert second.locator(".bubble").nth(1).inner_text() == "slow from the second tab"
    until(
        first,
        lambda: first.get_by_text("1/2").count() + first.get_by_text("2/2").count(),
        "2 versions",
    )


def test_what_could_not_be_stored_is_stored_later(page, start) -> None:
    url, state = start()
    page.goto(url)
    ask(page, "one")
    answered(page)
    stored(page, state)
    page.route("**/app/conversations/*", lambda route: route.abort())
    ask(page, "two")
    answered(page, 1)
    page.get_by_text("This conversation is not stored yet").wait_for()
    page.unroute("**/app/conversations/*")
    stored(page, state)
    assert len(kept(state)["nodes"]) == 4


def test_a_lost_server_is_said(page, start) -> None:
    url, _ = start()
    page.goto(url)
    page.get_by_role("button", name="How do I find").wait_for()
    page.context.set_offline(True)
    ask(page, "hello")
    page.locator("#log").get_by_text("The server cannot be reached").wait_for()
    page.context.set_offline(False)
    page.locator("#log").get_by_role("button", name="Try again").click()
    answered(page)
    assert page.locator("#log").get_by_role("alert").count() == 0


def test_the_list_of_conversations(page, start) -> None:
    url, state = start()
    page.goto(url)
    for text in ("about heaps", "about shells"):
        page.get_by_role("button", name="New chat").click()
        ask(page, text)
        answered(page)
    rows = page.locator("#conversations a")
    until(page, lambda: rows.all_inner_texts() == ["about shells", "about heaps"], "newest first")
    page.get_by_label("Search conversations").fill("heaps")
    until(page, lambda: rows.all_inner_texts() == ["about heaps"], "found")
    more = page.get_by_role("button", name="More for about heaps")
    more.press("Enter")
    with page.expect_download() as download:
        page.get_by_role("menuitem", name="Export as Markdown").press("Enter")
    assert download.value.suggested_filename == "about heaps.md"
    assert download.value.path().read_text() == "markdown of about heaps\n"
    more.press("Enter")
    for key in ("ArrowUp", "ArrowDown", "Enter"):  # round to the last and back to the first
        page.keyboard.press(key)
    page.get_by_label("Title").fill("heaps of heaps")
    page.keyboard.press("Enter")
    until(page, lambda: rows.all_inner_texts() == ["heaps of heaps"], "renamed")
    page.get_by_role("button", name="More for heaps of heaps").click()
    page.get_by_role("menuitem", name="Delete").click()
    until(page, lambda: len(state.conversations) == 1, "deleted")
    page.get_by_role("button", name="Undo").click()
    until(page, lambda: rows.all_inner_texts() == ["heaps of heaps"], "brought back")
    assert len(state.conversations) == 2
    rows.first.click()
    assert "about heaps" in answered(page).inner_text()


def test_a_server_that_keeps_nothing_says_so(page, start) -> None:
    url, state = start(store=False)
    page.goto(url)
    ask(page, "one")
    answered(page)
    page.get_by_text("This server keeps no conversations").wait_for()
    assert state.stored == []


def edit_first(page, text: str) -> None:
    page.locator(".user").first.get_by_role("button", name="Edit").click()
    page.get_by_label("Edit the question").fill(text)
    page.keyboard.press("Enter")
    page.locator(".user").get_by_text(text).wait_for()
    answered(page)


def test_a_title_goes_with_its_question_until_a_person_gives_one(page, start) -> None:
    url, state = start()
    page.goto(url)
    ask(page, "one")
    answered(page)
    ask(page, "two")
    answered(page, 1)
    assert page.locator("#chat-title").inner_text() == "one"
    edit_first(page, "uno")
    assert page.locator("#chat-title").inner_text() == "uno"
    page.get_by_role("link", name="uno").wait_for()
    page.get_by_role("button", name="Previous version").first.click()
    edit_first(page, "ein")
    until(page, lambda: kept(state)["title"] == "ein", "stored by its new title")
    page.get_by_role("button", name="More for ein").click()
    page.get_by_role("menuitem", name="Rename").click()
    page.get_by_label("Title").fill("Numbers")
    page.keyboard.press("Enter")
    page.get_by_role("link", name="Numbers").wait_for()
    edit_first(page, "eins")
    assert page.locator("#chat-title").inner_text() == "Numbers"
