"""What a person does with answers on the chat page, against canned ones."""

from __future__ import annotations

import re

from tests.browser.acts import answered, ask, until
from tests.browser.canned import THOUGHT, model


def button(page, name: str):
    return page.get_by_role("button", name=name, exact=True)


def test_an_answer_in_markdown(page, start) -> None:
    url, _ = start()
    page.goto(url)
    ask(page, "Show markdown")
    answer = answered(page)
    assert answer.get_by_role("heading", name="Heaps in Python").count() == 1
    assert answer.locator("ol > li ul > li em").inner_text() == "O(log n)"
    assert answer.locator("table td").first.inner_text() == "heappush"
    assert answer.get_by_role("link", name="the module").get_attribute("href").startswith("https:")
    assert answer.locator(".hl-keyword").first.inner_text() == "import"
    assert answer.locator(".hl-added").inner_text() == "+heapq.heapify(values)"
    answer.locator(".code").first.get_by_role("button", name="Copy").click()
    answer.get_by_text("Copied").wait_for()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith("import heapq\n\ndef largest") and copied.endswith("2, 8]))")


def test_what_the_model_writes_is_text_and_never_markup(page, start) -> None:
    hostile = (
        "<img src=x onerror=alert(1)> [a](javascript:alert(2)) ![b](http://example.com/b.png)\n\n"
        "| <b>x</b> | y |\n|-|-|\n| <i>1</i> | `<u>` |\n\n```html\n<script>alert(3)</script>\n```"
    )
    url, _ = start()
    page.goto(url)
    ask(page, hostile)
    answer = answered(page)
    text = answer.inner_text()
    for piece in ("<img src=x onerror=alert(1)>", "(javascript:alert(2))", "<b>x</b>", "<script>"):
        assert piece in text
    assert page.locator("main :is(img, script, b, i, u)").count() == 0
    assert [a.get_attribute("href") for a in answer.locator("a").all()] == [
        "http://example.com/b.png"
    ]


def test_reasoning_folds_away_when_the_answer_begins(page, start) -> None:
    url, state = start(token_s=0.05)
    page.goto(url)
    ask(page, "think of heaps")
    page.get_by_text("Thinking…").wait_for()
    assert page.locator(".reasoning").get_attribute("open") is not None
    answer = answered(page)
    assert answer.locator(".text").inner_text() == "A heap is a list."
    thoughts = answer.locator(".thoughts")
    assert not thoughts.is_visible()
    answer.get_by_text("Thought in").click()
    assert thoughts.inner_text() == THOUGHT
    until(page, lambda: state.stored and state.stored[-1]["nodes"][-1].get("finish"), "stored")
    assert state.stored[-1]["nodes"][-1]["reasoning"] == THOUGHT


def test_a_stopped_answer_keeps_its_text_and_can_go_on(page, start) -> None:
    url, state = start()
    page.goto(url)
    ask(page, "slow")
    page.get_by_text("word3").wait_for()
    button(page, "Stop the answer").click()
    answer = answered(page)
    assert "Stopped" in answer.inner_text()
    text = answer.locator(".text").inner_text()
    until(page, lambda: state.under_way == 0, "the server at rest")
    assert answer.locator(".text").inner_text() == text
    button(page, "Continue").click()
    page.locator("#log").get_by_text("and so it goes on.").wait_for()
    assert answered(page).locator(".text").inner_text() == f"{text} , and so it goes on."
    assert state.asked[-1]["continue_final_message"] is True
    ask(page, "slow again")
    page.locator(".answer").nth(1).get_by_text("word3").wait_for()
    page.keyboard.press("Escape")
    assert "Stopped" in answered(page, 1).inner_text()


def test_edits_and_regenerated_answers_are_branches(page, start) -> None:
    url, state = start()
    page.goto(url)
    ask(page, "one")
    answered(page)
    ask(page, "two")
    answered(page, 1)
    page.locator(".user").first.hover()
    page.locator(".user").first.get_by_role("button", name="Edit").click()
    page.get_by_label("Edit the question").fill("uno")
    page.keyboard.press("Enter")
    assert "uno" in answered(page).inner_text()
    assert page.locator(".assistant").count() == 1
    assert [m["content"] for m in state.asked[-1]["messages"]] == ["uno"]
    button(page, "Regenerate").click()
    answered(page)
    versions = page.locator(".assistant").get_by_role("group", name="Versions")
    assert versions.inner_text().strip() == "2/2"
    question = page.locator(".user").first.get_by_role("group", name="Versions")
    assert question.inner_text().strip() == "2/2"
    question.get_by_role("button", name="Previous version").press("Enter")
    assert page.locator(".bubble").all_inner_texts() == ["one", "two"]
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Next version"
    page.keyboard.press("Enter")
    assert page.locator(".bubble").all_inner_texts() == ["uno"]
    until(page, lambda: len(state.conversations) == 1, "stored")
    nodes = next(iter(state.conversations.values()))["nodes"]
    assert [n["content"] for n in nodes if n["role"] == "user"] == ["one", "two", "uno"]
    assert len([n for n in nodes if n["role"] == "assistant"]) == 4


def test_the_token_view_by_keyboard(page, start) -> None:
    url, state = start()
    page.goto(url)
    tokens = button(page, "Tokens")
    tokens.press("Enter")
    assert tokens.get_attribute("aria-pressed") == "true"
    ask(page, "which?")
    answer = answered(page)
    assert state.asked[-1]["top_logprobs"] > 0
    words = answer.locator(".token")
    said = "Answer 1 of alpha at 0: which?"
    assert words.count() == len(said.split())
    assert answer.locator(".tokens").inner_text() == said
    words.first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    shown = page.get_by_role("dialog")
    assert "Token 3 of 7, 31.0 %" in shown.inner_text()
    rows = [row.split("\t") for row in shown.locator("tbody").inner_text().split("\n")]
    assert [row[-1].strip() for row in rows if row[-1].endswith("%")] == [
        "41.4 %",
        "31.0 %",
        "20.7 %",
        "6.9 %",
    ]
    page.keyboard.press("Escape")
    assert shown.count() == 0
    assert page.evaluate("document.activeElement.dataset.index") == "2"
    page.keyboard.press("Enter")
    shown.get_by_role("button", name="perhaps").press("Enter")
    page.locator("#log").get_by_text("and so it goes on.").wait_for()
    until(page, lambda: page.locator("[aria-busy]").count() == 0, "ended")
    assert state.asked[-1]["messages"][-1] == {"role": "assistant", "content": "Answer 1 perhaps "}
    assert answer.get_by_role("group", name="Versions").inner_text().strip() == "2/2"
    assert words.count() == 3 + 6


def test_tool_calls_are_shown_and_answered(page, start) -> None:
    url, state = start()
    page.goto(url)
    button(page, "Settings").click()
    page.get_by_label("Tools", exact=True).fill("[")
    page.get_by_label("Temperature").focus()
    assert "not JSON" in page.get_by_role("alert").inner_text()
    tool = '{"type": "function", "function": {"name": "weather"}}'
    page.get_by_label("Tools", exact=True).fill(f"[{tool}]")
    button(page, "Close the settings").click()
    ask(page, "use a tool")
    answer = answered(page)
    assert state.asked[-1]["tools"][0]["function"]["name"] == "weather"
    assert answer.locator(".calls .code-head").inner_text().startswith("calls weather")
    assert answer.locator(".calls code").inner_text() == '{\n  "city": "Bern"\n}'
    page.get_by_label("Result of weather").fill("sunny")
    button(page, "Send the result").click()
    page.locator("#log").get_by_text("The tool said: sunny").wait_for()
    call, result = state.asked[-1]["messages"][-2:]
    assert call["tool_calls"][0]["function"]["arguments"] == '{"city": "Bern"}'
    assert result == {"role": "tool", "content": "sunny", "tool_call_id": "call_1"}
    until(page, lambda: len(next(iter(state.conversations.values()))["nodes"]) == 4, "stored")
    page.reload()
    page.locator("#log").get_by_text("The tool said: sunny").wait_for()
    assert page.locator(".tool-result").inner_text().endswith("sunny")


def test_settings_are_sent_and_remembered(page, start) -> None:
    url, state = start([model("alpha"), model("beta")])
    page.goto(url)
    button(page, "Settings").click()
    page.get_by_label("System prompt").fill("Be brief.")
    page.get_by_label("Temperature").fill("0.7")
    page.get_by_label("Top-k").fill("40")
    page.get_by_label("Seed").fill("7")
    page.get_by_label("Stop at").fill("END\n###")
    page.keyboard.press("Escape")
    assert not page.get_by_label("System prompt").is_visible()
    page.get_by_label("Model", exact=True).select_option("beta")
    ask(page, "hello")
    answered(page)
    sent = state.asked[-1]
    assert sent["messages"][0] == {"role": "system", "content": "Be brief."}
    assert sent["model"] == "beta"
    assert (sent["temperature"], sent["top_k"], sent["seed"]) == (0.7, 40, 7)
    assert sent["stop"] == ["END", "###"]
    assert "top_p" not in sent and "min_p" not in sent
    button(page, "New chat").click()
    ask(page, "hello again")
    answered(page)
    assert state.asked[-1]["seed"] == 7


def test_files_are_attached_and_cited(page, start) -> None:
    url, state = start()
    page.goto(url)
    button(page, "Attach files").wait_for()
    page.locator("#file-input").set_input_files(
        [
            {"name": "notes.md", "mimeType": "text/markdown", "buffer": b"# Heaps"},
            {"name": "bad.bin", "mimeType": "application/octet-stream", "buffer": b"\0"},
        ]
    )
    files = page.get_by_role("list", name="Attached files")
    files.get_by_text("2 passages").wait_for()
    files.get_by_text("the file is not text").wait_for()
    button(page, "Remove bad.bin").click()
    page.locator("#composer").evaluate(
        """form => {
            const data = new DataTransfer();
            data.items.add(new File(["dropped"], "dropped.txt", { type: "text/plain" }));
            form.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
        }"""
    )
    files.get_by_text("dropped.txt").wait_for()
    ask(page, "What do they say?")
    answer = answered(page)
    assert state.asked[-1]["retrieval"] == {"index": False, "attachments": ["file0", "file1"]}
    assert page.locator(".user .file-name").all_inner_texts() == ["notes.md", "dropped.txt"]
    source = answer.get_by_role("region", name="Sources")
    assert "python3.11/heapq.py:523" in source.inner_text()
    source.get_by_text("heapq.nlargest").click()
    assert "Find the n largest elements" in source.locator("pre").inner_text()
    ask(page, "And then?")
    answered(page, 1)
    assert state.asked[-1]["retrieval"]["attachments"] == ["file0", "file1"]


def test_errors_in_words_and_another_try(page, start) -> None:
    url, state = start()
    page.goto(url)
    alert = page.locator("#log").get_by_role("alert")
    ask(page, "refuse this")
    alert.wait_for()
    assert "9000 tokens, and the context holds 8192" in alert.inner_text()
    ask(page, "a good one")
    answered(page)
    assert [m["content"] for m in state.asked[-1]["messages"]] == ["a good one"]
    for broken, words in (("fail here", "ran out of memory"), ("drop here", "connection")):
        ask(page, broken)
        alert.wait_for()
        assert words in alert.inner_text()
        assert "Answer" in page.locator(".answer").last.inner_text()  # what came stays
        before = len(state.asked)
        button(page, "Try again").click()
        until(page, lambda before=before: len(state.asked) > before, "asked again")
        answered(page, 1)
        alert.wait_for()
    ask(page, "wordless")
    page.locator("#log").get_by_text("The model answered with nothing.").wait_for()


def test_the_page_asks_once_it_knows_the_server(page, start) -> None:
    url, state = start([model("alpha", retrieval=True)], info_after=1.5)
    page.goto(url)
    ask(page, "early")
    assert re.fullmatch("", page.locator(".answer").inner_text())
    answered(page)
    assert state.asked[-1]["model"] == "alpha" and state.asked[-1]["retrieval"] is True
