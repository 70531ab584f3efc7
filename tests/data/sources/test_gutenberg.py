"""Gutenberg's texts: a real book, the header's forms over the years, other plain texts."""

from pathlib import Path

import pytest

from gristmill.data.sources.gutenberg import gutenberg_book, looks_like_gutenberg, read_gutenberg

BOTCHAN = Path("../shared/data/text/botchan.txt")
SHAKESPEARE = Path("../shared/data/text/tinyshakespeare.txt")
STORY = "CHAPTER I.\n\nIt was a dark night that\nhad no end.\n\nSecond paragraph\nof it.\n"
NEW = f"""The Project Gutenberg eBook of A Story
This ebook is for the use of anyone anywhere. See www.gutenberg.org

Title: A Story

Author: Ann Other

*** START OF THE PROJECT GUTENBERG EBOOK A STORY ***

Produced by Some Volunteers

{STORY}
*** END OF THE PROJECT GUTENBERG EBOOK A STORY ***

Section 1. Licence terms of Project Gutenberg.
"""
OLD = f"""**Welcome To The World of Free Plain Vanilla Electronic Texts** Project Gutenberg Etext
Title: A Story

*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*

{STORY}
End of the Project Gutenberg Etext of A Story
"""
BODY = "## CHAPTER I.\n\nIt was a dark night that had no end.\n\nSecond paragraph of it.\n"


@pytest.mark.parametrize("text", [NEW, OLD, NEW.replace("\n", "\r\n")])
def test_headers_of_all_years(text: str) -> None:
    assert looks_like_gutenberg(text)
    raw = gutenberg_book("s", text)
    assert raw.text == "# A Story\n\n" + BODY
    assert (raw.license, raw.title, raw.kind) == ("public-domain", "A Story", "book")


def test_other_texts_are_books_without_a_licence() -> None:
    assert not looks_like_gutenberg(STORY)
    raw = gutenberg_book("s", STORY)
    assert (raw.text, raw.license) == (BODY, "")


def test_verse_keeps_its_lines() -> None:
    verse = "Tyger Tyger, burning bright,\nIn the forests of the night;\nWhat immortal hand or eye,"
    assert gutenberg_book("s", f"{verse}\n\n{STORY}").text.startswith(verse + "\n\n## CHAPTER")


@pytest.mark.skipif(not BOTCHAN.is_file(), reason="no ../shared/data")
def test_a_real_book() -> None:
    (raw,) = read_gutenberg(BOTCHAN)
    assert raw.title == "Botchan (Master Darling)" and raw.detail["author"] == "Kin-nosuke Natsume"
    assert "gutenberg" not in raw.text.lower() and "START OF" not in raw.text
    assert [line for line in raw.text.split("\n") if line.startswith("## CHAPTER")] == [
        f"## CHAPTER {number}"
        for number in ("I", *"II. III. IV V. VI. VII. VIII. IX. X. XI.".split())
    ]
    words = BOTCHAN.read_text("utf-8-sig").split()
    assert len(raw.text.split()) > 0.92 * len(
        words
    )  # the header and licence are 3,000 of 51,000 words
    (raw,) = read_gutenberg(SHAKESPEARE)
    assert not raw.detail["gutenberg"]


def test_files_that_are_no_books(tmp_path: Path) -> None:
    for name, data, reason in (
        ("a", b"", "empty"),
        ("b", b"\0\1\2", "binary"),
        ("c", b"x" * 101, "too_large"),
    ):
        (tmp_path / name).write_bytes(data)
        assert [raw.reason for raw in read_gutenberg(tmp_path / name, max_bytes=100)] == [reason]
    assert [raw.reason for raw in read_gutenberg(tmp_path / "absent")] == ["unreadable"]
