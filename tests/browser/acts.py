"""What a person does on the chat page, by the names that a screen reader gives its parts."""

from __future__ import annotations


def ask(page, text: str) -> None:
    page.get_by_label("Your question").fill(text)
    page.keyboard.press("Enter")


def answered(page, number: int = 0):
    """The answer of that number on the page, once it has ended."""
    answer = page.locator(".assistant").nth(number)
    answer.wait_for()
    page.locator("[aria-busy]").wait_for(state="detached")
    return answer


def until(page, condition, what: str) -> None:
    for _ in range(200):
        if condition():
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"after 10 s: not {what}")
