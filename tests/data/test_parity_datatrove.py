"""Every rule of the web profile decides as datatrove's filters do: keep or drop, and for which first reason."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.curation.pages import DATA, pages
from benchmarks.curation.parity import decisions, parity


def test_decisions_and_reasons_equal_datatroves_on_real_pages() -> None:
    """`python -m benchmarks.curation --parity` does the same on over 5,000 longer pages."""
    assert DATA.is_dir(), f"no test data in {DATA}"
    found = parity(pages(1000, 1200, installed=False))
    assert found.pages >= 1000
    assert found.differences == []
    # the pages put the rules to the test: each filter keeps some and drops some, for many reasons
    assert {name for name, reasons in found.reasons.items() if len(reasons) > 1} >= {
        *("repetition", "quality", "c4", "c4_loose", "fineweb", "chain")
    }
    assert len({reason for reasons in found.reasons.values() for reason in reasons}) >= 20


# Pieces that the rules look for, so that random texts of them fall on both sides of the limits.
PIECES = (
    *(
        "the ",
        "mill",
        "to be",
        " of ",
        "have",
        "Don't",
        "U.S.",
        "e.g.",
        "1234",
        "x1",
        "-",
        "- ",
        "• ",
        "#",
    ),
    *(
        "...",
        "…",
        ".",
        "!",
        "?",
        '"',
        "'",
        "”",
        "。",
        "؟",
        "！",
        "１",
        "é",
        "ß",
        "人",
        "का",
        "𝔘",
        "🙂",
        "\u200b",
    ),
    *(
        "\n",
        "\n",
        "\n\n",
        "\n \n",
        "\r\n",
        "\x0b",
        "\x0c",
        "\x1c",
        "\x85",
        "\u2028",
        "\t",
        " ",
        "  ",
        "\u00a0",
    ),
    *(
        "{",
        "}",
        "[12]",
        "[edit]",
        "[citation needed]",
        "Lorem ipsum",
        "JavaScript",
        "Privacy Policy",
        "İ",
    ),
    *(
        "We use cookies. ",
        "The mill turns by the river. ",
        "a" * 1001,
        "http://a.b/c?d=e",
    ),
)


@settings(max_examples=120, deadline=None)
@given(
    st.lists(st.sampled_from(PIECES), max_size=40).map("".join),
    st.lists(st.sampled_from(PIECES), max_size=12).map("".join),
    st.integers(1, 12),
)
def test_decisions_equal_datatroves_on_made_up_texts(start: str, piece: str, times: int) -> None:
    assert [row for row in decisions(start + piece * times) if row[1] != row[2]] == []
