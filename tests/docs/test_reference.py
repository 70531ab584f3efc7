"""The generated reference pages are those that the program would write now."""

from __future__ import annotations

import pytest

from docs.reference.generate import HERE, PAGES


@pytest.mark.parametrize("name", sorted(PAGES))
def test_page_is_up_to_date(name: str):
    stored = (HERE / name).read_text(encoding="utf-8")
    assert stored == PAGES[name](), f"docs/reference/{name} is out of date: run `make docs`"
