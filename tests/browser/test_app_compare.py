"""Two answers side by side, and the votes that they get."""

from __future__ import annotations

import pytest

from tests.browser.acts import until
from tests.browser.canned import model

TWO = [model("alpha"), model("beta")]


def ask(page, text: str) -> None:
    page.get_by_label("Your prompt for both").fill(text)
    page.keyboard.press("Enter")
    page.get_by_role("button", name="First is better").wait_for()


def sides(page):
    return page.locator(".turns > li").last.locator(".side")


def test_votes_by_key_and_both_go_on_from_the_better_answer(page, start) -> None:
    url, state = start(TWO)
    page.goto(f"{url}/#/compare")
    ask(page, "hello")
    assert sides(page).locator(".text").all_inner_texts() == [
        "Answer 1 of alpha at 0: hello",
        "Answer 1 of beta at 0: hello",
    ]
    page.get_by_label("Reason for the vote").fill("1 and 2 are digits here")
    assert state.votes == []
    page.keyboard.press("Escape")
    page.keyboard.press("2")
    page.locator(".side.won").wait_for()
    assert state.votes[0] == {
        "prompt": [{"role": "user", "content": "hello"}],
        "answers": [
            {"model": "alpha", "text": "Answer 1 of alpha at 0: hello"},
            {"model": "beta", "text": "Answer 1 of beta at 0: hello"},
        ],
        "choice": "second",
        "reason": "1 and 2 are digits here",
        "blind": False,
    }
    ask(page, "more")
    better = {"role": "assistant", "content": "Answer 1 of beta at 0: hello"}
    assert [body["messages"][1] for body in state.asked[2:]] == [better, better]
    page.keyboard.press("3")
    until(page, lambda: len(state.votes) == 2, "voted")
    ask(page, "and more")
    page.keyboard.press("4")
    score = page.get_by_role("region", name="Votes so far").locator("tbody")
    until(
        page,
        lambda: score.inner_text().split() == ["alpha", "0", "1", "beta", "3", "1", "1"],
        "score",
    )
    page.keyboard.press("1")  # nothing is up for a vote
    page.wait_for_timeout(200)
    assert len(state.votes) == 3
    with page.expect_download() as download:
        page.get_by_role("button", name="Export preferences").click()
    assert download.value.suggested_filename == "preferences.jsonl"


def test_blind_hides_names_and_order_until_the_vote(page, start) -> None:
    url, state = start(TWO)
    page.goto(f"{url}/#/compare")
    page.get_by_role("switch", name="Blind").check(force=True)
    orders = set()
    for turn in range(12):
        ask(page, f"prompt {turn}")
        assert sides(page).locator(".name").all_inner_texts() == ["", ""]
        assert sides(page).locator(".below").all_inner_texts() == [
            "Copy",
            "Copy",
        ]  # no speed either
        page.keyboard.press("1")
        until(page, lambda turn=turn: len(state.votes) == turn + 1, "voted")
        vote = state.votes[-1]
        shown = [answer["model"] for answer in vote["answers"]]
        assert vote["blind"] and all(
            name in a["text"] for name, a in zip(shown, vote["answers"], strict=True)
        )
        until(
            page,
            lambda shown=shown: sides(page).locator(".name").all_inner_texts() == shown,
            "named",
        )
        orders.add(shown[0])
        if len(orders) == 2:
            return
    pytest.fail("twelve times the same order: one chance in 2048")


def test_one_model_with_two_temperatures(page, start) -> None:
    url, state = start()
    page.goto(f"{url}/#/compare")
    page.get_by_text("Settings of B").click()
    page.get_by_label("Temperature").nth(1).fill("1.2")
    ask(page, "hello")
    assert [body["temperature"] for body in state.asked] == [0, 1.2]
    page.get_by_role("button", name="Tie").click()
    until(page, lambda: state.votes, "voted")
    names = [answer["model"] for answer in state.votes[0]["answers"]]
    assert names == ["alpha (temperature 0)", "alpha (temperature 1.2)"]


def test_stop_failure_and_a_new_start(page, start) -> None:
    url, state = start(TWO)
    page.goto(f"{url}/#/compare")
    page.get_by_label("Your prompt for both").fill("slow")
    page.keyboard.press("Enter")
    page.get_by_text("word3").nth(1).wait_for()
    page.keyboard.press("Escape")
    page.get_by_text("Stopped").nth(1).wait_for()
    until(page, lambda: state.under_way == 0, "the server at rest")
    page.get_by_label("Your prompt for both").fill("refuse")
    page.keyboard.press("Enter")
    page.get_by_role("alert").nth(1).wait_for()
    assert "holds 8192" in page.get_by_role("alert").last.inner_text()
    assert not page.get_by_role("button", name="First is better").is_visible()
    page.get_by_role("button", name="Start anew").click()
    ask(page, "fresh")
    assert len(state.asked[-1]["messages"]) == 1
